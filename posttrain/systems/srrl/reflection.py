"""Reflection: what was drawn is led back to noise, and drawn again from there.

In a conversation that is one more ask: the policy is shown its own picture, and what it draws next begins at the noise
from which that picture would come under the same text. It was drawn with a strong weight on the text (`w_denoise`) and
is led back with a weak one (`w_invert`): what the difference writes into the noise stays there. Names as in the paper:
the release's "forward guidance" is of the denoising, its "backward" of the inversion, which the paper calls forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import posttrain as pt

Trained = Literal["last", "all"]


def reflected(rounds: int = 0, trained: Trained = "last") -> pt.Env:
    """Draw so many rounds, each from the last one's picture, before the picture that counts.

    trained   "last": the rounds before are drafts without noise and without decisions, as released; "all": every round
              is drawn and trained alike, as the paper has it. Either way no gradient goes back from round to round.
    A task that names its own number of rounds (see `Curriculum`) overrides `rounds`. With 0 it is DDPO's single walk.
    Raises ValueError for a negative number.
    """
    if rounds < 0:
        raise ValueError(f"reflected({rounds}): the number of rounds is 0 or more")

    def env(task: pt.Task) -> pt.Episode:
        prompt, own = prompt_and_rounds(task.prompt)
        messages = prompt
        for _ in range(rounds if own is None else own):
            draft = yield from pt.ask(messages, temperature=0.0 if trained == "last" else None)
            messages = (*prompt, pt.assistant(draft))
        yield from pt.ask(messages)

    return env


def rounds_part(rounds: int) -> dict[str, Any]:
    """A part of a prompt's content, for the environment and not for the policy."""
    return {"type": "rounds", "rounds": rounds}


def prompt_and_rounds(prompt: tuple[pt.Message, ...]) -> tuple[tuple[pt.Message, ...], int | None]:
    """The prompt as the policy is to see it, and the rounds that it names."""
    found: list[int] = []
    shown: list[pt.Message] = []
    for message in prompt:
        content = message["content"]
        if isinstance(content, list):
            found += [part["rounds"] for part in content if is_rounds(part)]
            content = [part for part in content if not is_rounds(part)]
        shown.append({**message, "content": content})
    return (tuple(shown), found[-1]) if found else (prompt, None)


def is_rounds(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "rounds"


def every_round(reward: pt.Reward) -> pt.Reward:
    """The reward of every round's picture as its turn's; the last one's is the value, the first one's a part."""

    def wrapped(group: pt.Group) -> list[pt.Score | pt.Invalid]:
        rounds = [cut for rollout in group for cut in cut_after_each_turn(rollout)]
        left = iter(pt.group_scores(reward, rounds) if rounds else [])
        return [score_of_rounds([next(left) for _ in rollout.turns]) for rollout in group]

    return wrapped


def cut_after_each_turn(rollout: pt.Rollout) -> list[pt.Rollout]:
    """The rollout as it was after each of its turns."""
    return [replace(rollout, turns=rollout.turns[: k + 1]) for k in range(len(rollout.turns))]


def score_of_rounds(scores: list[pt.Score | pt.Invalid]) -> pt.Score | pt.Invalid:
    valid = [score for score in scores if isinstance(score, pt.Score)]
    if len(valid) < len(scores) or not valid:
        return next((score for score in scores if isinstance(score, pt.Invalid)), pt.Invalid("nothing was drawn"))
    parts = {**valid[-1].parts, "first round": valid[0].value}
    return replace(valid[-1], turns=tuple(score.value for score in valid), parts=parts)
