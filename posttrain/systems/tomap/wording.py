"""The words in which a dialogue is held: what is said to the persuader, to the persuadee, and to the predictor.

The prompts are ours, after the paper's description; the five attitudes and the line about agreement are the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import posttrain as pt

ATTITUDES = ("Disagree", "Partly Disagree", "Neutral", "Partly Agree", "Agree")  # levels 0 to 4


class Wording(Protocol):
    """`lines` are what both have said so far: Alice's at even places, Bob's at odd ones."""

    @property
    def greetings(self) -> tuple[str, str]: ...  # the first two lines of every dialogue
    @property
    def silence(self) -> str: ...  # stands for an empty argument
    def transcript(self, lines: Sequence[str]) -> str: ...
    def persuader(
        self,
        claim: str,
        denial: str,
        lines: Sequence[str],
        counterclaims: Sequence[str] = (),
        agreement: Sequence[int] = (),
    ) -> tuple[pt.Message, ...]: ...  # `agreement`: of Bob with each counterclaim, in eighths, or not known
    def persuadee(self, claim: str, denial: str, lines: Sequence[str]) -> tuple[pt.Message, ...]: ...
    def attitude(self, claim: str, denial: str, lines: Sequence[str], statement: str) -> tuple[pt.Message, ...]: ...


@dataclass(frozen=True)
class English:
    """For language models; everything stands in one user message, which every chat template takes."""

    most: int = 200  # tokens of an argument, as both are told
    greetings: tuple[str, str] = (
        "Hi Bob, I would like to talk with you about something that I believe in.",
        "Hi Alice, go ahead. I may see it differently, but I am listening.",
    )
    silence: str = "I have no argument to make in this round."

    def transcript(self, lines: Sequence[str]) -> str:
        return "\n".join(f"{('Alice', 'Bob')[i % 2]}: {line}" for i, line in enumerate(lines))

    def persuader(
        self,
        claim: str,
        denial: str,
        lines: Sequence[str],
        counterclaims: Sequence[str] = (),
        agreement: Sequence[int] = (),
    ) -> tuple[pt.Message, ...]:
        about = [f" (Bob's agreement on this claim is {k}/8)" for k in agreement] or [""] * len(counterclaims)
        listed = "".join(f"\n- {one}{known}" for one, known in zip(counterclaims, about, strict=True))
        task = (
            f'You are Alice. Persuade Bob to agree fully with this claim: "{claim}" Bob leans to its opposite: '
            f'"{denial}"'
        )
        against = f"\nClaims that Bob may hold against it:{listed}" if listed else ""
        ask = (
            "Think about what keeps Bob from agreeing, which he does not see, then make one new argument that he does. "
            + self.form("what you say to Bob")
        )
        return (pt.user(f"{task}{against}\n\n{self.spoken(lines)}\n\n{ask}"),)

    def persuadee(self, claim: str, denial: str, lines: Sequence[str]) -> tuple[pt.Message, ...]:
        ask = "Think about what Alice has said, which she does not see, then answer her. " + self.form("your answer")
        return (pt.user(f"{self.bob(claim, denial)}\n\n{self.spoken(lines)}\n\n{ask}"),)

    def attitude(self, claim: str, denial: str, lines: Sequence[str], statement: str) -> tuple[pt.Message, ...]:
        choice = ", ".join(reversed(ATTITUDES))
        ask = (
            f'After this dialogue, what is your attitude to the statement "{statement}"? Choose one of {choice}. '
            "Write it as <attitude>...</attitude>, and nothing after it."
        )
        return (pt.user(f"{self.bob(claim, denial)}\n\n{self.spoken(lines)}\n\n{ask}"),)

    def bob(self, claim: str, denial: str) -> str:
        return (
            f'You are Bob, and talk with Alice. At first you disagree with "{claim}" and hold that "{denial}", but you '
            "are open-minded: a good argument changes your mind."
        )

    def spoken(self, lines: Sequence[str]) -> str:
        return f"The dialogue so far:\n{self.transcript(lines)}"

    def form(self, what: str) -> str:
        return (
            f"Write exactly <thought>your private thoughts</thought><argument>{what}, {self.most} tokens at most"
            "</argument>, and nothing else."
        )
