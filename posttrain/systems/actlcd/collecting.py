"""What a gate learns from at the scale of a checkpoint, collected piece by piece and kept beside the run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import posttrain as pt
from posttrain.decode.decode import decode_replies
from posttrain.systems.actlcd.checking import Checker
from posttrain.systems.actlcd.gate import GatePolicy
from posttrain.systems.actlcd.labels import FIELDS, Transitions, concatenate, labels, sequence
from posttrain.systems.actlcd.learning import transitions

Piece: TypeAlias = Callable[[Sequence[pt.Task], int], Transitions]  # some tasks, and the place of their first

PIECES = "*.safetensors"
AT_ONCE = 64  # tasks of a piece: an interruption loses no more


def reference(task: pt.Task) -> str:
    """The answer that is read token by token. Raises ValueError, naming the task, where there is no text."""
    if not isinstance(task.truth, str) or not task.truth.strip():
        raise ValueError(
            f"task {task.key!r}: its answer is {task.truth!r}, and a gate learns from the text of answers: "
            "name their column by `answer`"
        )
    return task.truth


def read_along(policy: GatePolicy, tasks: Sequence[pt.Task], seed: int, start: int = 0) -> Transitions:
    """The gate's choices while it reads reference answers: at each token, what both actions would have said.

    The right token is the reference's, whatever the gate chose (teacher forcing): a wording that differs counts as
    wrong, where plain and contrast agree on it for both of them. Answers are cut at the policy's `max_new`. The first
    of the tasks is number `start` of all.
    """
    longest = policy.speaker.sampling.max_new
    told = [policy.speaker.chat.demonstration_tokens(task.prompt, reference(task)) for task in tasks]
    asks = [pt.Ask(task.prompt, seed=pt.mix(seed, start + i)) for i, task in enumerate(tasks)]
    made = decode_replies(
        policy.speaker,
        [one.prompt for one in told],
        policy.chooser(asks, longest),
        policy.how,
        max_new=longest,
        forced=[one.reply[:longest] for one in told],
    )
    parts: list[Transitions] = []
    for one in made:
        label = labels(one.notes["plain"], one.notes["other"], torch.tensor(one.ids))
        parts.append(sequence(one.notes["features"], one.contrast, label))
    return concatenate(parts)


def tokens_to_read(policy: GatePolicy, tasks: Sequence[pt.Task]) -> int:
    """The number of transitions that `read_along` will find."""
    chat, longest = policy.speaker.chat, policy.speaker.sampling.max_new
    return sum(min(len(chat.demonstration_tokens(task.prompt, reference(task)).reply), longest) for task in tasks)


def graded_sequences(
    policy: GatePolicy, tasks: Sequence[pt.Task], checker: Checker, samples: int, seed: int, start: int = 0
) -> Transitions:
    """Rollouts of the gate, paid at their last token what the grader gives; what it cannot grade is left out.

    Raises ValueError when it can grade none of them.
    """
    players = {"policy": policy, **checker.others}
    found = pt.evaluate(players, tasks, checker.reward, checker.env, samples=samples, seed=seed + start)
    parts = [
        transitions(one, torch.full((one.decisions,), -1), score=score.value)
        for one, score in found.graded
        if one.decisions
    ]
    return concatenate(parts)


def collect(
    folder: Path, tasks: Sequence[pt.Task], pieces: dict[str, Piece], *, quiet: bool = False
) -> dict[str, Transitions]:
    """The transitions of every kind over all tasks. Pieces that are in the folder already are read, not made again.

    A piece is a file, written as soon as it is made. Raises ValueError for a file that cannot be read.
    """
    out: dict[str, Transitions] = {}
    try:
        for kind, piece in pieces.items():
            parts: list[Transitions] = []
            with pt.progress_bar(f"collecting ({kind})", len(tasks), quiet) as done:
                for start in range(0, len(tasks), AT_ONCE):
                    some, file = tasks[start : start + AT_ONCE], folder / f"{kind}-{start:06d}.safetensors"
                    if not file.is_file():
                        write_piece(piece(some, start), file)
                    parts.append(read_piece(file))
                    done(len(some))
            out[kind] = concatenate(parts)
    except KeyboardInterrupt as stop:
        stop.add_note(f"what was collected is in {folder}; continue with the same command and `resume=True`")
        raise
    return out


def write_piece(data: Transitions, file: Path) -> None:
    scratch = file.with_suffix(".writing")
    save_file({name: getattr(data, name).contiguous() for name in FIELDS}, scratch)
    os.replace(scratch, file)


def read_piece(file: Path) -> Transitions:
    try:
        return Transitions(**load_file(file))
    except (SafetensorError, TypeError) as error:
        raise ValueError(f"{file} cannot be read: {error}; delete it, and `resume=True` collects it again") from error
