"""ML-Agent: scripts that are really executed, states that are taken up again, and what an action earns."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import comes_true, wait_until

import posttrain as pt
from posttrain.cli.options import ModelOptions
from posttrain.cli.scale import ScaleOptions
from posttrain.run.settings import Output
from posttrain.sandbox import Limits, sandbox
from posttrain.sandbox.backends import lacking
from posttrain.systems.ml_agent import actions
from posttrain.systems.ml_agent.actions import parse, tools
from posttrain.systems.ml_agent.bench import BENCH, Bench, with_initial_metrics
from posttrain.systems.ml_agent.episode import EDITOR, Start, agent, beginning, difference, task_of
from posttrain.systems.ml_agent.ideas import drawn_ideas, listed_ideas, most_diverse
from posttrain.systems.ml_agent.pool import StatePool, read_states, tasks_of
from posttrain.systems.ml_agent.problem import TASK, Problem, files_below, problem_in
from posttrain.systems.ml_agent.prompt import InFields, cut
from posttrain.systems.ml_agent.reward import Course, Effect, gain, reward, step_reward
from posttrain.systems.ml_agent.stages import EPISODES, STATES, TRACES, WorkOptions, explore
from posttrain.systems.ml_agent.workspace import Refused, State, Step, Workspace, clean_path, restore, snapshot

SCRIPT = "x = 1.0\nprint('metric:', x)\n"
LIMITS = Limits(wall_s=5.0, memory_mib=256)
PROBLEM = Problem("toy", "Raise x.", 3.0, {"train.py": SCRIPT, "data.csv": "1,2"}, initial=1.0, limits=LIMITS)


def said(name: str, **arguments) -> str:
    fields = "".join(f"{field}: -\n" for field in actions.FIELDS[:-2])
    return f"{fields}Action: {name}\nAction Input: {json.dumps(arguments)}"


def rewritten(text: str, target: str = "train.py") -> str:
    return said(actions.EDIT, script_name="train.py", new_text=text, save_name=target)


class Scripted:
    """Says the next of its replies whenever it is asked."""

    def __init__(self, *replies: str):
        self.replies = list(replies)

    def sample(self, asks):
        return [pt.Reply(self.replies.pop(0), torch.zeros(1), None) for _ in asks]


@pytest.fixture(scope="module")
def bench():
    if reason := lacking("zygote"):
        pytest.skip(f"this machine lacks {reason}")
    with sandbox("zygote") as box:
        yield Bench(box, at_once=2)


def course(bench, *replies: str, problem: Problem = PROBLEM, editor: str = "", state: State | None = None):
    """The facts of an episode in which the policy says this."""
    start = Start(state or beginning(problem), most=len(replies))
    task = task_of("t", problem, start, InFields(bool(editor)))
    env = agent({problem.name: problem}, InFields(bool(editor)), editor=bool(editor), recording=True)
    players = {"policy": Scripted(*replies), BENCH: bench, EDITOR: Scripted(*[editor] * len(replies))}
    [rollout] = pt.play([task], env, players)
    return rollout.facts


# ---- what a reply says


def test_a_reply_in_form_is_an_action():
    found = parse(said(actions.INSPECT, script_name="a.py", start_line_number=1, end_line_number="9"), tools(True))
    assert found == actions.Action(
        "Inspect Script Lines", {"script_name": "a.py", "start_line_number": 1, "end_line_number": 9}
    )
    fenced = said(actions.EXECUTE, script_name="a.py").replace("{", "```json\n{").replace("}", "}\n```")
    assert parse(fenced, tools(False)).name == "Execute Script"


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", "Reflection is missing"),
        (said("Fly"), "no action 'Fly'"),
        (said(actions.EXECUTE), "an object with script_name"),
        (said(actions.EXECUTE, script_name=3), "must be a text"),
        (said(actions.EXECUTE, script_name="\ud800"), "half a character"),
        (said(actions.EXECUTE, script_name="a") + "}", "no JSON"),
        (said(actions.EXECUTE, script_name="a") + "\nThought: again", "twice"),
        (said(actions.INSPECT, script_name="a", start_line_number=True, end_line_number=2), "a whole number"),
    ],
)
def test_what_is_wrong_with_a_reply_is_said(reply, why):
    with pytest.raises(Refused, match=why):
        parse(reply, tools(True))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([*(f"{name}: " for name in actions.FIELDS), "\n", "{", "}", '"', *actions.COMMON])))
def test_no_text_breaks_the_parser(pieces):
    with contextlib.suppress(Refused):
        assert parse("".join(pieces), tools(True)).name in tools(True)


# ---- files


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab./\\\0~ é\n"), max_size=12))
def test_paths_stay_in_the_workspace(name):
    try:
        path = clean_path(name)
    except Refused:
        return
    host = Path("/workspace")
    assert os.path.normpath(host / path).startswith("/workspace/")


@pytest.mark.parametrize("target", ["/etc/passwd.py", "../up.py", "a/../../up.py", "data.csv", "train.py/x.py", ""])
def test_what_a_policy_may_not_write_is_refused(bench, target):
    found = course(bench, rewritten("print('metric: 9')", target))
    assert [effect.kind for effect in found.effects] == ["invalid"]
    assert found.metric == 1.0


def test_edits_are_undone_one_after_another():
    one = Workspace().write(PROBLEM, "train.py", "1").write(PROBLEM, "./train.py", "2").write(PROBLEM, "new.py", "3")
    assert one.read(PROBLEM, "train.py") == "2"
    assert one.undo("train.py").read(PROBLEM, "train.py") == "1"
    assert one.undo("train.py").undo("train.py").read(PROBLEM, "train.py") == SCRIPT
    with pytest.raises(Refused, match="no edit"):
        one.undo("new.py").undo("new.py")
    with pytest.raises(Refused, match=r"only Python scripts can, except \['train.py'\]"):
        Workspace().write(replace(PROBLEM, read_only=("train.py",)), "train.py", "")
    with pytest.raises(Refused, match="more than"):
        Workspace().write(PROBLEM, "train.py", "x" * 1_000_000)


texts = st.text(max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False)
steps = st.lists(st.builds(Step, texts, texts, texts, numbers), max_size=4)
paths = st.sampled_from(["train.py", "parts/model.py", "a b.py"])


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(paths, texts), st.lists(st.tuples(paths, st.none() | texts), max_size=3), steps)
def test_a_state_comes_back_from_json_as_it_was(changed, history, taken):
    state = State("toy", 0.1 + 0.2, Workspace(changed, tuple(history)), tuple(taken))
    assert restore(json.loads(json.dumps(snapshot(state)))) == state


def test_what_is_no_state_is_refused(tmp_path):
    good = json.dumps(snapshot(beginning(PROBLEM)))
    path = tmp_path / "states.jsonl"
    named, plain = json.loads(good), "line 2: not a state"
    wrong = [{}, {**named, "problem": [1]}, {**named, "metric": math.nan}, {**named, "changed": {"../x.py": ""}}]
    wrong += [{**named, "steps": [[1, 2, 3, None]]}, {**named, "history": [["train.py", 3]]}]
    cases = [(json.dumps(one), plain) for one in wrong]
    for bad, why in (*cases, (good.replace("toy", "other"), "line 2: a state of 'other'")):
        path.write_text(f"{good}\n{bad}\n")
        with pytest.raises(ValueError, match=why):
            read_states(path, {"toy": PROBLEM})


# ---- what an action earns


@pytest.mark.parametrize(
    ("effect", "problem", "wanted"),
    [
        (Effect("invalid", 1, 1), PROBLEM, 0.0),
        (Effect("error", 1, 1), PROBLEM, 0.0),
        (Effect("limit", 1, 1), PROBLEM, 0.5),
        (Effect("neutral", 1, 1), PROBLEM, 0.5),
        (Effect("edit", 1, 1), PROBLEM, 0.5),
        (Effect("edit", 1, 2), PROBLEM, 1 / (1 + math.exp(-2.5))),  # 5 x (2 - 1) / (3 - 1)
        (Effect("edit", 2, 1), PROBLEM, 1 / (1 + math.exp(2.5))),
        (Effect("edit", 9, 8), replace(PROBLEM, higher=False, initial=9.0, best=7.0), 1 / (1 + math.exp(-2.5))),
        (Effect("edit", 1, 2), replace(PROBLEM, best=1.0, scale=2.0), 1 / (1 + math.exp(-2.5))),
        (Effect("edit", 2, 1), replace(PROBLEM, best=1.0, scale=2.0, higher=False), 1 / (1 + math.exp(-2.5))),
        (Effect("edit", 0, 1e308), PROBLEM, 1.0),
    ],
)
def test_an_action_earns_what_it_changes(effect, problem, wanted):
    assert step_reward(effect, problem) == pytest.approx(wanted)


def test_an_episode_earns_the_sum_and_each_turn_its_own():
    facts = Course("toy", (Effect("edit", 1, 2, 1), Effect("neutral", 2, 2), Effect("invalid", 2, 2)), 2.0)
    rollout = pt.Rollout(pt.Task("t", (), None), [], facts)
    [score] = reward({"toy": PROBLEM})([rollout])
    assert score.turns == pytest.approx((1 / (1 + math.exp(-2.5)), 0.5, 0.0))
    assert score.value == pytest.approx(sum(score.turns))
    assert score.parts["gain"] == 1.0
    assert [one.value for one in gain({"toy": PROBLEM})([rollout])] == [1.0]


# ---- episodes


def test_an_edit_is_executed_and_its_metric_kept(bench):
    found = course(bench, rewritten("print('metric:', 2.5)"), said(actions.UNDO, script_name="train.py"))
    assert [(one.kind, one.before, one.after) for one in found.effects] == [("edit", 1.0, 2.5), ("neutral", 2.5, 1.0)]
    shown = found.states[1].steps[0].observation
    assert "-x = 1.0" in shown
    assert "+print('metric:', 2.5)" in shown
    assert "metric: 2.5" in shown


def test_a_second_model_edits_by_an_instruction(bench):
    asked = said(actions.EDIT, script_name="train.py", edit_instruction="Double it.", save_name="train.py")
    found = course(bench, asked, editor="Here:\n```python\nprint('metric: 2')\n```")
    assert (found.effects[0].kind, found.metric) == ("edit", 2.0)
    part = dict(script_name="train.py", start_line_number=1, end_line_number=1, save_name="train.py")
    found = course(bench, said(actions.EDIT_SEGMENT, edit_instruction="x", **part), editor="```\nx = 7\n```")
    assert found.metric == 7.0
    assert course(bench, asked, editor="I cannot.").effects[0].kind == "limit"


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("1 / 0", "error"),
        ("print('metric: nan')", "error"),
        ("print('done')", "error"),
        ("while True: pass", "limit"),
        ("x = bytearray(10**9)", "limit"),
        ("print('x' * 10**8)", "limit"),
        ("import os; os.kill(os.getpid(), 9)", "limit"),
    ],
)
def test_an_edit_that_does_not_run_leaves_the_metric(bench, source, kind):
    found = course(bench, rewritten(source), problem=replace(PROBLEM, limits=replace(LIMITS, wall_s=1.0)))
    assert [effect.kind for effect in found.effects] == [kind]
    assert found.metric == 1.0
    assert found.states[-1].workspace.changed["train.py"] == f"{source}\n", "the agent must repair it"


def test_a_script_cannot_see_the_host_or_the_answers(bench, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("x")
    scorer = "print('metric:', float(open('p').read() == open('answers').read()))"
    hidden = {"score.py": scorer, "answers": "42"}
    problem = replace(PROBLEM, best=1.0, initial=0.0, predictions="p", scorer="score.py", hidden=hidden)
    for source, kind, metric in (
        (f"open({str(secret)!r})", "error", 0.0),
        ("open('answers')", "error", 0.0),
        ("print('metric: 1.0')\nopen('p', 'w').write('?')", "edit", 0.0),  # a number of its own is not believed
        ("open('p', 'w').write('42')", "edit", 1.0),
        ("print('metric: 1.0')", "error", 0.0),  # no predictions
    ):
        found = course(bench, rewritten(source), problem=problem)
        assert (found.effects[0].kind, found.metric) == (kind, metric), source


class Broken:
    """A sandbox that fails for programs of one kind."""

    name, isolates = "broken", ()

    def __init__(self, box):
        self.box = box

    def run_all(self, programs, limits=None, at_once=None):
        if any("poison" in program.source for program in programs):
            raise RuntimeError("no process to be had")
        return self.box.run_all(programs, limits, at_once)


def test_where_the_sandbox_fails_one_episode_is_invalid_and_the_others_go_on(bench):
    broken = Bench(Broken(bench.box), at_once=2)
    dialect, problems = InFields(editor=False), {"toy": PROBLEM}
    tasks = [task_of(str(i), PROBLEM, Start(beginning(PROBLEM)), dialect) for i in range(2)]
    players = {"policy": Scripted(rewritten("poison"), rewritten("print('metric: 2')")), BENCH: broken}
    played = pt.play(tasks, agent(problems, dialect, editor=False), players)
    bad, good = pt.group_scores(reward(problems), played)
    assert isinstance(bad, pt.Invalid)
    assert "no process to be had" in bad.reason
    assert good.value > 0.5


def test_a_sandbox_that_is_killed_harms_no_episode_and_leaves_no_process(bench):
    with sandbox("zygote") as box:
        own = Bench(box)
        victim = box.live_process().process.pid
        os.kill(victim, signal.SIGKILL)
        found = course(own, rewritten("print('metric: 2')"))
        assert found.metric == 2.0
        heir = box.live_process().process.pid
    assert comes_true(lambda: not Path(f"/proc/{heir}").exists() and not Path(f"/proc/{victim}").exists())


def test_equal_scripts_are_executed_once(bench):
    problem = replace(PROBLEM, files={"train.py": SCRIPT + "# once\n"})
    before = bench.memo.ran
    found = course(bench, *[rewritten("print('metric: 2')  # once")] * 3, problem=problem)
    assert [one.executed for one in found.effects] == [1, 1, 1]
    assert bench.memo.ran - before == 1


# ---- the pool


def test_a_source_that_is_taken_up_again_draws_what_it_would_have():
    tasks = tasks_of([State("toy", float(i)) for i in range(20)], {"toy": PROBLEM}, InFields())
    whole, first = StatePool(tasks, seed=3), StatePool(tasks, seed=3)
    wanted = [one.key for one in whole.take(30)]
    got = [one.key for one in first.take(11)]
    later = StatePool(tasks, seed=3)
    later.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert got + [one.key for one in later.take(19)] == wanted
    assert len(set(wanted)) > 10


COLLECT = """
import sys
sys.path.insert(0, {tests!r})
import test_ml_agent
test_ml_agent.ModelOptions.player = lambda self, name, temperature=None: test_ml_agent.Slow(0.3)
test_ml_agent.explore_toy({folder!r}, {out!r})
"""


class Slow:
    """An expert that edits by the episode's seed, and takes its time. Asked as a server is, one after another."""

    at_once = 1

    def __init__(self, delay: float):
        self.delay = delay

    def sample(self, asks):
        time.sleep(self.delay)
        return [pt.Reply(rewritten(f"print('metric:', {ask.seed % 7})"), torch.zeros(0), None) for ask in asks]


def explore_toy(folder: str, out: str, resume: bool = False) -> None:
    output = Output(out, resume=resume, quiet=True)
    explore(WorkOptions((folder,), most=2), ModelOptions(), ScaleOptions(), output, expert="http://x", episodes=6)


@pytest.fixture
def folder(tmp_path) -> str:
    place = tmp_path / "toy"
    (place / "more").mkdir(parents=True)
    (place / "train.py").write_text(SCRIPT)
    (place / "more" / "pixels.bin").write_bytes(b"\xff\x00")
    (place / TASK).write_text(json.dumps({"description": "Raise x.", "best": 6, "limits": {"memory_mib": 256}}))
    return str(place)


def test_a_pool_survives_a_kill(folder, tmp_path, monkeypatch):
    if reason := lacking("zygote"):
        pytest.skip(f"this machine lacks {reason}")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    lines = killed / EPISODES
    program = COLLECT.format(tests=str(Path(__file__).parent), folder=folder, out=str(killed))
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        wait_until(process, lambda: lines.is_file() and lines.read_text().count("\n") >= 2)
        process.kill()
    assert not (killed / STATES).exists()
    with lines.open("a") as file:
        file.write('{"cut sh')
    monkeypatch.setattr(ModelOptions, "player", lambda self, name, temperature=None: Slow(0.0))
    explore_toy(folder, str(killed), resume=True)
    explore_toy(folder, str(whole))
    for name in (STATES, TRACES):
        assert (killed / name).read_text() == (whole / name).read_text()
    states = read_states(killed / STATES, {"toy": PROBLEM})
    assert len(states) == 12
    assert len(pt.read_demonstrations(killed / TRACES, "prompt", "response")) == 12


# ---- ideas, problems, prompts


def test_ideas_are_chosen_by_the_max_min_distance():
    points = torch.tensor([[0.0, 0.0], [0.1, 0.0], [4.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    # the mean is (0.82, 0.6): the nearest is 1; then 2 at 3.9, 3 at 3.0, then 0 and 4, both at 0.1
    assert most_diverse(points, 3) == [1, 2, 3]
    assert sorted(most_diverse(points, 9)) == [0, 1, 2, 3, 4]


def test_lists_of_ideas_are_read():
    reply = pt.Reply("Sure:\n1. **Scale** the  data\n2) Try trees\n- Tune", torch.zeros(0), None, stop="length")
    assert listed_ideas(reply) == ["Scale the data", "Try trees"]
    import random

    counts = {len(drawn_ideas(["a", "b", "c", "d"], random.Random(i))) for i in range(30)}
    assert counts == {1, 2, 3}
    assert drawn_ideas([], random.Random(0)) == ()


def test_a_folder_is_a_problem(folder, bench):
    found = problem_in(folder)
    assert (found.name, found.best, found.limits.memory_mib) == ("toy", 6, 256)
    assert found.files == {"train.py": SCRIPT, "more/pixels.bin": b"\xff\x00"}
    assert with_initial_metrics([found], bench)["toy"].start == 1.0


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"best": None}, "'best' cannot be None"),
        ({"higer": True}, "'higer' is unknown"),
        ({"script": "run.py"}, "no script 'run.py'"),
        ({"metric": "("}, "the pattern of the metric"),
        ({"metric": "x"}, "has no group"),
        ({"limits": {"wall_s": -1}}, "not above zero"),
        ({"limits": {"walls": 1}}, "walls"),
        ({"predictions": "p"}, "a scorer needs"),
        ({"scorer": "more/pixels.bin", "predictions": "p"}, "'more/pixels.bin' is no text"),
        ({"hidden": ["answers"]}, "no file 'answers'"),
        ({"initial": 9}, "worse than the initial"),
    ],
)
def test_what_is_wrong_with_a_task_names_its_file(folder, change, why):
    place = Path(folder) / TASK
    place.write_text(json.dumps({**json.loads(place.read_text()), **change}))
    with pytest.raises(ValueError, match=f"{TASK}: .*{why}"):
        problem_in(folder)


def test_a_script_without_a_metric_is_named_before_any_work(bench):
    problem = replace(PROBLEM, initial=None, files={"train.py": "print('x')"})
    with pytest.raises(ValueError, match="toy: train.py gives no metric"):
        with_initial_metrics([problem], bench)


def test_a_prompt_has_three_steps_whole_and_the_others_in_a_line():
    state = beginning(PROBLEM)
    for i in range(5):
        state = state.after(Step(f"reply {i}", f"action {i}", f"seen {i}", float(i)))
    first, *rest = InFields().messages(PROBLEM, state, ["try trees"])
    assert "1. action 0: metric 0" in first["content"]
    assert "2. action 1: metric 1" in first["content"]
    assert "action 2" not in first["content"]
    assert "- try trees" in first["content"]
    assert [one["content"] for one in rest[::2]] == ["reply 2", "reply 3", "reply 4"]
    assert rest[-1]["content"] == "Observation:\nseen 4"


@given(st.text(max_size=300), st.integers(60, 200))
def test_what_is_long_keeps_its_head_and_its_tail(text, most):
    short = cut(text, most)
    assert len(short) <= max(most, 60)
    assert short == text or (text.startswith(short[:3]) and "are left out" in short)


def test_a_reply_of_blanks_is_read_at_once():
    """Patterns that could match blanks in several ways took minutes for as many."""
    began = time.process_time()
    for text in ("Action: Edit Script (AI)\nAction Input: ```" + " " * 50_000 + "x", "\n" * 50_000):
        with contextlib.suppress(Refused):
            parse(text, tools(False))
        listed_ideas(pt.Reply(text, torch.zeros(0), None))
    assert time.process_time() - began < 5


def test_metrics_that_no_gain_can_be_made_of_are_none():
    assert [PROBLEM.metric_in(f"metric: {said}") for said in ("1e308", "nan", "-inf", "1e99")] == [
        None,
        None,
        None,
        1e99,
    ]


def test_a_repository_beside_a_task_is_not_its_workspace(tmp_path):
    (tmp_path / ".git").mkdir()
    for name in (".git/objects", ".env", "train.py"):
        (tmp_path / name).write_text("x")
    assert list(files_below(tmp_path)) == ["train.py"]


def test_long_scripts_are_not_compared_line_by_line():
    lines = [f"{i}\n" for i in range(1500)]
    assert difference(lines, lines[1:], "train.py") == "train.py: 1500 lines became 1499."
    assert "-0" in difference(lines[:3], lines[1:3], "train.py")
