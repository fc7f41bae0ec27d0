"""Verdicts, theorems, judges and the pipeline of DeepTheorem."""

from __future__ import annotations

import json
import random
import re
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import processes
import pytest
from conftest import Canned, said, values
from hypothesis import given
from hypothesis import strategies as st

import posttrain as pt
from posttrain import tiny
from posttrain.cli import main
from posttrain.cli.options import ModelOptions
from posttrain.core import Failure, Invalid, Score
from posttrain.lab.trial import QUICK
from posttrain.lab.world.theorems import RELATIONS, Claim, Theorems, proof_marks, steps
from posttrain.policy.text import Sampling, TextPolicy
from posttrain.reward import group_scores
from posttrain.run import session
from posttrain.step import train_in_memory
from posttrain.systems.deeptheorem import lab, near, pipeline, questions, recipe, stages
from posttrain.systems.deeptheorem.lab import base_model
from posttrain.systems.deeptheorem.process import by_marks, marks_in, process_score, proof_judge
from posttrain.systems.deeptheorem.replies import Replies
from posttrain.systems.deeptheorem.stages import TEMPLATE, load
from posttrain.systems.deeptheorem.statements import (
    Stated,
    evaluation_sets,
    floors,
    measures_of,
    proofs,
    share_decided,
    split_by_theorem,
    statements,
)
from posttrain.systems.deeptheorem.verdict import INSTRUCTION, guard, lenient_verdict, right, verdict

PROVED, DISPROVED = "<answer> \\boxed{proved} </answer>", "<answer> \\boxed{disproved} </answer>"

# ---- the reward


@pytest.mark.parametrize(
    ("text", "wanted", "ended"),
    [
        (f"we see that it holds </think> {PROVED}", "proved", "judged"),
        ("</think> <answer>it is \\boxed{\\text{Proved}} .</answer>", "proved", "judged"),
        ("so </think> <answer> \\boxed{ Dis-proved! } </answer>", "disproved", "judged"),
        ("so </think> <answer> \\boxed{true} </answer>", "true", "judged"),
        (f"so </think> {PROVED} or rather {DISPROVED}", "disproved", "judged"),
        (f"so </think> {PROVED} hm <answer> nothing in a box </answer>", "proved", "judged"),
        ("so </think> <answer> \\boxed{disproved} no, \\boxed{proved} </answer>", "proved", "judged"),
        (f"I say {PROVED} but </think> then say nothing more", None, "unanswered"),
        (f"never closed {PROVED}", "proved", "judged"),
        ("so </think> \\boxed{proved} without tags", None, "unanswered"),
        ("so </think> <answer> \\boxed{proved </answer>", None, "unanswered"),
        ("so </think> <answer> \\boxed{} </answer>", None, "unanswered"),
        ("", None, "empty"),  # the release divides by its length
        (f"reasoning process here </think> {PROVED}", None, "parroted"),
        (f"the reasoning process was long: {'we add and add ' * 6} </think> {PROVED}", "proved", "judged"),
        (f"yes </think> {PROVED} User: and another?", None, "dialogue"),
        (f"yes </think> {PROVED} Assistant: and another.", None, "dialogue"),
        (f"{INSTRUCTION}. </think> {PROVED}", None, "dialogue"),
        (f"{'thusithusi' * 12} </think> <answer>\\boxed{{proved}}</answer>", None, "crammed"),
        ("</think><answer>\\boxed{proved}</answer>", None, "crammed"),
        (f"{'no no ' * 2000} </think> {PROVED}", None, "repeated"),
    ],
)
def test_the_verdict_and_which_check_ended_it(text, wanted, ended):
    found = verdict(text)
    assert (found.said, found.ended) == (wanted, ended)
    score = found.score(holds=True)
    assert score.value == (wanted == "proved")
    assert score.parts["proved"] == (wanted == "proved")
    assert [name for name, value in score.parts.items() if value and name != "proved"] == (
        [] if ended == "judged" else [ended]
    )
    assert found.score(holds=False).value == (wanted == "disproved")


def test_checks_come_in_their_order():
    assert verdict("reasoning process User: x").ended == "parroted"
    assert verdict("User:" + "x" * 200).ended == "dialogue"
    assert verdict("x" * 400).ended == "crammed"
    edge = f"{'ab' * 100} " + " " * 10  # 11 of 211 characters are space: 5.2 %
    assert verdict(edge).ended == "unanswered"


@given(st.text(alphabet="<answer>/think\\boxed{proved} \n", max_size=200), st.booleans())
def test_any_text_has_a_verdict(text, holds):
    score = right(said(text, Stated("t", holds)))
    assert score.value in (0.0, 1.0)


def test_the_released_evaluation_is_more_lenient_than_the_reward():
    """A box anywhere counts there, and proved wins where both occur."""
    both = f"perhaps \\boxed{{proved}}, no </think> {DISPROVED}"
    assert (lenient_verdict(both), verdict(both).said) == ("proved", "disproved")
    assert (lenient_verdict("so \\boxed{proved} it is"), verdict("so \\boxed{proved} it is").said) == ("proved", None)
    assert lenient_verdict("\\boxed{\\text{Disproved}}") == "disproved"
    assert lenient_verdict("nothing") is None


def test_a_reward_behind_the_checks():
    plain = pt.each(lambda rollout: 1.0)
    texts = ["42", "D s5", "User: hi there you", "x" * 40, "it is so because of that"]
    scores = guard(plain)([said(text) for text in texts])
    assert values(scores) == [1, 1, 0, 0, 1], "one word is no cramming"
    assert [score.parts["refused"] for score in scores if isinstance(score, Score)] == [0, 0, 1, 1, 0]
    assert isinstance(guard(pt.each(lambda r: Invalid("no")))([said("User: hi")])[0], Invalid)


# ---- theorems


def truths(*theorems: tuple[str, list[bool]]) -> list[Stated]:
    return [Stated(name, holds) for name, variants in theorems for holds in variants]


def test_a_theorem_is_decided_when_all_its_statements_are():
    asked = truths(("a", [True, False, True]), ("b", [True, True]), ("c", [False]))
    assert share_decided(asked, [True] * 6) == 1.0
    assert share_decided(asked, [True, True, False, True, True, False]) == pytest.approx(1 / 3)
    assert floors(asked) == {
        "always proved": pytest.approx(1 / 3),  # b
        "always disproved": pytest.approx(1 / 3),  # c
        "random": pytest.approx((1 / 8 + 1 / 4 + 1 / 2) / 3),
    }


def test_measures_by_both_parsers():
    loose = "so \\boxed{proved} it is"
    asked = truths(("a", [True, False]), ("b", [True]))
    texts = [f"so </think> {PROVED}", f"so </think> {DISPROVED}", loose]
    found = measures_of([said(text, truth) for text, truth in zip(texts, asked, strict=True)])
    assert (found["single"], found["joint"], found["joint, lenient parser"]) == (pytest.approx(2 / 3), 0.5, 1.0)
    assert (found["proved"], found["no verdict"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    unplayed = pt.Rollout(said("", Stated("a", True)).task, [], Failure("server down"))
    left = measures_of([unplayed, said(texts[1], asked[1]), said(texts[0], Stated("b", True))])
    assert (left["theorems"], left["theorems lost"], left["joint"]) == (1, 1, 1), "what was not played is not wrong"
    with pytest.raises(ValueError, match="not one theorem was played"):
        measures_of([unplayed])


TRAINING = [
    {
        "id": f"t{i}",
        "pos_question": f"Prove or disprove that {i} + {i} is even.",
        "pos_truth_value": i % 3 > 0,
        "neg_question": f"Prove or disprove that {i} + {i} is odd.",
        "neg_truth_value": i % 3 == 0,
        "proof": f"It is 2 times {i}, hence even. \\boxed{{proved}}",
    }
    for i in range(6)
]
TESTS = [
    {"problem_name": "made_up_1", "prompt": "Prove or disprove that primes above 2 are odd.", "answer": True},
    {"problem_name": "made_up_1", "prompt": "Prove or disprove that primes above 2 are even.", "answer": False},
    {"problem_name": "made_up_2", "prompt": "Prove or disprove that squares are not negative.", "answer": True},
]


def written(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def training(tmp_path) -> str:
    return written(tmp_path / "training.jsonl", TRAINING)


@pytest.fixture
def tests(tmp_path) -> str:
    return written(tmp_path / "tests.jsonl", TESTS)


def test_statements_of_both_formats(training, tests):
    tasks = statements(training)
    assert [(t.key, t.truth.theorem, t.truth.holds) for t in tasks[:4]] == [
        ("t0:pos", "t0", False),
        ("t0:neg", "t0", True),
        ("t1:pos", "t1", True),
        ("t1:neg", "t1", False),
    ]
    assert [t.key for t in statements(training, limit=2)] == [t.key for t in tasks[:4]], "a limit keeps pairs together"
    assert [t.key for t in statements(tests)] == ["made_up_1:1", "made_up_1:2", "made_up_2:1"]
    assert len(statements(tests, limit=1)) == 2
    assert floors([t.truth for t in statements(tests)])["always proved"] == 0.5


@given(st.integers(0, 5), st.integers(0, 100))
def test_what_is_held_out_is_held_out_by_theorem(count, seed):
    tasks = [pt.Task(f"{name}:{side}", (), Stated(name, True)) for name in "abcdef" for side in ("pos", "neg")]
    left, kept = split_by_theorem(tasks, count, seed)
    assert len({t.truth.theorem for t in kept}) == count
    assert not {t.truth.theorem for t in kept} & {t.truth.theorem for t in left}
    assert len(left) + len(kept) == len(tasks)
    assert all(n == 2 for n in Counter(t.truth.theorem for t in left).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_truth_value": "maybe"}, "line 2: the column 'pos_truth_value' is 'maybe', neither true nor false"),
        ({"id": "t0"}, "line 2: the id 't0' has been used before"),
        ({"neg_question": ""}, "line 2: the column 'neg_question' is empty"),
    ],
)
def test_bad_rows_are_named(tmp_path, change, message):
    data = written(tmp_path / "bad.jsonl", [TRAINING[0], TRAINING[1] | change])
    with pytest.raises(ValueError, match=re.escape(message)):
        statements(data)
    for count, wanted in ((6, "`keep_out=6`: of 6 theorems none would be left"), (-1, "`keep_out=-1`: it must be")):
        with pytest.raises(ValueError, match=wanted):
            split_by_theorem(statements(written(tmp_path / "t.jsonl", TRAINING)), count)


def test_proofs_are_told_with_the_statement_s_own_verdict(training):
    """The proof is the pair's, and its verdict the original's: it must not stand in what is said of the other."""
    shown = proofs(training, "proof", {"t1", "t3"})
    assert len(shown) == 4
    for one, holds in zip(shown, (True, False, False, True), strict=True):
        text = one.messages[-1]["content"]
        assert right(said(text, Stated("t", holds))).value == 1
        assert text.count("\\boxed") == 1
    with pytest.raises(ValueError, match="did you mean `proof=proof`"):
        proofs(training, "prof", {"t1"})


def test_proofs_are_not_looked_for_in_a_test_file(tests):
    with pytest.raises(ValueError, match=r"line 1: stage sft .* 'id', 'pos_question', .* 'problem_name', 'prompt'"):
        proofs(tests, "proof", {"made_up_1"})


# ---- the prompt


def test_the_prompt_is_plain_text_that_ends_inside_the_open_tag(make):
    policy = make(template=str(TEMPLATE))
    text = policy.chat.text((pt.user("Prove or disprove that 1 < 2."),))
    assert text.endswith("1 < 2.\nAssistant: <think>")
    assert "<|im_start|>" not in text
    assert INSTRUCTION in text
    assert "\\boxed{proved}" in text
    assert policy.chat.end == policy.tokenizer.eos_token, "the release's template closes with </answer> and no end"
    turn = policy.demonstrate((pt.user("x"),), f" so </think> {PROVED}")
    assert policy.chat.decode(turn.reply.trace.reply) == f" so </think> {PROVED}"
    assert turn.reply.trace.reply[-1] == policy.tokenizer.eos_token_id
    assert verdict(text).ended == "dialogue", "a policy that goes on with the prompt earns nothing"


def test_another_template_may_be_asked_for(folder):
    assert "<|im_start|>" in load(ModelOptions(folder, template="chatml", max_new=4)).chat.text((pt.user("x"),))
    with pytest.raises(ValueError, match="neither one of"):
        load(ModelOptions(folder, template="none.jinja", max_new=4))


# ---- the judge

GOOD = '{"validity": 1, "completeness": 0.5, "correctness": 1.0, "clarity": 0}'


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"It is fine.\n{GOOD}", 0.4 + 0.15 + 0.2),
        (f"```json\n{GOOD}\n```", 0.75),
        (f'first {{"validity": 0}} then {GOOD}', 0.75),
        (GOOD.replace("0.5", "1.5"), None),
        (GOOD.replace("0.5", "true"), None),
        (GOOD.replace("0.5", '"0.5"'), None),
        (GOOD.replace("0.5", "NaN"), None),
        ('{"validity": 1}', None),
        ("{nonsense}", None),
        ("a good proof", None),
    ],
)
def test_the_marks_of_a_judge(text, wanted):
    marks = marks_in(text)
    assert (marks and process_score(marks)) == (wanted and pytest.approx(wanted))


def driven(proof: str, replies: list[Any]) -> tuple[list[pt.Ask], Any]:
    """The asks and the facts of an episode of `proof_judge` whose replies are these."""
    one = pt.Task("t", (pt.user("Prove or disprove that 1 > 2."),), Stated("t", False))
    episode = proof_judge({"t": proof})(one)
    asks = next(episode)
    seen = [*asks]
    try:
        for content in replies:
            asks = episode.send(Canned(content).sample(asks))
            seen += asks
    except StopIteration as stop:
        return seen, stop.value
    raise AssertionError("it asks for more")


def test_the_judge_is_asked_in_the_episode():
    asks, facts = driven("a proof {with braces}", [GOOD])
    assert [(one.who, one.temperature) for one in asks] == [("judge", 0.0)]
    question = asks[0].messages[-1]["content"]
    assert all(part in question for part in ("1 > 2.", "a proof {with braces}", "can be disproved"))
    assert by_marks(pt.Rollout(said("").task, [], facts)).value == pytest.approx(0.75)


def test_nonsense_is_asked_for_again_and_then_invalid():
    asks, facts = driven("a proof", ["nonsense", GOOD])
    assert len(asks) == 2
    assert asks[0].temperature != asks[1].temperature, "greedy again would say the same"
    assert facts["completeness"] == 0.5
    _, facts = driven("a proof", ["nonsense", "nonsense"])
    assert isinstance(facts, Failure)
    [score] = group_scores(pt.each(by_marks), [pt.Rollout(said("").task, [], facts)])
    assert isinstance(score, Invalid)
    assert "no JSON of four marks" in score.reason


class Chat(BaseHTTPRequestHandler):
    """A chat server that answers with `answer(question)`; a number is a status."""

    answer: Any = None

    def do_GET(self):
        self.send(200, {"data": [{"id": "scripted"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = type(self).answer(body["messages"][-1]["content"])
        if isinstance(found, int):
            self.send(found, {"error": "as scripted"})
        else:
            self.send(200, {"choices": [{"message": {"content": found}, "finish_reason": "stop"}]})

    def send(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *_):
        pass


@pytest.fixture
def chat():
    """`chat(answer)` -> the address of a server."""
    started = []

    def start(answer) -> str:
        http = ThreadingHTTPServer(("127.0.0.1", 0), type("Scripted", (Chat,), {"answer": staticmethod(answer)}))
        threading.Thread(target=http.serve_forever, daemon=True).start()
        started.append(http)
        return f"http://127.0.0.1:{http.server_port}/v1"

    yield start
    for http in started:
        http.shutdown()
        http.server_close()


@pytest.fixture
def folder(words, tmp_path) -> str:
    """A random checkpoint with room for the system's prompt."""
    model = tiny.network(words, hidden=32, layers=2, positions=600)
    TextPolicy(model, words, Sampling(6)).save(tmp_path / "checkpoint")
    return str(tmp_path / "checkpoint")


def test_evaluation_by_theorem_with_a_served_judge(chat, folder, tests, tmp_path, capsys):
    """A judge that refuses one proof costs its marks and nothing else."""
    address = chat(lambda question: 400 if "negative" in question else GOOD)
    out = tmp_path / "out"
    line = ["run", "deeptheorem", "--stage", "evaluate", "--model", folder, "--max-new", "6"]
    main([*line, "--data", tests, "--judge", address, "--out", str(out)])
    found = json.loads((out / "decided.json").read_text())
    assert found["process"] == pytest.approx(0.75)
    assert found["not marked"] == pytest.approx(1 / 3)
    assert (found["statements"], found["theorems"], found["always proved"]) == (3, 2, 0.5)
    replies = [json.loads(text) for text in (out / "replies.jsonl").read_text().splitlines()]
    assert ["process" in one for one in replies] == [True, True, False]
    assert "as scripted" in replies[2]["not marked"]
    assert "always proved" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*line, "--data", tests, "--out", str(out)])
    assert "already holds evaluation.json" in capsys.readouterr().err


EVALUATE = ["run", "deeptheorem", "--stage", "evaluate", "--max-new", "6"]


def lines_of(path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_an_evaluation_that_was_stopped_goes_on_where_it_was(chat, folder, tests, tmp_path, monkeypatch, capsys):
    """A reply is on the disk as soon as it is there; a resume asks for the others, and for the marks that are missing."""
    asked: list[str] = []
    up = [True]
    address = chat(lambda question: asked.append(question) or (GOOD if up[0] or "even" not in question else 400))
    whole, part = tmp_path / "whole", tmp_path / "part"
    line = [*EVALUATE, "--model", folder, "--data", tests, "--judge", address]
    main([*line, "--out", str(whole)])
    with monkeypatch.context() as patched:
        patched.setattr(Replies, "note", killed_after(2))
        with pytest.raises(SystemExit):
            main([*line, "--out", str(part)])
    kept = lines_of(part / "replies.jsonl")
    assert len(kept) == 2
    first = kept[0] | {"reply": f"so </think> {PROVED}"}  # to be told from what the policy would say
    (part / "replies.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(kept[1])}\n" + '{"task": "made')
    with pytest.raises(SystemExit):
        main([*line, "--out", str(part)])
    assert "already holds evaluation.json: continue with --resume" in " ".join(capsys.readouterr().err.split())
    asked.clear()
    up[0] = False
    main([*line, "--out", str(part), "--resume"])
    assert json.loads((part / "decided.json").read_text())["not marked"] == pytest.approx(1 / 3)
    up[0] = True
    asked.clear()
    main([*line, "--out", str(part), "--resume"])
    assert len(asked) == 1, "only the proof without marks"
    found, wanted = (lines_of(out / "replies.jsonl") for out in (part, whole))
    assert [one["task"] for one in found] == [one["task"] for one in wanted]
    assert {one["task"]: one["reply"] for one in found} == {
        one["task"]: first["reply"] if one["task"] == first["task"] else one["reply"] for one in wanted
    }
    assert all(one["process"] == pytest.approx(0.75) for one in found)
    assert json.loads((part / "decided.json").read_text())["not marked"] == 0


@pytest.mark.slow
def test_two_ranks_evaluate_as_one_does(folder, training, tmp_path):
    """Each replies to its share, and one of them writes."""
    line = [*EVALUATE, "--model", folder, "--data", training, "--quiet", "--out"]
    main([*line, str(tmp_path / "one")])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = processes.ran([*torchrun, "-m", "posttrain", *line, str(tmp_path / "two")])
    assert ended.returncode == 0, ended.stderr
    for name in ("replies.jsonl", "decided.json"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()


def killed_after(count: int) -> Any:
    """`Replies.note` of a process that is killed once it has written so many replies."""
    plain, left = Replies.note, [count]

    def note(replies: Replies, one: pt.Rollout) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        plain(replies, one)

    return note


def test_an_evaluation_goes_into_no_folder_of_another(folder, training, tests, tmp_path, capsys):
    out, run = tmp_path / "out", tmp_path / "run"
    line = [*EVALUATE, "--model", folder, "--quiet"]
    main([*line, "--data", tests, "--out", str(out)])
    before = (out / "decided.json").read_text()

    def refused(*options: str) -> str:
        with pytest.raises(SystemExit):
            main([*line, *options])
        return " ".join(capsys.readouterr().err.split())

    assert "was started with data" in refused("--data", training, "--out", str(out), "--resume")
    assert "was started with max_new = 6, not 5" in refused(
        "--data", tests, "--out", str(out), "--resume", "--max-new", "5"
    )
    assert (out / "decided.json").read_text() == before
    run.mkdir()
    (run / "decided.json").write_text("of a run")
    assert "holds no evaluation.json" in refused("--data", tests, "--out", str(run), "--overwrite")
    assert (run / "decided.json").read_text() == "of a run"
    main([*line, "--data", training, "--out", str(out), "--overwrite"])
    assert json.loads((out / "decided.json").read_text())["theorems"] == 6
    assert len(lines_of(out / "replies.jsonl")) == 12


def test_a_local_judge_and_one_that_is_not_there(folder, tests, tmp_path, capsys, monkeypatch):
    line = ["run", "deeptheorem", "--stage", "evaluate", "--model", folder, "--max-new", "6"]
    main([*line, "--data", tests, "--judge", folder, "--out", str(tmp_path / "local")])
    found = json.loads((tmp_path / "local" / "decided.json").read_text())
    assert found["not marked"] == 1.0
    assert "process" not in found, "a random judge gives no marks, and the outcome stands"
    from posttrain.sampler import server

    monkeypatch.setattr(server, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(server, "LONGEST_PAUSE_S", 0.0)
    with pytest.raises(server.ServerError, match="Is the server up"):
        ModelOptions().player("http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ("train", ["--judge", "x"], "unrecognized"),
        ("evaluate", ["--keep-out", "2"], "unrecognized"),
        ("sft", ["--against", "x"], "unrecognized"),
        ("construct", [], "--writer"),
        ("train", ["--keep-out", "6"], "--keep-out 6: of 6 theorems none would be left"),
        ("sft", ["--keep-out", "-1"], "--keep-out -1: it must be at least 0"),
        ("prove", [], "--stage prove: unknown"),
    ],
)
def test_options_that_do_not_go_together(training, stage, options, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["run", "deeptheorem", "--stage", stage, "--data", training, *options, "--out", str(tmp_path / "out")])
    shown = capsys.readouterr()
    assert message.lower() in " ".join((shown.out + shown.err).split()).lower()


def test_sets_that_are_decided_have_theorems_of_their_own(tests, training, tmp_path):
    other = written(tmp_path / "other.jsonl", [row | {"problem_name": f"x{i}"} for i, row in enumerate(TESTS)])
    kept = statements(training, 1)
    assert {name: len(found) for name, found in evaluation_sets(kept, [tests]).items()} == {"": 5}, "one set, no name"
    both = evaluation_sets(kept, [f"putnam={tests}", other])
    assert {name: len(found) for name, found in both.items()} == {"kept out": 2, "putnam": 3, "other": 3}
    assert evaluation_sets([], []) == {}
    with pytest.raises(ValueError, match="'made_up_1' is also one of putnam"):
        evaluation_sets(kept, [f"putnam={tests}", f"again={tests}"])


@pytest.mark.parametrize("stage", ["train", "sft"])
def test_training_decides_before_and_after(stage, folder, training, tests, tmp_path):
    out = tmp_path / "out"
    line = trained(stage, folder, training, out)
    main([*line, "--held-out", tests, "--keep-out", "1", "--steps", "1"])
    found = json.loads((out / "decided.json").read_text())
    assert set(found) == {"before", "after"}
    assert found["before"]["theorems"] == 3, "two of the file, one kept out"
    assert (out / "model" / "chat_template.jinja").read_text() == TEMPLATE.read_text()
    assert [len(lines_of(out / f"decided-{step:06d}.jsonl")) for step in (0, 1)] == [5, 5]
    main([*line, "--held-out", tests, "--keep-out", "1", "--steps", "2", "--resume"])
    longer = json.loads((out / "decided.json").read_text())
    assert longer["before"] == found["before"], "a resume keeps what the untouched policy decided"
    assert set(longer) == {"before", "after"}
    main([*line, "--steps", "1", "--overwrite"])
    assert not list(out.glob("decided*")), "nothing of the run that was replaced"


def trained(stage: str, folder: str, training: str, out) -> list[str]:
    line = ["run", "deeptheorem", "--stage", stage, "--model", folder, "--data", training]
    samples = ["--samples", "2"] if stage == "train" else []
    return [*line, "--max-new", "6", *samples, "--tasks", "2", "--quiet", "--out", str(out)]


def test_what_is_decided_before_training_survives_a_kill(folder, training, tests, tmp_path, monkeypatch):
    whole, part = tmp_path / "whole", tmp_path / "part"
    main([*trained("train", folder, training, whole), "--held-out", tests, "--steps", "1"])
    with monkeypatch.context() as patched:
        patched.setattr(Replies, "note", killed_after(2))
        with pytest.raises(SystemExit):
            main([*trained("train", folder, training, part), "--held-out", tests, "--steps", "1"])
    assert len(lines_of(part / "decided-000000.jsonl")) == 2
    main([*trained("train", folder, training, part), "--held-out", tests, "--steps", "1", "--resume"])
    assert (part / "decided.json").read_text() == (whole / "decided.json").read_text()


def test_what_is_wrong_is_said_before_anything_is_decided(folder, training, tests, tmp_path, monkeypatch, capsys):
    full, fresh = tmp_path / "full", tmp_path / "fresh"
    main([*trained("train", folder, training, full), "--steps", "1"])

    def decoding(*_: Any) -> Any:
        raise AssertionError("statements are decided")

    monkeypatch.setattr(Replies, "__init__", decoding)
    twins = written(tmp_path / "twins.jsonl", [row | {"problem_name": "t0"} for row in TESTS])
    for line, message in (
        ([*trained("train", folder, training, full), "--held-out", tests], "already holds a run"),
        ([*trained("sft", folder, training, full), "--held-out", tests], "already holds a run"),
        ([*trained("sft", folder, training, fresh), "--held-out", tests, "--proof", "prof"], "did you mean --proof"),
        ([*trained("sft", folder, tests, fresh), "--held-out", tests], "stage sft takes training rows"),
        (
            [*trained("train", folder, training, fresh), "--keep-out", "5", "--held-out", twins],
            "the theorem 't0' is also one of --keep-out",
        ),
    ):
        with pytest.raises(SystemExit):
            main(line)
        assert message in " ".join(capsys.readouterr().err.split())
    assert not fresh.exists()


def test_a_resumed_run_at_laptop_scale_keeps_what_was_before(tmp_path, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stages, "base_model", lambda world, seed: base_model(world, seed, QUICK))
    monkeypatch.setattr(lab, "TESTED", 4)
    line = ["run", "deeptheorem", "--tasks", "2", "--quiet", "--out", str(tmp_path / "out")]
    main([*line, "--steps", "1"])
    found = json.loads((tmp_path / "out" / "decided.json").read_text())
    main([*line, "--steps", "2", "--resume"])
    longer = json.loads((tmp_path / "out" / "decided.json").read_text())
    assert longer["before"] == found["before"]
    assert set(longer) == {"before", "after"}


@pytest.mark.parametrize(("stage", "rate"), [("train", 1e-6), ("sft", 1e-5)])
def test_each_stage_has_its_own_rate(stage, rate, folder, training, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "SMALL_MODEL", 0)  # as if the checkpoint were a large one
    main([*trained(stage, folder, training, tmp_path / "out"), "--steps", "1"])
    assert json.loads((tmp_path / "out" / "run.json").read_text())["lr"] == rate


# ---- the pipeline

QUESTIONS = [
    {"id": "even", "question": "Show that the sum of two even numbers is even."},
    {"id": "leak", "question": "Show that primes above 2 are odd."},
    {"id": "vague", "question": "What about it?"},
    {"id": "easy", "question": "Show that 1 + 1 = 2."},
    {"id": "two", "question": "Show that a is odd and, separately, that b is odd."},
    {"id": "odd", "question": "Show that the sum of two odd numbers is odd."},
    {"id": "mute", "question": "Show that silence is golden."},
]


def written_by(question: str) -> str:
    """A writer by rules, on the wording of the pipeline."""
    about = next((row["id"] for row in QUESTIONS if row["question"].removeprefix("Show that ") in question), "?")
    if "Test questions" in question:
        return f"<contaminated>{'yes' if about == 'leak' else 'no'}</contaminated>"
    if "rewrite it" in question:
        if about == "vague":
            return "<complete>no</complete>"
        stem = next(row["question"] for row in QUESTIONS if row["id"] == about).removeprefix("Show that ")
        return f"<complete>yes</complete> <statement>Prove or disprove that {stem}</statement>"
    if "Write a complete proof" in question:
        if about == "mute":
            return "I would rather not."
        return f"<think>\\boxed{{proved}}?</think> Thus. \\boxed{{{'disproved' if about == 'odd' else 'proved'}}}"
    if "coherent" in question:
        return "<coherent>yes</coherent>"
    if "How difficult" in question:
        level, single = ("2.5" if about == "easy" else "7.5"), ("no" if about == "two" else "yes")
        return f"<difficulty>{level}</difficulty> <single>{single}</single> <domain>Numbers -> Parity</domain>"
    return f"<same>Same $\\frac{{1}}{{2}}$ {about}</same> <opposite>Opposite {about}</opposite>"


CONSTRUCT = ["run", "deeptheorem", "--stage", "construct", "--quiet"]


def test_theorems_are_built_from_questions(chat, tests, tmp_path, capsys):
    data, out = written(tmp_path / "questions.jsonl", QUESTIONS), tmp_path / "out"
    options = ["--data", data, "--against", tests, "--out", str(out)]
    main([*CONSTRUCT, *options, "--writer", chat(written_by)])
    rows = [json.loads(text) for text in (out / "theorems.jsonl").read_text().splitlines()]
    assert [(row["id"], row["pos_truth_value"], row["neg_truth_value"]) for row in rows] == [
        ("even", True, False),
        ("odd", False, True),  # the variant that shares the original's truth value is false
    ]
    assert rows[0]["pos_question"] == "Same $\\frac{1}{2}$ even"
    assert (rows[0]["difficulty"], rows[0]["domain"]) == (7.5, "Numbers -> Parity")
    assert rows[0]["proof"] == "Thus. \\boxed{proved}", "without what the writer thought"
    assert len(statements(str(out / "theorems.jsonl"))) == 4
    assert len(proofs(str(out / "theorems.jsonl"), "proof", {"even", "odd"})) == 4
    said = capsys.readouterr().err
    for reason in ("contaminated", "incomplete", "too easy", "several statements", "proved: no readable answer"):
        assert f"1 dropped: {reason}" in said


def test_a_run_that_was_stopped_goes_on_where_it_was(chat, tmp_path, capsys):
    data, out = written(tmp_path / "questions.jsonl", QUESTIONS[:1] + QUESTIONS[5:6]), tmp_path / "out"
    asked: list[str] = []

    def failing(question: str) -> Any:
        asked.append(question)
        return 400 if "How difficult" in question and "odd numbers" in question else written_by(question)

    options = ["--data", data, "--out", str(out)]
    main([*CONSTRUCT, *options, "--writer", chat(failing)])
    assert "1 not answered, the first because EpisodeFailed: http://" in capsys.readouterr().err
    assert [json.loads(t)["id"] for t in (out / "theorems.jsonl").read_text().splitlines()] == ["even"]
    with pytest.raises(SystemExit):
        main([*CONSTRUCT, *options, "--writer", chat(failing)])
    assert "already holds construct.json" in capsys.readouterr().err
    ledger = out / "items.jsonl"
    ledger.write_text(ledger.read_text() + '{"id": "odd", "stage": "ra')  # killed in the middle of a line
    asked.clear()
    again: list[str] = []
    main([*CONSTRUCT, *options, "--resume", "--writer", chat(lambda q: again.append(q) or written_by(q))])
    assert len(again) == 2, "only the rating and the variants of the one that was left"
    assert [json.loads(t)["id"] for t in (out / "theorems.jsonl").read_text().splitlines()] == ["even", "odd"]
    other = written(tmp_path / "other.jsonl", QUESTIONS[:1])
    with pytest.raises(SystemExit):
        main([*CONSTRUCT, "--data", other, "--out", str(out), "--resume", "--writer", chat(written_by)])
    assert "was started with data" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*CONSTRUCT, *options, "--prompt", "qestion", "--writer", chat(written_by)])
    assert "did you mean --prompt question?" in " ".join(capsys.readouterr().err.split())


def test_a_local_writer_and_one_that_never_answers(chat, folder, tmp_path, capsys):
    data = written(tmp_path / "questions.jsonl", QUESTIONS[:2])
    main([*CONSTRUCT, "--data", data, "--out", str(tmp_path / "a"), "--writer", folder, "--max-new", "4"])
    assert "2 dropped: complete: no readable answer" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*CONSTRUCT, "--data", data, "--out", str(tmp_path / "b"), "--writer", chat(lambda question: 400)])
    assert "the writer answered nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<difficulty>5</difficulty><single>yes</single><domain>A</domain>", {"difficulty": 5.0, "domain": "A"}),
        ("<difficulty>6.3</difficulty><single>yes</single><domain>A</domain>", None),
        ("<difficulty>10.5</difficulty><single>yes</single><domain>A</domain>", None),
        ("<difficulty>0.5</difficulty><single>yes</single><domain>A</domain>", None),
        ("<difficulty>7</difficulty><single>perhaps</single><domain>A</domain>", None),
        ("<difficulty>7</difficulty><single>yes</single>", None),
    ],
)
def test_difficulty_is_between_1_and_10_in_steps_of_a_half(text, wanted):
    assert questions.read_rating(text, {}) == wanted


def test_variants_differ_from_the_statement_and_from_each_other():
    item = {"statement": "x > 1"}
    assert questions.read_variants("<same>x > 0</same><opposite>x < 1</opposite>", item)
    assert questions.read_variants("<same>X > 1.</same><opposite>x < 1</opposite>", item) is None
    assert questions.read_variants("<same>x > 0</same><opposite>x > 0</opposite>", item) is None
    assert questions.read_variants("<same>x > 0</same>", item) is None


def test_a_reply_that_was_cut_off_is_no_answer():
    [stage] = [one for one in questions.STAGES if one.name == "proved"]
    episode = pipeline.question_env(stage)(pt.Task("t", (), {"statement": "x"}))
    next(episode)
    cut = said("\\boxed{proved}", stop="length").turns[0].reply
    episode.send([cut])
    with pytest.raises(StopIteration) as ended:
        episode.send([cut])
    assert ended.value.value == {"dropped": "proved: no readable answer"}


def test_near_statements_by_words():
    tests = ["Prove that the sum of two odd integers is always even", "Squares of reals are never negative"]
    texts = ["We ask: the sum of two odd integers is always even?", "Nothing of the kind at all", "odd"]
    assert near.by_words(texts, tests) == [[0], [], []]
    many = ["the sum of two odd integers"] * 7
    assert near.by_words(["the sum of two odd integers is even"], many) == [[0, 1, 2, 3, 4]], "the five nearest"


def test_a_long_list_of_texts_is_cut_into_words_once(monkeypatch):
    """Of each text once, not once for every test statement: an hour's work otherwise, for a hundred thousand."""
    cut: list[str] = []
    plain = near.grams
    monkeypatch.setattr(near, "grams", lambda text: cut.append(text) or plain(text))
    near.by_words(["a b c", "d e f"], ["a b c d", "x y z", "u v w"])
    assert sorted(cut) == sorted(["a b c", "d e f", "a b c d", "x y z", "u v w"])


def test_near_statements_by_an_encoder(folder):
    texts = ["a b c", "a quite different and much longer text about nothing"]
    recall = near.by_encoder(folder, device="cpu")
    found = recall(texts, ["a b c", texts[1]])
    assert found[0][0] == 0
    assert found[1][0] == 1
    with pytest.raises(ValueError, match="no such folder"):
        near.by_encoder("./nowhere")


# ---- the world


@given(st.integers(0, 10**6), st.booleans())
def test_statements_of_the_world_are_what_they_say(seed, holds):
    world, draw = Theorems(0), random.Random(seed)
    one = world.statement(draw.choice(world.theorems), holds, draw, "x")
    *digits, word, relation, value, tag = one.prompt[0]["content"].split()
    assert (word, tag) == ("sum", "<think>")
    total = sum(int(d[1:]) for d in digits) % 5
    assert RELATIONS[relation](total, int(value[1:])) == holds == one.truth.holds


def test_the_world_s_split_and_variants():
    world = Theorems(3)
    pairs, alone, tests = world.training_tasks(), world.training_tasks(variants=False), world.held_out_tasks()
    assert len(pairs) == len(alone) == 2 * 525
    assert all(t.truth.holds for t in alone)
    by_name = Counter((t.truth.theorem, t.truth.holds) for t in pairs)
    assert set(by_name.values()) == {1}, "one of each kind"
    assert not {t.truth.theorem for t in tests} & {t.truth.theorem for t in pairs}
    assert len({t.key for t in tests}) == len(tests)
    found = floors([t.truth for t in tests])
    assert found["always disproved"] == 0
    assert 0.05 < found["always proved"] < 0.3
    assert all({word for m in t.prompt for word in m["content"].split()} <= set(world.vocabulary) for t in tests)


def test_demonstrations_are_proofs_or_what_the_web_says():
    draw = random.Random(0)
    clean = [Theorems(0).demonstration(draw) for _ in range(200)]
    for one in clean:
        question, reply = (m["content"] for m in one.messages)
        *digits, _, relation, value, _ = question.split()
        numbers = tuple(int(d[1:]) for d in digits)
        holds = RELATIONS[relation](sum(numbers) % 5, int(value[1:]))
        assert proof_marks(reply, Claim("", holds, numbers)) == dict.fromkeys(
            ("validity", "completeness", "correctness", "clarity"), 1.0
        )
        assert right(said(reply, Claim("", holds, numbers))).value == 1, "the reward itself reads them"
    web = [Theorems(0, lazy=0.6, wrong=0.15).demonstration(draw).messages[1]["content"] for _ in range(1000)]
    assert 0.55 < sum(steps(text) == 0 for text in web) / 1000 < 0.65


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"n4 n3 n0 </think> {PROVED}", (1, 1, 1, 1)),
        (f"n4 n2 n4 </think> {PROVED}", (2 / 3, 1, 1, 1)),  # one wrong step, from which the next follows
        (f"n4 n3 </think> {PROVED}", (1, 2 / 3, 1, 1)),
        (f"</think> {PROVED}", (0, 0, 1, 0)),
        (f"n4 n3 n0 </think> {DISPROVED}", (1, 1, 0, 1)),
        (f"n4 n3 n0 n0 </think> {PROVED}", (3 / 4, 1, 1, 0)),  # more than there is to add
        (f"n4 sum n0 </think> {PROVED}", (1 / 3, 2 / 3, 1, 0)),
        ("n4 n3 n0 </think> \\boxed{proved}", (1, 1, 1, 0)),
        (f"n4 n3 n0 </think> {PROVED} {DISPROVED}", (1, 1, 0, 0)),
    ],
)
def test_the_rules_of_a_proof(text, wanted):
    """n3 n1 n4 n2: the partial sums are 4, 3, 0."""
    assert tuple(proof_marks(text, Claim("", True, (3, 1, 4, 2))).values()) == pytest.approx(wanted)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("name", lab.ARMS)
def test_arms_are_quick_when_asked(name, monkeypatch, cache):
    monkeypatch.setenv("POSTTRAIN_CACHE", cache)
    found = lab.ARMS[name](100, QUICK)
    measures = {claim.measure for claim in lab.CLAIMS} | {claim.against for claim in lab.CLAIMS}
    assert measures - {None} <= set(found)


@pytest.mark.slow
def test_the_verdict_alone_teaches_to_prove():
    """From the laptop's base model, which can prove and mostly does not; it is built once."""
    world = Theorems(100)
    policy = base_model(world, 100)
    history = train_in_memory(
        policy, world.training_tasks(), recipe(pt.each(right), 16), steps=12, per_step=16, lr=1e-3, seed=1
    )
    assert 0.1 < history[0]["reward"] < 0.9, "a base model that can be taught"
    assert history[-1]["reward"] > history[0]["reward"] + 0.15
    assert history[-1]["length"] > history[0]["length"]
