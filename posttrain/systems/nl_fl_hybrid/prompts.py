"""What the models are asked. The paper's prompts name their format and their examples; the words are ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import posttrain as pt

SYSTEM = "You are an expert in mathematics and {name}."
SOLVE = "{question}\n\nReason step by step, and put the final answer within \\boxed{{}}."
EXAMPLES = (
    (
        "What is the least common multiple of 6 and 15?",
        "There is a least positive integer that 6 and 15 divide.",
    ),
    ("Solve $3x + 5 = 26$ for $x$.", "There is a real number $x$ such that $3x + 5 = 26$."),
    (
        "How many positive divisors does 36 have?",
        "There is a natural number that is the number of positive divisors of 36.",
    ),
)
EXIST = (
    "Rewrite the question as a statement that its answer exists. Do not solve it: the statement must not name the "
    "answer. End with the statement in a ```md block.\n\n{examples}\n\n```md\n{question}\n```"
)
EXTRACT = (
    "A question, and somebody's thoughts about it:\n\n{question}\n\n{thought}\n\nWhat answer do the thoughts come to? "
    "Do not solve the question anew. Put the answer within \\boxed{{}}."
)


@dataclass(frozen=True)
class Language:
    """A formal language, as a prompt speaks of it."""

    name: str
    fence: str
    formalise: str
    header: str
    comment: str


LANGUAGES: Mapping[str, Language] = {
    "lean4": Language(
        "Lean 4",
        "lean4",
        "Please autoformalize the following problem in Lean 4 with a header. Use the following theorem names: {name}."
        "\n\n{text}",
        "import Mathlib\nimport Aesop\n\nset_option maxHeartbeats 0\n\nopen BigOperators Real Nat Topology Rat\n\n",
        "/-- {} -/",
    ),
    "coq": Language(
        "Coq",
        "coq",
        "State the following in Coq, over Z where it is about integers, as `Theorem {name} : exists x : Z, ... .` in a "
        "```coq block, without a proof.\n\n{text}",
        "Require Import ZArith Znumtheory QArith Reals Lia Lra.\nOpen Scope Z_scope.\n\n",
        "(* {} *)",
    ),
}


def solve(question: str) -> tuple[pt.Message, ...]:
    return (pt.user(SOLVE.format(question=question)),)


def exist(question: str) -> tuple[pt.Message, ...]:
    """With three examples, question and statement each in a block of Markdown."""
    shown = "\n\n".join(f"```md\n{asked}\n```\n```md\n{stated}\n```" for asked, stated in EXAMPLES)
    return (pt.user(EXIST.format(examples=shown, question=question)),)


def formalise(text: str, name: str, language: str) -> tuple[pt.Message, ...]:
    return (pt.user(LANGUAGES[language].formalise.format(text=text, name=name)),)


def prove(question: str, statement: str, language: str, mixed: bool = True) -> tuple[pt.Message, ...]:
    """The mixed input: question, formal header, the question again as a comment, formal statement."""
    how = LANGUAGES[language]
    comment = how.comment.format(" ".join(question.split())) + "\n" if mixed else ""
    block = f"```{how.fence}\n{how.header}{comment}{statement}\n```"
    asked = f"# Problem: {question}\n\n" if mixed else ""
    words = f"Think about and solve the following problem step by step in {how.name}.\n\n{asked}# Formal statement:\n"
    return (pt.system(SYSTEM.format(name=how.name)), pt.user(f"{words}{block}"))


def extract(question: str, thought: str) -> tuple[pt.Message, ...]:
    return (pt.user(EXTRACT.format(question=question, thought=thought)),)
