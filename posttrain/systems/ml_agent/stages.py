"""Ideas, an expert's episodes, supervised learning, one action at a time, evaluation: on folders with scripts."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import posttrain as pt
from posttrain.embedding import MeanOfTokens
from posttrain.records import column, records
from posttrain.systems.ml_agent import recipe
from posttrain.systems.ml_agent.bench import BENCH, Bench, open_bench, with_initial_metrics
from posttrain.systems.ml_agent.episode import EDITOR, Start, agent, beginning, task_of
from posttrain.systems.ml_agent.ideas import diverse_ideas, drawn_ideas, listed_ideas, proposal, tf_idf
from posttrain.systems.ml_agent.pool import StatePool, read_states, states_of, tasks_of
from posttrain.systems.ml_agent.problem import Problem, problem_in
from posttrain.systems.ml_agent.prompt import InFields
from posttrain.systems.ml_agent.reward import ALPHA, Course, gain, reward
from posttrain.systems.ml_agent.workspace import snapshot

REPLIES, IDEAS = "replies.jsonl", "ideas.jsonl"
EPISODES, TRACES, STATES = "episodes.jsonl", "traces.jsonl", "states.jsonl"


@dataclass(frozen=True)
class WorkOptions:
    """Which scripts are improved, and who edits them."""

    data: tuple[str, ...]
    """Folders, each with a script, its data and a task.json (docs/systems/ml-agent.md)."""
    editor: str | None = None
    """A second model that edits scripts by an instruction: a chat server (http://...), a Hub id or a folder; the policy
    writes the scripts itself if not given."""
    editor_max_new: int = 4096
    """Most tokens of an edited script."""
    most: int = 15
    """Most actions of a whole episode."""
    side_by_side: int = 1
    """Scripts that are executed at the same time."""

    def __post_init__(self):
        pt.at_least(1, editor_max_new=self.editor_max_new, most=self.most, side_by_side=self.side_by_side)
        if not self.data:
            raise ValueError("`data`: there must be at least one folder")

    @property
    def dialect(self) -> InFields:
        return InFields(self.editor is not None)

    def work(self, held_out: Sequence[str] = ()) -> Work:
        """The problems of `data` and of held-out folders, whose scripts are executed once.

        Raises ValueError naming the file for what is wrong with one.
        """
        problems, tests = ([problem_in(folder) for folder in folders] for folders in (self.data, held_out))
        bench = open_bench([*problems, *tests], self.side_by_side)
        known = pt.ranks.run_on_primary(
            lambda: with_initial_metrics([*problems, *tests], bench), "for the scripts as they are"
        )
        return Work(known, tuple(one.name for one in problems), tuple(one.name for one in tests), bench)

    def players(self, work: Work, model: pt.ModelOptions) -> dict[str, pt.Sampler]:
        """The bench, and the editor, which always takes the likeliest word."""
        found: dict[str, pt.Sampler] = {BENCH: work.bench}
        if self.editor:
            found[EDITOR] = replace(model, max_new=self.editor_max_new).player(self.editor, 0.0)
        return found

    def env(self, work: Work, recording: bool = False) -> pt.Env:
        return agent(work.problems, self.dialect, editor=self.editor is not None, recording=recording)

    def episodes(self, work: Work, names: Sequence[str]) -> list[pt.Task[Start]]:
        """A whole episode for each of the problems."""
        return [self.task(name, work.problems[name]) for name in names]

    def task(self, key: str, problem: Problem, ideas: tuple[str, ...] = ()) -> pt.Task[Start]:
        return task_of(key, problem, Start(beginning(problem), self.most, ideas), self.dialect)


@dataclass(frozen=True)
class Work:
    """Problems by name, those to train on and those held out, and the bench that executes their scripts."""

    problems: Mapping[str, Problem]
    training: tuple[str, ...]
    held_out: tuple[str, ...]
    bench: Bench


# ---- exploration


def ideas(
    work: WorkOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/ml-agent-ideas"),
    expert: str | None = None,
    lists: int = 8,
    each: int = 20,
    count: int = 10,
    encoder: str | None = None,
) -> Path:
    """Write OUT/ideas.jsonl: of the ideas that an expert proposes for each task, those that differ most.

    expert   a chat server (http://...), Hub id or folder; the model itself if not given
    lists    replies of the expert for a task
    each     ideas that a reply is to list; the paper has a hundred or more of a task in all
    count    ideas that are kept of a task
    encoder  Hub id or folder of a model whose mean hidden state embeds an idea; counts of words if not given
    """
    pt.at_least(1, lists=lists, each=each, count=count)
    problems = [problem_in(folder) for folder in work.data]
    tasks = [pt.Task(one.name, proposal(one, each), one.name) for one in problems]
    out, settings = Path(output.out), {"seed": output.seed, **output.settings}
    embedding = MeanOfTokens(encoder, model.device).embed if encoder else tf_idf
    with scale.asking(expert, model, None, out, tasks) as player:
        again = {"resume": output.resume, "overwrite": output.overwrite}
        pt.prepare_folder(out, "ideas", [REPLIES, IDEAS], settings, **again)
        found = pt.collect(
            player,
            tasks,
            lambda group: proposals(group),
            out / REPLIES,
            samples=lists,
            seed=pt.mix(output.seed, "ideas"),
            name="tasks",
            quiet=output.quiet,
        )
    kept = [{"problem": one["id"], "ideas": diverse_ideas(one["ideas"], count, embedding)} for one in found]
    pt.ranks.run_on_primary(lambda: pt.Lines(out / IDEAS, resume=False).replace(kept), "for the ideas")
    if pt.ranks.is_primary():
        for one, line in zip(found, kept, strict=True):
            print(f"{one['id']}: {len(one['ideas'])} ideas, {len(line['ideas'])} kept")
    return out


def proposals(group: pt.Group) -> dict[str, Any] | pt.Invalid:
    """All ideas of a task. Invalid where not one was listed."""
    found = [idea for rollout in group for turn in rollout.turns for idea in listed_ideas(turn.reply)]
    return {"ideas": found} if found else pt.Invalid(f"no reply for {group[0].task.key} held a list")


def read_ideas(file: str | None) -> dict[str, list[str]]:
    """Ideas by problem. Raises ValueError naming file and line."""
    found: dict[str, list[str]] = {}
    for place, line in records(file) if file else ():
        some = column(line, "ideas", place, "ideas")
        if not isinstance(some, list) or not all(isinstance(one, str) for one in some):
            raise ValueError(f"{place}: 'ideas' must be a list of texts")
        found[str(column(line, "problem", place, "ideas"))] = some
    return found


def explore(
    work: WorkOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/ml-agent-exploration"),
    expert: str | None = None,
    ideas: str | None = None,
    episodes: int = 100,
) -> Path:
    """Write an expert's episodes: OUT/traces.jsonl, actions to learn, and OUT/states.jsonl, the state pool.

    Each episode is told one to three of the task's ideas, at random. An action that was invalid or failed is not
    learnt, and no trace has the ideas in its prompt.

    expert    a chat server (http://...), Hub id or folder; the model itself if not given
    ideas     ideas.jsonl of stage ideas; without, the expert is told none
    episodes  of each task
    """
    pt.at_least(1, episodes=episodes)
    told, made, draw = read_ideas(ideas), work.work(), random.Random(pt.mix(output.seed, "told"))
    tasks = [
        work.task(f"{name}/{i}", made.problems[name], drawn_ideas(told.get(name, ()), draw))
        for i in range(episodes)
        for name in made.training
    ]
    out, settings = Path(output.out), {"seed": output.seed, **output.settings}
    players = work.players(made, model)
    with scale.asking(expert, model, None, out, tasks) as player:
        again = {"resume": output.resume, "overwrite": output.overwrite}
        pt.prepare_folder(out, "exploration", [EPISODES, TRACES, STATES], settings, **again)
        found = pt.collect(
            player,
            tasks,
            lambda group: episode_line(group, made.problems, work.dialect),
            out / EPISODES,
            env=work.env(made, recording=True),
            seed=pt.mix(output.seed, "expert"),
            name="episodes",
            quiet=output.quiet,
            others=players,
        )
    traces = [trace for one in found for trace in one["traces"]]
    states = [state for one in found for state in one["states"]]
    if not traces:
        raise ValueError(f"not one action in {len(found)} episodes could be done: give a stronger `expert`")
    for name, lines in ((TRACES, traces), (STATES, states)):
        pt.ranks.run_on_primary(lambda name=name, lines=lines: pt.Lines(out / name, False).replace(lines), "for them")
    if pt.ranks.is_primary():
        mean = statistics.fmean(one["gain"] for one in found)
        print(f"{len(found)} episodes, {len(traces)} traces, {len(states)} states, mean relative gain {mean:.3f}")
    return out


def episode_line(group: pt.Group, problems: Mapping[str, Problem], dialect: InFields) -> dict[str, Any] | pt.Invalid:
    """What is kept of an expert's episode."""
    course = group[0].facts
    if not isinstance(course, Course):
        return pt.Invalid(course.reason)
    problem = problems[course.problem]
    traces = [
        {"prompt": list(dialect.messages(problem, before)), "response": after.steps[-1].reply, "problem": problem.name}
        for effect, (before, after) in zip(course.effects, itertools.pairwise(course.states), strict=True)
        if effect.kind not in ("invalid", "error")
    ]
    states = [snapshot(state) for state in states_of(course)]
    return {"gain": problem.gain(course.metric), "traces": traces, "states": states}


def sft(
    shown: pt.DemonstrationOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/ml-agent-sft", steps=300, tasks=64, lr=2e-5, schedule="cosine"),
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """Learn the actions that stage explore has written.

    held_out  traces whose loss is only measured: FILE, or NAME=FILE
    """
    scale.refuse_sampler()
    return pt.sft(model.policy(), shown.demonstrations(), run, held_out=shown.tests(held_out))


# ---- reinforcement


def train(
    work: WorkOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/ml-agent", steps=100, tasks=256, lr=1e-6),
    pool: str | None = None,
    whole_episodes: bool = False,
    alpha: float = ALPHA,
    critic_lr: float = 1e-5,
    epochs: int = 1,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """PPO on one action from each of the states that an expert has been in.

    pool            states.jsonl of stage explore
    whole_episodes  the paper's baseline: episodes from the beginning, which earn the sum of what their actions do
    alpha           steepness of the reward of an edit
    critic_lr       learning rate of the critic
    epochs          passes over each batch
    held_out        folders of other tasks, whose relative gain by whole episodes is followed
    """
    pt.at_least(0, alpha=alpha)
    if whole_episodes == (pool is not None):
        raise ValueError("give `pool`, the states.jsonl of stage explore, or `whole_episodes=True`")
    made = work.work(held_out)
    policy = model.policy()
    source: Any = work.episodes(made, made.training)
    if pool:
        source = StatePool(tasks_of(read_states(pool, made.problems), made.problems, work.dialect), run.seed)
    options = {"critic_lr": critic_lr, "epochs": epochs, "evaluation": gain(made.problems)}
    players = work.players(made, model)
    found = recipe(policy, work.env(made), reward(made.problems, alpha), players, **options)
    return scale.train(policy, source, found, run, held_out=work.episodes(made, made.held_out))


def evaluate(
    work: WorkOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/ml-agent-evaluation"),
    samples: int = 8,
) -> Path:
    """The average and the best of eight episodes of each task, in OUT/measures.json, and every reply.

    samples  episodes of a task
    """
    pt.at_least(1, samples=samples)
    made = work.work()
    policy, tasks, players = model.policy(), work.episodes(made, made.training), work.players(made, model)
    judge, env = gain(made.problems), work.env(made)
    replies, found = scale.evaluate(policy, tasks, judge, samples, output, env, players)
    rows = {name: row(made.problems[name], values) for name, values in zip(made.training, found.values, strict=True)}
    replies.write(rows)
    if pt.ranks.is_primary():
        print("\n".join(table(rows)))
    return replies.folder


def row(problem: Problem, gains: Sequence[float]) -> dict[str, float | None]:
    """Metrics and relative gains of a task's episodes; None where none was to be had."""
    mean, best = (statistics.fmean(gains), max(gains)) if gains else (None, None)
    return {
        "initial": problem.start,
        "average": None if mean is None else problem.metric_of(mean),
        "best": None if best is None else problem.metric_of(best),
        "gain": mean,
        "best gain": best,
    }


def table(rows: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    columns, width = list(next(iter(rows.values()))), max(map(len, ["task", *rows]))
    lines = [f"{'task':{width}}  {'  '.join(f'{name:>10}' for name in columns)}"]
    for name, values in rows.items():
        cells = ["-" if value is None else f"{value:.4g}" for value in values.values()]
        lines.append(f"{name:{width}}  {'  '.join(f'{cell:>10}' for cell in cells)}")
    return lines


def laptop(
    whole_episodes: bool = False,
    diverse: bool = True,
    run: pt.Run = pt.Run("runs/ml-agent", steps=40, tasks=72, lr=1e-3),
) -> pt.Session:
    """Scripts on scikit-learn's own data: an expert explores nine studies, and six are held out.

    whole_episodes  reinforcement by episodes of six actions, a sixth as many of them
    diverse         the expert is told other ideas in each episode; else always the same
    """
    from posttrain.systems.ml_agent import lab

    return lab.laptop_run(whole_episodes, diverse, run)


STAGES = {
    "laptop": laptop,
    "train": train,
    "ideas": ideas,
    "explore": explore,
    "sft": sft,
    "evaluate": evaluate,
}
