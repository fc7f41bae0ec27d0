"""The commands around one run: a model behind a port, and the scheduler simulated."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from posttrain.cli.options import ModelOptions, check_choice


def serve(
    model: ModelOptions = ModelOptions(),
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    record: str | None = None,
    trainable: bool = False,
    scorer: str | None = None,
    api_key: str | None = None,
) -> None:
    """Serve a model behind OpenAI's interface and record the episodes of its agents; or serve a model that scores.

    host       address to listen on; 0.0.0.0 for every network of this machine
    port       0 takes a free one
    name       what the model is called; the folder or Hub id if not given
    record     append every reply, with its tokens and log-probabilities, to this JSON lines file
               (posttrain.read_episodes)
    trainable  let a learner load weights (posttrain train --sampler http://...): whoever reaches the port can do so
    scorer     serve a model that scores instead, KIND=FOLDER: a reward-model (folder or Hub id), or what a system has:
               the Q model of q-rm, the predictor of tomap, or ./my_paper.py
    api_key    that clients must show; POSTTRAIN_API_KEY of the environment if not given. Any address but one of this
               machine alone needs one
    """
    from posttrain.serve.listen import listen

    key = api_key or os.environ.get("POSTTRAIN_API_KEY")
    if scorer:
        serve_scores(scorer, model, host, port, {"name": name, "record": record, "trainable": trainable}, key)
        return

    listen(
        model.policy(),
        name or model.model,
        host=host,
        port=port,
        record=Path(record) if record else None,
        trainable=trainable,
        key=key,
    )


def serve_scores(
    scorer: str, model: ModelOptions, host: str, port: int, other: dict[str, Any], key: str | None
) -> None:
    """Raises ValueError for a kind that nobody has, and for options of the other server."""
    from posttrain.serve.listen import check_key
    from posttrain.serve.scorer import listen

    check_key(host, key)
    if given := [name for name, value in other.items() if value]:
        raise ValueError(f"`{given[0]}` is of a model that samples, and `scorer={scorer}` only scores: leave it out")
    kind, sign, folder = scorer.partition("=")
    if not sign or not folder:
        raise ValueError(f"`scorer={scorer}`: write KIND=FOLDER, such as reward-model=runs/rm/model")
    options: dict[str, Any] = {"device": model.device}
    if kind == "reward-model":
        options["template"] = model.template
    listen(scorer_kind(kind), folder, host=host, port=port, key=key, **options)


def scorer_kind(kind: str) -> Any:
    """Raises ValueError naming those that there are."""
    from posttrain import systems
    from posttrain.policy.scoring import REWARD_MODEL

    if kind == "reward-model":
        return REWARD_MODEL
    known = [one.name for one in systems.every() if one.scorer is not None]
    if kind.endswith(".py") or kind.replace("_", "-") in known:
        if found := systems.system(kind, "scorer").scorer:
            return found
        raise ValueError(f"`scorer={kind}`: the file has no SCORER")
    check_choice(kind, ["reward-model", *known], "scorer")


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
