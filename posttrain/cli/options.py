"""Options that several commands and stages share: groups of arguments that make a policy, tasks, or an engine."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Suppress

if TYPE_CHECKING:
    from posttrain.core import Env, Reward, Sampler, Task
    from posttrain.data import Demonstration, Pair
    from posttrain.policy.encoders import Encoder
    from posttrain.policy.text import TextPolicy
    from posttrain.policy.value import RewardModel
    from posttrain.project import Project


def check_choice(value: str, known: Iterable[str], argument: str) -> str:
    """The value, or a ValueError that suggests the nearest one."""
    choices = list(known)
    if value in choices:
        return value
    near = difflib.get_close_matches(value, choices, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"`{argument}={value}`: unknown, the choices are {', '.join(choices)}{hint}")


def at_least(least: float, /, **arguments: float | None) -> None:
    """Raises ValueError naming the first argument that is less."""
    for name, value in arguments.items():
        if value is not None and not value >= least:
            raise ValueError(f"`{name}={value}`: it must be at least {least}")


def weighted_names(given: str, argument: str) -> list[tuple[str, float]]:
    """`math*1,style.py:brief*0.1` as names with their weights, which are 1 where none is given.

    Raises ValueError for a weight that is no number, and for a name that comes twice.
    """
    found: dict[str, float] = {}
    for entry in given.split(","):
        name, star, weight = entry.strip().rpartition("*")
        name, weight = (name, weight) if star else (weight, "1")
        try:
            value = float(weight)
        except ValueError:
            raise ValueError(f"`{argument}={given}`: {weight!r} is no weight; write {name}*0.5") from None
        if name in found or not name or not math.isfinite(value):
            raise ValueError(f"`{argument}={given}`: write NAME*WEIGHT,NAME*WEIGHT, each name once")
        found[name] = value
    return list(found.items())


def weighted_files(data: str) -> dict[str, int]:
    """The files of `a.jsonl*2,b.jsonl`, each with how often its tasks come. Raises ValueError for other weights."""
    if Path(data).is_file():
        return {data: 1}
    found = weighted_names(data, "data")
    if bad := [weight for _, weight in found if weight < 1 or weight != int(weight)]:
        raise ValueError(f"`data={data}`: a weight of {bad[0]:g}; every task comes a whole number of times")
    return {name: int(weight) for name, weight in found}


def with_prefix(tasks: Iterable[Task], prefix: str) -> list[Task]:
    """Tasks of one of several files, whose keys stay apart."""
    return [replace(task, key=prefix + task.key) for task in tasks]


def named_files(entries: Iterable[str], argument: str = "held_out") -> dict[str, str]:
    """The files of a repeatable `argument` by name: `math=math500.jsonl`, or a file by its stem; one alone has no name.

    Raises ValueError for a name that comes twice.
    """
    given, found = list(entries), dict[str, str]()
    for entry in given:
        name, sign, file = entry.partition("=")
        if not sign or "/" in name:
            name, file = "" if len(given) == 1 else Path(entry).stem, entry
        if name in found:
            raise ValueError(f"`{argument}={entry}`: there are two sets named {name}; name them: NAME=FILE")
        found[name] = file
    return found


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is run."""

    model: str = "tiny"
    """Hub id, folder of a Hugging Face checkpoint, GGUF file, `smollm2` (SmolLM2-135M-Instruct), or `tiny`, a small one
    built here."""
    template: str | None = None
    """Chat template for a tokenizer without one: chatml, plain, or a Jinja file."""
    max_new: int = 256
    """Most tokens in a reply."""
    temperature: float = 1.0
    """Sampling temperature; the loss uses the same."""
    stop: str | None = None
    """A string that ends a reply, besides the end-of-turn token."""
    lora: int = 0
    """Rank of a LoRA adapter on every linear layer; 0 trains all parameters."""
    bf16: bool = False
    """Run the model in bfloat16, except on a CPU that it makes slower; weights and optimizer stay float32."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here if not given."""
    threads: int | None = None
    """torch threads; one for models under 2 M parameters if not given."""
    min_pixels: int | None = None
    """Fewest pixels of a resized picture, for a model that sees; the checkpoint's, or the system's, if not given."""
    max_pixels: int | None = None
    """Most pixels of a resized picture: fewer take less memory."""
    weights: Annotated[bool, Suppress] = True
    """Load the weights; without them the model can be planned and not run."""

    def with_pixel_limits(self, least: int | None, most: int) -> ModelOptions:
        """With these limits on the pixels of pictures, except where limits were given."""
        low, high = self.min_pixels, self.max_pixels
        if low is None and least is not None:
            low = least if high is None else min(least, high)
        if high is None:
            high = most if low is None else max(most, low)
        return replace(self, min_pixels=low, max_pixels=high)

    def policy(self, *encoders: Encoder) -> TextPolicy:
        """The trainable policy, shown parts by these encoders; without `weights` it can be planned and not run."""
        from functools import partial

        from posttrain import ranks
        from posttrain.policy.load import inject, load_policy

        at_least(1, max_new=self.max_new, threads=self.threads)
        at_least(0, temperature=self.temperature, lora=self.lora)
        load = partial(inject, encoders=encoders) if encoders else load_policy
        return load(
            self.model,
            max_new=self.max_new,
            temperature=self.temperature,
            stop=(self.stop,) if self.stop else (),
            template=self.template,
            lora=self.lora,
            bf16=self.bf16,
            checkpointing=self.checkpointing,
            device=self.device if ranks.world() == 1 else "cpu",  # sharded over the ranks' devices later
            threads=self.threads,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
            weights=self.weights,
        )

    def player(self, name: str, temperature: float | None = None) -> Sampler:
        """Another player: a judge, a teacher, an opponent.

        name  a Hub id or folder of a checkpoint, which runs in this process with a template of its own, or the address
              of a chat server; of a server's several models, http://host:8000/v1#MODEL is one
        Raises ServerError or ValueError, before any work, when it cannot be reached or loaded.
        """
        from posttrain.sampler.server import server

        own = self.temperature if temperature is None else temperature
        if not name.startswith("http"):
            return replace(
                self, model=name, template=None, stop=None, lora=0, checkpointing=False, temperature=own
            ).policy()
        found = server(name, max_new=self.max_new, temperature=own)
        _ = found.server.model
        return found


@dataclass(frozen=True)
class ScorerOptions:
    """The model that learns to score."""

    model: str = "tiny"
    """Hub id or folder of a sequence classifier, or of a causal model, which gets a fresh head."""
    template: str | None = None
    """Chat template for a tokenizer without one: chatml, plain, or a Jinja file."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; the best one here if not given."""
    threads: int | None = None
    """torch threads; one for models under 2 M parameters if not given."""
    weights: Annotated[bool, Suppress] = True
    """Load the weights; without them the model can be planned and not run."""

    def reward_model(self) -> RewardModel:
        from posttrain.policy.value import reward_model

        return reward_model(**vars(self))


@dataclass(frozen=True)
class TaskOptions:
    """Which tasks, and how their replies are graded."""

    data: str
    """JSONL, CSV or Parquet file, a Hugging Face dataset id (id:configuration), or a project (posttrain new). Several
    are separated by commas; of FILE*2 every task comes twice as often."""
    prompt: str = "prompt"
    """Column of the prompt (text or chat messages), or a template such as "Solve: {question}"."""
    answer: str | None = "answer"
    """Column of the truth that the grader sees."""
    grade: str | None = None
    """math, exact, choice, contains, json, or file.py:function for a reward of your own; or a weighted sum of them:
    math*1,style.py:brief*0.1. If not given: the project's reward, or math."""
    reward_timeout: float = 300.0
    """Seconds that a call of a reward of your own may take; after that its samples count as ungradable."""
    image: str | None = None
    """Column of pictures: a path relative to the file, or several; <image> in the prompt says where each stands."""
    system: str | None = None
    """A system message put before every prompt."""
    limit: int | None = None
    """Use only the first so many lines."""
    split: str = "train"
    """Split of a Hugging Face dataset."""

    @property
    def project(self) -> Project | None:
        """The user's project, if that is what `data` names."""
        from posttrain.project import is_project, project_in

        return project_in(self.data) if is_project(self.data) else None

    def tasks(self, data: str | None = None, split: str | None = None) -> list[Task]:
        """The tasks of `data`, or all of another file or dataset with the same columns."""
        files = weighted_files(data or self.data)
        found = {file: self.read(file, split, None if data else self.limit) for file in files}
        if len(files) > 1:
            found = {file: with_prefix(tasks, f"{Path(file).stem}/") for file, tasks in found.items()}
        return [task for file, count in files.items() for _ in range(count) for task in found[file]]

    def read(self, data: Any, split: str | None = None, limit: int | None = None) -> list[Task]:
        """The tasks of one file, of a project, or of records."""
        from posttrain.core import Task
        from posttrain.data import read
        from posttrain.project import is_project, project_in

        items = project_in(data).items("tasks") if is_project(data) else data
        if not isinstance(items, str) and isinstance(items[0], Task):
            return list(items[:limit])
        where = {"split": split or self.split, "system": self.system, "image": self.image}
        return read(items, self.prompt, self.answer, limit=limit, **where)

    def tests(self, held_out: Iterable[str], split: str = "test") -> dict[str, list[Task]]:
        """The tasks of held-out files with the same columns, by name; a project's own if no file is given."""
        files = named_files(held_out)
        if not files and self.project:
            return {name: self.read(items) for name, items in self.project.held_out.items()}
        return {name: self.tasks(file, split) for name, file in files.items()}

    def reward(self) -> Reward:
        """What `grade` names; if it is not given the project's reward, or `math`.

        Raises ValueError for a grader, a file or a function that is not there.
        """
        from posttrain.grade import own

        at_least(1e-3, reward_timeout=self.reward_timeout)
        if self.grade is None and self.project and self.project.reward:
            return own(self.project.reward, self.reward_timeout)
        return named_reward(self.grade or "math", self.reward_timeout)

    def check_answers(self, tasks: Sequence[Task]) -> None:
        """Raises ValueError, naming the task, for an answer that a grader of these options cannot compare with."""
        from posttrain.grade import GRADES, check_answers

        if self.grade is None and self.project and self.project.reward:
            return
        for name, _ in weighted_names(self.grade or "math", "grade"):
            if name in GRADES:
                check_answers(name, tasks)

    def env(self, env: str | None, otherwise: Env | None = None) -> Env:
        """That of the user's own file, or of a recipe (`otherwise`), or of the project, or a single turn."""
        from posttrain.episode import single_turn
        from posttrain.user_code import function_in

        if env:
            return function_in(env, "env")
        if otherwise not in (None, single_turn):
            return otherwise
        return (self.project.env if self.project else None) or single_turn


@dataclass(frozen=True)
class DemonstrationOptions:
    """Which replies are learned."""

    data: str
    """JSONL, CSV or Parquet file, a Hugging Face dataset id, or a project with `demonstrations` (posttrain new)."""
    prompt: str = "prompt"
    """Column of the prompt, a template with {columns}, or a column of chat messages with the replies in it."""
    response: str = "response"
    """Column of the reply."""
    image: str | None = None
    """Column of pictures: a path relative to the file, or several; <image> in the prompt says where each stands."""
    system: str | None = None
    """A system message put before every prompt."""
    limit: int | None = None
    """Use only the first so many lines."""
    split: str = "train"
    """Split of a Hugging Face dataset."""

    def demonstrations(self) -> list[Demonstration]:
        return self.read(self.data, self.split, self.limit)

    def tests(self, held_out: Iterable[str]) -> dict[str, list[Demonstration]]:
        """Those of held-out files with the same columns, by name."""
        return {name: self.read(file, "test") for name, file in named_files(held_out).items()}

    def read(self, data: str, split: str, limit: int | None = None) -> list[Demonstration]:
        from posttrain.data import read_demonstrations

        where = {"image": self.image, "system": self.system, "split": split, "limit": limit}
        return read_demonstrations(records_of(data, "demonstrations"), self.prompt, self.response, **where)


@dataclass(frozen=True)
class PairOptions:
    """Which pairs are learned."""

    data: str
    """JSONL, CSV or Parquet file, or a Hugging Face dataset id, with prompt, chosen and rejected (text or chat); or a
    project with `pairs` (posttrain new)."""
    prompt: str = "prompt"
    """Column of the prompt, or a template with {columns}."""
    chosen: str = "chosen"
    """Column of the better reply."""
    rejected: str = "rejected"
    """Column of the worse one."""
    system: str | None = None
    """A system message put before every prompt."""
    limit: int | None = None
    """Use only the first so many lines."""
    split: str = "train"
    """Split of a Hugging Face dataset."""

    def pairs(self, category: str | None = None) -> list[Pair]:
        """`category`: a column of kinds of pair."""
        return self.read(self.data, self.split, self.limit, category)

    def tests(self, held_out: Iterable[str], category: str | None = None) -> dict[str, list[Pair]]:
        """Those of held-out files with the same columns, by name."""
        return {name: self.read(file, "test", None, category) for name, file in named_files(held_out).items()}

    def read(self, data: str, split: str, limit: int | None, category: str | None) -> list[Pair]:
        from posttrain.data import read_pairs

        where = {"system": self.system, "split": split, "limit": limit, "category": category}
        return read_pairs(records_of(data, "pairs"), self.prompt, self.chosen, self.rejected, **where)


def named_reward(given: str, timeout_s: float) -> Reward:
    """`math`, `rewards.py:brief`, or a weighted sum, whose terms stay visible: `math*1,rewards.py:brief*0.1`.

    timeout_s  that a call of a function of the user's own may take
    Raises ValueError for a grader, a file or a function that is not there.
    """
    from posttrain.grade import GRADES, reward_file
    from posttrain.reward import weighted

    def single(name: str) -> Reward:
        return reward_file(name, timeout_s) if ":" in name else GRADES[check_choice(name, GRADES, "grade")]

    names = weighted_names(given, "grade")
    if len(names) == 1 and names[0][1] == 1:
        return single(names[0][0])
    return weighted(**{name.rpartition(":")[2]: (weight, single(name)) for name, weight in names})


def records_of(data: str, kind: str) -> Any:
    """The records of a kind that a project has; what is no project, as it is."""
    from posttrain.project import is_project, project_in

    return project_in(data).items(kind) if is_project(data) else data


def player_name(value: Any) -> Any:
    """As settings hold a player: of a server only the model, as its address may change between a run and its resume."""
    is_server = isinstance(value, str) and value.startswith("http")
    return f"server#{value.partition('#')[2]}" if is_server else value
