"""Solution trees: the samples of one problem as a trie of their tokens, with counts and mean rewards."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import posttrain as pt
from posttrain.chat import trace

UNSAFE = r"[^\w.-]"  # in the name of a file


@dataclass(slots=True)
class Node:
    """A segment of tokens that `count` samples share, and what they earned."""

    text: str
    count: int
    mean: float
    children: list[Node] = field(default_factory=list)
    answer: str | None = None  # of a leaf; or of a sub-tree all of whose leaves give it

    def as_json(self) -> dict[str, Any]:
        own: dict[str, Any] = {"text": self.text, "count": self.count, "mean": round(self.mean, 4)}
        own |= {"answer": self.answer} if self.answer is not None else {}
        return own | ({"children": [child.as_json() for child in self.children]} if self.children else {})

    def as_html(self) -> str:
        title = f"{self.count} samples, {self.mean:.2f}" + (
            f", answer {self.answer}" if self.answer is not None else ""
        )
        shade = f"background:rgba(84,162,75,{self.mean:.2f})" if self.mean > 0 else ""
        label = f"<code style='{shade}'>{html.escape(self.text) or '(root)'}</code> <small>{html.escape(title)}</small>"
        if not self.children:
            return f"<div>{label}</div>"
        inside = "".join(child.as_html() for child in sorted(self.children, key=lambda child: -child.count))
        return f"<details open><summary>{label}</summary><div style='margin-left:1.5em'>{inside}</div></details>"


def tree(samples: Sequence[tuple[Sequence[int], float, str]], tokenizer: Any, text: str = "") -> Node:
    """The trie of (tokens, reward, answer). A sub-tree all of whose samples give one answer is one leaf."""
    mean = sum(reward for _, reward, _ in samples) / len(samples)
    answers = {answer for _, _, answer in samples}
    node = Node(text, len(samples), mean, answer=answers.pop() if len(answers) == 1 else None)
    if node.answer is not None:
        return node
    branches: dict[int | None, list[tuple[Sequence[int], float, str]]] = {}
    for tokens, reward, answer in samples:
        branches.setdefault(tokens[0] if tokens else None, []).append((tokens, reward, answer))
    for branch in branches.values():
        shared = shared_prefix([tokens for tokens, _, _ in branch])
        rest = [(tokens[shared:], reward, answer) for tokens, reward, answer in branch]
        node.children.append(tree(rest, tokenizer, tokenizer.decode(list(branch[0][0][:shared]))))
    return node


def shared_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with."""
    first, last = min(map(tuple, sequences)), max(map(tuple, sequences))
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def solution_tree(group: pt.Group, scores: Sequence[Any], tokenizer: Any) -> Node:
    """The tree of one problem's rollouts; its answers are their texts' last lines."""
    samples = [
        (trace(rollout.turns[-1].reply).reply, score.value, (rollout.text.strip().splitlines() or [""])[-1])
        for rollout, score in zip(group, scores, strict=True)
        if isinstance(score, pt.Score) and rollout.turns
    ]
    return tree(samples, tokenizer)


def write_trees(found: pt.Evaluation, tokenizer: Any, folder: Path, most: int = 12) -> None:
    """`folder`/KEY.json of the first problems, and one page of all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = []
    for group, scores in list(zip(found.groups, found.scores, strict=True))[:most]:
        root = solution_tree(group, scores, tokenizer)
        key = group[0].task.key
        (folder / f"{re.sub(UNSAFE, '-', key)}.json").write_text(json.dumps(root.as_json(), indent=1))
        pages.append(f"<h3>{html.escape(key)}</h3><p>{html.escape(str(group[0].task.prompt[-1]['content']))}</p>")
        pages.append(root.as_html())
    page = f"<!doctype html><meta charset=utf-8><title>solution trees</title>{''.join(pages)}"
    (folder / "index.html").write_text(page)
