"""Q-RM: the loss, what it pays, and who reads what."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import task

import posttrain as pt
from posttrain.advantage import by_decision
from posttrain.cli import main
from posttrain.policy.value import Critic
from posttrain.preference import PairScores
from posttrain.row import rows_of
from posttrain.systems.q_rm import TokenCritic, ppo_recipe, scaled
from posttrain.systems.q_rm.model import QModel, by_token, pair_accuracy, preference, q_step, train_q_model


def test_the_loss_by_hand():
    """-log sigmoid(0.2 (mean Z(w) - mean Z(l)) - 2), the released numbers."""
    found = preference()(PairScores(torch.tensor([3.0]), torch.tensor([-2.0]), torch.tensor([5]), torch.tensor([4])))
    assert found.item() == pytest.approx(math.log1p(math.exp(-(0.2 * 5.0 - 2.0))))


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_on_random_pairs_of_unequal_length(make, seed):
    """Through the model and the micro-batches, against loops over the tokens of each reply."""
    torch.manual_seed(seed)
    model = QModel(make(seed=seed))
    pairs = [pt.Pair((pt.user(f"q{seed}{i}"),), "yes " * (i + 1), "no") for i in range(3)]
    found = q_step(model, pairs, preference(), 40)
    costs, right = [], 0
    for pair in pairs:
        means = []
        for text in (pair.chosen, pair.rejected):
            turn = model.policy.demonstrate(pair.prompt, text)
            values = model.values([pt.Row([turn], torch.ones(len(turn.reply.logp)))]).tolist()
            means.append(sum(values) / len(values))
        costs.append(math.log1p(math.exp(-(0.2 * (means[0] - means[1]) - 2.0))))
        right += means[0] > means[1]
    assert found["loss"] == pytest.approx(sum(costs) / 3, rel=1e-4)
    assert found["accuracy"] == pytest.approx(right / 3)


@pytest.mark.parametrize("head", ["vocabulary", "scalar"])
def test_values_are_read_where_the_head_says(make, head):
    """The vocabulary head scores a token at the state before it, so the last token changes no state that is read."""
    policy = make()
    model = QModel(policy, head)
    one = policy.demonstrate((pt.user("hi"),), "abcd")
    other = policy.demonstrate((pt.user("hi"),), "abce")
    rows = [pt.Row([turn], torch.ones(len(turn.reply.logp))) for turn in (one, other)]
    with torch.no_grad():
        a, b = (model.values([row]) for row in rows)
    n = next(i for i, (x, y) in enumerate(zip(one.reply.trace.reply, other.reply.trace.reply, strict=True)) if x != y)
    torch.testing.assert_close(a[:n], b[:n])
    assert a[n] != b[n]
    hidden = policy.hidden([rows[0]], after=head == "scalar")
    weight = model.out.weight[list(one.reply.trace.reply)] if head == "vocabulary" else model.out.weight
    torch.testing.assert_close(a, (hidden * weight).sum(-1).detach())


def test_micro_batches_do_not_change_the_gradient(make):
    torch.manual_seed(0)
    model = QModel(make())
    pairs = [pt.Pair((pt.user(f"q{i}"),), f"good {i}", "bad " * (i + 1)) for i in range(5)]
    seen = []
    for tokens in (10_000, 30):
        for p in model.parameters():
            p.grad = None
        metrics = q_step(model, pairs, preference(), tokens)
        seen.append((torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), metrics))
    torch.testing.assert_close(seen[1][0], seen[0][0], atol=1e-6, rtol=1e-4)
    assert seen[0][1] == pytest.approx(seen[1][1], rel=1e-4)


def test_every_decision_is_paid_its_value_and_the_end_the_mean(make):
    policy = make()
    group = pt.rollout(pt.single_turn, [task()], {"policy": policy}, 3)[0]
    values = [torch.arange(float(one.decisions)) for one in group]
    for whole in (False, True):
        scores = by_token(lambda _: values, whole=whole)(group)
        for one, score, value in zip(group, scores, values, strict=True):
            mean = value.mean().item()
            last = (
                mean if one.turns[-1].reply.stop == "end" else value[-1].item()
            )  # a reply that was cut off has no end
            wanted = [mean] * len(value) if whole else [*value[:-1].tolist(), last]
            assert score.decisions.tolist() == pytest.approx(wanted)
            assert score.value == pytest.approx(mean)
            assert by_decision([one], [score])[0].tolist() == pytest.approx(wanted)


def test_the_release_divides_by_the_deviation_and_keeps_the_mean():
    credit = [torch.tensor([1.0, 3.0]), torch.tensor([5.0])]
    std = math.sqrt(8 / 3)  # of 1, 3 and 5
    assert torch.cat(scaled(credit)).tolist() == pytest.approx([1 / std, 3 / std, 5 / std])
    assert scaled([torch.tensor([2.0])])[0].isfinite().all()  # a single decision


def test_ppo_scales_then_subtracts_the_divergence_and_takes_a_hundredth_of_the_critic(make):
    """r_t = score_t / std - kl |lp - lp_ref|; A_t = r_t - 0.01 V_t / std(V), of the whole step; the critic learns r_t."""
    policy, reference = make(), make(seed=1)
    critic = Critic(policy)
    torch.nn.init.normal_(critic.out.weight, generator=torch.Generator().manual_seed(0))
    group = pt.rollout(pt.single_turn, [task()], {"policy": policy}, 2)[0]
    scores = [pt.Score(0.0, decisions=torch.linspace(-1, 1, one.decisions)) for one in group]
    advantage = TokenCritic(critic, reference, kl=0.5, updates=2)
    credit = [advantage([one], [score])[0] for one, score in zip(group, scores, strict=True)]  # two groups of one step
    found = advantage.across(credit)
    values = [critic.detached_values(rows_of(policy, one, one.turns))[0] for one in group]
    std, spread = torch.cat(credit).std(unbiased=False), torch.cat(values).std(unbiased=False)
    far = [one.turns[0].reply.logp - reference.density(rows_of(policy, one, one.turns)).logp.detach() for one in group]
    paid = [score.decisions / std - 0.5 * gap.abs() for score, gap in zip(scores, far, strict=True)]
    for one, reward, value in zip(found, paid, values, strict=True):
        torch.testing.assert_close(one, reward - 0.01 * value / spread, atol=1e-5, rtol=1e-4)
    for (_, returns, _), reward in zip(advantage.seen, paid, strict=True):
        torch.testing.assert_close(returns, reward, atol=1e-5, rtol=1e-4)
    before = [p.detach().clone() for p in critic.out.parameters()]
    assert advantage.learn()["critic_loss"] > 0
    assert any((p != q).any() for p, q in zip(critic.out.parameters(), before, strict=True))


def test_the_published_ppo_teaches_the_critic_as_often_as_the_policy(make):
    made = ppo_recipe(lambda group: [], Critic(make()), make(), updates=3)
    assert made.updates == made.advantage.updates == 3


def test_a_q_model_does_not_go_with_lora(make):
    peft = pytest.importorskip("peft")
    policy = make()
    policy.model = peft.get_peft_model(policy.body, peft.LoraConfig(r=2, target_modules="all-linear"))
    with pytest.raises(ValueError, match="does not go with LoRA"):
        QModel(policy)


# ---- the stage that learns a Q model


@pytest.mark.parametrize("head", ["vocabulary", "scalar"])
def test_a_q_model_is_learnt_saved_and_resumed_exactly(head, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": "bad " * (i + 1)} for i in range(6)]
    pairs.write_text("\n".join(map(json.dumps, lines)))
    words = ["run", "q-rm", "--stage", "q-model", "--data", str(pairs), "--held-out", str(pairs), "--head", head]
    words += ["--tasks", "3", "--lr", "3e-3", "--save-every", "1", "--quiet"]
    main([*words, "--steps", "4", "--out", str(tmp_path / "whole")])
    main([*words, "--steps", "2", "--out", str(tmp_path / "parts")])
    main([*words, "--steps", "4", "--out", str(tmp_path / "parts"), "--resume"])
    whole, parts = (QModel.load(tmp_path / name / "model", device="cpu") for name in ("whole", "parts"))
    assert whole.head == head
    assert torch.equal(whole.out.weight, parts.out.weight)
    both = zip(whole.state_dict().values(), parts.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in both)
    history = pt.read_metrics(tmp_path / "whole")
    assert history[-1]["held_out/accuracy"] == pair_accuracy(whole, pt.read_pairs(pairs))
    assert "held_out/accuracy" in history[0]
    assert "held_out/accuracy" not in history[1]


def test_a_pair_too_long_for_the_model_is_named(make, tmp_path):
    pairs = [pt.Pair((pt.user("q"),), "good", "bad " * i) for i in (1, 400)]
    with pytest.raises(ValueError, match=r"pair 2 has \d+ tokens, but the model has 256 positions"):
        train_q_model(QModel(make()), pairs, pt.Run(tmp_path / "run"))
