"""SRRL: a diffusion model reflects on what it drew, and reinforcement trains the redrawing (arXiv:2505.22407).

A picture is a walk of denoising steps, each a decision with a Gaussian density, so that PPO trains it (DDPO). Here the
walk does not begin at fresh noise: the model draws, its picture is led back to noise, and it draws again, round after
round (`reflected`). From B2-DiffuRL come branches of one trunk, of which the best and the worst are learned from
(`Stages`, `selected`), and z-scores over a prompt's last groups (`Windowed`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from posttrain.cli.options import RunOptions, hashed, naming
from posttrain.core import Reward
from posttrain.grade.clip import clip_similarity
from posttrain.grade.own import reward_file
from posttrain.lab.world.balance import Balance
from posttrain.lab.world.pictures import base
from posttrain.policy.denoise import Reduction
from posttrain.policy.diffusion import Denoising
from posttrain.policy.pipeline import diffusion
from posttrain.recipe import Part, credited
from posttrain.reward import each
from posttrain.run.session import Session
from posttrain.step import train
from posttrain.stream import Shuffled
from posttrain.systems.srrl.claims import ARMS, BRANCHES, CLAIMS, SHOWN, TINY, TINY_DENOISING
from posttrain.systems.srrl.method import recipe
from posttrain.systems.srrl.reflection import Trained
from posttrain.systems.srrl.selection import Windowed, selected
from posttrain.systems.srrl.stages import LASTS, Stages, growing, read_prompts

__all__ = ["ARMS", "CLAIMS", "PARTS", "SHOWN", "full", "laptop", "recipe"]

PARTS: Mapping[str, Part] = {
    "windowed": lambda plain, tiny: replace(plain, advantage=Windowed()),
    "selected": lambda plain, tiny: replace(plain, advantage=selected(plain.advantage), keep=credited),
}


def laptop(
    rounds: int = 2,
    trained: Trained = "last",
    branches: bool = False,
    inverted: bool = False,
    run: RunOptions = RunOptions("runs/srrl", steps=24, tasks=2, lr=5e-4),
) -> Session:
    """Pictures of a balance, 8x8: the base model draws what it is told and obeys physics half of the time.

    rounds    of reflection, which the run grows to in equal parts; 0 is DDPO
    trained   the last round's picture, or all of them, each by its own reward
    branches  5 branches of a trunk, of which the best and the worst are trained (take --tasks 12)
    inverted  the heavy side must rise
    """
    at_least(0, rounds=rounds)
    at_least(1, steps=run.steps)
    world = Balance(run.seed, inverted)
    policy = base(Balance(run.seed), run.seed, TINY, TINY_DENOISING)
    samples, select = (BRANCHES, 0.5) if branches else (32, None)
    made = recipe(each(world.graded), rounds=rounds, trained=trained, samples=samples, select=select, epochs=1)
    every = max(-(-run.steps // (rounds + 1)), 1)
    lasts = [max(last * TINY_DENOISING.steps // 20, 1) for last in LASTS] if branches else []
    source = Stages(Shuffled(world.tasks(), run.seed), growing(run.steps, every), lasts, run.seed)
    described = {"rounds": rounds, "trained": trained, "branches": branches, "inverted": inverted}
    return train(policy, source, made, run.run(**described), held_out=world.tasks() * 32)


def full(
    data: str,
    model: str = "CompVis/stable-diffusion-v1-4",
    run: RunOptions = RunOptions("runs/srrl", steps=50, tasks=32, lr=1e-4, weight_decay=1e-4),
    reward: str = "clip=laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    held_out: str | None = None,
    method: Literal["srrl", "ddpo"] = "srrl",
    trained: Trained = "last",
    branches: int = 5,
    every: int = 5,
    rounds: int = 9,
    denoising: int = 20,
    guidance: float = 5.0,
    w_denoise: float = 3.0,
    w_invert: float = 0.1,
    reduction: Reduction = "mean",
    clip: float = 0.1,
    lora: int = 4,
    bf16: bool = False,
    at_once: int = 8,
    device: str | None = None,
) -> Session:
    """Your Stable Diffusion checkpoint on your prompts, as released: 50 stages of 32 prompts x 5 branches, LoRA.

    data       a JSON list of prompts
    model      Hub id or folder in diffusers' layout: unet, vae, text_encoder, tokenizer, scheduler
    reward     clip=MODEL, or file.py:function of a rollout, whose last reply's content is the picture
    held_out   another JSON list, graded every --eval-every steps after --rounds of reflection
    method     srrl, or ddpo: no reflection, no branches, nothing selected
    trained    the last round's picture, or all of them, each by its own reward
    branches   of one trunk, of which the best and the worst are trained; ddpo: samples of a prompt
    every      stages after which there is one more round of reflection
    rounds     the most rounds
    denoising  steps of a walk
    guidance   weight of the text in trained walks
    w_denoise  weight of the text in drafts
    w_invert   weight of the text on the way back to noise
    reduction  of a step's log-probability: mean over numbers of the latents, or sum (then take a far smaller --lr)
    clip       of the ratio; with the mean 0.1 hardly ever holds, DDPO's release has 1e-4
    lora       rank of the adapter on attention; 0 trains the whole UNet
    bf16       run the models under bfloat16 autocast; weights and the optimizer stay float32
    device     cpu or cuda; the GPU if there is one
    at_once    latents in the UNet at a time, those with and those without the text counted: memory, never the result
    """
    at_least(1, branches=branches, every=every, denoising=denoising, steps=run.steps)
    at_least(0, rounds=rounds, lora=lora)
    at_least(2, at_once=at_once)
    if clip <= 0:
        raise ValueError(f"--clip {clip}: it must be above 0")
    how = Denoising(denoising, 1.0, guidance, w_denoise, w_invert, reduction)
    with naming("--data", "--held-out"):
        tests = read_prompts(held_out) if held_out else []
    tasks = read_prompts(data)
    grade = graded_by(reward, device)
    policy = diffusion(model, how, lora=lora, bf16=bf16, batch=at_once, device=device)
    plain = method == "ddpo"
    count, select = (0, None) if plain else (rounds, 0.5)
    made = recipe(grade, rounds=count, trained=trained, samples=branches, select=select, clip=clip)
    counts = [0] if plain else [min(count, rounds) for count in growing(run.steps, every)]
    lasts = [] if plain else [max(last * denoising // 20, 1) for last in LASTS]
    source = Stages(Shuffled(tasks, run.seed), counts, lasts, run.seed)
    described = {"data": data, "model": model, "reward": reward, "held_out": held_out, "method": method}
    described |= {"branches": branches, "every": every, "rounds": rounds, "denoising": how, "lora": lora, "bf16": bf16}
    return train(policy, source, made, run.run(**described, **hashed(data)), held_out=tests)


def at_least(least: int, **options: int) -> None:
    """Raises ValueError naming the first option that is less."""
    for name, value in options.items():
        if value < least:
            raise ValueError(f"--{name.replace('_', '-')} {value}: it must be at least {least}")


def graded_by(reward: str, device: str | None) -> Reward:
    """Raises ValueError for what is neither clip=MODEL nor file.py:function."""
    kind, sign, name = reward.partition("=")
    if sign and kind == "clip":
        return clip_similarity(name, device)
    if ":" in reward:
        return reward_file(reward)
    raise ValueError(f"--reward {reward}: write clip=MODEL, or file.py:function for a reward of your own")
