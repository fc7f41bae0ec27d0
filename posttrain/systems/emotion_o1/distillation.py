"""Which of a teacher's chains are kept: those with the right label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import posttrain as pt
from posttrain.grade.stated import whole_reply
from posttrain.systems.emotion_o1.reply import stated


def right_chain(group: pt.Group) -> Mapping[str, Any] | pt.Invalid:
    """The first reply in form that has the right label."""

    def is_right(one: pt.Rollout) -> bool:
        said = stated(whole_reply(one), one.task.truth.labels)
        return said is not None and said.label == one.task.truth.label

    found, truth = pt.first_kept(group, is_right), group[0].task.truth
    return found if isinstance(found, pt.Invalid) else {"task": truth.task, "label": truth.label, **found}
