"""Rewards that compare text: exact, contains and choice. Thinking is cut off first (`posttrain.grade.stated`)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from posttrain.chat import without_thinking
from posttrain.core import Rollout, Task
from posttrain.grade.stated import (
    announced,
    announced_clauses,
    boxes_in,
    first_clause,
    stated_marks,
    tidied,
    whole_reply,
)
from posttrain.reward import each

OUTER = " .,;:!?\"'*_`。，、；：！？「」“”"
ANSWER_WORD = re.compile(
    r"(?i:\b(?:answer|antwort|réponse|respuesta|risposta|resposta|ответ)\s*[:：]|答案\s*[是为：:]|答えは)"
)
# Languages without spaces between words, or that glue particles to them: Thai, Lao, Burmese, Khmer, CJK, Korean.
UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af]"
)
PLAIN_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
LETTER = r"(?<![A-Za-z0-9'’])\(?([A-Z])\)?(?![A-Za-z0-9'’])"
ANY_LETTER = r"(?<![A-Za-z0-9'’])\(?([A-Za-z])\)?(?![A-Za-z0-9'’])"
NEGATED = re.compile(
    rf"(?i:\b(?:not|isn't|neither|nor|rather\s+than|instead\s+of|eliminate|exclude)\b\s+(?:option\s+|choice\s+)?){LETTER}"
)
OPTION = re.compile(
    rf"(?i:\b(?:option|choice|answer|pick|choose|select)\b|[选選])\W{{0,8}}(?:(?i:is|the|was|are)\W{{1,4}})*{ANY_LETTER}"
)
UNDECIDED = re.compile(rf"{LETTER}\s+or\s+{LETTER}")
NAMED = re.compile(  # a letter that belongs to a name
    r"(?i:\b(?:vitamins?|hepatitis|plan|type|group|class|section|figure|table|point|grade|part|team|person|block|angle|"
    r"line|set|city|town|factor|appendix|exhibit|category))\s+[A-Z]\b"
)
ARTICLE = re.compile(r"\bA (?=[a-z])|\bI(?=\s+[a-z]|['’])")


def normal_text(text: str) -> str:
    """Text without case, surplus space, and punctuation around it; what is nothing but punctuation stays."""
    plain = folded(text)
    return plain.strip(OUTER) or plain


def folded(text: str) -> str:
    """Text without case and surplus space."""
    return " ".join("".join(map(normal_character, unicodedata.normalize("NFC", text))).casefold().split())


def normal_character(one: str) -> str:
    """Full width and the like are one letter written twice; a superscript is another."""
    kind = unicodedata.decomposition(one).partition(" ")[0]
    return one if kind in ("<super>", "<sub>", "<fraction>") else unicodedata.normalize("NFKC", one)


def final_answer(text: str) -> str:
    """What follows the last answer mark (a box, `####`, `Answer:`), without thinking; all of the text without one."""
    said = tidied(text)
    if found := stated_marks(said):
        return found
    return ANSWER_WORD.split(said)[-1]


def truth_text(task: Task, grade: str) -> str:
    """The task's truth. Raises ValueError for one that is neither text nor a number, and which no reply would equal."""
    if isinstance(task.truth, str | int | float) and task.truth == task.truth:
        return str(task.truth)
    raise ValueError(
        f"task {task.key!r}: `grade={grade}` compares with text or a number, not with {str(task.truth)[:80]!r}; "
        "name the column of the answers by `answer`, as outer.inner where it is inside of an object"
    )


def is_exact(rollout: Rollout) -> float:
    """1 when what follows the answer mark, or the first line of it, is the truth.

    Case and space do not count, nor punctuation around the reply that the truth does not have.
    """
    truth = folded(final_answer(truth_text(rollout.task, "exact")))
    said, found = final_answer(whole_reply(rollout)), announced(tidied(whole_reply(rollout)))
    texts = [said, first_clause(said), *([found.text] if found else [])]
    forms = {form for text in texts for form in (folded(text), normal_text(text))}
    return float(truth in forms or (truth.rstrip(" .,;:") or truth) in forms)


def is_contained(rollout: Rollout) -> float:
    """1 when the truth occurs as words of its own; a number as a number of its own."""
    truth = normal_text(truth_text(rollout.task, "contains"))
    if not truth:
        raise ValueError(f"task {rollout.task.key!r}: `grade=contains` needs an answer, and this one is empty")
    said = normal_text(without_thinking(whole_reply(rollout)))
    if PLAIN_NUMBER.fullmatch(truth):
        return float(truth.replace(",", "").lstrip("+") in numbers_in(said))
    if UNSPACED.search(truth):
        return float(truth in said)
    return float(re.search(rf"(?<!\w){re.escape(truth)}(?!\w)", said) is not None)


def numbers_in(text: str) -> set[str]:
    """Every number of a text, without thousands separators; a minus behind a digit or letter is a dash."""
    found = set()
    for match in re.finditer(r"(?<![\w.,])" + PLAIN_NUMBER.pattern + r"(?![\d.,]*\d)(?!\w)", text.replace("−", "-")):
        found.add(match[0].replace(",", "").lstrip("+"))
    for match in re.finditer(r"(?<=[\w%)])-(\d+(?:\.\d+)?)(?!\w)", text):
        found.add(match[1])
    return found


# ---- choice


def chosen_letter(text: str) -> str | None:
    """The letter that a reply settles on: boxed, marked or announced; else the only one, or the last that stands alone.

    The pronoun I, the article A and letters that are ruled out are none.
    """
    said = unicodedata.normalize("NFKC", tidied(text))
    if boxes := boxes_in(said):
        return letter_of(re.sub(r"\\[a-z]+\s*\{([^{}]*)\}", r"\1", boxes[-1][2]))
    if found := stated_marks(said):
        return letter_of(found)
    for clause in (*announced_clauses(said, ANSWER_WORD), *announced_clauses(said)):
        if letter := letter_of(clause):
            return letter
    return letter_of(said)


def letter_of(text: str) -> str | None:
    """The letter of one statement."""
    text = text.strip(" *_`$\"'")
    if alone := re.fullmatch(r"\(?([A-Za-z])[).:]?", text):
        return alone[1].upper()
    text = NEGATED.sub(" ", text)
    if UNDECIDED.search(text):
        return None
    if options := OPTION.findall(text):
        letters = [one for one in options if one.isupper()] or options
        return letters[-1].upper()
    first = re.match(r"\(?([A-Z])(?:\)|[.:,;]|\s*$|\s+(?:is|because|since)\b)|\(?([a-z])\)(?:\s|$)", text)
    if first and not ARTICLE.match(text):
        return (first[1] or first[2]).upper()
    if parenthesised := re.findall(r"\(([A-Za-z])\)", text):
        return parenthesised[-1].upper()
    standing = re.findall(LETTER, NAMED.sub(" ", ARTICLE.sub(" ", text)))
    standing = [one for one in standing if one != "I"] or standing
    return standing[-1] if standing else None


def is_choice(rollout: Rollout) -> float:
    """1 when the reply settles on the letter of the truth: B, (B), `B. Paris`, or 1 for the second."""
    truth = rollout.task.truth
    if isinstance(truth, int) and not isinstance(truth, bool) and 0 <= truth < 26:
        truth = chr(ord("A") + truth)
    match = re.fullmatch(r"\(?([A-Za-z])\)?(?:[.:)]\s*.*)?", str(truth).strip(), re.DOTALL)
    if match is None:
        raise ValueError(f"task {rollout.task.key!r}: `grade=choice` needs one letter as the answer, not {truth!r}")
    return float(chosen_letter(whole_reply(rollout)) == match[1].upper())


exact = each(is_exact)
contains = each(is_contained)
choice = each(is_choice)


def pieces_between(text: str, tags: Sequence[str]) -> list[str] | None:
    """The pieces of a text around tags, one more than there are tags; None unless each is there once, in order."""
    if any(text.count(tag) != 1 for tag in tags):
        return None
    pieces, rest = list[str](), text
    for tag in tags:
        before, found, rest = rest.partition(tag)
        if not found:
            return None  # they stand in another order
        pieces.append(before)
    return [*pieces, rest]
