"""Fast and slow thinking in one model: switched by hand, or by what the model has seen itself to be able to.

A system message names the mode. For the automatic one, each prompt is answered a few times fast by the model itself;
where that is mostly right, the fusion set teaches it to answer such prompts fast, and slowly elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import posttrain as pt
from posttrain.systems.pangu_embedded.distillation import RIGHT

Mode: TypeAlias = Literal["fast", "slow", "auto"]
META: Mapping[Mode, str] = {  # as recalled from the paper; the automatic one is ours
    "fast": "META_PROMPT: system 1",
    "slow": "META_PROMPT: system 2",
    "auto": "META_PROMPT: system auto",
}
SAMPLES, LEAST = 4, 3  # fast answers of a prompt, and how many must be right: one lucky guess does not make it easy


def with_mode(messages: Sequence[pt.Message], mode: Mode) -> tuple[pt.Message, ...]:
    """The messages with the mode before them; a system message of theirs follows it in the same message."""
    if messages and messages[0]["role"] == "system":
        return (pt.system(f"{META[mode]}\n{messages[0]['content']}"), *messages[1:])
    return (pt.system(META[mode]), *messages)


def in_mode(tasks: Sequence[pt.Task], mode: Mode) -> list[pt.Task]:
    return [replace(task, prompt=with_mode(task.prompt, mode)) for task in tasks]


def fast_enough(
    policy: pt.Sampler,
    fast: Sequence[pt.Task],
    reward: pt.Reward,
    samples: int = SAMPLES,
    least: int = LEAST,
    seed: int = 0,
) -> list[bool]:
    """[P] whether at least `least` of the model's own fast answers to a task are right."""
    found = pt.evaluate({"policy": policy}, fast, reward, samples=samples, seed=seed)
    return [sum(value >= RIGHT for value in values) >= least for values in found.values]


def fusion_set(
    tasks: Sequence[pt.Task], easy: Sequence[bool], fast: Mapping[str, str], slow: Mapping[str, str]
) -> list[pt.Demonstration]:
    """Each task three times: in automatic mode with the reply that its label asks for, and in both manual modes.

    fast, slow   replies by the task's key; a task without one of them is left out where it would be needed
    """
    out = []
    for task, fits in zip(tasks, easy, strict=True):
        wanted: list[tuple[Mode, Mapping[str, str]]] = [
            ("auto", fast if fits else slow),
            ("fast", fast),
            ("slow", slow),
        ]
        for mode, replies in wanted:
            if task.key in replies:
                out.append(pt.Demonstration((*with_mode(task.prompt, mode), pt.assistant(replies[task.key]))))
    return out
