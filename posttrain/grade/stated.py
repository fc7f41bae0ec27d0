"""What a reply states as its answer, for graders: nothing that is named in passing, computed or thought counts.

In this order: what is boxed or stands behind GSM8K's mark (`#### 42`), whichever comes last; what is announced ("the
answer is"); a line that is nothing but mathematics; the last plain number. Thinking is no statement: what stands before
`</think>` is cut off, and a reply whose thinking was never closed states nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from posttrain.chat import opened_thinking, without_thinking
from posttrain.core import Rollout

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
LOOSE_BOX = re.compile(r"\\boxed\s+([^\s{}$]+)")
MARK = re.compile(r"####[ \t]*([^\n#]*?)[ \t]*#*[ \t]*$", re.MULTILINE)
ANNOUNCED = re.compile(
    r"\b(?:(?:final|correct|best|right)\s+){0,3}(?:answer|result|solution)s?\b"
    r"(?:\s+(?:choice|option|here|to\s+(?:the|this)\s+\w+))?\s*[*_`]*\s*(?:(?:is|are|was|=|:|：|equals|must\s+be|would\s+be|"
    r"should\s+be|will\s+be)(?![a-z])[*_`:]*\s*)+|(?:答案|結果|结果)\s*(?:[是为為：:]\s*)+|答えは|"
    r"\b(?:(?:Antwort|Lösung|Ergebnis)\s+(?:ist|lautet|beträgt)|réponse(?:\s+(?:correcte|finale))?\s+est|"
    r"respuesta(?:\s+(?:correcta|final))?\s+es|risposta(?:\s+(?:corretta|finale|giusta))?\s+è|"
    r"resposta(?:\s+(?:correta|final))?\s+é)(?!\w)\s*[:：]?\s*",
    re.IGNORECASE,
)
ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.,/^{])[-−+]?(?:[$€£]\s?)?[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:(?<=\d)[eE][-+]?\d+)?"
    r"(?:\s?/\s?\d+)?(?:\s?(?:\\?%|percent\b))?(?![A-Za-z0-9_}])"
)
DOUBT = re.compile(
    r"\b(?:do(?:es)?\s+not|don't|doesn't|did\s+not|didn't|cannot|can't|can\s+not|could\s+not|couldn't|unable|unsure|not\s+sure|"
    r"no\s+idea|no\s+answer|no\s+solution|none|nor|neither|unknown|impossible|give\s+up|gave\s+up|not\s+enough|wrong|"
    r"incorrect|isn't|is\s+not|wasn't|was\s+not|rather\s+than|instead\s+of|unclear|either)\b",
    re.IGNORECASE,
)
JOIN = re.compile(r"[\s$.,;]*(?:,|;|and|or)?[\s$]*")  # what may stand between boxes of one answer
RUN = re.compile(r"[ \t\u00a0]{5,}|\n{5,}|([*_`#])\1{4,}")
NEAR, LONGEST, MOST_ANNOUNCED = 40, 1_000, 20  # characters beside a number, and of a clause; announcements looked at
OPERATOR = r"[-−+*/^×·÷=<>]"


@dataclass(frozen=True, slots=True)
class Stated:
    """An answer, and how it was stated: boxed, marked, announced, bare or a number."""

    text: str
    how: str


def whole_reply(rollout: Rollout) -> str:
    """The last reply, behind the tag of thinking that its prompt has opened: a reply may begin inside of it."""
    return opened_thinking(rollout.turns[-1].reply) + rollout.text if rollout.turns else ""


def tidied(text: str) -> str:
    """Without thinking, and without long runs of spaces and marks, on which patterns would try every division."""
    return RUN.sub(lambda found: found[0][:4], without_thinking(text)).strip()


def stated_answer(text: str) -> Stated | None:
    """None where a reply states no answer."""
    said = unicodedata.normalize("NFKC", tidied(text))
    if tags := ANSWER_TAG.findall(said):
        said = tags[-1].strip()
        return marked(said) or Stated(said, "marked") if said else None
    return marked(said) or announced(said) or bare(said) or last_number(said)


def stated_marks(text: str) -> str | None:
    """What is boxed, marked or in answer tags; None without any."""
    if tags := ANSWER_TAG.findall(text):
        return tags[-1].strip()
    found = marked(text)
    return found.text if found else None


def marked(text: str) -> Stated | None:
    """The last box, or a mark of GSM8K's behind it, which is no heading."""
    boxes = boxes_in(text)
    marks = [one for one in MARK.finditer(text) if is_answer(one, text)]
    if marks and (not boxes or marks[-1].start() > boxes[-1][1]):
        return Stated(marks[-1][1].strip(), "marked")
    if not boxes:
        return Stated("", "boxed") if BOX.search(text) else None  # it was cut off inside its box
    together = [boxes[-1]]
    while len(together) < len(boxes):
        one = boxes[-len(together) - 1]
        if not JOIN.fullmatch(text[one[1] : together[0][0]]):
            break
        together.insert(0, one)
    return Stated(", ".join(dict.fromkeys(content for _, _, content in together)), "boxed")


def boxes_in(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of every closed box; of nested ones the inner."""
    found: list[tuple[int, int, str]] = []
    at = 0
    while match := BOX.search(text, at):
        end = closing_brace(text, match.end() - 1)
        if end is None:
            return []  # cut off: whatever was boxed before is not the last word
        found.append((match.start(), end + 1, innermost(text[match.end() : end]).strip()))
        at = end + 1
    if not found:
        found = [(one.start(), one.end(), one[1].rstrip(".,")) for one in LOOSE_BOX.finditer(text)]
    return found


def innermost(content: str) -> str:
    """The content of the last box in the content of a box; the content itself without one."""
    *_, last = [None, *BOX.finditer(content)]
    end = closing_brace(content, last.end() - 1) if last else None
    return content if last is None or end is None else content[last.end() : end]


def closing_brace(text: str, start: int) -> int | None:
    depth = 0
    for i in range(start, len(text)):
        if text[i] in "{}" and (i == 0 or text[i - 1] != "\\"):
            depth += 1 if text[i] == "{" else -1
            if depth == 0:
                return i
    return None


def is_answer(mark: re.Match[str], text: str) -> bool:
    """Whether what follows `####` is an answer and not a heading: the end of the reply, or a line without words."""
    said, before, after = mark[1], text[: mark.start()].rpartition("\n")[2], text[mark.end() :]
    words = re.findall(r"[^\W\d_]{2,}", re.sub(r"\\[a-zA-Z]+", "", said))
    if not said.strip() or len(words) > 4:
        return False
    return not after.strip() or (not words and not before.strip())


def announced(text: str) -> Stated | None:
    """What is said to be the answer; of several announcements the last."""
    for clause in announced_clauses(text):
        if clause and not DOUBT.match(clause) and not re.match(r"not\b", clause, re.IGNORECASE):
            return Stated(clause, "announced")
    return None


def announced_clauses(text: str, pattern: re.Pattern[str] = ANNOUNCED) -> Iterator[str]:
    """What follows the last announcements, the last one first."""
    for match in reversed([*pattern.finditer(text)][-MOST_ANNOUNCED:]):
        yield first_clause(text[match.end() :])


def first_clause(text: str) -> str:
    """Up to the end of the sentence or line, without Markdown and dollars; blank lines before it do not count."""
    line = text.lstrip()[:LONGEST].partition("\n")[0]
    if dollars := re.match(r"[*_`\s]*\\?\(?\$+([^$]+)\$+", line):
        return dollars[1].strip()
    line = re.split(r"(?<=[^\d\s])[.!?](?:\s|$)|(?<=\d)[.!?](?:\s|$)|[;。]", line)[0]
    return line.strip(" \t*_`.,:!?\"'")


def bare(text: str) -> Stated | None:
    """A reply, or its last line, that is mathematics without a word of prose."""
    lines = [line.strip(" \t$*`.") for line in text.splitlines() if line.strip(" \t$*`.")]
    if not lines or len(lines[-1]) > 200:
        return None
    line = lines[-1]
    prose = re.findall(r"[^\W\d_]{3,}", re.sub(r"\\[a-zA-Z]+|\b(?:sqrt|sin|cos|tan|log|exp|infty|inf)\b", "", line))
    return None if prose else Stated(line, "bare")


def last_number(text: str) -> Stated | None:
    """The last plain number, unless its sentence doubts it or offers it among others."""
    numbers = plain_numbers(text)
    if not numbers:
        return None
    start, end, number = numbers[-1]
    before = re.split(r"(?<=[^\d])[.!?]\s|\n", text[:start])[-1]
    after = re.split(r"[.!?](?:\s|$)|\n", text[end:], maxsplit=1)
    if DOUBT.search(before) or DOUBT.search(after[0]) or DOUBT.search(" ".join(after[1:])):
        return None
    if re.search(r"\d,?\s*(?:or|oder|ou)\s*$", before):
        return None
    return Stated(number, "number")


def plain_numbers(text: str) -> list[tuple[int, int, str]]:
    """Start, end and text of every number that is no part of an expression; what follows an `=` is a result."""
    found = []
    for match in NUMBER.finditer(text):
        around = text[max(match.start() - NEAR, 0) : match.start()], text[match.end() : match.end() + NEAR]
        listed = re.match(r"[.)]\s", around[1]) and re.search(r"(?:^|\n)[ \t]*$", around[0])
        if listed or not any(c.isdigit() for c in match[0]):
            continue
        before, after = around[0].rstrip(" $"), around[1].lstrip(" $")
        computed = re.search(rf"[\d)}}\w]\s*{OPERATOR}$", before) and not before.endswith(("=", "≈"))
        if computed or re.match(rf"{OPERATOR}\s*[\d(\\]", after):
            continue
        found.append((match.start(), match.end(), match[0].strip()))
    return found
