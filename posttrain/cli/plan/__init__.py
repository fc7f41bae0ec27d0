"""The plan of a run before it starts: what is read, how many tokens and steps, how much memory, how long on paper."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from posttrain.cli.plan.footprint import ADAM, Footprint, learning_bytes, sampling_bytes
from posttrain.cli.plan.machine import BANDWIDTH, COMPUTE, GIB, MACHINES, MOST_GPUS, Machine, Work, gpus_needed, work
from posttrain.cli.plan.workload import Lengths, Step, lengths, steps
from posttrain.core import Row, Task
from posttrain.data import Demonstration, Pair
from posttrain.episode import single_turn
from posttrain.policy.abilities import choose_bf16
from posttrain.policy.activations import FLOAT, Network, network_of
from posttrain.policy.pretrained import choose_device
from posttrain.policy.text import TextPolicy
from posttrain.policy.value import RewardModel
from posttrain.run.memory import components

if TYPE_CHECKING:
    from posttrain.recipe import Recipe
    from posttrain.run.session import Session
    from posttrain.run.settings import Run

MIB = 2**20
NOUNS = ((Task, "tasks"), (Demonstration, "demonstrations"), (Pair, "pairs"), (Row, "rows"))
FOREIGN = ("torch", "transformers", "tokenizers", "peft", "diffusers", "numpy", "PIL", "httpx", "threading", "_thread")
MOST_HELD = 64  # entries of a container that are looked into; more is data


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do, as named lines for a person; and its memory in this process, where that is known."""

    lines: list[tuple[str, str]]
    footprint: Footprint

    def show(self) -> None:
        for name, value in self.lines:
            print(f"{name:12} {value}")
        print("nothing was trained or written (--dry-run)")


def plan_of(session: Session, one_process: bool = False) -> Plan:
    """What a session would do, before it is entered. Nothing is trained, and its source is left as it is.

    one_process  it cannot be distributed, whatever its policy
    """
    items, policy = items_of(session), session.policy
    found = Found(session)
    memory = found.footprint()
    lines = [*data_lines(session)]
    if (
        isinstance(policy, TextPolicy | RewardModel)
        and items
        and isinstance(items[0], Task | Demonstration | Pair | Row)
    ):
        network = network_here(policy, found.device)
        taken = steps(policy, items, session.recipe, session.run)
        memory = replace(
            memory,
            sampling=sampled_bytes(network, taken) if session.sampler is None else None,
            learning=max(learning_bytes(network, step, memory.gradients) for step in taken),
        )
        lines += token_lines(session, policy, lengths(policy, items), taken)
        kind = "bfloat16" if network.bf16 else "float32"
        lines += [("model", f"{model_line(policy, policy.model)}, in {kind}"), *memory_lines(memory, found, taken)]
        most = 1 if one_process or not isinstance(policy, TextPolicy) else MOST_GPUS
        lines += work_lines(session, policy, found, memory, taken, most)
    else:
        lines += [*step_lines(session), ("model", model_line(policy, None)), *memory_lines(memory, found, [])]
    run = session.run
    lines += [("writes", f"{run.out}: a checkpoint every {run.save_interval} steps, {run.keep} kept; {free_line(run)}")]
    return Plan(lines, memory)


def items_of(session: Session) -> Sequence[Any]:
    """What the session draws from; nothing, where its source makes what it hands out."""
    return session.source.items


def network_here(policy: TextPolicy | RewardModel, device: str) -> Network:
    """The policy's network as a run here has it: one that was not loaded has not decided on bfloat16 yet."""
    network = network_of(policy, device)
    loaded = next(policy.model.parameters()).device.type != "meta"
    bf16 = network.bf16 and (loaded or choose_bf16(True, torch.device(device)))
    return replace(network, bf16=bf16, casts=bf16)


def sampled_bytes(network: Network, taken: Sequence[Step]) -> int | None:
    return max((sampling_bytes(network, step.decoded) for step in taken if step.decoded), default=None)


# ---- what the session holds


class Found:
    """The models that a session holds: its policy's, those beside it, and who trains which of them."""

    def __init__(self, session: Session):
        trained = {id(p): p for group in session.optimizer.param_groups for p in group["params"]}
        own = [*parameters(reached(session.policy))]
        beside = list(reached(session.recipe, session.reference))
        self.trained = sum(p.numel() for p in trained.values())
        self.weights = {id(p): size_of(p) for p in [*own, *trained.values()]}
        self.beside = {id(p): size_of(p) for p in parameters(beside) if id(p) not in self.weights}
        learners = [one for one in beside if isinstance(one, torch.optim.Optimizer)]
        taught = {id(p): p for one in learners for group in one.param_groups for p in group["params"]}
        self.learned = sum(p.numel() for p in taught.values())
        self.critics = len(learners)
        self.device = device_of(own)
        scorers = {id(one): one for one in beside if isinstance(one, TextPolicy) and one is not session.policy}
        self.references = sum(not any(id(p) in taught for p in one.model.parameters()) for one in scorers.values())

    def footprint(self) -> Footprint:
        """Without what depends on tokens."""
        on_host = self.device == "cpu"
        written = ADAM * self.trained + (FLOAT + ADAM) * self.learned
        return Footprint(
            weights=sum(self.weights.values()),
            gradients=FLOAT * self.trained,
            optimizer=ADAM * self.trained,
            beside=sum(self.beside.values()) + (FLOAT + ADAM) * self.learned,
            sampling=None,
            learning=None,
            saving=written * 9 // 8 if on_host else 0,  # a copy that grows by an eighth at a time
        )


def size_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def parameters(things: Iterator[Any] | Sequence[Any]) -> Iterator[Tensor]:
    for one in things:
        if isinstance(one, nn.Module):
            yield from one.parameters()
            yield from one.buffers()
        elif isinstance(one, nn.Parameter):
            yield one


def reached(*roots: Any) -> Iterator[Any]:
    """Everything that some objects are made of: fields, closures, containers; models and optimizers not opened."""
    left, seen = list(roots), dict[int, Any]()
    while left:
        thing = left.pop()
        if id(thing) in seen or thing is None or isinstance(thing, str | bytes | int | float | type):
            continue
        seen[id(thing)] = thing
        yield thing
        left += [] if isinstance(thing, nn.Module | Tensor | torch.optim.Optimizer) else made_of(thing)


def made_of(thing: Any) -> list[Any]:
    if isinstance(thing, partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, MethodType):
        return [thing.__self__]
    if isinstance(thing, FunctionType):
        return list(components(thing).values())
    if type(thing).__module__.partition(".")[0] in FOREIGN:
        return []
    parts = list(components(thing).values()) or list(getattr(thing, "__dict__", {}).values())
    return parts if len(parts) <= MOST_HELD else []


# ---- lines


def data_lines(session: Session) -> list[tuple[str, str]]:
    """What is read, and how much of it."""
    run, items = session.run, items_of(session)
    read, aside = run.settings.get("data"), run.settings.get("held_out")
    where = f"{read}: " if read else ""
    if items:
        epochs = run.steps * run.tasks / len(items)
        often = f"{epochs:,.0f}" if epochs >= 10 else f"{epochs:.2g}"
        what = f"{len(items):,} {noun(items)}, {often} epochs in {run.steps:,} steps of {run.tasks}"
    else:
        what = f"drawn by {type(session.source).__name__}, {run.tasks} in each of {run.steps:,} steps"
    lines = [("data", where + what)]
    if session.tests:
        times = 2 if not run.eval_every else -(-run.steps // run.eval_every) + 1
        source = f"{aside}: " if aside else ""
        lines += [("held out", f"{source}{len(session.tests):,} tasks, evaluated {times} times")]
    return lines


def noun(items: Sequence[Any]) -> str:
    return next((name for kind, name in NOUNS if isinstance(items[0], kind)), "items")


def method_line(recipe: Recipe, run: Run) -> str:
    more = f", in up to {recipe.rounds} rounds where groups are refused" if recipe.rounds > 1 else ""
    named = run.settings.get("method", "own")
    updates = recipe.updates * recipe.epochs
    return f"{named}: {run.tasks} tasks x {recipe.samples} samples a step, {updates} update{'s'[: updates > 1]}{more}"


def step_lines(session: Session) -> list[tuple[str, str]]:
    return [("method", method_line(session.recipe, session.run))] if session.recipe else []


def token_lines(
    session: Session, policy: TextPolicy | RewardModel, sizes: Lengths, taken: Sequence[Step]
) -> list[tuple[str, str]]:
    """Lengths, and tokens of a step."""
    recipe, items = session.recipe, items_of(session)
    of = "" if sizes.counted == len(items) else f" (of {sizes.counted:,} that were looked at)"
    told = f"{sizes.mean:.0f} tokens on average, at most {sizes.most:,}{of}"
    learned = max(step.tokens for step in taken)
    pieces = max(len(step.pieces) for step in taken)
    cut = f"in {pieces} micro-batch{'es' if pieces > 1 else ''} of at most {largest(taken):,}"
    if recipe is None or not isinstance(policy, TextPolicy):
        return [("rows", told), ("step", f"{learned:,} tokens, {cut}")]
    sampling = policy.sampling
    turns = "" if recipe.env is single_turn else "; an episode may have several turns, and the figures are of one"
    rollouts = session.run.tasks * recipe.samples
    return [
        ("prompts", told),
        ("replies", f"at most {sampling.max_new} tokens at temperature {sampling.temperature:g}{turns}"),
        *step_lines(session),
        ("step", f"{rollouts} rollouts, at most {learned:,} tokens, {cut}"),
    ]


def largest(taken: Sequence[Step]) -> int:
    return max(piece.tokens for step in taken for piece in step.pieces)


def model_line(policy: Any, model: Any) -> str:
    trained = sum(p.numel() for p in policy.parameters())
    if model is None:
        return f"{type(policy).__name__}, {trained:,} parameters trained"
    size = sum(p.numel() for p in model.parameters())
    body = model.get_base_model() if hasattr(model, "get_base_model") else model
    kind, where = type(body).__name__, device_of([*model.parameters()])
    return f"{kind}, {size:,} parameters, {trained:,} trained, {policy.context} positions, on {where}"


def device_of(tensors: Sequence[Tensor]) -> str:
    """The type of the device that tensors are on, or would be on if they had been loaded."""
    kind = tensors[0].device.type if tensors else "cpu"
    return choose_device(None).type if kind == "meta" else kind


def memory_lines(memory: Footprint, found: Found, taken: Sequence[Step]) -> list[tuple[str, str]]:
    parts = ["weights", "gradients", "Adam"]
    if found.beside or found.references:
        parts += ["critic"] * bool(found.learned) + ["reference"] * bool(found.references)
        parts += ["other models"] * bool(found.beside and not found.learned and not found.references)
    lines = [("memory", f"{', '.join(parts[:-1])} and {parts[-1]}: {amount(memory.fixed)}")]
    if memory.sampling is not None:
        lines += [("", f"sampling: about {amount(memory.samples)}")]
    if memory.learning is not None:
        lines += [("", f"learning: about {amount(memory.learns)} in micro-batches of {largest(taken):,} tokens")]
    if memory.saving:
        lines += [("", f"saving a checkpoint: about {amount(memory.saves)}")]
    known = memory.learning is not None
    besides = "what Python and torch take" if known else "activations, which are not estimated for this policy"
    return [*lines, ("", f"peak: about {amount(memory.peak)} besides {besides}")]


def amount(size: float) -> str:
    return f"{size / GIB:,.1f} GiB" if size >= 10 * GIB else f"{size / MIB:,.0f} MiB"


# ---- on paper


def work_lines(
    session: Session, policy: TextPolicy | RewardModel, found: Found, memory: Footprint, taken: list[Step], most: int
) -> list[tuple[str, str]]:
    """Tokens and FLOPs of a step, and seconds and hours on GPUs of the table, or on that of this machine."""
    network, recipe = network_of(policy, "cuda"), session.recipe
    epochs, updates = (recipe.epochs, recipe.updates) if recipe else (1, 1)

    def on(gpus: int) -> Work:
        return work(network, taken, found.references, found.critics, epochs, updates, gpus)

    one = on(1)
    sampled = f"{one.sampled:,.0f} tokens sampled, " if one.sampled else ""
    scored = f", {one.scored:,.0f} only scored" if one.scored else ""
    flops = f"{one.decode_flops + one.learn_flops:.2g} FLOPs"
    read = f", {one.decode_bytes / 1e9:,.3g} GB read in decoding" if one.decode_bytes else ""
    lines = [("work", f"{sampled}{one.learned:,.0f} learned{scored} a step, at most: {flops}{read}")]
    for machine in machines():
        if needed := gpus_needed(network, replace(memory, saving=0), taken, machine, most):
            line = machine_line(machine, *needed, on, network, session.run.steps)
        else:
            why = "it is one process" if most == 1 else "whatever their number, what stands whole on each does not fit"
            line = f"{machine.name}: too small; {why}"
        lines += [("machine", line)]
    share = f"on paper: {100 * COMPUTE:.0f} % of peak FLOPs, {100 * BANDWIDTH:.0f} % of bandwidth in decoding"
    return [*lines, ("", f"{share}; without rewards, tools and evaluation")]


def machines() -> list[Machine]:
    """This machine's GPU, where the table has it; the whole table otherwise."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return [machine for machine in MACHINES if name and machine.name.split()[0] in name] or list(MACHINES)


def machine_line(machine: Machine, gpus: int, peak: float, on: Any, network: Network, count: int) -> str:
    sampling, learning = on(gpus).seconds(network, machine, gpus)
    total = sampling + learning
    parts = f" ({seconds(sampling)} sampling, {seconds(learning)} learning)" if sampling else ""
    return (
        f"{gpus} x {machine.name}: {amount(peak)} each; about {seconds(total)} a step{parts}, "
        f"{duration(total * count)} for {count:,} steps"
    )


def seconds(value: float) -> str:
    return f"{value:,.0f} s" if value >= 10 else f"{value:.2g} s"


def duration(value: float) -> str:
    return f"{value / 3600:,.1f} h" if value >= 3600 else f"{value / 60:,.1f} min" if value >= 60 else seconds(value)


def free_line(run: Run) -> str:
    where = Path(run.out).absolute()
    while not where.exists():
        where = where.parent
    return f"{shutil.disk_usage(where).free / GIB:.1f} GiB free there"
