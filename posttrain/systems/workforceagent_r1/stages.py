"""Record, learn, reinforce, evaluate live: traces of WorkArena or of the workplace, and any checkpoint."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import posttrain as pt
from posttrain.collection import check_failures
from posttrain.long_prompts import Fitted, room
from posttrain.systems.workforceagent_r1 import ENTROPY, KL, recipe
from posttrain.systems.workforceagent_r1.live import MOST_STEPS, live
from posttrain.systems.workforceagent_r1.oracle import record_jobs
from posttrain.systems.workforceagent_r1.prompts import Prompt, fitting_request, request
from posttrain.systems.workforceagent_r1.reward import evaluation, reward
from posttrain.systems.workforceagent_r1.suites import suite as open_suite
from posttrain.systems.workforceagent_r1.traces import demonstrations_of, fitted_tasks, split_by_instance, steps_of

TRACES, EPISODES, MEASURES = "traces.jsonl", "episodes.jsonl", "measures.json"
UNSEEN = "unseen instances"


@dataclass(frozen=True)
class TraceOptions:
    """Which recorded steps."""

    data: str
    """Recorded steps (instance, goal, observation, action), of stage record or of WorkArena's script."""
    test_share: float = 0.1
    """Share of instances whose steps are only evaluated."""
    most_prompt: int = 13312
    """Most tokens of a prompt: a longer page loses its last lines; a step whose element is among them is left out."""
    limit: int | None = None
    """Use only the first so many steps."""
    split: str = "train"
    """Split of a Hugging Face dataset."""

    def steps(self, policy: pt.TextPolicy, seed: int) -> tuple[list[Any], Fitted, Fitted | None]:
        """All steps, those to learn from as tasks, and those of unseen instances."""
        if not 0 <= self.test_share < 1:
            raise ValueError(f"`test_share={self.test_share}`: a share of instances, at least 0 and below 1")
        steps, most = steps_of(self.data, self.limit, self.split), room(policy, self.most_prompt)
        shown, unseen = split_by_instance(steps, self.test_share, seed)
        if not shown:
            raise ValueError(f"`test_share={self.test_share}`: no instance is left to learn from")
        fit = partial(fitted_tasks, write=request, tokens=tokens_of(policy), most=most)
        learnt, tested = fit(shown), fit(unseen) if unseen else None
        if pt.ranks.is_primary():
            print(f"steps to learn from: {counts_of(learnt)}")
            print(f"steps of unseen instances: {counts_of(tested) if tested else 'none'}")
        return steps, learnt, tested


def tokens_of(policy: pt.TextPolicy) -> Any:
    def tokens(prompt: Prompt) -> int:
        return len(policy.chat.prompt(prompt)[0])

    return tokens


def counts_of(fitted: Fitted) -> str:
    parts = [f"{len(fitted.tasks)}", f"{len(fitted.cut)} with a page cut to fit"]
    return ", ".join([*parts, f"{len(fitted.dropped)} dropped, their element being out of view"])


def train(
    trace: TraceOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/workforceagent-r1", steps=200, tasks=128, lr=1e-6),
    strict: bool = False,
    single: bool = False,
    samples: int = 8,
    updates: int = 16,
    kl: float = KL,
    entropy: float = ENTROPY,
) -> pt.Session:
    """GRPO on recorded steps by the rule reward, from the checkpoint that stage sft has written. It needs no browser.

    Published: Qwen2.5-7B-Instruct and 14B, `--temperature 0.6 --max-new 1024`, 15 epochs.

    strict   a reply that does not think first earns what no action earns
    single   only the recorded action is right, not others that are still needed, as published
    samples  replies to a step
    updates  optimizer steps on a batch of them: published, mini-batches of 8 of 128 prompts
    kl       weight of the k3 divergence from the starting model; 0 loads no reference
    entropy  weight of the entropy
    """
    pt.at_least(0, kl=kl, entropy=entropy)
    policy = model.policy()
    _, learnt, tested = trace.steps(policy, run.seed)
    made = recipe(
        reward(strict, single),
        samples=samples,
        kl=kl,
        entropy=entropy,
        updates=updates,
        reference=policy.frozen_copy() if kl else None,
        evaluation=evaluation(),
    )
    return scale.train(policy, learnt.tasks, made, run, held_out={UNSEEN: tested.tasks} if tested else {})


def sft(
    trace: TraceOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/workforceagent-r1-sft", steps=100, tasks=64, lr=1e-5, schedule="cosine", warmup=10),
    direct: bool = False,
) -> pt.Session:
    """Learn the recorded actions, after their thoughts where the traces have some.

    direct  learn the actions alone: the supervised baseline
    """
    scale.refuse_sampler()
    policy = model.policy()
    steps, learnt, tested = trace.steps(policy, run.seed)
    shown = list(demonstrations_of(steps, learnt.tasks, not direct))
    held_out = {UNSEEN: list(demonstrations_of(steps, tested.tasks, not direct))} if tested else {}
    return pt.sft(policy, shown, run, held_out=held_out)


@pt.one_process("one browser records the oracle's episodes one after another")
def record(
    output: pt.Output = pt.Output("runs/workforceagent-r1-traces"), jobs: int = 200, shifted: bool = False
) -> Path:
    """Write OUT/traces.jsonl: an oracle does jobs of the workplace in Chromium, and its steps are recorded.

    jobs     of seven kinds, in turn
    shifted  in a shifted layout: elements in a random order, and more of them
    """
    pt.at_least(1, jobs=jobs)
    out, settings = Path(output.out), {"seed": output.seed, **output.settings}
    pt.prepare_folder(out, "traces", [TRACES], settings, resume=output.resume, overwrite=output.overwrite)
    from posttrain.lab.world.workplace import Workplace

    steps = record_jobs(Workplace(output.seed), jobs, shifted)
    pt.Lines(out / TRACES, resume=False).replace([one.line for one in steps])
    print(f"{out / TRACES}: {len(steps)} steps of {jobs} jobs")
    return out


def evaluate(
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    output: pt.Output = pt.Output("runs/workforceagent-r1-evaluation"),
    suite: str = "workplace",
    count: int = 40,
    tasks: tuple[str, ...] = (),
    shifted: bool = False,
    most_steps: int = MOST_STEPS,
    most_prompt: int = 13312,
    side_by_side: int = 8,
) -> Path:
    """Whole tasks, live in a browser: the share that is done, in OUT/measures.json, episodes in OUT/episodes.jsonl.

    An episode that the browser fails is no failure of the policy: it is left out, and played again on a resume.

    suite         workplace, miniwob, or a BrowserGym environment (browsergym/workarena.servicenow.order-apple-watch)
    count         instances: of the workplace in all, else of each task
    tasks         pages of MiniWoB++; all of them if not given
    shifted       the workplace in a shifted layout
    most_steps    replies of an episode
    most_prompt   most tokens of a prompt: a longer page loses its last lines
    side_by_side  episodes, each with a page of its own
    """
    pt.at_least(1, count=count, most_steps=most_steps, side_by_side=side_by_side)
    policy, out = model.policy(), Path(output.out)
    settings = {"seed": output.seed, **output.settings}
    pt.prepare_folder(
        out, "evaluation", [EPISODES, MEASURES], settings, resume=output.resume, overwrite=output.overwrite
    )
    tokens, most = tokens_of(policy), room(policy, most_prompt)
    pt.distribute(policy)

    def write(*step: Any) -> Prompt | None:
        return fitting_request(request, tokens, most, step)

    pt.ranks.run_on_primary(lambda: forget_failures(out / EPISODES), "for the episodes that are there")
    lines: list[Mapping[str, Any]] = []
    with (
        scale.playing(policy, out) as player,
        open_suite(suite, count, output.seed, side_by_side, shifted, tasks) as opened,
    ):
        env = live(opened.world, write, opened.threads, most_steps)
        for start in range(0, len(opened.tasks), side_by_side):
            some = opened.tasks[start : start + side_by_side]
            name = f"episodes {start + 1} to {start + len(some)} of {len(opened.tasks)}"
            options: Any = {"env": env, "seed": pt.mix(output.seed, start), "name": name, "quiet": output.quiet}
            lines += pt.collect(player, some, episode_line, out / EPISODES, **options)
    check_failures([line["failed"] for line in lines if "failed" in line], len(lines), "episodes")
    table = measures_of([line for line in lines if "failed" not in line])

    def report() -> None:
        pt.write_json(out / MEASURES, table)
        for kind, row in table.items():
            print(f"{kind:24} " + "  ".join(f"{name} {value:.3f}" for name, value in row.items()))

    pt.ranks.run_on_primary(report, "for the measures")
    return out


def forget_failures(path: Path) -> None:
    file = pt.Lines(path)
    file.replace([line for line in file.found if "failed" not in line])


def episode_line(group: pt.Group) -> Mapping[str, Any]:
    facts = group[0].facts
    if isinstance(facts, pt.Failure):
        return {"failed": facts.reason}
    replies = [str(turn.reply.content) for turn in group[0].turns]
    return {"kind": group[0].task.columns.get("kind", ""), **asdict(facts), "replies": replies}


def measures_of(lines: list[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By kind of task and over all episodes: the share done, and what they took."""
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        by_kind.setdefault(line["kind"] or "all of one kind", []).append(line)
    return {kind: means(some) for kind, some in [*sorted(by_kind.items()), ("all", lines)] if some}


def means(lines: list[Mapping[str, Any]]) -> dict[str, float]:
    return {
        "episodes": float(len(lines)),
        "success": statistics.fmean(line["success"] for line in lines),
        "actions": statistics.fmean(len(line["actions"]) for line in lines),
        "errors": statistics.fmean(line["errors"] for line in lines),
        "unformed": statistics.fmean(line["unformed"] for line in lines),
    }


def laptop(run: pt.Run = pt.Run("runs/workforceagent-r1", steps=30, tasks=16, lr=5e-4)) -> pt.Session:
    """A tiny agent in a workplace of seven kinds of tasks, recorded and tried in a real Chromium."""
    from posttrain.systems.workforceagent_r1 import lab

    policy, steps = lab.warm_started(run.seed), lab.steps_of_seed(run.seed)
    made = lab.tiny_recipe(policy)
    tests = {UNSEEN: lab.tasks_of(steps.unseen)}
    session = pt.train(policy, lab.tasks_of(steps.learnt), made, run, held_out=tests)
    success = lab.live_success(policy, run.seed, lab.EPISODES, shifted=False)
    print(f"live: {success:.2f} of {lab.EPISODES} tasks are done")
    return session


STAGES = {"laptop": laptop, "train": train, "record": record, "sft": sft, "evaluate": evaluate}
