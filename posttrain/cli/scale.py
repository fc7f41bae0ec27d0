"""The commands around one run: a model behind a port, and the scheduler tried out on paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.options import ModelOptions

SCORERS = {
    "reward_model": "posttrain.policy.scoring:REWARD_MODEL",
    "q_model": "posttrain.systems.q_rm.serving:Q_MODEL",
    "predictor": "posttrain.systems.tomap.serving:PREDICTOR",
}


@dataclass(frozen=True)
class Serve:
    """Serve a model behind OpenAI's interface and record the episodes of its agents; or serve a model that scores."""

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

    reward_model: str | None = None
    """Serve the scores of this reward model (folder or Hub id) instead, wherever a run names a reward model."""
    q_model: str | None = None
    """Serve the token values of this Q model (folder) instead."""
    predictor: str | None = None
    """Serve the attitudes of this predictor (folder) instead."""

    def run(self) -> None:
        named = [name for name in SCORERS if getattr(self, name)]
        if named:
            self.score(named)
            return
        from posttrain.serve.listen import listen

        listen(
            self.model_options.policy(),
            self.name or self.model_options.model,
            host=self.host,
            port=self.port,
            record=Path(self.record) if self.record else None,
            trainable=self.trainable,
        )

    def score(self, named: Sequence[str]) -> None:
        """Raises ValueError for more than one of them, and for options of the other server."""
        from posttrain.serve.scorer import kind_at, listen

        flags = [f"--{name.replace('_', '-')}" for name in named]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(flags)}: one server, one model; start another for the other")
        other = {"name": self.name, "record": self.record, "trainable": self.trainable}
        if given := [f"--{name}" for name, value in other.items() if value]:
            raise ValueError(f"{given[0]} is of a model that samples, and {flags[0]} only scores: leave it out")
        options = {"device": self.model_options.device}
        if named[0] == "reward_model":
            options["template"] = self.model_options.template
        listen(kind_at(SCORERS[named[0]]), getattr(self, named[0]), host=self.host, port=self.port, **options)


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
