"""Episodes: a state, an action, what it comes to; one action from a pooled state, or many from the beginning."""

from __future__ import annotations

import difflib
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import posttrain as pt
from posttrain.systems.ml_agent import actions
from posttrain.systems.ml_agent.actions import MOST_LINES, Action
from posttrain.systems.ml_agent.bench import BENCH, Execution, Job
from posttrain.systems.ml_agent.problem import Problem
from posttrain.systems.ml_agent.prompt import Dialect, code_in, cut, edit_request, question
from posttrain.systems.ml_agent.reward import Course, Effect, Kind
from posttrain.systems.ml_agent.workspace import Refused, State, Step, Workspace, clean_path

MOST_DIFF = 2000  # lines of both scripts together
EDITOR = "editor"  # the second model, by the name that episodes ask
Returned = TypeVar("Returned")
Asking: TypeAlias = Generator[list[pt.Ask], list[pt.Reply], Returned]


@dataclass(frozen=True, slots=True)
class Start:
    """A task's truth: the state that an episode begins in, how long it is, and what an expert is told to try."""

    state: State
    most: int = 1  # actions: one is step-wise reinforcement, more are a whole episode
    ideas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """What an action has brought about."""

    observation: str
    kind: Kind = "neutral"
    workspace: Workspace | None = None  # None: as it was
    metric: float | None = None  # None: as it was
    executed: int = 0


def beginning(problem: Problem) -> State:
    return State(problem.name, problem.start)


def task_of(key: str, problem: Problem, start: Start, dialect: Dialect) -> pt.Task[Start]:
    return pt.Task(key, dialect.messages(problem, start.state, start.ideas), start)


def agent(problems: Mapping[str, Problem], dialect: Dialect, *, editor: bool = True, recording: bool = False) -> pt.Env:
    """Actions from the state of the task, as many as it says, or up to a final answer; the facts are a `Course`.

    editor     a player of that name edits scripts by an instruction; without, the policy writes them
    recording  keep every state
    """

    def env(task: pt.Task[Start]) -> pt.Episode:
        start = task.truth
        problem, state = problems[start.state.problem], start.state
        effects, states = list[Effect](), [state]
        for _ in range(start.most):
            messages = dialect.messages(problem, state, start.ideas)
            reply = yield from pt.ask(messages, stop=dialect.stop)
            said = str(reply.content)
            try:
                action = dialect.action(problem, said)
                found = yield from consequence(problem, state, action, editor)
                done = action.name == actions.ANSWER
                label = str(action)
            except Refused as error:
                found, done, label = Found(str(error), "invalid"), False, "an invalid action"
            metric = state.metric if found.metric is None else found.metric
            effects.append(Effect(found.kind, state.metric, metric, found.executed))
            state = state.after(Step(said, label, cut(found.observation), metric), found.workspace)
            states.append(state)
            if done:
                break
        return Course(problem.name, tuple(effects), state.metric, tuple(states) if recording else ())

    return env


def consequence(problem: Problem, state: State, action: Action, editor: bool) -> Asking[Found]:
    """What the action comes to. Raises Refused for one that cannot be done."""
    workspace = state.workspace
    match action.name:
        case actions.LIST:
            return Found(listing(workspace.files(problem), action.text("dir_path")))
        case actions.COPY:
            text, target = workspace.read(problem, action.text("source")), action.text("destination")
            return (
                yield from anew(problem, workspace.write(problem, target, text), f"The file is copied to {target}.")
            )
        case actions.UNDO:
            undone = workspace.undo(action.text("script_name"))
            return (yield from anew(problem, undone, "The last edit is undone."))
        case actions.EXECUTE:
            return (yield from run(problem, workspace, action.text("script_name")))
        case actions.INSPECT:
            return Found(numbered_lines(workspace.read(problem, action.text("script_name")), action))
        case actions.UNDERSTAND:
            text = workspace.read(problem, action.text("file_name"))
            wish = f"Tell what is in this file. Look for: {action.text('things_to_look_for')}"
            return Found((yield from second_opinion(text, wish, editor)))
        case actions.REFLECT:
            log = "\n\n".join(f"{one.action}\n{one.observation}" for one in state.steps)
            wish = f"Look back over these steps. Think about: {action.text('things_to_reflect_on')}"
            return Found((yield from second_opinion(log, wish, editor)))
        case actions.ANSWER:
            return Found("")
    return (yield from edit(problem, state, action, editor))


def second_opinion(text: str, wish: str, editor: bool) -> Asking[str]:
    """What the second model says of the text; the text itself where there is none."""
    if not editor:
        return text
    reply = yield from pt.ask(question(text, wish), EDITOR)
    return str(reply.content)


def listing(files: Iterable[str], folder: str) -> str:
    """The paths below a folder. Raises Refused for one that leads out."""
    below = "" if folder in (".", "./") else f"{clean_path(folder)}/"
    return "\n".join(name for name in sorted(files) if name.startswith(below))


def numbered_lines(text: str, action: Action) -> str:
    """Raises Refused for more than 100 lines."""
    first, last = action.lines()
    if last - first >= MOST_LINES:
        raise Refused(f"At most {MOST_LINES} lines can be inspected at once.")
    return "\n".join(f"{first + i}: {line}" for i, line in enumerate(text.splitlines()[first - 1 : last]))


def run(problem: Problem, workspace: Workspace, name: str) -> Asking[Found]:
    """Executes a script of the workspace. Raises Refused where there is none of that name."""
    workspace.read(problem, name)  # which refuses what is not there
    path = clean_path(name)
    got = yield from execute(problem, workspace, path)
    if path == problem.script and got.ending == "finished" and got.metric is None:
        return Found(f"{got.output}\nNo metric was printed.", "error", executed=1)
    kind: Kind = "neutral" if got.ending == "finished" else got.ending
    return Found(got.output, kind, metric=got.metric, executed=1)


def execute(problem: Problem, workspace: Workspace, path: str) -> Asking[Execution]:
    job = Job(problem, workspace.files(problem), path)
    reply = yield from pt.ask((pt.user(job),), BENCH)
    return reply.content


def anew(problem: Problem, workspace: Workspace, observation: str) -> Asking[Found]:
    """The workspace without an edit's reward; its script is executed, so that the metric is again its own."""
    got = yield from execute(problem, workspace, problem.script)
    if got.ending != "finished" or got.metric is None:
        return Found(
            f"{observation}\n{got.output}", "limit" if got.ending == "limit" else "error", workspace, executed=1
        )
    return Found(observation, "neutral", workspace, got.metric, 1)


def edit(problem: Problem, state: State, action: Action, editor: bool) -> Asking[Found]:
    """The script as edited, which is executed. Raises Refused for one that cannot be read or written."""
    old = state.workspace.read(problem, action.text("script_name"))
    lines = old.splitlines(keepends=True)
    first, last = action.lines() if action.name == actions.EDIT_SEGMENT else (1, len(lines))
    part = "".join(lines[first - 1 : last])
    if not editor:
        new = action.text("new_text")
    else:
        reply = yield from pt.ask(edit_request(part, action.text("edit_instruction")), EDITOR)
        given = code_in(reply)
        if given is None:
            return Found("The assistant has given no script.", "limit")
        new = given
    whole = "".join(map(closed_line, (*lines[: first - 1], new, *lines[last:])))
    target = action.text("save_name")
    workspace = state.workspace.write(problem, target, whole)
    got = yield from execute(problem, workspace, problem.script)
    observation = f"{difference(lines, whole.splitlines(keepends=True), target)}\n{got.output}"
    if got.ending != "finished":
        return Found(observation, got.ending, workspace, executed=1)
    if got.metric is None:
        return Found(f"{observation}\nNo metric was printed.", "error", workspace, executed=1)
    return Found(observation, "edit", workspace, got.metric, 1)


def closed_line(text: str) -> str:
    """Text with a line break at its end, if it is any."""
    return text if not text or text.endswith("\n") else f"{text}\n"


def difference(before: list[str], after: list[str], target: str) -> str:
    """A unified diff; of scripts too long for one, whose time grows faster than their length, how long they are."""
    if len(before) + len(after) > MOST_DIFF:
        return f"{target}: {len(before)} lines became {len(after)}."
    return "".join(difflib.unified_diff(before, after, "before", target))
