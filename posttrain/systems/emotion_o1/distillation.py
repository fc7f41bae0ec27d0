"""A teacher's chains with the right label, kept as they come.

replies.jsonl   what came of every utterance so far; work that was interrupted goes on after it
chains.jsonl    the chains that are kept, in the order of their utterances: what is learnt
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import posttrain as pt
from posttrain.grade.stated import whole_reply
from posttrain.systems.emotion_o1.reply import stated
from posttrain.systems.emotion_o1.reward import Truth

REPLIES, CHAINS = "replies.jsonl", "chains.jsonl"


def right_chains(
    teacher: pt.Sampler, tasks: list[pt.Task[Truth]], candidates: int, output: pt.Output
) -> list[Mapping[str, Any]]:
    """Chains with the right label, in the order of their tasks, written to both files of a folder that is there.

    Raises ValueError when more than a tenth of the utterances could not be answered.
    """
    out, seed = Path(output.out), pt.mix(output.seed, "teacher")
    options: dict[str, Any] = {"samples": candidates, "seed": seed, "name": "utterances", "quiet": output.quiet}
    kept = pt.kept_lines(pt.collect(teacher, tasks, right_chain, out / REPLIES, **options))
    pt.ranks.run_on_primary(lambda: pt.Lines(out / CHAINS).replace(kept), "for the chains")
    return kept


def right_chain(group: pt.Group) -> Mapping[str, Any] | pt.Invalid:
    """The first reply in form that has the right label."""

    def is_right(one: pt.Rollout) -> bool:
        said = stated(whole_reply(one), one.task.truth.labels)
        return said is not None and said.label == one.task.truth.label

    found, truth = pt.first_kept(group, is_right), group[0].task.truth
    return found if isinstance(found, pt.Invalid) else {"task": truth.task, "label": truth.label, **found}
