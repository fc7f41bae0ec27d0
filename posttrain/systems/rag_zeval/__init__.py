"""RAG-Zeval: an evaluator of answers, trained from rankings that nobody had to label (arXiv:2505.22430).

candidates  answers whose ranking is known by how they were made, and the curriculum over them
prompts     what the evaluator is asked, and what makes the candidates
trajectory  the JSON that it writes, and how that can be broken
evidence    how much of what it quotes stands in the reference
reward      is the trajectory whole, is the ranking right, is the evidence there
evaluator   a trained one at work; `serving` puts it behind a port
benchmark   agreement with people
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import posttrain as pt
from posttrain.chat import without_thinking
from posttrain.grade.stated import whole_reply
from posttrain.systems.rag_zeval.evaluator import Comparison, Evaluator

__all__ = ["PARTS", "judge", "recipe"]

KL = 0.015


def recipe(reward: pt.Reward, *, samples: int = 8, kl: float = KL, reference: pt.Policy | None = None) -> pt.Recipe:
    """GRPO with the KL to the reference policy in the loss, as published."""
    return pt.grpo(reward, samples=samples, kl=kl, reference=reference)


PARTS: Mapping[str, pt.Part] = {}


def judge(
    evaluator: Evaluator | str,
    reference: Callable[[pt.Task], str] = lambda task: str(task.truth),
    question: Callable[[pt.Task], str] = lambda task: str(task.prompt[-1]["content"]),
) -> pt.Reward:
    """A reward: the share of a reply's claims that the reference supports, in [0, 1].

    evaluator  a folder, an address, or what `evaluator_of` returns
    reference  of a task: a passage for faithfulness, an answer for correctness; its truth if not given
    question   of a task: its last message if not given
    Thinking is not judged, and an empty reply is 0. One that the evaluator writes no whole trajectory of is ungradable,
    with the reason.
    """
    from posttrain.systems.rag_zeval.serving import evaluator_of

    asked = evaluator_of(evaluator) if isinstance(evaluator, str) else evaluator

    def grade(group: pt.Group) -> list[pt.Score | pt.Invalid]:
        task = group[0].task
        replies = tuple(without_thinking(whole_reply(one)).strip() for one in group)
        [found] = asked.scores([Comparison(question(task), reference(task), replies)], pt.mix(0, task.key))
        return [pt.Invalid(one) if isinstance(one, str) else pt.Score(one) for one in found]

    return grade
