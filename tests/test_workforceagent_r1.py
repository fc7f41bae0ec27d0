"""WorkForceAgent-R1: replies, the reward, traces, the workplace and its oracle, live episodes in a real Chromium."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import said as rollout_of
from hypothesis import given
from hypothesis import strategies as st

import posttrain as pt
from posttrain.browser import Browser, parse_action
from posttrain.browser.serving import PageServer
from posttrain.cli import main
from posttrain.lab.world.workplace import KINDS, Workplace
from posttrain.policy.text import TextPolicy
from posttrain.systems.workforceagent_r1 import recipe
from posttrain.systems.workforceagent_r1.browsergym import Gym
from posttrain.systems.workforceagent_r1.live import Tab, Tabs, live
from posttrain.systems.workforceagent_r1.oracle import instance_of, record
from posttrain.systems.workforceagent_r1.prompts import fitting_request, request
from posttrain.systems.workforceagent_r1.reply import reply_text, stated
from posttrain.systems.workforceagent_r1.reward import Truth, evaluation, reward
from posttrain.systems.workforceagent_r1.suites import file_in, suite
from posttrain.systems.workforceagent_r1.traces import (
    bid_of,
    demonstrations_of,
    fitted_tasks,
    split_by_instance,
    steps_of,
)

ANY_TEXT = st.text(max_size=80) | st.text(alphabet="clikfsend_(){}[]'\"\\,=*:;#1 2\n\x00\ud800<>/actionhk", max_size=80)

# ---- replies and the reward

FILL, SELECT = parse_action("fill('b1', 'x')"), parse_action("select_option('b2', 'High')")
TRUTH = Truth(FILL, (SELECT,))


def graded(text: str, **options) -> float:
    return value_of(reward(**options), rollout_of(text, TRUTH))


def value_of(paid: pt.Reward, rollout: pt.Rollout) -> float:
    [score] = paid([rollout])
    assert isinstance(score, pt.Score)
    return score.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("fill('b1', 'x')", -1.0),
        ("<action>fill('b1', 'x')", -1.0),
        ("<think>so <action>fill('b1', 'x')</action>", -1.0),  # the thinking is still open
        ("<think><action>fill('b1', 'x')</action></think>", -1.0),
        ("<action>click('b1')</action>", 0.1),
        ("<action>nonsense</action>", 0.1),
        ("<action></action>", 0.1),
        ("<action>fill('b1', 'y')</action>", 0.2),
        ("<action>fill('b1'</action>", 0.2),  # what can be read of it is its name
        ("<action>fill('b1', 'x'); fill('b2', 'y')</action>", 0.2),
        ("<action>fill('b1', 'x')</action>", 1.0),
        ('<think>a</think>\n<action>\nfill("b1", value="x")\n</action>\n', 1.0),
        ("<action>select_option('b2', 'High')</action>", 1.0),  # as much needed
        ("<action>fill('b1', 'x')</action> and so on, and on", 0.2),
        ("<action>fill('b1', 'x')</action> done.", 1.0),
        ("<action>fill('b1', 'x')</action><action>click('b9')</action>", 0.2),
    ],
)
def test_the_reward_by_hand(text, value):
    assert graded(text) == value


def test_strictness_wants_a_thought_and_singleness_the_recorded_action():
    bare, thoughtful = "<action>fill('b1', 'x')</action>", "<think>x is needed</think><action>fill('b1', 'x')</action>"
    assert (graded(bare, strict=True), graded(thoughtful, strict=True)) == (-1.0, 1.0)
    assert graded("<think> </think>" + bare, strict=True) == -1.0
    other = "<action>select_option('b2', 'High')</action>"
    assert (graded(other, single=True), graded(other)) == (0.1, 1.0)


def test_a_reply_that_was_cut_off_did_not_stop():
    [whole] = [rollout_of("<action>fill('b1', 'x')</action>", TRUTH)]
    turn = whole.turns[0]
    cut = pt.Rollout(
        whole.task, [pt.Turn(turn.ask, pt.Reply(turn.reply.content, turn.reply.logp, None, stop="length"))]
    )
    [score] = pt.group_scores(reward(), [cut])
    assert isinstance(score, pt.Score)
    assert (score.value, score.parts) == (0.2, {"formed": 1, "named": 1, "right": 1, "stopped": 0})
    assert value_of(evaluation(), cut) == 1.0


@given(ANY_TEXT | ANY_TEXT.map(lambda text: f"<action>{text}</action>"))
def test_no_reply_however_broken_is_more_than_a_score(text):
    assert graded(text) in (-1.0, 0.1, 0.2, 1.0)
    found = stated(text)
    assert found is None or (found.action is None) == bool(found.reason)


# ---- traces


def line(**more):
    return {
        "instance": "form/1",
        "goal": "Fill it",
        "observation": "[12] textbox 'Owner'",
        "action": "click('12')",
        **more,
    }


def written(path: Path, *lines) -> str:
    path.write_text("\n".join(json.dumps(one) for one in lines) + "\n")
    return str(path)


def test_recorded_calls_of_playwright_are_read_as_actions(tmp_path):
    calls = [
        ("click", {"bid": "a3", "args": [], "kwargs": {}}, "click('a3')"),
        ("fill", {"bid": "a3", "args": ["x (y)"], "kwargs": {}}, "fill('a3', 'x (y)')"),
        ("select_option", {"bid": "a3", "args": [], "kwargs": {"label": "High"}}, "select_option('a3', 'High')"),
        ("set_checked", {"bid": "a3", "args": [False], "kwargs": {}}, "uncheck('a3')"),
        ("type", {"bid": "a3", "args": ["x"], "kwargs": {"delay": 5}}, "fill('a3', 'x')"),
        ("press", {"bid": "keyboard", "args": ["Enter"], "kwargs": {}}, "keyboard_press('Enter')"),
    ]
    rows = [line(action=name, **columns) for name, columns, _ in calls]
    found = steps_of(written(tmp_path / "t.jsonl", *rows))
    assert [str(one.truth.action) for one in found] == [text for *_, text in calls]
    assert bid_of(found[0].truth.action) == "a3"
    assert bid_of(found[-1].truth.action) == ""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"action": "jump('12')"}, r"t.jsonl, line 2.*jump"),
        ({"action": 3}, r"line 2: `action` is no text"),
        ({"history": "click('1')"}, r"line 2: `history`"),
        ({"needed": ["jump()"]}, r"line 2.*jump"),
        ({"goal": " "}, r"line 2: `goal`"),
        ({"observation": None}, r"line 2.*observation"),
    ],
)
def test_a_line_that_is_no_step_is_named(tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        steps_of(written(tmp_path / "t.jsonl", line(), line(**more)))


def test_steps_are_split_by_instance_and_the_file_around_them_does_not_matter(tmp_path):
    rows = [line(instance=f"form/{i}", history=["click('1')"] * j) for i in range(60) for j in range(3)]
    steps = steps_of(written(tmp_path / "t.jsonl", *rows))
    shown, unseen = split_by_instance(steps, 0.3, seed=1)
    assert len(shown) + len(unseen) == 180
    assert not {one.instance for one in shown} & {one.instance for one in unseen}
    assert 6 <= len(unseen) / 3 <= 30
    assert {one.key for one in split_by_instance(steps[:90], 0.3, 1)[1]} == {one.key for one in unseen} & {
        s.key for s in steps[:90]
    }
    assert split_by_instance(steps, 0.0, 1)[1] == []


def test_a_long_page_loses_its_last_lines_and_a_step_whose_element_is_lost_is_dropped(tmp_path):
    page = "\n".join(f"[{10 + i}] button 'b{i}'" for i in range(50))
    rows = [line(instance=f"i{i}", observation=page, action=f"click('{10 + i}')") for i in (0, 49)]
    steps = steps_of(written(tmp_path / "t.jsonl", *rows))
    tokens = lambda prompt: len(str(prompt[-1]["content"]).split())  # noqa: E731
    whole = tokens(request("Fill it", (), page))
    fitted = fitted_tasks(steps, request, tokens, whole - 60)
    assert (len(fitted.tasks), fitted.dropped, fitted.cut) == (1, ["i49/2"], ["i0/1"])
    shown = str(fitted.tasks[0].prompt[-1]["content"])
    assert tokens(fitted.tasks[0].prompt) <= whole - 60
    assert re.search(r"\(\d+ more\)$", shown)
    assert fitted_tasks(steps, request, tokens, whole).cut == []
    assert fitting_request(request, tokens, 3, ("Fill it", (), page, "")) is None
    with pytest.raises(ValueError, match="most_prompt"):
        fitted_tasks(steps, request, tokens, 3)


# ---- the workplace, its oracle, and live episodes


@given(st.sampled_from(KINDS), st.integers(0, 10_000), st.booleans())
def test_a_job_s_elements_are_on_its_screens_and_told_apart_by_their_names(kind, number, shifted):
    job = Workplace(1).job(7 * number + KINDS.index(kind), "test", shifted)
    assert job.kind == kind
    for elements in job.screens.values():
        names = [(one["role"], one["name"]) for one in elements]
        assert len(set(names)) == len(names)
    shown = {(one["role"], one["name"]) for elements in job.screens.values() for one in elements}
    assert all((move.role, move.name) in shown for stage in job.plan for move in stage if move.role)
    assert job == Workplace(1).job(7 * number + KINDS.index(kind), "test", shifted)
    assert set(" ".join([job.goal, *(move.command for stage in job.plan for move in stage)]).split()) <= set(
        Workplace(1).vocabulary
    )


needs_browser = pytest.mark.skipif(
    not shutil.which("chromium") or not importlib.util.find_spec("playwright"),
    reason="needs Chromium (apt-get install chromium) and playwright (pip install 'posttrain[web]')",
)


class Scripted:
    """A sampler that says what a function makes of the prompt."""

    def __init__(self, say):
        self.say = say

    def sample(self, asks):
        return [pt.Reply(self.say(str(ask.messages[-1]["content"])), torch.zeros(1), None) for ask in asks]


@pytest.fixture(scope="module")
def place():
    world = Workplace(0)
    with PageServer(world.page) as server, Browser() as browser, ThreadPoolExecutor(4) as threads:
        yield world, server, Tabs(browser), threads


@needs_browser
@pytest.mark.parametrize("shifted", [False, True])
def test_the_oracle_does_a_job_of_each_kind_and_what_it_records_is_right(place, shifted, tmp_path):
    world, server, tabs, _ = place
    jobs = [world.job(number, "train", shifted) for number in range(len(KINDS))]
    steps = [step for job in jobs for step in record(job, tabs, server.origin)]
    assert [one.kind for one in steps if not one.history] == list(KINDS)
    assert steps_of(written(tmp_path / "t.jsonl", *(one.line for one in steps))) == steps
    assert all(graded_step(one, reply_text(one.truth.action, one.thought)) == 1.0 for one in steps)
    assert any(one.truth.needed for one in steps)
    for one in steps:
        assert not bid_of(one.truth.action) or f"[{bid_of(one.truth.action)}]" in one.observation


def graded_step(step, text: str) -> float:
    return value_of(reward(), rollout_of(text, step.truth))


def played(place, say, jobs, most_steps=6):
    _, server, tabs, threads = place
    env = live(lambda task: Tab(tabs, task.truth), request, threads, most_steps)
    tasks = [pt.Task(job.key, (), instance_of(job, server.origin)) for job in jobs]
    return pt.play(tasks, env, {"policy": Scripted(say)})


@needs_browser
def test_episodes_side_by_side_succeed_where_their_replies_do_the_job(place):
    world = place[0]
    jobs = [world.job(number, "test") for number in (3, 10, 6)]  # two menus and a dashboard

    def follow(prompt: str) -> str:
        [job] = [one for one in jobs if one.goal in prompt]
        done = 0 if "nothing yet" in prompt else prompt.count("\n1. ") + prompt.count("\n2. ")
        move = job.plan[done][0]
        found = re.search(rf"\[(\d+)\] {move.role} '{move.name}'", prompt)
        return reply_text(f"click('{found[1]}')" if found and move.role else f"send_msg_to_user('{move.value}')")

    facts = [one.facts for one in played(place, follow, jobs)]
    assert [(one.success, len(one.actions), one.errors, one.unformed) for one in facts] == [
        (True, 2, 0, 0),
        (True, 2, 0, 0),
        (True, 1, 0, 0),
    ]


@needs_browser
def test_wrong_actions_cost_steps_and_a_wrong_answer_the_task(place):
    world = place[0]
    [lost] = played(place, lambda prompt: "I think so", [world.job(0, "test")], most_steps=2)
    assert (lost.facts.success, lost.facts.unformed, len(lost.turns)) == (False, 2, 2)
    assert "no action" in str(lost.turns[1].ask.messages[-1]["content"])
    [blind] = played(place, lambda prompt: reply_text("click('9999')"), [world.job(0, "test")], most_steps=2)
    assert (blind.facts.success, blind.facts.errors, blind.facts.actions) == (False, 2, ["click('9999')"] * 2)
    assert "9999" in str(blind.turns[1].ask.messages[-1]["content"])
    [wrong] = played(place, lambda prompt: reply_text("send_msg_to_user('Nobody')"), [world.job(6, "test")])
    assert (wrong.facts.success, len(wrong.turns)) == (False, 1)


@needs_browser
def test_a_browser_that_dies_in_an_episode_makes_it_invalid_and_no_other(place):
    world, _, tabs, _ = place
    jobs = [world.job(6, "test"), world.job(13, "test")]
    asked = []

    def kill_then_answer(prompt: str) -> str:
        asked.append(prompt)
        if len(asked) == 1:
            os.kill(tabs.browser.state["pid"], signal.SIGKILL)
        return reply_text("noop(1)")

    first, second = played(place, kill_then_answer, jobs, most_steps=1)
    assert isinstance(first.facts, pt.Failure)
    assert "browser" in first.facts.reason
    assert isinstance(second.facts, pt.Failure)  # it had a page of the same browser
    [after] = played(place, lambda prompt: reply_text("noop(1)"), jobs[:1], most_steps=1)
    assert not isinstance(after.facts, pt.Failure)


# ---- suites that nobody here wrote


@needs_browser
@pytest.mark.skipif(not importlib.util.find_spec("miniwob"), reason="needs MiniWoB++'s pages (pip install miniwob)")
def test_miniwob_is_played_by_the_same_episodes_and_judges_itself():
    def click(prompt: str) -> str:
        wanted = re.search(r"Click on the \"(.*?)\" button", prompt)
        found = re.search(rf"\[(\d+)\] button '{wanted[1]}'", prompt) if wanted else None
        return reply_text(f"click('{found[1]}')" if found else "noop(1)")

    with suite("miniwob", 2, 0, 2, tasks=("click-button", "enter-text")) as opened:
        env = live(opened.world, request, opened.threads, 1)
        rollouts = pt.play(list(opened.tasks), env, {"policy": Scripted(click)})
    assert [one.facts.success for one in rollouts] == [True, True, False, False]
    goals = [str(one.turns[0].ask.messages[-1]["content"]) for one in rollouts]
    assert len(set(goals)) == 4
    with pytest.raises(ValueError, match="tasks=click-nothing"), suite("miniwob", 1, 0, 1, tasks=("click-nothing",)):
        pass


def test_no_file_outside_of_a_folder_is_served(tmp_path):
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "a.html").write_text("a")
    (tmp_path / "secret").write_text("s")
    (folder / "link").symlink_to(tmp_path / "secret")
    assert file_in(folder, "/a.html?x=1") == ("text/html", b"a")
    for path in ("/../secret", "/%2e%2e/secret", "//etc/hostname", "/link", "/", "/none"):
        assert file_in(folder, path) is None


class StandIn:
    """Gymnasium's interface with BrowserGym's observations: one button, to be clicked. It lives in one thread."""

    def __init__(self):
        self.thread = threading.get_ident()

    def reset(self, seed):
        return {"goal": f"Click it ({seed})", "axtree_object": "[a3] button 'It'", "last_action_error": ""}, {}

    def step(self, action):
        seen = {"goal": "", "axtree_object": "[a3] button 'It'", "last_action_error": ""}
        if "down" in action:
            raise OSError("the server is down")
        if action != "click('a3')":
            return {**seen, "last_action_error": "no such element"}, 0.0, False, False, {}
        return seen, 1.0, True, False, {}

    def close(self):
        assert threading.get_ident() == self.thread


def test_an_environment_of_browsergym_s_is_played_by_the_same_episodes():
    """Against a stand-in: BrowserGym itself is not installed here."""
    said_in_turn = iter(["click('a9')", "click('a3')", "send_msg_to_user('down')"])
    with ThreadPoolExecutor(1) as threads:
        env = live(lambda task: Gym(StandIn, lambda seen: seen["axtree_object"], task.truth), request, threads, 3)
        tasks = [pt.Task("gym/0", (), 7), pt.Task("gym/1", (), 8)]
        first, second = (
            pt.play([one], env, {"policy": Scripted(lambda prompt: reply_text(next(said_in_turn)))})[0] for one in tasks
        )
    assert (first.facts.success, first.facts.errors, len(first.turns)) == (True, 1, 2)
    assert "(7)" in str(first.turns[0].ask.messages[-1]["content"])
    assert "no such element" in str(first.turns[1].ask.messages[-1]["content"])
    assert isinstance(second.facts, pt.Failure)
    assert "server is down" in second.facts.reason
    with pytest.raises(ValueError, match="pip install browsergym-nothing"), suite("browsergym/nothing.x", 1, 0, 1):
        pass


# ---- the recipe and the stages


def test_the_recipe_has_the_released_numbers(make):
    policy = make(max_new=4)
    made = recipe(reward(), reference=policy.frozen_copy())
    assert (made.samples, made.updates, made.reduce) == (8, 16, pt.token_mean)
    assert recipe(reward(), kl=0, entropy=0).reference is None


@needs_browser
def test_an_evaluation_is_resumed_without_its_failures(tmp_path, words):
    TextPolicy(pt.tiny.network(words, 0, hidden=32), words).save(tmp_path / "model")
    out = tmp_path / "evaluation"
    line = ["run", "workforceagent-r1", "--stage", "evaluate", "--model", str(tmp_path / "model"), "--out", str(out)]
    line += ["--count", "2", "--most-steps", "1", "--max-new", "4", "--quiet"]
    main(line)
    episodes = [json.loads(one) for one in (out / "episodes.jsonl").read_text().splitlines()]
    assert [one["id"] for one in episodes] == ["test/0", "test/1"]
    assert json.loads((out / "measures.json").read_text())["all"] == {
        "episodes": 2.0, "success": 0.0, "actions": 0.0, "errors": 0.0, "unformed": 1.0,
    }  # fmt: skip
    kept = [episodes[0], {"id": "test/1", "failed": "the browser failed"}]
    (out / "episodes.jsonl").write_text("".join(json.dumps(one) + "\n" for one in kept))
    main([*line, "--resume"])
    assert [json.loads(one) for one in (out / "episodes.jsonl").read_text().splitlines()] == episodes


def test_steps_of_one_task_without_a_history_keep_their_own_thoughts(tmp_path):
    rows = [line(action=f"click('{i}')", thought=f"thought {i}") for i in (10, 11)]
    for row in rows:
        row.pop("history", None)
    steps = steps_of(written(tmp_path / "t.jsonl", *rows))
    tasks = [pt.Task(one.key, request(one.goal, (), one.observation), one.truth) for one in steps]
    said = [one.messages[-1]["content"] for one in demonstrations_of(steps, tasks, True)]
    assert [("thought 10" in text, "click('10')" in text) for text in said] == [(True, True), (False, False)]


@pytest.mark.parametrize("away", ["go_back()", "goto('{origin}/test/6')", "goto('{origin}/nothing')"])
@needs_browser
def test_a_task_that_is_left_is_not_done(away):
    """Neither on another task's page, which would judge itself, nor where nothing judges: then it is no failure of ours."""
    place = Workplace(5)
    with PageServer(place.page) as server, Browser() as browser:
        tab = Tab(Tabs(browser), instance_of(place.job(0, "test"), server.origin))
        tab.begin()
        tab.act(parse_action(away.format(origin=server.origin)))
        assert tab.act(parse_action("send_msg_to_user('Seven')")).success is None
        tab.close()
