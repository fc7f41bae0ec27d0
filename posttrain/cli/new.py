"""`posttrain new`: a project in one file, to begin from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import tyro

TEMPLATE = Path(__file__).with_name("project.py.txt")
ENDINGS = {
    "reply": "",
    "env": '''

def env(task: pt.Task) -> pt.Episode:
    """What happens between the question and the last reply. What it returns is `rollout.facts` in a reward."""
    first = yield from pt.ask(task.prompt)
    yield from pt.ask([*task.prompt, pt.assistant(first), pt.user("Are you sure? Calculate again.")])
''',
    "tools": '''

def calculator(expression: str) -> str:
    """The value of a sum, difference or product of two numbers.

    Args:
        expression: such as 12*7
    """
    a, sign, b = re.fullmatch(r"\\s*(\\d+)\\s*([-+*])\\s*(\\d+)\\s*", expression).groups()
    return str({"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign])


tools = [calculator]  # the chat template shows them to the model, and what a call returns goes back to it
''',
}


def new(
    name: Annotated[str, tyro.conf.Positional],
    kind: Literal["reply", "env", "tools"] = "reply",
) -> None:
    """Write a project in one file: tasks, a reward, and an environment or tools, ready to run and to be changed.

    name  of the project; NAME.py is written
    kind  what is graded: one reply, an environment of your own, or a conversation with tools
    """
    path = Path(name if name.endswith(".py") else f"{name}.py")
    if not path.stem.isidentifier():
        raise ValueError(f"`name={name}`: {path.stem!r} is no name of a Python module; use letters, digits and _")
    if path.exists():
        raise ValueError(f"`name={name}`: {path} is there already")
    if not path.parent.is_dir():
        raise ValueError(f"`name={name}`: there is no folder {path.parent}")
    title = re.sub(r"_+", " ", path.stem).strip().capitalize()
    text = TEMPLATE.read_text().format(title=title, file=path, name=path.stem, env=ENDINGS[kind])
    if kind == "tools":
        text = text.replace("import random\n", "import random\nimport re\n")
    path.write_text(text.rstrip() + "\n")
    model = "Qwen/Qwen2.5-0.5B-Instruct --max-new 256" if kind == "tools" else "tiny --max-new 32"
    print(f"{path} is written; try: posttrain train {path} --model {model} --steps 20 --out runs/{path.stem}")
