"""A causal language model as a policy: every sampled token is one decision."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from posttrain.chat import Chat, Tokens, trace, unroll
from posttrain.core import Ask, Density, Message, Reply, Row, Task, Turn
from posttrain.policy.generate import Sampled, Wanted, generate

HEAD_ELEMENTS = 2**25  # logits held at once: 128 MiB in float32
SAMPLE_ROWS = 256  # replies sampled side by side


@dataclass(frozen=True, slots=True)
class Sampling:
    max_new: int = 256  # most tokens in a reply
    temperature: float = 1.0
    stop: tuple[str, ...] = ()


class TextPolicy:
    """Made by `posttrain.text(...)`; by hand from a transformers causal model and its tokenizer.

    pack       line length in tokens into which short rows are packed for training; 0: one row a line
    bf16       run the model under bfloat16 autocast; the weights, log-softmax and optimizer stay float32
    adapter    False: score and sample with the LoRA adapter switched off (see `frozen`)
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        sampling: Sampling = Sampling(),
        *,
        template: str | None = None,
        pack: int = 0,
        bf16: bool = False,
        adapter: bool = True,
    ):
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.chat = Chat(tokenizer, template)
        self.pack, self.bf16, self.adapter = pack, bf16, adapter
        self.version = 0
        without_dropout(model)
        self.body: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.head = Head(self.body)

    # ---- sampling

    @property
    def context(self) -> int:
        """Most tokens that prompt and reply may have together."""
        return int(getattr(self.body.config, "max_position_embeddings", 0) or 2**31)

    def sample(self, asks: Sequence[Ask]) -> list[Reply]:
        """One reply for each ask, in order; a prompt that leaves no room gets an empty reply cut off by length."""
        prompts = [self.chat.prompt(ask.messages) for ask in asks]
        wanted = [self.wanted(ask, ids) for ask, (ids, _) in zip(asks, prompts, strict=True)]
        open_ = [i for i, w in enumerate(wanted) if w.max_new > 0]
        sampled: dict[int, Sampled] = {}
        for start in range(0, len(open_), SAMPLE_ROWS):
            piece = open_[start : start + SAMPLE_ROWS]
            with self.mode():
                sampled |= zip(
                    piece, generate(self.head, [wanted[i] for i in piece], self.ends(), self.chat.decode), strict=True
                )
        none = Sampled((), torch.zeros(0), torch.zeros(0), "length")
        return [
            self.reply(ask, before, w, sampled.get(i, none))
            for i, (ask, (_, before), w) in enumerate(zip(asks, prompts, wanted, strict=True))
        ]

    def wanted(self, ask: Ask, prompt: tuple[int, ...]) -> Wanted:
        room = self.context - len(prompt)
        most = self.sampling.max_new if ask.max_new is None else ask.max_new
        warmth = self.sampling.temperature if ask.temperature is None else ask.temperature
        return Wanted(prompt, max(min(most, room), 0), warmth, ask.seed, (*self.sampling.stop, *ask.stop))

    def reply(self, ask: Ask, before: str, wanted: Wanted, got: Sampled) -> Reply:
        said = self.chat.decode(got.ids)
        tokens = Tokens(wanted.prompt, got.ids, ask.messages, before, said, self.tokenizer, got.entropy)
        return Reply(said, got.logp, tokens, got.stop, self.version, wanted.temperature)

    def ends(self) -> set[int]:
        """Token ids that end a reply: the template's, the tokenizer's and the model's."""
        of_model = getattr(self.body.generation_config, "eos_token_id", None)
        more = [of_model] if isinstance(of_model, int) else of_model or []
        return self.chat.end_ids() | set(more)

    def demonstrate(self, messages: Sequence[Message], reply: str) -> Turn:
        """A turn that somebody else took, for supervised learning: its log-probabilities are zeros, never used."""
        tokens = self.chat.demonstrated(tuple(messages), reply)
        return Turn(Ask(tuple(messages)), Reply(reply, torch.zeros(len(tokens.reply)), tokens))

    def check(self, tasks: Sequence[Task]) -> None:
        """Raises ValueError, naming the task, when a prompt and its reply cannot fit the model's context."""
        for task in tasks:
            length = len(self.chat.prompt(task.prompt)[0]) if task.prompt else 0
            if length + self.sampling.max_new > self.context:
                raise ValueError(
                    f"task {task.key!r}: its prompt has {length} tokens and the reply may have "
                    f"{self.sampling.max_new}, but the model has {self.context} positions: lower --max-new, shorten or "
                    "leave out the task, or take a model with a longer context"
                )

    # ---- scoring

    def parameters(self) -> Iterable[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def extends(self, last: Turn, turn: Turn) -> bool:
        before = trace(last.reply).prompt + trace(last.reply).reply
        return trace(turn.reply).prompt[: len(before)] == before

    def size(self, row: Row) -> int:
        last = trace(row.turns[-1].reply)
        return len(last.prompt) + len(last.reply)

    def density(self, rows: Sequence[Row]) -> Density:
        """Log-probability and entropy of every sampled token of the rows, [N], at the temperature each was drawn at."""
        sequences = [unroll(row.turns) for row in rows]
        lines = packed([len(ids) for ids, _ in sequences], self.pack)
        hidden = self.hidden([ids for ids, _ in sequences], lines)  # [L, W, D]
        where = {row: (line, start) for line, inside in enumerate(lines) for row, start in inside}
        at = [where[row][1] + p - 1 for row, (_, sampled) in enumerate(sequences) for p in sampled]
        line = [where[row][0] for row, (_, sampled) in enumerate(sequences) for _ in sampled]
        chosen = [ids[p] for ids, sampled in sequences for p in sampled]
        warmth = [turn.reply.temperature for row in rows for turn in row.turns for _ in range(len(turn.reply.logp))]
        if not all(warmth):
            raise ValueError("a reply sampled at temperature 0 has no density: train on samples of a positive one")
        device = hidden.device
        wanted = hidden[torch.tensor(line, device=device), torch.tensor(at, device=device)]  # [N, D]
        with self.mode():
            return self.head.density(wanted, torch.tensor(chosen, device=device), torch.tensor(warmth, device=device))

    def hidden(self, sequences: Sequence[Sequence[int]], lines: list[list[tuple[int, int]]]) -> Tensor:
        """[L, W, D] last hidden states. Lines are padded on the right, which causal attention never looks at."""
        ends = [max(start + len(sequences[row]) for row, start in inside) for inside in lines]
        ids = torch.zeros(len(lines), max(ends), dtype=torch.long)
        positions = torch.arange(max(ends)).repeat(len(lines), 1)
        for line, inside in enumerate(lines):
            for row, start in inside:
                length = len(sequences[row])
                ids[line, start : start + length] = torch.tensor(sequences[row])
                positions[line, start:] = torch.arange(max(ends) - start)
        packing = {} if all(len(inside) == 1 for inside in lines) else {"position_ids": positions.to(self.device)}
        with self.mode(training=torch.is_grad_enabled()):
            out = self.head.trunk(input_ids=ids.to(self.device), use_cache=False, **packing)
        return out.last_hidden_state

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @contextmanager
    def mode(self, training: bool = False) -> Iterator[None]:
        """How the model is run: checkpointed only in training, under bfloat16 or not, its adapter on or off."""
        self.model.train(training and self.body.is_activation_checkpointing)
        with ExitStack() as stack:
            if self.bf16:
                stack.enter_context(torch.autocast(self.device.type, torch.bfloat16))
            if not self.adapter:
                stack.enter_context(self.model.disable_adapter())  # type: ignore[operator]
            yield

    # ---- what training changes, and what others load

    def frozen(self) -> TextPolicy:
        """The policy as it is now, for a reference. Under LoRA: the same model with its adapter switched off."""
        if hasattr(self.model, "disable_adapter"):
            twin = copy.copy(self)
            twin.adapter = False
            return twin
        model = copy.deepcopy(self.model).requires_grad_(False)
        return TextPolicy(model, self.tokenizer, self.sampling, pack=self.pack, bf16=self.bf16)

    def record(self, reply: Reply) -> dict[str, Any]:
        tokens = trace(reply)
        entropy = [] if tokens.entropy is None else [round(h, 4) for h in tokens.entropy.tolist()]
        return {
            "prompt_ids": list(tokens.prompt),
            "ids": list(tokens.reply),
            "pieces": self.chat.pieces(tokens.reply),
            "entropy": entropy,
        }

    def state_dict(self) -> dict[str, Any]:
        """Parameters that are trained: all of them, or the adapter's."""
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError when the names or shapes are not those of this model."""
        own = self.state_dict()
        for name, value in own.items():
            if name not in state or state[name].shape != value.shape:
                raise ValueError(f"the checkpoint is of another model: it has no {name} of shape {tuple(value.shape)}")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(state[name])

    def save(self, path: Path) -> None:
        """A Hugging Face checkpoint; a LoRA adapter is merged into it, and kept beside it in `adapter/`."""
        model = self.body
        if hasattr(self.model, "merge_and_unload"):
            self.model.save_pretrained(path / "adapter")  # type: ignore[operator]
            model = copy.deepcopy(self.model).merge_and_unload()  # type: ignore[operator]
        with quiet():
            model.save_pretrained(path)
        self.tokenizer.save_pretrained(path)


class Head:
    """Hidden states to log-probabilities, in chunks: the `[N, V]` logits of a large vocabulary never exist at once.

    Raises ValueError for an architecture whose logits are not a linear map of its last hidden state, followed by
    the scale or the soft cap that its configuration names.
    """

    def __init__(self, body: Any):
        self.trunk, self.out, self.config = body.base_model, body.get_output_embeddings(), body.config
        config = body.config
        self.cap = getattr(config, "final_logit_softcapping", None)
        self.scale = getattr(config, "logit_scale", None) or 1.0
        self.scale /= getattr(config, "logits_scaling", None) or 1.0
        with torch.no_grad():
            probe = torch.tensor([[1, 2, 3]], device=next(body.parameters()).device)
            hidden = self.trunk(input_ids=probe, use_cache=False).last_hidden_state
            if not torch.allclose(self.logits(hidden), body(input_ids=probe).logits.float(), atol=1e-2, rtol=1e-2):
                raise ValueError(f"{type(body).__name__} makes its logits in a way that posttrain does not know")

    def logits(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):  # float32 logits, also under bfloat16
            logits = self.out(hidden.float()) * self.scale
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits

    def density(self, hidden: Tensor, chosen: Tensor, temperature: Tensor) -> Density:
        """[N, D] -> log-probability and entropy [N], float32."""
        size = max(HEAD_ELEMENTS // self.out.weight.shape[0], 1)
        pieces = list(zip(hidden.split(size), chosen.split(size), temperature.split(size), strict=True))
        if len(pieces) == 1 or not torch.is_grad_enabled():
            scored = [self.piece(*piece) for piece in pieces]
        else:
            scored = [checkpoint(self.piece, *piece, use_reentrant=False) for piece in pieces]
        return Density(torch.cat([logp for logp, _ in scored]), torch.cat([entropy for _, entropy in scored]))

    def piece(self, hidden: Tensor, chosen: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        logp = (self.logits(hidden) / temperature[:, None]).log_softmax(-1)
        entropy = -(logp.exp() * logp.clamp(min=-1e4)).sum(-1)
        return logp.gather(-1, chosen[:, None])[:, 0], entropy


def packed(lengths: Sequence[int], width: int) -> list[list[tuple[int, int]]]:
    """Lines of (row, start), first fit decreasing into lines of `width` tokens; 0: every row has its own line."""
    if not width:
        return [[(row, 0)] for row in range(len(lengths))]
    lines: list[list[tuple[int, int]]] = []
    filled: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        line = next((i for i, used in enumerate(filled) if used + lengths[row] <= width), len(lines))
        if line == len(lines):
            lines.append([])
            filled.append(0)
        lines[line].append((row, filled[line]))
        filled[line] += lengths[row]
    return lines


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own progress bars, which would run through ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def without_dropout(model: nn.Module) -> None:
    """Sampler and trainer must see the same function: no dropout in a policy's forward pass."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
