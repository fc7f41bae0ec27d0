"""Every published system runs by its command at both scales, composes with the others, and has its page."""

from __future__ import annotations

import json
from dataclasses import is_dataclass, replace
from itertools import product
from pathlib import Path
from string import Formatter
from typing import get_type_hints

import diffusion_checkpoints
import pytest
import torch
import vision_checkpoints
from conftest import task

import posttrain as pt
from posttrain import systems, tiny
from posttrain.advantage import by_decision, centred, leave_one_out, normalised
from posttrain.cli import main
from posttrain.cli.combination import named, with_parts
from posttrain.cli.run import documented
from posttrain.loss import Total, parts
from posttrain.policy.text import TextPolicy
from posttrain.systems.diversity import diversity
from posttrain.systems.entropy import clip_cov, kl_cov
from posttrain.systems.grpovi import varied
from posttrain.systems.mm_upt import majority
from posttrain.systems.noisy_rewards import calibrated, flipped, patterned
from posttrain.systems.q_rm.model import by_token

ROOT = Path(__file__).parent.parent
NAMES = systems.names()


@pytest.fixture
def briefly(monkeypatch, tmp_path):
    """Base models of tiny worlds after twenty steps, in a cache of the test's own."""
    plain = tiny.warm_start

    def warm_start(policy, demonstrations, steps, rows=8, rate=1e-3, watch=lambda step, loss: None):
        plain(policy, demonstrations, min(steps, 20), 8, rate, watch)

    monkeypatch.setattr(tiny, "warm_start", warm_start)
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))


LAPTOP = {
    "actlcd": [["--learner", "clone", "--snowball"], ["--learner", "grpo"], ["--no-terminal"]],
    "afterburner": [["--method", "dpo"], ["--no-feedback"]],
    "deeptheorem": [["--no-variants"]],
    "diversity": [["--method", "all"]],
    "entropy": [["--method", "clip_cov"], ["--method", "grpo"]],
    "grpovi": [["--weights", "policy_mean_token"], ["--no-increase", "--std"]],
    "mm_upt": [["--no-reliable"], ["--labels"], ["--pictures", "--own-questions", "direct"]],
    "pangu_embedded": [["--no-adaptive"]],
    "noisy_rewards": [["--kind", "patterns"], ["--kind", "calibrated", "--share", "0.6"]],
    "q_rm": [],
    "reward_fairness": [["--kind", "published coefficient"]],
    "rl_wall": [],
    "rl_with_cold_start": [["--no-cold-start"]],
    "srrl": [["--rounds", "0"], ["--trained", "all", "--branches"], ["--inverted"]],
    "tomap": [["--setting", "rl"], ["--setting", "black_random"]],
}


@pytest.mark.parametrize(("name", "options"), [(name, more) for name in NAMES for more in ([], *LAPTOP[name])])
def test_at_laptop_scale(name, options, briefly, tmp_path, monkeypatch, capsys):
    from posttrain.systems import q_rm, rl_wall, srrl
    from posttrain.systems.actlcd import experiments
    from posttrain.systems.tomap import experiments as persuasion

    monkeypatch.setattr(q_rm, "STEPS", 4)
    monkeypatch.setattr(
        q_rm,
        "pairs_of",
        lambda policy, world, count, seed: [pt.Pair(t.prompt, t.truth, "y0 y1") for t in world.problems(20, "pairs")],
    )  # fmt: skip  (twenty steps do not teach a right answer)
    monkeypatch.setattr(rl_wall, "TEMPERATURES", (1.0,))
    monkeypatch.setattr(experiments, "TOLD", replace(experiments.TOLD, steps=20, rows=8))
    for method in ("training", "held_out"):
        monkeypatch.setattr(
            experiments.Laboratory, method, lambda lab: lab.world.sequences(lab.world.split[1][:16], "test")
        )
    monkeypatch.setattr(persuasion, "LOGGED", 20)
    monkeypatch.setattr(srrl, "TINY", replace(srrl.TINY, steps=4))
    monkeypatch.setattr(srrl, "TINY_DENOISING", replace(srrl.TINY_DENOISING, steps=2))
    out = tmp_path / "run"
    size = ["--steps", "2", "--tasks", "2", "--out", str(out), "--quiet"]
    main(["run", name.replace("_", "-"), *options, *size])
    assert list((out / "model").rglob("*.safetensors"))
    assert len(pt.read_metrics(out)) == 2
    assert json.loads((out / "run.json").read_text())["run"]["steps"] == 2
    assert str(out / "report.html") in capsys.readouterr().err


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, words) -> str:
    """A Llama checkpoint in the format of the Hub, with its tokenizer and template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory, checkpoint) -> str:
    """A reward model in the format of the Hub, of the same tokenizer."""
    model = pt.reward_model(checkpoint)
    folder = tmp_path_factory.mktemp("judge")
    model.save(folder)
    return str(folder)


@pytest.fixture
def questions(tmp_path) -> str:
    path = tmp_path / "questions.jsonl"
    lines = [{"prompt": f"What is {i}+{i}?", "answer": str(2 * i)} for i in range(6)]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


@pytest.fixture
def theorems(tmp_path) -> str:
    """Rows in the columns of DeepTheorem's data."""
    path = tmp_path / "theorems.jsonl"
    lines = [
        {
            "id": i,
            "pos_question": f"Prove or disprove that {i}+{i} is even.",
            "pos_truth_value": True,
            "neg_question": f"Prove or disprove that {i}+{i} is odd.",
            "neg_truth_value": False,
            "proof": f"It is 2 times {i}.",
        }
        for i in range(4)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


@pytest.fixture
def variants(tmp_path) -> str:
    """A test file of theorems with variants, in Putnam's columns."""
    path = tmp_path / "variants.jsonl"
    lines = [
        {"problem_name": "p", "prompt": f"Prove or disprove that 1+1 {sign} 2.", "answer": sign == "="} for sign in "=<"
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


@pytest.fixture
def pairs(tmp_path) -> str:
    path = tmp_path / "pairs.jsonl"
    lines = [
        {"prompt": f"q{i}", "chosen": f"good {i}", "rejected": "bad " * (i + 1), "category": "ab"[i % 2]}
        for i in range(8)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory) -> str:
    return diffusion_checkpoints.stable_diffusion(tmp_path_factory.mktemp("stable-diffusion"))


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> str:
    return diffusion_checkpoints.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def qwen2_5_vl(tmp_path_factory) -> str:
    return vision_checkpoints.checkpoint(tmp_path_factory.mktemp("qwen2.5-vl"), "qwen2_5_vl")


@pytest.fixture(scope="session")
def qwen3_vl(tmp_path_factory) -> str:
    return vision_checkpoints.checkpoint(tmp_path_factory.mktemp("qwen3-vl"), "qwen3_vl")


@pytest.fixture
def drawings(tmp_path) -> str:
    path = tmp_path / "drawings.jsonl"
    for i in range(4):
        vision_checkpoints.png(tmp_path / f"{i}.png", 16, 8 * (i + 1), seed=i)
    lines = [{"prompt": "How wide?", "image": f"{i}.png", "answer": str(8 * (i + 1))} for i in range(4)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture
def prompts(tmp_path) -> str:
    path = tmp_path / "prompts.json"
    path.write_text('["a cat washing dishes", "a dog riding a bike", "a ball on a ramp"]')
    return str(path)


FULL = {
    "actlcd": [
        ["--data", "{questions}", "--max-new", "6", "--layers", "high"],
        ["--data", "{questions}", "--max-new", "6", "--reward", "grader", "--features", "ids", "--learner", "clone"],
    ],
    "deeptheorem": [
        ["--data", "{theorems}", "--max-new", "6", "--samples", "2", "--held-out", "{variants}", "--keep-out", "1"],
        ["--data", "{theorems}", "--max-new", "6", "--stage", "sft", "--limit", "3"],
    ],
    "srrl": [
        [
            *[
                "--model",
                "{stable_diffusion}",
                "--data",
                "{prompts}",
                "--reward",
                "clip={clip}",
                "--denoising",
                "3",
                "--device",
                "cpu",
            ],
            *more,
        ]
        for more in (
            ["--held-out", "{prompts}", "--rounds", "1"],
            ["--method", "ddpo"],
            ["--trained", "all", "--lora", "0"],
        )
    ],
    "afterburner": [],  # its stages are run in test_afterburner.py
    "tomap": [],  # and these in test_tomap.py
    "diversity": [["--data", "{questions}", "--max-new", "6"]],
    "entropy": [["--data", "{questions}", "--max-new", "6", "--method", "clip_cov"]],
    "grpovi": [
        ["--data", "{questions}", "--max-new", "6"],
        ["--data", "{questions}", "--max-new", "6", "--reward-model", "{classifier}", "--low", "-3", "--high", "3"],
    ],
    "mm_upt": [
        ["--data", "{questions}", "--max-new", "6", "--held-out", "{questions}"],
        ["--data", "{drawings}", "--image", "image", "--max-new", "6", "--min-pixels", "64", "--model", "{qwen3_vl}"],
    ],
    "rl_with_cold_start": [
        [*["--data", "{drawings}", "--image", "image", "--max-new", "6", "--min-pixels", "64", "--model"], *more]
        for more in (
            ["{qwen2_5_vl}", "--no-cold-start", "--held-out", "{drawings}"],
            ["{qwen3_vl}", "--stage", "sft", "--response", "answer"],
        )
    ],
    "noisy_rewards": [
        ["--data", "{questions}", "--max-new", "6"],
        ["--data", "{questions}", "--max-new", "6", "--kind", "calibrated", "--judge", "{classifier}"],
    ],
    "pangu_embedded": [
        ["--data", "{questions}", "--max-new", "6", "--kl", "0.1", "--curriculum"],
        ["--data", "{questions}", "--max-new", "6", "--also", "chat={questions}={classifier},more={questions}=exact"],
    ],
    "q_rm": [
        ["--data", "{questions}", "--max-new", "6", "--pairs", "{pairs}", "--pair-steps", "2"],
        ["--data", "{questions}", "--max-new", "6", "--pairs", "{pairs}", "--pair-steps", "2", "--method", "ppo"],
    ],
    "reward_fairness": [
        ["--data", "{pairs}", "--category", "category"],
        ["--data", "{pairs}", "--target", "policy", "--kind", "coefficient"],
    ],
    "rl_wall": [
        ["--data", "{questions}", "--held-out", "{questions}", "--max-new", "6", "--samples", "2"],
        ["--data", "{questions}", "--held-out", "{questions}", "--max-new", "6", "--samples", "2", "--judge", "self"],
    ],
}


@pytest.mark.parametrize(("name", "options"), [(name, options) for name in NAMES for options in FULL[name]])
def test_at_full_scale_on_a_checkpoint_of_the_hub_s_format(name, options, request, tmp_path):
    """Braces in an option name a fixture: a checkpoint or a file."""
    out = tmp_path / "run"
    model = [] if "--model" in options else ["--model", "{checkpoint}"]
    given = [
        option.format(
            **{field: request.getfixturevalue(field) for _, field, _, _ in Formatter().parse(option) if field}
        )
        for option in [*model, *options]
    ]
    main(["run", name, "--scale", "full", *given, "--steps", "1", "--tasks", "2", "--out", str(out), "--quiet"])
    assert list((out / "model").glob("*config.json")) + list((out / "model").glob("model_index.json"))
    assert list((out / "model").rglob("*.safetensors"))
    assert (out / "report.html").is_file()


def test_the_command_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    shown = capsys.readouterr().out
    assert all(name.replace("_", "-") in shown and systems.first_line(name) in shown for name in NAMES)
    with pytest.raises(SystemExit):
        main(["run", "entropy", "--help"])
    assert "--method {kl_cov,clip_cov,grpo,clip_higher,entropy_bonus}" in " ".join(capsys.readouterr().out.split())
    for arguments, message in (
        (["run", "entropi"], "did you mean entropy?"),
        (["run", "entropy", "--scale", "huge"], "--scale huge: unknown, the choices are laptop, full"),
        (["train", "--data", "x.jsonl", "--out", "r", "--with", "entropy.klcov"], "there is no such file"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err


def test_a_system_is_not_started_on_several_ranks(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        main(["run", "entropy"])
    assert "posttrain run learns in one process: start it without torchrun" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "scale"), product(NAMES, ("laptop", "full")))
def test_help_explains_every_option_of_a_system(name, scale):
    function = getattr(systems.load(name), scale)
    prose, explained = documented(function)
    own = [option for option, kind in get_type_hints(function).items() if option != "return" and not is_dataclass(kind)]
    assert [option for option in own if f":param {option}: " not in explained.__doc__] == []
    assert not any(line.partition("  ")[2] for line in prose.splitlines()), "a text of an option that is not there"


def test_help_takes_an_option_s_text_over_several_lines():
    def function(kind: str = "a", count: int = 3) -> tuple[str, int]:
        """What it does.

        kind   of two kinds, of which the second
               is another
        count  how many
        More of it.
        """
        return kind, count

    prose, explained = documented(function)
    assert prose == "What it does.\n\nMore of it."
    assert ":param kind: of two kinds, of which the second is another\n:param count: how many" in explained.__doc__
    assert explained(count=4) == ("a", 4)


@pytest.mark.parametrize("name", NAMES)
def test_every_system_has_its_page(name):
    page = (ROOT / "docs" / "systems" / f"{name.replace('_', '-')}.md").read_text()
    for part in ("arXiv", f"posttrain run {name.replace('_', '-')}", ".svg", "## What differs"):
        assert part in page, part
    assert name.replace("_", "-") in (ROOT / "docs" / "claims.md").read_text()


# ---- composition: an idea of one paper with an idea of another

ADVANTAGES = {"normalised": normalised, "centred": centred, "leave one out": leave_one_out, "by decision": by_decision}
LOSSES = {
    "clipped": lambda: pt.clipped(),
    "kl_cov": lambda: kl_cov(0.3, 2.0),
    "clip_cov": lambda: clip_cov(0.3, 0.0),
    "likelihood": lambda: pt.likelihood,
}
PLAIN = pt.each(lambda rollout: sum(map(ord, rollout.text)) % 7 / 6)  # in [0, 1], and varies with any sample
REWARDS = {
    "plain": lambda policy: PLAIN,
    "varied": lambda policy: varied(PLAIN),
    "varied, policy's weights": lambda policy: varied(PLAIN, weights="policy", reference=policy),
    "flipped": lambda policy: flipped(PLAIN, 0.4),
    "calibrated": lambda policy: calibrated(PLAIN, patterned()),
    "majority": lambda policy: majority(lambda text: text[:1] or None),
    "by token": lambda policy: by_token(lambda group: [torch.linspace(0, 1, one.decisions) for one in group]),
    "varied of flipped": lambda policy: varied(flipped(PLAIN, 0.4)),
}
REGULARISERS = {
    "none": [],
    "diversity": [(0.5, diversity())],
    "diversity of all": [(0.5, diversity(False))],
    "entropy": [(0.01, pt.entropy_bonus)],
    "kl": [(0.04, pt.kl_to_reference())],
}


@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_any_advantage_with_any_loss_reward_and_regulariser(make, advantage):
    """One step each of all 640 combinations: parameters change and stay finite. Its matrix stands in docs/systems.md."""
    policy = make(max_new=3)
    reference = policy.frozen()
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    for loss, reward, more in product(LOSSES, REWARDS, REGULARISERS):
        policy.load_state_dict(start)
        recipe = pt.Recipe(
            REWARDS[reward](reference),
            advantage=ADVANTAGES[advantage],
            loss=pt.total((1.0, LOSSES[loss]()), *REGULARISERS[more]),
            samples=3,
            updates=2,
            reference=reference if more == "kl" else None,
        )
        source = pt.Shuffled([task("a"), task("b")])
        experience = pt.gather(policy, source, recipe, 2, seed=1)
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
        metrics = pt.update(
            policy, optimizer, experience.rows, recipe.loss, reference=recipe.reference, updates=recipe.updates
        )
        where = (advantage, loss, reward, more)
        assert all(torch.isfinite(value).all() for value in policy.state_dict().values()), where
        taught = any(one.advantage.any() for one in experience.rows)
        flat = not taught and more in ("none", "diversity", "kl")  # nothing to learn from, or not yet
        assert metrics["grad_norm"] > 0 or flat, where


def test_parts_join_by_name(make):
    recipe = pt.grpo(PLAIN, samples=3)
    made = with_parts(recipe, named("entropy.kl_cov + diversity.positive, grpovi.varied"), tiny=True)
    assert made.updates >= 4
    assert made.samples == 3
    assert len(systems.parts()) == sum(len(systems.load(name).PARTS) for name in NAMES)
    for wrong, message in (("entropi.kl_cov", "did you mean entropy"), ("entropy.klcov", "did you mean kl_cov")):
        with pytest.raises(ValueError, match=message):
            with_parts(recipe, [wrong], tiny=True)


def test_parts_that_replace_the_surrogate_leave_other_terms():
    plain = pt.grpo(pt.each(lambda rollout: 0.0), kl=0.1, reference=TextPolicy)
    divergence = plain.loss.terms[1][1]
    for names in (["rl_with_cold_start.dual_clip"], ["entropy.kl_cov"], ["diversity.positive", "entropy.clip_cov"]):
        found = list(parts(with_parts(plain, names, tiny=True).loss))
        assert divergence in found
        assert plain.loss.terms[0][1] not in found
        assert sum(not isinstance(part, Total) for part in found) == 1 + len(names)


def test_combinations_are_trained_side_by_side(briefly, tmp_path, capsys):
    out = tmp_path / "comparison"
    arguments = ["compare", "grpo", "grpo + entropy.kl_cov + diversity.positive", "--out", str(out)]
    size = ["--steps", "2", "--tasks", "2", "--samples", "3", "--seeds", "2", "--quiet"]
    main([*arguments, *size])
    shown = capsys.readouterr().out
    assert "held out against the first" in shown
    assert "grpo + entropy.kl_cov + diversity.positive" in (out / "comparison.html").read_text()
    main([*arguments, *size])  # what has been run is read
    assert capsys.readouterr().out == shown
    with pytest.raises(SystemExit):
        main([*arguments, *size, "--temperature", "0.5"])
    assert "was started with temperature = 1.0, not 0.5" in capsys.readouterr().err
    first = out / "grpo-0" / "run.json"
    before = json.loads(first.read_text())["started"]
    main([*arguments, *size, "--overwrite"])
    assert json.loads(first.read_text())["started"] != before


def test_training_takes_parts_of_systems(checkpoint, questions, tmp_path):
    out = tmp_path / "run"
    parts = ["--with", "entropy.kl_cov,diversity.positive"]
    options = ["--data", questions, "--model", checkpoint, "--max-new", "6", "--steps", "1", "--tasks", "2", *parts]
    main(["train", *options, "--out", str(out), "--quiet"])
    assert json.loads((out / "run.json").read_text())["run"]["settings"]["with_"] == "entropy.kl_cov,diversity.positive"
    assert "cov_share" in pt.read_metrics(out)[0]
