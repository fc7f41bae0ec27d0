"""The language gate: a prompt for each user in turn, JSON in return, and the rule table that it is first taught.

    task=find disc; priority=high; latency=30ms; snr=5dB; bw=32; items=[0:object:288,1:background:1760]
    {"select": [0], "experts": {"image": "E1"}}

`bw` is the largest size of a transmission that fits into the symbols that are left to the user. Item 0 alone is the
object's region, both are the whole; E0, E1, E2 are the sizes of transmissions, ascending. Numbers are coarse, so that a
decision can be kept by its prompt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import posttrain as pt
from posttrain.systems.casemcom.experts import REGIONS
from posttrain.systems.casemcom.slots import Slot, User

SNR_STEP_DB = 5
FINE_DB = {"object": 20.0, "whole": 22.0}  # from here on the rule table sends the second size
INSTRUCTIONS = (
    "You choose what of a picture is sent over a radio channel. You are told the task of the receiver, its priority, "
    "the latency that it tolerates, the signal-to-noise ratio, the symbols that may be used, and the items of the "
    'picture with their bits. Reply with JSON alone: {{"select": [0], "experts": {{"image": "E0"}}}}. Select [0] to '
    "send the object alone, [0, 1] to send all of the picture. The experts: {experts}."
)

Rule = Callable[[Slot, User, int], int]  # of a slot, a user and its room: a decision


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision that was taken. `misread`: what was said could not be read, or cost too much: the default is taken."""

    decision: int
    misread: bool
    prompt: str = ""


def prompt_text(slot: Slot, user: User, room: int) -> str:
    snr_db = SNR_STEP_DB * round(user.snr_db / SNR_STEP_DB)
    width = slot.size(slot.decision("whole", room))
    items = f"[0:object:{user.bits[0]},1:background:{user.bits[1]}]"
    return (
        f"task={user.task}; priority={user.priority}; latency={user.latency_ms:g}ms; snr={snr_db}dB; bw={width}; "
        f"items={items}"
    )


def messages(slot: Slot, user: User, room: int, instructions: str = "") -> tuple[pt.Message, ...]:
    said = pt.user(prompt_text(slot, user, room))
    return (pt.system(instructions), said) if instructions else (said,)


def instructions_of(sizes: Sequence[int]) -> str:
    return INSTRUCTIONS.format(experts=", ".join(f"E{i} sends {size} symbols" for i, size in enumerate(sizes)))


def reply_text(slot: Slot, decision: int) -> str:
    region, size = divmod(decision, len(slot.sizes))
    return json.dumps({"select": [0] if REGIONS[region] == "object" else [0, 1], "experts": {"image": f"E{size}"}})


def parse_reply(text: str, slot: Slot) -> int | None:
    """The decision that a reply states, which is JSON and nothing else; None for any other text."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or set(found) != {"select", "experts"}:
        return None
    selected, experts = found["select"], found["experts"]
    if not isinstance(selected, list) or any(type(item) is not int for item in selected):
        return None
    regions = {(0,): "object", (0, 1): "whole"}
    names = [f"E{i}" for i in range(len(slot.sizes))]
    region = regions.get(tuple(sorted(selected)))
    if region is None or not isinstance(experts, dict) or set(experts) != {"image"} or experts["image"] not in names:
        return None
    return REGIONS.index(region) * len(slot.sizes) + names.index(experts["image"])


# ---- one user after another


def user_by_user(instructions: str = "") -> pt.Env:
    """Ask for one decision for each user; what it costs is taken off before the next is asked."""

    def env(task: pt.Task[Slot]) -> pt.Episode:
        slot, left = task.truth, task.truth.symbols
        for i, user in enumerate(slot.users):
            room = slot.room(left, i)
            reply = yield from pt.ask(messages(slot, user, room, instructions))
            left -= slot.size(take(slot, str(reply.content), room).decision)

    return env


def take(slot: Slot, text: str, room: int, prompt: str = "") -> Decided:
    """What a reply decides. In place of what cannot be read or costs more than the room, the least of the whole."""
    decision = parse_reply(text, slot)
    if decision is None or slot.size(decision) > room:
        return Decided(slot.decision("whole", 0), True, prompt)
    return Decided(decision, False, prompt)


def decisions_in(rollout: pt.Rollout) -> list[Decided]:
    """The decision for every user: of the gate's replies, or of one reply that holds the indices of all."""
    slot: Slot = rollout.task.truth
    contents = [turn.reply.content for turn in rollout.turns]
    if len(contents) == 1 and not isinstance(contents[0], str):
        return [Decided(decision, False) for decision in contents[0]]
    out, left = list[Decided](), slot.symbols
    for i, (user, text) in enumerate(zip(slot.users, contents, strict=True)):
        room = slot.room(left, i)
        out.append(take(slot, text, room, prompt_text(slot, user, room)))
        left -= slot.size(out[-1].decision)
    return out


def gate_tasks(slots: Sequence[Slot], instructions: str = "") -> list[pt.Task[Slot]]:
    """Their prompts are what is asked first."""
    return [pt.Task(one.key, messages(one, one.users[0], one.room(one.symbols, 0), instructions), one) for one in slots]


# ---- rules


def rule_table(slot: Slot, user: User, room: int) -> int:
    """The task's region; the second size where the task wants it fine, else the first. It looks at no channel."""
    return slot.decision(user.region, min(room, slot.sizes[min(user.least_db >= FINE_DB[user.region], 1)]))


def static(region: str, symbols: int) -> Rule:
    """The same for everyone: the region, in the most symbols up to these that an equal share of the budget holds."""

    def rule(slot: Slot, user: User, room: int) -> int:
        return slot.decision(region, min(room, symbols, slot.symbols // len(slot.users)))

    return rule


def rule_decisions(slot: Slot, rule: Rule) -> Iterator[tuple[User, int, int]]:
    """Each user with its room and what the rule decides."""
    left = slot.symbols
    for i, user in enumerate(slot.users):
        room = slot.room(left, i)
        decision = rule(slot, user, room)
        yield user, room, decision
        left -= slot.size(decision)


def demonstrations(slots: Sequence[Slot], rule: Rule = rule_table, instructions: str = "") -> list[pt.Demonstration]:
    """What a rule would have replied to the gate's prompts."""
    return [
        pt.Demonstration(
            (*messages(slot, user, room, instructions), pt.assistant(reply_text(slot, decision))), f"slot {slot.key!r}"
        )
        for slot in slots
        for user, room, decision in rule_decisions(slot, rule)
    ]
