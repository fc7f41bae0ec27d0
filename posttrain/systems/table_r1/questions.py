"""Questions about tables: the four published formats, the released rows, and a user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import posttrain as pt
from posttrain.data import is_chat
from posttrain.long_prompts import Fitted, fit
from posttrain.records import Place, records, with_unique_keys
from posttrain.systems.table_r1.answers import KINDS, MOST_ITEMS, VERDICTS, Kind
from posttrain.systems.table_r1.reward import Truth
from posttrain.systems.table_r1.tables import Table, record_table

Long = Literal["drop", "cut"]
WANTED: Mapping[Kind, str] = {
    "TQA": "Answer the question by the table. The answer is a list of strings, one for each item that is asked for.",
    "TFV": 'Say whether the table entails or refutes the statement. The answer is "entailed" or "refuted".',
    "FF-TQA": "Answer the question by the table in one sentence. The answer is a string.",
}
SHAPE: Mapping[Kind, str] = {
    "TQA": '{"answer": ["...", ...]}',
    "TFV": '{"answer": "entailed"}',
    "FF-TQA": '{"answer": "..."}',
}


@dataclass(frozen=True)
class Question:
    """`prompt` is that of a released row, which has its table in it."""

    key: str
    kind: Kind
    text: str
    answers: tuple[str, ...]
    table: Table | None
    prompt: tuple[pt.Message, ...] = ()

    def task(self, table: Table | None = None) -> pt.Task[Truth]:
        """With this table in the place of its own, if one is given."""
        shown = table or self.table
        asked = self.prompt or (pt.user(prompt_text(self.kind, shown, self.text)),)
        return pt.Task(self.key, asked, Truth(self.kind, self.answers))


def prompt_text(kind: Kind, table: Table | None, question: str) -> str:
    """The words are ours: those of the paper are in its data alone."""
    return (
        f"{WANTED[kind]}\n\n{table.markdown() if table else ''}\n\n{question}\n\n"
        "Think first, between <think> and </think>. Then write, between <answer> and </answer>, a block\n"
        f"```json\n{SHAPE[kind]}\n```"
    )


def questions(data: str | Path, limit: int | None = None, split: str = "train") -> list[Question]:
    """The questions of a file or Hub dataset, each row in the form that it is in.

        WikiTableQuestions  question, answers, header, rows
        TabFact             statement, label, header, rows (caption)
        FeTaQA              question, answer (a sentence), table_array
        HiTab               question, answer (a list), table_id of a JSON file beside the questions
        Table-R1's rows     prompt, reward_model, extra_info
        your own            question, answer or answers, and `table`: a CSV file beside the data, or rows, header first

    A list or a single word is a short answer, "entailed" or "refuted" a verdict; `kind` (TQA, TFV, FF-TQA) says it
    otherwise. Raises ValueError naming file, line and what is wrong.
    """
    return with_unique_keys((place, question(record, place)) for place, record in records(data, limit, split))


def question(record: Mapping[str, Any], place: Place) -> Question:
    key = next((str(record[name]) for name in ("id", "feta_id") if record.get(name) is not None), str(place.line))
    if isinstance(record.get("reward_model"), Mapping):
        return released_question(record, key, place)
    text = record.get("question", record.get("statement"))
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{place}: there is no question: give `question`, or `statement` with `label`")
    kind, answers = answers_of(record, place)
    return Question(key, kind, text.strip(), answers, record_table(record, place))


def answers_of(record: Mapping[str, Any], place: Place) -> tuple[Kind, tuple[str, ...]]:
    if "label" in record and "statement" in record:
        if record["label"] not in (0, 1, True, False, *VERDICTS):
            raise ValueError(f"{place}: the label {record['label']!r} is neither 1 (entailed) nor 0 (refuted)")
        entailed = record["label"] in (1, True, VERDICTS[0])
        return "TFV", (VERDICTS[0] if entailed else VERDICTS[1],)
    given = record.get("answers", record.get("answer"))
    listed = list(given) if isinstance(given, list | tuple) else [given]
    if not listed or not all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in listed):
        raise ValueError(f"{place}: the answer {given!r} is neither text, a number, nor a list of these")
    answers = tuple(str(item) for item in listed)
    if any(isinstance(item, float) and not math.isfinite(item) for item in listed):
        raise ValueError(f"{place}: the answer {given!r} is no number")
    if len(answers) == 1 and answers[0].strip().lower() in VERDICTS:
        answers = (answers[0].strip().lower(),)
    guess: Kind = "TFV" if answers[0] in VERDICTS and len(answers) == 1 else "TQA"
    guess = "FF-TQA" if "table_array" in record else guess
    kind = record.get("kind", guess)
    if kind not in KINDS:
        raise ValueError(f"{place}: the kind {kind!r} is none of {', '.join(KINDS)}")
    if kind == "TFV" and answers[0] not in VERDICTS:
        raise ValueError(f"{place}: the verdict {answers[0]!r} is neither entailed nor refuted")
    if kind == "TQA" and len(answers) > MOST_ITEMS:
        raise ValueError(f"{place}: {len(answers)} answers; no reply with more than {MOST_ITEMS} is right")
    return kind, answers


def released_question(record: Mapping[str, Any], key: str, place: Place) -> Question:
    extra = record.get("extra_info")
    extra = extra if isinstance(extra, Mapping) else {}
    kind, wanted = extra.get("task_type"), record["reward_model"].get("ground_truth")
    if kind not in KINDS or not wanted:
        raise ValueError(f"{place}: a row of Table-R1 names `extra_info.task_type` and `reward_model.ground_truth`")
    listed = wanted if isinstance(wanted, list | tuple) else [wanted]
    if not is_chat(record.get("prompt")):
        raise ValueError(f"{place}: a row of Table-R1 has its messages in `prompt`")
    prompt = tuple(record["prompt"])
    return Question(str(extra.get("id", key)), kind, "", tuple(map(str, listed)), None, prompt)


# ---- tables that are too long


def fitted(found: Sequence[Question], length: Callable[[pt.Task], int], most: int, long: Long = "drop") -> Fitted:
    """The tasks whose prompts have at most so many tokens.

    long  drop: leave out a question whose prompt is longer, as published; cut: leave out the last rows of its table,
          which the prompt then says, as many as must be; one whose header alone does not fit is dropped
    Raises ValueError when nothing is left.
    """
    by_key = {one.key: one for one in found}

    def cut(task: pt.Task) -> pt.Task | None:
        one = by_key[task.key]
        return cut_to_fit(one, one.table, length, most) if long == "cut" and one.table is not None else None

    return fit([one.task() for one in found], length, most, cut, ", or `long=cut`")


def cut_to_fit(one: Question, table: Table, length: Callable[[pt.Task], int], most: int) -> pt.Task | None:
    """With as many first rows as fit, by bisection; None where not even the header does."""
    low, high = -1, len(table.rows)  # rows that fit, and that do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if length(one.task(table.first_rows(middle))) <= most else (low, middle)
    return None if low < 0 else one.task(table.first_rows(low))
