"""CaSemCom on a laptop: three users of a slot, six experts of small pictures, and a tiny transformer as the gate."""

from __future__ import annotations

import hashlib
import inspect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

import posttrain as pt
from posttrain import channel
from posttrain.core import Ask, Row, Turn
from posttrain.lab.world import scenes
from posttrain.lab.world.words import Size, base, demonstration_of
from posttrain.policy.decision import Decision
from posttrain.row import rows_of
from posttrain.systems.casemcom import Method, control_recipe, experts, gate, link, recipe
from posttrain.systems.casemcom.control import Reader
from posttrain.systems.casemcom.digital import digital_slots, only_outcome
from posttrain.systems.casemcom.measures import means, of_rollouts, of_rule, user_measures
from posttrain.systems.casemcom.reward import Charges, reward
from posttrain.systems.casemcom.slots import Capture, Slot, User, mask_of

SIZES = (8, 32, 96)
LEAST_DB = {"object": (18.0, 23.5), "whole": (21.0, 24.0)}  # of coarse and of fine tasks
PICTURES, UPDATES = 4096, 400  # that the experts learn from, and how long
EXPERTS = Size(steps=UPDATES)
TINY = Size(hidden=48, layers=2, steps=400, rows=32)
TAUGHT = Size(hidden=48, layers=2, steps=120, rows=32)
TAUGHT_SHARE = 0.5
STEPS, PER_STEP, SAMPLES, RATE, ENTROPY = 50, 16, 8, 1e-3, 0.02
AGENT_STEPS, AGENT_RATE, AGENT_ENTROPY = 100, 1e-2, 0.03
TRAINING, TESTS = 1024, 768  # slots
GATE_MS = 100.0  # of a decision in words that was not kept; ours


# ---- pictures, experts, slots


def captures(seed: int, count: int, split: str, tasks: Sequence[str] = scenes.SEEN) -> list[Capture]:
    draw = random.Random(pt.mix(seed, split))
    wishes = [scenes.wish(draw, tasks) for _ in range(count * scenes.USERS)]
    drawn, boxes = scenes.pictures([one.thing for one in wishes], pt.mix(seed, split, "pictures"))
    masks = torch.stack([mask_of(box, scenes.SIDE) for box in boxes])
    users = [user_of(one) for one in wishes]
    out = []
    for i in range(count):
        some = slice(i * scenes.USERS, (i + 1) * scenes.USERS)
        budget = draw.choice(scenes.BUDGETS)
        out.append(Capture(f"{split}-{i}", budget, tuple(users[some]), drawn[some], masks[some]))
    return out


def user_of(one: scenes.Wish) -> User:
    region = "object" if one.thing in scenes.SHAPES else "whole"
    inside = 8 * scenes.BOX**2
    bits = (inside, 8 * scenes.SIDE**2 - inside)
    return User(one.task, region, LEAST_DB[region][one.is_fine], one.priority, one.latency_ms, one.snr_db, bits)


def tiny_experts(seed: int, updates: int) -> experts.Experts:
    """Trained on first use, then read from the cache: the same for the same seed, code and torch."""
    code = "".join(map(inspect.getsource, (experts, channel, scenes)))
    made = (code, SIZES, PICTURES, updates, seed, torch.__version__)
    name = f"experts-{seed}-{hashlib.sha256(repr(made).encode()).hexdigest()[:12]}"

    def write(folder: Any) -> None:
        torch.manual_seed(pt.mix(seed, "experts") % 2**32)
        fresh = experts.Experts(scenes.SIDE, SIZES)
        shown = captures(seed, PICTURES // scenes.USERS, "experts")
        pictures, masks = (torch.cat([getattr(one, name) for one in shown]) for name in ("pictures", "masks"))
        experts.train_experts(fresh, pictures, masks, updates=updates, seed=seed)
        fresh.save(folder)

    return experts.load_experts(pt.tiny.cached_folder(name, experts.CONFIG, write))


def slots(seed: int, count: int, split: str, updates: int, tasks: Sequence[str] = scenes.SEEN) -> list[Slot]:
    return link.slots_of(captures(seed, count, split, tasks), tiny_experts(seed, updates), pt.mix(seed, split))


@dataclass(frozen=True)
class Gates:
    """What a tiny gate is shown: replies by the rule table for a share of `taught`, and for the rest any decision.

    A gate that is taught nothing knows the form alone; one that is taught nothing else would never try anything else.
    """

    seed: int = 0
    taught: float = 0.0
    longest: int = 8

    @property
    def vocabulary(self) -> list[str]:
        """The words of every prompt and every reply, divided by blanks."""
        users = [
            User(pair, "whole", 0.0, priority, latency, snr_db, user_of(scenes.Wish(pair, priority, latency, 0)).bits)
            for pair in scenes.PAIRS
            for priority in scenes.PRIORITIES
            for latency in scenes.TOLERANCES_MS
            for snr_db in range(-15, 35, gate.SNR_STEP_DB)
        ]
        some = Slot("", 0, SIZES, (), ())
        prompts = [gate.prompt_text(some, user, SIZES[0]) for user in users]
        prompts += [gate.prompt_text(some, users[0], room) for room in SIZES]
        replies = [gate.reply_text(some, decision) for decision in range(2 * len(SIZES))]
        return list(dict.fromkeys(word for text in (*prompts, *replies) for word in text.split()))

    def demonstration(self, draw: random.Random) -> pt.Demonstration:
        slot = random_slot(draw)
        user, room, decision = draw.choice(list(gate.rule_decisions(slot, table(draw, self.taught))))
        return demonstration_of(gate.prompt_text(slot, user, room), gate.reply_text(slot, decision))


def random_slot(draw: random.Random) -> Slot:
    """Without pictures and outcomes: for demonstrations."""
    users = tuple(user_of(scenes.wish(draw, scenes.SEEN)) for _ in range(scenes.USERS))
    return Slot("", draw.choice(scenes.BUDGETS), SIZES, users, ())


def table(draw: random.Random, share: float) -> gate.Rule:
    """The rule table for a share of decisions, and for the rest any decision that fits."""

    def rule(slot: Slot, user: User, room: int) -> int:
        if draw.random() < share:
            return gate.rule_table(slot, user, room)
        return draw.choice([decision for decision in range(2 * len(SIZES)) if slot.size(decision) <= room])

    return rule


# ---- what is measured

CHARGES = Charges(gate_ms=GATE_MS)
EARLY = (5, 10, 20)  # batches after which the reward is looked at
Tasks = Callable[[pt.Lab, Sequence[Slot]], list[pt.Task]]


def gate_tasks(lab: pt.Lab, some: Sequence[Slot]) -> list[pt.Task]:
    return gate.gate_tasks(some)


def agent_tasks(lab: pt.Lab, some: Sequence[Slot]) -> list[pt.Task]:
    return lab.notes["reader"].slot_tasks(some)


def rollouts_of(lab: pt.Lab, some: Sequence[Slot], tasks_of: Tasks) -> list[pt.Rollout]:
    env = gate.user_by_user() if tasks_of is gate_tasks else pt.single_turn
    return lab.evaluate(tasks_of(lab, some), reward(), env, temperature=0.0).rollouts


def slots_for(lab: pt.Lab, split: str, count: int, tasks: Sequence[str] = scenes.SEEN) -> list[Slot]:
    return slots(lab.seed, lab.budget.items(count), split, lab.budget.size(EXPERTS).steps, tasks)


def measures(lab: pt.Lab, tasks_of: Tasks) -> pt.Measures:
    """Of the likeliest decisions; the gate's latency is charged where a prompt is new."""
    seen = rollouts_of(lab, slots_for(lab, "test", TESTS), tasks_of)
    unseen = rollouts_of(lab, slots_for(lab, "unseen", TESTS // 3, scenes.UNSEEN), tasks_of)
    out = means(list(user_measures(of_rollouts(seen), Charges())))
    with_gate = means(list(user_measures(of_rollouts(seen), CHARGES)))
    out |= {f"{name} with gate latency": with_gate[name] for name in ("reward", "latency_ms", "late")}
    out["reward on unseen tasks"] = means(list(user_measures(of_rollouts(unseen), Charges())))["reward"]
    return {**out, **lab.notes.get("early", {})}


def watch(tasks_of: Tasks) -> Callable[[pt.Lab, int], None]:
    """Look at the reward of other slots after a few batches."""

    def look(lab: pt.Lab, step: int) -> None:
        if "early slots" not in lab.notes:
            lab.notes["early slots"] = slots_for(lab, "early", TESTS // 3)
        reached = [early for early in EARLY if step == lab.budget.steps(early)]
        if reached:
            some = lab.notes["early slots"]
            seen = rollouts_of(lab, some, tasks_of)
            found = means(list(user_measures(of_rollouts(seen), Charges())))
            lab.notes.setdefault("early", {}).update(
                (f"reward after {early} batches", found["reward"]) for early in reached
            )

    return look


# ---- arms


def training_slots(lab: pt.Lab) -> list[Slot]:
    return slots_for(lab, "training", TRAINING)


def gate_base(taught: bool) -> Callable[[Any, int, pt.Budget], pt.TextPolicy]:
    """A gate that knows the form of a reply; `taught`: and then the rule table."""

    def policy(world: Gates, seed: int, budget: pt.Budget) -> pt.TextPolicy:
        later = ((Gates(seed, taught=TAUGHT_SHARE), budget.size(TAUGHT)),) if taught else ()
        return base(world, seed, budget.size(TINY), *later)

    return policy


def gate_arm(taught: bool, learns: bool) -> pt.Arm:
    return pt.trial(
        Gates,
        (lambda lab: recipe(reward(), samples=SAMPLES, entropy=ENTROPY)) if learns else None,
        lambda lab: measures(lab, gate_tasks),
        steps=STEPS,
        per_step=PER_STEP,
        lr=RATE,
        tasks=lambda lab: gate_tasks(lab, training_slots(lab)),
        policy=gate_base(taught),
        watch=watch(gate_tasks),
    )


def agent_arm(context: bool, method: Method = "grpo", taught: bool = False) -> pt.Arm:
    """The single agent; `taught`: it has learnt the rule table first, from as many demonstrations as the gate."""
    reader = Reader(scenes.PAIRS, scenes.USERS, SIZES, context)

    def policy(world: Gates, seed: int, budget: pt.Budget) -> Any:
        torch.manual_seed(pt.mix(seed, "agent") % 2**32)
        made = pt.DecisionPolicy(reader.network())
        if taught:
            teach(made, reader, seed, budget)
        return made

    def recipe_of(lab: pt.Lab) -> pt.Recipe:
        lab.notes["reader"] = reader
        return control_recipe(reward(), lab.policy, method=method, samples=SAMPLES, entropy=AGENT_ENTROPY)  # type: ignore[arg-type]

    return pt.trial(
        Gates,
        recipe_of,
        lambda lab: measures(lab, agent_tasks),
        steps=AGENT_STEPS,
        per_step=PER_STEP,
        lr=AGENT_RATE,
        tasks=lambda lab: agent_tasks(lab, training_slots(lab)),
        policy=policy,
        watch=watch(agent_tasks),
    )


def teach(policy: pt.DecisionPolicy, reader: Reader, seed: int, budget: pt.Budget) -> None:
    """The rule table by likelihood: a slot is a demonstration for each of its users."""
    draw, size = random.Random(pt.mix(seed, "taught")), budget.size(TAUGHT)
    optimizer = torch.optim.Adam(policy.parameters(), lr=AGENT_RATE)
    for _ in range(size.steps):
        rows = [agent_demonstration(policy, reader, draw) for _ in range(size.rows // scenes.USERS + 1)]
        pt.update(policy, optimizer, rows, pt.likelihood)
    policy.version = 0


def agent_demonstration(policy: pt.DecisionPolicy, reader: Reader, draw: random.Random) -> Row:
    slot = random_slot(draw)
    decisions = tuple(decision for _, _, decision in gate.rule_decisions(slot, table(draw, TAUGHT_SHARE)))
    [task] = reader.slot_tasks([slot])
    shown = Decision(task.prompt[0]["content"][-1]["features"], decisions)
    turn = Turn(Ask(task.prompt), pt.Reply(decisions, torch.zeros(len(decisions)), shown))
    [row] = rows_of(policy, pt.Rollout(task, [turn]), [turn])
    return replace(row, advantage=torch.ones(len(decisions)))


def rule_arm(rule: gate.Rule) -> pt.Arm:
    def arm(seed: int, budget: pt.Budget) -> pt.Measures:
        lab = pt.Lab(seed, budget, None, None)  # type: ignore[arg-type]
        found = slots_for(lab, "test", TESTS)
        return means(list(user_measures(of_rule(found, rule), Charges())))

    return arm


def digital(seed: int, budget: pt.Budget) -> pt.Measures:
    """The traditional baseline on the same slots."""
    lab = pt.Lab(seed, budget, None, None)  # type: ignore[arg-type]
    shown = captures(seed, budget.items(TESTS), "test")
    found = digital_slots(slots_for(lab, "test", TESTS), shown, pt.mix(seed, "digital"))
    return means(list(user_measures(of_rule(found, only_outcome), Charges())))


ARMS = {
    "static, whole": rule_arm(gate.static("whole", SIZES[2])),
    "static, object": rule_arm(gate.static("object", SIZES[1])),
    "digital": digital,
    "rule table": rule_arm(gate.rule_table),
    "DRL, channel only": agent_arm(context=False),
    "DRL, same context": agent_arm(context=True),
    "DRL, same context, PPO": agent_arm(context=True, method="ppo"),
    "DRL, same context, SFT": agent_arm(context=True, taught=True),
    "gate, SFT": gate_arm(taught=True, learns=False),
    "gate": gate_arm(taught=True, learns=True),
    "gate, no SFT": gate_arm(taught=False, learns=True),
}
CLAIMS = pt.claims("""
    the gate earns more than single-agent DRL that sees the channel
        paper: better than single-agent DRL (numbers not read)
        reward: gate > DRL, channel only
    its pictures are more alike
        paper: higher SSIM than single-agent DRL
        ssim in [0, 1]: gate > DRL, channel only
    it causes fewer retransmissions
        paper: less retransmission overhead than single-agent DRL
        retransmitted in [0, 1]: gate < DRL, channel only
    it converges faster
        paper: faster convergence than single-agent DRL; here the reward after five batches
        reward after 5 batches: gate > DRL, channel only
    it earns more than the whole picture for everyone
        paper: better than traditional baselines
        reward: gate > static, whole
    its pictures are more alike than those of quantised pixels, LDPC and QAM
        paper: better than traditional baselines
        ssim in [0, 1]: gate > digital
    it causes fewer retransmissions than quantised pixels, LDPC and QAM
        paper: better than traditional baselines
        retransmitted in [0, 1]: gate < digital
    the context is what DRL lacks
        ours: the same agent, shown all that the gate is told
        reward: DRL, same context > DRL, channel only
    with the same context, DRL earns as much as the gate
        ours: what language is worth, within 0.02
        reward: DRL, same context > gate - 0.02
    with the same context, the gate still converges faster
        ours: the same agent, shown all that the gate is told
        reward after 5 batches: gate > DRL, same context
    with the same context and the rule table, the gate still converges faster
        ours: an agent of numbers that has learnt the same demonstrations
        reward after 5 batches: gate > DRL, same context, SFT
    on unseen names of tasks, words beat numbers
        ours: pairs of a verb and a thing that were never shown, though each word was
        reward on unseen tasks: gate > DRL, same context
    GRPO improves on the rule table that was learnt
        ours: the stage before
        reward: gate > gate, SFT
    GRPO improves on the rule table itself
        ours: it needs no network
        reward: gate > rule table
    without the rule table first, GRPO converges more slowly
        ours: what SFT is for
        reward after 5 batches: gate > gate, no SFT
    PPO with a critic earns no more than the gate's credit
        ours: which of them is the stronger control
        reward: DRL, same context > DRL, same context, PPO - 0.02
    the latency of words undoes it where contexts are new
        ours: 100 ms for each prompt that did not come before, of 768 slots with random contexts
        reward with gate latency: gate < DRL, channel only
""")
HEADLINE = pt.Headline("the gate earns more than single-agent DRL that sees the channel")
PICTURE = "reward"
SMOKE = pt.Smoke(
    """
    laptop
    laptop --no-taught
    experts --data {radio_slots} --side 12 --sizes 4 8 --hidden 8 --updates 3
    sft --data {radio_slots} --experts {picture_experts} --held-out {radio_slots}
    train --data {radio_slots} --experts {picture_experts} --max-new 4 --samples 2 --held-out {radio_slots}
    control --data {radio_slots} --experts {picture_experts} --held-out {radio_slots}
    control --data {radio_slots} --experts {picture_experts} --method ppo --blind
    evaluate --data {radio_slots} --experts {picture_experts} --max-new 4 --gate-ms 100
    evaluate --data {radio_slots} --experts {picture_experts} --baseline table
    """,
    {"lab.TRAINING": 16, "lab.UPDATES": 3, "lab.PICTURES": 24},
)
