"""The Q model: scores of tokens, learnt from pairs, and paid as rewards."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import posttrain as pt
from posttrain.chat import trace
from posttrain.policy.trained import restore, trained_parameters
from posttrain.preference import PairScores, check_lengths, concatenate_detached, row
from posttrain.row import Packer, split_to_size

Head = Literal["vocabulary", "scalar"]
WEIGHTS, ABOUT = "q_head.safetensors", "q_model.json"


class QModel:
    """Z of every token, on a copy of a policy's trunk with a fresh head.

    head  vocabulary  the paper's definition: a score of every token at the state before it
          scalar      as released: one score, of the state that has read the token
    """

    def __init__(self, policy: pt.TextPolicy, head: Head = "vocabulary", *, copied: bool = True):
        """`copied=False` takes the policy's own model, which nobody else may then train."""
        if policy.body is not policy.model:
            raise ValueError("a Q model copies the policy's whole body, so it does not go with LoRA: leave out `lora`")
        model = copy.deepcopy(policy.model) if copied else policy.model
        self.policy = policy.around(model.requires_grad_(True))
        self.head: Head = head
        config = policy.body.config
        self.out = nn.Linear(config.hidden_size, config.vocab_size if head == "vocabulary" else 1, bias=False)
        nn.init.normal_(self.out.weight, std=config.hidden_size**-0.5)
        self.out.to(policy.device)
        self.version = 0

    def parameters(self) -> list[nn.Parameter]:
        return [*self.policy.head.trunk.parameters(), *self.out.parameters()]

    def values(self, rows: Sequence[pt.Row]) -> Tensor:
        """[N] differentiable, Z of every decision of the rows."""
        hidden = self.policy.hidden(rows, after=self.head == "scalar").float()
        if self.head == "scalar":
            return self.out(hidden)[:, 0]
        chosen = torch.cat([torch.tensor(trace(turn.reply).reply) for one in rows for turn in one.turns])
        return (hidden * self.out.weight[chosen.to(hidden.device)]).sum(-1)

    def token_values(self, group: pt.Group) -> list[Tensor]:
        """[G][N] of every rollout's decisions, on the CPU."""
        return by_rollout(self.policy, group, self.row_values)

    @torch.no_grad()
    def row_values(self, rows: Sequence[pt.Row]) -> list[Tensor]:
        """[B][N] of every row's decisions, on the CPU."""
        return list(self.values(rows).cpu().split([len(one.advantage) for one in rows])) if rows else []

    def check(self, tasks: Sequence[pt.Task]) -> None:
        """The tokens of any task can be scored."""

    def state_dict(self) -> dict[str, Any]:
        return {**trained_parameters(self.policy.head.trunk), "q_head": self.out.weight.detach()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError when the names or shapes are not those of this model."""
        restore(self.state_dict(), state)

    def save(self, folder: Path) -> None:
        """The body as a Hugging Face checkpoint with its tokenizer, and beside it the head and what it is."""
        folder.mkdir(parents=True, exist_ok=True)
        self.policy.save(folder)
        save_file({"weight": self.out.weight.detach().cpu().contiguous()}, folder / WEIGHTS)
        pt.write_json(folder / ABOUT, {"head": self.head, "bf16": self.policy.bf16})

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None) -> QModel:
        """A saved Q model. Raises ValueError when the folder holds none, or a head of another shape."""
        path = Path(folder)
        if not (path / ABOUT).is_file():
            raise ValueError(f"`q_model={str(folder)!r}`: it holds no {ABOUT}, so no Q model was saved there")
        about = json.loads((path / ABOUT).read_text())
        policy = pt.text(str(path), max_new=1, bf16=about["bf16"], device=device)
        with torch.random.fork_rng(devices=[]):  # a fresh head is drawn, and is replaced at once
            model = cls(policy, about["head"], copied=False)
        weight = load_file(path / WEIGHTS)["weight"]
        if weight.shape != model.out.weight.shape:
            raise ValueError(
                f"`q_model={str(folder)!r}`: its head has the shape {tuple(weight.shape)}, and its body needs "
                f"{tuple(model.out.weight.shape)}"
            )
        with torch.no_grad():
            model.out.weight.copy_(weight)
        return model


def by_rollout(packer: Packer, group: pt.Group, values: Callable[[Sequence[pt.Row]], Sequence[Tensor]]) -> list[Tensor]:
    """[G][N] the values of every rollout's decisions, from those of the group's rows together."""
    packed = [pt.rows_of(packer, rollout, rollout.turns) for rollout in group]
    found = iter(values([one for part in packed for one in part]))
    return [torch.cat([torch.zeros(0), *[next(found) for _ in part]]) for part in packed]


def preference(beta: float = 0.2, gamma: float = 2.0) -> pt.PairLoss:
    """-log sigmoid(beta (mean Z(chosen) - mean Z(rejected)) - gamma), the pair's means as its scores."""
    return lambda pairs: -F.logsigmoid(beta * (pairs.chosen - pairs.rejected) - gamma)


def pair_scores(model: QModel, pairs: Sequence[Sequence[pt.Row]]) -> PairScores:
    """The mean Z of the chosen and of the rejected reply of every pair, given as two rows each."""
    rows = [one for both in pairs for one in both]
    lengths = torch.tensor([len(one.advantage) for one in rows])
    mean = torch.stack([part.mean() for part in model.values(rows).split(lengths.tolist())])
    return PairScores(mean[::2], mean[1::2], lengths[::2], lengths[1::2])


def pair_rows(model: QModel, pairs: Sequence[pt.Pair]) -> list[list[pt.Row]]:
    return [[row(model.policy, pair, reply) for reply in (pair.chosen, pair.rejected)] for pair in pairs]


def pair_batches(model: QModel, both: Sequence[Sequence[pt.Row]], micro_tokens: int) -> list[list[int]]:
    """The pairs by number, in batches of at most so many tokens."""
    return split_to_size(
        range(len(both)), lambda piece: model.policy.size([one for i in piece for one in both[i]]), micro_tokens
    )


def q_step(model: QModel, pairs: Sequence[pt.Pair], loss: pt.PairLoss, micro_tokens: int = 16384) -> pt.Metrics:
    """Add the gradient of one step over the pairs. Pair accuracy is of the same means as the loss."""
    both = pair_rows(model, pairs)
    pieces = pair_batches(model, both, micro_tokens)
    found = pt.accumulate_pairs(pieces, lambda piece: pair_scores(model, [both[i] for i in piece]), loss, False)
    return {"loss": loss(found).mean().item(), "accuracy": accuracy(found)}


def accuracy(found: PairScores) -> float:
    return (found.chosen > found.rejected).float().mean().item()


@torch.no_grad()
def pair_accuracy(model: QModel, pairs: Sequence[pt.Pair], micro_tokens: int = 16384) -> float:
    """The share of pairs whose chosen reply has the larger mean."""
    both = pair_rows(model, pairs)
    pieces = pair_batches(model, both, micro_tokens)
    return accuracy(concatenate_detached([pair_scores(model, [both[i] for i in piece]) for piece in pieces]))


def learn_from_pairs(
    model: QModel, pairs: Sequence[pt.Pair], *, steps: int, per_step: int, lr: float, seed: int, loss: pt.PairLoss
) -> None:
    """Train a Q model in memory."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    source = pt.ShuffledSource(pairs, seed)
    for _ in range(steps):
        optimizer.zero_grad()
        q_step(model, source.take(per_step), loss)
        pt.descend(optimizer, 1.0)


def train_q_model(
    model: QModel,
    pairs: Sequence[pt.Pair],
    run: pt.Run,
    *,
    held_out: Mapping[str, Sequence[pt.Pair]] | None = None,
    loss: pt.PairLoss | None = None,
) -> pt.Session:
    """Train a Q model on pairs, `run.tasks` in a step; OUT/model is what `QModel.load` reads.

    held_out  sets of pairs by name, whose accuracy is measured as often as `run.eval_every` says
    loss      the published one if not given
    Raises ValueError, naming the pair, when a reply does not fit the model's context.
    """
    loss = loss or preference()
    body = model.policy
    check_lengths(
        lambda pair: max(body.size([row(body, pair, text)]) for text in (pair.chosen, pair.rejected)),
        body.context,
        pairs,
        held_out or {},
    )
    learner: Any = body if run.dry_run else model  # a plan is of the body

    def measure(some: Sequence[pt.Pair]) -> pt.Metrics:
        return {"accuracy": pair_accuracy(model, some, run.micro_tokens)}

    options: dict[str, Any] = {"held_out": held_out or {}, "measure": measure}
    settings = {"loss": loss, "head": model.head}
    with pt.Session(run, learner, pairs, kind="reward-model", settings=settings, **options) as session:
        for _ in session:
            session.optimizer.zero_grad()
            found = q_step(model, session.source.take(run.tasks), loss, run.micro_tokens)
            found |= pt.descend(session.optimizer, run.max_norm)
            model.version += 1
            session.log(found | {"pairs": float(run.tasks)})
    return session


def by_token(values: Callable[[pt.Group], list[Tensor]], *, end_is_mean: bool = True, whole: bool = False) -> pt.Reward:
    """Z of every decision as its reward; the reply's mean is the score.

    `end_is_mean`: the token that ends a reply, which is no step of the solution, gets the mean (as released); a reply
    that was cut off has none. `whole`: every token gets the mean, the control that takes the credit assignment out and
    leaves the model.
    """

    def reward(group: pt.Group) -> list[pt.Score]:
        out = []
        for rollout, found in zip(group, values(group), strict=True):
            mean = found.mean() if len(found) else torch.tensor(0.0)
            paid = mean.expand_as(found).clone() if whole else found.clone()
            if end_is_mean and len(paid) and rollout.turns[-1].reply.stop == "end":
                paid[-1] = mean
            out.append(pt.Score(float(mean), decisions=paid))
        return out

    return reward
