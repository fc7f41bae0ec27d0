"""Scalar heads on a language model: a critic for every decision, and a reward model for a whole reply."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.advantage import decision_rewards
from posttrain.core import Group, Invalid, Message, Metrics, Rollout, Row, Score, Task
from posttrain.data import Continuation
from posttrain.descent import retry_out_of_memory
from posttrain.policy.checkpoint_folder import write_checkpoint
from posttrain.policy.decision import DecisionPolicy
from posttrain.policy.pretrained import (
    checkpoint_path,
    choose_device,
    load_pretrained,
    load_tokenizer,
    place,
    set_threads,
)
from posttrain.policy.text import TextPolicy
from posttrain.policy.trained import restore, trained_parameters
from posttrain.row import micro_batches, rows_of


class Critic:
    """The value before each decision: a copy of the policy's body with a linear head, trained beside it.

    Of a policy with LoRA it shares the frozen weights, and has an adapter of its own. Of a policy that decides and does
    not speak, the body is its network.

    micro_tokens  in one pass, which is halved where memory runs out
    """

    def __init__(
        self, policy: TextPolicy | DecisionPolicy, lr: float = 1e-5, clip: float | None = 0.2, micro_tokens: int = 16384
    ):
        shared = {id(p): p for p in policy.model.parameters() if not p.requires_grad}
        self.policy = policy.around(copy.deepcopy(policy.model, shared))
        self.out = nn.Linear(policy.width, 1, device=policy.device)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.clip, self.micro_tokens = clip, micro_tokens
        trunk = [p for p in self.policy.trunk.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW([*trunk, *self.out.parameters()], lr=lr, weight_decay=0.0)

    def values(self, rows: Sequence[Row]) -> Tensor:
        """[N] differentiable, before each decision of the rows."""
        return self.out(self.policy.hidden(rows).float())[:, 0]

    def detached_values(self, rows: Sequence[Row]) -> list[Tensor]:
        """[B][N] the same without gradients, on the CPU, in micro-batches."""

        @torch.no_grad()
        def attempt(tokens: int) -> list[Tensor]:
            out: list[Tensor] = [torch.zeros(0)] * len(rows)
            for piece in micro_batches(self.policy, rows, tokens):
                found = self.values([rows[i] for i in piece]).cpu()
                for i, part in zip(piece, found.split([len(rows[i].advantage) for i in piece]), strict=True):
                    out[i] = part
            return out

        found, self.micro_tokens = retry_out_of_memory(self.policy, rows, self.micro_tokens, attempt)
        return found

    def learn(self, rows: Sequence[Row], returns: Sequence[Tensor], before: Sequence[Tensor]) -> Metrics:
        """One step on half the squared error, values clipped around what they were (PPO, as released by OpenAI)."""
        cost, self.micro_tokens = retry_out_of_memory(
            self.policy, rows, self.micro_tokens, lambda tokens: self.gradient(rows, returns, before, tokens)
        )
        nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], 1.0)
        self.optimizer.step()
        return {"critic_loss": cost}

    def gradient(
        self, rows: Sequence[Row], returns: Sequence[Tensor], before: Sequence[Tensor], micro_tokens: int
    ) -> float:
        total = sum(len(target) for target in returns)
        self.optimizer.zero_grad()
        whole = 0.0
        for piece in micro_batches(self.policy, rows, micro_tokens):
            now = self.values([rows[i] for i in piece])
            target = torch.cat([returns[i] for i in piece]).to(now.device)
            error = (now - target).square()
            if self.clip is not None:
                old = torch.cat([before[i] for i in piece]).to(now.device)
                error = torch.maximum(error, (old + (now - old).clamp(-self.clip, self.clip) - target).square())
            cost = 0.5 * error.sum() / total
            cost.backward()
            whole += cost.item()
        return whole

    def state_dict(self) -> dict[str, Any]:
        return {
            "body": trained_parameters(self.policy.trunk),
            "out": self.out.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        restore(trained_parameters(self.policy.trunk), state["body"])
        self.out.load_state_dict(state["out"])
        self.optimizer.load_state_dict(state["optimizer"])


def advantage_estimates(rewards: Tensor, values: Tensor, gamma: float, lam: float, bootstrap: float = 0.0) -> Tensor:
    """[N] generalised advantage estimates (GAE, arXiv:1506.02438, Eq. 16) of one row.

    delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1},   V_N = `bootstrap`.
    """
    out, following, running = torch.empty_like(rewards), bootstrap, 0.0
    for t in range(len(rewards) - 1, -1, -1):
        delta = rewards[t].item() + gamma * following - values[t].item()
        running = delta + gamma * lam * running
        out[t], following = running, values[t].item()
    return out


class Gae:
    """An advantage that asks a critic, and teaches it after the policy's update (`learn`).

    A rollout that was cut off is a finished episode here, as the reward has judged it as it stands.

    updates  optimizer steps of the critic after a step of the policy, each on its share of the rows
    warmup   steps in which only the critic learns: the policy takes no step, whatever the loss
    by_turn  every turn is an episode of its own, so that no turn is credited with what a later one earns
    """

    def __init__(
        self,
        critic: Critic,
        gamma: float = 1.0,
        lam: float = 0.95,
        updates: int = 1,
        warmup: int = 0,
        by_turn: bool = False,
    ):
        self.critic, self.gamma, self.lam = critic, gamma, lam
        self.updates, self.warmup, self.by_turn = updates, warmup, by_turn
        self.steps = 0
        self.seen: list[tuple[list[Row], Tensor, Tensor]] = []  # rows, returns [N], values [N] of each rollout

    def __call__(self, group: Group, scores: list[Score]) -> list[Tensor]:
        packed = [rows_of(self.critic.policy, rollout, rollout.turns) for rollout in group]
        left = iter(self.critic.detached_values([row for rows in packed for row in rows]))
        values = [torch.cat([torch.zeros(0), *[next(left) for _ in rows]]) for rows in packed]
        out = []
        for rollout, score, rows, value in zip(group, scores, packed, values, strict=True):
            sizes = [len(turn.reply.logp) for turn in rollout.turns] if self.by_turn else [rollout.decisions]
            pieces = zip(decision_rewards(rollout, score).split(sizes), value.split(sizes), strict=True)
            advantage = torch.cat(
                [torch.zeros(0), *[advantage_estimates(r, v, self.gamma, self.lam) for r, v in pieces]]
            )
            self.seen.append((rows, advantage + value, value))
            out.append(advantage)
        return out

    @property
    def warming_up(self) -> bool:
        return self.steps < self.warmup

    def learn(self) -> Metrics:
        rows = [row for part, _, _ in self.seen for row in part]
        sizes = [len(row.advantage) for row in rows]
        returns = torch.cat([returns for _, returns, _ in self.seen])
        before = torch.cat([values for _, _, values in self.seen])
        targets, values = returns.split(sizes), before.split(sizes)
        order = torch.arange(len(rows))
        if self.updates > 1:
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.steps))
        self.seen, self.steps = [], self.steps + 1
        losses = []
        for share in order.tensor_split(min(self.updates, len(rows))):
            some = share.tolist()
            chosen = [rows[i] for i in some], [targets[i] for i in some], [values[i] for i in some]
            losses.append(self.critic.learn(*chosen)["critic_loss"])
        unexplained = (returns - before).var() / returns.var().clamp(min=1e-8)
        return {"critic_loss": statistics.fmean(losses), "value_explained": 1 - unexplained.item()}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "critic": self.critic.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]
        self.critic.load_state_dict(state["critic"])


def conversation(rollout: Rollout) -> tuple[tuple[Message, ...], str]:
    """What a reward model judges: the messages of the last turn, or of the task, and the last reply."""
    return (rollout.turns[-1].ask.messages if rollout.turns else rollout.task.prompt), rollout.text


class RewardModel:
    """A sequence classifier with one output, in the Hugging Face format; its score of a reply is a reward.

    `posttrain.reward_model(path)` loads one, or puts a fresh head on a causal checkpoint.
    """

    def __init__(self, model: Any, tokenizer: Any, template: str | None = None):
        from posttrain.chat import Chat

        self.model, self.tokenizer, self.chat = model, tokenizer, Chat(tokenizer, template)
        model.config.pad_token_id = tokenizer.pad_token_id
        self.version = 0

    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def ids(self, prompt: Sequence[Message], said: Continuation) -> list[int]:
        """The tokens of a conversation that ends in a reply, or in the last of several."""
        before, reply = ((), said) if isinstance(said, str) else (said[:-1], said[-1])
        tokens = self.chat.demonstration_tokens((*prompt, *before), reply)
        return [*tokens.prompt, *tokens.reply]

    def scores(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """[B] float32, differentiable; read at the last token of each sequence."""
        device = next(self.model.parameters()).device
        ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.long)
        for i, sequence in enumerate(sequences):
            ids[i, : len(sequence)] = torch.tensor(sequence)
        hidden = self.model.base_model(input_ids=ids.to(device), use_cache=False).last_hidden_state
        last = torch.tensor([len(sequence) - 1 for sequence in sequences], device=device)
        return self.model.score(hidden[torch.arange(len(sequences), device=device), last]).float()[:, 0]

    @property
    def context(self) -> int:
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 2**31)

    def __call__(self, group: Group) -> list[Score | Invalid]:
        """Judge each rollout's last reply in its conversation."""
        return [self.judge(*conversation(rollout)) for rollout in group]

    @torch.no_grad()
    def judge(self, messages: Sequence[Message], reply: str) -> Score | Invalid:
        """The score of a reply in its conversation; one too long for the model cannot be graded."""
        ids = self.ids(messages, reply)
        if len(ids) > self.context:
            return Invalid(f"{len(ids)} tokens are more than the reward model's {self.context} positions")
        return Score(self.scores([ids]).item())

    def check(self, tasks: Sequence[Task]) -> None:
        """Any task can be judged; a conversation too long for the model is `Invalid`."""

    def record(self, reply: Any) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {name: p.detach() for name, p in self.model.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                if name not in state or state[name].shape != p.shape:
                    raise ValueError(f"the checkpoint is of another model: it has no {name} of shape {tuple(p.shape)}")
                p.copy_(state[name])

    def save(self, path: Path) -> None:
        write_checkpoint(self.model, path)
        self.tokenizer.save_pretrained(path)


def reward_model(
    model: str,
    *,
    template: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    weights: bool = True,
) -> RewardModel:
    """A reward model from a checkpoint: a trained one, or a causal model that gets a fresh head.

    `weights=False` reads only the configuration and the tokenizer, as for `text`.
    """
    from transformers import AutoModelForSequenceClassification

    path = checkpoint_path(model)
    network = load_pretrained(
        AutoModelForSequenceClassification, path, weights, fresh=("score", "classifier", "pooler"), num_labels=1
    )
    set_threads(network, threads)
    place(network, choose_device(device))
    return RewardModel(network.eval(), load_tokenizer(path), template)
