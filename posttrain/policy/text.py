"""A causal language model as a policy: every sampled token is one decision."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from posttrain.chat import Chat, Tokens, continues, opened_thinking, trace, unroll
from posttrain.core import Ask, Density, Message, Reply, Row, Task, Turn
from posttrain.episode import ordered_replies
from posttrain.policy.checkpoint_folder import write_checkpoint
from posttrain.policy.fast.dense import Dense, weight
from posttrain.policy.fast.generate import Sample, SampleRequest, generate
from posttrain.policy.fast.head import Head
from posttrain.policy.fast.line import Line, fits
from posttrain.policy.fast.precision import exact_products
from posttrain.policy.fast.stops import Stops
from posttrain.policy.trained import restore, trained_parameters
from posttrain.ranks import is_primary


@dataclass(frozen=True, slots=True)
class Sampling:
    max_new: int = 256  # most tokens in a reply
    temperature: float = 1.0
    stop: tuple[str, ...] = ()


class TextPolicy:
    """Made by `posttrain.text(...)`; by hand from a transformers causal model and its tokenizer.

    bf16       run the model under bfloat16 autocast; the weights, log-softmax and optimizer stay float32
    adapter    False: score and sample with the LoRA adapter switched off (see `frozen_copy`)
    plain      run everything through transformers' own pass, one padded row a line: slower, and what the fast
               paths are tested against
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        sampling: Sampling = Sampling(),
        *,
        template: str | None = None,
        bf16: bool = False,
        adapter: bool = True,
        plain: bool = False,
    ):
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.chat = self.conversation(template)
        self.bf16, self.adapter, self.plain = bf16, adapter, plain
        self.version = 0
        self.shards: list[
            Any
        ] = []  # one, once the model lies on several ranks; the twin of `frozen_copy` shares the list
        without_dropout(model)
        self.body: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        with exact_products():
            self.head = Head(self.body)
            self.dense = not plain and Dense.supports(self.head)  # sampled by our own pass
            self.lines = not plain and fits(self.body)  # trained on rows that share their prompts
        self.lock = threading.RLock()  # one thread may sample while another scores: modes are the model's, not theirs
        self.stops = Stops(self.chat, self.ends(), self.head.out.weight.shape[0], self.device)

    def conversation(self, template: str | None) -> Chat:
        """What renders messages for the model."""
        return Chat(self.tokenizer, template)

    # ---- sampling

    @property
    def context(self) -> int:
        """Most tokens that prompt and reply may have together."""
        return int(getattr(self.body.config.get_text_config(), "max_position_embeddings", 0) or 2**31)

    def sample(self, asks: Sequence[Ask]) -> list[Reply]:
        """One reply for each ask, in order; a prompt that leaves no room gets an empty reply cut off by length."""
        return ordered_replies(self.stream(asks))

    def stream(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        """The same replies with their indices, as they finish."""
        known = {id(ask.messages): ask.messages for ask in asks}  # samples of one task share their messages
        rendered = {key: self.chat.prompt(messages) for key, messages in known.items()}
        prompts = [rendered[id(ask.messages)] for ask in asks]
        wanted = [self.sample_request(ask, ids) for ask, (ids, _) in zip(asks, prompts, strict=True)]
        open_ = [i for i, w in enumerate(wanted) if w.max_new > 0]
        for i in set(range(len(asks))) - set(open_):
            none = Sample((), torch.zeros(0), torch.zeros(0), "length")
            yield i, self.reply(asks[i], prompts[i][1], wanted[i], none)
        if open_:
            for k, got in self.sample_tokens([wanted[i] for i in open_]):
                i = open_[k]
                yield i, self.reply(asks[i], prompts[i][1], wanted[i], got)

    def sample_tokens(self, wanted: Sequence[SampleRequest]) -> Iterator[tuple[int, Sample]]:
        """Tokens sampled after prompts of tokens, with their indices, as they finish."""
        dense = partial(Dense, self.head, torch.bfloat16 if self.bf16 else torch.float32) if self.dense else None
        return generate(self.head, wanted, self.stops, dense, self.mode)

    def sample_request(self, ask: Ask, prompt: tuple[int, ...]) -> SampleRequest:
        room = self.context - len(prompt)
        most = self.sampling.max_new if ask.max_new is None else ask.max_new
        warmth = self.sampling.temperature if ask.temperature is None else ask.temperature
        return SampleRequest(prompt, max(min(most, room), 0), warmth, ask.seed, (*self.sampling.stop, *ask.stop))

    def reply(self, ask: Ask, before: str, wanted: SampleRequest, got: Sample) -> Reply:
        said = self.chat.decode(got.ids)
        tokens = Tokens(wanted.prompt, got.ids, ask.messages, before, said, self.chat.fingerprint, got.entropy)
        return Reply(said, got.logp, tokens, got.stop, self.version, wanted.temperature)

    def ends(self) -> set[int]:
        """Token ids that end a reply: the template's, the tokenizer's and the model's."""
        of_model = getattr(self.body.generation_config, "eos_token_id", None)
        more = [of_model] if isinstance(of_model, int) else of_model or []
        return self.chat.end_ids() | set(more)

    def demonstrate(self, messages: Sequence[Message], reply: str | Message) -> Turn:
        """A turn that somebody else took, for supervised learning: its log-probabilities are zeros, never used."""
        tokens = self.chat.demonstration_tokens(tuple(messages), reply)
        content = reply if isinstance(reply, str) else reply.get("content")
        return Turn(Ask(tuple(messages)), Reply(content, torch.zeros(len(tokens.reply)), tokens))

    def check(self, tasks: Sequence[Task]) -> None:
        """Raises ValueError, naming the task, when a prompt and its reply cannot fit the model's context."""
        for task in tasks:
            try:
                length = len(self.chat.prompt(task.prompt)[0]) if task.prompt else 0
            except ValueError as error:
                raise ValueError(f"task {task.key!r}: {error}") from error
            if length + self.sampling.max_new > self.context:
                raise ValueError(
                    f"task {task.key!r}: its prompt has {length} tokens and the reply may have "
                    f"{self.sampling.max_new}, but the model has {self.context} positions: lower `max_new`, shorten or "
                    "leave out the task, or take a model with a longer context"
                )

    # ---- scoring

    def parameters(self) -> Iterable[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def extends(self, last: Turn, turn: Turn) -> bool:
        return continues(last, turn)

    def size(self, rows: Sequence[Row]) -> int:
        """Tokens that rows take together: a prompt that they share counts once, or padding counts."""
        lengths = [length_of(row) for row in rows]
        if not self.lines:
            return len(rows) * max(lengths)
        prompts = [trace(row.turns[0].reply).prompt for row in rows]
        return sum(lengths) - sum(map(len, prompts)) + sum(map(len, set(prompts)))

    def density(self, rows: Sequence[Row]) -> Density:
        """Log-probability and entropy of every sampled token of the rows, [N], at the temperature each was drawn at."""
        warmth = [turn.reply.temperature for row in rows for turn in row.turns for _ in range(len(turn.reply.logp))]
        if not all(warmth):
            raise ValueError("a reply sampled at temperature 0 has no density: train on samples of a positive one")
        chosen = torch.cat([torch.tensor(trace(turn.reply).reply) for row in rows for turn in row.turns])

        def logp_and_entropy() -> tuple[Tensor, Tensor]:
            hidden = self.hidden(rows)
            now = self.head.density(hidden, chosen.to(hidden.device), torch.tensor(warmth, device=hidden.device))
            return now.logp, now.entropy

        return Density(*(self.shards[0].run(logp_and_entropy) if self.shards else logp_and_entropy()))

    def hidden(self, rows: Sequence[Row], after: bool = False) -> Tensor:
        """[N, D] the last hidden state before every decision of the rows; `after`: having read it."""
        before = 0 if after else 1
        sequences = [unroll(row.turns) for row in rows]
        ids = [ids for ids, _ in sequences]
        if self.lines:
            line = Line(ids, [len(trace(row.turns[0].reply).prompt) for row in rows], self.device)
            inputs = line.inputs()
            at = [line.place(row, p - before) for row, (_, sampled) in enumerate(sequences) for p in sampled]
        else:  # padded on the right, which causal attention never looks at
            width = max(map(len, ids))
            padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids], device=self.device)
            inputs = {"input_ids": padded, "use_cache": False}
            at = [row * width + p - before for row, (_, sampled) in enumerate(sequences) for p in sampled]
        with self.mode(training=torch.is_grad_enabled()):
            out = self.head.trunk(**self.model_inputs(inputs, rows)).last_hidden_state
        if self.shards and torch.is_grad_enabled():
            # All ranks sum the gradients of the same parameters: one whose rows use fewer would keep them waiting.
            out = out + 0.0 * sum(p.sum() for p in self.beside() if p.requires_grad)
        return out.flatten(0, 1)[torch.tensor(at, device=self.device)]

    def model_inputs(self, inputs: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
        """What the model's trunk is called with, of the rows' tokens, on a line or padded."""
        return inputs

    def beside(self) -> Iterable[nn.Parameter]:
        """Parameters that some rows use and others do not."""
        return ()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @contextmanager
    def mode(self, training: bool = False) -> Iterator[None]:
        """How the model is run: checkpointed only in training, under bfloat16 or not, its adapter on or off."""
        with self.lock, ExitStack() as stack:
            training = training and self.body.is_activation_checkpointing
            if self.model.training != training:
                self.model.train(training)
            if self.bf16:
                stack.enter_context(torch.autocast(self.device.type, torch.bfloat16))
            if not self.adapter:
                stack.enter_context(self.model.disable_adapter())  # type: ignore[operator]
            yield

    def gather_parameters(self) -> AbstractContextManager[None]:
        """While a model that lies on several ranks is whole on each of them, and they need not keep step."""
        return self.shards[0].gather_parameters() if self.shards else nullcontext()

    # ---- what training changes, and what others load

    def frozen_copy(self) -> TextPolicy:
        """The policy as it is now, for a reference. Under LoRA: the same model with its adapter switched off."""
        if hasattr(self.model, "disable_adapter"):
            twin = copy.copy(self)
            twin.adapter = False
            return twin
        if self.shards:
            return self.with_model(whole_copy(self))
        return self.with_model(copy.deepcopy(self.model).requires_grad_(False))

    def with_model(self, model: Any) -> TextPolicy:
        """The same around another model."""
        return type(self)(model, self.tokenizer, self.sampling, bf16=self.bf16, plain=self.plain)

    @property
    def trunk(self) -> Any:
        """What makes the hidden states."""
        return self.head.trunk

    @property
    def width(self) -> int:
        """D, of a hidden state."""
        return self.body.config.get_text_config().hidden_size

    def around(self, model: Any) -> TextPolicy:
        """The hidden states of another model of the same shape, whole on this rank: for heads that do not speak."""
        twin = copy.copy(self)
        twin.shards, twin.model = [], model
        twin.body = model.get_base_model() if hasattr(model, "get_base_model") else model
        twin.head = copy.copy(self.head)
        twin.head.trunk = twin.body.base_model
        return twin

    def record(self, reply: Reply) -> dict[str, Any]:
        tokens = trace(reply)
        entropy = [] if tokens.entropy is None else [round(h, 4) for h in tokens.entropy.tolist()]
        opened = opened_thinking(reply)
        return ({"opened": opened} if opened else {}) | {
            "prompt_ids": list(tokens.prompt),
            "ids": list(tokens.reply),
            "pieces": self.chat.pieces(tokens.reply),
            "entropy": entropy,
        }

    def state_dict(self) -> dict[str, Any]:
        """Parameters that are trained: all of them, or the adapter's."""
        return trained_parameters(self.model)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError when the names or shapes are not those of this model."""
        restore(self.state_dict(), state)

    def save(self, path: Path) -> None:
        """A Hugging Face checkpoint in the dtype that it came in; a LoRA adapter is merged, and kept in `adapter/` too.

        Of a model that lies on several ranks, all of them call this, and the primary one writes.
        """
        tensors = dict(checkpoint_tensors(self)) if self.shards else None
        if not is_primary():
            return
        model = self.body
        if hasattr(self.model, "merge_and_unload") and not self.shards:
            self.model.save_pretrained(path / "adapter", save_embedding_layers=False)  # type: ignore[operator]
            model = copy.deepcopy(self.model).merge_and_unload()  # type: ignore[operator]
        write_checkpoint(model, path, tensors)
        self.tokenizer.save_pretrained(path)


def checkpoint_tensors(policy: TextPolicy) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the Hugging Face checkpoint, one after another: whole, on the CPU, LoRA adapters merged.

    All ranks take part in each; it is a copy, and tied tensors come once.
    """
    seen: set[int] = set()
    merged = {id(m.base_layer.weight): m for m in policy.model.modules() if hasattr(m, "get_delta_weight")}
    names = {id(p): name for name, p in policy.body.named_parameters()}
    for p in policy.body.parameters():
        name = names[id(p)]
        if id(p) in seen or ".lora_" in name:
            continue
        seen.add(id(p))
        value = weight(merged[id(p)]) if id(p) in merged else p.detach()
        value = value.full_tensor() if isinstance(value, DTensor) else value
        yield name.replace(".base_layer.", "."), value.to("cpu", copy=True)


def whole_copy(policy: TextPolicy) -> Any:
    """The model of a policy that lies on several ranks, whole on each of them and not trained; all ranks take part."""
    model = type(policy.body)(copy.deepcopy(policy.body.config)).requires_grad_(False).eval()
    model.generation_config = copy.deepcopy(policy.body.generation_config)
    own = dict(model.named_parameters())
    for name, value in checkpoint_tensors(policy):
        own[name].data.copy_(value)
    return model


def length_of(row: Row) -> int:
    """Tokens of a row."""
    last = trace(row.turns[-1].reply)
    return len(last.prompt) + len(last.reply)


def without_dropout(model: nn.Module) -> None:
    """Sampler and trainer must see the same function: no dropout in a policy's forward pass."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
