"""The gate as a policy: a frozen language model speaks, and the decisions are whether to contrast, token by token.

So rollouts of the gate are ordinary rollouts, and GRPO or any other recipe can train it while it plays.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import posttrain as pt
from posttrain.chat import Tokens
from posttrain.data import parts_of
from posttrain.decode.decode import Choice, DecodedReply, Decoding, Step, decode_replies
from posttrain.decode.layers import candidates
from posttrain.policy.trained import restore
from posttrain.seeding import uniforms
from posttrain.systems.actlcd.features import Kind, features, width

HIDDEN = (1024, 512, 256)  # as released


class Standardised(nn.Module):
    """Features in the deviations of those it was fitted to; raw until then."""

    def __init__(self, inputs: int):
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))

    def fit(self, seen: Tensor) -> None:
        self.mean.copy_(seen.mean(0))
        self.scale.copy_(seen.std(0, unbiased=False).clamp(min=1e-3))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale


def network(inputs: int, hidden: Sequence[int]) -> nn.Sequential:
    """An MLP with ReLU and two outputs: plain, contrast."""
    sizes = (inputs, *hidden)
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 2))


class Net(nn.Module):
    """[N, F] -> [N, 2] logits of plain and contrast."""

    def __init__(self, inputs: int, hidden: Sequence[int] = HIDDEN):
        super().__init__()
        self.inputs, self.hidden = inputs, tuple(hidden)
        self.view, self.net = Standardised(inputs), network(inputs, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.view(x))


class Constant(nn.Module):
    """Contrasts with one probability, whatever it sees: mixed behaviour to learn from, and a control."""

    def __init__(self, rate: float):
        super().__init__()
        if not 0 <= rate <= 1:
            raise ValueError(f"rate={rate}: it is a probability")
        self.odds: Tensor
        self.register_buffer("odds", torch.tensor([1 - rate, rate]).clamp(min=1e-30).log())

    def forward(self, x: Tensor) -> Tensor:
        return self.odds.expand(len(x), 2)


class Above(nn.Module):
    """Contrasts where one feature is above a threshold, or below it."""

    def __init__(self, column: int, threshold: float, above: bool = True):
        super().__init__()
        self.column, self.threshold, self.sign = column, threshold, 1.0 if above else -1.0

    def forward(self, x: Tensor) -> Tensor:
        ahead = self.sign * (x[:, self.column] - self.threshold)
        return torch.stack([torch.zeros_like(ahead), ahead], 1)


@dataclass(frozen=True, slots=True, eq=False)
class Gated(Tokens):
    """The trace of a gated reply: its tokens, and of each what the gate saw and chose."""

    features: Tensor = field(default_factory=lambda: torch.empty(0, 0))  # [N, F]
    contrast: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))  # [N]
    plain: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))  # [N] the model's own token
    other: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))  # [N] the contrast's


def trace_of(reply: pt.Reply) -> Gated:
    """Raises TypeError for a reply that no gate made."""
    if not isinstance(reply.trace, Gated):
        raise TypeError(f"a gate cannot score a reply whose trace is {type(reply.trace).__name__}, not Gated")
    return reply.trace


class GatePolicy:
    """A policy whose decisions are a gate's: one choice of two for every token that the language model says.

    speaker      the language model, never trained
    gate         [N, F] features -> [N, 2] logits
    temperature  of the gate; 0 takes the better action. The speaker's is that of `how`
    """

    def __init__(
        self,
        speaker: pt.TextPolicy,
        gate: nn.Module,
        how: Decoding,
        kind: Kind = "values",
        temperature: float = 1.0,
    ):
        self.speaker, self.gate, self.how, self.temperature = speaker, gate, how, temperature
        self.kind: Kind = kind
        self.version = 0
        self.inputs = width(kind, len(candidates(speaker.head.config, how.layers)))
        gate.to(speaker.device)

    # ---- sampling

    def sample(self, asks: Sequence[pt.Ask]) -> list[pt.Reply]:
        """One reply for each ask; a prompt that leaves no room gets an empty reply cut off by length."""
        prompts = [self.speaker.chat.prompt(ask.messages) for ask in asks]
        wanted = [self.speaker.sample_request(ask, ids) for ask, (ids, _) in zip(asks, prompts, strict=True)]
        found: dict[int, DecodedReply] = {}
        groups: dict[tuple[str, ...], list[int]] = {}
        for i, one in enumerate(wanted):
            if one.max_new > 0:
                groups.setdefault(one.stop, []).append(i)
        for stop, group in groups.items():
            limits = [wanted[i].max_new for i in group]
            made = decode_replies(
                self.speaker,
                [wanted[i].prompt for i in group],
                self.chooser([asks[i] for i in group], max(limits)),
                self.how,
                max_new=limits,
                seeds=[asks[i].seed for i in group],
                stop=stop,
            )
            found |= dict(zip(group, made, strict=True))
        return [self.reply(ask, *prompts[i], found.get(i)) for i, ask in enumerate(asks)]

    def chooser(self, asks: Sequence[pt.Ask], longest: int) -> Any:
        """The gate over these asks, for `decode_replies`; what it draws depends on each ask's own seed."""
        seeds = np.array([pt.mix(ask.seed, "gate") for ask in asks], dtype=np.uint64)
        draws = torch.from_numpy(uniforms(seeds, longest)).to(self.speaker.device, torch.float32)
        before = torch.tensor([decisions_before(ask) for ask in asks], device=self.speaker.device)
        warmth = torch.tensor([self.warmth(ask) for ask in asks], device=self.speaker.device)

        def choose(step: Step) -> Choice:
            seen = features(step, self.kind, before[step.rows])
            logp = self.logp(seen, warmth[step.rows])
            draw = draws[step.rows, step.position]
            contrast = torch.where(warmth[step.rows] == 0, logp[:, 1] > logp[:, 0], draw < logp[:, 1].exp())
            chosen = logp.gather(1, contrast.long()[:, None])[:, 0]
            tokens = {"plain": step.plain.argmax(-1), "other": step.contrast.argmax(-1)}
            return Choice(contrast, {"features": seen, "logp": chosen, **tokens})

        return choose

    def logp(self, seen: Tensor, warmth: Tensor) -> Tensor:
        """[N, 2] log-probabilities of the actions at each decision's temperature; at 0, those of 1."""
        with torch.autocast(seen.device.type, enabled=False):  # the speaker may be in bfloat16
            logits = self.gate(seen.float())
        return (logits / torch.where(warmth == 0, 1.0, warmth)[:, None]).log_softmax(-1)

    def warmth(self, ask: pt.Ask) -> float:
        return self.temperature if ask.temperature is None else ask.temperature

    def reply(self, ask: pt.Ask, prompt: tuple[int, ...], before: str, made: DecodedReply | None) -> pt.Reply:
        chat, notes = self.speaker.chat, made.notes if made else {}
        said = chat.decode(made.ids) if made else ""
        told = {name: notes[name] for name in ("features", "plain", "other") if made}
        tokens = Gated(
            prompt,
            made.ids if made else (),
            ask.messages,
            before,
            said,
            chat.fingerprint,
            **({"contrast": made.contrast, **told} if made else {}),
        )
        logp = notes["logp"] if made else torch.zeros(0)
        return pt.Reply(said, logp, tokens, made.stop if made else "length", self.version, self.warmth(ask))

    def check(self, tasks: Sequence[pt.Task]) -> None:
        """Raises ValueError, naming the task, for a prompt that shows a picture or is too long for the model."""
        for task in tasks:
            if any(part.get("type") == "image" for message in task.prompt for part in parts_of(message["content"])):
                raise ValueError(f"task {task.key!r}: its prompt shows a picture, and a gate decodes text only")
        self.speaker.check(tasks)

    # ---- scoring

    def parameters(self) -> Iterable[nn.Parameter]:
        return [p for p in self.gate.parameters() if p.requires_grad]

    def extends(self, last: pt.Turn, turn: pt.Turn) -> bool:
        return self.speaker.extends(last, turn)

    def size(self, rows: Sequence[pt.Row]) -> int:
        """Decisions: the language model is not run again."""
        return sum(len(row.advantage) for row in rows)

    def density(self, rows: Sequence[pt.Row]) -> pt.Density:
        """[N] of every choice of the rows, at the temperature each was drawn at.

        Raises ValueError for choices made at temperature 0, which have no density.
        """
        turns = [turn for row in rows for turn in row.turns]
        warmth = torch.tensor([turn.reply.temperature for turn in turns for _ in range(len(turn.reply.logp))])
        if not warmth.all():
            raise ValueError("a gate at temperature 0 has no density: train on samples of a positive one")
        device = self.speaker.device
        seen = torch.cat([trace_of(turn.reply).features for turn in turns]).to(device)
        taken = torch.cat([trace_of(turn.reply).contrast for turn in turns]).to(device)
        logp = self.logp(seen, warmth.to(device))
        return pt.Density(logp.gather(1, taken.long()[:, None])[:, 0], -(logp.exp() * logp).sum(-1))

    # ---- what training changes, and what others load

    def frozen_copy(self) -> GatePolicy:
        """The gate as it is now; the language model is never trained, and is shared."""
        twin = copy.copy(self)
        twin.gate = copy.deepcopy(self.gate).requires_grad_(False)
        return twin

    def record(self, reply: pt.Reply) -> dict[str, Any]:
        return self.speaker.record(reply) | {"contrast": trace_of(reply).contrast.int().tolist()}

    def state_dict(self) -> dict[str, Any]:
        return {name: value.detach() for name, value in self.gate.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError when the names or shapes are not those of this gate."""
        restore(self.state_dict(), state)

    def save(self, path: Path) -> None:
        """`model.safetensors` and `config.json`: the gate, and how it decodes. The language model is not copied."""
        tensors = {name: value.cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, path / "model.safetensors")
        about = {
            "kind": type(self.gate).__name__,
            "inputs": self.inputs,
            "hidden": list(getattr(self.gate, "hidden", ())),
            "settings": getattr(self.gate, "settings", {}),
            "features": self.kind,
            "decoding": asdict(self.how),
            "speaker": getattr(self.speaker.body.config, "_name_or_path", ""),
        }
        (path / "config.json").write_text(json.dumps(about, indent=2) + "\n")


def decisions_before(ask: pt.Ask) -> int:
    """Decisions of the replies that the conversation holds already."""
    return sum(len(message["reply"].logp) for message in ask.messages if "reply" in message)


def read_gate(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `save` wrote. Raises ValueError for a folder that holds no gate."""
    path = Path(folder)
    if not (path / "config.json").is_file() or not (path / "model.safetensors").is_file():
        raise ValueError(f"`gate={folder}`: the folder holds no gate (config.json and model.safetensors)")
    about = json.loads((path / "config.json").read_text())
    if "decoding" not in about:
        raise ValueError(f"`gate={folder}`: its config.json is not of a gate; give the OUT/model of an actlcd run")
    about["decoding"]["layers"] = layers_of(about["decoding"]["layers"])
    return about, load_file(path / "model.safetensors")


def layers_of(value: str | list[int]) -> str | tuple[int, ...]:
    return value if isinstance(value, str) else tuple(value)
