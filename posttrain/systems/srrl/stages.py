"""SRRL on pictures of a balance, and on a Stable Diffusion checkpoint and prompts of the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import posttrain as pt
from posttrain.grade.own import reward_file
from posttrain.policy.denoise import Reduction
from posttrain.systems.srrl import recipe
from posttrain.systems.srrl.curriculum import Curriculum, lasts_of, read_prompts, rounds_by_stage
from posttrain.systems.srrl.reflection import Trained


@dataclass(frozen=True)
class DrawingOptions:
    """The model, and how it draws."""

    model: str = "CompVis/stable-diffusion-v1-4"
    """Hub id or folder in diffusers' layout: unet, vae, text_encoder, tokenizer, scheduler."""
    denoising: int = 20
    """Steps of a walk."""
    guidance: float = 5.0
    """Weight of the text in trained walks."""
    w_denoise: float = 3.0
    """Weight of the text in drafts."""
    w_invert: float = 0.1
    """Weight of the text on the way back to noise."""
    reduction: Reduction = "mean"
    """Of a step's log-probability: mean over the numbers of the latents, or sum (then take a far smaller `lr`)."""
    lora: int = 4
    """Rank of the adapter on attention; 0 trains the whole UNet."""
    bf16: bool = False
    """Run the models under bfloat16 autocast; weights and the optimizer stay float32."""
    at_once: int = 8
    """Latents in the UNet at a time, those with and those without the text counted: memory, never the result."""
    device: str | None = None
    """cpu or cuda; the GPU if there is one."""

    def __post_init__(self):
        pt.at_least(1, denoising=self.denoising)
        pt.at_least(0, lora=self.lora)
        pt.at_least(2, at_once=self.at_once)

    def policy(self) -> pt.DiffusionPolicy:
        how = pt.Denoising(self.denoising, 1.0, self.guidance, self.w_denoise, self.w_invert, self.reduction)
        options = {"lora": self.lora, "bf16": self.bf16, "batch": self.at_once, "device": self.device}
        return pt.diffusion(self.model, how, **options)


@dataclass(frozen=True)
class ReflectionOptions:
    """SRRL, or DDPO without its parts."""

    method: Literal["srrl", "ddpo"] = "srrl"
    """srrl, or ddpo: no reflection, no branches, nothing selected."""
    trained: Trained = "last"
    """The last round's picture, or all of them, each by its own reward."""
    rounds: int = 9
    """The most rounds of reflection."""
    every: int = 5
    """Stages after which there is one more round."""

    def __post_init__(self):
        pt.at_least(1, every=self.every)
        pt.at_least(0, rounds=self.rounds)
        for name in ("trained", "rounds", "every"):
            value = getattr(self, name)
            if self.method == "ddpo" and value != getattr(ReflectionOptions, name):
                raise ValueError(f"`{name}={value}`: `method=ddpo` has no rounds of reflection; leave it out")


@pt.one_process("a diffusion model's UNet is not sharded, and vLLM does not sample it")
def learn(
    data: str,
    drawing: DrawingOptions,
    reflection: ReflectionOptions,
    run: pt.Run = pt.Run("runs/srrl", steps=50, tasks=32, lr=1e-4, weight_decay=1e-4),
    reward: str = "clip=laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    branches: int = 5,
    clip: float = 0.1,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """Your Stable Diffusion checkpoint on your prompts, as released: 50 stages of 32 prompts x 5 branches, LoRA.

    data      a JSON list of prompts
    reward    clip=MODEL, or file.py:function of a rollout, whose last reply's content is the picture
    branches  of one trunk, of which the best and the worst are trained; ddpo: samples of a prompt
    clip      of the ratio; with the mean 0.1 hardly ever holds, DDPO's release has 1e-4
    held_out  more lists of prompts, graded every `eval_every` steps after `rounds` of reflection: FILE, or NAME=FILE
    """
    pt.at_least(1, branches=branches)
    if clip <= 0:
        raise ValueError(f"`clip={clip}`: it must be above 0")
    tasks = read_prompts(data)
    tests = {name: read_prompts(file) for name, file in pt.named_files(held_out).items()}
    grade, policy = reward_of(reward, drawing.device), drawing.policy()
    most, select, counts, lasts = 0, None, [0], list[int]()
    if reflection.method == "srrl":
        most, select, lasts = reflection.rounds, 0.5, lasts_of(drawing.denoising)
        counts = [min(count, most) for count in rounds_by_stage(run.steps, reflection.every)]
    made = recipe(grade, rounds=most, trained=reflection.trained, samples=branches, select=select, clip=clip)
    return pt.train(
        policy, Curriculum(pt.ShuffledSource(tasks, run.seed), counts, lasts, run.seed), made, run, held_out=tests
    )


def reward_of(reward: str, device: str | None) -> pt.Reward:
    """Raises ValueError for what is neither clip=MODEL nor file.py:function."""
    kind, sign, name = reward.partition("=")
    if sign and kind == "clip":
        return pt.clip_similarity(name, device)
    if ":" in reward:
        return reward_file(reward)
    raise ValueError(f"`reward={reward}`: write clip=MODEL, or file.py:function for a reward of your own")


@pt.one_process("a tiny UNet is trained")
def laptop(
    rounds: int = 2,
    trained: Trained = "last",
    branches: bool = False,
    inverted: bool = False,
    run: pt.Run = pt.Run("runs/srrl", steps=24, tasks=2, lr=5e-4),
) -> pt.Session:
    """Pictures of a balance, 8x8: the base model draws what it is told and obeys physics half of the time.

    rounds    of reflection, which the run grows to in equal parts; 0 is DDPO
    trained   the last round's picture, or all of them, each by its own reward
    branches  5 branches of a trunk, of which the best and the worst are trained (take `tasks=12`)
    inverted  the heavy side must rise
    """
    from posttrain.lab.world.balance import Balance
    from posttrain.systems.srrl.lab import BRANCHES, SAMPLES, base_policy

    pt.at_least(0, rounds=rounds)
    world, policy = Balance(run.seed, inverted), base_policy(run.seed)
    samples, select = (BRANCHES, 0.5) if branches else (SAMPLES, None)
    made = recipe(pt.each(world.score), rounds=rounds, trained=trained, samples=samples, select=select, epochs=1)
    counts = rounds_by_stage(run.steps, max(-(-run.steps // (rounds + 1)), 1))
    lasts = lasts_of(policy.denoising.steps) if branches else []
    source = Curriculum(pt.ShuffledSource(world.tasks(), run.seed), counts, lasts, run.seed)
    return pt.train(policy, source, made, run, held_out=world.tasks() * 32)


STAGES = {"laptop": laptop, "train": learn}
