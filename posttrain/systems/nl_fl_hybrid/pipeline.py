"""From a question to answers by two roads, step by step, each with its budget and its reasons to drop something.

    direct     16 answers in words                                                temperature 0.8
    exist      8 statements that an answer exists; one without a block is dropped     0.7
    formalise  1 theorem each; a reply without one is dropped                         0.7
    prove      1 proof each, by the mixed input; a reply without a block is dropped   0.7
    extract    1 answer each, from the thought behind the proof; where there is none the question is solved anew   0.6
    check      does a prover accept the proof, and of which witness (ours: the paper never compiles one)

Every step is a file of JSON lines that is written as answers come, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import posttrain as pt
from posttrain.episode import decoded_with
from posttrain.grade.stated import whole_reply
from posttrain.systems.nl_fl_hybrid import prompts
from posttrain.systems.nl_fl_hybrid.problems import Problem
from posttrain.systems.nl_fl_hybrid.prover import CachedProver, ProverDied, Verdict
from posttrain.systems.nl_fl_hybrid.replies import boxed, last_block, proof_in, theorem_in, thought_in

Language = Literal["lean4", "coq"]
Line = Mapping[str, Any]
FILES = ("direct", "exist", "formalise", "prove", "extract")


@dataclass(frozen=True)
class Pipeline:
    """Who answers, how often, and where the answers are kept.

    general     solves in words, states that answers exist, and reads answers out of thoughts
    formaliser  writes theorems
    reasoner    proves them
    thinking_off  what the request to read an answer out ends with; `/no_think` turns Qwen3's thinking off
    """

    general: pt.Sampler
    formaliser: pt.Sampler
    reasoner: pt.Sampler
    folder: Path
    language: Language = "lean4"
    samples: int = 16
    formal: int = 8
    align: bool = True
    mixed: bool = True
    thinking_off: str = ""
    seed: int = 0
    quiet: bool = False

    def run(self, problems: Sequence[Problem]) -> tuple[list[Line], list[Line], Counter[str]]:
        """A line for each problem, of answers in words; a line for each proof; and what was dropped, by reason."""
        known = {one.key: one for one in problems}
        direct = self.ask(
            self.general,
            "direct",
            {key: prompts.solve(one.question) for key, one in known.items()},
            0.8,
            all_boxed,
            self.samples,
        )
        theorems, dropped = self.theorems(known)
        proofs = self.ask(
            self.reasoner,
            "prove",
            {
                line["id"]: prompts.prove(question_of(line, known), line["statement"], self.language, self.mixed)
                for line in theorems
            },
            0.7,
            partial(
                proof_line, statements={line["id"]: line["statement"] for line in theorems}, language=self.language
            ),
        )
        dropped["proof without a block"] = sum(not line["block"] for line in proofs)
        proofs = [line for line in proofs if line["block"]]
        requests = {line["id"]: self.extraction(question_of(line, known), line["thought"]) for line in proofs}
        answers = {
            line["id"]: line["answers"][0] for line in self.ask(self.general, "extract", requests, 0.6, all_boxed)
        }
        stated = {line["id"]: line["statement"] for line in theorems}
        formal: list[Line] = [
            {**line, "statement": stated[line["id"]], "answer": answers.get(line["id"])} for line in proofs
        ]
        dropped["no answer in a thought"] = sum(line["answer"] is None for line in formal)
        return direct, formal, +dropped

    def theorems(self, known: Mapping[str, Problem]) -> tuple[list[Line], Counter[str]]:
        """Formal statements, up to `formal` for each problem, and how many were dropped on the way."""
        dropped: Counter[str] = Counter()
        if self.align:
            asked = {key: prompts.exist(one.question) for key, one in known.items()}
            lines = self.ask(self.general, "exist", asked, 0.7, all_blocks, self.formal)
            texts = {f"{line['id']}/{i}": text for line in lines for i, text in enumerate(line["texts"])}
            dropped["statement without a block"] = sum(text is None for text in texts.values())
            texts = {key: text for key, text in texts.items() if text is not None}
        else:
            texts = {f"{key}/{i}": one.question for key, one in known.items() for i in range(self.formal)}
        requests = {key: prompts.formalise(text, theorem_name(key), self.language) for key, text in texts.items()}
        lines = self.ask(self.formaliser, "formalise", requests, 0.7, partial(theorem_line, language=self.language))
        dropped["no theorem"] = sum(line["statement"] is None for line in lines)
        return [line for line in lines if line["statement"] is not None], dropped

    def extraction(self, question: str, thought: str | None) -> tuple[pt.Message, ...]:
        """Without a thought the question is solved anew."""
        if not thought:
            return prompts.solve(question)
        [asked] = prompts.extract(question, thought)
        return (pt.user(f"{asked['content']}\n\n{self.thinking_off}".rstrip()),)

    def ask(
        self,
        player: pt.Sampler,
        step: str,
        requests: Mapping[str, Sequence[pt.Message]],
        temperature: float,
        line: Callable[[pt.Group], Line],
        samples: int = 1,
    ) -> list[Line]:
        """A line for each request, from the step's file where it is known."""

        def line_of(group: pt.Group) -> Line | pt.Invalid:
            answered = [one for one in group if not isinstance(one.facts, pt.Failure)]
            return line(answered) if answered else pt.Invalid(group[0].facts.reason)

        tasks = [pt.Task(key, tuple(messages), None) for key, messages in requests.items()]
        options: dict[str, Any] = {"env": decoded_with(pt.single_turn, temperature), "samples": samples}
        seed = pt.mix(self.seed, step)
        return pt.collect(
            player, tasks, line_of, self.folder / f"{step}.jsonl", seed=seed, name=step, quiet=self.quiet, **options
        )


def question_of(line: Line, known: Mapping[str, Problem]) -> str:
    return known[line["id"].rpartition("/")[0]].question


def theorem_name(key: str) -> str:
    """A name that a formal language takes, of a problem's key and the number of its statement."""
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in key)
    return plain if plain[:1].isalpha() else f"problem_{plain}"


# ---- what is kept of replies


def all_boxed(group: pt.Group) -> Line:
    return {"answers": [boxed(one.text) for one in group], "replies": [one.text for one in group]}


def all_blocks(group: pt.Group) -> Line:
    return {"texts": [last_block(one.text, "md", "markdown") for one in group]}


def theorem_line(group: pt.Group, language: Language) -> Line:
    return {"statement": theorem_in(group[0].text, language)}


def proof_line(group: pt.Group, statements: Mapping[str, str], language: Language) -> Line:
    """`block`: whether there is one of the formal language at all; `script`: a proof of this statement."""
    one, text = group[0], whole_reply(group[0])
    script = proof_in(text, statements[one.task.key], language)
    kinds = ("lean4", "lean") if language == "lean4" else ("coq",)
    return {"block": last_block(text, *kinds) is not None, "script": script, "thought": thought_in(text)}


# ---- ours: what a prover says of the proofs


def checked_lines(lines: Sequence[Line], prover: CachedProver) -> list[Line]:
    """With the `witness` of a proof, which then is the answer: what was proved outweighs what was thought.

    A proof without a witness says nothing about the answer, and counts as none.
    """
    out = []
    for line in lines:
        verdict = Verdict(False, error="no proof of this statement")
        if line["script"]:
            try:
                verdict = prover.check(line["statement"], line["script"])
            except ProverDied as died:
                verdict = Verdict(False, error=f"the prover failed: {died}")
        witness = verdict.witness if verdict.ok else None
        found = {"proved": witness is not None, "witness": witness, "error": verdict.error}
        out.append({**line, **found, "answer": witness or line["answer"]})
    return out
