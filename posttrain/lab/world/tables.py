"""Questions about small tables, answered in the form that Table-R1 asks for, by a teacher who is often wrong.

    lookup b e3 | e0 a4 b7 ; e3 a2 b9 ; ... =     ["9"]: column b of row e3
    row e3 | ...                            =     ["2", "9"]: all of the row
    verify e3 b4 | ...                      =     "entailed", or "refuted": the last column of row e3 is not 4
    tell b e3 | ...                         =     "the b of e3 is 9"

A cell is one word, its column and its value, and a reply's thought repeats the row that is asked for, and
what is claimed of it. Words are joined by blanks, so that a
reply is JSON in a fence between tags, as a language model writes it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from posttrain.data import Demonstration
from posttrain.lab.world.words import demonstration_of
from posttrain.seeding import mix

Operation = Literal["lookup", "row", "verify", "tell"]
OPERATIONS: tuple[Operation, ...] = ("lookup", "row", "verify", "tell")
ENTITIES, COLUMNS, VALUES = 8, "ab", 6
FENCE = "```json"


@dataclass(frozen=True)
class TableQuestion:
    """`claimed` is the value that `verify` asks about."""

    operation: Operation
    column: str
    entity: int
    claimed: int
    rows: Mapping[int, tuple[int, ...]]  # values by entity

    @property
    def prompt(self) -> str:
        asked = {
            "lookup": f"{self.column} e{self.entity}",
            "row": f"e{self.entity}",
            "verify": f"e{self.entity} {self.column}{self.claimed}",
            "tell": f"{self.column} e{self.entity}",
        }[self.operation]
        return f"{self.operation} {asked} | {' ; '.join(map(self.row, self.rows))} ="

    def row(self, entity: int) -> str:
        """As it stands in the prompt: `e3 a2 b9`."""
        cells = zip(COLUMNS, self.rows[entity], strict=True)
        return f"e{entity} {' '.join(f'{column}{value}' for column, value in cells)}"

    @property
    def value(self) -> int:
        return self.rows[self.entity][COLUMNS.index(self.column)]

    @property
    def thought(self) -> str:
        claim = f" {self.column}{self.claimed}" if self.operation == "verify" else ""
        return self.row(self.entity) + claim

    @property
    def answers(self) -> tuple[str, ...]:
        """As a grader is told them."""
        if self.operation == "verify":
            return ("entailed" if self.claimed == self.value else "refuted",)
        if self.operation == "tell":
            return (f"the {self.column} of e{self.entity} is {self.value}",)
        return tuple(map(str, self.rows[self.entity])) if self.operation == "row" else (str(self.value),)

    def with_mistake(self, draw: random.Random) -> TableQuestion:
        """The question that a mistaken teacher answers: the row has other values, and a claim turns out otherwise."""
        wrong = tuple((value + draw.randrange(1, VALUES)) % VALUES for value in self.rows[self.entity])
        found = replace(self, rows={**self.rows, self.entity: wrong})
        if self.operation == "verify" and found.answers == self.answers:
            return replace(found, claimed=found.value)  # it was refuted
        return found


@dataclass(frozen=True)
class Tables:
    """`wrong`: share of demonstrations with a mistake; `formed`: in the whole form, which the others lack."""

    seed: int = 0
    wrong: float = 0.35
    formed: float = 1.0
    rows: tuple[int, ...] = (3, 4)  # that a table may have
    longest: int = 20

    @property
    def vocabulary(self) -> list[str]:
        entities, values = [f"e{i}" for i in range(ENTITIES)], [str(i) for i in range(VALUES)]
        cells = [f"{column}{value}" for column in COLUMNS for value in values]
        quoted = [f'"{word}"' for word in (*values, "entailed", "refuted")]
        written = ["<think>", "</think>", "<answer>", "</answer>", FENCE, "```", '{"answer":', "[", "]", "}", '"the']
        return [
            *(*OPERATIONS, "|", ";", "=", ",", "of", "is", *entities, *COLUMNS, *cells, *values),
            *(*quoted, *(f'{value}"' for value in values), *written),
        ]

    def question(
        self, draw: random.Random, operation: Operation | None = None, rows: int | None = None
    ) -> TableQuestion:
        entities = draw.sample(range(ENTITIES), rows or draw.choice(self.rows))
        table = {entity: tuple(draw.randrange(VALUES) for _ in COLUMNS) for entity in entities}
        chosen, entity = operation or draw.choice(OPERATIONS), draw.choice(list(table))
        column = COLUMNS[-1] if chosen == "verify" else draw.choice(COLUMNS)
        true = table[entity][COLUMNS.index(column)]
        claimed = true if draw.random() < 0.5 else (true + draw.randrange(1, VALUES)) % VALUES
        return TableQuestion(chosen, column, entity, claimed, table)

    def questions(
        self, count: int, split: str, operations: tuple[Operation, ...] = OPERATIONS, rows: int | None = None
    ) -> list[TableQuestion]:
        draw = random.Random(mix(self.seed, split))
        return [self.question(draw, operations[i % len(operations)], rows) for i in range(count)]

    def demonstration(self, draw: random.Random) -> Demonstration:
        asked = self.question(draw)
        said = asked.with_mistake(draw) if draw.random() < self.wrong else asked
        form = 3 if draw.random() < self.formed else draw.choices(range(3), (4, 2, 1))[0]
        return demonstration_of(asked.prompt, reply(said, form))


def reply(said: TableQuestion, form: int = 3) -> str:
    """A reply that gives the answer of `said`.

    form  3 whole; 2 with a number or a bare list in the place of strings; 1 without the fence; 0 without the blocks
    """
    quoted = [f'"{one}"' for one in said.answers]
    if said.operation == "tell":  # whose words are words of the vocabulary
        first, *between, last = said.answers[0].split()
        quoted = [" ".join([f'"{first}', *between, f'{last}"'])]
    answer = quoted[0] if said.operation in ("verify", "tell") else f"[ {' , '.join(quoted)} ]"
    if form == 2:
        answer = f"[ {said.value} ]"
    inner = f'{{"answer": {answer} }}'
    if form == 0:
        return inner
    block = inner if form == 1 else f"{FENCE} {inner} ```"
    return f"<think> {said.thought} </think> <answer> {block} </answer>"
