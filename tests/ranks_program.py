"""Run by tests/test_ranks.py under torchrun, and by itself: gradients and runs of a learner on one rank or on several."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import injection_checkpoints
import torch
import vision_checkpoints
from conftest import Spy, digits, task

import posttrain as pt
from posttrain import ranks, tiny
from posttrain.descent import update
from posttrain.policy import abilities
from posttrain.policy.load import load_policy
from posttrain.policy.pretrained import add_adapter
from posttrain.policy.text import Sampling, TextPolicy
from posttrain.scale.shards import shard
from posttrain.systems.entropy import kl_cov
from posttrain.systems.reward_fairness import margin_loss, pair_loss

KINDS = ("plain", "tied", "lora", "pictures", "parts", "trained parts")
LOSSES = {
    "clipped": (pt.clipped(), pt.token_mean),
    "sequence mean": (pt.clipped(), pt.sequence_mean),
    "whole step": (kl_cov(0.3, 2.0), pt.token_mean),
    "entropy": (pt.total((1.0, pt.clipped()), (0.01, pt.entropy_bonus)), pt.prompt_mean),
}


def made(kind: str, place: Path = Path()) -> TextPolicy:
    """`place` has the checkpoint of the policy that is shown parts: transformers writes none on a second rank."""
    if kind == "pictures":
        return vision_checkpoints.policy("qwen3_vl", max_new=6)
    if kind.endswith("parts"):
        return load_policy(str(place / f"made {kind}"), max_new=6, device="cpu")
    words = tiny.tokenizer()
    network = tiny.network(words, 0, hidden=32, layers=2, positions=256)
    if kind == "tied":
        network.config.tie_word_embeddings = True
        network.tie_weights()
    if kind == "lora":
        torch.manual_seed(3)
        network = add_adapter(network, 4)
        with torch.no_grad():  # a fresh adapter is zero: make it do something
            for name, p in network.named_parameters():
                if "lora_B" in name:
                    p.normal_(0, 0.1)
    return TextPolicy(network, words, Sampling(6))


def shown(kind: str, count: int) -> list[pt.Task]:
    """Of pictures and other parts some tasks have none: a rank may get rows of text alone."""
    if kind.endswith("parts"):
        return [replace(injection_checkpoints.TASKS[i % 5], key=str(i)) for i in range(count)]
    if kind != "pictures":
        return [task(str(i)) for i in range(count)]
    drawn = [[], [vision_checkpoints.noise(8, 8)], [vision_checkpoints.noise(8, 24)]]
    return [vision_checkpoints.task(str(i), *drawn[i % 3]) for i in range(count)]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gradients(kind: str, out: Path) -> None:
    """The gradient of every loss on the same rows, by name of the parameter."""
    policy = made(kind, out.parent.parent)
    reference = policy.frozen_copy()
    if ranks.world() > 1:
        shard(policy)
    source = pt.ShuffledSource(shown(kind, 5))
    varied = pt.each(lambda rollout: sum(map(ord, rollout.text)) % 7 / 6)  # differs with any two samples
    experience = pt.gather(policy, source, pt.grpo(varied, samples=4), 5, seed=1)
    found = {"logp": torch.cat([row.logp for row in experience.rows])}
    if kind != "trained parts":  # whose copy is made before it lies on several ranks
        late = policy.frozen_copy()
        with torch.no_grad():
            found["copied"] = late.density(experience.rows).logp
    for name, (loss, reduce) in LOSSES.items():
        spy = Spy(policy)
        more = {"reference": reference if name == "clipped" else None, "micro_tokens": 64}
        loss = pt.total((1.0, loss), (0.1, pt.kl_to_reference())) if name == "clipped" else loss
        update(policy, spy, experience.rows, loss, reduce, max_norm=1e9, **more)
        for key, p in policy.model.named_parameters():
            if p.grad is not None:
                found[f"{name}/{key}"] = whole(p.grad).clone()
    if ranks.is_primary():
        torch.save(found, out)


def run(kind: str, out: Path, steps: int, resume: bool) -> None:
    policy = made(kind)
    recipe = pt.dapo(pt.each(digits), max_new=6, samples=4)
    if ranks.world() > 1:
        shard(policy)
    settings = pt.Run(out, steps=steps, tasks=3, lr=1e-2, save_every=2, resume=resume, quiet=True)
    pt.train(policy, [task(str(i)) for i in range(7)], recipe, settings, held_out=[task("held")])


def decide(out: Path) -> None:
    """What each rank makes of bf16, of which the first has found that it is slow and the others that it is not."""
    abilities.bfloat16_slowdown = lambda: 6.5 if ranks.is_primary() else 0.5
    before = abilities.choose_bf16(True, torch.device("cpu"))
    abilities.agree_on_slowdown()
    chosen = [before, *(abilities.choose_bf16(True, torch.device(device)) for device in ("cpu", "cuda"))]
    pt.write_json(out / f"bf16-{ranks.rank()}.json", chosen)


PAIR_LOSSES = {"dpo": pt.dpo(), "coupled": pair_loss(margin_loss("coefficient")), "kto": pt.kto()}


def prefer(out: Path) -> None:
    """A run of every loss on pairs of unequal length, in micro-batches; two held-out sets."""
    pairs = [pt.Pair((pt.user(f"q {i}"),), f"{i} " * (1 + i % 3), f"{7 - i}") for i in range(7)]
    for name, loss in PAIR_LOSSES.items():
        policy = made("plain")
        settings = pt.Run(out / name, steps=3, tasks=5, lr=1e-2, micro_tokens=64, quiet=True)
        sets = {"a": pairs[:3], "b": pairs[3:]}
        pt.prefer(policy, pairs, loss, settings, reference=policy.frozen_copy(), held_out=sets)


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, kind, place = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    with ranks.process_group():
        if what == "gradients":
            decide(place)
        if what == "gradients":
            for one in KINDS:
                gradients(one, place / f"{one}.pt")
        elif what == "prefer":
            prefer(place)
        else:
            for one in sys.argv[4:]:
                name, steps, how = one.split("=")
                run(kind, place / name, int(steps), resume=how == "resume")
