"""The commands around one run: a model behind a port, and the scheduler simulated."""

from __future__ import annotations

from pathlib import Path

from posttrain.cli.options import ModelOptions


def serve(
    model: ModelOptions = ModelOptions(),
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    record: str | None = None,
    trainable: bool = False,
) -> None:
    """Serve a model behind OpenAI's interface, and record the episodes of the agents that use it.

    host       address to listen on; 0.0.0.0 for every network of this machine
    port       0 takes a free one
    name       what the model is called; the folder or Hub id if not given
    record     append every reply, with its tokens and log-probabilities, to this JSON lines file
               (posttrain.read_episodes)
    trainable  let a learner load weights (posttrain train --sampler http://...): whoever reaches the port can do so
    """
    from posttrain.serve.listen import listen

    listen(
        model.policy(),
        name or model.model,
        host=host,
        port=port,
        record=Path(record) if record else None,
        trainable=trainable,
    )


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
