"""RAMSemCom: what links are charged, what receivers hold, and that the scheduler learns to fetch what is needed."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import posttrain as pt
from posttrain.lab.world.patches import SHAPES, Patches, Receiver
from posttrain.policy.decision import shown_in
from posttrain.systems.ramsemcom import lab, recipe, scheduler
from posttrain.systems.ramsemcom.element import Element, Question, Scene
from posttrain.systems.ramsemcom.exchange import OPTIONS, Rules, exchange
from posttrain.systems.ramsemcom.link import UNKNOWN, Account, Cache, Link, Radio
from posttrain.systems.ramsemcom.reward import Prices, reward
from posttrain.systems.ramsemcom.rules import RULES, Scheduler
from posttrain.systems.ramsemcom.scenes import TextAlone, scenes

CERTAIN = Radio(margin=1e-12, bandwidth=1e24)  # no block is lost, whatever it fades


def element(key: str, bits: int = 100) -> Element:
    return Element(key, {"type": "text", "text": key}, bits)


def scene(words=("a", "b", "c", "d"), answers=("a",), decibels=10.0) -> Scene:
    """Element i is like question i, and a little like its neighbours."""
    size = len(words)
    index = torch.eye(size) + 0.1 * torch.eye(size).roll(1, 1)
    index = index / index.norm(dim=1, keepdim=True)
    asked = tuple(Question(f"where is {one} ?", one, torch.eye(size)[words.index(one)]) for one in answers)
    return Scene(tuple(map(element, words)), index, asked, decibels)


class Reader:
    """A receiver that answers with the word it is asked for, if it has been shown it."""

    def sample(self, asks):
        out = []
        for ask in asks:
            *shown, question = ask.messages[-1]["content"].split("\n")
            wanted = question.split()[-2]
            said = wanted if wanted in shown else UNKNOWN
            out.append(pt.Reply(said, torch.zeros(1), None))
        return out


class Scripted:
    """A scheduler that makes these choices, turn after turn."""

    def __init__(self, *turns):
        self.turns, self.asked = list(turns), []

    def sample(self, asks):
        self.asked += [shown_in(ask.messages) for ask in asks]
        return [pt.Reply(self.turns.pop(0), torch.zeros(1), None) for _ in asks]


EIGHT = Rules(budget=8)


def play(scenes_, *turns, radio=CERTAIN, rules=EIGHT):
    player = Scripted(*turns)
    task = pt.Task("t", (), tuple(scenes_))
    [group] = pt.rollout(exchange(radio, rules), [task], {"policy": player, "receiver": Reader()}, 1)
    return group[0], player


def test_an_element_is_fetched_and_the_receiver_answers():
    one, player = play([scene()], (1,), (0,))
    assert one.facts.answers == ("a",)
    [account] = one.facts.links
    assert (account.elements, account.rounds, account.right, account.wrong) == (1, 1, 1, 0)
    assert account.bits == 512 + 100
    assert [seen["state"][1] for seen in player.asked] == [0.0, 1.0], "the receiver is sure once it has the element"
    assert [seen["budget"] for seen in player.asked] == [8, 7]


def test_what_is_held_answers_the_next_question_and_is_not_fetched_again():
    one, player = play([scene(answers=("a", "d"))], (2,), (0,), (0,))  # a and what is most like it, d
    assert one.facts.answers == ("a", "d")
    assert one.facts.links[0].elements == 2
    assert len(player.asked) == 3


def test_a_link_that_has_answered_has_one_option():
    one, player = play([scene(), scene(answers=("c",))], (0, 1), (0, 0))
    assert one.facts.answers == (UNKNOWN, "c")
    assert player.asked[1]["open"] == [[1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert player.asked[1]["state"][:9] == [0.0] * 9


def test_questions_that_are_open_when_the_rounds_are_over_count_with_the_last_turn():
    one, _ = play([scene(words=tuple("abcdefgh"), answers=("a", "h"))], *[(1,)] * 4, rules=Rules(8, rounds=2))
    assert one.facts.questions == 2
    assert [turn.right + turn.wrong for turn in one.facts.turns] == [0, 0, 0, 2]


def test_the_return_is_answers_less_elements_and_seconds():
    radio = Radio(margin=1e-12, bandwidth=1e24, round_s=0.5)
    one, _ = play([scene(), scene(answers=("d",))], (2, 0), (0, 0), radio=radio)
    [score] = reward(Prices(element_price=0.1, second_price=0.2, answer_worth=2.0))([one])
    # two elements for the one, which is right, and nothing for the other, which is wrong; half of it a question
    first, second = (-0.1 * 2 - 0.2 * 0.5 - 2) / 2, 2 / 2
    assert score.turns == pytest.approx((first, second), abs=1e-6)
    assert score.value == pytest.approx(first + second, abs=1e-6)
    assert score.parts["success"] == 0.5
    assert score.parts["elements"] == 1


def test_lost_blocks_are_sent_again_and_charged():
    """P(lost) = 1 - exp(-margin): with 4 attempts, 1 + p + p^2 + p^3 of them in the mean."""
    radio, margin = Radio(margin=0.5), 0.5
    link = Link(scene(), radio, seed=1)
    arrived = [link.send(1000) for _ in range(4000)]
    p = 1 - math.exp(-margin)
    assert sum(arrived) / 4000 == pytest.approx(1 - p**4, abs=0.01)
    assert link.account.bits / 1000 / 4000 == pytest.approx(1 + p + p**2 + p**3, rel=0.03)
    assert link.account.bits - 1000 * link.account.retransmissions == 4_000_000
    assert link.account.seconds == pytest.approx(link.account.bits / link.rate)
    assert link.rate == pytest.approx(2e4 * math.log2(1 + 0.5 * 10))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 60)), max_size=30), st.integers(10, 100))
@settings(max_examples=100, deadline=None)
def test_a_cache_never_holds_more_than_it_may_and_forgets_the_oldest(added, most):
    cache, recent = Cache(most), []
    for key, bits in added:
        cache.add(element(str(key), bits))
        if bits <= most:
            recent = [one for one in recent if one[0] != str(key)] + [(str(key), bits)]
        while sum(size for _, size in recent) > most:
            recent.pop(0)
        assert list(cache.held) == [name for name, _ in recent]


@pytest.mark.parametrize("name", RULES)
def test_rules_play_within_the_budget(name):
    tasks = [pt.Task(f"t{i}", (), (scene(), scene(answers=("d", "b")))) for i in range(4)]
    env = exchange(Radio(), Rules(budget=5))
    found = pt.evaluate({"policy": Scheduler(RULES[name]), "receiver": Reader()}, tasks, reward(Prices()), env)
    for one in found.rollouts:
        assert sum(account.elements for account in one.facts.links) <= 5
        assert one.facts.questions == 3


def test_rules_do_what_their_names_say():
    def fetched(name):
        task = pt.Task("t", (), (scene(answers=("c",)),))
        players = {"policy": Scheduler(RULES[name]), "receiver": Reader()}
        [[one]] = pt.rollout(exchange(CERTAIN, Rules()), [task], players, 1)
        return one.facts.links[0]

    assert fetched("summary only") == Account(wrong=1)
    assert (fetched("top 2").elements, fetched("top 2").rounds) == (2, 1)
    assert (fetched("one by one").elements, fetched("one by one").right) == (1, 1)


@pytest.fixture(scope="module")
def world():
    return Patches(7)


def test_the_receiver_says_colours_and_how_sure_it_is(world):
    receiver, [found] = Receiver(world.eyes), world.scenes(1, "look")
    question = {"type": "text", "text": f"Question: which colour has the {found.shapes[0]} ?"}
    shown = [{"type": "image", "image": patch} for patch in found.patches]
    blind, seeing = receiver.sample([pt.core.Ask((pt.user([question]),)), pt.core.Ask((pt.user([*shown, question]),))])
    assert blind.logp.exp().item() == pytest.approx(0.25)
    assert seeing.content == found.colours[0]
    assert seeing.logp.exp().item() > 0.8


def test_scenes_are_the_same_for_a_seed_and_hold_each_shape_once(world):
    first, again = world.scenes(5, "x"), world.scenes(5, "x")
    assert all(torch.equal(a.patches, b.patches) for a, b in zip(first, again, strict=True))
    assert all(len(set(one.shapes)) == 5 <= len(SHAPES) for one in first)
    assert not torch.equal(world.scenes(5, "y")[0].patches, first[0].patches)


def test_the_scheduler_passes_the_checks_of_a_policy(world):
    tasks = lab.tasks(world, 2, "check")
    env, receiver = exchange(Radio(), Rules(budget=6)), Receiver(world.eyes)

    def with_receiver(task):
        """The environment, its receiver played here: the checks know the policy alone."""
        episode = env(task)
        asks = next(episode)
        while True:
            try:
                replies = receiver.sample(asks) if asks[0].who == "receiver" else (yield asks)
                asks = episode.send(replies)
            except StopIteration as over:
                return over.value

    policy = scheduler(3)
    with torch.no_grad():
        policy.model.head.weight.normal_()
    pt.check_policy(policy, tasks, with_receiver, tolerance=1e-5)


@pytest.mark.slow
def test_it_learns_to_fetch(world):
    """Two links: from choices at random to more than half of what is to be had."""
    policy, receiver = lab.new_scheduler(3, 2), {"receiver": Receiver(world.eyes)}
    made = recipe(policy, exchange(Radio(), Rules(budget=12)), receiver, Prices(), samples=4)
    history = pt.train_in_memory(policy, lab.tasks(world, 64, "learn", 2), made, steps=12, per_step=16, lr=5e-3, seed=3)
    first, last = (sum(step["reward"] for step in part) / 3 for part in (history[:3], history[-3:]))
    assert first < 0.5
    assert last > first + 0.4


class Letters:
    """An encoder of texts by their first letters."""

    def texts(self, texts):
        return torch.stack([torch.eye(26)[(ord(text[0].lower()) - 97) % 26] for text in texts])

    def pictures(self, paths):
        raise ValueError("no pictures")


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_scenes_are_read(tmp_path):
    rows = (
        {"elements": ["apple", {"text": "bird"}], "question": "b?", "answer": "bird", "snr": 3, "summary": "things"},
        {"elements": ["cat"], "questions": [{"question": "c?", "answer": "cat"}, {"question": "d?", "answer": 4}]},
    )
    first, second = scenes(written(tmp_path / "s.jsonl", *rows), Letters(), decibels=(0, 5), seed=1)
    assert [one.key for one in first.elements] == ["1-0", "1-1"]
    assert first.elements[1].bits == 32
    assert first.nearest(first.questions[0].query, 1, frozenset())[0].part["text"] == "bird"
    assert (first.decibels, first.summary[0]["text"]) == (3.0, "things")
    assert [one.answer for one in second.questions] == ["cat", "4"]
    assert 0 <= second.decibels <= 5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a", "answer": "b"}, "there are no `elements`"),
        ({"elements": [3], "question": "a", "answer": "b"}, "the element '3' is neither a text nor"),
        ({"elements": [{"image": "none.png"}], "question": "a", "answer": "b"}, "there is no picture"),
        ({"elements": ["a"], "question": "a"}, "a question needs `question` and `answer`"),
        ({"elements": ["a"], "questions": []}, "`questions` is no list"),
        ({"elements": ["a"], "question": "a", "answer": "b", "snr": "high"}, "`snr` is 'high'"),
        ({"elements": ["a"], "question": "a", "answer": "b", "summary": 3}, "`summary` is no text"),
    ],
)
def test_a_row_that_is_wrong_is_refused_by_its_place(tmp_path, row, message):
    file = written(tmp_path / "s.jsonl", {"elements": ["a"], "question": "a", "answer": "b"}, row)
    with pytest.raises(ValueError, match=rf"s\.jsonl, line 2.*{message}"):
        scenes(file, Letters(), decibels=(0, 5), seed=1)


def test_a_text_encoder_says_that_it_sees_no_pictures(tmp_path):
    encoder = TextAlone(str(pt.tiny.tiny_checkpoint()))
    assert encoder.texts(["1 + 1", "2"]).norm(dim=1).tolist() == pytest.approx([1, 1])
    with pytest.raises(ValueError, match="reads text alone, and a.png is a picture"):
        encoder.pictures(["a.png"])


def test_options_are_powers_that_the_budget_bounds():
    assert OPTIONS[0] == 0
    assert list(OPTIONS) == sorted(OPTIONS)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Rules(budget=0), "`budget=0`: it must be at least 1"),
        (lambda: Rules(rounds=0), "`rounds=0`"),
        (lambda: Radio(bandwidth=0), "`bandwidth=0`: it must be above 0"),
        (lambda: Radio(margin=-1), "`margin=-1`"),
        (lambda: Radio(attempts=0), "`attempts=0`"),
        (lambda: Radio(round_s=-1), "`round_s=-1`"),
    ],
)
def test_numbers_that_no_radio_has_are_refused(made, message):
    with pytest.raises(ValueError, match=message):
        made()


def test_a_file_that_is_no_picture_is_refused_by_its_place(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    row = {"elements": [{"image": "a.png"}], "question": "a", "answer": "b"}
    with pytest.raises(ValueError, match="line 1.*cannot be read"):
        scenes(written(tmp_path / "s.jsonl", row), Letters(), decibels=(0, 5), seed=1)
