"""Experts, the rule table, GRPO of the gate, the agent beside it, evaluation: on slots of a user's own pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import posttrain as pt
from posttrain import channel
from posttrain.run.replies import Replies
from posttrain.systems.casemcom import Method, control_recipe, recipe
from posttrain.systems.casemcom.control import load_reader, reader_of
from posttrain.systems.casemcom.digital import digital_slots, only_outcome
from posttrain.systems.casemcom.experts import Experts, load_experts, train_experts
from posttrain.systems.casemcom.gate import (
    Rule,
    demonstrations,
    gate_tasks,
    instructions_of,
    rule_table,
    static,
    user_by_user,
)
from posttrain.systems.casemcom.link import slots_of
from posttrain.systems.casemcom.measures import as_table, by_band, of_rollouts, of_rule, user_measures
from posttrain.systems.casemcom.reward import Charges, reward
from posttrain.systems.casemcom.slots import Capture, Slot, read_captures

Baseline = Literal["none", "table", "whole", "object", "digital"]


@dataclass(frozen=True)
class SlotOptions:
    """Which slots, and how they are sent."""

    data: str
    """JSONL of slots: `symbols` that all users share, and `users` with task, image, box, region, priority, latency_ms
    and snr_db."""
    experts: str
    """Folder that stage experts has written."""
    limit: int | None = None
    """Use only the first so many slots."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    fading: channel.By = "own"
    """Who draws the Rayleigh fading: own, or sionna."""

    def captures(self, experts: Experts) -> list[Capture]:
        return read_captures(self.data, experts.side, self.limit, self.split)

    def slots(self, seed: int) -> list[Slot]:
        made = load_experts(self.experts)
        return slots_of(self.captures(made), made, seed, self.fading)

    def tests(self, held_out: tuple[str, ...], seed: int) -> dict[str, list[Slot]]:
        """The slots of held-out files by name."""
        made, out = load_experts(self.experts), dict[str, list[Slot]]()
        for name, file in pt.named_files(held_out).items():
            out[name] = slots_of(read_captures(file, made.side, None, "test"), made, seed, self.fading)
        return out


def train(
    slot: SlotOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    charges: Charges,
    run: pt.Run = pt.Run("runs/casemcom", steps=200, tasks=32, lr=1e-6),
    samples: int = 8,
    kl: float = 0.01,
    entropy: float = 0.0,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """GRPO of the gate, from the checkpoint that stage sft has written, on what its decisions deliver.

    samples   episodes of a slot, over the same fading
    kl        weight of the divergence from the starting model; 0 loads no reference
    entropy   weight of the entropy of its tokens
    held_out  slots that are only evaluated: FILE, or NAME=FILE
    """
    slots, tests = slot.slots(run.seed), slot.tests(held_out, run.seed)
    policy, said = model.policy(), instructions_of(slots[0].sizes)
    reference = policy.frozen_copy() if kl else None
    options: dict[str, Any] = {"samples": samples, "kl": kl, "reference": reference, "entropy": entropy}
    made = recipe(reward(charges), instructions=said, **options)
    sets = {name: gate_tasks(some, said) for name, some in tests.items()}
    return scale.train(policy, gate_tasks(slots, said), made, run, held_out=sets)


def sft(
    slot: SlotOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    run: pt.Run = pt.Run("runs/casemcom-sft", steps=100, tasks=32, lr=1e-5),
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """Learn what the rule table replies to the gate's prompts: the task's region, in as many symbols as it wants fine.

    held_out  slots on which the loss is only measured: FILE, or NAME=FILE
    """
    scale.refuse_sampler()
    slots, tests = slot.slots(run.seed), slot.tests(held_out, run.seed)
    said = instructions_of(slots[0].sizes)
    sets = {name: demonstrations(some, rule_table, said) for name, some in tests.items()}
    return pt.sft(model.policy(), demonstrations(slots, rule_table, said), run, held_out=sets)


@pt.one_process("an agent of a few thousand parameters is quickest there")
def control(
    slot: SlotOptions,
    charges: Charges,
    run: pt.Run = pt.Run("runs/casemcom-control", steps=400, tasks=32, lr=1e-2),
    method: Method = "grpo",
    samples: int = 8,
    entropy: float = 0.03,
    critic_lr: float = 1e-2,
    blind: bool = False,
    held_out: tuple[str, ...] = (),
) -> pt.Session:
    """The agent that the gate is compared with, on the same slots and the same reward.

    method     grpo, with the gate's credit, or ppo, with a critic
    samples    decisions of a slot, over the same fading
    entropy    weight of the entropy of its choices
    critic_lr  learning rate of the critic
    blind      it sees channels and budget only, as the paper's; else all that the gate is told
    held_out   slots that are only evaluated: FILE, or NAME=FILE
    """
    slots, tests = slot.slots(run.seed), slot.tests(held_out, run.seed)
    reader = reader_of(slots, context=not blind)
    torch.manual_seed(pt.mix(run.seed, "agent") % 2**32)
    policy = pt.DecisionPolicy(reader.network())
    made = control_recipe(reward(charges), policy, method=method, samples=samples, entropy=entropy, critic_lr=critic_lr)
    sets = {name: reader.slot_tasks(some) for name, some in tests.items()}
    tasks = reader.slot_tasks(slots)
    return pt.train(
        policy, tasks, made, run, held_out=sets, on_start=lambda session: reader.save(session.directory.path)
    )


@pt.one_process("auto-encoders of this size are quickest there")
def experts(
    data: str,
    output: pt.Output = pt.Output("runs/casemcom-experts"),
    side: int = 32,
    sizes: tuple[int, ...] = (8, 32, 96),
    hidden: int = 256,
    updates: int = 2000,
    limit: int | None = None,
    split: str = "train",
) -> Path:
    """Train the experts on the pictures of these slots, over Rayleigh fading, and write them to OUT.

    data     JSONL of slots, as the other stages read them
    side     of a picture, in pixels: all become grey squares
    sizes    complex symbols of a transmission, ascending
    hidden   width of the hidden layer of each encoder and decoder
    updates  gradient steps of each expert
    limit    use only the first so many slots
    split    split of a Hugging Face dataset
    """
    pt.at_least(1, side=side, hidden=hidden, updates=updates)
    if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
        raise ValueError(f"`sizes={','.join(map(str, sizes))}`: they are above 0 and ascend")
    captures, folder = read_captures(data, side, limit, split), Path(output.out)
    settings = {"seed": output.seed, **output.settings}
    options = {"resume": output.resume, "overwrite": output.overwrite}
    pt.prepare_folder(folder, "experts", ["experts.safetensors", "experts.json"], settings, **options)
    torch.manual_seed(pt.mix(output.seed, "experts") % 2**32)
    made = Experts(side, sizes, hidden)
    pictures, masks = (torch.cat([getattr(one, name) for one in captures]) for name in ("pictures", "masks"))
    train_experts(made, pictures, masks, updates=updates, seed=output.seed)
    made.save(folder)
    return folder


# ---- evaluation


def evaluate(
    slot: SlotOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    charges: Charges,
    output: pt.Output = pt.Output("runs/casemcom-evaluation"),
    agent: str | None = None,
    baseline: Baseline = "none",
    most: int = 96,
) -> Path:
    """A table by band of the mean ratio, in OUT/measures.json, of the gate's likeliest decisions; in OUT/replies.jsonl
    what it said. `gate_ms` is charged where a prompt is new: the decision is kept, and costs nothing again.

    agent     in the gate's place: the folder of a run of stage control
    baseline  in its place: table (the rule table), whole or object (everything so), digital (LDPC and QAM, by sionna)
    most      symbols of a transmission of the baselines whole and object
    """
    if agent and baseline != "none":
        raise ValueError(f"`agent={agent}` and `baseline={baseline}`: give one of them")
    if baseline == "none":
        found = decisions_of_policy(slot, model, scale, charges, output, agent)
    else:
        kept, slots = Replies(output), slot.slots(output.seed)
        if baseline == "digital":
            slots = digital_slots(slots, slot.captures(load_experts(slot.experts)), output.seed)
        found = kept, list(user_measures(of_rule(slots, rule_of(baseline, most)), charges))
    rows = by_band(found[1])
    found[0].write(rows)
    if pt.ranks.is_primary():
        print("\n".join(as_table(rows)))
    return found[0].folder


def rule_of(baseline: Baseline, most: int) -> Rule:
    if baseline in ("table", "digital"):
        return rule_table if baseline == "table" else only_outcome
    return static("object" if baseline == "object" else "whole", most)


def decisions_of_policy(
    slot: SlotOptions,
    model: pt.ModelOptions,
    scale: pt.ScaleOptions,
    charges: Charges,
    output: pt.Output,
    agent: str | None,
) -> tuple[Replies, Sequence[Mapping[str, float]]]:
    """The likeliest decisions of the gate, sampled wherever the options say, or of an agent, and what users got."""
    slots = slot.slots(output.seed)
    if agent:
        policy = pt.DecisionPolicy(pt.load_network(Path(agent) / "model", argument="agent"))
        tasks, kept = load_reader(agent).slot_tasks(slots), Replies(output)
        graded = kept.grade({"policy": policy}, tasks, reward(charges), pt.single_turn, 1, greedy=True)
        return kept, list(user_measures(of_rollouts(graded.rollouts), charges))
    said = instructions_of(slots[0].sizes)
    gate, tasks = model.policy(), gate_tasks(slots, said)
    gate.check(tasks)
    kept = Replies(output)
    pt.distribute(gate)
    with scale.playing(gate, output.out, tasks) as player:
        graded = kept.grade({"policy": player}, tasks, reward(charges), user_by_user(said), 1, greedy=True)
    return kept, list(user_measures(of_rollouts([one for one, _ in graded.graded]), charges))


def laptop(
    charges: Charges,
    taught: bool = True,
    run: pt.Run = pt.Run("runs/casemcom", steps=50, tasks=16, lr=1e-3),
) -> pt.Session:
    """Three users of a slot and small pictures: a tiny transformer reads what each wants, and chooses what is sent.

    taught  it has learnt the rule table; without, only the form of a reply
    """
    from posttrain.systems.casemcom import lab

    policy = lab.gate_base(taught)(lab.Gates(run.seed), run.seed, pt.FULL)
    made = recipe(reward(charges), samples=lab.SAMPLES, entropy=lab.ENTROPY)
    counts = {"test": lab.scenes.SEEN, "unseen tasks": lab.scenes.UNSEEN}
    tests = {name: gate_tasks(lab.slots(run.seed, 64, name, lab.UPDATES, tasks)) for name, tasks in counts.items()}
    training = gate_tasks(lab.slots(run.seed, lab.TRAINING, "training", lab.UPDATES))
    return pt.train(policy, training, made, run, held_out=tests)


STAGES = {
    "laptop": laptop,
    "train": train,
    "experts": experts,
    "sft": sft,
    "control": control,
    "evaluate": evaluate,
}
