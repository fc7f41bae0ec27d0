"""The loop whose rollouts are played elsewhere, by weights that may be some steps old.

    harvest   the groups of a step, from players that never stop        learn    as ever, corrected for their age
    publish   the new weights                                           advance  the schedule lets new groups begin

With staleness 0 it does what `train` does, group for group and draw for draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from posttrain import ranks
from posttrain.core import Task
from posttrain.policy.text import TextPolicy
from posttrain.recipe import Recipe
from posttrain.run.session import HeldOut, Session
from posttrain.run.settings import Run
from posttrain.sampler.weights import collect_weights, probe_of
from posttrain.scale.crew import DEADLINE_S, Crew
from posttrain.scale.foreman import Foreman
from posttrain.scale.player import Build
from posttrain.scale.schedule import Rule, Schedule
from posttrain.step import credit_and_pack, learn
from posttrain.stream import Source

HARVEST = timedelta(days=7)  # for the first rank, whose own wait for players has a deadline


@dataclass(frozen=True, slots=True)
class Players:
    """How many play, on what, and how old their groups may be when they are trained."""

    count: int = 2
    kind: str = "policy"  # the policy itself, or vllm
    options: tuple[tuple[str, str], ...] = ()  # of `vllm serve`
    at_once: int = 1  # groups that one player plays side by side
    cpus: float = 1.0  # that one holds
    gpus: float = 0.0
    staleness: int = 0  # steps
    rule: Rule = "block"
    deadline_s: float = DEADLINE_S


def train_with_players(
    policy: TextPolicy,
    tasks: Sequence[Task] | Source,
    recipe: Recipe,
    run: Run,
    build: Build,
    players: Players,
    *,
    held_out: HeldOut = (),
    stopped: Callable[[], bool] = lambda: False,
    on_start: Callable[[Session], None] = lambda session: None,
) -> Session:
    """As `train`, with the rollouts of a crew of Ray actors that `build` the policy and the recipe for themselves.

    Runs inside of a Ray program, on every rank of the learner. Once `stopped()`, it ends as after Ctrl-C. `on_start` is
    called once before the first step.
    """
    settings = {"players": {"staleness": players.staleness, "rule": players.rule}}
    session = Session(run, policy, tasks, recipe, held_out=held_out, settings=settings)
    foreman = None
    if ranks.is_primary():
        schedule = Schedule(run.tasks, players.staleness, players.rule)
        foreman = Foreman(session.source, recipe, schedule, crew_of(build, players), run.seed)
        session.memory = {"foreman": foreman}
    probe = probe_of(policy, [task for task in session.source.items if isinstance(task, Task)])
    whole = players.kind != "policy" and not hasattr(policy.model, "peft_config")  # an engine takes an adapter alone
    corrected = players.staleness > 0 or players.kind != "policy"

    def publish() -> None:
        weights = collect_weights(policy, probe, merged=whole)
        if foreman:
            foreman.crew.publish(weights)

    try:
        with session:
            on_start(session)
            publish()
            for _ in session:
                harvest = ranks.run_on_primary(lambda: foreman.harvest(), "for the groups of a step", HARVEST)  # type: ignore[union-attr]
                experience = credit_and_pack(policy, recipe, harvest.seen, harvest.admitted, harvest.metrics)
                metrics = learn(policy, session, experience, recipe, corrected=corrected)
                publish()
                if foreman:
                    foreman.advance()
                session.interrupted |= stopped()
                session.log(experience.metrics | metrics, experience.played)
    finally:
        if foreman:
            foreman.crew.close()
    return session


def crew_of(build: Build, players: Players) -> Crew:
    return Crew(
        build,
        players.count,
        kind=players.kind,
        options=dict(players.options),
        at_once=players.at_once,
        cpus=players.cpus,
        gpus=players.gpus,
        deadline_s=players.deadline_s,
    )
