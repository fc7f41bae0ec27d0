"""What an evaluator is asked, and what makes the candidates that it learns from. The words are ours."""

from __future__ import annotations

import re
from collections.abc import Sequence

import posttrain as pt

RULES = """You evaluate {count} candidate answers to a question against a reference.

1. Take each candidate apart into atomic claims: statements that say one thing each. Leave out nothing that it says.
2. Judge each claim by the reference alone, and not by what you know.
3. For a supported claim quote the sentences of the reference that support it, word for word.

Write a JSON list with one object for each candidate and nothing else:
[{{"id": 1, "answer": "the candidate", "atomic_claims": [{{"claim": "...", "is_supported": true,
"grounding_evidence": ["..."], "analysis": "..."}}]}}, ...]"""
CLOSING = re.compile(r"<\s*/\s*candidate", re.IGNORECASE)  # in a candidate, which must not end itself
PASSAGE = re.compile(r"<passage>\n.*?\n</passage>\n\n", re.DOTALL)
ANSWER = "Answer the question in a few sentences.\n\n"
SHOWN = (
    ("Where is the Tana, and how long is it?", "The Tana is in Kenya. It is about 1,000 km long."),
    ("Who wrote The Idiot?", "The Idiot was written by Fyodor Dostoevsky. It appeared in 1868 and 1869."),
)


def judge_request(question: str, reference: str, candidates: Sequence[str]) -> tuple[pt.Message, ...]:
    """The request to evaluate candidates, numbered from 1."""
    listed = "\n\n".join(
        f"<candidate {number}>\n{CLOSING.sub('< /candidate', text)}\n</candidate {number}>"
        for number, text in enumerate(candidates, 1)
    )
    rules = RULES.format(count=len(candidates))
    return (pt.user(f"{rules}\n\nQuestion:\n{question}\n\nReference:\n{reference}\n\n{listed}"),)


def answer_request(question: str, passage: str) -> tuple[pt.Message, ...]:
    """The request to answer a question by a passage, after two examples."""
    examples = "".join(f"Question: {asked}\nAnswer: {said}\n\n" for asked, said in SHOWN)
    inside = passage.replace("</passage>", "< /passage>")
    return (pt.user(f"{ANSWER}{examples}<passage>\n{inside}\n</passage>\n\nQuestion: {question}\nAnswer:"),)


def without_passage(messages: Sequence[pt.Message]) -> tuple[pt.Message, ...]:
    """The same request, examples and all, without the passage."""
    return tuple({**message, "content": PASSAGE.sub("", message["content"], count=1)} for message in messages)
