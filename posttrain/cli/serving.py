"""The commands around one run: a model behind a port, and the scheduler simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.cli.options import ModelOptions

SCORERS = {
    "reward_model": "posttrain.policy.scoring:REWARD_MODEL",
    "q_model": "posttrain.systems.q_rm.serving:Q_MODEL",
    "predictor": "posttrain.systems.tomap.serving:PREDICTOR",
}


def serve(
    model: ModelOptions = ModelOptions(),
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    record: str | None = None,
    trainable: bool = False,
    reward_model: str | None = None,
    q_model: str | None = None,
    predictor: str | None = None,
) -> None:
    """Serve a model behind OpenAI's interface and record the episodes of its agents; or serve a model that scores.

    host       address to listen on; 0.0.0.0 for every network of this machine
    port       0 takes a free one
    name       what the model is called; the folder or Hub id if not given
    record     append every reply, with its tokens and log-probabilities, to this JSON lines file
               (posttrain.read_episodes)
    trainable  let a learner load weights (posttrain train --sampler http://...): whoever reaches the port can do so
    reward_model  serve the scores of this reward model (folder or Hub id) instead, wherever a run names a reward model
    q_model    serve the token values of this Q-model (folder) instead
    predictor  serve the attitudes of this predictor (folder) instead
    """
    from posttrain.serve.listen import listen

    scoring = {name: one for name, one in zip(SCORERS, (reward_model, q_model, predictor), strict=True) if one}
    if scoring:
        serve_scores(scoring, model, host, port, {"name": name, "record": record, "trainable": trainable})
        return

    listen(
        model.policy(),
        name or model.model,
        host=host,
        port=port,
        record=Path(record) if record else None,
        trainable=trainable,
    )


def serve_scores(scoring: dict[str, str], model: ModelOptions, host: str, port: int, other: dict[str, Any]) -> None:
    """Raises ValueError for more than one model, and for options of the other server."""
    from posttrain.serve.scorer import kind_at, listen

    (kind, place), *more = scoring.items()
    if more:
        raise ValueError(f"`{kind}` and `{more[0][0]}`: one server, one model; start another for the other")
    if given := [name for name, value in other.items() if value]:
        raise ValueError(f"`{given[0]}` is of a model that samples, and `{kind}` only scores: leave it out")
    options: dict[str, Any] = {"device": model.device}
    if kind == "reward_model":
        options["template"] = model.template
    listen(kind_at(SCORERS[kind]), place, host=host, port=port, **options)


def schedule(
    slots: int = 32,
    batch: int = 64,
    train_s: float = 4.0,
    spread: float = 0.9,
    steps: int = 40,
    staleness: str = "0,1,2,4",
    seeds: int = 5,
) -> None:
    """Simulate which staleness and which rule suit your rollouts, on the scheduler of a cluster itself.

    slots      groups played side by side: samplers times at-once
    batch      groups in a step (--tasks)
    train_s    time of a step of the learner, in units of the median time of a group
    spread     sigma of the log-normal time of a group: how long the tail is
    steps      of a simulated run
    staleness  bounds to try, separated by commas
    seeds      simulated runs of each
    """
    from posttrain.scale.schedule import RULES
    from posttrain.scale.simulation import Load, as_table

    load = Load(slots, batch, train_s, steps, spread)
    print(as_table(load, [int(s) for s in staleness.split(",")], RULES, seeds))
