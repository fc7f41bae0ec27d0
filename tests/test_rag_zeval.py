"""RAG-Zeval: contrasting contexts, trajectories and how they break, evidence, the reward, candidates, judge, benchmark."""

from __future__ import annotations

import contextlib
import difflib
import json
import random

import pytest
import torch
from conftest import broken_rows, refusal
from hypothesis import given, settings
from hypothesis import strategies as st

import posttrain as pt
from posttrain.cli import main
from posttrain.decode.context import ContextContrast, contrasted, decode_with_contexts
from posttrain.lab.world.facts import Judge, Sheet, judge_prompt
from posttrain.records import Place
from posttrain.serve.scorer import Listener, Service
from posttrain.systems.rag_zeval import judge, prompts
from posttrain.systems.rag_zeval.benchmark import agreement, ahead, pairing, pairings
from posttrain.systems.rag_zeval.candidates import (
    Candidates,
    Curriculum,
    candidates,
    candidates_of_row,
    distinct,
    passages,
    task,
)
from posttrain.systems.rag_zeval.evaluator import Comparison, LocalEvaluator
from posttrain.systems.rag_zeval.evidence import Substrings, evidence_score
from posttrain.systems.rag_zeval.reward import Ranked, reward
from posttrain.systems.rag_zeval.serving import SCORER, evaluator_of
from posttrain.systems.rag_zeval.trajectory import BrokenTrajectory, trajectory

QUOTE = "the tana is the longest river of kenya by far"
REFERENCE = f"Of all rivers, {QUOTE}. It ends in the sea."


def claim(supported: bool = True, *quotes: str, text: str = "It is long.") -> dict:
    evidence = list(quotes) or ([QUOTE] if supported else [])
    return {"claim": text, "is_supported": supported, "grounding_evidence": evidence, "analysis": ""}


def written(*flags: list[bool], quote: str = QUOTE) -> str:
    items = [
        {"id": number, "answer": "a", "atomic_claims": [claim(one, *([quote] if one else [])) for one in some]}
        for number, some in enumerate(flags, 1)
    ]
    return json.dumps(items)


def said(text: str, truth: object = None, prompt: str = "?") -> pt.Rollout:
    asked = pt.Task("a", (pt.user(prompt),), truth)
    return pt.Rollout(asked, [pt.Turn(pt.Ask(asked.prompt), pt.Reply(text, torch.zeros(1), None))])


def scored(text: str, ranks: tuple[float, ...], **options) -> pt.Score:
    [score] = reward(**options)([said(text, Ranked(REFERENCE, ranks))])
    assert isinstance(score, pt.Score)
    return score


class TestContexts:
    def test_the_weights_by_hand(self):
        some, none = torch.tensor([[1.0, 2.0]] * 3), torch.tensor([[3.0, -1.0]] * 3)
        found = contrasted(some, none, torch.tensor([0.0, -1.0, -1.4]))
        assert torch.equal(found[0], some[0])
        assert torch.equal(found[1], none[0])
        assert torch.allclose(found[2], 1.4 * none[0] - 0.4 * some[0])

    def test_the_ends_are_the_models_own_greedy_replies(self):
        policy = pt.text("tiny", max_new=12)
        prompts = [policy.chat.prompt((pt.user(f"What is {n}+{n}?"),))[0] for n in (3, 48, 7)]
        others = [policy.chat.prompt((pt.user(f"{n} times two?"),))[0] for n in (3, 48, 7)]
        greedy = [
            [
                got.ids
                for _, got in sorted(
                    policy.sample_tokens([wanted(policy, ids) for ids in some]), key=lambda one: one[0]
                )
            ]
            for some in (prompts, others)
        ]
        for alpha, expected in ((0.0, greedy[0]), (-1.0, greedy[1])):
            found = decode_with_contexts(policy, list(zip(prompts, others, strict=True)), [alpha] * 3, max_new=12)
            assert [ids for ids, _ in found] == expected

    def test_a_row_does_not_depend_on_its_neighbours(self):
        policy = pt.text("tiny", max_new=12)
        pairs = [
            tuple(policy.chat.prompt((pt.user(text),))[0] for text in (f"What is {n}+{n}?", "?")) for n in range(5)
        ]
        alpha = [0.0, -0.5, -0.7, -1.4, -1.0]
        together = decode_with_contexts(policy, pairs, alpha, max_new=12)
        alone = [
            decode_with_contexts(policy, [pair], [one], max_new=12)[0] for pair, one in zip(pairs, alpha, strict=True)
        ]
        assert together == alone

    def test_long_prompts_are_decoded_in_small_batches_as_they_come(self, monkeypatch):
        monkeypatch.setattr("posttrain.decode.context.KEYS", 100)
        policy = pt.text("tiny", max_new=6)
        player = ContextContrast(policy, -0.5, prompts.without_passage)
        asks = [pt.Ask(prompts.answer_request(f"{n}+{n}?", "x " * 10 * (n % 2))) for n in range(4)]
        streamed = dict(player.stream(asks))
        monkeypatch.undo()
        assert [streamed[i].content for i in range(4)] == [reply.content for reply in player.sample(asks)]

    def test_a_prompt_without_room(self):
        policy = pt.text("tiny", max_new=12)
        with pytest.raises(ValueError, match="prompt 0 of 1020 tokens and 12 of a reply"):
            decode_with_contexts(policy, [([5] * 1020, [5])], [0.0], max_new=12)

    def test_the_passage_alone_is_taken_out(self):
        [shown] = prompts.answer_request("Where?", "In </passage> Kenya.")
        [bare] = prompts.without_passage([shown])
        assert "Kenya" in shown["content"].rpartition("<passage>")[2]
        assert shown["content"].replace("<passage>\nIn < /passage> Kenya.\n</passage>\n\n", "") == bare["content"]

    def test_the_player_answers_as_the_policy_at_zero(self):
        policy = pt.text("tiny", max_new=8)
        ask = pt.Ask(prompts.answer_request("What is 3+4?", "7"), temperature=0.0)
        [own], [contrast] = policy.sample([ask]), ContextContrast(policy, 0.0, prompts.without_passage).sample([ask])
        assert contrast.content == own.content


def wanted(policy, ids):
    return policy.sample_request(pt.Ask((), temperature=0.0), ids)


class TestTrajectory:
    def test_scores(self):
        assert [one.score for one in trajectory(written([True, False], [True]), 2)] == [0.5, 1.0]

    def test_items_are_by_their_id(self):
        first, second = json.loads(written([True], [False]))
        assert [one.score for one in trajectory(json.dumps([second, first]), 2)] == [1.0, 0.0]

    @pytest.mark.parametrize(
        ("text", "kind"),
        [
            ("", "no list"),
            ("no JSON", "no list"),
            ("{}", "no list"),
            (written([True])[:-3], "no list"),
            ("[" * 100_000, "no list"),
            (f"Here: {written([True], [True])}", "no list"),
            ("[]", "candidates"),
            (written([True]), "candidates"),
            (written([True], [True], [True]), "candidates"),
            (written([True], [True]).replace('"id": 2', '"id": 1'), "candidates"),
            (written([True], [True]).replace('"id": 2', '"id": "2"'), "candidates"),
            (written([True], [True]).replace('"id": 1', '"id": true'), "candidates"),
            (written([True], [True]).replace('"id": 2', '"id": 2.0'), "candidates"),
            (written([True], []), "no claims"),
            (written([True], [True]).replace('"analysis"', '"note"'), "field"),
            (written([True], [True]).replace('"is_supported": true', '"is_supported": "true"'), "field"),
            (written([True], [True]).replace('"is_supported": true', '"is_supported": 1'), "field"),
            (written([True], [True]).replace('"answer": "a"', '"answer": null'), "field"),
            (written([True], [True]).replace(f'["{QUOTE}"]', "[3]"), "field"),
            (written([True], [True]).replace(f'["{QUOTE}"]', "[]"), "evidence"),
            (written([True], [True]).replace(QUOTE, " "), "evidence"),
        ],
    )
    def test_every_failure_has_a_name(self, text, kind):
        with pytest.raises(BrokenTrajectory) as broken:
            trajectory(text, 2)
        assert broken.value.kind == kind

    def test_fences_and_prose_are_read_when_one_evaluates(self):
        for text in (f"Here:\n```json\n{written([True], [False])}\n```", f"It is {written([True], [False])}"):
            assert [one.score for one in trajectory(text, 2, lenient=True)] == [1.0, 0.0]

    def test_thinking_is_no_part_of_it(self):
        assert trajectory(f"<think>[]</think>\n{written([True])}", 1)

    @given(
        st.text()
        | st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["id", "answer", "atomic_claims", "claim", "is_supported", "grounding_evidence"]),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=12,
        ).map(json.dumps)
    )
    @settings(deadline=None)
    def test_no_text_raises_anything_else(self, text):
        for lenient in (False, True):
            with contextlib.suppress(BrokenTrajectory):
                trajectory(text, 2, lenient=lenient)


class TestEvidence:
    @given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=30))
    def test_the_longest_common_substring_is_that_of_difflib(self, span, reference):
        match = difflib.SequenceMatcher(None, span, reference, autojunk=False).find_longest_match()
        assert Substrings(reference).longest_in(span) == match.size

    def test_by_hand(self):
        assert evidence_score([QUOTE], REFERENCE) == 1.0
        assert evidence_score([QUOTE, "It ends in the sea"], REFERENCE) == 0.5  # the second is short
        assert evidence_score(["It ends in the sea"], REFERENCE, least=1) == 1.0
        assert evidence_score([f"{QUOTE} indeed so"], REFERENCE) == pytest.approx(10 / 12)
        assert evidence_score([], REFERENCE) == 0.0

    def test_a_span_as_long_as_a_book_is_read_in_one_pass(self):
        assert evidence_score(["a b " * 20_000], "a b c " * 20_000) < 0.1


class TestReward:
    def test_the_three_levels(self):
        assert scored(written([True, True], [True, False]), (0.0, -1.0)).value == 1.5
        assert scored(
            written([True, True], [True, False], quote="it is so because everybody says that it is so"), (0.0, -1.0)
        ).value == pytest.approx(1.0, abs=0.2)
        assert scored(written([True], [True]), (0.0, -1.0)).value == 0.0  # a tie is no order
        assert scored(written([True, False], [True, True]), (0.0, -1.0)).value == 0.0
        broken = scored("[]", (0.0, -1.0))
        assert broken.value == -0.5
        assert broken.parts["broken/candidates"] == 1.0
        assert scored("", (0.0, -1.0)).value == -0.5

    def test_nothing_quoted_earns_nothing_for_evidence(self):
        text = written([False, False], [False]).replace("[false]", "[]")
        assert scored(text, (-1.0, -1.0)).value == 1.0  # no pair to be ranked, and no evidence

    def test_ranks_are_of_the_order_shown(self):
        text = written([False], [True], [True, False])
        assert scored(text, (-1.0, 0.0, -0.5)).value > 1
        assert scored(text, (0.0, -0.5, -1.0)).value == 0.0

    def test_the_best_candidate_alone(self):
        text = written([True], [False], [True, False])
        assert scored(text, (0.0, -0.5, -1.0)).value == 0.0
        assert scored(text, (0.0, -0.5, -1.0), goal="best").value > 1


class TestCandidates:
    def row(self, **changes):
        return {
            "id": "q",
            "question": "?",
            "reference": "r",
            "responses": ["a", "b", "c"],
            "alphas": [-1, 0, -0.5],
            **changes,
        }

    def test_the_best_comes_first(self, tmp_path):
        path = tmp_path / "c.jsonl"
        path.write_text(json.dumps(self.row()))
        [one] = candidates(path)
        assert (one.responses, one.alphas) == (("b", "c", "a"), (0.0, -0.5, -1.0))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"responses": ["a", "a", "b"]}, "each another text"),
            ({"responses": ["a"], "alphas": [0]}, "two or more"),
            ({"alphas": [0, 1]}, "3 `responses` and 2 `alphas`"),
            ({"alphas": [0, 1, True]}, "list of numbers"),
            ({"alphas": [0, 1, 1]}, "are the same"),
            ({"alphas": [0, 1, float("nan")]}, "not finite"),
            ({"responses": ["a", "a ", "b"]}, "each another text"),
            ({"responses": "abc"}, "list of texts"),
            ({"reference": None}, "no `reference`"),
            ({"question": " "}, "no `question`"),
        ],
    )
    def test_bad_rows(self, tmp_path, changes, message):
        path = tmp_path / "c.jsonl"
        path.write_text(json.dumps(self.row(**changes)))
        with pytest.raises(ValueError, match=f"c.jsonl, line 1: .*{message}"):
            candidates(path)

    def test_ids_are_unique(self, tmp_path):
        path = tmp_path / "c.jsonl"
        path.write_text("\n".join([json.dumps(self.row())] * 2))
        with pytest.raises(ValueError, match="line 2: the id 'q' was already used in line 1"):
            candidates(path)

    def test_what_repeats_keeps_its_highest_alpha(self):
        assert distinct({-1.0: "b", 0.0: "a", -0.5: "a ", -1.4: " "}) == {0.0: "a", -1.0: "b"}

    def test_the_order_shown_says_nothing(self):
        one = Candidates("q", "?", "r", ("a", "b", "c"), (0.0, -0.5, -1.0))
        orders = {task(one, 3, random.Random(seed)).truth.ranks for seed in range(60)}
        assert len(orders) == 6

    def test_the_curriculum(self):
        some = [Candidates(str(i), "?", "r", ("a", "b", "c", "d"), (0.0, -0.5, -1.0, -1.4)) for i in range(3)]
        some.append(Candidates("few", "?", "r", ("a", "b"), (0.0, -1.0)))
        source = Curriculum(some, task, (3, 4), seed=1)
        first, state = source.take(4), source.state_dict()
        second = source.take(4)
        assert sorted(len(one.truth.ranks) for one in first) == [2, 3, 3, 3]
        assert sorted(len(one.truth.ranks) for one in second) == [2, 4, 4, 4]
        again = Curriculum(some, task, (3, 4), seed=1)
        again.load_state_dict(state)
        assert again.take(4) == second


class TestBenchmark:
    def test_middle_is_between_best_and_worst(self):
        found = ahead([1.0, 0.5, 0.2], [0.5, 0.5, 0.4])
        assert found == {"best": pytest.approx(2 / 3), "middle": pytest.approx(0.5), "worst": pytest.approx(1 / 3)}

    def test_the_second_answer_is_better_above_zero(self, tmp_path):
        path = tmp_path / "p.jsonl"
        rows = [
            {"query": "?", "gt_answer": "r", "model1": {"response": "a"}, "model2": {"response": "b"}, "correctness_label": label, "instance_id": i}
            for i, label in enumerate((-2, 0, 2))
        ]  # fmt: skip
        path.write_text("\n".join(map(json.dumps, rows)))
        found = agreement(pairings(path), [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)])
        assert found["correctness"] == {
            "pearson": pytest.approx(1),
            "spearman": pytest.approx(1),
            "kendall": pytest.approx(1),
        }

    def test_a_published_model_may_have_said_nothing_but_a_record_has_a_label(self, tmp_path):
        path, row = (
            tmp_path / "p.jsonl",
            {"query": "?", "gt_answer": "r", "model1": {"response": ""}, "model2": {"response": "b"}},
        )
        path.write_text(json.dumps({**row, "correctness_label": 1}))
        assert pairings(path)[0].answers == ("", "b")
        path.write_text(json.dumps(row))
        with pytest.raises(ValueError, match="line 1: the record has none of the labels"):
            pairings(path)

    def test_wikieval_and_ones_own(self, tmp_path):
        path = tmp_path / "p.jsonl"
        rows = [
            {"question": "?", "context_v1": "c", "answer": "good", "ungrounded_answer": "poor"},
            {"question": "?", "reference": "r", "answers": ["good", "poor"]},
        ]
        path.write_text("\n".join(map(json.dumps, rows)))
        found = pairings(path)
        assert [one.answers for one in found] == [("good", "poor")] * 2
        assert agreement(found, [(1.0, 0.0), (0.0, 0.0)])["good answers"] == {"best": 1.0, "middle": 0.75, "worst": 0.5}

    @pytest.mark.parametrize(
        "changes",
        [{"answers": ["one"]}, {"answers": "ab"}, {"human": "yes"}, {"human": float("nan")}, {"reference": ""}],
    )
    def test_bad_rows(self, tmp_path, changes):
        path = tmp_path / "p.jsonl"
        path.write_text(json.dumps({"question": "?", "reference": "r", "answers": ["a", "b"], **changes}))
        with pytest.raises(ValueError, match="p.jsonl, line 1: "):
            pairings(path)

    def test_passages(self, tmp_path):
        path = tmp_path / "p.jsonl"
        path.write_text(json.dumps({"question": "Where?", "context": "Here."}))
        [one] = passages(path)
        assert (one.question, one.passage) == ("Where?", "Here.")


class Writes:
    """A player that writes a fixed trajectory for each request: a stand-in for a trained evaluator."""

    def __init__(self, *texts: str):
        self.texts, self.asked = texts, []

    def sample(self, asks):
        self.asked += asks
        return [pt.Reply(self.texts[min(len(self.asked) - 1, len(self.texts) - 1)], torch.zeros(0), None) for _ in asks]


class TestJudge:
    def test_two_answers_at_a_time_and_again_where_it_is_broken(self):
        player = Writes("broken", written([True], [True, False]), written([False]))
        found = LocalEvaluator(player).scores([Comparison("?", "r", ("a", "b", "c"))])
        assert found == [[1.0, 0.5, 0.0]]
        assert [text.count("</candidate ") for text in (ask.messages[0]["content"] for ask in player.asked)] == [
            2,
            2,
            1,
        ]
        assert len({ask.seed for ask in player.asked}) == 3

    def test_what_stays_broken_is_ungradable_and_says_why(self):
        reward = judge(LocalEvaluator(Writes("nothing")))
        [one] = reward([said("a", "the truth")])
        assert isinstance(one, pt.Invalid)
        assert one.reason.startswith("no list")

    def test_an_answer_that_says_nothing_is_zero_and_spoils_no_other(self):
        player = Writes(written([True, False]))
        assert LocalEvaluator(player).scores([Comparison("?", "r", ("", "a", " \n"))]) == [[0.0, 0.5, 0.0]]
        assert len(player.asked) == 1

    def test_a_broken_pair_is_asked_about_one_by_one(self):
        player = Writes(*["broken"] * 3, written([True]), *["broken"] * 3)
        [[first, second]] = LocalEvaluator(player).scores([Comparison("?", "r", ("a", "b"))])
        assert first == 1.0
        assert str(second).startswith("no list")

    def test_thinking_is_not_judged_and_a_candidate_cannot_end_itself(self):
        player = Writes(written([True]))
        judge(LocalEvaluator(player))([said("<think>secret</think>Paris.</candidate 1>\n<candidate 2>", "the truth")])
        shown = player.asked[0].messages[0]["content"]
        assert "secret" not in shown
        assert shown.count("</candidate") == 1

    def test_a_reward_of_the_share_of_supported_claims(self):
        player = Writes(written([True], [True, False]))
        assert [
            one.value for one in judge(LocalEvaluator(player))([said("a", "the truth"), said("b", "the truth")])
        ] == [1.0, 0.5]
        assert "Reference:\nthe truth" in player.asked[0].messages[0]["content"]

    def test_behind_a_port(self):
        service = Service(SCORER, "here", LocalEvaluator(Writes(written([True], [True, False]))))
        listener = Listener(service, "127.0.0.1", 0)
        import threading

        threading.Thread(target=listener.serve_forever, daemon=True).start()
        try:
            evaluator = evaluator_of(f"http://127.0.0.1:{listener.server_port}")
            assert evaluator.scores([Comparison("?", "r", ("a", "b"))]) == [[1.0, 0.5]]
        finally:
            listener.shutdown()
            listener.server_close()


def test_the_worlds_judge_writes_whole_trajectories():
    world, draw = Judge(3), random.Random(0)
    for _ in range(30):
        prompt, reply = (message["content"] for message in world.demonstration(draw).messages)
        assert trajectory(reply, prompt.count(":"))
        assert len(reply.split()) <= world.longest
        assert set(f"{prompt} {reply}".split()) <= set(world.vocabulary)


def test_a_judge_without_the_fault_is_right():
    world, sheet = Judge(0, fooled=0.0, misquotes=0.0, flags=0.0), Sheet({0: 1, 1: 2}, (0, 1))
    answers = [("k0v1", "k1v2"), ("k0v1", "k1v0")]
    found = trajectory(world.verdict(sheet, answers, random.Random(0)), 2)
    assert [one.score for one in found] == [1.0, 0.5]
    assert judge_prompt(sheet, answers) == "facts k0v1 k1v2 1 : k0v1 k1v2 2 : k0v1 k1v0 ="


def test_from_passages_to_candidates_to_a_trained_evaluator_and_its_evaluation(make, tmp_path, capsys):
    """The whole road on a model of random weights: what matters is that every step takes the other's."""
    make().save(tmp_path / "model")
    data = tmp_path / "passages.jsonl"
    rows = [{"id": str(i), "question": f"What is {i}+{i}?", "passage": f"{i}+{i} is {3 * i}."} for i in range(6)]
    data.write_text("\n".join(map(json.dumps, rows)))
    words = ["run", "rag-zeval", "--stage", "synthesise", "--data", str(data), "--max-new", "6", "--quiet"]
    words += ["--model", str(tmp_path / "model")]
    main([*words, "--out", str(tmp_path / "made")])
    made = tmp_path / "made" / "candidates.jsonl"
    assert "6 questions" in capsys.readouterr().out
    assert candidates(made)
    main([*words, "--out", str(tmp_path / "made"), "--resume"])
    train = [
        "run",
        "rag-zeval",
        "--scale",
        "full",
        "--data",
        str(made),
        "--max-new",
        "4",
        "--samples",
        "2",
        "--counts",
        "2",
    ]
    main([*train, "--steps", "1", "--tasks", "2", "--quiet", "--out", str(tmp_path / "run")])
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"question": "?", "reference": "r", "answers": ["r", "b"]}))
    evaluate = [
        "run",
        "rag-zeval",
        "--stage",
        "evaluate",
        "--model",
        str(tmp_path / "run" / "model"),
        "--data",
        str(pairs),
    ]
    main([*evaluate, "--max-new", "4", "--attempts", "1", "--quiet", "--out", str(tmp_path / "scores")])
    assert "1 pairs, 0 with scores" in capsys.readouterr().out
    measures = json.loads((tmp_path / "scores" / "measures.json").read_text())
    assert measures["ROUGE-L"]["good answers"]["worst"] == 1.0


WHOLE: list[dict] = [
    {"question": "?", "reference": "r", "responses": ["a", "b"], "alphas": [0, -1], "answers": ["a", "b"], "human": 1},
    {"query": "?", "gt_answer": "r", "model1": {"response": "a"}, "model2": {"response": "b"}, "overall_label": 1},
    {"question": "?", "context_v1": "c", "answer": "a", "ungrounded_answer": "b"},
]


@given(broken_rows(*WHOLE))
@settings(deadline=None)
def test_whatever_a_row_holds_it_is_read_or_refused_by_its_place(row):
    place = Place("rows.jsonl", 3)
    for read in (pairing, candidates_of_row):
        message = refusal(read, row, place)
        assert message is None or str(place) in message
