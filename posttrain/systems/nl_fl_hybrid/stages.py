"""Answer problems by both roads, with models of your own; and, ours, learn to prove with the prover as the reward."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import posttrain as pt
from posttrain.systems.nl_fl_hybrid import prompts, proved, recipe
from posttrain.systems.nl_fl_hybrid.measures import SAME, Answers, measures_of
from posttrain.systems.nl_fl_hybrid.pipeline import FILES, Language, Line, Pipeline, checked_lines, theorem_name
from posttrain.systems.nl_fl_hybrid.problems import Problem, problems
from posttrain.systems.nl_fl_hybrid.prover import CachedProver, prover_of
from posttrain.systems.nl_fl_hybrid.replies import proof_in

ANSWERS, MEASURES = "answers.jsonl", "measures.json"


def solve(
    data: str,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/nl-fl-hybrid"),
    formaliser: str | None = None,
    reasoner: str | None = None,
    language: Language = "lean4",
    samples: int = 16,
    formal: int = 8,
    align: bool = True,
    mixed: bool = True,
    prover: str | None = None,
    thinking_off: str = "",
    limit: int | None = None,
    split: str = "test",
) -> Path:
    """Answers in words, answers by proofs, and both together: pass@k, majority vote, and what was dropped.

    Published: `--max-new 8192`, Qwen3-8B, project-numina/Kimina-Autoformalizer-7B and
    AI-MO/Kimina-Prover-Preview-Distill-7B. OUT/answers.jsonl has every answer, OUT/measures.json the table.

    data        problems: MATH's or AMC's columns, miniF2F's, or `question` and `answer` of your own
    formaliser  who writes theorems: a chat server (http://...), Hub id or folder; the model itself if not given
    reasoner    who proves them, likewise
    language    of theorems and proofs: lean4, as published, or coq
    samples     answers in words to a problem, and as many of both roads in the union
    formal      statements of a problem, of each of which one proof is tried
    align       first put the question as a statement that its answer exists; without it the question is formalised
    mixed       show the reasoner the question beside the statement
    prover      ours: check the proofs by coq, z3 or a Lean server, and select by them; the paper checks none
    thinking_off  ends the request to read an answer out: /no_think turns Qwen3's thinking off
    limit       use only the first so many lines
    split       of a Hugging Face dataset
    """
    pt.at_least(1, samples=samples, formal=formal)
    if formal > samples:
        raise ValueError(f"`formal={formal}`: these are some of the `samples={samples}` of the union")
    checker, (found, without) = checker_of(prover, language), problems(data, limit, split)
    policy, out = model.policy(), Path(output.out)
    settings, files = (
        {"seed": output.seed, **output.settings},
        [*(f"{name}.jsonl" for name in FILES), ANSWERS, MEASURES],
    )
    pt.prepare_folder(out, "solutions", files, settings, resume=output.resume, overwrite=output.overwrite)
    pt.distribute(policy)
    how: dict[str, Any] = {
        "language": language,
        "samples": samples,
        "formal": formal,
        "align": align,
        "mixed": mixed,
        "thinking_off": thinking_off,
    }
    with scale.playing(policy, out, [pt.Task(one.key, prompts.solve(one.question), None) for one in found]) as player:
        writer = model.player(formaliser) if formaliser else player
        prover_model = model.player(reasoner) if reasoner else player
        pipeline = Pipeline(player, writer, prover_model, out, seed=output.seed, quiet=output.quiet, **how)
        direct, formally, dropped = pipeline.run(found)
    answers = answers_of(found, direct, checked_lines(formally, checker) if checker else formally)
    counts = {"problems": len(found), "rows without an answer": without, **dropped}
    pt.ranks.run_on_primary(lambda: write_table(out, answers, counts, formal), "for the measures")
    return out


def checker_of(prover: str | None, language: Language) -> CachedProver | None:
    """Raises ValueError where the prover is not there, or reads another language."""
    found = prover_of(prover) if prover else None
    if found and found.language != language:
        raise ValueError(f"`prover={prover}` reads {found.language}: give `language={found.language}`")
    return found


def write_table(out: Path, answers: Mapping[str, Answers], counts: dict[str, int], formal: int) -> None:
    table = {name: measures_of(list(answers.values()), same, formal) for name, same in SAME.items()}
    pt.Lines(out / ANSWERS).replace([{"id": key, **dataclasses.asdict(one)} for key, one in answers.items()])
    pt.write_json(out / MEASURES, {"dropped": counts, **table})
    print("\n".join(report_lines(counts, table)))


def answers_of(found: Sequence[Problem], direct: Sequence[Line], formally: Sequence[Line]) -> dict[str, Answers]:
    by_problem: dict[str, list[Line]] = defaultdict(list)
    for line in formally:
        by_problem[line["id"].rpartition("/")[0]].append(line)
    natural = {line["id"]: line["answers"] for line in direct}
    out = {}
    for one in found:
        lines = by_problem[one.key]
        marks = tuple(line["proved"] for line in lines if "proved" in line)
        out[one.key] = Answers(one.answer, natural.get(one.key, []), [line["answer"] for line in lines], marks)
    return out


def report_lines(counts: dict[str, int], table: dict[str, pt.Measures]) -> list[str]:
    lines = [f"{name}: {count}" for name, count in counts.items()]
    lines.append(f"{'':22}" + "".join(f"{f'same {name}':>14}" for name in table))
    names = next(iter(table.values()))
    return [*lines, *(f"{name:22}" + "".join(f"{row[name]:14.3f}" for row in table.values()) for name in names)]


# ---- ours: reinforcement with the prover as the reward


def train(
    data: str,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/nl-fl-prover", steps=100, tasks=32, lr=1e-6),
    prover: str | None = None,
    mixed: bool = True,
    samples: int = 8,
    held_out: tuple[str, ...] = (),
    limit: int | None = None,
    split: str = "train",
) -> pt.Session:
    """Ours: GRPO on formal statements, with the prover as the reward.

    data      problems with a formal `statement` (Coq: a term; Lean: `theorem ... := by`)
    prover    coq, z3, or the address of a Lean server; Coq where it is installed, or else z3
    mixed     show the question beside the statement
    samples   proofs of a statement
    held_out  problems that are only evaluated: FILE, or NAME=FILE
    limit     use only the first so many lines
    split     of a Hugging Face dataset
    """
    checker = prover_of(prover)
    language: Language = "lean4" if checker.language == "lean4" else "coq"

    def script(rollout: pt.Rollout) -> str | None:
        return proof_in(rollout.text, rollout.task.truth, language)

    made = recipe(proved(checker, lambda task: task.truth, script), samples)
    tests = {name: statements(file, language, mixed, None, "test") for name, file in pt.named_files(held_out).items()}
    return scale.train(model.policy(), statements(data, language, mixed, limit, split), made, run, held_out=tests)


def statements(data: str, language: Language, mixed: bool, limit: int | None, split: str) -> list[pt.Task[str]]:
    """Raises ValueError naming a problem without a formal statement."""
    found, _ = problems(data, limit, split, proofs=True)
    tasks = []
    for one in found:
        if not one.statement:
            raise ValueError(f"{data}: problem {one.key!r} has no `statement` to prove")
        shown = one.statement if language == "lean4" else f"Theorem {theorem_name(one.key)} : {one.statement}."
        tasks.append(pt.Task(one.key, prompts.prove(one.question, shown, language, mixed), one.statement))
    return tasks


def laptop(
    prover: str | None = None, run: pt.Run = pt.Run("runs/nl-fl-hybrid", steps=40, tasks=16, lr=1e-3)
) -> pt.Session:
    """Ours: a tiny model learns to find witnesses of small theorems, with the prover as the reward.

    prover  coq or z3; Coq where it is installed, or else z3
    """
    from posttrain.systems.nl_fl_hybrid import lab

    world = lab.prover_world(run.seed)
    made = recipe(lab.reward(lab.quick_prover(prover)), lab.SAMPLES)
    tests = lab.tasks(world, world.held_out)
    return pt.train(lab.start(world, run.seed), lab.tasks(world, world.training), made, run, held_out=tests)


STAGES = {"laptop": laptop, "solve": solve, "train": train}
