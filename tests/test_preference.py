"""Preference losses against closed forms and TRL; the scoring they rest on; the reward model's checkpoint."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import said, values
from safetensors.torch import load_file, save_file

import posttrain as pt
from posttrain import preference
from posttrain.policy.value import RewardModel, reward_model
from posttrain.preference import PairScores, pair_scores

JUDGED = PairScores(
    chosen=torch.tensor([-4.0, -6.0]),
    rejected=torch.tensor([-5.0, -3.0]),
    chosen_length=torch.tensor([4, 3]),
    rejected_length=torch.tensor([2, 6]),
    chosen_ref=torch.tensor([-4.5, -5.0]),
    rejected_ref=torch.tensor([-4.0, -3.5]),
    kl=torch.tensor(0.2),
)
# log-ratios: chosen .5, -1; rejected -1, .5; margins 1.5, -1.5


def sigmoid(x):
    return torch.sigmoid(torch.tensor(x)).item()


def test_losses_by_hand():
    log = torch.log
    expected = {
        pt.dpo(0.1): [-log(torch.tensor(sigmoid(0.15))), -log(torch.tensor(sigmoid(-0.15)))],
        pt.dpo(0.1, smoothing=0.2): [
            -0.8 * log(torch.tensor(sigmoid(0.15))) - 0.2 * log(torch.tensor(sigmoid(-0.15))),
            -0.8 * log(torch.tensor(sigmoid(-0.15))) - 0.2 * log(torch.tensor(sigmoid(0.15))),
        ],
        # per token: .5/4 - -1/2 = .625; -1/3 - .5/6 = -.4167; target 1/(2 * .5) = 1
        pt.ipo(0.5): [(0.625 - 1) ** 2, (-0.41667 - 1) ** 2],
        # per token: -1 - -2.5 = 1.5; -2 - -.5 = -1.5; beta 2, gamma 1
        pt.simpo(2.0, 1.0): [-log(torch.tensor(sigmoid(2.0))), -log(torch.tensor(sigmoid(-4.0)))],
        pt.kto(0.1): [
            (1 - sigmoid(0.1 * (0.5 - 0.2)) + 1 - sigmoid(0.1 * (0.2 + 1.0))) / 2,
            (1 - sigmoid(0.1 * (-1 - 0.2)) + 1 - sigmoid(0.1 * (0.2 - 0.5))) / 2,
        ],
    }
    for loss, costs in expected.items():
        torch.testing.assert_close(loss(JUDGED), torch.tensor([float(c) for c in costs]), atol=1e-5, rtol=1e-4)


def test_orpo_by_hand():
    """odds(p) = p / (1 - p) with p = exp(mean log-probability)."""
    p, q = torch.tensor([-1.0, -2.0]).exp(), torch.tensor([-2.5, -0.5]).exp()
    odds = (p / (1 - p)).log() - (q / (1 - q)).log()
    expected = torch.tensor([1.0, 2.0]) - 0.1 * torch.nn.functional.logsigmoid(odds)
    torch.testing.assert_close(pt.orpo(0.1)(JUDGED), expected)


def test_a_loss_that_needs_a_reference_says_so():
    bare = PairScores(JUDGED.chosen, JUDGED.rejected, JUDGED.chosen_length, JUDGED.rejected_length)
    for loss in (pt.dpo(), pt.ipo(), pt.kto()):
        with pytest.raises(ValueError, match="compares with a reference policy"):
            loss(bare)
    assert torch.isfinite(pt.simpo()(bare)).all()


PAIRS = [
    pt.Pair((pt.user("How much is 4+5?"),), "9", "4+5=8 and more"),
    pt.Pair((pt.user("hi"),), "hello there", "no"),
]


def test_pairs_are_scored_by_the_sum_over_the_reply_and_its_end(make):
    policy, reference = make(0), make(3)
    found = pair_scores(policy, reference, PAIRS)
    for i, pair in enumerate(PAIRS):
        for text, logp, length, model in (
            (pair.chosen, found.chosen, found.chosen_length, policy),
            (pair.rejected, found.rejected_ref, found.rejected_length, reference),
        ):
            prompt = policy.chat.prompt(pair.prompt)[0]
            reply = [*policy.chat.encode(text), policy.tokenizer.eos_token_id]
            with torch.no_grad():
                rows = model.model(torch.tensor([[*prompt, *reply]])).logits[0].log_softmax(-1)
            by_hand = sum(rows[len(prompt) - 1 + t, token].item() for t, token in enumerate(reply))
            assert logp[i].item() == pytest.approx(by_hand, rel=1e-4)
            assert length[i] == len(reply)


def test_ktos_divergence_is_that_of_mismatched_pairs_whatever_the_micro_batch(make):
    policy, reference = make(0), make(3)
    swapped = [pt.Pair(PAIRS[0].prompt, PAIRS[1].chosen, "x"), pt.Pair(PAIRS[1].prompt, PAIRS[0].chosen, "x")]
    found = pair_scores(policy, reference, swapped)
    expected = (found.chosen - found.chosen_ref).mean().clamp(min=0)
    for tokens in (10**6, 1):
        divergence = preference.divergence(policy, reference, PAIRS, tokens)
        torch.testing.assert_close(divergence, expected.detach(), atol=1e-4, rtol=1e-4)  # of sums near 40
    assert expected >= 0
    with pytest.raises(ValueError, match="`tasks` 2 or more"):
        preference.divergence(policy, reference, PAIRS[:1], 10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trl_agrees_on_orpo_and_simpo(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    device = SimpleNamespace(device="cpu")
    chosen, rejected = JUDGED.chosen / JUDGED.chosen_length, JUDGED.rejected / JUDGED.rejected_length
    theirs = ORPOTrainer.odds_ratio_loss(SimpleNamespace(beta=0.1, accelerator=device), chosen, rejected)[0]
    torch.testing.assert_close(pt.orpo(0.1)(JUDGED), -chosen - theirs)
    settings = SimpleNamespace(
        alpha=0.0, beta=2.0, loss_type="simpo", simpo_gamma=1.0, label_smoothing=0.0, accelerator=device
    )
    torch.testing.assert_close(pt.simpo(2.0, 1.0)(JUDGED), CPOTrainer.cpo_loss(settings, chosen, rejected)[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "ours"), [("sigmoid", pt.dpo(0.3)), ("ipo", pt.ipo(0.3))])
def test_trl_agrees_on_dpo_and_ipo(kind, ours, make, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DISABLED", "true")
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    tight = tmp_path / "tight.jinja"  # nothing after the end of turn, which TRL would train on as well
    tight.write_text(
        "{% for m in messages %}{{ ('' if loop.first else '\\n') + '<|im_start|>' + m.role + '\\n' + m.content }}"
        "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
    )
    policy, reference = make(0, template=str(tight)), make(3, template=str(tight))
    data = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": p.prompt[0]["content"]}],
                "chosen": [{"role": "assistant", "content": p.chosen}],
                "rejected": [{"role": "assistant", "content": p.rejected}],
            }
            for p in PAIRS
        ]
    )
    config = DPOConfig(
        str(tmp_path), beta=0.3, loss_type=[kind], report_to=[], bf16=False, use_cpu=True, gradient_checkpointing=False,
        per_device_train_batch_size=2, max_length=None,
    )  # fmt: skip
    found = ours(pair_scores(policy, reference, PAIRS)).mean()
    trainer = DPOTrainer(
        policy.model, ref_model=reference.model, args=config, train_dataset=data, processing_class=policy.tokenizer
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    theirs = trainer._compute_loss(trainer.model, inputs, False)
    assert found.item() == pytest.approx(theirs.item(), rel=1e-4)


def test_a_pair_that_does_not_fit_is_named(make, tmp_path):
    long = pt.Pair((pt.user("hi"),), "word " * 300, "no")
    with pytest.raises(ValueError, match=r"pair 2 has \d+ tokens, but the model has 256 positions"):
        pt.prefer(make(), [PAIRS[0], long], pt.dpo(), pt.Run(tmp_path / "r"), reference=make())


def test_a_reward_model_reads_the_last_token_and_survives_a_round_trip(make, tmp_path):
    make(0).save(tmp_path / "base")
    torch.manual_seed(0)
    model = reward_model(str(tmp_path / "base"), device="cpu")
    together = model.scores([model.ids(p.prompt, p.chosen) for p in PAIRS])
    alone = torch.cat([model.scores([model.ids(p.prompt, p.chosen)]) for p in PAIRS])
    torch.testing.assert_close(together, alone)
    theirs = model.model(torch.tensor([model.ids(PAIRS[0].prompt, PAIRS[0].chosen)])).logits[
        0, 0
    ]  # transformers' own classifier
    torch.testing.assert_close(together[0], theirs)
    model.save(tmp_path / "saved")
    again = reward_model(str(tmp_path / "saved"), device="cpu")
    assert isinstance(again, RewardModel)
    group = [said("9"), said("hello")]
    assert values(again(group)) == pytest.approx(values(model(group)))
    recipe = pt.grpo(reward=again, samples=2)
    assert recipe.reward is again


@pytest.mark.parametrize("name", preference.PAIR_LOSSES)
def test_every_preference_loss_trains(name, make, tmp_path):
    policy = make()
    reference = policy.frozen_copy() if name in preference.WITH_REFERENCE else None
    run = pt.Run(tmp_path / "r", steps=8, tasks=2, lr=3e-3, quiet=True, micro_tokens=100)
    session = pt.prefer(policy, PAIRS, preference.PAIR_LOSSES[name](), run, reference=reference)
    first, last = session.history[0], session.history[-1]
    assert last["loss"] < first["loss"]
    assert last["logp_chosen"] - last["logp_rejected"] > first["logp_chosen"] - first["logp_rejected"]
    assert pt.text(str(tmp_path / "r" / "model"), max_new=8).context == 256


def test_held_out_pairs_and_demonstrations_are_measured_by_name(make, tmp_path):
    """Before the first step and after the last; the loss is that of an independent computation."""
    policy, run = make(max_new=6), pt.Run(tmp_path / "sft", steps=2, tasks=2, lr=1e-2, quiet=True)
    shown = [pt.Demonstration((pt.user(f"{i}"), pt.assistant(f"{i} {i}"))) for i in range(4)]
    before = loss_of(policy, shown[2:])
    session = pt.sft(policy, shown[:2], run, held_out={"rest": shown[2:], "same": shown[:2]})
    first, last = session.history
    assert first["held_out/rest/loss"] == pytest.approx(before, rel=1e-5)
    assert last["held_out/rest/loss"] == pytest.approx(loss_of(policy, shown[2:]), rel=1e-5)
    assert last["held_out/same/loss"] < first["held_out/same/loss"]
    pairs = [pt.Pair((pt.user(f"{i}"),), "yes", "no") for i in range(4)]
    run = pt.Run(tmp_path / "dpo", steps=4, tasks=4, lr=1e-2, eval_every=2, quiet=True)
    reference = policy.frozen_copy()
    history = pt.prefer(policy, pairs[:2], pt.dpo(), run, reference=reference, held_out=pairs[2:]).history
    assert ["held_out/accuracy" in line for line in history] == [True, False, True, True]
    assert history[0]["held_out/margin"] == pytest.approx(0.0, abs=1e-5), "the policy is its own reference"
    margin = pair_scores(policy, reference, pairs[2:]).margin().mean().item()
    assert history[-1]["held_out/margin"] == pytest.approx(margin, rel=1e-4)
    policy.save(tmp_path / "base")
    judge = reward_model(str(tmp_path / "base"))
    run = pt.Run(tmp_path / "judge", steps=2, tasks=2, lr=1e-2, quiet=True)
    history = pt.train_reward_model(judge, pairs[:2], run, held_out={"new": pairs[2:]}).history
    assert history[-1]["held_out/new/accuracy"] == 1.0
    with pytest.raises(ValueError, match=r"held-out pair 1 has \d+ tokens, but the model has"):
        pt.prefer(
            policy, pairs, pt.dpo(), run, reference=reference, held_out=[pt.Pair(pairs[0].prompt, "a " * 999, "b")]
        )


def loss_of(policy, shown) -> float:
    """Minus the mean log-probability of the replies' tokens, their ends included."""
    rows = [policy.demonstrate(one.messages[:1], one.messages[1]["content"]) for one in shown]
    with torch.no_grad():
        logp = policy.density([pt.Row([turn], torch.ones(len(turn.reply.logp))) for turn in rows]).logp
    return -logp.mean().item()


def test_a_reward_model_is_no_language_model(make, tmp_path):
    """Its checkpoint has no head of one, and a random head would only babble."""
    make().save(tmp_path / "base")
    reward_model(str(tmp_path / "base")).save(tmp_path / "judge")
    with pytest.raises(ValueError, match=r"it lacks lm_head.weight, which would be random numbers"):
        pt.text(str(tmp_path / "judge"))


@pytest.mark.parametrize("load", [pt.text, reward_model])
def test_a_checkpoint_that_lacks_tensors_is_refused(load, make, tmp_path):
    make().save(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if "layers.1.mlp" in name]:
        del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lacks model.layers.1.mlp.down_proj.weight and 2 more parameters, which would"
    ):
        load(str(tmp_path / "m"))
