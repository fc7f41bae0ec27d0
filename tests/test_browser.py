"""Pages in a real Chromium: actions and trees, walls that hold, deadlines, deaths of every process on the way."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import posttrain as pt
from posttrain.browser import Action, Browser, Page, observe, parse_action, perform
from posttrain.browser.chromium import chromium_path, origin
from posttrain.browser.serving import PageServer

# ---- actions


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("click('12')", Action("click", ("12",))),
        ("  click( ' 12 ' )\n", Action("click", ("12",))),
        ("click(12)", Action("click", ("12",))),
        ('click(bid="12", button="left")', Action("click", ("12",))),
        ("click('12', 'right')", Action("click", ("12", "right"))),
        ("fill('a3', \"it's (here)\")", Action("fill", ("a3", "it's (here)"))),
        ("fill(value='x', bid='a3')", Action("fill", ("a3", "x"))),
        ("select_option('7', ['High'])", Action("select_option", ("7", "High"))),
        ("select_option('7', ('a', 'b'))", Action("select_option", ("7", ("a", "b")))),
        ("scroll(0, 100)", Action("scroll", (0.0, 100.0))),
        ("scroll(0, 1e2)", Action("scroll", (0.0, 100.0))),
        ("noop()", Action("noop")),
        ("noop(1000)", Action("noop")),
        ("send_msg_to_user('42')", Action("send_msg_to_user", ("42",))),
    ],
)
def test_an_action_is_its_values_however_it_is_spelt(text, action):
    assert parse_action(text) == action
    assert parse_action(str(action)) == action


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no action"),
        ("click", "no action"),
        ("click('1'); click('2')", "one action"),
        ("click('1')\nclick('2')", "one action"),
        ("__import__('os').system('true')", "no action ''"),
        ("open('/etc/passwd')", "no action 'open'"),
        ("click()", "needs bid"),
        ("click('1', 'left', 3)", "takes 2"),
        ("click(bid='1', where='x')", "no argument 'where'"),
        ("click(**{'bid': '1'})", "no argument None"),
        ("click(*['1'])", "plain value"),
        ("fill('1', print('x'))", "plain value"),
        ("fill('1', f'{1}')", "plain value"),
        ("fill('1', None)", "is a text"),
        ("fill('1', True)", "is a text"),
        ("scroll('a', 1)", "is a number"),
        ("scroll(1e9, 1)", "is a number"),
        ("fill('1', '\\ud800')", "no text"),
        ("click(" * 3000, "at most"),
        ("(" * 900 + ")" * 900, "no action"),
    ],
)
def test_what_is_no_action_has_a_reason(text, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse_action(text)


ANY_TEXT = st.text(max_size=80) | st.text(alphabet="clikfsend_(){}[]'\"\\,=*:;#1 2\n\x00\ud800<>/actionhk", max_size=80)


@given(ANY_TEXT)
def test_no_text_is_more_than_an_action_or_a_reason(text):
    with contextlib.suppress(ValueError):
        action = parse_action(text)
        assert parse_action(str(action)) == action
        assert hash(action) == hash(parse_action(text))


# ---- pages

needs_browser = pytest.mark.skipif(
    not shutil.which("chromium") or not importlib.util.find_spec("playwright"),
    reason="needs Chromium (apt-get install chromium) and playwright (pip install 'posttrain[web]')",
)
PAGE = """<title>T</title><h1>Incidents</h1><label>Owner <input></label>
<label>State <select><option>Open</option><option>Closed</option></select></label>
<label><input type=checkbox> Urgent</label><a href="#x">Next page</a>
<table><tr><th>Name</th><th>Value</th></tr><tr><td>Open</td><td>12</td></tr></table>
<button onclick="document.title='done'">Go on</button><button disabled>Off</button>
<p>Some text</p><iframe srcdoc="<button>Inner</button>"></iframe>"""
PAGES = {"/": PAGE, "/hang": "<script>while (true);</script>", "/other": "<p>other</p>"}


@pytest.fixture(scope="module")
def server():
    with PageServer(lambda path: ("text/html", PAGES[path].encode()) if path in PAGES else None) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with Browser(deadline_s=30) as found:
        yield found


def bid(page: Page, name: str) -> str:
    found = re.search(rf"\[(\d+)\] \w+ {name!r}", observe(page))
    assert found, name
    return found[1]


def act(page: Page, text: str) -> str:
    return perform(page, parse_action(text))


@needs_browser
def test_a_page_is_seen_as_a_tree_in_its_order_and_acted_on_by_ids(browser, server):
    page = browser.open(server.origin + "/")
    seen = re.sub(r"\[\d+\]", "[]", observe(page)).splitlines()
    assert seen == [
        "heading 'Incidents'",
        "[] textbox 'Owner'",
        "[] combobox 'State' value='Open' options='Open', 'Closed'",
        "[] checkbox 'Urgent'",
        "[] link 'Next page'",
        "columnheader 'Name'",
        "columnheader 'Value'",
        "cell 'Open'",
        "cell '12'",
        "[] button 'Go on'",
        "[] button 'Off' disabled",
        "StaticText 'Some text'",
        "[] button 'Inner'",
    ]
    for text in (
        "fill('{Owner}', 'Ann B')",
        "select_option('{State}', 'Closed')",
        "check('{Urgent}')",
        "click('{Go on}')",
        "click('{Inner}')",
    ):
        assert act(page, re.sub(r"\{(.*)\}", lambda found: bid(page, found[1]), text)) == ""
    assert page.evaluate("document.title") == "done"
    seen = observe(page)
    assert "'Owner' value='Ann B'" in seen
    assert "'State' value='Closed'" in seen
    assert "'Urgent' checked" in seen
    assert observe(page, lines=2).endswith("(11 more)")
    assert observe(page, characters=40) == seen.splitlines()[0] + "\n(12 more)"
    page.close()


@needs_browser
def test_what_a_policy_does_wrong_is_told_to_it(browser, server):
    page = browser.open(server.origin + "/")
    assert "no element with bid '9999'" in act(page, "click('9999')")
    assert "Timeout" in act(page, f"click('{bid(page, 'Off')}')")
    assert "Timeout" in act(page, f"select_option('{bid(page, 'State')}', 'Never')")
    assert act(page, f"fill('{bid(page, 'Go on')}', 'x')")
    owner = bid(page, "Owner")
    page.evaluate("document.querySelector('input').remove()")
    assert "not there any more" in act(page, f"fill('{owner}', 'x')")
    page.close()


@needs_browser
def test_ids_are_drawn_anew_for_each_load_and_stay_while_the_element_does(browser, server):
    def ids(page):
        return re.findall(r"\[(\d+)\]", observe(page))

    page, same = (browser.open(server.origin + "/", seed=3) for _ in range(2))
    first = ids(page)
    assert first == ids(page) == ids(same)
    assert len(set(first)) == len(first)
    page.goto(server.origin + "/")
    assert ids(page) != first
    page.close()
    same.close()


# ---- walls


class Listener:
    """A port of loopback, by TCP or UDP, and whether anything has reached it."""

    def __init__(self, kind: int):
        self.socket = socket.socket(socket.AF_INET, kind)
        self.socket.bind(("127.0.0.1", 0))
        self.port, self.heard = self.socket.getsockname()[1], False
        if kind == socket.SOCK_STREAM:
            self.socket.listen()
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        self.socket.accept() if self.socket.type == socket.SOCK_STREAM else self.socket.recvfrom(100)
        self.heard = True


@needs_browser
def test_nothing_but_the_page_s_own_origin_can_be_reached(browser, server):
    tcp, udp = Listener(socket.SOCK_STREAM), Listener(socket.SOCK_DGRAM)
    other = f"127.0.0.1:{tcp.port}"
    page = browser.open(server.origin + "/")
    attempts = """async other => {
        const tried = [];
        const note = work => tried.push(Promise.resolve().then(work).then(() => 'done', () => 'refused'));
        note(() => fetch(`http://${other}/`, {mode: 'no-cors'}));
        note(() => fetch(`http://localhost:${other.split(':')[1]}/`, {mode: 'no-cors'}));
        note(() => fetch('http://example.com/', {mode: 'no-cors'}));
        note(() => fetch('file:///etc/hostname'));
        note(() => new Promise((yes, no) => { const s = new WebSocket(`ws://${other}/`); s.onopen = yes; s.onerror = s.onclose = no; }));
        note(() => new Promise((yes, no) => { const s = new EventSource(`http://${other}/`); s.onopen = yes; s.onerror = no; }));
        note(() => new Promise((yes, no) => { const i = new Image(); i.onload = yes; i.onerror = no; i.src = `http://${other}/i.png`; }));
        navigator.sendBeacon(`http://${other}/`, 'x');
        window.open(`http://${other}/`);
        for (const rel of ['preconnect', 'dns-prefetch', 'prefetch', 'prerender'])
            document.head.append(Object.assign(document.createElement('link'), {rel, href: `http://${other}/`}));
        document.body.append(Object.assign(document.createElement('iframe'), {src: `http://${other}/`}));
        document.body.append(Object.assign(document.createElement('iframe'), {src: 'file:///etc/hostname'}));
        return Promise.all(tried);
    }"""
    assert set(page.evaluate(attempts, other)) == {"refused"}
    rtc = """async port => {
        const rtc = new RTCPeerConnection({iceServers: [{urls: `stun:127.0.0.1:${port}`}]});
        rtc.createDataChannel('x');
        await rtc.setLocalDescription(await rtc.createOffer());
        await new Promise(done => setTimeout(done, 700));
    }"""
    page.evaluate(rtc, udp.port)
    page.evaluate("other => { location = `http://${other}/` }", other)
    time.sleep(0.3)
    assert not tcp.heard
    assert not udp.heard
    page.close()


@needs_browser
def test_only_pages_of_its_origins_can_be_gone_to(browser, server, tmp_path):
    secret = tmp_path / "secret.html"
    secret.write_text("secret")
    page = browser.open(server.origin + "/")
    refused = (
        f"file://{secret}",
        "javascript:document.title='x'",
        "data:text/html,x",
        "chrome://version",
        "about:blank",
        f"view-source:{server.origin}/",
        "http://127.0.0.1:9/",
        "http://[",
        "HTTP://127.0.0.1/",
        server.origin + "@evil.com/",
        "",
    )
    for url in refused:
        assert "cannot be opened" in act(page, str(Action("goto", (url,)))), url
    assert act(page, f"goto('{server.origin}/other')") == ""
    assert "other" in observe(page)
    page.evaluate("url => { location = url }", f"file://{secret}")
    page.evaluate("window.open('/')")
    page.evaluate("alert('dismissed')")
    time.sleep(0.2)
    assert page.page.url == server.origin + "/other"
    assert len(page.page.context.pages) == 1
    page.close()


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://127.0.0.1:80/x?y", "http://127.0.0.1:80"),
        ("https://a.b", "https://a.b"),
        ("file:///etc", ""),
        ("http://", ""),
        ("http://[", ""),
        ("http://127.0.0.1:80@evil.com/", "http://127.0.0.1:80@evil.com"),
    ],
)
def test_the_origin_of_an_address(url, found):
    assert origin(url) == found


@needs_browser
def test_two_pages_share_nothing_that_a_page_can_keep(browser, server):
    one, two = (browser.open(server.origin + "/") for _ in range(2))
    one.evaluate("document.cookie = 'a=1'; localStorage.a = 1; sessionStorage.a = 1; window.name = 'a'")
    assert two.evaluate("[document.cookie, localStorage.a, sessionStorage.a, window.name]") == ["", None, None, ""]
    one.close()
    two.close()


# ---- deadlines and deaths


@needs_browser
def test_a_page_that_hangs_ends_alone(server):
    with Browser(deadline_s=5) as browser:
        other = browser.open(server.origin + "/")
        with pytest.raises(pt.EpisodeFailed, match="within 5 s"):
            browser.open(server.origin + "/hang")
        assert "Owner" in observe(other)


def processes_of(pid: int) -> list[int]:
    """All that descend from it and are no zombies."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = folder.joinpath("stat").read_text().rsplit(")", 1)[1].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found += [int(folder.name), *processes_of(int(folder.name))]
    return found


@needs_browser
@pytest.mark.parametrize("killed", ["chromium", "driver", "stopped"])
def test_an_episode_whose_browser_dies_fails_and_the_next_one_has_a_new_browser(server, killed):
    with Browser(deadline_s=6) as browser:
        before = processes_of(os.getpid())
        page = browser.open(server.origin + "/")
        if killed == "driver":
            [driver] = [
                one for one in processes_of(os.getpid()) if one not in before and b"playwright/driver" in command(one)
            ]
            os.kill(driver, signal.SIGKILL)
        else:
            os.kill(browser.state["pid"], signal.SIGKILL if killed == "chromium" else signal.SIGSTOP)
        with pytest.raises(pt.EpisodeFailed):
            observe(page)
        page.close()
        assert "Owner" in observe(browser.open(server.origin + "/"))


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


PROGRAM = """
import sys, time
from posttrain.browser import Browser, observe
browser = Browser()
observe(browser.open(sys.argv[1]))
print("open", flush=True)
sys.stdin.readline()
"""


@needs_browser
@pytest.mark.parametrize("way", ["wait", "end"])
def test_no_process_is_left_behind(server, way):
    """Of a trainer that is killed, and of one that ends without closing its browser."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", PROGRAM, server.origin + "/"], **pipes) as trainer:
        assert trainer.stdin
        assert trainer.stdout
        assert trainer.stdout.readline() == b"open\n"
        started = processes_of(trainer.pid)
        assert len(started) >= 3
        if way == "wait":
            trainer.kill()
        else:
            trainer.stdin.write(b"\n")
            trainer.stdin.flush()
        assert trainer.wait(30) == (-signal.SIGKILL if way == "wait" else 0)
    deadline = time.monotonic() + 20
    while left := [one for one in started if b"chromium" in command(one) or b"playwright" in command(one)]:
        assert time.monotonic() < deadline, [command(one)[:100] for one in left]
        time.sleep(0.1)


@needs_browser
def test_no_program_of_the_desktop_is_started(server, monkeypatch, tmp_path):
    """Addresses of other programs never reach a route: Chromium hands them to xdg-open, if it finds one."""
    told = tmp_path / "told"
    (tmp_path / "xdg-open").write_text(f"#!/bin/sh\necho $1 >> {told}\n")
    (tmp_path / "xdg-open").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with Browser() as browser:
        page = browser.open(server.origin + "/")
        page.evaluate("document.body.innerHTML = '<a href=\"mailto:a@b.c?body=hello\">write</a>'")
        found = re.search(r"\[(\d+)\] link 'write'", observe(page))
        assert found
        assert perform(page, Action("click", (found[1],))) == ""
        time.sleep(1.0)
    assert not told.exists()


@needs_browser
def test_the_clipboard_is_closed(server):
    with Browser() as browser:
        page = browser.open(server.origin + "/")
        for text in ("keyboard_press('Control+v')", "keyboard_down('Meta')", "keyboard_press('Shift+Insert')"):
            assert perform(page, parse_action(text)) == "the clipboard cannot be used here"
        assert perform(page, parse_action("keyboard_press('Control+a')")) == ""


@needs_browser
def test_a_driver_that_comes_up_too_late_is_ended():
    before = processes_of(os.getpid())
    with Browser(deadline_s=0.05) as browser:
        for _ in range(2):
            with pytest.raises(pt.EpisodeFailed):
                browser.open("http://127.0.0.1:9/")
        time.sleep(3.0)
    deadline = time.monotonic() + 20
    while [one for one in processes_of(os.getpid()) if one not in before and b"playwright" in command(one)]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@needs_browser
def test_names_are_not_resolved_and_so_not_allowed(server):
    with Browser() as browser, pytest.raises(ValueError, match="no name is resolved"):
        browser.open("http://localhost:8000/")


@needs_browser
def test_a_closed_browser_opens_nothing(server):
    browser = Browser()
    browser.close()
    with pytest.raises(pt.EpisodeFailed, match="closed"):
        browser.open(server.origin + "/")


def test_without_chromium_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("POSTTRAIN_CHROMIUM", raising=False)
    with pytest.raises(ValueError, match="apt-get install chromium"):
        chromium_path()
    monkeypatch.setenv("POSTTRAIN_CHROMIUM", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="POSTTRAIN_CHROMIUM="):
        chromium_path()
