"""Make candidates, train an evaluator on their rankings, and hold it against people."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import posttrain as pt
from posttrain.decode.context import ContextContrast
from posttrain.grade.overlap import rouge_l
from posttrain.long_prompts import fit, prompt_tokens, room
from posttrain.systems.rag_zeval import KL, prompts, recipe
from posttrain.systems.rag_zeval.benchmark import Pairing, agreement, pairings
from posttrain.systems.rag_zeval.candidates import ALPHAS, Curriculum, candidates, distinct, passages, task
from posttrain.systems.rag_zeval.evaluator import Comparison, evaluation, scores_of
from posttrain.systems.rag_zeval.evidence import LEAST
from posttrain.systems.rag_zeval.reward import Goal, reward
from posttrain.systems.rag_zeval.trajectory import Assessed

CANDIDATES, SCORES, MEASURES = "candidates.jsonl", "scores.jsonl", "measures.json"


@pt.one_process("two contexts are decoded side by side, each with a cache of its own")
def synthesise(
    data: str,
    model: pt.ModelOptions,
    output: pt.Output = pt.Output("runs/rag-zeval-candidates"),
    most_prompt: int = 6000,
    limit: int | None = None,
    split: str = "train",
) -> Path:
    """Write OUT/candidates.jsonl: four answers to each question, by a model that trusts its passage less and less.

    Published: Qwen2.5-7B-Instruct, 5,500 questions of Natural Questions, alpha of 0, -0.5, -1 and -1.4. The model must
    answer well with its passage: where it does not, the ranking is wrong, and an evaluator learns it.

    data         questions with a `passage`
    most_prompt  most tokens of a prompt; a question with a longer one is dropped, and counted
    limit        use only the first so many lines
    split        of a Hugging Face dataset
    """
    pt.at_least(1, most_prompt=most_prompt)
    policy, out, found = model.policy(), Path(output.out), {one.key: one for one in passages(data, limit, split)}
    tasks = [pt.Task(key, prompts.answer_request(one.question, one.passage), None) for key, one in found.items()]
    fitted = fit(tasks, prompt_tokens(policy), room(policy, most_prompt))
    files = [CANDIDATES, *(answers_file(alpha) for alpha in ALPHAS)]
    settings = {"seed": output.seed, **output.settings}
    pt.prepare_folder(out, "candidates", files, settings, resume=output.resume, overwrite=output.overwrite)
    answers = {
        alpha: pt.collect(
            ContextContrast(policy, alpha, prompts.without_passage),
            fitted.tasks,
            lambda group: {"text": group[0].text},
            out / answers_file(alpha),
            name=f"alpha {alpha:g}",
            quiet=output.quiet,
        )
        for alpha in ALPHAS
    }
    rows = []
    for i, asked in enumerate(fitted.tasks):
        one, made = found[asked.key], distinct({alpha: str(lines[i]["text"]) for alpha, lines in answers.items()})
        if len(made) > 1:
            about = {"id": one.key, "question": one.question, "reference": one.passage}
            rows.append({**about, "responses": [*made.values()], "alphas": [*made]})
    pt.Lines(out / CANDIDATES).replace(rows)
    whole = sum(len(row["responses"]) == len(ALPHAS) for row in rows)
    print(
        f"{out / CANDIDATES}: {len(rows)} of {len(found)} questions, {whole} with {len(ALPHAS)} different answers; "
        f"{len(fitted.dropped)} with too long a prompt, {len(fitted.tasks) - len(rows)} whose answers are all the same"
    )
    if not rows:
        raise ValueError("the model says the same with its passage and without it: there is nothing to rank")
    return out


def answers_file(alpha: float) -> str:
    return f"answers-alpha{alpha:g}.jsonl"


def train(
    data: str,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/rag-zeval", steps=343, tasks=32, lr=1e-6, schedule="linear", warmup=10),
    counts: tuple[int, ...] = (3, 4),
    goal: Goal = "ranking",
    least: int = LEAST,
    samples: int = 8,
    kl: float = KL,
    limit: int | None = None,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """GRPO on rankings: a whole trajectory, the right order, evidence that stands in the reference.

    Published: Qwen2.5-7B-Instruct, `--max-new 8192`.

    data      candidates with their ranking, of stage synthesise or your own (question, reference, responses, alphas)
    counts    candidates of a trajectory by epoch; the last holds from there on
    goal      ranking: every pair; best: the best candidate above all others (an ablation)
    least     words of a span of evidence that counts
    samples   trajectories of the same candidates
    kl        weight of the KL to the model at the start
    limit     use only the first so many lines
    held_out  candidates that are only evaluated: FILE, or NAME=FILE
    """
    if not counts or min(counts) < 2:
        raise ValueError(f"`counts={' '.join(map(str, counts))}`: a ranking needs two or more candidates")
    policy = model.policy()
    made = recipe(reward(least, goal), samples=samples, kl=kl, reference=policy.frozen_copy() if kl else None)
    source = Curriculum(candidates(data, limit), task, counts, run.seed)
    tests = {
        name: Curriculum(candidates(file, split="test"), task, counts[-1:], run.seed).items
        for name, file in pt.named_files(held_out).items()
    }
    return scale.train(policy, source, made, run, held_out=tests)


def evaluate(
    data: str,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/rag-zeval-evaluation"),
    attempts: int = 3,
    limit: int | None = None,
    split: str = "train",
) -> Path:
    """How well the evaluator agrees with people, beside what ROUGE-L alone would say.

    Published: `temperature=0.1`; give `max_new=4096`. OUT/scores.jsonl has both scores of every pair, or why there is
    none, and OUT/measures.json the table.

    data      pairs of answers: RAGChecker's meta-evaluation, WikiEval, or question, reference, answers and `human`
    attempts  at a whole trajectory
    limit     use only the first so many lines
    split     of a Hugging Face dataset
    """
    pt.at_least(1, attempts=attempts)
    found, policy, out = pairings(data, limit, split), model.policy(), Path(output.out)
    settings = {"seed": output.seed, **output.settings}
    pt.prepare_folder(out, "evaluation", [SCORES, MEASURES], settings, resume=output.resume, overwrite=output.overwrite)
    shown = {pair_key(one): shuffled(one, output.seed) for one in found}
    tasks = [
        pt.Task(key, prompts.judge_request(one.question, one.reference, one.answers), one) for key, one in shown.items()
    ]
    env, seed = partial(evaluation, temperature=model.temperature, attempts=attempts), pt.mix(output.seed, "evaluation")
    pt.distribute(policy)
    with scale.playing(policy, out, tasks) as player:
        options = {"env": env, "seed": seed, "name": "pairs", "quiet": output.quiet}
        lines = pt.collect(player, tasks, score_line, out / SCORES, **options)
    scores = {line["id"]: dict(zip(line["answers"], line["scores"], strict=True)) for line in lines}
    judged = [(one, [scores.get(pair_key(one), {}).get(text, "") for text in one.answers]) for one in found]
    known = [(one, (a, b)) for one, (a, b) in judged if isinstance(a, float) and isinstance(b, float)]
    table = {"evaluator": agreement([one for one, _ in known], [pair for _, pair in known])} if known else {}
    if known and len(known) < len(found):
        table["ROUGE-L, same"] = agreement([one for one, _ in known], [overlap(one) for one, _ in known])
    table["ROUGE-L"] = agreement(found, [overlap(one) for one in found])
    counts = {"pairs": len(found), "with scores": len(known)}

    def write() -> None:
        pt.write_json(out / MEASURES, {**counts, **table})
        print("\n".join(report_lines(counts, table)))

    pt.ranks.run_on_primary(write, "for the measures")
    return out


def pair_key(one: Pairing) -> str:
    return f"{one.key}/{pt.mix(0, one.question, one.reference, *sorted(one.answers))}"


def shuffled(one: Pairing, seed: int) -> Comparison:
    """With the answers in a random order: a judge may like the first."""
    draw = random.Random(pt.mix(seed, pair_key(one)))
    return Comparison(one.question, one.reference, tuple(draw.sample(one.answers, 2)))


def score_line(group: pt.Group) -> Mapping[str, Any] | pt.Invalid:
    """Both scores of a pair, each a number or why there is none, and the claims that they come from."""
    facts = group[0].facts
    if isinstance(facts, pt.Failure):
        return pt.Invalid(facts.reason)
    claims = [[asdict(claim) for claim in one.claims] if isinstance(one, Assessed) else [] for one in facts]
    return {"answers": group[0].task.truth.answers, "scores": scores_of(group[0]), "claims": claims}


def overlap(one: Pairing) -> tuple[float, float]:
    first, second = one.answers
    return rouge_l(first, one.reference), rouge_l(second, one.reference)


def report_lines(counts: dict[str, int], table: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    lines = [", ".join(f"{count} {name}" for name, count in counts.items())]
    for who, rows in table.items():
        for name, row in rows.items():
            lines.append(f"{who:14} {name:13} " + ", ".join(f"{key} {value:.3f}" for key, value in row.items()))
    return lines


def laptop(
    counts: Literal["curriculum", "static"] = "curriculum",
    goal: Goal = "ranking",
    run: pt.Run = pt.Run("runs/rag-zeval", steps=50, tasks=16, lr=2e-4),
) -> pt.Session:
    """A judge that takes what is usual for what stands there learns, from rankings alone, to look.

    counts  curriculum: two candidates, later three; static: three from the start
    goal    ranking: every pair; best: the best candidate above all others
    """
    from posttrain.systems.rag_zeval import lab

    world = lab.Judge(run.seed)
    policy, found = lab.judge_policy(world, run.seed), lab.candidates_of(run.seed, "training", lab.TRAINED)
    source = lab.source(found, counts == "curriculum", run.steps * run.tasks, run.seed)
    made = replace(recipe(reward(1, goal), samples=lab.SAMPLES, reference=policy.frozen_copy()), env=lab.ask_judge)
    tests = lab.pair_tasks(lab.candidates_of(run.seed, "test", 50))
    return pt.train(policy, source, made, run, held_out=tests)


STAGES = {"laptop": laptop, "train": train, "synthesise": synthesise, "evaluate": evaluate}
