"""The environment: round after round, what each link fetches of a shared budget, until every receiver has acted."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import posttrain as pt
from posttrain.core import Ask, Message, Reply
from posttrain.grade.text import normal_text
from posttrain.systems.ramsemcom.element import Question, Scene
from posttrain.systems.ramsemcom.link import UNKNOWN, Account, Link, Radio

OPTIONS = (0, 1, 2, 4, 8)  # elements to fetch; 0: the receiver acts
PER_LINK, SHARED = 9, 2  # numbers that the policy is shown: of each link, and of all
INSTRUCTION = (
    "Answer the question from what you are shown, in as few words as possible and without explanation. "
    f"If it does not say, answer: {UNKNOWN}"
)


@dataclass(frozen=True)
class Rules:
    """What an exchange may take."""

    budget: int = 18
    """Elements that all links may fetch together."""
    rounds: int = 4
    """Rounds for each question of a scene."""

    def __post_init__(self) -> None:
        pt.at_least(1, budget=self.budget, rounds=self.rounds)


@dataclass(frozen=True, slots=True)
class Spent:
    """What a turn cost over all links, and which questions were answered in it."""

    elements: int
    seconds: float
    right: int
    wrong: int


@dataclass(frozen=True, slots=True)
class Exchange:
    """The facts of an episode."""

    turns: tuple[Spent, ...]  # one for each decision of the policy
    links: tuple[Account, ...]
    answers: tuple[str, ...]  # as the receivers gave them, question after question

    @property
    def questions(self) -> int:
        return sum(link.right + link.wrong for link in self.links)


def exchange(radio: Radio, rules: Rules) -> pt.Env:
    """Of a task whose truth is a `Scene` for each link. The player `receiver` says what it can answer so far."""

    def episode(task: pt.Task[tuple[Scene, ...]]) -> pt.Episode:
        links = [Link(scene, radio, pt.mix(task.key, i) % 2**31) for i, scene in enumerate(task.truth)]
        left, spent, answers = rules.budget, list[Spent](), list[str]()
        yield from assess(links)
        for number in range(rules.rounds * max(len(link.scene.questions) for link in links)):
            if all(link.question is None for link in links):
                break
            before = totals(links)
            reply = yield from pt.ask([state_message(links, left, rules, number)])
            moved = [link for link in links if link.question is not None]
            answers += act(links, reply)
            left = rules.budget - sum(link.account.elements for link in links)
            spent.append(difference(totals(links), before))
            yield from assess(moved)
        before = totals(links)
        for link in links:
            answers += [answer_of(link) for _ in link.scene.questions[link.at :]]
        if spent:  # what is still open when the rounds are over counts with the last turn
            last = difference(totals(links), before)
            spent[-1] = Spent(*(getattr(spent[-1], f.name) + getattr(last, f.name) for f in fields(Spent)))
        return Exchange(tuple(spent), tuple(link.account for link in links), tuple(answers))

    return episode


def act(links: Sequence[Link], reply: Reply) -> list[str]:
    """Fetch, or answer, on each open link as the policy chose; the answers that were given."""
    answers = []
    for link, option in zip(links, reply.content, strict=True):
        if link.question is None:
            continue
        if OPTIONS[option] == 0:
            answers.append(answer_of(link))
        else:
            link.fetch(OPTIONS[option])
    return answers


def answer_of(link: Link) -> str:
    """The receiver acts on the open question."""
    question, answer = link.question, link.answer
    assert question is not None
    link.close_question(normal_text(answer) == normal_text(question.answer))
    return answer


def assess(links: Sequence[Link]) -> Generator[list[Ask], list[Reply], None]:
    """Every receiver with an open question looks at what it holds, and says what it can."""
    waiting = [(link, link.question) for link in links if link.question is not None]
    if waiting:
        asks = [Ask(seen_by(link, question), "receiver", temperature=0.0) for link, question in waiting]
        for (link, _), reply in zip(waiting, (yield from pt.ask_all(asks)), strict=True):
            link.hear(reply)


def seen_by(link: Link, question: Question) -> tuple[Message, ...]:
    """The summary, what the receiver holds, and its question. Text alone is one text, as language models have it."""
    parts: list[dict[str, Any]] = [dict(part) for part in link.scene.summary]
    parts += [dict(element.part) for element in link.cache.held.values()]
    parts.append({"type": "text", "text": f"Question: {question.text}"})
    if all(part["type"] == "text" for part in parts):
        return pt.system(INSTRUCTION), pt.user("\n".join(part["text"] for part in parts))
    return pt.system(INSTRUCTION), pt.user(parts)


def state_message(links: Sequence[Link], left: int, rules: Rules, number: int) -> Message:
    """The state: nine numbers of each link, the share of the budget that is left, and of the rounds that are over."""
    state = [number for link in links for number in link_features(link)]
    state += [left / rules.budget, number / rules.rounds]
    may = [[1] * len(OPTIONS) if link.question is not None else [1] + [0] * (len(OPTIONS) - 1) for link in links]
    return pt.show(state=state, open=may, budget=left)


def link_features(link: Link) -> list[float]:
    """Of an open link: that it is open, how sure its receiver is, the three best similarities that are left, the
    elements fetched and held, the signal, and the questions to come. Zeros once all are answered."""
    question = link.question
    if question is None:
        return [0.0] * PER_LINK
    held, found = link.cache.keys, link.scene.similarities(question.query).tolist()
    best = sorted((s for s, e in zip(found, link.scene.elements, strict=True) if e.key not in held), reverse=True)
    best = [*best[:3], *[0.0] * (3 - len(best[:3]))]
    size = len(link.scene.elements)
    to_come = len(link.scene.questions) - link.at - 1
    return [1.0, link.confidence, *best, link.fetched / 8, len(held) / size, link.scene.decibels / 20, float(to_come)]


def totals(links: Sequence[Link]) -> Spent:
    accounts = [link.account for link in links]
    return Spent(
        sum(one.elements for one in accounts),
        sum(one.seconds for one in accounts),
        sum(one.right for one in accounts),
        sum(one.wrong for one in accounts),
    )


def difference(now: Spent, before: Spent) -> Spent:
    return Spent(*(getattr(now, f.name) - getattr(before, f.name) for f in fields(Spent)))
