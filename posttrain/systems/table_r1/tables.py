"""Tables as a model reads them, and the rule for those that are too long."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.records import Place


@dataclass(frozen=True)
class Table:
    """Text by row and column; rows that were shorter than the header are filled with empty cells."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    left_out: int = 0  # rows at its end that the prompt does not show

    def markdown(self) -> str:
        lines = [f"| {' | '.join(self.header)} |", f"|{'---|' * len(self.header)}"]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        lines += [f"({self.left_out} more rows are not shown)"] if self.left_out else []
        return "\n".join([*([self.caption, ""] if self.caption else []), *lines])

    def first_rows(self, count: int) -> Table:
        return replace(self, rows=self.rows[:count], left_out=self.left_out + len(self.rows) - count)


def table_of(header: Iterable[Any], rows: Iterable[Iterable[Any]], place: Place, caption: str = "") -> Table:
    """Raises ValueError, naming the place, for a table without columns, and a row that is longer than the header."""
    names = tuple(map(cell, header))
    if not names:
        raise ValueError(f"{place}: the table has no header")
    filled = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Sequence) or isinstance(row, str):
            raise ValueError(f"{place}: row {number} of the table is {type(row).__name__}, not a list of cells")
        cells = tuple(map(cell, row))
        if len(cells) > len(names):
            raise ValueError(f"{place}: row {number} of the table has {len(cells)} cells under {len(names)} columns")
        filled.append(cells + ("",) * (len(names) - len(cells)))
    return Table(names, tuple(filled), cell(caption))


def cell(value: Any) -> str:
    """One line; a bar, which parts columns, is escaped."""
    return " ".join(("" if value is None else str(value)).split()).replace("|", "\\|")


# ---- where a record keeps its table


def record_table(record: Mapping[str, Any], place: Place) -> Table:
    """The table of a record in any of the forms that `questions` reads. Raises ValueError naming what is missing."""
    caption = str(record.get("caption") or " - ".join(filter(None, map(record.get, PAGE))) or "")
    if "table_array" in record:  # FeTaQA
        header, *rows = record["table_array"] or [[]]
        return table_of(header, rows, place, caption)
    if "header" in record and "rows" in record:  # WikiTableQuestions, TabFact
        return table_of(record["header"], record["rows"], place, caption)
    if "table_id" in record and "table" not in record:
        return hitab_table(hitab_file(str(record["table_id"]), place), place)
    given = record.get("table")
    if isinstance(given, Mapping) and {"header", "rows"} <= set(given):
        return table_of(given["header"], given["rows"], place, caption)
    if isinstance(given, Sequence) and not isinstance(given, str) and given:
        return table_of(given[0], given[1:], place, caption)
    if isinstance(given, str):
        return csv_table(Path(place.file).parent / Path(given).expanduser(), place, caption)
    raise ValueError(f"{place}: there is no table: give `table` (a CSV file, or rows), or `header` and `rows`")


PAGE = ("table_page_title", "table_section_title")


def csv_table(path: Path, place: Place, caption: str) -> Table:
    if not path.is_file():
        raise ValueError(f"{place}: there is no table {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: the table {path} is not UTF-8 ({error.reason})") from error
    separator = "\t" if path.suffix == ".tsv" else max(",;", key=text.partition("\n")[0].count)
    header, *rows = [row for row in csv.reader(text.splitlines(), delimiter=separator) if row] or [[]]
    return table_of(header, rows, place, caption)


def hitab_file(name: str, place: Place) -> Path:
    """HiTab's table of this id, in a folder beside the questions."""
    folder = Path(place.file).parent
    tried = [folder / part / f"{name}.json" for part in ("", "tables", "raw", "tables/raw")]
    found = next((path for path in tried if path.is_file()), None)
    if found is None:
        raise ValueError(f"{place}: there is no table {tried[0]}, nor in tables, raw or tables/raw beside it")
    return found


def hitab_table(path: Path, place: Place) -> Table:
    """A hierarchical table: of a column's headings, one below another, a single name is made."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        texts, top = found["texts"], max(int(found.get("top_header_rows_num", 1)), 1)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place}: {path} is no table of HiTab: {type(error).__name__} {error}") from error
    head = [list(dict.fromkeys(filter(None, (cell(row[i]) for row in texts[:top])))) for i in range(len(texts[0]))]
    return table_of([" / ".join(names) for names in head], texts[top:], place, str(found.get("title", "")))
