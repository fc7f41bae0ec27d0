"""The questions of the pipeline's stages, and how their answers are read. The wording is ours: none was released."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from posttrain.grade.text import normal_text as plain
from posttrain.grade.verify import last_box
from posttrain.systems.deeptheorem.verdict import normal, verdict_word

Item: TypeAlias = dict[str, Any]
Found: TypeAlias = dict[str, Any]  # new fields of an item, or {"dropped": why}
LEAST_DIFFICULTY, MOST_DIFFICULTY = 5.0, 10.0


@dataclass(frozen=True, slots=True)
class Stage:
    """One question to the writer: what is asked of an item (None: nothing), and what its answer says.

    `read` is given the answer; None where it cannot be read, and is asked for once more.
    """

    name: str
    request: Callable[[Item], str | None]
    read: Callable[[str, Item], Found | None]


def tag_contents(text: str, *names: str) -> list[str] | None:
    """The text in the last `<name>...</name>` of each name: LaTeX survives tags, as it would not survive JSON.

    None unless every one is there and not empty.
    """
    found = [re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL) for name in names]
    values = [one[-1].strip() if one else "" for one in found]
    return values if all(values) else None


def yes(text: str) -> bool | None:
    return {"yes": True, "no": False}.get(text.strip().lower())


def ask_contamination(item: Item) -> str | None:
    if not item["near"]:
        return None
    tests = "\n".join(f"{i}. {test}" for i, test in enumerate(item["near"], 1))
    return (
        "Is this question the same as one of the test questions below, in other words, or a generalisation, a special "
        "case or the converse of one, so that who has studied it would know the answer to the test question?\n\n"
        f"Question:\n{item['question']}\n\nTest questions:\n{tests}\n\n"
        "Think, then end with <contaminated>yes</contaminated> or <contaminated>no</contaminated>."
    )


def read_contamination(text: str, item: Item) -> Found | None:
    return yes_or_no(text, "contaminated", wanted=False, reason="contaminated")


def ask_completeness(item: Item) -> str:
    return (
        "Is this a question that asks for a proof, or can be put as one, and does it say everything that is needed to "
        f"answer it?\n\n{item['question']}\n\n"
        "End with <complete>yes</complete> or <complete>no</complete>. If yes, also rewrite it as one self-contained "
        'statement, true or false, that begins or ends in "prove or disprove that ...", and gives no hint of the '
        "answer: <statement>...</statement>."
    )


def read_completeness(text: str, item: Item) -> Found | None:
    said = tag_contents(text, "complete")
    complete = yes(said[0]) if said else None
    if complete is False:
        return {"dropped": "incomplete"}
    statement = tag_contents(text, "statement")
    return {"statement": statement[0]} if complete and statement else None


def ask_proof(item: Item) -> str:
    return (
        f"{item['statement']}\n\nWrite a complete proof or disproof, in natural language and LaTeX. End with "
        "\\boxed{proved} if the statement is true, with \\boxed{disproved} if it is false."
    )


def read_proof(text: str, item: Item) -> Found | None:
    said = normal(last_box(text) or "")
    return {"proof": text, "truth_value": said == "proved"} if said in ("proved", "disproved") else None


def ask_coherence(item: Item) -> str:
    return (
        "Is this proof about this statement, and does it come to the verdict that the statement is "
        f"{verdict_word(item['truth_value'])} by its own argument?\n\nStatement:\n{item['statement']}\n\n"
        f"Proof:\n{item['proof']}\n\nThink, then end with <coherent>yes</coherent> or <coherent>no</coherent>."
    )


def read_coherence(text: str, item: Item) -> Found | None:
    return yes_or_no(text, "coherent", wanted=True, reason="incoherent")


def ask_rating(item: Item) -> str:
    return (
        f"Rate this statement and its proof.\n\nStatement:\n{item['statement']}\n\nProof:\n{item['proof']}\n\n"
        "How difficult is it to decide and to prove, on a scale from 1 (a school exercise) over 5 (a national "
        "olympiad) to 10 (the hardest problem of an international one), in steps of 0.5? Is it one statement, and not "
        "several to be decided apart? Which topic is it of, from the general to the particular?\n\n"
        "End with <difficulty>5.5</difficulty> <single>yes</single> <domain>Algebra -> Inequalities</domain>."
    )


def read_rating(text: str, item: Item) -> Found | None:
    found = tag_contents(text, "difficulty", "single", "domain")
    if not found:
        return None
    level, single, domain = found
    if not re.fullmatch(r"\d+(\.[05]0*)?", level) or not 1 <= float(level) <= MOST_DIFFICULTY or yes(single) is None:
        return None
    said = {"difficulty": float(level), "domain": domain}
    if float(level) < LEAST_DIFFICULTY:
        return said | {"dropped": "too easy"}
    return said if yes(single) else said | {"dropped": "several statements"}


def ask_variants(item: Item) -> str:
    truth = "true" if item["truth_value"] else "false"
    return (
        f"This statement is {truth}, as its proof shows.\n\nStatement:\n{item['statement']}\n\n"
        f"Proof:\n{item['proof']}\n\n"
        "Change it as little as possible, twice, so that the proof still decides it: once into a statement that the "
        f"proof shows to be {truth} as well, as x > 0 for x > 1, and once into one that it shows to be the opposite, "
        "as x < 1 for x > 1. Keep the wording prove or disprove, and give no hint.\n\n"
        "End with <same>...</same> <opposite>...</opposite>."
    )


def read_variants(text: str, item: Item) -> Found | None:
    found = tag_contents(text, "same", "opposite")
    if not found or len({plain(one) for one in (item["statement"], *found)}) < 3:
        return None
    return {"same": found[0], "opposite": found[1]}


def yes_or_no(text: str, name: str, wanted: bool, reason: str) -> Found | None:
    said = tag_contents(text, name)
    answer = yes(said[0]) if said else None
    return None if answer is None else {} if answer == wanted else {"dropped": reason}


STAGES = (
    Stage("decontaminated", ask_contamination, read_contamination),
    Stage("complete", ask_completeness, read_completeness),
    Stage("proved", ask_proof, read_proof),
    Stage("coherent", ask_coherence, read_coherence),
    Stage("rated", ask_rating, read_rating),
    Stage("varied", ask_variants, read_variants),
)
