"""A teacher's chains with the right label, kept as they come.

replies.jsonl   what came of every utterance so far; work that was interrupted goes on after it
chains.jsonl    the chains that are kept, in the order of their utterances: what is learnt
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import posttrain as pt
from posttrain.evaluation import GROUPS_AT_ONCE
from posttrain.grade.stated import whole_reply
from posttrain.systems.emotion_o1.reply import stated
from posttrain.systems.emotion_o1.reward import Truth

REPLIES, CHAINS = "replies.jsonl", "chains.jsonl"


def collect(
    teacher: pt.Sampler, tasks: list[pt.Task[Truth]], candidates: int, output: pt.Output
) -> list[dict[str, Any]]:
    """Chains with the right label, in the order of their tasks; an utterance that was asked about is not asked again.

    One that the teacher failed to answer is asked about again on a resume. Raises ValueError when it answers nothing.
    """
    out = Path(output.out)

    def known_chains() -> dict[str, Any]:
        return {str(line["id"]): dict(line) for line in pt.Lines(out / REPLIES).found}

    known = pt.ranks.run_on_primary(known_chains, "for the chains that are there")
    lines = pt.Lines(out / REPLIES) if pt.ranks.is_primary() else None
    left = [task for task in tasks if task.key not in known]
    quiet = output.quiet or not pt.ranks.is_primary()
    with pt.progress_bar("utterances", len(tasks), quiet) as done:
        done(len(tasks) - len(left))
        for start in range(0, len(left), GROUPS_AT_ONCE):
            some = left[start : start + GROUPS_AT_ONCE]
            seed = pt.mix(output.seed, some[0].key)
            found = pt.evaluate({"policy": teacher}, some, has_right_label(), samples=candidates, seed=seed)
            fresh = [chain(task, group) for task, group in zip(some, graded_groups(found), strict=True) if group]
            known |= {line["id"]: line for line in fresh}
            if lines:
                lines.add(*fresh)
            done(len(some))
    found_chains = [known[task.key] for task in tasks if known.get(task.key, {}).get("response") is not None]
    kept = [{name: value for name, value in row.items() if name != "first"} for row in found_chains]
    if pt.ranks.is_primary():
        pt.Lines(out / CHAINS, resume=False).replace(kept)
        if missing := sum(task.key not in known for task in tasks):
            print(
                f"warning: {missing} of {len(tasks)} utterances were not answered; resume asks again", file=sys.stderr
            )
    return kept


def has_right_label() -> pt.Reward:
    """1 for a reply in form, with the right label."""

    def grade(rollout: pt.Rollout) -> float:
        said = stated(whole_reply(rollout), rollout.task.truth.labels)
        return float(said is not None and said.label == rollout.task.truth.label)

    return pt.each(grade)


def graded_groups(found: pt.Evaluation) -> list[list[tuple[pt.Rollout, pt.Score]]]:
    """[P] the replies that the teacher gave, with their scores; what it could not answer is left out."""
    return [
        [(one, score) for one, score in zip(group, scores, strict=True) if isinstance(score, pt.Score)]
        for group, scores in zip(found.groups, found.scores, strict=True)
    ]


def chain(task: pt.Task[Truth], group: list[tuple[pt.Rollout, pt.Score]]) -> dict[str, Any]:
    """The first reply with the right label; None where there is none. `first` is what was said first, right or not."""
    right = next((whole_reply(one) for one, score in group if score.value == 1), None)
    about = {"id": task.key, "task": task.truth.task, "label": task.truth.label, "first": whole_reply(group[0][0])}
    return {**about, "prompt": list(task.prompt), "response": right}
