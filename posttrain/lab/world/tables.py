"""Questions about small tables, answered in the form that Table-R1 asks for, by a teacher who is often wrong.

    lookup c1 e3 | e0 c0 4 c1 7 c2 1 ; e3 c0 2 c1 9 c2 0 ; ... =     "9"
    most c1      | ...                                          =     "e3", the row with the largest value
    verify c1 e3 9 | ...                                        =     "entailed", or "refuted"
    tell c1 e3   | ...                                          =     "the c1 of e3 is 9"

Words are joined by blanks, so that a reply is JSON in a fence between tags, as a language model writes it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal

from posttrain.data import Demonstration
from posttrain.lab.world.words import demonstration_of
from posttrain.seeding import mix

Operation = Literal["lookup", "most", "verify", "tell"]
OPERATIONS: tuple[Operation, ...] = ("lookup", "most", "verify", "tell")
ENTITIES, COLUMNS, VALUES = 8, 3, 10
FENCE = "```json"


@dataclass(frozen=True)
class TableQuestion:
    operation: Operation
    column: int
    entity: int
    claimed: int
    rows: tuple[tuple[int, tuple[int, ...]], ...]  # entity and its values

    @property
    def prompt(self) -> str:
        asked = {
            "lookup": f"lookup c{self.column} e{self.entity}",
            "most": f"most c{self.column}",
            "verify": f"verify c{self.column} e{self.entity} {self.claimed}",
            "tell": f"tell c{self.column} e{self.entity}",
        }[self.operation]
        rows = " ; ".join(
            f"e{entity} " + " ".join(f"c{i} {value}" for i, value in enumerate(values)) for entity, values in self.rows
        )
        return f"{asked} | {rows} ="

    @property
    def value(self) -> int:
        return dict(self.rows)[self.entity][self.column]

    @property
    def answer(self) -> str:
        """As a grader is told it."""
        if self.operation == "verify":
            return "entailed" if self.value == self.claimed else "refuted"
        if self.operation == "tell":
            return f"the c{self.column} of e{self.entity} is {self.value}"
        return f"e{self.entity}" if self.operation == "most" else str(self.value)

    def with_mistake(self, draw: random.Random) -> TableQuestion:
        """The question whose answer a mistaken teacher gives: about another row, or another value of it."""
        entity, values = draw.choice(self.rows)
        if self.operation == "verify":
            return replace(self, claimed=(self.value + (self.claimed == self.value)) % VALUES)
        if self.operation == "most":
            return replace(self, entity=entity)
        wrong = draw.choice(values)
        changed = tuple(v if i != self.column else wrong for i, v in enumerate(dict(self.rows)[self.entity]))
        return replace(self, rows=tuple((e, changed if e == self.entity else v) for e, v in self.rows))


@dataclass(frozen=True)
class Tables:
    """`wrong`: share of demonstrations with a mistake; `formed`: in the whole form, which the others lack."""

    seed: int = 0
    wrong: float = 0.35
    formed: float = 1.0
    rows: int = 4
    longest: int = 20

    @property
    def vocabulary(self) -> list[str]:
        entities, columns = [f"e{i}" for i in range(ENTITIES)], [f"c{i}" for i in range(COLUMNS)]
        values = [str(i) for i in range(VALUES)]
        quoted = [f'"{word}"' for word in (*values, *entities, "entailed", "refuted")]
        written = ["<think>", "</think>", "<answer>", "</answer>", FENCE, "```", '{"answer":', "[", "]", "}", '"the']
        return [
            *(*OPERATIONS, "|", ";", "=", "of", "is", *entities, *columns, *values),
            *(*quoted, *(f'{value}"' for value in values), *written),
        ]

    def question(
        self, draw: random.Random, operation: Operation | None = None, rows: int | None = None
    ) -> TableQuestion:
        chosen = operation or draw.choice(OPERATIONS)
        entities = draw.sample(range(ENTITIES), rows or self.rows)
        column = draw.randrange(COLUMNS)
        while True:
            table = tuple((e, tuple(draw.randrange(VALUES) for _ in range(COLUMNS))) for e in entities)
            values = [row[column] for _, row in table]
            if chosen != "most" or values.count(max(values)) == 1:
                break
        entity = entities[values.index(max(values))] if chosen == "most" else draw.choice(entities)
        true = dict(table)[entity][column]
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
    thought = f"e{said.entity} c{said.column} {said.value}"
    words = said.answer.split()
    quoted = f'"{said.answer}"' if len(words) == 1 else " ".join(['"the', *words[1:-1], f'{words[-1]}"'])
    answer = quoted if said.operation in ("verify", "tell") else f"[ {quoted} ]"
    if form == 2:
        answer = f"[ {said.value} ]"
    inner = f'{{"answer": {answer} }}'
    if form == 0:
        return inner
    block = inner if form == 1 else f"{FENCE} {inner} ```"
    return f"<think> {thought} </think> <answer> {block} </answer>"
