"""NL-FL HybridReasoning: a question is also put as a theorem that its answer exists, and proved (arXiv:2505.23703).

problems   questions with answers, and where a data set keeps them
prompts    question to existence, formal statement, mixed input, extraction
replies    what is read out of the answers
pipeline   the steps, their budgets and what they drop
measures   pass@k of words, proofs and both; majority vote; verified selection
prover     ours: Coq, z3 or Lean behind one interface, and what a model may write for them

The paper trains nothing and compiles no proof. Ours, and marked so: selection by a prover, and reinforcement with the
prover as the reward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import posttrain as pt
from posttrain.systems.nl_fl_hybrid.prover import CachedProver, ProverDied

__all__ = ["PARTS", "proved", "recipe"]

Script: TypeAlias = Callable[[pt.Rollout], str | None]  # the proof that a rollout writes; None for none
PARTS: dict[str, pt.Part] = {}


def proved(prover: CachedProver, statement: Callable[[pt.Task], str], script: Script) -> pt.Reward:
    """Ours: 1 where the prover accepts the script as a proof of the task's statement, else 0.

    A script that asks for more work than it may is 0, and counted as `timed_out`; where the prover itself fails the
    rollout is ungradable.
    """

    def grade(rollout: pt.Rollout) -> pt.Score | pt.Invalid:
        written = script(rollout)
        if written is None:
            return pt.Score(0.0, {"proved": 0.0, "script": 0.0, "timed_out": 0.0})
        try:
            verdict = prover.check(statement(rollout.task), written)
        except ProverDied as error:
            return pt.Invalid(str(error))
        value = float(verdict.ok)
        return pt.Score(value, {"proved": value, "script": 1.0, "timed_out": float(verdict.timed_out)})

    return pt.each(grade)


def recipe(reward: pt.Reward, samples: int = 8) -> pt.Recipe:
    """GRPO with the prover as the reward: an extension of ours."""
    return pt.grpo(reward, samples=samples)
