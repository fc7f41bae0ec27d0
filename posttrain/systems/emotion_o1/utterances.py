"""Utterances with labels: MELD, MUStARD, and rows of a user's own, as tasks that the prompt names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import posttrain as pt
from posttrain.records import Place, Record, column, records, with_unique_keys
from posttrain.systems.emotion_o1.reply import AROUND, label_of
from posttrain.systems.emotion_o1.reward import Truth

LABELS: Mapping[str, tuple[str, ...]] = {  # as published; MUStARD's are true and false
    "emotion": ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"),
    "sentiment": ("negative", "neutral", "positive"),
    "sarcasm": ("sarcastic", "sincere"),
}
MEANT = {"true": "sarcastic", "1": "sarcastic", "false": "sincere", "0": "sincere"}  # by MUStARD's column
WANTED: Mapping[str, str] = {
    "emotion": "Which emotion does the speaker of the last utterance show?",
    "sentiment": "What is the sentiment of the last utterance?",
    "sarcasm": "Is the last utterance meant sarcastically?",
    "humour": "Is the text meant to be funny?",
}
BRIEFLY, AT_LENGTH = "in a few words", "step by step, weighing what is said against what is meant"
MANNER: Mapping[str, str] = {
    **dict.fromkeys(("emotion", "sentiment"), BRIEFLY),
    **dict.fromkeys(("sarcasm", "humour"), AT_LENGTH),
}


@dataclass(frozen=True)
class Utterance:
    """What is said, with what was said before it."""

    key: str
    task: str
    text: str
    label: str
    place: Place
    context: tuple[str, ...] = ()

    def task_of(self, labels: Sequence[str]) -> pt.Task[Truth]:
        truth = Truth(self.task, self.label, tuple(labels))
        return pt.Task(self.key, (pt.user(prompt_text(self, labels)),), truth)


def prompt_text(one: Utterance, labels: Sequence[str]) -> str:
    """The task's name, its labels, the utterance and how to answer. The words are ours: the paper's are not public."""
    wanted, manner = WANTED.get(one.task, "Which label fits the last utterance?"), MANNER.get(one.task)
    said = "\n".join([*one.context, one.text])
    think = f"Think first, {manner}" if manner else "Think first"
    return (
        f"Task: {one.task}. {wanted} The labels are {', '.join(labels)}.\n\n{said}\n\n"
        f"{think}, between <think> and </think>. Then write one of the labels between <answer> and </answer>."
    )


# ---- files


def utterances(
    data: str, name: str = "", limit: int | None = None, split: str = "train", context: int = 5
) -> list[Utterance]:
    """The utterances of a file or Hub dataset, each row in the form that it is in.

        MELD       Utterance, Speaker, Emotion, Sentiment, Dialogue_ID, Utterance_ID
        MUStARD    utterance, speaker, context, context_speakers, sarcasm
        your own   text, label (task, context: a text or a list of them, id)

    name     of the file among several; `sentiment` reads MELD's sentiment and not its emotion, and rows without a
             `task` are of the task of this name, or of the file's
    context  most utterances that are shown before one
    Raises ValueError naming file and line for a row in none of these forms, and for an id that is used twice.
    """
    pt.at_least(0, context=context)
    dialogues: dict[str, list[tuple[float, str]]] = {}  # of MELD: what was said in each, with its place in it
    task = name or Path(data).stem
    rows = records(data, limit, split)
    return with_unique_keys((place, utterance(record, place, task, dialogues, context)) for place, record in rows)


def utterance(
    record: Record, place: Place, name: str, dialogues: dict[str, list[tuple[float, str]]], context: int
) -> Utterance:
    if "Utterance" in record:
        return of_meld(record, place, name, dialogues, context)
    if "sarcasm" in record and "utterance" in record:
        return of_mustard(record, place, name, context)
    if "text" not in record:
        raise ValueError(
            f"{place}: no utterance: give `text` and `label`, or the columns of MELD or of MUStARD; there are "
            f"{', '.join(record)}"
        )
    before = record.get("context") or []
    before = [before] if isinstance(before, str) else before
    if not isinstance(before, Sequence) or not all(isinstance(one, str) for one in before):
        raise ValueError(f"{place}: the context is neither a text nor a list of texts")
    task = str(record.get("task") or name)
    label = text_of(record, "label", place)
    key = str(place.line if record.get("id") is None else record["id"])
    return Utterance(f"{task}-{key}", task, text_of(record, "text", place), label, place, last(before, context))


def of_meld(
    record: Record, place: Place, name: str, dialogues: dict[str, list[tuple[float, str]]], context: int
) -> Utterance:
    task = "sentiment" if name == "sentiment" else "emotion"
    label = text_of(record, task.capitalize(), place)
    dialogue, number = text_of(record, "Dialogue_ID", place), text_of(record, "Utterance_ID", place)
    if not number.isdecimal():
        raise ValueError(f"{place}: the Utterance_ID {number!r} is no number")
    said = spoken(record.get("Speaker"), text_of(record, "Utterance", place))
    earlier = sorted(one for one in dialogues.get(dialogue, []) if one[0] < int(number))
    dialogues.setdefault(dialogue, []).append((int(number), said))
    before = last([text for _, text in earlier], context)
    return Utterance(f"{task}-dia{dialogue}_utt{number}", task, said, label, place, before)


def of_mustard(record: Record, place: Place, name: str, context: int) -> Utterance:
    label = MEANT.get(str(record["sarcasm"]).lower())
    if label is None:
        raise ValueError(f"{place}: sarcasm is {record['sarcasm']!r}, neither true nor false")
    before, speakers = record.get("context") or [], record.get("context_speakers") or []
    lists = isinstance(before, list) and isinstance(speakers, list)
    if not lists or len(speakers) not in (0, len(before)):
        raise ValueError(f"{place}: `context` and `context_speakers` are not two lists of one length")
    lines = [spoken(who, text) for who, text in zip(speakers or [None] * len(before), before, strict=True)]
    said = spoken(record.get("speaker"), text_of(record, "utterance", place))
    key = str(place.line if record.get("id") is None else record["id"])
    return Utterance(f"sarcasm-{key}", "sarcasm", said, label, place, last(lines, context))


def spoken(speaker: Any, text: str) -> str:
    """On one line, behind the speaker's name."""
    plain = " ".join(str(text).split())
    return f"{speaker}: {plain}" if speaker else plain


def last(lines: Sequence[str], count: int) -> tuple[str, ...]:
    return tuple(lines[-count:] if count else ())


def text_of(record: Record, name: str, place: Place) -> str:
    value = column(record, name, place, name)
    if isinstance(value, list | dict) or not str(value).strip():
        raise ValueError(f"{place}: the column {name!r} holds {type(value).__name__}, or nothing, in the place of text")
    return str(value).strip()


# ---- labels


def labels_of(found: Iterable[Utterance], given: Iterable[str] = ()) -> dict[str, tuple[str, ...]]:
    """The labels of each task: those that are given, TASK=A,B,C, else the published ones, else those of the data.

    Raises ValueError for an entry that cannot be read, for fewer than two labels, and for two that are the same without
    case and punctuation.
    """
    seen: dict[str, set[str]] = {}
    for one in found:
        seen.setdefault(one.task, set()).add(one.label)
    wanted = dict(map(given_labels, given))
    for task in wanted:
        if task not in seen:
            raise ValueError(f"`labels={task}=...`: the data have no task of this name, but {', '.join(sorted(seen))}")
    out = {}
    for task, labels in sorted(seen.items()):
        out[task] = wanted.get(task) or LABELS.get(task) or tuple(sorted(labels))
        require_distinct(out[task], f"the task {task!r}", f"give `labels={task}=A,B`")
    return out


def given_labels(entry: str) -> tuple[str, tuple[str, ...]]:
    task, _, names = entry.partition("=")
    labels = tuple(filter(None, (name.strip() for name in names.split(","))))
    require_distinct(labels, f"`labels={entry}`", "write TASK=A,B,C")
    return task.strip(), labels


def require_distinct(labels: Sequence[str], owner: str, remedy: str) -> None:
    plain = {label.strip(AROUND).casefold() for label in labels} - {""}
    if len(plain) < max(len(labels), 2):
        raise ValueError(
            f"{owner} has the labels {', '.join(map(repr, labels)) or 'none'}: there must be two or more, that differ "
            f"in more than case and punctuation; {remedy}"
        )


def tasks_of(found: Iterable[Utterance], labels: Mapping[str, Sequence[str]]) -> list[pt.Task[Truth]]:
    """Raises ValueError naming file and line of a label, or of a task, that is not known."""
    out = []
    for one in found:
        if one.task not in labels:
            known = ", ".join(labels)
            raise ValueError(f"{one.place}: the task {one.task!r} is none of those that have labels: {known}")
        label = label_of(one.label, labels[one.task])
        if label is None:
            raise ValueError(
                f"{one.place}: the label {one.label!r} is none of {', '.join(labels[one.task])}, the labels of the "
                f"task {one.task!r}; name others by `labels`"
            )
        out.append(replace(one, label=label).task_of(labels[one.task]))
    return out
