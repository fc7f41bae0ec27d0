"""Tables as a model reads them, and the rule for those that are too long."""

from __future__ import annotations

import csv
import io
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
    for part, name in ((header, "header"), (rows, "rows")):
        if not isinstance(part, Sequence) or isinstance(part, str):
            raise ValueError(f"{place}: the {name} of the table is {type(part).__name__}, not a list")
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
    pages = [str(record[name]) for name in PAGE if record.get(name)]
    caption = str(record.get("caption") or " - ".join(pages))
    if "table_array" in record:  # FeTaQA
        header, *rows = list_of_rows(record["table_array"], place)
        return table_of(header, rows, place, caption)
    if "header" in record and "rows" in record:  # WikiTableQuestions, TabFact
        return table_of(record["header"], record["rows"], place, caption)
    if "table_id" in record and "table" not in record:
        return hitab_table(hitab_file(str(record["table_id"]), place), place)
    given = record.get("table")
    if isinstance(given, Mapping) and {"header", "rows"} <= set(given):
        return table_of(given["header"], given["rows"], place, caption)
    if isinstance(given, str):
        if "\n" in given:
            return read_csv(given, place, caption)
        return csv_table(Path(place.file).parent / Path(given).expanduser(), place, caption)
    if given is not None:
        header, *rows = list_of_rows(given, place)
        return table_of(header, rows, place, caption)
    raise ValueError(f"{place}: there is no table: give `table` (a CSV file, or rows), or `header` and `rows`")


PAGE = ("table_page_title", "table_section_title")


def list_of_rows(given: Any, place: Place) -> list[Any]:
    """The rows of a table, its header first; objects, one a row, have their names for a header."""
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise ValueError(
            f"{place}: the table is {type(given).__name__}, or empty, and not a list of rows, header first"
        )
    if all(isinstance(row, Mapping) for row in given):
        header = list(dict.fromkeys(name for row in given for name in row))
        return [header, *([row.get(name) for name in header] for row in given)]
    return list(given)


def csv_table(path: Path, place: Place, caption: str) -> Table:
    if not is_there(path):
        raise ValueError(f"{place}: there is no table {str(path)[:200]}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: the table {path} is not UTF-8 ({error.reason})") from error
    return read_csv(text, place, caption)


def is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def read_csv(text: str, place: Place, caption: str) -> Table:
    """Columns are parted by what the first line has most of: commas, semicolons or tabs."""
    separator = max(",;\t", key=text.partition("\n")[0].count)
    try:
        found = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row]
    except csv.Error as error:
        raise ValueError(f"{place}: the table is no CSV: {error}") from error
    header, *rows = found or [[]]
    return table_of(header, rows, place, caption)


def hitab_file(name: str, place: Place) -> Path:
    """HiTab's table of this id, in a folder beside the questions."""
    folder = Path(place.file).parent
    tried = [folder / part / f"{name}.json" for part in ("", "tables", "raw", "tables/raw")]
    found = next(filter(is_there, tried), None)
    if found is None:
        raise ValueError(f"{place}: there is no table {tried[0]}, nor in tables, raw or tables/raw beside it")
    return found


def hitab_table(path: Path, place: Place) -> Table:
    """A hierarchical table: of a column's headings, one below another, a single name is made."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        texts, top = [list(row) for row in found["texts"]], max(int(found.get("top_header_rows_num", 1)), 1)
        width = max(map(len, texts), default=0)
        for region in found.get("merged_regions", ()):
            spread(texts, region, top)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{place}: {path} is no table of HiTab: {type(error).__name__} {error}") from error
    head = [[cell(row[i]) for row in texts[:top] if i < len(row)] for i in range(width)]
    names = [" / ".join(dict.fromkeys(filter(None, column))) for column in head]
    return table_of(names, texts[top:], place, str(found.get("title", "")))


def spread(texts: list[list[Any]], region: Mapping[str, int], top: int) -> None:
    """Give a merged region of the heading its text in every cell, of which only the first has it."""
    rows = range(region["first_row"], min(region["last_row"] + 1, top))
    for i in rows:
        for j in range(region["first_column"], region["last_column"] + 1):
            texts[i][j] = texts[i][j] or texts[region["first_row"]][region["first_column"]]
