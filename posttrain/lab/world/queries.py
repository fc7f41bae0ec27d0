"""Small database programs, really executed: a prompt names a table and filters, a reply is a Python function in words.

    shop : give name : if city is , if price over : by stock =>
    ->  def find ( db ) : <nl> a = input() <nl> b = input() <nl> return db.execute ( f"select name from shop where
        city = '{a}' and price > {b} order by stock " ) .fetchall() <nl>

Words are pieces of Python and SQL, which `python` joins. Values of filters are read from the input. People write most
of their queries by pasting what they have read into the text, which anybody can inject into, few with parameters, and
few of them annotate. They make mistakes as well. Which columns a table has is drawn for each question; some pairs of
table and column are held out.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal

from posttrain.data import Demonstration
from posttrain.lab.world.words import demonstration_of
from posttrain.seeding import mix

Style = Literal["f", "plus", "percent", "parameters", "number"]

TABLES = ("shop", "staff", "books", "cars", "films", "rooms")
TEXTS = ("name", "city", "kind", "owner", "color", "label")
NUMBERS = ("price", "stock", "year", "size", "age", "grade")
VALUES = ("red", "oslo", "lima", "jazz", "oak", "kim")
GIVEN = ("a", "b", "c")
OPERATORS = {"is": "=", "over": ">", "under": "<"}
ROWS, CASES, HIGHEST = 12, 3, 9
NEWLINE = "<nl>"
TYPED = "def find ( db : sqlite3.Connection ) -> list[tuple[object,...]] :"
PLAIN = "def find ( db ) :"
FRAME = """import sqlite3

{}
for row in find(sqlite3.connect("data.db")):
    print(*row)
"""


@dataclass(frozen=True, slots=True)
class Filter:
    """A column that is compared with a line of the input."""

    column: str
    relation: str  # is, over, under


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked, the script that makes the table, and cases of what is read and printed."""

    table: str
    give: str
    filters: tuple[Filter, ...]
    by: str
    construct: str
    cases: tuple[tuple[str, str], ...] = ()

    @property
    def prompt(self) -> str:
        asked = " , ".join(f"if {one.column} {one.relation}" for one in self.filters)
        return f"{self.table} : give {self.give} : {asked} : by {self.by} =>"


def sql(query: Query, values: Sequence[str]) -> str:
    """The statement, with these texts in the places of the values."""
    where = [
        f"{one.column} {OPERATORS[one.relation]} {value}" for one, value in zip(query.filters, values, strict=True)
    ]
    condition = f"where {' and '.join(where)} " if where else ""
    return f"select {query.give} from {query.table} {condition}order by {query.by}"


def program(query: Query, style: Style, typed: bool) -> str:
    """A program for the query in words; `number` is an f-string with numbers read as such, for filters of numbers."""
    given = GIVEN[: len(query.filters)]
    is_text = [one.relation == "is" for one in query.filters]
    read = [
        f"{name} = {'int(input())' if style == 'number' and not text else 'input()'} {NEWLINE}"
        for name, text in zip(given, is_text, strict=True)
    ]
    pasted = {"f": "{%s}", "number": "{%s}", "plus": '"+%s+"', "percent": "%%s", "parameters": "?"}[style]
    values = [pasted % name if "%s" in pasted.replace("%%s", "") else pasted.replace("%%", "%") for name in given]
    if style != "parameters":
        values = [f"'{value}'" if text else value for value, text in zip(values, is_text, strict=True)]
    arguments = f"( {' , '.join(given)} , )"
    behind = {"percent": f" % {arguments}", "parameters": f" , {arguments}"}.get(style, "") if given else ""
    opened = 'f"' if style in ("f", "number") else '"'
    body = f'return db.execute ( {opened}{sql(query, values)} "{behind} ) .fetchall() {NEWLINE}'
    return " ".join([TYPED if typed else PLAIN, NEWLINE, *read, body])


def python(words: str) -> str | None:
    """The Python of a reply, in the frame that reads the database and prints; None for what has no function."""
    lines = [line.strip() for line in words.split(NEWLINE)]
    if not lines[0].startswith("def find ("):
        return None
    return FRAME.format("\n".join([lines[0], *(f"    {line}" for line in lines[1:] if line)]))


@dataclass(frozen=True)
class Queries:
    """Questions, and programs as people write them.

    pasted     the share of programs that paste values into the text of the query
    annotated  the share with annotations
    careless   the share with a mistake: a filter that is forgotten or turned around, another order
    """

    seed: int = 0
    pasted: float = 0.8
    annotated: float = 0.3
    careless: float = 0.3
    longest: int = 80

    @property
    def vocabulary(self) -> list[str]:
        values = [text % name for name in GIVEN for text in ("'{%s}'", "{%s}", "'\"+%s+\"'", '"+%s+"')]
        words = [
            *TYPED.split(),
            *PLAIN.split(),
            NEWLINE,
            *GIVEN,
            "=",
            "input()",
            "int(input())",
            "return",
            "db.execute",
        ]
        words += ['f"select', '"select', "from", "where", "and", "order", "by", '"', "%", ".fetchall()", ">", "<", "?"]
        words += [*values, "'%s'", "%s", *TABLES, *TEXTS, *NUMBERS, "give", "if", *OPERATORS, ",", "=>"]
        return list(dict.fromkeys(words))

    def is_held_out(self, table: str, give: str) -> bool:
        return mix(self.seed, "held out", table, give) % 4 == 0

    def query(self, draw: random.Random, held_out: bool = False) -> Query:
        while True:
            table = draw.choice(TABLES)
            texts: list[str] = draw.sample(TEXTS, 2)
            numbers: list[str] = draw.sample(NUMBERS, 2)
            give = draw.choice([*texts, *numbers])
            if self.is_held_out(table, give) == held_out:
                break
        columns = draw.sample([*texts, *numbers], draw.choice((1, 2, 2, 3)))
        filters = tuple(
            Filter(column, "is" if column in texts else draw.choice(("over", "under"))) for column in columns
        )
        rows = [
            tuple([draw.choice(VALUES) for _ in texts] + [draw.randint(1, HIGHEST) for _ in numbers])
            for _ in range(ROWS)
        ]
        construct = construct_script(table, texts, numbers, rows)
        asked = Query(table, give, filters, draw.choice(numbers), construct)
        places = [texts.index(c) if c in texts else 2 + numbers.index(c) for c in columns]
        given = [[str(draw.choice(rows)[place]) for place in places] for _ in range(CASES)]
        with closing(sqlite3.connect(":memory:")) as db:
            db.execute(schema(table, texts, numbers))
            db.executemany(f"insert into {table} values (?, ?, ?, ?)", rows)
            statement = sql(asked, ["?"] * len(filters))
            cases = tuple(("\n".join(one), lines_of(db.execute(statement, one).fetchall())) for one in given)
        return replace(asked, cases=cases)

    def queries(self, count: int, split: str, held_out: bool = False) -> list[Query]:
        draw = random.Random(mix(self.seed, split))
        return [self.query(draw, held_out) for _ in range(count)]

    def people_program(self, query: Query, draw: random.Random) -> str:
        """A program as people write it."""
        if draw.random() < self.careless:
            query = self.mistake(query, draw)
        only_numbers = all(one.relation != "is" for one in query.filters)
        safe: list[Style] = ["parameters", "number"] if only_numbers else ["parameters"]
        style = draw.choice(("f", "plus", "percent")) if draw.random() < self.pasted else draw.choice(safe)
        return program(query, style, draw.random() < self.annotated)

    def mistake(self, query: Query, draw: random.Random) -> Query:
        """The query with a mistake in it."""
        turned = {"over": "under", "under": "over", "is": "is"}
        wrong = draw.choice([
            query.filters[1:],
            tuple(Filter(one.column, turned[one.relation]) for one in query.filters),
            (),
        ])  # fmt: skip
        by = query.by if wrong != query.filters else query.filters[0].column
        return replace(query, filters=wrong, by=by)

    def demonstration(self, draw: random.Random) -> Demonstration:
        query = self.query(draw)
        return demonstration_of(query.prompt, self.people_program(query, draw))


def schema(table: str, texts: Sequence[str], numbers: Sequence[str]) -> str:
    columns = [f"{name} text" for name in texts] + [f"{name} integer" for name in numbers]
    return f"create table {table} ({', '.join(columns)})"


def construct_script(table: str, texts: Sequence[str], numbers: Sequence[str], rows: Sequence[tuple]) -> str:
    """Python that makes the database."""
    return (
        f'import sqlite3\ndb = sqlite3.connect("data.db")\ndb.execute({schema(table, texts, numbers)!r})\n'
        f'db.executemany("insert into {table} values (?, ?, ?, ?)", {rows!r})\ndb.commit()\n'
    )


def lines_of(rows: Sequence[tuple]) -> str:
    return "\n".join(" ".join(map(str, row)) for row in rows)
