"""Rows to a change of the parameters: log-probabilities, loss, gradient, optimizer.

The weights of all decisions are made once, for the whole step; micro-batches only change memory. Memory that runs out
is met by smaller ones, and rows that can teach nothing are left out.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from posttrain import ranks
from posttrain.core import Batch, Density, Loss, Metrics, Policy, Reduce, Row
from posttrain.loss import ImportanceCorrection, credit_only, token_mean, whole_step_parts
from posttrain.policy.activations import tokens_that_fit
from posttrain.row import flatten, micro_batches

Result = TypeVar("Result")
NO_MEMORY = (  # in errors that are no OutOfMemoryError: of the CPU, of cuBLAS, of CUDA's own calls, of Apple's GPUs
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "MPS backend out of memory",
)


def update(
    policy: Policy,
    optimizer: Optimizer,
    rows: Sequence[Row],
    loss: Loss,
    reduce: Reduce = token_mean,
    reference: Policy | None = None,
    *,
    updates: int = 1,
    epochs: int = 1,
    micro_tokens: int = 16384,
    max_norm: float = 1.0,
    seed: int = 0,
    corrected: bool = False,
) -> Metrics:
    """Take `updates` optimizer steps over the rows, each on its own share of them, `epochs` times.

    `corrected`: another engine sampled the rows, so importance weights are recomputed and truncated.
    Where memory runs out, the step is taken again in smaller micro-batches; `micro_tokens` of the metrics is the size
    that fitted. Raises FloatingPointError, before the parameters change, when the gradient is not finite.
    """
    log, old = Averages(), [row.logp for row in rows]
    if corrected or updates * epochs > 1:
        surveyed, micro_tokens = retry_out_of_memory(
            policy, rows, micro_tokens, lambda tokens: density_of_rows(policy, rows, tokens)
        )
        old = [now.logp for now in surveyed]
    loss = ImportanceCorrection(loss) if corrected else loss
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for share in torch.randperm(len(rows), generator=generator).tensor_split(min(updates, len(rows))):
            chosen, chosen_old = [rows[i] for i in share.tolist()], [old[i] for i in share.tolist()]

            def attempt(tokens: int, chosen: list[Row] = chosen, chosen_old: list[Tensor] = chosen_old) -> Averages:
                optimizer.zero_grad()
                return accumulate(policy, chosen, chosen_old, loss, reduce, reference, tokens)

            found, micro_tokens = retry_out_of_memory(policy, chosen, micro_tokens, attempt)
            log.join(found)
            log.add(descend(optimizer, max_norm), 1)
            policy.version += 1
    return log.means() | {"micro_tokens": float(micro_tokens)}


def retry_out_of_memory(
    policy: Policy, rows: Sequence[Row], tokens: int, attempt: Callable[[int], Result]
) -> tuple[Result, int]:
    """`attempt(tokens)`, in micro-batches half as large as often as memory runs out; and the size that fitted.

    On a CPU, where running out gets the process killed, they are sized beforehand, in this call alone.
    Raises the error of the last attempt when a single row does not fit, or where other ranks are in step with this one.
    """
    most = tokens
    while True:
        size = tokens_that_fit(policy, rows, most, partial(micro_batches, policy)) if ranks.world() == 1 else most
        try:
            return attempt(size), most
        except RuntimeError as error:
            if is_out_of_memory(error) and ranks.world() > 1:
                error.add_note(f"rank {ranks.rank()} ran out of memory: give `resume=True` and fewer `micro_tokens`")
                raise
            shared = [piece for piece in micro_batches(policy, rows, size) if len(piece) > 1]
            if not is_out_of_memory(error) or not shared:
                raise
            most = max(policy.size([rows[i] for i in piece]) for piece in shared) // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in NO_MEMORY)


def descend(optimizer: Optimizer, max_norm: float) -> Metrics:
    """Clip the gradient and take the optimizer's step. Raises FloatingPointError before it when it is not finite."""
    norm = clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], max_norm)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if not torch.isfinite(norm):
        raise FloatingPointError(
            f"the gradient's norm is {norm.item()}: no step was taken. Look at the advantages and log-probabilities of "
            "this step's rollouts; lower the learning rate, or leave bf16"
        )
    optimizer.step()
    return {"grad_norm": norm.item()}


def accumulate(
    policy: Policy,
    rows: Sequence[Row],
    old: Sequence[Tensor],
    loss: Loss,
    reduce: Reduce,
    reference: Policy | None,
    micro_tokens: int,
) -> Averages:
    """Add the gradient of one optimizer step, micro-batch by micro-batch; the weights are made once, for all rows.

    Rows without credit count in the weights and are not computed, where nothing in the loss would teach them.
    """
    log = Averages()
    lengths = torch.tensor([len(row.advantage) for row in rows])
    weight = reduce(lengths, torch.tensor([row.group for row in rows]))  # [B]
    require_shape(weight, len(rows), "the reduction", "row")
    marks = first_pass(policy, rows, old, loss, reference, micro_tokens)
    taught = [i for i, row in enumerate(rows) if row.advantage.any()] if credit_only(loss) else list(range(len(rows)))
    whole = 0.0
    for part, counts in rank_micro_batches(policy, [rows[i] for i in taught], micro_tokens):
        piece = [taught[i] for i in part]
        chosen = [rows[i] for i in piece]
        with torch.no_grad():
            logp_ref = reference.density(chosen).logp if reference else None
        now = policy.density(chosen)
        batch = flatten(chosen, torch.cat([old[i] for i in piece]), logp_ref)
        batch = on_device(batch, now.logp.device, {part: [values[i] for i in piece] for part, values in marks.items()})
        if now.logp.shape != batch.logp_old.shape:
            raise ValueError(f"{len(batch.logp_old)} decisions were sampled, but density scored {len(now.logp)}")
        cost, metrics = costs_of(loss, batch, now)
        step_cost = (weight[piece].to(cost.device)[batch.row] * cost).sum() * float(counts)
        step_cost.backward()
        whole += step_cost.item()
        gap = (now.logp.detach() - batch.logp_sampler).abs()
        metrics |= {"entropy": now.entropy.mean().item(), "sampler_gap": gap.mean().item()}
        if counts:
            log.add(metrics, len(cost))
    for p in policy.parameters() if not taught else ():
        p.grad = torch.zeros_like(p)  # the optimizer's moments move on, as after any other step
    log = averages_of_all_ranks(log)
    whole = sum(ranks.all_gather(whole, "for the loss"))
    log.add({"loss": whole, "rows_skipped": 1 - len(taught) / len(rows)}, 1)
    return log


def costs_of(loss: Loss, batch: Batch, now: Density) -> tuple[Tensor, Metrics]:
    """[N] and the metrics. Raises ValueError for anything else, such as a mean, which would be weighed once more."""
    found = loss(batch, now)
    if not isinstance(found, tuple) or len(found) != 2:
        raise ValueError(f"the loss returned {type(found).__name__}, not its costs [N] and a dictionary of metrics")
    require_shape(found[0], len(now.logp), "the loss", "decision")
    return found


def require_shape(found: Any, size: int, who: str, what: str) -> None:
    """Raises ValueError for anything but one number for each."""
    if not isinstance(found, Tensor) or found.shape != (size,):
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{who} returned {shape}, not [{size}]: one number for each {what}")


def rank_micro_batches(policy: Policy, rows: Sequence[Row], micro_tokens: int) -> list[tuple[list[int], bool]]:
    """This rank's micro-batches, and whether each of them counts; all of them, where there is one rank."""
    if ranks.world() > 1 and rows:
        micro_tokens = min(micro_tokens, max(policy.size(rows) // ranks.world(), 1))
    return ranks.padded_share(micro_batches(policy, rows, micro_tokens))


def density_of_rows(policy: Policy, rows: Sequence[Row], micro_tokens: int) -> list[Density]:
    """[B] the density of every row under the current parameters, on the CPU, without gradients; ranks share it."""
    found: dict[int, Density] = {}
    with torch.no_grad():
        for piece, counts in rank_micro_batches(policy, rows, micro_tokens):
            now = policy.density([rows[i] for i in piece])
            sizes = [len(rows[i].advantage) for i in piece]
            parts = zip(piece, now.logp.cpu().split(sizes), now.entropy.cpu().split(sizes), strict=True)
            found |= {i: Density(logp.clone(), entropy.clone()) for i, logp, entropy in parts if counts}  # not views
    found = {i: now for part in ranks.all_gather(found, "for log-probabilities") for i, now in part.items()}
    return [found[i] for i in range(len(rows))]


def first_pass(
    policy: Policy,
    rows: Sequence[Row],
    old: Sequence[Tensor],
    loss: Loss,
    reference: Policy | None,
    micro_tokens: int,
) -> dict[Loss, list[Tensor]]:
    """What each `WholeStep` part of the loss says of every decision of the step, split by row."""
    wanting = whole_step_parts(loss)
    if not wanting:
        return {}
    now = density_of_rows(policy, rows, micro_tokens)
    logp_ref = torch.cat([one.logp for one in density_of_rows(reference, rows, micro_tokens)]) if reference else None
    batch = flatten(rows, torch.cat(list(old)), logp_ref)
    density = Density(torch.cat([one.logp for one in now]), torch.cat([one.entropy for one in now]))
    sizes = [len(row.advantage) for row in rows]
    return {part: list(part.mark(batch, density).split(sizes)) for part in wanting}


def averages_of_all_ranks(log: Averages) -> Averages:
    """The averages of all ranks."""
    whole = Averages()
    for one in ranks.all_gather(log, "for metrics"):
        whole.join(one)
    return whole


def on_device(batch: Batch, device: torch.device, marks: Mapping[Loss, Sequence[Tensor]]) -> Batch:
    return Batch(
        logp_sampler=batch.logp_sampler.to(device),
        logp_old=batch.logp_old.to(device),
        advantage=batch.advantage.to(device),
        row=batch.row.to(device),
        logp_ref=None if batch.logp_ref is None else batch.logp_ref.to(device),
        scores=batch.scores,
        marks={part: torch.cat(list(values)).to(device) for part, values in marks.items()},
    )


class Averages:
    """Means of metrics weighted by decisions; of a name that ends in `_max`, the largest."""

    def __init__(self):
        self.sums: dict[str, float] = defaultdict(float)
        self.weights: dict[str, float] = defaultdict(float)
        self.largest: dict[str, float] = {}

    def add(self, metrics: Metrics, weight: float) -> None:
        for name, value in metrics.items():
            if name.endswith("_max"):
                self.largest[name] = max(value, self.largest.get(name, value))
            else:
                self.sums[name] += value * weight
                self.weights[name] += weight

    def join(self, other: Averages) -> None:
        for name, value in other.sums.items():
            self.sums[name] += value
            self.weights[name] += other.weights[name]
        self.largest |= {name: max(value, self.largest.get(name, value)) for name, value in other.largest.items()}

    def means(self) -> Metrics:
        return {name: total / self.weights[name] for name, total in self.sums.items()} | self.largest
