"""RL-Wall on a laptop, and on a checkpoint and problems of the user's own: train with a sweep on either side, judge."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import posttrain as pt
from posttrain.lab.world.navigation import Navigation, is_right
from posttrain.lab.world.words import base
from posttrain.systems.rl_wall import recipe
from posttrain.systems.rl_wall.judge import Assessment, shares, verdicts
from posttrain.systems.rl_wall.sweep import Sweeps

AT_ONCE = 32  # problems that are solved and judged together
TESTS, SAMPLES = 96, 32  # of the laptop's sweeps


def laptop(
    problems: int = 128,
    spurious: bool = True,
    run: pt.Run = pt.Run("runs/rl-wall", steps=100, tasks=16, lr=5e-4, max_norm=0.2),
) -> pt.Session:
    """Walks: sweep the base model, train on so many problems, sweep again; solution trees of a few problems.

    problems  that it is trained on
    spurious  contexts depend on the action, a cue that is none
    """
    from posttrain.systems.rl_wall import lab

    world = Navigation(run.seed, beta=0.3 if spurious else 100.0)
    policy = base(world, run.seed, lab.TINY)
    tests, made = world.problems(TESTS, "test"), recipe(pt.each(is_right), policy, epochs=2)
    sweeps = Sweeps(Path(run.out), {"": tests}, made.reward, SAMPLES)
    tasks = world.problems(problems, "train")
    session = pt.train(policy, tasks, made, run, held_out=tests, on_start=sweeps.before)
    sweeps.after(policy, policy.tokenizer)
    return session


def learn(
    task: pt.TaskOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    held_out: tuple[str, ...],
    run: pt.Run = pt.Run("runs/rl-wall", steps=200, tasks=32, lr=1e-6),
    samples: int = 64,
) -> pt.Session:
    """Your checkpoint on MATH, swept on held-out problems (MATH-500) before and after, 64 samples a problem.

    held_out  data of the problems of both sweeps: FILE, or NAME=FILE
    samples   of each of them, at every temperature
    """
    pt.at_least(1, samples=samples)
    tests = task.tests(held_out)
    if not tests:
        raise ValueError("`held_out`: the sweeps need problems that are not trained on")
    policy, tasks = model.policy(), task.tasks()
    made = recipe(task.reward(), policy, epochs=1)
    sweeps = Sweeps(Path(run.out), tests, made.reward, samples)
    session = scale.train(policy, tasks, made, run, held_out=tests, on_start=sweeps.before)
    with nullcontext(policy) if scale.cluster else scale.playing(policy, run.out, tasks) as player:
        sweeps.after(player, policy.tokenizer)
    return session


def judge_solutions(
    task: pt.TaskOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/rl-wall-judge"),
    judge: str = "self",
    samples: int = 1,
) -> Path:
    """Have plan, execution and answer of a model's solutions judged; write OUT/judged.jsonl and OUT/shares.json.

    judge    who is asked: a Hub id or folder, the address of a chat server, or self, the model
    samples  solutions of each problem
    """
    pt.at_least(1, samples=samples)
    tasks, reward, policy = task.tasks(), task.reward(), model.policy()
    policy.check(tasks)
    other = None if judge == "self" else model.player(judge)
    out = Path(output.out)
    pt.prepare_folder(
        out, "judge", ["judged.jsonl", "shares.json"], output.settings, resume=output.resume, overwrite=output.overwrite
    )
    lines = pt.ranks.run_on_primary(lambda: pt.Lines(out / "judged.jsonl", output.resume), "for the solutions so far")
    batches = [tasks[start : start + AT_ONCE] for start in range(0, len(tasks), AT_ONCE)]
    with scale.playing(policy, out, tasks) as player, pt.progress_bar("batches", len(batches), output.quiet) as done:
        done(len(lines.found))
        for number in range(len(lines.found), len(batches)):
            found = pt.evaluate(
                {"policy": player}, batches[number], reward, samples=samples, seed=pt.mix(output.seed, number)
            )
            records = verdicts(other or player, found, pt.mix(output.seed, "judge", number))
            pt.ranks.run_on_primary(lambda: lines.add({"solutions": records}), "for the solutions to be written")  # noqa: B023
            done(1)
    if pt.ranks.is_primary():
        solutions = [one for line in lines.found for one in line["solutions"]]
        said = [Assessment(one["plan"], one["execute"], one["verify"]) for one in solutions]
        measures = shares(said, [one["right"] for one in solutions])
        pt.write_json(out / "shares.json", measures)
        for name, value in measures.items():
            print(f"{name:>12} {value:.3f}")
    return out


STAGES = {"laptop": laptop, "train": learn, "judge": judge_solutions}
