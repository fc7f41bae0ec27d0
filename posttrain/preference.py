"""Learning from pairs: DPO and its family, and reward models. Pairs are not decisions, so this is a loop of its own.

Every loss takes a `PairScores` batch and returns one cost per pair, [B]. Log-probabilities are sums over a reply's
tokens, its end token included, in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain import ranks
from posttrain.core import Metrics, Row
from posttrain.data import Continuation, Pair
from posttrain.descent import descend
from posttrain.episode import assistant
from posttrain.policy.text import TextPolicy
from posttrain.row import reply_rows, row_logps, split_to_size
from posttrain.run.session import Session
from posttrain.run.settings import Run


@dataclass(frozen=True, slots=True, eq=False)
class PairScores:
    """What policy and reference make of B pairs."""

    chosen: Tensor  # [B] log pi(chosen)
    rejected: Tensor  # [B]
    chosen_length: Tensor  # [B] tokens
    rejected_length: Tensor  # [B]
    chosen_ref: Tensor | None = None  # [B] log ref(chosen)
    rejected_ref: Tensor | None = None  # [B]
    kl: Tensor | None = None  # [] estimate of KL(pi || ref) on replies to other prompts, for KTO

    def margin(self) -> Tensor:
        """[B] log-ratio of the chosen reply to the reference, less that of the rejected one."""
        chosen, rejected = self.ratios()
        return chosen - rejected

    def ratios(self) -> tuple[Tensor, Tensor]:
        if self.chosen_ref is None or self.rejected_ref is None:
            raise ValueError("this preference loss compares with a reference policy, and none was given")
        return self.chosen - self.chosen_ref, self.rejected - self.rejected_ref


PairLoss: TypeAlias = Callable[[PairScores], Tensor]
Made = TypeVar("Made", bound=Callable)


def mark_coupled(loss: Made) -> Made:
    """Mark a loss in which a pair's cost depends on the other pairs of the step."""
    loss.together = True  # type: ignore[attr-defined]
    return loss


def is_coupled(loss: Callable) -> bool:
    return getattr(loss, "together", False)


def dpo(beta: float = 0.1, smoothing: float = 0.0) -> PairLoss:
    """Direct Preference Optimization (arXiv:2305.18290, Eq. 7): -log sigmoid(beta margin).

    `smoothing` is the chance that a label is flipped: conservative DPO (Mitchell 2023, "A note on DPO with noisy
    preferences", Eq. 3).
    """

    def loss(pairs: PairScores) -> Tensor:
        z = beta * pairs.margin()
        return -(1 - smoothing) * F.logsigmoid(z) - smoothing * F.logsigmoid(-z)

    return loss


def ipo(beta: float = 0.1) -> PairLoss:
    """Identity Preference Optimization (arXiv:2310.12036, Eq. 17): (margin - 1/(2 beta))^2.

    The log-ratios are averaged over a reply's tokens, which the paper does not say but its authors confirmed to TRL.
    """

    def loss(pairs: PairScores) -> Tensor:
        chosen, rejected = pairs.ratios()
        return (chosen / pairs.chosen_length - rejected / pairs.rejected_length - 1 / (2 * beta)).square()

    return loss


def simpo(beta: float = 2.0, gamma: float = 1.0) -> PairLoss:
    """SimPO (arXiv:2405.14734, Eq. 6): length-normalised log-probabilities, a target margin, no reference."""

    def loss(pairs: PairScores) -> Tensor:
        chosen, rejected = pairs.chosen / pairs.chosen_length, pairs.rejected / pairs.rejected_length
        return -F.logsigmoid(beta * (chosen - rejected) - gamma)

    return loss


@dataclass(frozen=True)
class Kto:
    """Kahneman-Tversky Optimization (arXiv:2402.01306, Eq. 8): each reply by itself, against z0 = KL(pi || ref).

    A pair counts as one desirable and one undesirable example; z0 is estimated over the step and has no gradient.
    """

    beta: float = 0.1
    desirable: float = 1.0
    undesirable: float = 1.0

    def __call__(self, pairs: PairScores) -> Tensor:
        chosen, rejected = pairs.ratios()
        if pairs.kl is None:
            raise ValueError("kto compares with an estimate of the divergence, and none was given: see `divergence`")
        good = self.desirable * (1 - torch.sigmoid(self.beta * (chosen - pairs.kl)))
        bad = self.undesirable * (1 - torch.sigmoid(self.beta * (pairs.kl - rejected)))
        return (good + bad) / 2


def kto(beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0) -> Kto:
    """The loss `Kto`, by the name of its paper."""
    return Kto(beta, desirable, undesirable)


def orpo(weight: float = 0.1) -> PairLoss:
    """ORPO (arXiv:2403.07691, Eq. 6): likelihood of the chosen reply plus `weight` times the log odds ratio."""

    def loss(pairs: PairScores) -> Tensor:
        chosen, rejected = pairs.chosen / pairs.chosen_length, pairs.rejected / pairs.rejected_length
        odds = (chosen - rejected) - (log1m_exp(chosen) - log1m_exp(rejected))
        return -chosen - weight * F.logsigmoid(odds)

    return loss


def log1m_exp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, without losing digits at either end (Maechler 2012)."""
    x = x.clamp(max=-1e-7)
    return torch.where(x > -0.6931, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


PAIR_LOSSES: dict[str, Callable[[], PairLoss]] = {
    "dpo": dpo,
    "cdpo": lambda: dpo(smoothing=0.1),
    "ipo": ipo,
    "simpo": simpo,
    "kto": kto,
    "orpo": orpo,
}
WITH_REFERENCE = ("dpo", "cdpo", "ipo", "kto")


def row(policy: TextPolicy, pair: Pair, said: Continuation) -> Row:
    """Raises ValueError where the template rewrites the earlier of several replies, so that they are not one row."""
    after = (assistant(said),) if isinstance(said, str) else said
    found = reply_rows(policy, (*pair.prompt, *after), len(pair.prompt))
    if len(found) > 1:
        raise ValueError(
            "the chat template changes an earlier reply once another follows (it drops its thinking, say), so a pair "
            "of conversations of several replies cannot be scored: give another `template`, or pairs that "
            "differ in one reply"
        )
    return found[0]


def sequence_logp(policy: TextPolicy, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """[B] log-probability of each row's reply, and its tokens."""
    lengths = [len(row.advantage) for row in rows]
    logp = policy.density(rows).logp
    return torch.stack([part.sum() for part in logp.split(lengths)]), torch.tensor(lengths, device=logp.device)


def pair_scores(
    policy: TextPolicy, reference: TextPolicy | None, pairs: Sequence[Pair], kl: Tensor | None = None
) -> PairScores:
    """Score pairs under the policy, with gradients, and under the reference, without."""
    rows = [row(policy, pair, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    logp, length = sequence_logp(policy, rows)
    if reference is None:
        return PairScores(logp[::2], logp[1::2], length[::2], length[1::2])
    with torch.no_grad():
        ref, _ = sequence_logp(reference, rows)
    return PairScores(logp[::2], logp[1::2], length[::2], length[1::2], ref[::2], ref[1::2], kl)


def divergence(policy: TextPolicy, reference: TextPolicy | None, pairs: Sequence[Pair], micro_tokens: int) -> Tensor:
    """[] KTO's z0: the mean log-ratio of every prompt with the next pair's chosen reply, at least 0, no gradient.

    Raises ValueError for fewer than two pairs, or without a reference.
    """
    if reference is None or len(pairs) < 2:
        raise ValueError("kto estimates a divergence from mismatched pairs: it needs a reference and `tasks` 2 or more")
    mixed = [row(policy, pair, pairs[i - 1].chosen) for i, pair in enumerate(pairs)]
    fit = [one for one in mixed if policy.size([one]) <= policy.context]
    ratios = [
        (now - ref).sum()
        for now, ref in zip(row_logps(policy, fit, micro_tokens), row_logps(reference, fit, micro_tokens), strict=True)
    ]
    return (
        torch.stack([torch.zeros(()), torch.stack(ratios).mean()]).max().to(policy.device)
        if ratios
        else torch.zeros(())
    )


def prefer(
    policy: TextPolicy,
    pairs: Sequence[Pair],
    loss: PairLoss,
    run: Run,
    *,
    reference: TextPolicy | None = None,
    held_out: Sequence[Pair] | Mapping[str, Sequence[Pair]] = (),
) -> Session:
    """Train a policy on pairs; `run.tasks` is the number of pairs in a step.

    held_out  pairs that are not learned, or several sets by name: loss, accuracy and margin are measured as often as
              `run.eval_every` says
    Raises ValueError, naming the pair, when a reply does not fit the model's context.
    """

    def size(pair: Pair) -> int:
        return max(policy.size([row(policy, pair, text)]) for text in (pair.chosen, pair.rejected))

    check_lengths(size, policy.context, pairs, held_out)

    def scoring(some: Sequence[Pair]) -> tuple[list[list[Pair]], Callable[[list[Pair]], PairScores]]:
        kl = divergence(policy, reference, some, run.micro_tokens) if isinstance(loss, Kto) else None
        return pair_batches(policy, some, run.micro_tokens), partial(pair_scores, policy, reference, kl=kl)

    def metrics(found: PairScores) -> Metrics:
        return {"loss": loss(found).mean().item(), **preference_metrics(found)}

    options: dict[str, Any] = {"settings": {"loss": loss}, "reference": reference}
    options |= {"held_out": held_out, "measure": lambda some: metrics(detached_scores(*scoring(some)))}
    with Session(run, policy, pairs, kind="prefer", **options) as session:
        for _ in session:
            batch: list[Pair] = session.source.take(run.tasks)
            session.optimizer.zero_grad()
            pieces, score = scoring(batch)
            found = metrics(accumulate_pairs(pieces, score, loss, is_coupled(loss)))
            stepped = descend(session.optimizer, run.max_norm)
            policy.version += 1
            session.log(found | stepped | {"pairs": float(len(batch))})
    return session


def check_lengths(
    size: Callable[[Pair], int],
    context: int,
    pairs: Sequence[Pair],
    held_out: Sequence[Pair] | Mapping[str, Sequence[Pair]] = (),
) -> None:
    """Raises ValueError, naming the pair, when one does not fit the context. `size`: tokens of its longer reply."""
    tests = held_out if isinstance(held_out, Mapping) else {"": held_out}
    for name, some in {"pair": pairs, **{f"held-out pair {key}".strip(): one for key, one in tests.items()}}.items():
        for number, pair in enumerate(some, 1):
            if (found := size(pair)) > context:
                raise ValueError(f"{name} {number} has {found} tokens, but the model has {context} positions")


def accumulate_pairs(
    pieces: Sequence[list[Any]], score: Callable[[list[Any]], PairScores], loss: PairLoss, whole: bool
) -> PairScores:
    """Add the gradient of the loss's mean over all pairs of a step; returns them judged, without gradients.

    Pieces change memory, never the gradient, and ranks share them: for a loss that looks at all pairs (`mark_coupled`)
    they are judged twice, once to know what the loss makes of each, and once more to carry that back.
    """
    total = sum(map(len, pieces))
    mine = ranks.padded_share(list(enumerate(pieces)))
    if len(pieces) == 1 or not whole:
        done = {}
        for (number, piece), counts in mine:
            found = score(piece)
            (loss(found).mean() * len(piece) / total * float(counts)).backward()
            if counts:
                done[number] = concatenate_detached([found])
        return gathered(done)
    found = detached_scores(pieces, score)
    chosen, rejected = found.chosen.requires_grad_(), found.rejected.requires_grad_()
    wanted = torch.autograd.grad(loss(found).mean(), (chosen, rejected))
    sizes = [len(piece) for piece in pieces]
    parts = list(zip(*(gradient.split(sizes) for gradient in wanted), strict=True))
    for (number, piece), counts in mine:
        again = score(piece)
        torch.autograd.backward((again.chosen, again.rejected), [part * float(counts) for part in parts[number]])
    return concatenate_detached([found])


@torch.no_grad()
def detached_scores(pieces: Sequence[list[Any]], score: Callable[[list[Any]], PairScores]) -> PairScores:
    """All pieces judged, without gradients; ranks share them."""
    mine = ranks.padded_share(list(enumerate(pieces)))
    scored = [(number, score(piece), counts) for (number, piece), counts in mine]
    return gathered({number: found for number, found, counts in scored if counts})


def gathered(mine: Mapping[int, PairScores]) -> PairScores:
    """The pieces of all ranks, in their order, as one."""
    device = next(iter(mine.values())).chosen.device if mine else None
    shared = mine if ranks.world() == 1 else {number: on_device(one, "cpu") for number, one in mine.items()}
    found = {number: one for part in ranks.all_gather(shared, "for scores of pairs") for number, one in part.items()}
    whole = concatenate_detached([found[number] for number in sorted(found)])
    return whole if device is None else on_device(whole, device)


def on_device(scores: PairScores, device: torch.device | str) -> PairScores:
    values = {one.name: getattr(scores, one.name) for one in fields(scores)}
    return replace(scores, **{name: value.to(device) for name, value in values.items() if value is not None})


def concatenate_detached(parts: Sequence[PairScores]) -> PairScores:
    """Pieces as one, without gradients."""

    def column(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values).detach()

    names = ("chosen", "rejected", "chosen_length", "rejected_length", "chosen_ref", "rejected_ref")
    return PairScores(*(column(name) for name in names), parts[0].kl)  # type: ignore[arg-type]


def preference_metrics(pairs: PairScores) -> Metrics:
    """How far the policy prefers as the pairs do, relative to the reference where there is one."""
    relative = pairs.chosen_ref is not None
    margin = pairs.margin() if relative else pairs.chosen / pairs.chosen_length - pairs.rejected / pairs.rejected_length
    return {
        "accuracy": (margin > 0).float().mean().item(),
        "margin": margin.mean().item(),
        "logp_chosen": pairs.chosen.mean().item(),
        "logp_rejected": pairs.rejected.mean().item(),
    }


def pair_batches(policy: TextPolicy, pairs: Sequence[Pair], tokens: int) -> list[list[Pair]]:
    """Pairs in bins whose rows fit `tokens` together; on several ranks a bin for each, where there are as many."""
    both = [[row(policy, pair, text) for text in (pair.chosen, pair.rejected)] for pair in pairs]

    def size(piece: Sequence[int]) -> int:
        return policy.size([one for i in piece for one in both[i]])

    if ranks.world() > 1:
        tokens = min(tokens, max(size(range(len(pairs))) // ranks.world(), 1))
    return [[pairs[i] for i in piece] for piece in split_to_size(range(len(pairs)), size, tokens)]
