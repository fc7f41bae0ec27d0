"""Losses and reductions: golden numbers, closed forms over an enumerable policy, agreement with TRL."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import Bandit

import posttrain as pt
from posttrain.kl import k1, k2, k3
from posttrain.loss import cispo, gspo

ALL = {
    "clipped": pt.clipped(),
    "clip-higher": pt.clipped(0.2, 0.28),
    "dual": pt.clipped(dual=3.0),
    "gspo": gspo(),
    "cispo": cispo(),
    "likelihood": pt.likelihood,
    "entropy": pt.entropy_bonus,
    "kl": pt.kl_to_reference(),
    "kl corrected": pt.kl_to_reference(k3, corrected=True),
    "kl k2": pt.kl_to_reference(k2),
    "total": pt.total((1.0, pt.clipped()), (0.01, pt.entropy_bonus), (0.001, pt.kl_to_reference())),
}


def batch(ratio, advantage, row=None, ref=None):
    """Decisions at log-probability -1 with the given ratios to the old policy."""
    ratio, advantage = torch.tensor(ratio), torch.tensor(advantage)
    now = torch.full_like(ratio, -1.0)
    old = now - ratio.log()
    row = torch.zeros(len(ratio), dtype=torch.long) if row is None else torch.tensor(row)
    return pt.Batch(old, old, advantage, row, ref), pt.Density(now, torch.ones_like(now))


@pytest.mark.parametrize("name", ALL)
def test_every_loss_passes_the_check_for_losses(name):
    pt.check_loss(ALL[name])


def test_clipped_by_hand():
    # ratio 1.5, A=1: min(1.5, 1.2) = 1.2     ratio 0.5, A=1: min(.5, .8) = .5
    # ratio 1.5, A=-1: min(-1.5, -1.2) = -1.5 ratio 0.5, A=-1: min(-.5, -.8) = -.8
    data = batch([1.5, 0.5, 1.5, 0.5], [1.0, 1.0, -1.0, -1.0])
    cost, metrics = pt.clipped()(*data)
    torch.testing.assert_close(cost, torch.tensor([-1.2, -0.5, 1.5, 0.8]))
    assert metrics["clip_share"] == 0.5
    assert metrics["ratio_max"] == pytest.approx(1.5)
    torch.testing.assert_close(pt.clipped(0.2, 0.6)(*data)[0], torch.tensor([-1.5, -0.5, 1.5, 0.8]))
    # dual clip 1.25: the bad decision made likely costs no more than 1.25
    torch.testing.assert_close(pt.clipped(dual=1.25)(*data)[0], torch.tensor([-1.2, -0.5, 1.25, 0.8]))
    with pytest.raises(ValueError, match="above 1"):
        pt.clipped(dual=0.5)


def test_gspo_by_hand():
    # row 0: ratios 2 and 1/2, geometric mean 1; row 1: ratios 4 and 1, geometric mean 2, clipped at 1.1 for A=1
    data = batch([2.0, 0.5, 4.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0, 0, 1, 1])
    cost, _ = gspo(0.1, 0.1)(*data)
    torch.testing.assert_close(cost, torch.tensor([-1.0, -1.0, -1.1, -1.1]))


def test_cispo_by_hand():
    # weight min(ratio, 2), no gradient through it: the cost is -w A logp with logp = -1
    data = batch([3.0, 0.5], [1.0, -1.0])
    cost, metrics = cispo(2.0)(*data)
    torch.testing.assert_close(cost, torch.tensor([2.0, -0.5]))
    assert metrics["clip_share"] == 0.5


def test_a_policy_gradient_is_the_gradient_of_the_expected_reward():
    """Enumerate a bandit: E over all choices of the likelihood cost has the gradient of -E[r], baseline or not."""
    reward = torch.tensor([0.0, 1.0, 3.0, -2.0], dtype=torch.float64)
    policy = Bandit([0.3, -0.2, 0.1, 0.9])
    p = policy.logits.softmax(-1)
    exact = torch.autograd.grad(-(p * reward).sum(), policy.logits)[0]
    for loss, baseline in (
        (pt.likelihood, 0.0),
        (pt.likelihood, 1.7),
        (pt.clipped(), 0.4),
        (cispo(), 0.0),
        (gspo(), 0.0),
    ):
        logp = policy.logits.log_softmax(-1)
        old = logp.detach()
        data = pt.Batch(old, old, reward - baseline, torch.arange(4))
        cost, _ = loss(data, pt.Density(logp, torch.zeros(4)))
        found = torch.autograd.grad((p.detach() * cost).sum(), policy.logits)[0]
        torch.testing.assert_close(found, exact)


def test_kl_estimators_against_the_exact_kl_of_five_tokens():
    torch.manual_seed(0)
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    logp, ref = logits.log_softmax(-1), torch.randn(5, dtype=torch.float64).log_softmax(-1)
    p = logp.exp()
    exact = (p * (logp - ref)).sum()
    gradient = torch.autograd.grad(exact, logits, retain_graph=True)[0]
    assert (p * k1(logp - ref)).sum().item() == pytest.approx(exact.item())
    assert (p * k3(logp - ref)).sum().item() == pytest.approx(exact.item())
    assert (k3(logp - ref) >= 0).all()

    def found(loss, old):
        """The gradient of the expected cost under samples of `old`."""
        data = pt.Batch(old, old, torch.ones(5), torch.arange(5), ref)
        cost, _ = loss(data, pt.Density(logp, torch.zeros(5)))
        return torch.autograd.grad((old.exp() * cost).sum(), logits, retain_graph=True)[0]

    on, off = logp.detach(), (logits.detach() + 0.3 * torch.randn(5)).log_softmax(-1)
    torch.testing.assert_close(found(pt.kl_to_reference(k2), on), gradient)
    torch.testing.assert_close(found(pt.kl_to_reference(k3, corrected=True), on), gradient)
    torch.testing.assert_close(found(pt.kl_to_reference(k3, corrected=True), off), gradient)
    assert (found(pt.kl_to_reference(k3), on) - gradient).abs().max() > 1e-3  # GRPO's term is biased, as documented
    torch.testing.assert_close(found(pt.kl_to_reference(k1), on), torch.zeros(5, dtype=torch.float64))


def test_a_kl_without_a_reference_says_so():
    with pytest.raises(ValueError, match="needs a reference"):
        pt.kl_to_reference()(*batch([1.0], [1.0]))
    with pytest.raises(ValueError, match=r"grpo\(kl=0.1\) needs a reference"):
        pt.grpo(pt.each(len), kl=0.1)


def test_kl_in_reward_pays_every_decision(make):
    policy, reference = make(0), make(3)
    [group] = pt.rollout(pt.single_turn, [pt.Task("t", (pt.user("hi"),), None)], {"policy": policy}, 3)
    reward = pt.kl_in_reward(pt.each(lambda rollout: 2.0), reference, beta=0.5)
    for rollout, score in zip(group, reward(group), strict=True):
        far = (
            rollout.turns[0].reply.logp
            - reference.density(pt.rows(policy, rollout, torch.zeros(rollout.decisions))).logp
        )
        expected = -0.5 * far.detach()
        expected[-1] += 2.0
        torch.testing.assert_close(score.decisions, expected)
        assert score.value == pytest.approx(2.0 - 0.5 * far.sum().item(), rel=1e-4)
        assert score.parts["raw"] == 2.0
        assert score.parts["kl"] == pytest.approx(far.sum().item(), rel=1e-4)


def test_kl_in_reward_keeps_turn_rewards_and_takes_plain_numbers(make):
    policy = make(max_new=3)

    def two_turns(task):
        first = yield from pt.ask(task.prompt)
        yield from pt.ask([*task.prompt, pt.assistant(first), pt.user("more")])

    [group] = pt.rollout(two_turns, [pt.Task("t", (pt.user("hi"),), None)], {"policy": policy}, 2)
    turned = pt.kl_in_reward(lambda g: [pt.Score(1.0, turns=(5.0, -4.0)) for _ in g], policy.frozen_copy(), 0.1)
    for rollout, score in zip(group, turned(group), strict=True):
        first = len(rollout.turns[0].reply.logp)
        assert score.decisions[first - 1].item() == pytest.approx(5.0, abs=1e-4)
        assert score.decisions[-1].item() == pytest.approx(-4.0, abs=1e-4)
    silent = pt.Rollout(group[0].task, [])
    plain = pt.kl_in_reward(lambda g: [0.5] * len(g), policy.frozen_copy(), 0.1)
    assert [score.value for score in plain([silent, group[0]])] == pytest.approx([0.5, 0.5], abs=1e-4)


def test_the_entropy_bonus_is_the_gradient_of_entropy():
    policy = Bandit([0.3, -0.2, 0.1])
    density = policy.density([pt.Row([pt.Turn(pt.Ask(()), pt.Reply(0, torch.zeros(1), 0))], torch.zeros(1))])
    cost, _ = pt.entropy_bonus(batch([1.0], [0.0])[0], density)
    found = torch.autograd.grad(cost.sum(), policy.logits)[0]
    logits = policy.logits.detach().requires_grad_()
    exact = torch.autograd.grad(-torch.distributions.Categorical(logits=logits).entropy(), logits)[0]
    torch.testing.assert_close(found, exact, atol=1e-6, rtol=1e-4)


# ---- TRL computes the same loss and gradient on the same samples

TRL = {
    "grpo": (dict(loss_type="grpo"), lambda: (pt.clipped(), pt.sequence_mean)),
    "dapo": (dict(loss_type="dapo", epsilon_high=0.28), lambda: (pt.clipped(0.2, 0.28), pt.token_mean)),
    "dr_grpo": (dict(loss_type="dr_grpo"), lambda: (pt.clipped(), pt.constant_length(8))),
    "cispo": (dict(loss_type="cispo", epsilon_high=5.0), lambda: (cispo(5.0), pt.token_mean)),
    "gspo": (
        dict(loss_type="grpo", importance_sampling_level="sequence", epsilon=3e-4, epsilon_high=4e-4),
        lambda: (gspo(3e-4, 4e-4), pt.sequence_mean),
    ),
    "dual": (dict(loss_type="dapo", delta=1.5), lambda: (pt.clipped(dual=1.5), pt.token_mean)),
    "kl": (
        dict(loss_type="dapo", beta=0.1, use_bias_correction_kl=False),
        lambda: (pt.total((1.0, pt.clipped()), (0.1, pt.kl_to_reference())), pt.token_mean),
    ),
    "kl corrected": (
        dict(loss_type="dapo", beta=0.1, use_bias_correction_kl=True),
        lambda: (pt.total((1.0, pt.clipped()), (0.1, pt.kl_to_reference(k3, corrected=True))), pt.token_mean),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRL)
@pytest.mark.filterwarnings("ignore")
def test_trl_agrees(name, make, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DISABLED", "true")
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    options, ours = TRL[name]
    policy, old_policy, reference = make(0), make(0), make(7)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    [group] = pt.rollout(pt.single_turn, [pt.Task("t", (pt.user("hi"),), None)], {"policy": old_policy}, 4)
    credit = [1.0, -0.5, 0.25, -1.5]
    rows = [
        row
        for one, a in zip(group, credit, strict=True)
        for row in pt.rows(policy, one, torch.full((one.decisions,), a))
    ]
    loss, reduce = ours()
    mine = torch.optim.SGD(policy.parameters(), 0.0)
    metrics = pt.update(policy, mine, rows, loss, reduce, reference if "kl" in name else None, max_norm=1e9)
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters()])

    config = GRPOConfig(
        str(tmp_path), per_device_train_batch_size=4, num_generations=4, max_completion_length=8, report_to=[],
        bf16=False, use_cpu=True, gradient_checkpointing=False, **{**options, "beta": 0.0},
    )  # fmt: skip
    trainer = GRPOTrainer(
        policy.model, lambda completions, **_: [0.0] * len(completions), config,
        Dataset.from_list([{"prompt": "hi"}] * 4), processing_class=policy.tokenizer,
    )  # fmt: skip
    trainer.beta = options.get("beta", 0.0)  # set late: with it, TRL would look for a reference on the Hub
    width = max(len(row.logp) for row in rows)
    fill = lambda values, value=0.0: torch.stack(  # noqa: E731
        [torch.nn.functional.pad(torch.as_tensor(v), (0, width - len(v)), value=value) for v in values]
    )
    prompt = torch.tensor([list(row.turns[0].reply.trace.prompt) for row in rows])
    mask = fill([torch.ones(len(row.logp), dtype=torch.long) for row in rows], 0)
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": fill([torch.tensor(row.turns[0].reply.trace.reply) for row in rows], 0),
        "completion_mask": mask,
        "advantages": torch.tensor(credit),
        "old_per_token_logps": fill([row.logp for row in rows]),
        "num_items_in_batch": mask.sum(),
    }
    if "kl" in name:
        with torch.no_grad():
            scored = [reference.density([row]).logp for row in rows]
        inputs["ref_per_token_logps"] = fill(scored)
    for p in policy.model.parameters():
        p.grad = None
    trainer.current_gradient_accumulation_steps = 1
    theirs = trainer._compute_loss(policy.model.train(), inputs)
    theirs.backward()
    their_gradient = torch.cat([p.grad.flatten() for p in policy.model.parameters()])
    assert metrics["loss"] == pytest.approx(theirs.item(), rel=1e-4, abs=1e-6)
    torch.testing.assert_close(gradient, their_gradient, atol=1e-6, rtol=1e-3)
    assert gradient.norm() > 1e-3
    assert math.isfinite(theirs.item())
