"""The progressive rule reward of one step, by comparison with recorded actions.

-1   no complete <action>...</action>; in strict mode, no thought either
0.1  another action's name than the recorded one's
0.2  the name is right and an argument differs; or all is right, and the reply goes on behind the action
1    the action is right, and the reply ends there

The values are the released code's. It compares text, so that other quotes are wrong; takes a closing bracket in an
argument for the end of it; and tells whether a reply ended from the length of what follows, which rests on how the end
token is spelt. Here values are compared, and the reply tells whether it ended.
"""

from __future__ import annotations

from dataclasses import dataclass

import posttrain as pt
from posttrain.browser.actions import Action
from posttrain.grade.stated import whole_reply
from posttrain.systems.workforceagent_r1.reply import stated

UNFORMED, NAMED_WRONG, NAMED, RIGHT = -1.0, 0.1, 0.2, 1.0


@dataclass(frozen=True, slots=True)
class Truth:
    """The recorded action, and others that are as right: fields of a form may be filled in any order."""

    action: Action
    needed: tuple[Action, ...] = ()

    @property
    def right(self) -> tuple[Action, ...]:
        return (self.action, *self.needed)


def reward(strict: bool = False, single: bool = False) -> pt.Reward:
    """The reward of tasks whose truth is a `Truth`. Parts: formed, named, right, stopped, each 0 or 1.

    strict  a reply that does not think first earns what no action earns
    single  only the recorded action is right, as published
    """

    def grade(rollout: pt.Rollout) -> pt.Score:
        right = rollout.task.truth.right[:1] if single else rollout.task.truth.right
        found = stated(whole_reply(rollout))
        if found is None or (strict and not found.thought):
            return pt.Score(UNFORMED, dict.fromkeys(("formed", "named", "right", "stopped"), 0.0))
        named = any(found.name == one.name for one in right)
        is_right = found.action in right
        stopped = found.stops and rollout.turns[-1].reply.stop != "length"
        value = RIGHT if is_right and stopped else NAMED if named else NAMED_WRONG
        parts = {"named": float(named), "right": float(is_right), "stopped": float(stopped)}
        return pt.Score(value, {"formed": 1.0, **parts})

    return pt.each(grade)


def evaluation() -> pt.Reward:
    """Step accuracy, in {0, 1}: the action is right, whatever stands around it."""

    def grade(rollout: pt.Rollout) -> float:
        found = stated(whole_reply(rollout))
        return float(found is not None and found.action in rollout.task.truth.right)

    return pt.each(grade)
