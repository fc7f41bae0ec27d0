"""The commands around one run: a model behind a port, and the scheduler tried out on paper."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from posttrain.options import ModelOptions


@dataclass(frozen=True)
class Serve:
    """Serve a model behind OpenAI's interface, and record the episodes of the agents that use it."""

    model_options: ModelOptions = ModelOptions()
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every network of this machine."""
    port: int = 8000
    """0 takes a free one."""
    name: str | None = None
    """What the model is called; the folder or Hub id if not given."""
    record: str | None = None
    """Append every reply, with its tokens and log-probabilities, to this JSON lines file (posttrain.read_episodes)."""
    trainable: bool = False
    """Let a learner load weights (posttrain train --sampler http://...): whoever reaches the port can do so."""

    def run(self) -> None:
        from posttrain.serve.listen import listen

        listen(
            self.model_options.policy(),
            self.name or self.model_options.model,
            host=self.host,
            port=self.port,
            record=Path(self.record) if self.record else None,
            trainable=self.trainable,
        )


@dataclass(frozen=True)
class Schedule:
    """Simulate what staleness and which rule suit your rollouts, on the scheduler of --cluster itself."""

    slots: int = 32
    """Groups played side by side: samplers times at-once."""
    batch: int = 64
    """Groups in a step (--tasks)."""
    train_s: float = 4.0
    """Time of a step of the learner, in units of the median time of a group."""
    spread: float = 0.9
    """Sigma of the log-normal time of a group: how long the tail is."""
    steps: int = 40
    staleness: str = "0,1,2,4"
    """Bounds to try, separated by commas."""
    seeds: int = 5

    def run(self) -> None:
        from posttrain.scale.schedule import RULES
        from posttrain.scale.simulation import Load, as_table

        load = Load(self.slots, self.batch, self.train_s, self.steps, self.spread)
        print(as_table(load, [int(s) for s in self.staleness.split(",")], RULES, self.seeds))
