"""ToMAP: the simulated persuadee, the dialogue by hand, rewards, the predictor, counterclaims, and its stages."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import statistics
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from conftest import Canned
from hypothesis import given
from hypothesis import strategies as st

import posttrain as pt
from posttrain import tiny
from posttrain.cli import main
from posttrain.core import EpisodeFailed, Failure, Invalid
from posttrain.evaluation import evaluate
from posttrain.lab.world.persuasion import Bob, Mind, Persuasion
from posttrain.lab.world.words import Size, train_base
from posttrain.policy.text import Sampling, TextPolicy
from posttrain.run.lines import Lines
from posttrain.systems.tomap import lab, stages
from posttrain.systems.tomap.counterclaims import Counterclaim, Topic, items, propose_counterclaims, record, topics
from posttrain.systems.tomap.dialogue import (
    SHOWN,
    Dialogue,
    Limit,
    agreement,
    argument,
    dialogue,
    level,
    stance,
    tasks_of,
    well_formed,
)
from posttrain.systems.tomap.predictor import (
    Encoder,
    Example,
    Guessing,
    Hashed,
    Predictor,
    Served,
    embedder,
    examples,
    load_predictor,
    logged,
    majority,
    split_by_dialogue,
)
from posttrain.systems.tomap.reward import (
    Weights,
    change,
    overlong,
    persuasion,
    repeated,
    reward,
    style,
    tagged,
    validation,
)
from posttrain.systems.tomap.stages import TalkOptions
from posttrain.systems.tomap.wording import ATTITUDES, English

TOPIC = Topic("t", "Q is so", "Q is not so", (Counterclaim("C one", "not C one"), Counterclaim("C two", "not C two")))
GOOD = "<thought>secret plan</thought><argument>Look at {}.</argument>"


def reply(content) -> pt.Reply:
    return pt.Reply(content, torch.zeros(1), None)


# ---- what is said, and what it means


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("<attitude>Agree</attitude>", 4),
        ("<attitude> partly agree </attitude>", 3),
        ("I see.\n<attitude>Neutral</attitude>", 2),
        ("<attitude>Partly-Disagree</attitude>", 1),
        ("<thought>I could Partly Agree</thought><attitude>Disagree</attitude>", 0),
        ("<attitude>Agree</attitude> or rather <attitude>Disagree</attitude>", 0),
        ("<thought>Partly Agree</thought> Agree", None),
        ("<attitude>Mostly agree</attitude>", None),
        ("<attitude>**Partly Agree**.</attitude>", 3),
        ('<attitude>"Neutral"', 2),
        ("<attitude>Agree</attitude><attitude>whatever</attitude>", None),
        ("", None),
    ],
)
def test_the_last_attitude_counts_and_nothing_before_it(said, wanted):
    """Trap: the release searches the whole reply, and takes what it cannot read for Disagree."""
    assert level(reply(said)) == wanted


def test_stance_and_agreement_by_hand():
    assert [stance(4, 0), stance(0, 4), stance(2, 2), stance(3, 2)] == [1.0, 0.0, 0.5, 0.625]
    assert agreement(statement=4, negation=0) == 8
    assert agreement(statement=0, negation=4) == 0
    assert agreement(statement=3, negation=2) == 5


@pytest.mark.parametrize(
    ("text", "formed", "tags", "heard"),
    [
        ("<thought>a</thought><argument>b</argument>", 1, 1.0, "b"),
        (" <thought>a\nc</thought>\n<argument> b </argument> ", 1, 1.0, "b"),
        ("<thought>a</thought><argument>b</argument> and more", 0, 1.0, "b"),
        ("<argument>b</argument><thought>a</thought>", 0, 1.0, "b"),
        ("<thought>a<argument>b</argument>", 0, 0.75, "b"),
        ("<thought>a</thought><argument>b", 0, 0.75, ""),
        ("<thought>a</thought><argument>b</argument><argument>c</argument>", 0, 0.5, "c"),
        ("b", 0, 0.0, ""),
    ],
)
def test_form_tags_and_what_the_other_hears(text, formed, tags, heard):
    assert well_formed(text) == bool(formed)
    assert tagged(text) == tags
    assert argument(text) == heard


def test_a_long_argument_is_cut_and_its_length_is_kept():
    assert Limit(3)("a b c d") == ("a b c", 4)
    assert Limit(4)("a  b c d") == ("a  b c d", 4), "what fits stays as it was"


# ---- the reward


def test_the_change_of_mind_by_hand():
    assert change(0.5, 0.75) == 0.5
    assert change(0.5, 0.25) == -0.5
    assert change(0.75, 0.375) == -0.5
    assert change(0.5, 0.5) == 0.0
    assert change(0.9995, 1.0) == 1.0
    assert change(1.0, 1.0) == 0.0
    assert change(0.0005, 0.0) == 0.0
    assert change(0.0, 0.125) == 0.125
    assert change(1.0, 0.0) == -1.0


def test_a_loss_to_a_power_is_a_real_number():
    """Trap: (-0.5) ** 0.5 is complex in the release."""
    assert change(0.5, 0.25, power=0.5) == -math.sqrt(0.5)
    assert change(0.5, 0.75, power=2) == 0.25


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.2, 4))
def test_a_change_is_bounded_and_has_the_sign_of_the_movement(old, new, power):
    found = change(old, new, power)
    assert isinstance(found, float)
    assert -1 <= found <= 1
    assert found * (new - old) >= 0


def test_persuasion_of_turns_and_of_the_whole_dialogue():
    stances = (0.5, 0.75, 0.375)
    assert persuasion(stances) == [0.5, -0.5]
    assert persuasion(stances, Weights(keep_negative=False)) == [0.5, 0.0]
    assert persuasion(stances, Weights(final=0.5)) == [0.25 - 0.125, -0.25 - 0.125]


def test_repetition_and_length_by_hand():
    words = "a b c d e f g h i j"  # three 8-grams
    assert repeated(words, []) == 0.0
    assert repeated(words, ["x " + " ".join(words.split()[:9])]) == pytest.approx(2 / 3)
    assert repeated("a b a b a b", [], width=2) == pytest.approx(3 / 5)
    assert repeated("A B c", ["a b"], width=2) == 0.5
    assert repeated("too short", ["too short"]) == 0.0
    assert [overlong(n) for n in (0, 200, 250, 300, 1000)] == [0.0, 0.0, -0.5, -1.0, -1.0]
    again = GOOD.format("a b c d e f g h")
    assert style(again, [argument(again)], 10) == {
        "tag": 1.0,
        "format": 1.0,
        "repetition": pytest.approx(-0.9),
        "overlength": 0.0,
    }


def played(texts, stances, lengths=None) -> pt.Rollout:
    turns = [pt.Turn(pt.Ask(()), reply(text)) for text in texts]
    facts = Dialogue((), tuple(stances), tuple(lengths or [3] * len(texts)), (), (), 0)
    return pt.Rollout(pt.Task("t", (), TOPIC), turns, facts)


def test_every_turn_is_paid_by_itself():
    one = played([GOOD.format("facts"), "<argument>no</argument>"], (0.5, 0.75, 0.375), [3, 250])
    [score] = reward()([one])
    assert score.turns == pytest.approx([0.5 + 0.1 * (1 + 1), -0.5 + 0.1 * (0.5 + 0 + 0 - 0.5)])
    assert score.value == pytest.approx(statistics.fmean(score.turns))
    assert score.parts["shift"] == pytest.approx(-12.5)
    [raw] = validation()([one])
    assert raw.value == pytest.approx(-12.5), "validation reports the raw difference"
    assert raw.parts["relative"] == pytest.approx(score.value), "and what training sees beside it"


# ---- the dialogue, by hand


class Stage:
    """Both players by hand: what was asked, batch by batch."""

    def __init__(self, says=GOOD, attitudes="Neutral", answers="<thought>hm</thought><argument>I see {}</argument>"):
        self.says, self.attitudes, self.answers = says, attitudes, answers
        self.batches: list[list[pt.Ask]] = []
        self.turn = 0

    def answer(self, ask):
        text = ask.messages[0]["content"]
        if ask.who == "predictor":
            return 4 if text.startswith("C") else 1
        if ask.who == "policy":
            self.turn += 1
            return self.says.format(f"fact {self.turn}")
        if "<attitude>" in text:
            return self.attitudes(ask) if callable(self.attitudes) else f"<attitude>{self.attitudes}</attitude>"
        return self.answers.format(self.turn)

    def play(self, env, topic=TOPIC):
        episode = env(pt.Task("t", (), topic))
        asks = next(episode)
        while True:
            self.batches.append(asks)
            try:
                asks = episode.send([reply(self.answer(ask)) for ask in asks])
            except StopIteration as stop:
                return stop.value

    def asked(self, who):
        return [ask for batch in self.batches for ask in batch if ask.who == who]

    def prompts(self):
        return [ask.messages[0]["content"] for ask in self.asked("policy")]

    def answers_asked(self):
        return [a for a in self.asked("persuadee") if "<attitude>" not in a.messages[0]["content"]]


def test_three_turns_with_private_thoughts():
    stage = Stage()
    facts = stage.play(dialogue(English(), SHOWN["lite"]))
    assert len(facts.lines) == 8
    assert facts.lines[2:4] == ("Look at fact 1.", "I see 1")
    assert facts.stances == (0.5,) * 4
    assert facts.shift == 0.0
    assert facts.lengths == (4, 4, 4)
    seen = "".join(str(ask.messages) for batch in stage.batches for ask in batch)
    assert "secret plan" not in seen
    assert ">hm<" not in seen
    first, second, third = stage.prompts()
    assert "Look at fact 1." in second
    assert "Look at" not in first
    assert "I see 2" in third
    assert [len(batch) for batch in stage.batches] == [2, 1, 1, 2, 1, 1, 2, 1, 1, 2], "Q and not Q are asked at once"
    statements = [a.messages[0]["content"] for a in stage.batches[0]]
    assert 'statement "Q is so"' in statements[0]
    assert 'statement "Q is not so"' in statements[1]
    assert all(ask.temperature == 0.0 for ask in stage.batches[0])


def test_no_argument_is_said_so_and_long_ones_are_cut():
    stage = Stage(says="nothing of the form", answers="nor this")
    facts = stage.play(dialogue(English(), turns=1))
    assert facts.lines[2:] == (English().silence,) * 2
    assert facts.lengths == (0,)
    stage = Stage(says="<argument>one two three four</argument>", answers="<argument>five six seven</argument>")
    facts = stage.play(dialogue(English(), turns=1, limit=Limit(2)))
    assert facts.lines[2:] == ("one two", "five six")
    assert facts.lengths == (4,)


def test_what_each_setting_shows():
    shown = {}
    for setting in SHOWN:
        stage = Stage(attitudes="Agree")
        facts = stage.play(dialogue(English(), SHOWN[setting], turns=2))
        shown[setting] = (*stage.prompts(), facts.agreement, len(stage.asked("predictor")))
    first, second, known, asked = shown["rl"]
    assert "C one" not in first + second
    assert (known, asked) == (((), ()), 0)
    first, second, known, asked = shown["lite"]
    assert "- C one\n- C two\n" in first
    assert "agreement" not in first + second
    first, second, known, asked = shown["full"]
    assert first == shown["lite"][0], "not known before anything was said"
    assert "- C one (Bob's agreement on this claim is 7/8)" in second
    assert (known, asked) == (((), (7, 7)), 4)
    first, second, known, asked = shown["white"]
    assert "C one (Bob's agreement on this claim is 4/8)" in first, "an oracle knows from the first turn on"
    assert (known, asked) == (((4, 4), (4, 4)), 0)
    assert shown["black_max"][2] == ((), (8, 8))
    assert "8/8" in shown["black_max"][1]
    assert shown["black_random"][3] == 4


def test_beliefs_are_logged_with_what_was_said_before_them():
    stage = Stage(attitudes="Partly Agree")
    facts = stage.play(dialogue(English(), SHOWN["rl"], turns=1, count=1, probe=True))
    assert facts.beliefs == ((("C one", 3), ("not C one", 3)),) * 2
    assert "C one" not in stage.prompts()[0]
    record = json.loads(json.dumps({"lines": facts.lines, "beliefs": facts.beliefs}))
    found = examples([record], English())
    assert len(found) == 4
    assert found[0].transcript == English().transcript(English().greetings)
    assert found[3] == Example("not C one", English().transcript(facts.lines), 3, 0)


def test_an_attitude_is_asked_for_twice_and_then_the_episode_fails():
    asked: dict[str, int] = {}

    def late(ask):
        text = ask.messages[0]["content"]
        asked[text] = asked.get(text, 0) + 1
        return "<attitude>Agree</attitude>" if asked[text] == 2 or 'is not so"?' not in text else "well, Agree"

    stage = Stage(attitudes=late)
    facts = stage.play(dialogue(English(), turns=1))
    assert facts.retries == 2
    again = [batch for batch in stage.batches if batch[0].temperature == 1.0]
    assert [len(batch) for batch in again] == [1, 1], "only what was unclear, and not at 0: it would say the same"
    with pytest.raises(EpisodeFailed, match="no attitude to 'Q is so', asked twice: 'nonsense'"):
        Stage(attitudes=lambda ask: "nonsense").play(dialogue(English()))


def test_in_validation_the_persuadee_is_cold():
    for cold, wanted in ((False, None), (True, 0.0)):
        stage = Stage()
        topic = Topic("t", "Q", "not Q", TOPIC.counterclaims, cold)
        stage.play(dialogue(English(), turns=1), topic)
        assert stage.answers_asked()[0].temperature == wanted


def test_a_task_shows_the_first_prompt_and_needs_counterclaims():
    [task] = tasks_of([TOPIC], English(), SHOWN["lite"])
    stage = Stage()
    stage.play(dialogue(English(), SHOWN["lite"], turns=1))
    assert stage.asked("policy")[0].messages == task.prompt
    with pytest.raises(ValueError, match="topic 'bare' has no counterclaims: make them with `stage=propose`"):
        tasks_of([Topic("bare", "a", "b")], English(), SHOWN["full"])
    assert tasks_of([Topic("bare", "a", "b")], English(), SHOWN["rl"])


# ---- a persuadee that is not well: a rollout is invalid, and never a zero


class Counsel(BaseHTTPRequestHandler):
    """A chat server that plays Bob. Its mood is the first part of its path."""

    wbufsize = -1  # headers and body in one packet

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.say({"data": [{"id": "bob"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/embeddings"):
            rows = [{"index": i, "embedding": [float(len(text)), 1.0]} for i, text in enumerate(body["input"])]
            return self.say({"data": rows[::-1]})
        text = body["messages"][-1]["content"]
        if "deaf" in self.path or ("moody" in self.path and "Q3" in text):
            return self.say({"error": "cannot"}, 400)
        said = "<thought>hm</thought><argument>I doubt it</argument>"
        if "<attitude>" in text:
            label = ATTITUDES[zlib.crc32(text.encode()) % 5]
            said = "Agree, in a way" if "nonsense" in self.path else f"<attitude>{label}</attitude>"
        return self.say({"choices": [{"message": {"content": said}, "finish_reason": "stop"}]})

    def say(self, body, status=200):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Crowd(ThreadingHTTPServer):
    request_queue_size = 128  # as many ask at once


@pytest.fixture(scope="module")
def counsel():
    server = Crowd(("127.0.0.1", 0), Counsel)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_one_dialogue_that_the_server_fails_is_invalid_and_harms_no_other(counsel):
    tasks = tasks_of([Topic(f"Q{i}", f"Q{i} holds", f"Q{i} fails") for i in range(5)], English(), SHOWN["rl"])
    env = dialogue(English(), SHOWN["rl"], turns=1)
    players = {"policy": Canned(GOOD), "persuadee": pt.server(f"{counsel}/moody/v1")}
    found = evaluate(players, tasks, reward(), env)
    assert [isinstance(scores[0], Invalid) for scores in found.scores] == [False, False, False, True, False]
    assert "refused (status 400)" in found.scores[3][0].reason
    assert isinstance(found.groups[3][0].facts, Failure)
    for mood, reason in (("deaf", "status 400"), ("nonsense", "asked twice: 'Agree, in a way'")):
        players["persuadee"] = pt.server(f"{counsel}/{mood}/v1")
        with pytest.raises(ValueError, match=f"no sample of 5 tasks could be graded.*{reason}"):
            evaluate(players, tasks, reward(), env)


# ---- PPO by turn


def test_gae_does_not_cross_the_border_of_a_turn(make):
    from posttrain.policy.value import Critic, Gae

    env = dialogue(English(), SHOWN["rl"], turns=2)
    [task] = tasks_of([Topic("t", "a", "b")], English(), SHOWN["rl"])
    policy = make(max_new=4)
    policy.model.config.max_position_embeddings = 4096
    [one] = pt.play([task], env, {"policy": policy, "persuadee": Canned("<attitude>Agree</attitude>")})
    first, second = (len(turn.reply.logp) for turn in one.turns)
    score = pt.Score(0.0, turns=(0.25, -1.0))
    split = Gae(Critic(policy), gamma=1.0, lam=1.0, by_turn=True)([one], [score])[0]
    assert split.tolist() == [0.25] * first + [-1.0] * second, "the critic says zero before it has learnt"
    whole = Gae(Critic(policy), gamma=1.0, lam=1.0)([one], [score])[0]
    assert whole.tolist() == [-0.75] * first + [-1.0] * second
    assert len(policy_rows(policy, one)) == 2


def policy_rows(policy, rollout):
    from posttrain.row import rows_of

    return rows_of(policy, rollout, rollout.turns)


# ---- the simulated persuadee

MIND = Mind(claims=(1, 2, 3, 4, 5, 6), weights=(0.4, 0.2, 0.2, 0.1, 0.1, 0.1), levels=(4, 4, 3, 1, 0, 0))


def test_refutations_move_a_mind():
    assert MIND.levels_after(["no c1 r0"]) == (1, 4, 3, 1, 0, 0)
    assert MIND.levels_after(["no c1 r0", "no c1 r1"]) == (0, 4, 3, 1, 0, 0), "less when repeated"
    assert MIND.levels_after(["no c5 r0"]) == MIND.levels, "what he does not believe is wasted"
    assert MIND.levels_after(["no c9 r0"]) == (4, 4, 4, 1, 0, 0), (
        "an irrelevant argument backfires on the heaviest not at 4"
    )
    assert MIND.levels_after(["nothing", "c1 r0", "no c2 no c1"]) == (4, 1, 3, 1, 0, 0), (
        "the first of an argument counts"
    )
    assert MIND.stance(MIND.levels) == pytest.approx(1 - (1.6 + 0.8 + 0.6 + 0.1) / 4)
    assert MIND.stance((0,) * 6) == 1.0


def test_bob_is_a_function_of_what_he_sees():
    world = Persuasion(100)
    bob, number = Bob(world), world.numbers(held_out=True)[0]
    claim = world.claim(number)
    lines = [*world.greetings, "no c1 r0"]
    asks = [pt.Ask(world.persuadee(claim, "", lines), seed=s, temperature=t) for s, t in ((1, None), (1, None), (2, None), (1, 0.0), (2, 0.0))]  # fmt: skip
    a, b, c, cold, still = (one.content for one in bob.sample(asks))
    assert a == b != c
    assert cold == still
    mind = world.minds[number]
    assert str(mind.levels_after(["no c1 r0"])) in a, "his private thought, which nobody else is shown"
    assert re.fullmatch(r"e\d+ e\d+ e\d+ m\d", argument(a))
    held = max(range(6), key=lambda k: mind.levels[k])
    name = f"c{mind.claims[held]}"
    for statement, wanted in ((name, mind.levels[held]), (f"no {name}", 4 - mind.levels[held])):
        [said] = bob.sample([pt.Ask(world.attitude(claim, "", [*world.greetings], statement), temperature=0.0)])
        assert abs(level(said) - wanted) <= 1
    before, after = (bob.attitude(mind, arguments, claim) for arguments in ([], [f"no {name} r0"]))
    assert after > before
    assert bob.attitude(mind, [], f"no {claim}") == pytest.approx(4 - before)


def test_an_argument_with_words_of_the_transcript_is_not_understood():
    world = Persuasion(100)
    number = world.numbers(held_out=True)[0]
    said = [*world.greetings, "no c12 r0 A no c14 r0", "e1 e2 e3 m1", "no c12 | c2"]
    assert world.transcript(said) == "A hi B hi A nothing B e1 e2 e3 m1 A nothing"
    asks = [
        pt.Ask(world.persuadee(world.claim(number), "", said)),
        pt.Ask(world.attitude(world.claim(number), "", said, "c2")),
    ]
    spoken, attitude = Bob(world).sample(asks)
    assert str(world.minds[number].levels) in spoken.content, "nothing was refuted"
    assert level(attitude) is not None


def test_topics_of_tests_are_new_and_bob_disagrees_at_first():
    world = Persuasion(100)
    assert not set(world.numbers(True)) & set(world.numbers(False))
    stances = [mind.stance(mind.levels) for mind in world.minds]
    assert 0.14 < min(stances) <= max(stances) < 0.36
    assert Persuasion(100).minds == world.minds != Persuasion(101).minds


def test_demonstrations_are_of_the_world_s_words_and_mostly_well_formed():
    world, draw = Persuasion(100), random.Random(0)
    shown = [world.demonstration(draw) for _ in range(300)]
    words = {word for one in shown for message in one.messages for word in message["content"].split()}
    assert words <= set(world.vocabulary)
    replies = [one.messages[1]["content"] for one in shown]
    assert max(len(text.split()) for text in replies) < world.longest
    assert 0.8 < statistics.fmean(map(well_formed, replies)) < 0.9


def test_knowing_bob_s_mind_pays():
    """What the habits of Alice are worth, without a model: the truth beats the list, the list beats guessing."""
    world, draw = Persuasion(100), random.Random(1)

    def gained(pick):
        gains = []
        for number in world.numbers(True):
            mind, said = world.minds[number], []
            for _ in range(3):
                said.append(f"no c{pick(mind, said)} r0")
            gains.append(mind.stance(mind.levels_after(said)) - mind.stance(mind.levels))
        return statistics.fmean(gains)

    truth = gained(lambda mind, said: mind.claims[max(range(6), key=lambda k: mind.levels_after(said)[k])])
    listed = gained(lambda mind, said: draw.choice(mind.claims))
    anything = gained(lambda mind, said: draw.randrange(16))
    assert truth > listed + 0.15 > anything + 0.3


# ---- the predictor


def test_a_predictor_learns_saves_and_answers_as_a_player(tmp_path):
    draw = random.Random(0)
    found = []
    for i in range(400):
        said = draw.choice(["ab", "cd"])
        about = draw.choice(["ab", "cd"])
        found.append(Example(about, f"so {said} then", 4 if about == said else 0, i))
    learnt, tested = split_by_dialogue(found, 0.5)
    assert not {one.source for one in learnt} & {one.source for one in tested}
    assert (len(learnt), len(tested)) == (200, 40)
    predictor = Predictor(Hashed(64), (32,), seed=1)
    predictor.learn(learnt, epochs=15, rows=16, lr=5e-3)
    assert predictor.accuracy(tested) == 1.0
    assert majority(tested) < 0.8
    predictor.save(tmp_path / "p", accuracy=1.0)
    again = load_predictor(tmp_path / "p")
    pairs = [(one.statement, one.transcript) for one in tested]
    assert again.levels(pairs) == predictor.levels(pairs)
    asks = [pt.Ask((pt.user(a), pt.user(b)), "predictor") for a, b in pairs]
    assert [one.content for one in again.sample(asks)] == predictor.levels(pairs)
    about = json.loads((tmp_path / "p" / "predictor.json").read_text())
    (tmp_path / "p" / "predictor.json").write_text(json.dumps({**about, "embedder": "hashed:32:1"}))
    with pytest.raises(ValueError, match="learnt on vectors of 64 numbers, but hashed:32:1 gives 32"):
        load_predictor(tmp_path / "p")
    with pytest.raises(ValueError, match="holds no predictor.json"):
        load_predictor(tmp_path)


def test_learning_a_predictor_leaves_the_generators_as_they_were():
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    Predictor(Hashed(8), (4,)).learn([Example("a", "b", 1, 0)] * 4, epochs=1)
    assert torch.rand(1) == wanted


def test_hashed_words_by_hand():
    [one, other, empty] = Hashed(512, 2).embed(["so it is", "It so is", ""])
    assert one.norm() == pytest.approx(1.0)
    assert (one > 0).sum() == 5, "three words and two pairs"
    assert one @ other == pytest.approx(3 / 5)
    assert empty.norm() == 0.0


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, words) -> str:
    """A tiny encoder of BGE-M3's kind, XLM-RoBERTa, in the format of the Hub."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=words.pad_token_id,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
    )
    folder = tmp_path_factory.mktemp("encoder")
    XLMRobertaModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def test_an_encoder_s_first_state_is_the_embedding(encoder, words):
    from transformers import XLMRobertaModel

    embed = Encoder(encoder, device="cpu", rows=2)
    found = embed.embed(["how much is it", "a", "what is 3+4?"])
    model = XLMRobertaModel.from_pretrained(encoder).eval()
    with torch.no_grad():
        plain = model(**words("a", return_tensors="pt", return_token_type_ids=False)).last_hidden_state[0, 0]
    assert torch.allclose(found[1], plain / plain.norm(), atol=1e-5)
    assert torch.allclose(found.norm(dim=-1), torch.ones(3), atol=1e-5)
    long = "one two " * 200
    assert embed.embed([long + "end"]).isfinite().all()
    assert not torch.allclose(embed.embed([long + "end"]), embed.embed([long + "out"])), "the end of a text is kept"


def test_embeddings_of_a_server(counsel):
    served = Served(f"{counsel}/v1", rows=2)
    found = served.embed(["abc", "", "abcd"])
    assert torch.allclose(found, torch.nn.functional.normalize(torch.tensor([[3.0, 1.0], [0.0, 1.0], [4.0, 1.0]])))


def test_a_guessing_predictor_depends_on_the_seed_alone():
    asks = [pt.Ask((pt.user("s"), pt.user("d")), "predictor", seed=seed) for seed in (*range(50), 0)]
    said = [one.content for one in Guessing().sample(asks)]
    assert set(said) == set(range(5))
    assert said[0] == said[-1]


# ---- counterclaims


def test_counterclaims_are_proposed_negated_and_kept(tmp_path):
    def says(ask):
        text = ask.messages[0]["content"]
        if "List 2" in text:
            return "Sure:\n1. It costs too much.\n2) Nobody wants it.\n- It is late.\nThat is all."
        return " It costs little.\n" if "costs" in text else "Nobody wants it."

    [found] = propose_counterclaims(Canned(says), [TOPIC], count=2)
    assert found.counterclaims == (Counterclaim("It costs too much.", "It costs little."),), "one was not negated"
    Lines(tmp_path / "topics.jsonl").replace(map(record, [found, Topic("bare", "ä", "b")]))
    assert topics(tmp_path / "topics.jsonl") == [found, Topic("bare", "ä", "b")]
    assert topics(tmp_path / "topics.jsonl", validation=True)[0].validation
    assert items("* a\n\n 3. b c \n* a") == ["a", "b c"]
    assert items("---\n**1. Cost.** It  costs.\n3.5 million people\n2. 42") == ["Cost. It costs."]
    assert items("1. whole\n2. cut o", cut=True) == ["whole"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"pos": "a"}', "line 1: there is no column 'neg'"),
        ('{"pos": "a", "neg": "a"}', "line 1: 'pos' and 'neg' are the same text"),
        ('{"pos": 3, "neg": "a"}', "line 1: 'pos' must be a text that is not empty, not 3"),
        ('{"pos": "a", "neg": "b", "counterclaims": ["c"]}', "line 1: a counterclaim is an object with 'statement'"),
        ('{"pos": "a", "neg": "b", "counterclaims": "[oh"}', "line 1: 'counterclaims' is no JSON"),
        ('{"pos": "a", "neg": "b", "counterclaims": 3}', "line 1: 'counterclaims' holds int, not a list"),
        ('{"pos": "a", "neg": "b", "id": 1}\n{"pos": "c", "neg": "d", "id": 1}', "line 2: the id '1' was already used"),
    ],
)
def test_bad_topics_name_file_and_line(tmp_path, line, message):
    path = tmp_path / "topics.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=re.escape(f"{path}, {message}")):
        topics(path)


def test_a_pickle_is_never_read(tmp_path):
    path = tmp_path / "trees.pkl"
    path.write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(ValueError, match="the ending '.pkl' is none of"):
        topics(path)


# ---- at full scale, on tiny checkpoints in the real format


@pytest.fixture(scope="module")
def persuader(tmp_path_factory, words) -> str:
    folder = tmp_path_factory.mktemp("persuader")
    TextPolicy(tiny.network(words, 3, hidden=32, layers=2, positions=2048), words).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def arguable(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("topics") / "topics.jsonl"
    found = [Topic(str(i), f"{i} is good", f"{i} is bad", TOPIC.counterclaims) for i in range(4)]
    Lines(path).replace(map(record, found))
    return str(path)


def system(*options, out, model):
    stage = options[options.index("--stage") + 1] if "--stage" in options else "train"
    size = ["--steps", "1", "--tasks", "2"] if stage == "train" else []
    who = [] if stage == "predictor" else ["--model", model, "--max-new", "6"]
    main(["run", "tomap", "--scale", "full", *who, *size, "--out", str(out), "--quiet", *options])


def test_the_stages_one_after_another(persuader, arguable, encoder, counsel, tmp_path, capsys):
    talk = ["--data", arguable, "--persuadee", f"{counsel}/v1", "--turns", "2", "--most", "8"]
    with pytest.raises(SystemExit):  # it has never learned to list anything
        system("--stage", "propose", "--data", arguable, out=tmp_path / "proposed", model=persuader)
    assert "not one counterclaim was proposed for the 4 topics" in " ".join(capsys.readouterr().err.split())
    assert len(topics(tmp_path / "proposed" / "topics.jsonl")) == 4
    system("--stage", "collect", "--dialogues", "6", *talk, out=tmp_path / "logged", model=persuader)
    assert len(logged([tmp_path / "logged"])) == 6
    learn = ["--stage", "predictor", "--logs", str(tmp_path / "logged"), "--encoder", encoder, "--share", "0.8"]
    system(*learn, out=tmp_path / "predictor", model=persuader)
    assert load_predictor(tmp_path / "predictor").width == 16
    full = ["--setting", "full", "--predictor", str(tmp_path / "predictor"), "--minibatch", "2"]
    system(*full, *talk, "--held-out", arguable, "--probe", out=tmp_path / "run", model=persuader)
    [line] = pt.read_metrics(tmp_path / "run")
    assert {"part/persuasion", "part/shift", "part/format", "held_out/reward", "critic_loss", "kl"} <= set(line)
    assert line["turns"] == 2
    facts = [one["facts"] for one in pt.read_rollouts(tmp_path / "run")]
    assert all(len(one["agreement"][1]) == 2 for one in facts)
    assert len(logged([tmp_path / "logged", tmp_path / "run"])) == 8
    more = ["--stage", "evaluate", "--turns", "3", "--setting", "white"]
    system(*talk, *more, out=tmp_path / "judged", model=str(tmp_path / "run" / "model"))
    found = json.loads((tmp_path / "judged" / "evaluation.json").read_text())
    assert found["dialogues"] == 4
    assert -100 <= found["shift"] <= 100
    assert "shift" in capsys.readouterr().out


def test_stages_that_were_stopped_go_on(persuader, arguable, counsel, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stages, "AT_ONCE", 1)
    listed = "1. " + " ".join(["one", "two"] * 4)
    monkeypatch.setattr(
        TextPolicy, "sample", lambda policy, asks: Canned(lambda ask: f"{listed} {ask.seed}").sample(asks)
    )
    talk = ["--data", arguable, "--persuadee", f"{counsel}/v1", "--turns", "1", "--most", "8"]
    propose = ["--stage", "propose", "--data", arguable]
    system(*propose, out=tmp_path / "p", model=persuader)
    file = tmp_path / "p" / "topics.jsonl"
    whole = file.read_text()
    assert len({line.rpartition("counterclaims")[2] for line in whole.splitlines()}) == 4
    file.write_text(whole[: whole.index("\n") + 30])
    with pytest.raises(SystemExit):
        system(*propose, out=tmp_path / "p", model=persuader)
    assert "continue it with --resume" in " ".join(capsys.readouterr().err.split())
    system(*propose, "--resume", out=tmp_path / "p", model=persuader)
    assert file.read_text() == whole
    monkeypatch.undo()

    monkeypatch.setattr(stages, "AT_ONCE", 2)
    collect = ["--stage", "collect", *talk, "--dialogues", "4"]
    system(*collect, out=tmp_path / "c", model=persuader)
    first, second = sorted((tmp_path / "c" / "rollouts").iterdir())
    before, wanted = first.stat().st_mtime_ns, list(pt.read_rollouts(tmp_path / "c"))
    second.unlink()
    system(*collect, "--resume", out=tmp_path / "c", model=persuader)
    assert list(pt.read_rollouts(tmp_path / "c")) == wanted
    assert first.stat().st_mtime_ns == before


def test_bob_may_be_a_checkpoint(persuader, arguable, tmp_path, words):
    bob = TextPolicy(tiny.network(words, 4, hidden=32, layers=2, positions=2048), words, Sampling(40))
    english = English(8)  # a random persuader makes no argument, and this Bob neither
    silent = [*english.greetings, english.silence, english.silence]
    prompts = [
        english.attitude(f"{i} is good", f"{i} is bad", lines, f"{i} is {what}")
        for i, what, lines in itertools.product(range(2), ("good", "bad"), (silent[:2], silent))
    ]
    shown = [
        pt.Demonstration((*one, {"role": "assistant", "content": "<attitude>Agree</attitude>"})) for one in prompts
    ]
    tiny.warm_start(bob, itertools.cycle(shown), 50, 4, 1e-2)
    bob.save(tmp_path / "bob")
    options = ["--data", arguable, "--persuadee", str(tmp_path / "bob"), "--turns", "1", "--setting", "rl"]
    system(*options, "--max-new", "40", "--most", "8", "--limit", "2", out=tmp_path / "run", model=persuader)
    [one, _] = pt.read_rollouts(tmp_path / "run")
    assert one["facts"]["stances"] == [0.5, 0.5]


def test_what_is_missing_or_makes_no_sense_is_named_before_any_work(persuader, arguable, counsel, tmp_path, capsys):
    data, bob = ["--data", arguable], ["--persuadee", f"{counsel}/v1"]
    predict, propose = ["--stage", "predictor"], ["--stage", "propose"]
    bare = tmp_path / "bare.jsonl"
    Lines(bare).replace([record(Topic("1", "a", "b"))])
    for options, message in (
        (data, "--persuadee"),
        (bob, "--data"),
        ([*data, *bob, "--setting", "full"], "give --predictor, made by stage predictor"),
        ([*data, *bob, "--predictor", "x"], "--predictor x is shown in --setting full alone, not in lite"),
        ([*data, *bob, "--turns", "9"], "lower --turns, --most or --max-new"),
        ([*data, *bob, "--turns", "0"], "--turns 0: it must be at least 1"),
        ([*data, *bob, "--count", "0"], "--count 0: it must be at least 1"),
        ([*data, *bob, "--minibatch", "0"], "--minibatch 0: it must be at least 1"),
        ([*data, *bob, "--power", "0"], "--power 0.0: it must be above 0"),
        ([*data, *bob, "--final", "7"], "--final 7.0: a share"),
        ([*data, *bob, "--encoder", "x"], "--encoder"),
        ([*data, *bob, "--stage", "collect", "--probe"], "--probe"),
        ([*data, *propose, "--held-out", "x"], "--held-out"),
        ([*data, *propose, *bob], "--persuadee"),
        (["--data", str(bare), *bob], "no topic has counterclaims; make them with stage propose"),
        ([*data, "--persuadee", "./nowhere"], "--persuadee ./nowhere: there is no such folder"),
        ([*data, "--persuadee", f"{counsel}/v1#alice"], "does not serve 'alice', but bob"),
        (predict, "--logs"),
        ([*predict, "--logs", "x", *data], "--data"),
        ([*predict, "--logs", "x", "--share", "25"], "--share 25.0: between 0 and 1"),
        ([*predict, "--logs", str(tmp_path)], "has no dialogue in which"),
    ):
        with pytest.raises(SystemExit):
            system(*options, out=tmp_path / "run", model=persuader)
        assert message in " ".join(capsys.readouterr().err.split()), options
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["hashed:256", "hashed:a:b", "hashed:0:1"])
def test_a_malformed_embedder_is_named(name):
    with pytest.raises(ValueError, match=f"`encoder={name}`: of the form hashed:WIDTH:LONGEST"):
        embedder(name)
    with pytest.raises(ValueError, match="`model=./nowhere`: there is no such folder"):
        embedder("./nowhere")


def test_topics_without_counterclaims_are_left_out(arguable, tmp_path, capsys):
    path = tmp_path / "some.jsonl"
    Lines(path).replace(map(record, [TOPIC, Topic("bare", "a", "b")]))
    talk = TalkOptions(str(path), "nobody", setting="lite")
    assert [task.key for task in talk.tasks()] == ["t"]
    assert "1 of 2 topics have no counterclaims and are left out" in capsys.readouterr().err
    assert len(TalkOptions(str(path), "nobody", setting="rl").tasks()) == 2


# ---- learning


@pytest.mark.slow
def test_a_persuader_learns(monkeypatch):
    """From a hastily taught base model, what it earns on new topics rises."""
    from posttrain.step import train_in_memory

    world = Persuasion(100)
    policy = train_base(world, 100, Size(hidden=32, layers=1, steps=500, rows=16))
    made, others = lab.recipe_for(policy, world, "white", None)
    tests = lab.tasks(world, "white", held_out=True)[:40]

    def earned():
        return evaluate({"policy": policy, **others}, tests, made.reward, made.env, seed=5).reward

    before = earned()
    train_in_memory(policy, lab.tasks(world, "white"), made, steps=20, per_step=16, lr=1e-3, seed=1)
    assert earned() > before + 0.03
