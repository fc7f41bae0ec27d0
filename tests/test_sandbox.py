"""Untrusted programs: what they may do, what becomes of those that try more, and what is left of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from attacks import ATTACKS
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import comes_true

from posttrain.sandbox import (
    Calls,
    Limits,
    Memo,
    Outcome,
    Program,
    RaisedError,
    ReturnedValue,
    probe,
    run_calls,
    sandbox,
)
from posttrain.sandbox.backends import Zygote, lacking

readable = os.getuid() != 0 or all(p.stat().st_mode & 5 == 5 for p in Path(os.__file__).resolve().parents)
WALLED = {  # the zygote, and what is left of it where a container grants no namespaces, or the kernel has no Landlock
    "zygote": (),
    "zygote without namespaces": ("user", "counted", "network", "pids", *(["mounts"] if readable else [])),
    "zygote without Landlock and seccomp": ("landlock", "seccomp"),
}
NOBODY = 65534 if os.getuid() == 0 else None
OTHERS = ("a pid namespace", "no pid namespace", "a count of files")  # what attacks need besides
KINDS = [*WALLED, "bubblewrap", "plain"]


@pytest.fixture(scope="module", params=KINDS)
def box(request):
    kind = request.param
    if kind != "plain" and (reason := lacking(kind.partition(" ")[0])):
        pytest.skip(f"this machine lacks {reason}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of `plain`
        held = Zygote(WALLED[kind]) if kind in WALLED else sandbox(kind)
    with held:
        yield held


@pytest.fixture(scope="module")
def zygote():
    if reason := lacking("zygote"):
        pytest.skip(f"this machine lacks {reason}")
    with sandbox("zygote") as held:
        yield held


@pytest.fixture(scope="module")
def bait(tmp_path_factory):
    """What attacks are aimed at: a secret file, servers on this machine, the trainer. Yields their names and what the
    servers heard."""
    folder = tmp_path_factory.mktemp("bait")
    (folder / "secret").write_text("SECRET")
    (folder / "secret").chmod(0o666)
    kinds = {"tcp": socket.AF_INET, "unix": socket.AF_UNIX, "abstract": socket.AF_UNIX}
    short = tempfile.mkdtemp(prefix="bait")  # the name of a unix socket may not be long
    addresses = {"tcp": ("127.0.0.1", 0), "unix": f"{short}/socket", "abstract": f"\0bait{os.getpid()}"}
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(socket.socket(kind)) for name, kind in kinds.items()}
        for name, server in servers.items():
            server.bind(addresses[name])
            server.listen()
            server.setblocking(False)
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        udp.setblocking(False)
        os.chmod(short, 0o755)
        os.chmod(f"{short}/socket", 0o777)
        owned = Path(short, "owned")  # by the user that programs are, as every file of a trainer that is not root
        owned.write_text("owned")
        victim = stack.enter_context(subprocess.Popen(["sleep", "600"], user=NOBODY))
        stack.callback(victim.kill)
        if NOBODY is not None:
            os.chown(owned, NOBODY, NOBODY)
        names = {
            "trainer": os.getpid(),
            "victim": victim.pid,
            "owned": owned,
            "secret": folder / "secret",
            "here": Path(__file__).parent,
            "above": Path(__file__).parent.parent,
            "port": servers["tcp"].getsockname()[1],
            "udp": udp.getsockname()[1],
            "socket": f"{short}/socket",
            "abstract": f"bait{os.getpid()}",
        }

        def heard() -> list[str]:
            found = []
            for name, server in servers.items():
                with contextlib.suppress(BlockingIOError):
                    server.accept()[0].close()
                    found.append(name)
            with contextlib.suppress(BlockingIOError):
                found.append(udp.recv(100).decode())
            return [*found, *(["a signal"] if victim.poll() is not None else [])]

        yield names, heard
        os.unlink(f"{short}/socket")
        owned.unlink()
    os.rmdir(short)


def alive(box) -> set[int]:
    """The processes that belong to the sandbox: those whose command line names its folder."""
    found = set()
    for entry in filter(str.isdigit, os.listdir("/proc") if Path("/proc").is_dir() else []):
        with contextlib.suppress(OSError):
            if box.folder.encode() in Path(f"/proc/{entry}/cmdline").read_bytes():
                found.add(int(entry))
    return found


def settled(box, before: set[int]) -> bool:
    return comes_true(lambda: not alive(box) - before) and not os.listdir(box.folder)


@pytest.mark.parametrize("name", ATTACKS)
def test_what_attacks_come_to(box, name, bait, monkeypatch):
    attack = ATTACKS[name]
    apart = box.name == "bubblewrap" or (isinstance(box, Zygote) and "pids" not in box.without)
    has = {*box.isolates, "a pid namespace" if apart else "no pid namespace"}
    if box.name == "bubblewrap":
        has -= {"a pid namespace"} if os.getuid() == 0 else set()  # it allows root no second process
    else:
        has.add("a count of files")
    missing = set(attack.needs) - has
    if missing:
        pytest.skip(f"{box.name} does not isolate {', '.join(sorted(missing))} here")
    monkeypatch.setenv("SECRET_TOKEN", "SECRET")
    before = alive(box)
    values, heard = bait
    owned = values["owned"].stat()
    source = attack.source.replace("SIGNAL", "9" if apart else "0")
    for word, value in values.items():
        source = source.replace("{" + word + "}", str(value))
    outcome = box.run(Program(source, attack.stdin, attack.files), attack.limits)
    assert outcome.status == attack.status, outcome
    assert outcome.exit == (0 if attack.status == "finished" else attack.exit), outcome
    if attack.stdout is not None:
        assert outcome.stdout == attack.stdout, outcome
    assert attack.says in outcome.stderr
    assert "SECRET" not in outcome.stdout + outcome.stderr
    assert len(outcome.stdout) <= attack.limits.output_kib << 10
    assert outcome.wall_s < attack.limits.wall_s + 60
    assert heard() == []
    assert values["secret"].read_text() == "SECRET"
    now = values["owned"].stat()
    assert (now.st_mode, now.st_size, now.st_mtime, now.st_gid) == (
        *owned[:1],
        owned.st_size,
        owned.st_mtime,
        owned.st_gid,
    )
    assert not hasattr(os, "listxattr") or os.listxattr(values["owned"]) == []
    assert settled(box, before)
    assert box.run(Program("print('well')")).stdout == "well\n"


def test_there_are_attacks_enough_and_the_zygote_stands_them_all(zygote):
    assert len(ATTACKS) >= 30
    assert all(set(attack.needs) <= {*zygote.isolates, *OTHERS} for attack in ATTACKS.values())


def test_an_honest_program_has_what_it_needs(box):
    source = """
import dataclasses, sys, zlib, atexit, tempfile, threading
from mine.part import word

@dataclasses.dataclass
class A:
    n: int

if __name__ == "__main__":
    with tempfile.NamedTemporaryFile("w+") as file:
        file.write("kept")
        file.flush()
        print(word, A(3), input(), sys.stdin.read(), open("data.txt").read(), open(file.name).read())
    atexit.register(print, "bye")
    print("to stderr", file=sys.stderr)
"""
    files = {"mine/part.py": "word = 'part'", "data.txt": "line\r\nß", "mine/__init__.py": ""}
    outcome = box.run(Program(source, "first\nsecond\nthird", files))
    assert outcome.status == "finished", outcome
    assert outcome.stdout == "part A(n=3) first second\nthird line\nß kept\nbye\n"
    assert outcome.stderr == "to stderr\n"
    assert 0 < outcome.cpu_s < 5
    assert 5_000 < outcome.memory_kib < 200_000


def test_a_traceback_shows_the_programs_own_lines_and_none_of_ours(box):
    outcome = box.run(Program("def f():\n    return 1 / 0  # here\n\nf()\n"))
    assert outcome.stderr.startswith(
        'Traceback (most recent call last):\n  File "program.py", line 4, in <module>\n    f()'
    )
    assert "return 1 / 0  # here" in outcome.stderr
    assert "body" not in outcome.stderr


def test_seconds_and_memory_are_the_kernels(box):
    source = "import time\nt = time.process_time() + 0.2\nx = bytearray(b'x') * (50 << 20)\nwhile time.process_time() < t: pass"
    outcome = box.run(Program(source + "\ntime.process_time = None"))
    assert 0.2 <= outcome.cpu_s < 1
    if sys.platform == "linux":
        assert 50 << 10 < outcome.memory_kib < 100 << 10


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.text(max_size=200))
def test_what_goes_in_comes_out(zygote, text):
    outcome = zygote.run(Program("import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())", text))
    assert outcome.stdout == text


def test_hundreds_of_programs_side_by_side_come_back_in_order(zygote):
    programs = [Program(f"print(input(), {i})", str(-i)) for i in range(200)]
    outcomes = zygote.run_all(programs, at_once=4)
    assert [outcome.stdout for outcome in outcomes] == [f"{-i} {i}\n" for i in range(200)]
    assert settled(zygote, alive(zygote))


def test_programs_side_by_side_see_nothing_of_one_another(box):
    if "disk" not in box.isolates:
        pytest.skip("the folders are apart, but in one place")
    source = "import os, time\nopen('mine', 'w').close()\ntime.sleep(0.2)\nprint(os.listdir(), os.listdir('/tmp'))"
    for outcome in box.run_all([Program(source)] * 3, at_once=3):
        assert outcome.stdout == "['mine'] ['mine']\n"


def test_the_same_program_gives_the_same_output_in_every_sandbox(box):
    program = Program("print({str(i) for i in range(30)}, hash('a'))")
    first = subprocess.run(
        [sys.executable, "-c", program.source], env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True
    )
    assert {outcome.stdout for outcome in box.run_all([program] * 3)} == {first.stdout}


def test_threads_may_share_a_sandbox(zygote):
    said: dict[int, str] = {}

    def run(i: int) -> None:
        said[i] = zygote.run(Program(f"print({i})")).stdout

    threads = [threading.Thread(target=run, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {i: f"{i}\n" for i in range(12)}


@pytest.mark.parametrize("after_s", [0.05, 0.1, 0.2, 0.3])
def test_a_killed_zygote_is_born_again_and_its_programs_run_again(after_s):
    if reason := lacking("zygote"):
        pytest.skip(f"this machine lacks {reason}")
    with sandbox("zygote") as box:
        first = box.live_process().process
        killer = threading.Timer(after_s, os.kill, (first.pid, signal.SIGKILL))
        killer.start()
        outcomes = box.run_all([Program("import time\ntime.sleep(0.6)\nprint('through')")] * 8, at_once=8)
        killer.join()
        first.wait()
        assert [outcome.stdout for outcome in outcomes] == ["through\n"] * 8
        assert box.live_process().process.pid != first.pid
        again = box.live_process().process
        os.kill(again.pid, signal.SIGKILL)
        again.wait()
        assert box.run(Program("print('once more')")).stdout == "once more\n"


def test_a_zygote_that_dies_twice_in_one_program_is_an_error_not_an_outcome(monkeypatch, zygote):
    from posttrain.sandbox.backends import ZygoteProcess

    with sandbox("zygote") as box:
        monkeypatch.setattr(ZygoteProcess, "answer_to", lambda born, *_: born.end() or b"")
        with pytest.raises(RuntimeError, match="failed twice in one program: its process has died"):
            box.run(Program(""))


def test_nothing_is_left_of_a_sandbox_that_is_closed(zygote):
    box = sandbox("zygote")
    threading.Timer(0.2, box.close).start()
    with pytest.raises((RuntimeError, ValueError)):
        box.run(Program("import time\ntime.sleep(3600)"))
    assert comes_true(lambda: not alive(box))
    assert not Path(box.folder).exists()
    with pytest.raises(ValueError, match="closed"):
        box.run(Program(""))
    box.close()


@pytest.mark.parametrize("kind", ["zygote", "zygote without namespaces"])
def test_a_trainer_that_is_killed_leaves_nothing_running(kind):
    if reason := lacking("zygote"):
        pytest.skip(f"this machine lacks {reason}")
    source = f"""
from posttrain.sandbox import Program
from posttrain.sandbox.backends import Zygote
box = Zygote({WALLED[kind]!r})
print(box.folder, flush=True)
box.run(Program("import ctypes, time; ctypes.CDLL(None).prctl(1, 0, 0, 0, 0); time.sleep(3600)"))
"""
    trainer = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    with trainer:
        assert trainer.stdout
        folder = trainer.stdout.readline().strip()
        time.sleep(0.3)
        trainer.kill()

    class Gone:
        pass

    gone = Gone()
    gone.folder = folder  # type: ignore[attr-defined]
    assert comes_true(lambda: not alive(gone))
    shutil.rmtree(folder)  # with the working folder, where it is no mount of its own


def test_plain_warns_that_it_isolates_nothing():
    with pytest.warns(UserWarning, match="isolates nothing"):
        box = sandbox("plain")
    with box:
        assert set(box.isolates) <= {"memory"}


def test_bubblewrap_is_run_from_where_it_was_found(tmp_path, monkeypatch):
    if reason := lacking("bubblewrap"):
        pytest.skip(f"this machine lacks {reason}")
    shutil.copy(str(shutil.which("bwrap")), tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with sandbox("bubblewrap") as box:
        assert box.command({"file_mib": 1})[0] == str(tmp_path / "bwrap")
        assert box.run(Program("print(1)")).stdout == "1\n"


def test_a_kind_that_this_machine_cannot_do_names_what_is_missing(monkeypatch):
    from posttrain.sandbox import backends

    nothing = {"walls": [], "isolates": ["memory"], "lines": {"pid namespace": "no: Operation not permitted"}}
    monkeypatch.setattr(backends, "machine_report", lambda: nothing)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match=r"network, processes, files, privileges: pid namespace \(no: Operation"):
        sandbox("zygote")
    with pytest.raises(ValueError, match="no bwrap on the PATH"):
        sandbox("bubblewrap")
    with pytest.raises(ValueError, match="not one of best, zygote, bubblewrap, plain"):
        sandbox("docker")  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="isolates nothing"):
        sandbox("best").close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("wall_s", value) for value in (0, float("nan"), float("inf"), 3e6, "3", True)),
        *(("memory_mib", value) for value in (-1, 512.5, 2**50)),
        *(("file_mib", value) for value in (0.5, 2**50)),
        *(("output_kib", value) for value in (0.5, 2**50)),
        *(("processes", value) for value in (0, 1.5, 2**70)),
    ],
)
def test_limits_that_are_none_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"Limits\({name}="):
        Limits(**{name: value})


def test_the_largest_limits_are_limits(zygote):
    from posttrain.sandbox.program import MOST

    assert zygote.run(Program("print(1)"), Limits(**MOST)).stdout == "1\n"


@pytest.mark.parametrize("kind", ["zygote", "zygote without namespaces"])
@pytest.mark.parametrize("broken", ["os.fork", "json.loads"])
def test_what_the_sandbox_cannot_do_is_an_error_and_no_outcome(monkeypatch, kind, broken):
    """Every fork, or every keeper, of this zygote fails once it is ready."""
    from posttrain.sandbox import backends

    if reason := lacking("zygote"):
        pytest.skip(f"this machine lacks {reason}")
    real = backends.interpreter

    def failing(function, *arguments):
        command = real(function, *arguments)
        module, _, name = broken.partition(".")
        patch = f"""
def no(*_): raise BlockingIOError(11, "no process to be had")
zygote.preload_modules = lambda: setattr(zygote.{module}, "{name}", no)
"""
        command[-1] = command[-1].replace("; del sys.path[0]; ", patch)
        return command

    monkeypatch.setattr(backends, "interpreter", failing)
    with Zygote(WALLED[kind]) as box, pytest.raises(RuntimeError, match="failed twice.*no process to be had"):
        box.run(Program("print(1)"))


def test_a_keeper_that_is_killed_twice_is_the_programs_doing(zygote, monkeypatch):
    from posttrain.sandbox.backends import ZygoteProcess

    monkeypatch.setattr(ZygoteProcess, "answer_to", lambda *_: b"")
    assert zygote.run(Program("")).status == "killed"


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"data.csv": "x" * (17 << 20)}, "file_mib=16"),
        (dict.fromkeys(map(str, range(2100)), ""), "2100 files"),
        ({"x" * 300: ""}, "too long"),
        ({"a": "", "a/b": ""}, "'a'.*folder"),
        ({"a/": ""}, "folder"),
    ],
)
def test_files_that_do_not_fit_are_refused(zygote, files, why):
    with pytest.raises(ValueError, match=why):
        zygote.run(Program("", files=files))


def test_files_that_just_fit_are_there(zygote):
    files = {"large": "x" * (15 << 20), **dict.fromkeys(("a/b/c", "n" * 255), "")}
    source = "import os\nprint(sorted(os.listdir()) == ['a', 'large', 'n' * 255], os.path.getsize('large'))"
    assert zygote.run(Program(source, files=files)).stdout == f"True {15 << 20}\n"


def test_files_may_be_of_bytes(box):
    every = bytes(range(256))
    source = "print(open('a/b', 'rb').read() == bytes(range(256)), open('c', newline='').read() == 'x\\r\\n')"
    assert box.run(Program(source, files={"a/b": every, "c": "x\r\n"})).stdout == "True True\n"
    with pytest.raises(ValueError, match="more than Limits"):
        box.run(Program("", files={"a": b"x" * (2 << 20)}), Limits(file_mib=1))


@pytest.mark.parametrize("what", [{"source": b"x"}, {"stdin": b"x"}, {"files": {"a": ["x"]}}])
def test_programs_are_of_text(what):
    with pytest.raises(ValueError, match="(bytes|list), not text"):
        Program(**{"source": "", **what})


@pytest.mark.parametrize(
    ("source", "stdout", "error"),
    [
        ("print('x')\nexit()\nprint('y')", "x\n", ""),
        ("print('x')\nquit(0)", "x\n", ""),
        ("def f(x: List[int]): pass", "", "NameError: name 'List' is not defined"),
        ("import os, sys\nprint('x')\nsys.stdout = open(os.devnull, 'w')\nprint('y')", "x\n", ""),
        ("import subprocess as s\nprint(s.DEVNULL, open('/dev/null', 'w').write('x'))", "-3 1\n", ""),
        ("f = open(1, 'w')\nf.write('hello')", "hello", ""),
        ("f = open('x', 'w')\nf.close()\ng = open(1, 'wb')\ng.write(b'hello')", "hello", ""),
    ],
)
def test_programs_do_what_they_do_elsewhere(box, source, stdout, error):
    outcome = box.run(Program(source))
    assert outcome.stdout == stdout
    assert outcome.stderr.endswith(error + "\n" if error else "")
    assert outcome.status == ("error" if error else "finished")


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", ".", "a\0b"])
def test_files_outside_the_working_folder_are_refused(name):
    with pytest.raises(ValueError, match="working folder"):
        Program("", files={name: "x"})


def test_bad_arguments_are_refused(zygote):
    with pytest.raises(ValueError, match="at_once=0"):
        zygote.run_all([Program("")], at_once=0)
    with pytest.raises(ValueError, match="repeats=0"):
        Calls("", "f", (), repeats=0)
    with pytest.raises(ValueError, match="not JSON"):
        Calls("", "f", ((object(),),))


def test_the_probe_and_the_doctor_say_what_there_is():
    found = probe()
    assert {"Landlock", "seccomp", "pid namespace", "bubblewrap", "isolated"} <= set(found)
    assert all("\n" not in line for line in found.values())


# calls of functions

SLOW = """
import time
def f(n):
    end = time.thread_time() + n / 1000
    while time.thread_time() < end: pass
    return n
"""


A_MINUTE = Limits(wall_s=60)


def one(box, source, arguments, repeats=1, limits=A_MINUTE):
    return run_calls(box, [Calls(source, "f", arguments, repeats)], limits)[0]


def charged(got, *seconds: float) -> bool:
    """Whether the calls cost these CPU seconds: hardly less, and on a busy machine up to a tick or two more."""
    return len(got.seconds) == len(seconds) and all(
        0.7 * wanted < found < 1.3 * wanted + 0.01 for found, wanted in zip(got.seconds, seconds, strict=True)
    )


def test_calls_give_values_exceptions_seconds_and_peaks(box):
    source = "def f(n):\n    print('noise')\n    if n < 0: raise ValueError(f'no {n}')\n    return {'sum': sum(list(range(n))), 'pair': (n, None)}"
    got = one(box, source, ((3,), (-1,), (100_000,)), repeats=2)
    assert got.results == (
        ReturnedValue({"sum": 3, "pair": [3, None]}),
        RaisedError("ValueError", "no -1"),
        ReturnedValue({"sum": 4999950000, "pair": [100_000, None]}),
    )
    assert got.error is None
    assert got.outcome.stdout == "noise\n" * 3
    assert 0 < got.seconds[0] < 0.02
    assert 0.0003 < got.seconds[2] < 0.2
    assert got.peak_kib[2] == pytest.approx(100_000 * (8 + 32) / 1024, rel=0.1)  # pointers, and integers of 32 bytes
    assert got.peak_kib[0] < 10
    assert 0 < got.loading_s < 0.5


def test_seconds_of_calls_are_right(zygote):
    got = one(zygote, SLOW, ((5,), (20,)), repeats=5)
    assert charged(got, 0.005, 0.020)


def test_seconds_are_not_in_ticks_as_with_a_limit_of_cpu_seconds(zygote):
    """The trap of RLIMIT_CPU: with it, process_time read 0.0 or 4 ms."""
    source = "import time\nseen = set()\nwhile len(seen) < 100: seen.add(time.process_time())\nprint(max(seen) - min(seen) < 0.05)"
    assert zygote.run(Program(source)).stdout == "True\n"


def test_many_calls_at_once_come_back_in_order(zygote):
    asked = [Calls(f"def f(n): return n * {k}", "f", ((1,), (2,))) for k in range(5)]
    got = run_calls(zygote, asked, at_once=2)
    assert [each.results for each in got] == [(ReturnedValue(k), ReturnedValue(2 * k)) for k in range(5)]


@pytest.mark.parametrize(
    ("source", "error", "answered"),
    [
        ("def f(n: 1", "SyntaxError", 0),
        ("raise KeyError('x')", "KeyError: 'x'", 0),
        ("def g(): pass", "the source defines no f", 0),
        ("import os\nos._exit(0)", "finished before the first call", 0),
        ("import sys\nsys.exit(0)", "SystemExit", 0),
        ("def f(n):\n    import os\n    if n == 2: os._exit(0)\n    return n", "finished in call 1", 1),
        ("def f(n):\n    import os\n    if n == 2: os.kill(os.getpid(), 9)\n    return n", "killed in call 1", 1),
        ("def f(n):\n    while n == 2: pass\n    return n", "timeout in call 1", 1),
        ("def f(n):\n    while n == 2: print('x' * 1000)\n    return n", "output in call 1", 1),
        ("def f(n):\n    import os\n    os.write(3, b'0\\n0\\n')\n    return n", "before it was asked", 0),
        ("def f(n):\n    import os\n    os.write(3, b'0\\n')\n    os._exit(0)", "not the harness'", 0),
        ("def f(n):\n    import os\n    os.closerange(3, 64)\n    return n", "in call 0", 0),
        (
            "def f(n):\n    import os\n    while n == 2: os.write(3, b'x' * 10**6)\n    return n",
            "larger than 2 MiB",
            1,
        ),
    ],
)
def test_calls_that_are_not_all_answered_say_why(zygote, source, error, answered):
    got = one(zygote, source, ((1,), (2,), (3,)), limits=Limits(wall_s=3) if "timeout" in error else A_MINUTE)
    assert error in str(got.error)
    assert len(got.results) == len(got.seconds) == answered


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("def f(n): return {1, 2}", "TypeError"),
        ("def f(n): return {1: 2}", "TypeError"),
        ("class L(list): pass\ndef f(n): return L([1])", "TypeError"),
        ("def f(n):\n    x = []\n    x.append(x)\n    return x", "TypeError"),
        ("def f(n): return 10 ** 10_000", "ValueError"),
        ("def f(n): raise SystemExit(0)", "SystemExit"),
        ("def f(n): return f(n)", "RecursionError"),
        ("def f(n): return bytearray(1 << 40)", "MemoryError"),
        ("f = 3", "TypeError"),
        ("def f(n):\n    class E(Exception):\n        def __str__(self): raise ValueError\n    raise E", "E"),
    ],
)
def test_what_is_no_value_is_an_exception_and_the_calls_go_on(zygote, source, name):
    got = one(zygote, source, ((1,), (2,)))
    assert got.error is None
    assert [result.name for result in got.results if isinstance(result, RaisedError)] == [name, name]


PATCHED = """
import json, time, tracemalloc
real = time.thread_time
time.thread_time = time.process_time = time.perf_counter = lambda: 0.0
time.clock_gettime = lambda which: 0.0
json.loads = json.dumps = None
tracemalloc.get_traced_memory = lambda: (0, 0)
def f(n):
    end = real() + n / 1000
    x = bytearray(n << 10)
    while real() < end: pass
    return n
"""

FORGED = """
import ctypes, sys, time
real = time.thread_time
frame = sys._getframe()
while frame:
    if "clock" in frame.f_locals:
        frame.f_locals["clock"] = lambda: 0.0
        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
    frame = frame.f_back
def f(n):
    end = real() + n / 1000
    while real() < end: pass
    return n
"""

ANSWERS = """
import json, os, time
def f(n):
    end = time.thread_time() + n / 1000
    while time.thread_time() < end: pass
    answer = json.dumps({"value": n, "seconds": SECONDS, "peak": 0}, separators=(",", ":"))
    os.write(3, answer.encode() + b"\\n")
    os._exit(0)
"""


def test_patched_clocks_change_nothing(zygote):
    got = one(zygote, PATCHED, ((10,), (40,)))
    assert got.results == (ReturnedValue(10), ReturnedValue(40))
    assert charged(got, 0.010, 0.040)
    assert got.peak_kib == (pytest.approx(10, abs=2), pytest.approx(40, abs=2))


@pytest.mark.parametrize("seconds", ["0.0", "1e-9", "1e9"])
def test_a_submission_that_answers_for_the_harness_is_charged_what_the_kernel_counted(zygote, seconds):
    got = one(zygote, ANSWERS.replace("SECONDS", seconds), ((20,),))
    assert charged(got, 0.020)


def test_a_forged_clock_is_found_out_from_outside(zygote):
    got = one(zygote, FORGED, ((10,), (40,)))
    assert got.results == (ReturnedValue(10), ReturnedValue(40))
    assert charged(got, 0.010, 0.040)


def test_work_before_the_first_call_is_reported(zygote):
    got = one(
        zygote,
        "import time\nend = time.thread_time() + 0.1\nwhile time.thread_time() < end: pass\ndef f(n): return n",
        ((1,),),
    )
    assert got.loading_s > 0.1
    assert got.seconds[0] < 0.01


def test_nothing_is_remembered_from_one_repeat_to_the_next(zygote):
    got = one(
        zygote, "from functools import cache\n" + SLOW.replace("def f", "@cache\ndef f"), ((10,), (10,)), repeats=3
    )
    assert got.seconds[0] > 0.009
    assert got.seconds[1] < 0.005  # within one process, a cache is the submission's good right


def test_a_submission_that_is_cheap_while_it_is_traced_has_inconsistent_results(zygote):
    got = one(zygote, "import tracemalloc\ndef f(n): return 0 if tracemalloc.is_tracing() else sum(range(n))", ((10,),))
    assert got.results == (RaisedError("Inconsistent", "the same call came out differently in another process"),)


def test_calls_have_one_process_whatever_the_limits_say(zygote):
    got = one(
        zygote,
        "import threading\ndef f(n): threading.Thread(target=print).start()",
        ((1,),),
        limits=Limits(wall_s=60, processes=8),
    )
    assert got.results == (RaisedError("RuntimeError", "can't start new thread"),)


FRAMES = """
import sys
def held(value, depth=0):
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        return "98765" + "43" in (value if isinstance(value, str) else bytes(value).decode(errors="replace"))
    if isinstance(value, dict):
        return any(held(item, depth + 1) for item in value.values()) if depth < 4 else False
    if isinstance(value, (list, tuple)):
        return any(held(item, depth + 1) for item in value) if depth < 4 else False
    return value == int("98765" + "43")
def f(n):
    frame, found = sys._getframe().f_back, False
    while frame:
        found = found or held(frame.f_locals)
        frame = frame.f_back
    return found
"""


def test_later_arguments_are_not_in_the_process(zygote):
    got = one(zygote, FRAMES, ((1,), (9_876_543,)))
    assert got.results == (ReturnedValue(False), ReturnedValue(True))


def test_later_arguments_would_be_found_in_the_process(zygote, monkeypatch):
    """The test before this can fail: where the request holds the arguments, the program finds them."""
    from posttrain.sandbox import backends

    def leaking(asked):
        parts = [json.dumps(asked).encode(), json.dumps(asked["arguments"]).encode()]
        return b"".join(b"%012d" % len(part) + part for part in parts)

    monkeypatch.setattr(backends, "frame_request", leaking)
    assert one(zygote, FRAMES, ((1,), (9_876_543,))).results[0] == ReturnedValue(True)


@pytest.mark.parametrize(
    "line",
    [
        """b'{"value":' + pad + b'1,"seconds":0.0,"peak":0}\\n'""",
        """b'{"value":1,"seconds":0.0' + pad + b',"peak":0}\\n'""",
    ],
)
def test_an_answer_that_is_padded_to_hide_seconds_is_none(zygote, line):
    source = f"import os\npad = b' ' * 100_000\ndef f(n):\n    os.write(3, {line})\n    os._exit(0)"
    got = one(zygote, source, ((1,),))
    assert got.error == "its answer to call 0 is not the harness'"
    assert got.seconds == ()


def test_a_value_as_deep_as_the_harness_says_is_heard(zygote):
    source = "def f(n):\n    value = 1\n    for _ in range(n):\n        value = [value]\n    return value"
    got = one(zygote, source, ((100,), (101,)))
    assert isinstance(got.results[0], ReturnedValue)
    assert isinstance(got.results[1], RaisedError)


def test_a_large_value_is_not_charged_what_it_takes_to_write_it(zygote):
    got = one(zygote, "def f(n): return [0] * n", ((10_000,), (300_000,)), repeats=3)
    assert got.error is None
    assert got.seconds[0] < 0.001
    assert got.seconds[1] < 0.01


def test_answers_have_a_limit(zygote):
    got = one(zygote, "def f(n): return [[] for _ in range(n)]", ((10,), (1_000_000,)))
    assert got.error == "its answers are larger than 2 MiB together"
    assert len(got.results) == 1


def test_code_that_needs_most_of_its_memory_is_measured(zygote):
    got = one(zygote, "def f(n): return sum(list(range(n)))", ((5_000_000,),), limits=Limits(wall_s=60, memory_mib=256))
    assert got.results == (ReturnedValue(12499997500000),)
    assert got.error is None
    assert got.peak_kib == (pytest.approx(5_000_000 * 40 / 1024, rel=0.1),)


def test_memory_that_cannot_be_measured_is_no_failure(zygote):
    source = "import tracemalloc\ndef f(n):\n    if tracemalloc.is_tracing(): raise MemoryError\n    return n"
    got = one(zygote, source, ((1,),))
    assert (got.results, got.peak_kib, got.error) == ((ReturnedValue(1),), (), None)


# results that are kept


# ---- packages

TRAINS = """
import sklearn.datasets, sklearn.linear_model
x, y = sklearn.datasets.load_iris(return_X_y=True)
print(sklearn.linear_model.LogisticRegression(max_iter=200).fit(x, y).score(x, y) > 0.9)
"""
ROOMY = Limits(wall_s=60, memory_mib=2048)


@pytest.fixture(scope="module", params=["zygote", "bubblewrap", "plain"])
def furnished(request):
    pytest.importorskip("sklearn")
    if request.param != "plain" and (reason := lacking(request.param)):
        pytest.skip(f"this machine lacks {reason}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of `plain`
        box = sandbox(request.param, packages=("sklearn",))
    with box:
        yield box


def test_programs_import_packages_that_were_named(furnished):
    got = furnished.run(Program(TRAINS), ROOMY)
    assert (got.status, got.stdout) == ("finished", "True\n"), got.stderr


@pytest.mark.parametrize(
    "attack",
    [
        "import socket; socket.socket().connect(('127.0.0.1', {port}))",
        "open({secret!r}).read()",
        "import os, sklearn; open(os.path.join(os.path.dirname(sklearn.__file__), 'left'), 'w')",
        "import threading; threading.Thread(target=print).start()",
    ],
    ids=["network", "files", "the packages", "threads"],
)
def test_packages_open_nothing_else(furnished, attack, tmp_path):
    if furnished.name == "plain":
        pytest.skip("it isolates nothing")
    secret = tmp_path / "secret"
    secret.write_text("kept")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        source = attack.format(port=listening.getsockname()[1], secret=str(secret))
        assert furnished.run(Program(source), ROOMY).status == "error"


def test_without_packages_there_are_none(zygote):
    got = zygote.run(Program("try: import sklearn\nexcept ImportError: print('none')"))
    assert got.stdout == "none\n"
    assert zygote.run(Program(f"import os; print(os.listdir({sysconfig.get_path('purelib')!r}))")).status == "error"


def test_numpy_draws_the_same_in_every_zygote():
    pytest.importorskip("numpy")
    if reason := lacking("zygote"):
        pytest.skip(f"this machine lacks {reason}")
    found = []
    for _ in range(2):
        with sandbox("zygote", packages=("numpy",)) as box:
            found.append(box.run(Program("import numpy; print(numpy.random.rand())"), ROOMY).stdout)
    assert found[0] == found[1] != ""


@pytest.mark.parametrize("name", ["sklearm", "os; print()"])
def test_a_package_that_is_not_there_is_named(name):
    with pytest.raises(ValueError, match=re.escape(f"no package {name!r} here; install it")):
        sandbox(packages=(name,))


def test_a_package_that_cannot_be_imported_says_why(tmp_path, monkeypatch):
    if reason := lacking("zygote"):
        pytest.skip(f"this machine lacks {reason}")
    (tmp_path / "unlucky.py").write_text("raise OSError('no such library')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="cannot import 'unlucky': ModuleNotFoundError"):
        sandbox("zygote", packages=("unlucky",))


class Counting:
    name, isolates = "counting", ()

    def __init__(self, status="finished"):
        self.ran: list[Program] = []
        self.status = status

    def run_all(self, programs, limits=None, at_once=None):
        self.ran += programs
        return [Outcome(self.status, 0, program.source, "", 0.1, 0.1, 1000) for program in programs]


def test_a_memo_runs_each_program_once_per_limits():
    inner = Counting()
    memo = Memo(inner)
    a, b = Program("a"), Program("b", "in", {"f": "1"})
    assert [outcome.stdout for outcome in memo.run_all([a, b, a, a])] == ["a", "b", "a", "a"]
    assert memo.run(Program("b", "in", {"f": "1"})).stdout == "b"
    assert inner.ran == [a, b]
    assert memo.ran == 2
    memo.run(a, Limits(wall_s=1))
    memo.run(replace(b, stdin="other"))
    memo.run(replace(b, files={"f": "2"}))
    assert len(inner.ran) == 5


def test_a_memo_forgets_the_longest_unused_and_keeps_no_accident():
    inner = Counting()
    memo = Memo(inner, most=2)
    for source in "abacab":
        memo.run(Program(source))
    assert [program.source for program in inner.ran] == ["a", "b", "c", "b"]
    for status in ("timeout", "killed"):
        inner = Counting(status)
        memo = Memo(inner)
        memo.run_all([Program("a"), Program("a")])
        memo.run(Program("a"))
        assert len(inner.ran) == 2
    with pytest.raises(ValueError, match="most=0"):
        Memo(inner, most=0)


def test_the_reward_of_the_documents_grades_programs():
    if reason := lacking("zygote"):
        pytest.skip(f"this machine lacks {reason}")
    from conftest import said

    text = (Path(__file__).parent.parent / "docs" / "sandbox.md").read_text()
    names: dict = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    truth = [("1 2", "3"), ("4 5", "9")]
    sources = [
        "print(sum(map(int, input().split())))",
        "print(3)",
        "while True: print('3\\n9')",
        "import os; os._exit(1)",
    ]
    with names["box"]:
        scores = names["passed"]([said(source, truth) for source in sources])
    assert [score.value for score in scores] == [1.0, 0.5, 0.0, 0.0]
