"""What an exchange is worth: answers less what they took."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import posttrain as pt
from posttrain.systems.ramsemcom.exchange import Exchange, Spent


@dataclass(frozen=True)
class Prices:
    """Of a link, for each question; all are ours."""

    element_price: float = 0.15
    """What fetching an element costs."""
    second_price: float = 0.2
    """What a second costs, of what is sent and of rounds."""
    answer_worth: float = 2.0
    """What a right answer earns, and a wrong one costs."""

    def value(self, spent: Spent) -> float:
        charged = self.element_price * spent.elements + self.second_price * spent.seconds
        return self.answer_worth * (spent.right - spent.wrong) - charged


def reward(prices: Prices) -> pt.Reward:
    """Turn by turn, in the mean over the questions of all links. Parts: means over questions, of what was charged."""

    def score(rollout: pt.Rollout) -> pt.Score:
        facts: Exchange = rollout.facts
        count = facts.questions
        turns = tuple(prices.value(one) / count for one in facts.turns)
        return pt.Score(sum(turns), parts_of(facts), turns)

    return pt.each(score)


def parts_of(facts: Exchange) -> dict[str, float]:
    """Means over the questions of all links."""
    count = facts.questions
    names = ("elements", "bits", "seconds", "retransmissions", "rounds")
    charged = {name: sum(getattr(link, name) for link in facts.links) / count for name in names}
    return {"success": sum(link.right for link in facts.links) / count, **charged}


def measures(found: pt.Evaluation) -> dict[str, float]:
    """Means over the episodes of an evaluation: the return of a question, and the parts."""
    scored = [score for _, score in found.graded]
    names = scored[0].parts
    return {"return": found.reward, **{name: statistics.fmean(one.parts[name] for one in scored) for name in names}}
