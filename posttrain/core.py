"""The nouns of posttrain. Everything else is a function between them.

Shapes:  P tasks in a step   G samples of one task   B rows in a batch   N decisions   T tokens   V vocabulary
A *decision* is one thing the policy sampled and can score again: a token, a denoising
step, a retrieval, a layer choice. Log-probabilities are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    NotRequired,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
    runtime_checkable,
)

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch import nn

Truth = TypeVar("Truth")
SMALL_MODEL = 10_000_000  # parameters; below, a model is taken to be made here and not pretrained


class Message(TypedDict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Any  # str, or a list of parts (text, image, points, dna) that the policy's renderer knows
    tools: NotRequired[list[Any]]  # of the first message: those that the conversation may call, as OpenAI has them
    tool_calls: NotRequired[list[Any]]  # of an assistant's message
    tool_call_id: NotRequired[str]  # of a tool's message
    name: NotRequired[str]
    reply: NotRequired[Reply]  # an assistant message that was sampled carries what was sampled


@dataclass(frozen=True, slots=True)
class Task(Generic[Truth]):
    """One problem. The policy sees `prompt`; only rewards and environments see `truth`."""

    key: str
    prompt: tuple[Message, ...]
    truth: Truth
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)  # the record that it was read from


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for one reply, addressed to a player by name."""

    messages: tuple[Message, ...]
    who: str = "policy"
    temperature: float | None = None  # None: the sampler's own
    max_new: int | None = None  # most decisions in the reply; None: the sampler's own
    stop: tuple[str, ...] = ()  # strings that end the reply, besides the sampler's own
    seed: int = 0  # set by the driver: one per episode and ask, whatever the batch around it


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """What a sampler answered, and how likely every decision of it was."""

    content: Any  # what the environment reads: text, an image, a retrieved index
    logp: Tensor  # [N] one per decision, under the parameters that sampled it; float32 on the CPU
    trace: Any  # what the same policy needs to score the reply again: token ids, latents
    stop: Literal["end", "string", "length"] = "end"  # the model ended it, a stop string did, or the limit did
    version: int = 0  # optimizer steps the sampler had seen
    temperature: float = 1.0  # the decisions were drawn from the distribution at this temperature


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """An ask and its reply."""

    ask: Ask
    reply: Reply


@dataclass(slots=True)
class Rollout(Generic[Truth]):
    """One finished episode: the trained policy's own turns, and what the environment returned."""

    task: Task[Truth]
    turns: list[Turn]
    facts: Any = None  # the episode's return value

    @property
    def text(self) -> str:
        """The last reply; empty if the policy was never asked."""
        return str(self.turns[-1].reply.content) if self.turns else ""

    @property
    def decisions(self) -> int:
        return sum(len(turn.reply.logp) for turn in self.turns)

    @property
    def truncated(self) -> bool:
        """The last reply was cut off by its length limit."""
        return bool(self.turns) and self.turns[-1].reply.stop == "length"


Group: TypeAlias = "list[Rollout[Truth]]"  # [G] rollouts of one task


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """A reward and its parts. `turns` and `decisions` refine `value` where credit is finer than a rollout."""

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    turns: tuple[float, ...] = ()  # [turns of the rollout], or empty
    decisions: Tensor | None = None  # [N] over the decisions of the rollout


@dataclass(frozen=True, slots=True)
class Invalid:
    """A rollout that could not be graded. It is not zero: it leaves its group's baseline and is not trained on."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failure:
    """The facts of a rollout that could not be played to its end: it is `Invalid`, and no reward sees it.

    As the content of a reply: the player could not answer, and the episode that asked ends so.
    """

    reason: str


class EpisodeFailed(Exception):
    """For an environment to raise when an episode cannot go on through no fault of the policy: a tool that is down."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One training sequence: turns that share a growing prefix, and the credit of each decision."""

    turns: list[Turn]
    advantage: Tensor  # [N] over the decisions of `turns`, in order
    group: int = 0  # rows of one task's rollouts in this step share it
    score: Score | None = None  # of the rollout that the row is of, for losses that look at it

    @property
    def logp(self) -> Tensor:
        """[N] as sampled."""
        return torch.cat([turn.reply.logp for turn in self.turns])


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The decisions of some rows laid end to end, [N]. There is no padding and no mask."""

    logp_sampler: Tensor  # [N] under the parameters and the engine that sampled them
    logp_old: Tensor  # [N] under the trainer's parameters at the start of the step
    advantage: Tensor  # [N]
    row: Tensor  # [N] int, the row each decision belongs to
    logp_ref: Tensor | None = None  # [N] under the recipe's reference policy, if it names one
    marks: Mapping[Any, Tensor] = field(default_factory=dict)  # [N] each, by the `WholeStep` loss that made them
    scores: tuple[Score | None, ...] = ()  # of each row's rollout

    def rewards(self, part: str | None = None) -> Tensor:
        """[N] what the rollout of each decision earned, or one named part of it, whatever its advantage became.

        Raises ValueError when a row has no score, or its score no such part.
        """
        values = [
            score if score is None else score.parts.get(part, None) if part else score.value for score in self.scores
        ]
        if None in values or len(values) < (int(self.row[-1]) + 1 if len(self.row) else 0):
            known = sorted({name for score in self.scores if score for name in score.parts})
            raise ValueError(
                f"the loss reads the reward{f' part {part!r}' if part else ''}, and a row has none: {known}"
            )
        return torch.tensor(values, dtype=torch.float32, device=self.row.device)[self.row]

    def row_mean(self, values: Tensor) -> Tensor:
        """[N] -> [N] every decision with the mean of its row. Rows are never split, so this is exact."""
        rows = int(self.row[-1]) + 1 if len(self.row) else 0
        total = torch.zeros(rows, dtype=values.dtype, device=values.device).index_add(0, self.row, values)
        return (total / torch.bincount(self.row, minlength=rows))[self.row]


@dataclass(frozen=True, slots=True, eq=False)
class Density:
    """What the current parameters make of a batch's decisions."""

    logp: Tensor  # [N]
    entropy: Tensor  # [N] nats, of the distribution each was drawn from


Metrics: TypeAlias = dict[str, float]
Episode: TypeAlias = Generator[list[Ask], list[Reply], Any]
Env: TypeAlias = Callable[[Task[Truth]], Episode]
Reward: TypeAlias = "Callable[[Group], Sequence[Score | Invalid]]"
Draw: TypeAlias = "Callable[[Rollout], np.ndarray | None]"  # uint8 [H, W, 3], for a person to look at
Advantage: TypeAlias = Callable[[Group, list[Score]], list[Tensor]]  # one [N] per rollout
Across: TypeAlias = Callable[[list[Tensor]], list[Tensor]]  # the credit of every rollout of the step
Loss: TypeAlias = Callable[[Batch, Density], tuple[Tensor, Metrics]]
Reduce: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # decisions and group of each row [B] -> weight of one decision


class Sampler(Protocol):
    """Anything that answers: a live policy, a frozen judge, an HTTP endpoint."""

    def sample(self, asks: Sequence[Ask]) -> list[Reply]: ...


@runtime_checkable
class StreamingSampler(Sampler, Protocol):
    """A sampler that hands out each reply, with the index of its ask, when it is finished."""

    def stream(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]: ...


@runtime_checkable
class RemoteSampler(Sampler, Protocol):
    """A sampler that answers from any thread, `at_once` asks side by side: a server. Episodes need not keep step."""

    at_once: int


@runtime_checkable
class ShardedSampler(Sampler, Protocol):
    """A sampler whose parameters lie on several ranks, and that samples while they are `whole` on each."""

    def gather_parameters(self) -> AbstractContextManager[None]: ...


class Policy(Sampler, Protocol):
    """A sampler that can be trained: it can score its own replies again, differentiably.

    How rows become tensors (padding, packing, pixels, latents, devices) is its own affair.
    """

    version: int  # optimizer steps taken

    def check(self, tasks: Sequence[Task]) -> None: ...  # raises ValueError for one it cannot take, before any work
    def parameters(self) -> Iterable[nn.Parameter]: ...
    def extends(self, last: Turn, turn: Turn) -> bool: ...
    def size(self, rows: Sequence[Row]) -> int: ...  # what rows take together in a micro-batch, in tokens or their like
    def density(self, rows: Sequence[Row]) -> Density: ...
    def frozen_copy(self) -> Policy: ...  # as it is now, never trained: a reference
    def record(self, reply: Reply) -> dict[str, Any]: ...  # what a person may read of the decisions, as JSON
    def state_dict(self) -> dict[str, Any]: ...  # what training changes
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
    def save(self, path: Path) -> None: ...  # in the format that others load


class Stateful(Protocol):
    """A callable of a recipe that remembers: the run saves it with every checkpoint."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
