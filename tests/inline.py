"""A crew without Ray: real players in this process, whose groups end in a chosen order."""

from __future__ import annotations

from types import SimpleNamespace

from posttrain.scale.crew import LostGroup
from posttrain.scale.player import GroupInterrupted, Player


class Inline:
    """Each `wait` plays one of the groups under way: the first that was begun; if `late`, mostly the last. Some are lost."""

    def __init__(self, build, count: int = 2, at_once: int = 1, late: bool = False, lose=()):
        self.players = [Player(build, at_once=at_once) for _ in range(count)]
        self.at_once, self.late, self.lose = at_once, late, set(lose)
        self.flights: dict[int, SimpleNamespace] = {}
        self.version, self.weights, self.replaced, self.waits = -1, None, 0, 0

    def publish(self, weights):
        self.version, self.weights = weights.version, weights

    def free(self):
        return len(self.players) * self.at_once - len(self.flights)

    def begin(self, number, draw):
        self.flights[number] = SimpleNamespace(draw=draw, weights=self.weights, version=self.version, broken=False)

    def interrupt(self, numbers):
        for number in numbers:
            self.flights[number].broken = True

    def wait(self, why):
        self.waits += 1
        number = sorted(self.flights)[-1 if self.late and self.waits % 4 else 0]
        flight = self.flights.pop(number)
        player = self.players[number % len(self.players)]
        if number in self.lose:
            self.lose.discard(number)
            self.replaced += 1
            return [(number, LostGroup("its player died"))]
        if flight.broken:
            player.interrupt(number)
        try:
            return [(number, player.play(number, flight.draw, lambda: flight.weights, flight.version))]
        except GroupInterrupted:
            return [(number, LostGroup("it was interrupted"))]

    def close(self):
        pass
