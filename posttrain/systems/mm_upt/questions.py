"""Questions that the model writes itself, given a picture, and then answers by majority vote.

in-context  it sees the picture with a question and its answer, and writes another question
direct      it sees the picture alone
(MM-UPT, arXiv:2505.22453, Sec. 3.3.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import posttrain as pt

Mode = Literal["in-context", "direct"]
WRITE: dict[str, str] = {
    "in-context": (
        "Here is a question about the picture and its answer.\nQuestion: {question}\nAnswer: {answer}\n"
        "Write a new question about the picture that means something else and can be answered from it. "
        "Reply with the question only."
    ),
    "direct": "Write a question about the picture that can be answered from it. Reply with the question only.",
}
STEPS = " Please reason step by step, and put your final answer within \\boxed{}."


def parts_of(task: pt.Task) -> tuple[list[Any], str]:
    """The pictures and the text of a task's last message."""
    content = task.prompt[-1]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    pictures = [part for part in parts if part.get("type") == "image"]
    return pictures, "".join(part["text"] for part in parts if part.get("type") == "text").strip()


def check_pictures(tasks: Sequence[pt.Task], mode: Mode) -> None:
    """Raises ValueError for a task that shows no picture about which a question could be written."""
    for task in tasks:
        if not parts_of(task)[0]:
            raise ValueError(
                f"`own_questions={mode}`: they are about pictures, and task {task.key!r} shows none; name the column "
                "of pictures with `image`"
            )


def to_write(mode: Mode) -> Callable[[pt.Task], tuple[pt.Message, ...]]:
    """What the model is asked, to write a question about a task's pictures."""

    def request(task: pt.Task) -> tuple[pt.Message, ...]:
        pictures, question = parts_of(task)
        words = WRITE[mode].format(question=question.removesuffix(STEPS.strip()).strip(), answer=task.truth)
        return (pt.user([*pictures, {"type": "text", "text": words}]),)

    return request


def in_words(task: pt.Task, text: str) -> str | None:
    """The question as it will be asked; None for an empty one, and for the task's own."""
    question, own = text.strip(), parts_of(task)[1].removesuffix(STEPS.strip()).strip()
    return None if not question or question == own else question + STEPS


def questions(
    policy: pt.Sampler,
    tasks: Sequence[pt.Task],
    request: Callable[[pt.Task], tuple[pt.Message, ...]],
    read: Callable[[pt.Task, str], str | None],
    seed: int = 0,
) -> list[pt.Task]:
    """A question of the policy's own for each task, on the same pictures and without a truth.

    request  what the policy is asked
    read     the question in its reply; None for one that is not usable
    Replies that were cut off or are not usable are left out. Raises ValueError when nothing is left.
    """

    def write(task: pt.Task) -> Any:
        yield from pt.ask(request(task))

    out = []
    found, _ = pt.play_and_grade(tasks, write, pt.each(lambda one: 0.0), {"policy": policy}, 1, seed)
    for task, [one] in zip(tasks, (graded.group for graded in found), strict=True):
        text = None if one.truncated else read(task, one.text)
        if text is not None:
            content = [*parts_of(task)[0], {"type": "text", "text": text}]
            out.append(pt.Task(f"{task.key}:synthetic", (*task.prompt[:-1], pt.user(content)), None))
    if not out:
        raise ValueError(f"the policy wrote no usable question about the pictures of {len(tasks)} tasks")
    return out
