"""A policy that decides and does not speak: of what it is shown, a network makes a few choices, one after another.

An ask shows numbers as a part of its last message (`show`); the content of a reply is the chosen options, by their
indices. Every choice that had more than one open option is a decision, so that each recipe, GAE's critic too, trains
such a policy as it trains one that speaks.

    policy = DecisionPolicy(Categorical(features=4, options=(3, 3)))
    task = pt.Task("t", (show(state=[0.1, 0.2, 0.3, 0.4]),), truth=None)

A network of your own is a `Choices`: what its choices may depend on, which options are open, and how likely each is.
"""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posttrain.core import Ask, Density, Message, Reply, Row, Task, Turn
from posttrain.data import parts_of
from posttrain.episode import user
from posttrain.policy.trained import restore
from posttrain.seeding import uniforms

Shown = Mapping[str, Any]  # numbers, by the names that the network reads them by


def show(text: str = "", **numbers: Any) -> Message:
    """A message that shows numbers (lists or tensors, by name) to the policy, and `text` to people who read the run."""
    said = [{"type": "text", "text": text}] if text else []
    return user([*said, {"type": "features", "features": numbers}])


def shown_in(messages: Sequence[Message]) -> Shown:
    """What the last message shows. Raises ValueError when it shows nothing."""
    parts = parts_of(messages[-1]["content"]) if messages and not isinstance(messages[-1]["content"], str) else []
    found = [part["features"] for part in parts if part.get("type") == "features"]
    if len(found) != 1:
        raise ValueError(
            "a policy that decides reads one part of features in the last message: write `show(state=[...])`"
        )
    return found[0]


class Choices(nn.Module, ABC):
    """The network of a `DecisionPolicy`. Its choices are made in order, and each may depend on those before it.

    count     D, its choices
    width     of `summary`
    settings  what its class is made with again
    """

    count: int
    width: int
    settings: dict[str, Any]

    @abstractmethod
    def read(self, shown: Sequence[Shown]) -> Any:
        """What all choices are made of, for B asks at once. Raises ValueError for what cannot be read."""

    @abstractmethod
    def logits(self, seen: Any, made: Tensor) -> Tensor:
        """[B, d] options chosen so far -> [B, K] of the next choice; -inf for an option that is not open."""

    @abstractmethod
    def summary(self, seen: Any, made: Tensor) -> Tensor:
        """[B, d] -> [B, width] what a critic values before the next choice."""


class Categorical(Choices):
    """An MLP with tanh; every choice has a linear head, and knows the choices before it by their embeddings.

    features  F, numbers in `state`
    options   of each choice
    costs     of the options of each choice, where an ask shows a `budget` that they may not exceed together; the
              cheapest options of the choices that are left are kept affordable
    An ask may also show `open`, [D][K] of 0 and 1.
    """

    def __init__(
        self,
        features: int,
        options: Sequence[int],
        hidden: Sequence[int] = (64, 64),
        costs: Sequence[Sequence[float]] | None = None,
    ):
        super().__init__()
        self.settings = {"features": features, "options": options, "hidden": hidden, "costs": costs}
        self.features, self.options, self.count, self.width = features, tuple(options), len(options), hidden[-1]
        sizes = (features, *hidden)
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())]
        self.body = nn.Sequential(*layers[:-1])
        self.made = nn.ModuleList(nn.Embedding(k, self.width) for k in self.options[:-1])
        heads = [nn.Linear(self.width, k) for k in self.options]
        for head in heads:  # every option alike at first
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.heads = nn.ModuleList(heads)
        if costs is not None and [len(each) for each in costs] != list(self.options):
            raise ValueError("`costs` must name one cost for each option of each choice")
        self.costs = None if costs is None else [torch.tensor(each, dtype=torch.float32) for each in costs]

    def read(self, shown: Sequence[Shown]) -> dict[str, Tensor]:
        device = next(self.parameters()).device
        names = [name for name in ("state", "open", "budget") if any(name in one for one in shown)]
        seen = {name: rows_of_numbers(shown, name).to(device) for name in names}
        wanted = {"state": [self.features], "open": [self.count, max(self.options)], "budget": []}
        if "state" not in seen:
            raise ValueError("nothing is shown as `state`")
        for name, value in seen.items():
            if list(value.shape[1:]) != wanted[name]:
                raise ValueError(f"`{name}` is shown as {list(value.shape[1:])}; the network reads {wanted[name]}")
        if not bool(torch.isfinite(seen["state"]).all()):
            raise ValueError("`state` holds a number that is not finite")
        return {**seen, "read": self.body(seen["state"])}

    def summary(self, seen: dict[str, Tensor], made: Tensor) -> Tensor:
        before = [self.made[i](made[:, i]) for i in range(made.shape[1]) if i < len(self.made)]
        return torch.tanh(seen["read"] + torch.stack(before).sum(0)) if before else torch.tanh(seen["read"])

    def logits(self, seen: dict[str, Tensor], made: Tensor) -> Tensor:
        at = made.shape[1]
        logits = self.heads[at](self.summary(seen, made))
        if "open" in seen:
            logits = logits.masked_fill(seen["open"][:, at, : self.options[at]] == 0, -torch.inf)
        if self.costs is not None and "budget" in seen:
            costs = [each.to(logits.device) for each in self.costs]
            spent = sum((costs[i][made[:, i]] for i in range(at)), torch.zeros(len(made), device=logits.device))
            left = seen["budget"] - spent - sum(each.min() for each in costs[at + 1 :])
            logits = logits.masked_fill(costs[at][None] > left[:, None] + 1e-6, -torch.inf)
        return logits


def rows_of_numbers(shown: Sequence[Shown], name: str) -> Tensor:
    """[B, ...] float32 of what several asks show by one name. Raises ValueError when they differ in shape."""
    try:
        values = [one[name] for one in shown]
        if isinstance(values[0], Tensor):
            return torch.stack(values).float()
        return torch.from_numpy(np.array(values, dtype=np.float32))
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"`{name}` is not shown as numbers of one shape by every ask: {error}") from error


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """The trace of a reply: what was shown, and the index of the option of every choice."""

    shown: Shown
    chosen: tuple[int, ...]


class DecisionPolicy:
    """A network of choices as a policy. The content of a reply is a tuple of the indices of the chosen options.

    temperature  of asks that name none; at 0 the likeliest option of each choice is taken
    """

    def __init__(self, network: Choices, temperature: float = 1.0):
        self.model, self.temperature = network, temperature
        self.version = 0

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    # ---- sampling

    @torch.no_grad()
    def sample(self, asks: Sequence[Ask]) -> list[Reply]:
        """One reply for each ask. Raises ValueError for an ask that shows nothing the network can read, or in which
        every option of a choice is closed."""
        if not asks:
            return []
        shown = [shown_in(ask.messages) for ask in asks]
        warmth = [self.temperature if ask.temperature is None else ask.temperature for ask in asks]
        heat = torch.tensor(warmth, device=self.device)
        draws = torch.from_numpy(uniforms(np.array([ask.seed for ask in asks], np.uint64), self.model.count))
        seen = self.model.read(shown)
        made = torch.zeros(len(asks), 0, dtype=torch.long, device=self.device)
        logps: list[Tensor] = []
        free: list[Tensor] = []
        for at in range(self.model.count):
            logp, is_open = warmed(self.model.logits(seen, made), heat)
            drawn = inverse(logp, is_open, draws[:, at].to(self.device))
            chosen = torch.where(heat == 0, logp.argmax(-1), drawn)[:, None]
            logps.append(logp.gather(1, chosen))
            free.append(is_open.sum(-1, keepdim=True) > 1)
            made = torch.cat([made, chosen], 1)
        taken, logp, decided = made.tolist(), torch.cat(logps, 1).cpu(), torch.cat(free, 1).cpu()
        return [
            Reply(
                tuple(taken[i]),
                logp[i][decided[i]],
                Decision(shown[i], tuple(taken[i])),
                "end",
                self.version,
                warmth[i],
            )
            for i in range(len(asks))
        ]

    def check(self, tasks: Sequence[Task]) -> None:
        """Raises ValueError, naming the task, for a prompt that shows what the network cannot read."""
        for task in tasks:
            if task.prompt:
                try:
                    self.model.read([shown_in(task.prompt)])
                except ValueError as error:
                    raise ValueError(f"task {task.key!r}: {error}") from error

    # ---- scoring

    def parameters(self) -> Iterable[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def extends(self, last: Turn, turn: Turn) -> bool:
        """All turns of a rollout are one row: nothing is computed twice for it."""
        return True

    def size(self, rows: Sequence[Row]) -> int:
        """Choices, open or not."""
        return sum(len(row.turns) for row in rows) * self.model.count

    def density(self, rows: Sequence[Row]) -> Density:
        """[N] of every decision of the rows, at the temperature each was drawn at.

        Raises ValueError for choices made at temperature 0, which have no density.
        """
        turns = [turn for row in rows for turn in row.turns]
        heat = torch.tensor([turn.reply.temperature for turn in turns], device=self.device)
        if not bool(heat.all()):
            raise ValueError("a decision at temperature 0 has no density: train on samples of a positive one")
        seen, made = self.read_turns(turns)
        logps, entropies, free = [], [], []
        for at in range(self.model.count):
            logp, is_open = warmed(self.model.logits(seen, made[:, :at]), heat)
            logps.append(logp.gather(1, made[:, at : at + 1]))
            finite = logp.masked_fill(~is_open, 0.0)
            entropies.append(-(finite.exp() * finite * is_open).sum(-1, keepdim=True))
            free.append(is_open.sum(-1, keepdim=True) > 1)
        decided = torch.cat(free, 1)
        return Density(torch.cat(logps, 1)[decided], torch.cat(entropies, 1)[decided])

    def hidden(self, rows: Sequence[Row]) -> Tensor:
        """[N, width] what a critic values, before every decision of the rows."""
        seen, made = self.read_turns([turn for row in rows for turn in row.turns])
        states, free = [], []
        for at in range(self.model.count):
            states.append(self.model.summary(seen, made[:, :at]))
            with torch.no_grad():
                free.append(torch.isfinite(self.model.logits(seen, made[:, :at])).sum(-1) > 1)
        return torch.stack(states, 1)[torch.stack(free, 1)]

    def read_turns(self, turns: Sequence[Turn]) -> tuple[Any, Tensor]:
        """What the turns showed, read, and [T, D] what was chosen. Raises TypeError for replies of another policy."""
        traces = [turn.reply.trace for turn in turns]
        for trace in traces:
            if not isinstance(trace, Decision):
                raise TypeError(f"a policy that decides cannot score a reply whose trace is {type(trace).__name__}")
        made = torch.tensor([trace.chosen for trace in traces], dtype=torch.long, device=self.device)
        return self.model.read([trace.shown for trace in traces]), made

    # ---- for a critic

    @property
    def trunk(self) -> nn.Module:
        return self.model

    @property
    def width(self) -> int:
        return self.model.width

    def around(self, model: Choices) -> DecisionPolicy:
        """The same around another network."""
        twin = copy.copy(self)
        twin.model = model
        return twin

    # ---- what training changes, and what others load

    def frozen_copy(self) -> DecisionPolicy:
        return self.around(copy.deepcopy(self.model).requires_grad_(False))

    def record(self, reply: Reply) -> dict[str, Any]:
        return {"choices": list(reply.trace.chosen)}

    def state_dict(self) -> dict[str, Any]:
        return {name: value.detach() for name, value in self.model.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError when the names or shapes are not those of this network."""
        restore(self.state_dict(), state)

    def save(self, path: Path) -> None:
        """`model.safetensors`, and `config.json` with the network's class and settings: `load_network` reads both."""
        save_file({name: value.cpu().contiguous() for name, value in self.state_dict().items()}, path / WEIGHTS)
        about = {"network": type(self.model).__name__, "settings": self.model.settings}
        (path / CONFIG).write_text(json.dumps(about, indent=2) + "\n")


WEIGHTS, CONFIG = "model.safetensors", "config.json"


def load_network(folder: str | Path, *kinds: type[Choices], argument: str = "model") -> Choices:
    """The network that `DecisionPolicy.save` wrote, of one of these classes; `Categorical` if none are named.

    Raises ValueError, naming the argument, for a folder that holds none of them.
    """
    path = Path(folder)
    if not (path / CONFIG).is_file() or not (path / WEIGHTS).is_file():
        raise ValueError(f"`{argument}={folder}`: the folder holds no policy that decides ({CONFIG} and {WEIGHTS})")
    about = json.loads((path / CONFIG).read_text())
    known = {kind.__name__: kind for kind in kinds or (Categorical,)}
    if about.get("network") not in known:
        raise ValueError(f"`{argument}={folder}`: it holds {about.get('network')!r}, not {' or '.join(known)}")
    network = known[about["network"]](**about["settings"])
    restore(network.state_dict(), load_file(path / WEIGHTS))
    return network


def warmed(logits: Tensor, heat: Tensor) -> tuple[Tensor, Tensor]:
    """[B, K] log-probabilities at each ask's temperature (at 0, those of 1), and which options are open.

    Raises ValueError when every option of a choice is closed.
    """
    is_open = torch.isfinite(logits)
    if not bool(is_open.any(-1).all()):
        raise ValueError("every option of a choice is closed: leave one open")
    return (logits / torch.where(heat == 0, 1.0, heat)[:, None]).log_softmax(-1), is_open


def inverse(logp: Tensor, is_open: Tensor, draws: Tensor) -> Tensor:
    """[B, K] log-probabilities and [B] uniform draws -> [B] the options that they fall on."""
    reached = logp.double().exp().cumsum(-1)
    found = (reached <= draws[:, None] * reached[:, -1:]).sum(-1)
    last = logp.shape[1] - 1 - is_open.flip(-1).long().argmax(-1)
    return torch.minimum(found, last)
