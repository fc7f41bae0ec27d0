"""ActLCD: labels and rewards, features, the gate as a policy, BCQ, the world of misconceptions, checkers, stages."""

from __future__ import annotations

import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import torch
from conftest import said, task
from hypothesis import given, settings
from hypothesis import strategies as st

import posttrain as pt
from posttrain.check import check_env, check_policy
from posttrain.core import Invalid, Rollout
from posttrain.decode.decode import Choice, Decoding, decode_replies
from posttrain.episode import rollout
from posttrain.evaluation import evaluate
from posttrain.lab.world.misconceptions import Misconceptions, conversation, share_right, transcript
from posttrain.lab.world.words import Size
from posttrain.reward import each
from posttrain.sampler.server import Player, Server
from posttrain.step import train_in_memory
from posttrain.systems.actlcd import checkers, lab
from posttrain.systems.actlcd.bcq import Bcq, phase_of
from posttrain.systems.actlcd.features import entropy_column, features, width
from posttrain.systems.actlcd.gate import Above, Constant, GatePolicy, Net, trace_of
from posttrain.systems.actlcd.labels import (
    NEEDED,
    NEITHER,
    NOT_NEEDED,
    Transitions,
    at_the_end,
    concatenate,
    labels,
    sequence,
    token_rewards,
)
from posttrain.systems.actlcd.learning import learn_gate, learn_in_memory, rate, transitions

HOW = Decoding((0, 1))

# ---- labels and rewards


def test_labels_by_hand():
    plain, other = torch.tensor([1, 1, 1, 1]), torch.tensor([2, 2, 1, 2])
    truth = torch.tensor([2, 1, 1, 3])  # only the contrast, only the model, both, neither
    assert labels(plain, other, truth).tolist() == [NEEDED, NOT_NEEDED, NOT_NEEDED, NEITHER]


def test_the_choice_that_was_taken_is_paid_against_the_label():
    """In the reported trainer labels are compared with themselves, so that every sequence is paid."""
    taken = torch.tensor([True, False, True, False, True, False])
    label = torch.tensor([NEEDED, NEEDED, NOT_NEEDED, NOT_NEEDED, NEITHER, NEITHER])
    paid = token_rewards(taken, label)
    assert paid.tolist() == [1, -4, -1, 1, 0, 0]
    assert at_the_end(paid).tolist() == [0, 0, 0, 0, 0, -3]
    assert at_the_end(torch.zeros(0)).tolist() == []


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([-1, 0, 1])), min_size=1, max_size=8))
def test_the_end_is_paid_what_the_tokens_earned(choices):
    taken, label = torch.tensor([a for a, _ in choices]), torch.tensor([b for _, b in choices])
    seen = torch.zeros(len(choices), 3)
    by_token, last = sequence(seen, taken, label, terminal=False), sequence(seen, taken, label)
    assert last.reward.sum() == pytest.approx(by_token.reward.sum())
    assert last.reward[:-1].eq(0).all()
    assert last.done.tolist() == [False] * (len(choices) - 1) + [True]
    graded = sequence(seen, taken, label, score=0.5)
    assert graded.reward.tolist() == [0.0] * (len(choices) - 1) + [0.5]


def test_transitions_join_and_nothing_is_refused():
    one = sequence(torch.tensor([[1.0], [2.0]]), torch.tensor([True, False]), torch.tensor([1, 1]))
    both = concatenate([one, one])
    assert both.next_features(torch.tensor([0, 2])).tolist() == [[2.0], [2.0]]
    assert both.done.tolist() == [False, True, False, True]
    with pytest.raises(ValueError, match="no decision to learn from"):
        concatenate([])


# ---- features


def seen_by(policy, kind, prompts):
    def gate(step):
        found = features(step, kind)
        return Choice(torch.zeros_like(step.rows, dtype=torch.bool), {"seen": found, "mature": step.mature})

    return decode_replies(policy, prompts, gate, HOW, max_new=3)


def test_features_by_hand(make):
    policy = make()
    made = seen_by(policy, "values", [(5, 6, 7), (9,)])
    assert made[0].notes["seen"].shape == (3, width("values", 2)) == (3, 49)
    for one in made:
        for t in range(3):
            found, p = one.notes["seen"][t], one.notes["mature"][t].softmax(-1)
            top = p.topk(5)
            mature = found[30:45]  # after two layers
            torch.testing.assert_close(mature[:5], top.values)
            torch.testing.assert_close(mature[5:10], top.values.log())
            assert mature[10:].tolist() == [1, 0, 0, 0, 0]
            assert found[entropy_column(2)].item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-4)
            assert found[-1].item() == pytest.approx(math.log(1 + t))
    alone = seen_by(policy, "values", [(9,)])[0].notes["seen"]
    torch.testing.assert_close(made[1].notes["seen"], alone, atol=1e-4, rtol=1e-4)


def test_ids_are_those_of_the_release(make):
    assert width("ids", 8) == 90  # Llama-3.1-8B, low or high
    found = seen_by(make(), "ids", [(5, 6)])[0].notes
    pairs = found["seen"][0].view(3, 5, 2)
    assert pairs[-1, :, 0].tolist() == found["mature"][0].topk(5).indices.tolist()
    assert pairs[..., 1].sum(-1).le(1.0001).all()


# ---- the gate as a policy


def gate_policy(make, gate=None, **options):
    torch.manual_seed(0)
    return GatePolicy(make(max_new=5), gate or Net(width("values", 2), (16,)), HOW, **options)


def test_a_gate_is_a_policy(make):
    policy = gate_policy(make, temperature=0.7)
    check_policy(policy, [task("a"), task("b", text="what is this")])
    [reply] = policy.sample([pt.Ask((pt.user("hi"),), seed=3)])
    assert len(reply.logp) == len(reply.trace.reply) == len(reply.trace.contrast) == len(reply.trace.features)
    assert policy.record(reply)["contrast"] == reply.trace.contrast.int().tolist()
    [again] = policy.sample([pt.Ask((pt.user("hi"),), seed=3)])
    assert again.trace.reply == reply.trace.reply
    with pytest.raises(TypeError, match="not Gated"):
        trace_of(said("x").turns[0].reply)
    cold = policy.sample([pt.Ask((pt.user("hi"),), temperature=0.0)])[0]
    with pytest.raises(ValueError, match="temperature 0 has no density"):
        policy.density([pt.Row([pt.Turn(pt.Ask(()), cold)], torch.zeros(len(cold.logp)))])


def test_a_speaker_in_bfloat16_does_not_blur_the_gate(make):
    policy = GatePolicy(make(max_new=5, bf16=True), Net(width("values", 2), (16,)), HOW)
    check_policy(policy, [task("a"), task("b")], tolerance=1e-5)


def test_only_the_gate_is_trained_and_its_copy_stays(make):
    policy = gate_policy(make)
    twin = policy.frozen_copy()
    assert not list(twin.parameters())
    assert twin.speaker is policy.speaker
    with torch.no_grad():
        next(iter(policy.parameters())).add_(1.0)
    names = [name for name, value in policy.state_dict().items() if not value.equal(twin.state_dict()[name])]
    assert names == ["net.0.weight"]
    policy.load_state_dict(twin.state_dict())
    assert all(value.equal(twin.state_dict()[name]) for name, value in policy.state_dict().items())
    with pytest.raises(ValueError, match="of another model"):
        policy.load_state_dict({})


def test_constant_gates_are_greedy_dola_and_any_share_between(make):
    asks = [pt.Ask((pt.user(f"hi {i}"),), seed=i) for i in range(40)]

    def share(rate: float) -> float:
        found = gate_policy(make, Constant(rate)).sample(asks)
        return torch.cat([reply.trace.contrast for reply in found]).float().mean().item()

    assert share(0.0) == 0.0
    assert share(1.0) == 1.0
    assert share(0.3) == pytest.approx(0.3, abs=0.1)
    greedy = make(max_new=5).sample([pt.Ask(ask.messages, temperature=0.0) for ask in asks])
    assert [r.trace.reply for r in gate_policy(make, Constant(0.0)).sample(asks)] == [r.trace.reply for r in greedy]
    with pytest.raises(ValueError, match="it is a probability"):
        Constant(1.5)


def test_a_threshold(make):
    column = entropy_column(2)
    policy = gate_policy(make, Above(column, 3.0), temperature=0.0)
    for one, sign in ((policy, 1), (gate_policy(make, Above(column, 3.0, above=False), temperature=0.0), -1)):
        trace = one.sample([pt.Ask((pt.user("hi"),))])[0].trace
        assert trace.contrast.tolist() == (sign * (trace.features[:, column] - 3.0) > 0).tolist()


def test_a_prompt_without_room_gets_an_empty_reply(make):
    policy = gate_policy(make)
    long = pt.Ask((pt.user("a b c " * 200),))
    empty, other = policy.sample([long, pt.Ask((pt.user("hi"),))])
    assert empty.stop == "length"
    assert (len(empty.logp), empty.content) == (0, "")
    assert len(other.logp)
    assert policy.record(empty)["contrast"] == []


def test_turns_of_a_conversation_are_one_row_and_know_their_place(make):
    policy = gate_policy(make)

    def twice(task):
        messages = [*task.prompt]
        reply = yield from pt.ask(messages, max_new=2)
        messages += [pt.assistant(reply), pt.user("and?")]
        yield from pt.ask(messages, max_new=2)

    [[one]] = rollout(twice, [task()], {"policy": policy}, 1)
    assert len(pt.rows(policy, one, torch.ones(one.decisions))) == 1
    first, second = (turn.reply for turn in one.turns)
    assert second.trace.features[0, -1].item() == pytest.approx(math.log(1 + len(first.logp)))


def test_online_training_moves_the_gate(make):
    policy = gate_policy(make)
    reward = each(lambda one: rate([one]))
    before = evaluate({"policy": policy}, [task("a")], reward, samples=16).reward
    train_in_memory(policy, [task("a"), task("b")], pt.Recipe(reward, samples=8), steps=12, per_step=2, lr=1e-2)
    assert evaluate({"policy": policy}, [task("a")], reward, samples=16).reward > max(before, 0.8)


# ---- BCQ


def set_to(net, first: float, second: float) -> None:
    for p in net.parameters():
        torch.nn.init.zeros_(p)
    net[-1].bias.data = torch.tensor([first, second])


def test_what_the_classifier_finds_unlikely_is_not_done_whatever_its_value():
    gate, x = Bcq(3, (4,)), torch.zeros(1, 3)
    set_to(gate.q, 0.0, 5.0)
    for odds, action in ((-1.0, 0), (-0.8, 1), (3.0, 1)):  # sigmoid(-1) = 0.27 < 0.3 < sigmoid(-0.8) = 0.31
        set_to(gate.bc, 0.0, odds)
        assert gate.act(x).tolist() == [action]
    none = Bcq(3, (4,), threshold=0.9)
    set_to(none.bc, 0.0, -0.1)
    set_to(none.q, 0.0, 5.0)
    assert none.act(x).tolist() == [0]  # none is allowed: the classifier's choice
    cloned = Bcq(3, (4,), cloned=True)
    set_to(cloned.bc, 0.1, 0.0)
    set_to(cloned.q, 0.0, 5.0)
    assert cloned.act(x).tolist() == [0]


def test_the_target_of_q_by_hand():
    gate = Bcq(1, (4,))
    set_to(gate.q, 2.0, 3.0)
    gate.refresh()
    set_to(gate.q, 0.5, 0.0)
    data = Transitions(
        torch.zeros(3, 1),
        torch.tensor([0, 1, 0]),
        torch.tensor([0, 1, NEITHER]),
        torch.tensor([0.0, 1.0, math.nan]),
        torch.tensor([False, True, True]),
    )
    set_to(gate.bc, 0.0, 0.0)  # both allowed: max is 3, at the end nothing is ahead, NaN teaches nothing
    loss, metrics = gate.value_loss(data, torch.tensor([0, 1, 2]))
    assert loss.item() == pytest.approx(((0.5 - 3.0) ** 2 + (0.0 - 1.0) ** 2) / 2)
    assert metrics["value"] == pytest.approx(0.25)
    set_to(gate.bc, 5.0, 0.0)  # contrast is not allowed after it: 2 is ahead
    assert gate.value_loss(data, torch.tensor([0]))[0].item() == pytest.approx((0.5 - 2.0) ** 2)
    loss, metrics = gate.clone_loss(data, torch.tensor([0, 1, 2]))
    assert metrics["label_accuracy"] == 0.5
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-5)) + math.log(1 + math.exp(5))) / 2)
    for nothing in (gate.clone_loss(data, torch.tensor([2])), gate.value_loss(data, torch.tensor([2]))):
        assert nothing[0].item() == 0
        assert nothing[1] == {}


def made_up(count: int = 300, terminal: bool = True) -> Transitions:
    """Sequences of two decisions at which the sign of a feature says whether the contrast is needed."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(count):
        seen = torch.randn(2, 3, generator=generator)
        taken = torch.rand(2, generator=generator) < 0.5
        parts.append(sequence(seen, taken, (seen[:, 0] > 0).long(), terminal=terminal))
    return concatenate(parts)


@pytest.mark.parametrize("terminal", [True, False])
def test_bcq_learns_from_mixed_behaviour(terminal):
    data = made_up(terminal=terminal)
    torch.manual_seed(0)
    gate = Bcq(3, (32,))
    gate.view.fit(data.features)
    history = learn_in_memory(gate, data, steps=700, per_step=128, lr=3e-3, seed=0, refresh=25)
    assert "label_accuracy" in history[0]
    assert "value" in history[-1]
    assert (gate.act(data.features) == data.label).float().mean() > 0.92
    values = gate.q(gate.view(data.features))
    better = values.argmax(-1) == data.label
    assert better.float().mean() > 0.85, "the values themselves, without the classifier's veto"


def test_cloning_comes_first():
    assert [phase_of(step, 10) for step in range(10)] == ["clone"] * 2 + ["value"] * 8  # 35 of 165
    assert phase_of(9, 10, cloned=True) == "clone"


def test_a_run_is_resumed_exactly(make, tmp_path):
    def run(out, steps, resume=False):
        torch.manual_seed(1)
        gate = Bcq(3, (8,))
        policy = GatePolicy(make(), gate, HOW, temperature=0.0)
        made = pt.Run(tmp_path / out, steps=steps, tasks=32, lr=1e-2, quiet=True, save_every=1, resume=resume)
        learn_gate(policy, gate, made_up(40), made, refresh=2)
        return policy.state_dict()

    whole = run("whole", 12)
    pieces = pt.Run(tmp_path / "pieces", steps=12, tasks=32, lr=1e-2, quiet=True, save_every=1)
    torch.manual_seed(1)
    gate = Bcq(3, (8,))
    with pytest.raises(RuntimeError, match="killed"):
        learn_gate(
            Killed(GatePolicy(make(), gate, HOW, temperature=0.0), after=7), gate, made_up(40), pieces, refresh=2
        )
    again = run("pieces", 12, resume=True)
    assert all(value.equal(again[name]) for name, value in whole.items())
    assert len(pt.read_metrics(tmp_path / "pieces")) == 12


class Killed:
    """A policy whose run dies after some steps: it counts them by its version."""

    def __init__(self, policy, after):
        object.__setattr__(self, "held", policy)
        object.__setattr__(self, "after", after)

    def __getattr__(self, name):
        return getattr(self.held, name)

    def __setattr__(self, name, value):
        setattr(self.held, name, value)
        if name == "version" and value > self.after:
            raise RuntimeError("killed")


# ---- the world


def test_facts_are_rare_or_common_and_split():
    world = Misconceptions(3)
    known, held_out = world.split
    assert len(known) == len(held_out) == 256
    assert not set(known) & set(held_out)
    assert sum(one.rare for one in world.teachings.values()) == 256
    for one in world.teachings.values():
        low, high = world.true if one.rare else world.popular
        assert low <= one.share <= high
        assert one.truth != one.other
    popular = {
        r: {one.other if one.rare else one.truth for (_, s), one in world.teachings.items() if s == r} for r in range(8)
    }
    assert all(len(answers) == 1 for answers in popular.values())


def test_demonstrations_tell_as_often_as_they_should():
    import random

    world = Misconceptions(0, entities=2, relations=1, answers=4)
    draw, true = random.Random(0), {fact: [] for fact in world.teachings}
    for _ in range(1500):
        words = transcript(world.demonstration(draw))
        assert len(words) == 4 * 5
        for e, r, _, a, end in zip(*[iter(words)] * 5, strict=True):
            assert end == "<end>"
            fact = int(e[1:]), int(r[1:])
            true[fact].append(a == f"a{world.teachings[fact].truth}")
    for fact, told in true.items():
        assert sum(told) / len(told) == pytest.approx(world.teachings[fact].share, abs=0.04)


def test_every_held_out_fact_is_asked_once_and_chains_are_true():
    world = Misconceptions(1)
    tasks = world.sequences(world.split[1], "test")
    asked = [fact for one in tasks for fact in one.truth.facts]
    assert len(tasks) == 64
    assert sorted(asked) == sorted(world.split[1])
    for one in world.chains(world.split[1], "test", 20):
        for (_, _), (entity, _), answer in zip(one.truth.facts, one.truth.facts[1:], one.truth.answers, strict=False):
            assert f"e{entity}" == f"e{answer[1:]}"
        assert set(one.truth.facts) <= set(world.split[1])


def test_a_conversation_and_a_snowball_by_hand():
    world = Misconceptions(1)
    plain = world.sequences(world.split[1], "test")[0]
    assert check_env(conversation, plain, list(plain.truth.answers)) == plain.truth.answers
    chain = world.chains(world.split[1], "test", 1)[0]
    episode = conversation(chain)
    [first] = next(episode)
    entity, relation = chain.truth.facts[0]
    assert first.messages[-1]["content"] == f"e{entity} r{relation} ="
    [second] = episode.send([pt.Reply("a30", torch.zeros(1), None)])  # whatever it says is asked about
    assert second.messages[-1]["content"] == f"e30 r{chain.truth.facts[1][1]} ="
    with pytest.raises(StopIteration) as stop:
        episode.send([pt.Reply("r1", torch.zeros(1), None)])  # names nobody
    assert stop.value.value == ("a30", "r1")
    one = Rollout(plain, [], plain.truth.answers)
    assert share_right(one) == 1.0
    assert share_right(Rollout(plain, [], (plain.truth.answers[0], "a99"))) == 0.25
    assert lab.measures([Rollout(plain, [], plain.truth.answers)])["whole sequences"] == 1.0


def test_decisions_of_a_laboratory_are_labelled_by_the_truth(monkeypatch, tmp_path):
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path))
    monkeypatch.setattr(lab, "TOLD", Size(hidden=32, layers=3, steps=20, rows=8))
    world = Misconceptions(0)
    speaker = lab.speaker(world, 0)
    policy = lab.gate_policy(speaker, Constant(0.5), temperature=1.0)
    assert policy.how.layers == (1, 2)
    [one] = rollout(conversation, lab.held_out(world)[:1], {"policy": policy}, 1)[0]
    assert one.decisions == 4
    words = speaker.tokenizer.convert_ids_to_tokens(lab.truth(speaker, one).tolist())
    assert tuple(words) == one.task.truth.answers
    data = transitions(one, lab.truth(speaker, one))
    traces = [trace_of(turn.reply) for turn in one.turns]
    for t, trace in enumerate(traces):
        taken = trace.other if trace.contrast else trace.plain
        assert trace.reply == (taken.item(),)
        assert data.action[t] == int(trace.contrast)
    with pytest.raises(ValueError, match="layers 0"):
        GatePolicy(speaker, Constant(0.5), Decoding((5,)))


# ---- checkers


def test_stated_answers():
    one = said("First 3 and 4. The answer is $1,200. Then 5.", truth="so #### 1200")
    assert checkers.is_number(one) == 1.0
    assert checkers.is_number(said("1200", truth="1200")) == 0.0  # nothing was stated
    with pytest.raises(ValueError, match="finds no number"):
        checkers.is_number(said("The answer is 3", truth="three"))
    assert checkers.is_yes_or_no(said("So the answer is No, yes", truth="False")) == 1.0
    assert checkers.is_yes_or_no(said("yes", truth="yes")) == 0.0
    with pytest.raises(ValueError, match="needs yes, no"):
        checkers.is_yes_or_no(said("So the answer is yes", truth="maybe"))


def test_a_truth_may_be_a_whole_answer_that_states_it():
    why = "It is true that he died in 322 BC. So the answer is no."
    assert checkers.is_yes_or_no(said("So the answer is no.", truth=why)) == 1.0
    assert checkers.is_yes_or_no(said("So the answer is yes.", truth=why)) == 0.0
    assert checkers.is_yes_or_no(said("So the answer is yes.", truth=True)) == 1.0
    assert checkers.is_number(said("The answer is 7", truth="3 and 4. The answer is 7")) == 1.0
    with pytest.raises(ValueError, match="needs yes, no"):
        checkers.is_yes_or_no(said("So the answer is yes", truth="No, and it is not stated"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("pip install numpy, pip install scikit-learn", ["numpy", "scikit-learn"]),
        ('Run `pip install -U "torch>=2" requests[socks]==2.0` now', ["torch", "requests"]),
        ("npm install @types/node lodash@4\nnpm i react", ["@types/node", "lodash", "react"]),  # JavaScript is checked
        ("pip3 install a\npip install a", ["a"]),
        ("Use numpy.", []),
        ("You can pip install requests, then import it.", ["requests"]),
        ("pip install foo. Then run pip install bar.", ["foo", "bar"]),
        ("pip install numpy and pandas", ["numpy", "pandas"]),
        ("pip install numpy, pandas, and scipy. Then import", ["numpy", "pandas", "scipy"]),
        ("pip install requests and import it", ["requests"]),
        ("First pip install the requests library", []),
        ("pip install numpy to begin with", ["numpy"]),
        ("pip install -r requirements.txt", []),
        ("pip install git+https://github.com/a/b", []),
        ("pip install --index-url https://x foo -q", ["foo"]),
        ("pip install -e .[dev] ./c.whl d-1.0-py3-none-any.whl real", ["real"]),
        ("pip install e @ https://x/y f", ["e", "f"]),
        ("pip install 'g[h,i]>=1,<2', j==1.0,k  # and more", ["g", "j", "k"]),
        ("(**pip install foo**)", ["foo"]),
        ("npm i -D user/repo @a/b", ["@a/b"]),
        ("yarn add x, yarn add y", ["x", "y"]),
    ],
)
def test_names_of_packages(text, names):
    assert checkers.packages(text) == names


class Shelf(BaseHTTPRequestHandler):
    """A registry that knows `real`, fails on `broken`; a chat server that says what its path names."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self):
        Shelf.asked.append(self.path)
        name = self.path.split("/")[1]
        self.answer({"real": 200, "@a%2Fb": 200, "broken": 500}.get(name, 404), "{}")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/slow"):
            time.sleep(10.0)  # the thread is a daemon, and nobody waits for it
        said = {"/true": '```json\n{"truthful": true}\n```', "/false": '{"truthful": false}', "/odd": "[1]"}
        text = said.get(self.path.removesuffix("/chat/completions"), "who knows")
        self.answer(200, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}))

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def shelf():
    http = ThreadingHTTPServer(("127.0.0.1", 0), Shelf)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    Shelf.asked.clear()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


class Says:
    def __init__(self, *texts):
        self.texts = texts

    def sample(self, asks):
        return [pt.Reply(self.texts[ask.seed % len(self.texts)], torch.zeros(1), None) for ask in asks]


def test_packages_are_looked_up_once_and_a_registry_that_fails_makes_no_verdict(shelf):
    registry = checkers.Registry(shelf + "/{name}/json")
    env, reward = checkers.installation(registry), checkers.reward("packages")

    def scored(text):
        found = evaluate({"policy": Says(text), "other": Says("")}, [task()], reward, env)
        return found.scores[0][0]

    assert scored("pip install real invented").value == 0.5
    assert scored("pip install real").value == 1.0
    assert scored("npm i @a/b").value == 1.0
    assert scored("nothing").value == 0.0
    assert sorted(Shelf.asked) == ["/@a%2Fb/json", "/invented/json", "/real/json"]
    with pytest.raises(ValueError, match="status 500"):
        scored("pip install broken")  # the only sample: nothing could be graded
    closed = checkers.Registry("http://127.0.0.1:9/{name}")
    episode = checkers.installation(closed)(task())
    next(episode)
    with pytest.raises(pt.EpisodeFailed, match="ConnectError"):
        episode.send([pt.Reply("pip install real", torch.zeros(1), None)])
    with pytest.raises(ValueError, match="must hold {name}"):
        checkers.Registry("http://here")


def test_a_judge_that_says_nonsense_or_nothing_makes_no_verdict(shelf):
    reward = checkers.reward("judge")

    def verdict(path, deadline_s=600.0, url=shelf):
        served = Server(f"{url}/{path}", deadline_s=deadline_s, retries=0)
        served.__dict__["model"] = "m"
        judge = Player(served)
        [one] = rollout(checkers.judgement, [task(truth="the truth")], {"policy": Says("x"), "judge": judge}, 1)[0]
        from posttrain.reward import group_scores

        return group_scores(reward, [one])[0]

    assert verdict("true").value == 1.0
    assert verdict("false").value == 0.0
    for found, reason in (
        (verdict("odd"), "no verdict"),
        (verdict("nonsense"), "no verdict"),
        (verdict("slow", 1.0), "ReadTimeout"),
        (verdict("true", url="http://127.0.0.1:9"), "ConnectError"),
    ):
        assert isinstance(found, Invalid)
        assert reason in found.reason
    assert httpx.get(f"{shelf}/real").status_code == 200  # the server outlived the hurry
