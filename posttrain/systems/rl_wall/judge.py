"""Plan, Execute and Verify of any model on any task, by a judge. The prompts are ours: the paper's are not released."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import posttrain as pt

QUESTIONS = {
    "plan": (
        "Judge only the plan of this solution: are its steps the right ones, in the right order, whatever mistakes are "
        "made in carrying them out?"
    ),
    "execute": (
        "Judge only the execution of this solution: is every step carried out without a mistake, whether or not it was "
        "the right step to take?"
    ),
    "verify": "Is the final answer of this solution right?",
}
VERDICT = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Assessment:
    """What a judge said of one solution; None where it said neither yes nor no."""

    plan: bool | None
    execute: bool | None
    verify: bool | None


def assess(judge: pt.Sampler, rollouts: Sequence[pt.Rollout], seed: int = 0) -> list[Assessment]:
    """Ask the judge three questions of every solution, each by itself; its last yes or no counts.

    None where the judge's server did not answer, as where it said neither. Several ranks ask a share each.
    """
    asks = [
        pt.Ask((pt.user(request(question, one)),), who="judge", seed=pt.mix(seed, name, i))
        for i, one in enumerate(rollouts)
        for name, question in QUESTIONS.items()
    ]
    mine = [reply.content for reply in judge.sample(pt.ranks.share(asks))]
    said = pt.ranks.merge_shares(mine, "for the judge")
    found = [None if isinstance(one, pt.Failure) else verdict(str(one)) for one in said]
    return [Assessment(*found[i : i + 3]) for i in range(0, len(found), 3)]


def request(question: str, solution: pt.Rollout) -> str:
    problem = problem_text(solution)
    return f"{question} Think, then answer with yes or no.\n\nProblem:\n{problem}\n\nSolution:\n{solution.text}"


def problem_text(rollout: pt.Rollout) -> str:
    return "\n".join(str(message["content"]) for message in rollout.task.prompt if message["role"] == "user")


def verdict(text: str) -> bool | None:
    said = VERDICT.findall(text)
    return said[-1].lower() == "yes" if said else None


def shares(found: Sequence[Assessment], right: Sequence[bool]) -> dict[str, float]:
    """Shares of good plans and executions among those judged; how often the verdict on the answer was true."""
    out = {}
    for name in ("plan", "execute"):
        said = [getattr(one, name) for one in found if getattr(one, name) is not None]
        out[name] = statistics.fmean(said) if said else 0.0
    agreed = [one.verify == truth for one, truth in zip(found, right, strict=True) if one.verify is not None]
    return out | {"verify": statistics.fmean(agreed) if agreed else 0.0, "judged": len(agreed) / max(len(found), 1)}


def verdicts(judge: pt.Sampler, found: pt.Evaluation, seed: int) -> list[dict[str, Any]]:
    """Of every solution that was graded: its task and text, whether it is right, and what the judge says of it."""
    assessed = assess(judge, [rollout for rollout, _ in found.graded], seed)
    return [
        {"task": rollout.task.key, "text": rollout.text, "right": score.value >= pt.measure.RIGHT, **asdict(said)}
        for (rollout, score), said in zip(found.graded, assessed, strict=True)
    ]
