"""The dialogue: two players with private thoughts, and what the persuadee thinks of the claim after every round.

Alice (the policy) and Bob write <thought>...</thought><argument>...</argument>; only the argument is seen by the other.
After each round Bob is asked for his attitude to the claim and to its negation (five labels, 0 to 4):

    S = 0.5 + (a(Q) - a(not Q)) / 8     in [0, 1]

Every turn has a prompt of its own, in which Alice may be told of counterclaims and of Bob's agreement with each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import posttrain as pt
from posttrain.systems.tomap.counterclaims import Topic
from posttrain.systems.tomap.wording import ATTITUDES, Wording

Setting = Literal["rl", "lite", "full", "white", "black_random", "black_max"]
MOST = 8  # eighths of agreement

TAGS = ("<thought>", "</thought>", "<argument>", "</argument>")
NO_TAG = r"((?:(?!</?(?:thought|argument)>).)*)"
FORM = re.compile(rf"\s*<thought>{NO_TAG}</thought>\s*<argument>{NO_TAG}</argument>\s*", re.DOTALL)
ARGUMENT = re.compile(rf"<argument>{NO_TAG}</argument>", re.DOTALL)
ATTITUDE = re.compile(r"<attitude>([^<]*)", re.IGNORECASE)  # the closing tag may be cut off


@dataclass(frozen=True, slots=True)
class Shown:
    """What a setting puts into Alice's prompt.

    beliefs   whose word Bob's agreement is taken on; a `predictor` is asked from the second turn on
    """

    counterclaims: bool = True
    beliefs: Literal["nobody", "predictor", "persuadee", "most"] = "nobody"


SHOWN: Mapping[Setting, Shown] = {
    "rl": Shown(counterclaims=False),
    "lite": Shown(),
    "full": Shown(beliefs="predictor"),
    "white": Shown(beliefs="persuadee"),  # the truth, from the first turn on
    "black_random": Shown(beliefs="predictor"),  # with a predictor that guesses
    "black_max": Shown(beliefs="most"),
}


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What became of an episode of T turns."""

    lines: tuple[str, ...]  # [2 + 2 T] greetings, then what each heard of the other
    stances: tuple[float, ...]  # [T + 1] S before the first turn and after every round
    lengths: tuple[int, ...]  # [T] tokens of Alice's arguments, before they were cut
    agreement: tuple[tuple[int, ...], ...]  # [T][K] eighths of Bob's agreement as Alice was shown them, or empty
    beliefs: tuple[tuple[tuple[str, int], ...], ...]  # [T + 1] (statement, level) as Bob said, or empty
    retries: int  # attitudes that had to be asked for twice

    @property
    def shift(self) -> float:
        """S at the end less S at the beginning, in [-1, 1]."""
        return self.stances[-1] - self.stances[0]


@dataclass(frozen=True, slots=True)
class Limit:
    """Cuts an argument: `limit(text)` is what is left of it, and how many tokens it had."""

    most: int = 200
    encode: Callable[[str], Sequence[Any]] = str.split
    decode: Callable[[Sequence[Any]], str] = " ".join

    def __call__(self, text: str) -> tuple[str, int]:
        tokens = self.encode(text)
        return (text if len(tokens) <= self.most else self.decode(tokens[: self.most]).strip()), len(tokens)


def well_formed(text: str) -> bool:
    """A thought, then an argument, and nothing else."""
    return FORM.fullmatch(text) is not None


def argument(text: str) -> str:
    """What the other hears: the last complete argument; empty when there is none."""
    found = ARGUMENT.findall(text)
    return found[-1].strip() if found else ""


def level(reply: pt.Reply) -> int | None:
    """0 (disagree) to 4 (agree) by the last <attitude> alone, whatever is mentioned before it; None: it says none.

    Case, and what is neither letter nor blank, do not matter: "**Partly-agree.**" is "Partly Agree".
    """
    found = ATTITUDE.findall(str(reply.content))
    said = " ".join(re.findall("[a-z]+", found[-1].lower())).title() if found else ""
    return ATTITUDES.index(said) if said in ATTITUDES else None


def stance(claim: int, denial: int) -> float:
    """S = 0.5 + (a(Q) - a(not Q)) / 8 of two levels."""
    return 0.5 + (claim - denial) / 8


def agreement(statement: int, negation: int) -> int:
    """k = 8 - round(8 S) of a counterclaim's node, S being how far Bob has come to its negation: k/8 is shown."""
    return MOST - round(MOST * stance(negation, statement))


def dialogue(
    wording: Wording,
    shown: Shown = Shown(),
    *,
    turns: int = 3,
    count: int = 3,
    limit: Limit = Limit(),
    probe: bool = False,
) -> pt.Env:
    """The environment; a task's truth is its `Topic`, and "persuadee" (and "predictor") are among the players.

    count  counterclaims that are shown, of those that the topic has
    probe  ask for Bob's attitude to every counterclaim after every round: what a predictor learns from
    Bob's attitudes, and all that he says in validation, have temperature 0. Raises EpisodeFailed when he gives no
    attitude, asked twice.
    """

    def play(task: pt.Task[Topic]) -> pt.Episode:
        topic = task.truth
        branches = topic.counterclaims[:count] if shown.counterclaims or probe else ()
        statements = [text for one in branches for text in (one.statement, one.negation)]
        listed = [one.statement for one in branches] if shown.counterclaims else []
        true = probe or shown.beliefs == "persuadee"
        lines, stances, beliefs, agreements = [*wording.greetings], [], [], []
        lengths: list[int] = []
        retries = 0

        for t in range(turns + 1):
            wanted = statements if probe or (true and t < turns) else []
            both = [topic.claim, topic.denial]
            levels, again = yield from attitudes(wording, topic, lines, [*both, *wanted])
            retries += again
            stances.append(stance(*levels[:2]))
            beliefs.append(tuple(zip(wanted, levels[2:], strict=True)))
            if t == turns:
                break
            known = yield from believed(wording, shown, statements, lines, levels[2:], first=t == 0)
            agreements.append(known)
            asked = wording.persuader(topic.claim, topic.denial, lines, listed, known)
            reply = yield from pt.ask(asked)
            heard, length = limit(argument(str(reply.content)))
            lines.append(heard or wording.silence)
            lengths.append(length)
            answer = wording.persuadee(topic.claim, topic.denial, lines)
            reply = yield from pt.ask(answer, "persuadee", temperature=0.0 if topic.validation else None)
            lines.append(limit(argument(str(reply.content)))[0] or wording.silence)
        return Dialogue(tuple(lines), tuple(stances), tuple(lengths), tuple(agreements), tuple(beliefs), retries)

    return play


def attitudes(
    wording: Wording, topic: Topic, lines: Sequence[str], statements: Sequence[str]
) -> Generator[list[pt.Ask], list[pt.Reply], tuple[list[int], int]]:
    """[statements] levels as Bob says them, and how many of them he was asked for twice, the second time at 1.

    Raises EpisodeFailed when he still says none.
    """
    asks = [
        pt.Ask(wording.attitude(topic.claim, topic.denial, lines, one), "persuadee", temperature=0.0)
        for one in statements
    ]
    levels = [level(reply) for reply in (yield from pt.ask_all(asks))]
    unclear = [i for i, found in enumerate(levels) if found is None]
    if unclear:
        replies = yield from pt.ask_all([replace(asks[i], temperature=1.0) for i in unclear])
        for i, reply in zip(unclear, replies, strict=True):
            levels[i] = level(reply)
            if levels[i] is None:
                raise pt.EpisodeFailed(
                    f"the persuadee gave no attitude to {statements[i]!r}, asked twice: {str(reply.content)[:200]!r}"
                )
    return [found for found in levels if found is not None], len(unclear)


def believed(
    wording: Wording, shown: Shown, statements: Sequence[str], lines: Sequence[str], true: Sequence[int], first: bool
) -> Generator[list[pt.Ask], list[pt.Reply], tuple[int, ...]]:
    """[K] eighths of Bob's agreement with each counterclaim that Alice is shown; none where she is not told of any."""
    if not shown.counterclaims or shown.beliefs == "nobody" or (first and shown.beliefs != "persuadee"):
        return ()
    if shown.beliefs == "most":
        return (MOST,) * (len(statements) // 2)
    levels = list(true)
    if shown.beliefs == "predictor":
        read = pt.user(wording.transcript(lines))
        replies = yield from pt.ask_all([pt.Ask((pt.user(one), read), "predictor") for one in statements])
        levels = [int(reply.content) for reply in replies]
    return tuple(agreement(*pair) for pair in zip(levels[::2], levels[1::2], strict=True))


def tasks_of(topics: Sequence[Topic], wording: Wording, shown: Shown, count: int = 3) -> list[pt.Task[Topic]]:
    """A task of every topic; its prompt is that of the first turn.

    Raises ValueError when a setting shows counterclaims and a topic has none.
    """
    out = []
    for topic in topics:
        listed = [one.statement for one in topic.counterclaims[:count]] if shown.counterclaims else []
        if shown.counterclaims and not listed:
            raise ValueError(f"topic {topic.key!r} has no counterclaims: make them with `stage=propose`")
        prompt = wording.persuader(topic.claim, topic.denial, wording.greetings, listed)
        out.append(pt.Task(topic.key, prompt, topic))
    return out
