"""A radio link between a sender and a receiver: what crosses it, how long it takes, and what the receiver keeps.

The sender knows the mean signal-to-noise ratio g and not the fading h of a block. It sends at the rate
R = B log2(1 + m g) with a margin m; a block whose capacity B log2(1 + |h|^2 g) is below R is lost, and sent again.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field

import posttrain as pt
from posttrain import channel
from posttrain.core import Reply
from posttrain.seeding import mix
from posttrain.systems.ramsemcom.element import Element, Question, Scene

BLOCKS = 64  # drawn together
UNKNOWN = "unknown"  # what a receiver says that cannot answer


@dataclass(frozen=True)
class Radio:
    """The numbers of a link; all are ours."""

    bandwidth: float = 2e4
    """Hz of a link."""
    margin: float = 0.25
    """Share of the mean signal-to-noise ratio that the rate counts on: smaller is slower, and loses fewer blocks."""
    attempts: int = 4
    """Times that a lost block is sent, before the element is given up for the round."""
    round_s: float = 0.3
    """Seconds that a round takes besides what is sent: the request, and the answer to it."""
    query_bits: int = 512
    """Bits of a request, which the receiver sends: 64 numbers of a byte."""
    cache_bits: int = 10**9
    """Bits that a receiver keeps; the element that came first goes first."""
    fading: channel.By = "own"
    """Who draws the Rayleigh fading: own, or sionna."""

    def __post_init__(self) -> None:
        pt.at_least(1, attempts=self.attempts)
        pt.at_least(0, round_s=self.round_s, query_bits=self.query_bits, cache_bits=self.cache_bits)
        for name in ("bandwidth", "margin"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}={getattr(self, name)}`: it must be above 0")
        channel.fading(1, 0, self.fading)  # which says what is missing, before any work


@dataclass(slots=True)
class Account:
    """What a link has been charged, and what it brought."""

    elements: int = 0  # fetched
    bits: int = 0  # of requests and of every attempt to send an element
    seconds: float = 0.0
    retransmissions: int = 0
    rounds: int = 0
    right: int = 0  # questions
    wrong: int = 0


class Cache:
    """Elements that a receiver holds, in bits; a full one forgets what came first."""

    def __init__(self, most_bits: int):
        self.most, self.held = most_bits, OrderedDict[str, Element]()

    def add(self, element: Element) -> None:
        """An element that is larger than the cache is not kept."""
        if element.bits > self.most:
            return
        self.held.pop(element.key, None)
        self.held[element.key] = element
        while sum(one.bits for one in self.held.values()) > self.most:
            self.held.popitem(last=False)

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(self.held)


@dataclass(slots=True)
class Link:
    """A link during an episode. Its fading is that of `seed`, block after block."""

    scene: Scene
    radio: Radio
    seed: int
    account: Account = field(default_factory=Account)
    at: int = 0  # the question that is open
    answer: str = UNKNOWN
    confidence: float = 0.0  # in the answer
    fetched: int = 0  # elements, for the open question
    blocks: int = 0  # sent so far
    gains: list[float] = field(default_factory=list)  # |h|^2 of blocks to come, the next one last
    cache: Cache = field(init=False)

    def __post_init__(self) -> None:
        self.cache = Cache(self.radio.cache_bits)

    @property
    def question(self) -> Question | None:
        """The open one; None once all are answered."""
        return self.scene.questions[self.at] if self.at < len(self.scene.questions) else None

    def gain(self) -> float:
        """|h|^2 of the next block."""
        if not self.gains:
            drawn = channel.fading(BLOCKS, mix(self.seed, self.blocks), self.radio.fading)
            self.gains = drawn.abs().square().tolist()[::-1]
        self.blocks += 1
        return self.gains.pop()

    @property
    def snr(self) -> float:
        return 10 ** (self.scene.decibels / 10)

    @property
    def rate(self) -> float:
        """R, bits a second."""
        return self.radio.bandwidth * math.log2(1 + self.radio.margin * self.snr)

    def send(self, bits: int) -> bool:
        """One element over the radio; every attempt is charged. Whether it arrived."""
        for attempt in range(self.radio.attempts):
            self.account.bits += bits
            self.account.seconds += bits / self.rate
            self.account.retransmissions += attempt > 0
            if self.gain() >= self.radio.margin:  # its capacity is at least R
                return True
        return False

    def fetch(self, count: int) -> None:
        """A round: a request crosses, and the sender's nearest elements that are not held come back."""
        assert self.question is not None
        self.account.rounds += 1
        self.account.bits += self.radio.query_bits
        self.account.seconds += self.radio.round_s + self.radio.query_bits / self.rate
        for element in self.scene.nearest(self.question.query, count, self.cache.keys):
            self.account.elements += 1
            self.fetched += 1
            if self.send(element.bits):
                self.cache.add(element)

    def hear(self, reply: Reply) -> None:
        """What the receiver can say by now, and how sure it is: exp of the mean log-probability, where it is told."""
        self.answer = str(reply.content).strip() or UNKNOWN
        sure = reply.logp.mean().exp().item() if len(reply.logp) else 1.0
        self.confidence = 0.0 if self.answer.casefold() == UNKNOWN else sure

    def close_question(self, is_right: bool) -> None:
        """The receiver acts on its answer, and turns to the next question."""
        self.account.right += is_right
        self.account.wrong += not is_right
        self.at, self.fetched = self.at + 1, 0
        self.answer, self.confidence = UNKNOWN, 0.0
