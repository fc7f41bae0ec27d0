"""A multi-turn environment with a tool: the model may hand one sum to a calculator before it answers."""

import re
import sys

import posttrain as pt
from posttrain import tiny

CALL = re.compile(r"(\d+)([-+*])(\d+)")


def calculator(text: str) -> str:
    """What the tool says of the first sum in a text."""
    found = CALL.search(text)
    if not found:
        return "no sum found"
    a, sign, b = int(found[1]), found[2], int(found[3])
    return str({"+": a + b, "-": a - b, "*": a * b}[sign])


def with_calculator(task: pt.Task) -> pt.Episode:
    """Ask, calculate what was written, show the result, ask again. Facts: whether a sum was handed over."""
    first = yield from pt.ask(task.prompt)
    result = calculator(first.content)
    yield from pt.ask([*task.prompt, pt.assistant(first), pt.tool(f"calculator: {result}")])
    return result != "no sum found"


def reward(group: pt.Group) -> list[pt.Score]:
    """The final answer counts, and a little the use of the tool."""
    return [
        pt.Score(float(rollout.text.endswith(f"#### {rollout.task.truth}")) + 0.1 * rollout.facts) for rollout in group
    ]


if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    pt.check_env(with_calculator, tiny.tasks(1)[0], ["4+5=9 #### 9"])
    policy = pt.text("tiny", max_new=32)
    recipe = pt.Recipe(reward, with_calculator)
    pt.train(policy, tiny.tasks(500), recipe, pt.Run("runs/tool", steps=steps, lr=5e-4, overwrite=True))
