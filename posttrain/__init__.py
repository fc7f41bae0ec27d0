"""Reinforcement learning for language models: one small core on which published post-training systems run.

    import posttrain as pt

    tasks = pt.read("questions.jsonl", prompt="question", answer="answer")
    policy = pt.text("Qwen/Qwen2.5-0.5B-Instruct")
    pt.train(policy, tasks, pt.grpo(reward=pt.grade.math), pt.Run("runs/first", steps=200))

Every name is loaded when it is first used, so that importing the package stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

PUBLIC: dict[str, tuple[str, ...]] = {
    "core": (
        *("Advantage", "Ask", "Batch", "Density", "Env", "Episode", "Group", "Invalid", "Loss", "Message", "Metrics"),
        *("Policy", "Reduce", "Reply", "Reward", "Rollout", "Row", "Sampler", "Score", "Task", "Turn"),
    ),
    "episode": ("ask", "ask_all", "assistant", "play", "rollout", "single_turn", "system", "tool", "user"),
    "data": ("Demonstration", "Pair", "read", "read_demonstrations", "read_pairs"),
    "reward": ("cached", "each", "first", "gated", "informative", "overlong", "reshaped", "weighted"),
    "advantage": (
        *("best", "centred", "distilled", "fill", "leave_one_out", "normalised", "normalised_by_turn", "raw"),
        *("to_go", "to_go_by_turn", "whitened"),
    ),
    "loss": (
        *("WholeStep", "clipped", "constant_length", "entropy_bonus", "likelihood", "prompt_mean", "sequence_mean"),
        *("token_mean", "total"),
    ),
    "kl": ("k1", "k2", "k3", "kl_in_reward", "kl_to_reference"),
    "method": ("cispo", "dapo", "dr_grpo", "expert_iteration", "grpo", "gspo", "ppo", "reinforce_pp", "rloo"),
    "row": ("flatten", "rows"),
    "stream": ("Shuffled", "Source"),
    "step": ("Recipe", "credited", "finished", "gather", "learn", "train", "update"),
    "run": ("Run", "Session"),
    "directory": ("read_metrics", "read_rollouts"),
    "supervised": ("sft", "traces"),
    "preference": ("dpo", "ipo", "kto", "orpo", "prefer", "simpo", "train_reward_model"),
    "policy.text": ("TextPolicy",),
    "policy.load": ("text",),
    "policy.value": ("Critic", "Gae", "RewardModel", "reward_model"),
    "evaluation": ("evaluate",),
    "claim": ("Claim", "run_claim"),
    "check": ("check_env", "check_loss", "check_policy", "check_reward"),
}
MODULES = ("grade", "measure")
HOME = {name: module for module, names in PUBLIC.items() for name in names}
__all__ = [*HOME, *MODULES]  # noqa: PLE0604

if TYPE_CHECKING:
    from posttrain import grade, measure
    from posttrain.advantage import *
    from posttrain.check import *
    from posttrain.claim import *
    from posttrain.core import *
    from posttrain.directory import *
    from posttrain.episode import *
    from posttrain.evaluation import *
    from posttrain.kl import *
    from posttrain.loss import *
    from posttrain.method import *
    from posttrain.policy.load import *
    from posttrain.policy.text import *
    from posttrain.policy.value import *
    from posttrain.preference import *
    from posttrain.data import *
    from posttrain.reward import *
    from posttrain.row import *
    from posttrain.run import *
    from posttrain.stream import *
    from posttrain.supervised import *
    from posttrain.step import *


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return importlib.import_module(f"posttrain.{name}")
    if name in HOME:
        return getattr(importlib.import_module(f"posttrain.{HOME[name]}"), name)
    raise AttributeError(f"posttrain has no {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
