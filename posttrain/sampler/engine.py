"""A server that samples in the policy's place and takes its weights: tokens in, tokens and log-probabilities out.

The prompt is rendered here, by the policy's own chat, so that later turns continue the sampled tokens themselves; the
server never sees a template. It is asked for the distribution as it is at the ask's temperature, not truncated.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from posttrain.core import Ask, Reply
from posttrain.episode import ordered_replies
from posttrain.policy.fast.generate import Sample
from posttrain.policy.text import TextPolicy
from posttrain.sampler.server import Server, ServerError, side_by_side, stop_of
from posttrain.sampler.weights import SyncError, Weights, check_sums, checked_names

ADAPTER = "policy-adapter"  # what the server calls the LoRA adapter
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ServedEngine:
    """`posttrain serve`, or vLLM with posttrain's worker extension, as an `Engine` for a policy.

    folder    where weights are handed over: memory (/dev/shm) or a disk that learner and server share
    dtype     in which the server keeps them
    adapter   only a LoRA adapter is sent, to a vLLM that allows it; else it is merged into the whole weights
    sleeps    the server shares the learner's GPU, and gives its memory back while the learner learns (vLLM)
    """

    def __init__(
        self,
        server: Server,
        policy: TextPolicy,
        folder: Path | None = None,
        dtype: str = "float32",
        adapter: bool = False,
        sleeps: bool = False,
    ):
        self.adapter, self.merged = adapter, not adapter
        self.sleeps, self.asleep = sleeps, False
        self.server, self.policy, self.dtype = server, policy, DTYPES[dtype]
        self.folder = folder or Path(tempfile.mkdtemp(prefix="posttrain-weights-", dir=shared_memory()))
        if folder is None:
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.at_once = server.at_once
        self.version = -1
        self.ends = sorted(policy.ends())

    # ---- sampling

    def sample(self, asks: Sequence[Ask]) -> list[Reply]:
        return ordered_replies(self.stream(asks))

    def stream(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        return side_by_side(self.answer, asks, self.at_once)

    def answer(self, ask: Ask) -> Reply:
        """Raises ServerError when the server does not answer, or not with the tokens and their log-probabilities."""
        version = self.version
        prompt, before = self.policy.chat.prompt(ask.messages)
        wanted = self.policy.sample_request(ask, prompt)
        if wanted.max_new == 0:
            got = Sample((), torch.zeros(0), None, "length")
            return replace(self.policy.reply(ask, before, wanted, got), version=version)
        body = {
            "model": self.model,
            "prompt": list(prompt),
            "max_tokens": wanted.max_new,
            "temperature": wanted.temperature,
            "seed": wanted.seed,
            "logprobs": 0,
            "return_token_ids": True,
            "top_p": 1.0,
            "top_k": -1,
            "stop_token_ids": self.ends,
            **({"stop": list(wanted.stop)} if wanted.stop else {}),
        }
        choice = self.choice(body)
        ids, logp = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        if ids is None or logp is None or len(ids) != len(logp):
            raise ServerError(
                f"{self.server.url} gives no token ids with their log-probabilities (return_token_ids, logprobs): it "
                "can play as a judge or a teacher (pt.server), not sample in the policy's place"
            )
        got = Sample(tuple(ids), torch.tensor(logp, dtype=torch.float32), None, stop_of(choice))
        return replace(self.policy.reply(ask, before, wanted, got), version=version)

    def choice(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        answer = self.server.post(f"{self.server.url}/completions", body)
        try:
            [choice] = answer["choices"]
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(f"{self.server.url} gave no completion: {str(answer)[:300]}") from error
        if choice.get("finish_reason") == "abort":
            raise ServerError(f"{self.server.url} broke a reply off")
        return choice

    @property
    def model(self) -> str:
        return ADAPTER if self.adapter and self.version >= 0 else self.server.model

    def score(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """[n - 1] each: the server's log-probabilities of a sequence's tokens after its first, at temperature 1."""
        out = []
        for ids in sequences:
            body = {"model": self.model, "prompt": list(ids), "max_tokens": 1, "prompt_logprobs": 0}
            found = self.choice(body).get("prompt_logprobs")
            if not found:
                raise ServerError(f"{self.server.url} does not score prompts (prompt_logprobs): it cannot be checked")
            out.append(torch.tensor([at[str(i)]["logprob"] for i, at in zip(ids[1:], found[1:], strict=True)]))
        return out

    # ---- weights

    def load(self, weights: Weights) -> None:
        """Hand the weights over; requests that are under way end with the old ones first.

        Raises SyncError when the server does not show that it has taken them.
        """
        place = self.folder / f"weights-{weights.version}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        if self.asleep:
            self.server.tell(f"{self.server.root}/wake_up", {})
            self.asleep = False
        self.server.tell(f"{self.server.root}/pause?mode=wait", {})
        try:
            if self.adapter:
                self.load_adapter(weights, place)
            else:
                self.load_whole(weights, place)
        finally:
            self.server.tell(f"{self.server.root}/resume", {})
            # vLLM reads an adapter when it is first asked for, and perhaps again later
            unneeded = [old for old in self.folder.glob("weights-*") if old != place] if self.adapter else [place]
            for old in unneeded:
                shutil.rmtree(old, ignore_errors=True)
        self.version = weights.version

    def rest(self) -> None:
        """Nothing is sampled before weights are loaded again: let go of the memory, and at level 2 of the weights."""
        if self.sleeps:
            self.server.tell(f"{self.server.root}/sleep?level={1 if self.adapter else 2}", {})
            self.asleep, self.version = True, -1

    def load_adapter(self, weights: Weights, place: Path) -> None:
        """A LoRA adapter in PEFT's format. vLLM tells nothing of what it took: the probe has to."""
        from peft import get_peft_model_state_dict

        self.policy.model.peft_config["default"].save_pretrained(str(place))
        tensors = get_peft_model_state_dict(self.policy.model, state_dict=dict(weights.tensors))
        if len(tensors) != len(weights.tensors):
            raise SyncError(
                f"of {len(weights.tensors)} tensors {len(tensors)} are an adapter's: the whole weights were sent"
            )
        save_file({name: value.contiguous() for name, value in tensors.items()}, place / "adapter_model.safetensors")
        body = {"lora_name": ADAPTER, "lora_path": str(place), "load_inplace": True}
        self.server.tell(f"{self.server.url}/load_lora_adapter", body)

    def load_whole(self, weights: Weights, place: Path) -> None:
        """All tensors; the server shows the version, and the sums of tensors as it read them and as it holds them."""
        names = checked_names(weights.tensors)
        save_file({name: value.contiguous() for name, value in weights.tensors.items()}, place / "model.safetensors")
        read = self.call("posttrain_load", {"folder": str(place), "version": weights.version, "names": names})
        held = self.call("posttrain_held", {"names": names})
        for worker in (*read, *held):
            if worker["version"] != weights.version:
                raise SyncError(f"{self.server.url} has weights of version {worker['version']}, not {weights.version}")
        sums = weights.sums(self.dtype)
        for worker in read:
            check_sums(sums, worker["sums"], f"{self.server.url} (as read)")
        found = whole_tensor_sums(
            [worker["sums"] for worker in held], {name: t.numel() for name, t in weights.tensors.items()}
        )
        check_sums({name: sums[name] for name in found}, found, f"{self.server.url} (as held)")

    def call(self, method: str, arguments: Mapping[str, Any]) -> list[Any]:
        """A method of the server's workers: one result of each."""
        url = f"{self.server.root}/collective_rpc"
        try:
            body = {"method": method, "kwargs": arguments, "timeout": self.server.deadline_s}
            return self.server.post(url, body)["results"]
        except ServerError as error:
            raise SyncError(
                f"{error}. To be trained against, vLLM is started with posttrain's extension: see docs/scale.md, or "
                "let posttrain start it (`sampler=vllm`)"
            ) from error


def whole_tensor_sums(
    parts: Sequence[Mapping[str, Sequence[float]]], sizes: Mapping[str, int]
) -> dict[str, tuple[float, float]]:
    """Sums of whole tensors from those of several workers, each of which has all of a tensor or a part of it."""
    out: dict[str, tuple[float, float]] = {}
    for name in parts[0] if parts else ():
        found = [part[name] for part in parts if name in part]
        if all(size == sizes[name] for _, _, size in found):
            out[name] = (found[0][0], found[0][1])
        elif sum(size for _, _, size in found) == sizes[name]:
            out[name] = (sum(total for total, _, _ in found), sum(whole for _, whole, _ in found))
    return out  # one padded to a multiple of the workers is left out: the sums as read, and the probe, speak for it


def shared_memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
