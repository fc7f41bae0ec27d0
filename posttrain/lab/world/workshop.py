"""Small studies in machine learning: a script on real data, with five settings, one of which is badly chosen.

    classify mixed short : scaler none model neighbours strength middle features all rows all : level : run unchanged
        ->   <thought> scaler </thought> <action> edit scaler standard </action>

The script is scikit-learn's own: it is executed, prints its metric, and raises an exception where a setting has a value
that it does not know, or one that the data do not allow. Nine studies are for training and six are held out; which
setting is bad can be seen, more or less, and what it is worth cannot. An expert changes settings by an idea or two, at
random, and does not look at what came of it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from posttrain.data import Demonstration
from posttrain.lab.world.words import demonstration_of
from posttrain.seeding import mix

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "scaler": ("none", "standard", "minmax"),
    "model": ("linear", "neighbours", "tree"),
    "strength": ("low", "middle", "high"),
    "features": ("few", "all"),
    "rows": ("some", "all"),
}
GOOD = {"scaler": "standard", "model": "linear", "strength": "middle", "features": "all", "rows": "all"}
LINE = re.compile(r'^(\w+) = "(\w*)"$', re.MULTILINE)

SCRIPT = '''\
"""Fit a model, and print its {metric} on rows that are held back."""
import numpy
from sklearn import datasets
from sklearn.linear_model import {linear}
from sklearn.metrics import {metric}
from sklearn.model_selection import train_test_split
from sklearn.neighbors import {neighbours}
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.tree import {tree}

{settings}

{data}
x, x_test, y, y_test = train_test_split(x, y, test_size=0.4, random_state=0)
columns = {{"few": max(x.shape[1] // 5, 1), "all": x.shape[1]}}[features]
size = {{"some": max(len(x) // 8, 12), "all": len(x)}}[rows]
x, y, x_test = x[:size, :columns], y[:size], x_test[:, :columns]
level = {{"low": 0, "middle": 1, "high": 2}}[strength]
estimator = {{
    "linear": {linear}({penalty}),
    "neighbours": {neighbours}(n_neighbors=[1, 7, 30][level]),
    "tree": {tree}(max_depth=[1, 4, 12][level], random_state=0),
}}[model]
scale = {{"none": [], "standard": [StandardScaler()], "minmax": [MinMaxScaler()]}}[scaler]
fitted = make_pipeline(*scale, estimator).fit(x, y)
print("metric:", round({metric}(y_test, fitted.predict(x_test)), 4))
'''
PIECES: Mapping[str, Mapping[str, str]] = {
    "classify": {
        "metric": "accuracy_score",
        "linear": "LogisticRegression",
        "neighbours": "KNeighborsClassifier",
        "tree": "DecisionTreeClassifier",
        "penalty": "C=[0.001, 1.0, 100.0][level], max_iter=60",
    },
    "regress": {
        "metric": "mean_absolute_error",
        "linear": "Ridge",
        "neighbours": "KNeighborsRegressor",
        "tree": "DecisionTreeRegressor",
        "penalty": "alpha=[1000.0, 1.0, 0.01][level]",
    },
}


@dataclass(frozen=True)
class Study:
    """Data, what is to be predicted, and the settings that a script begins with."""

    name: str
    kind: str  # classify, by accuracy; regress, by the mean absolute error
    words: str  # what can be said of the data at a glance
    data: str  # Python that makes x and y
    best: float  # the best metric of all settings, found by trying them
    start: Mapping[str, str] = field(default_factory=dict)  # settings that differ from GOOD

    @property
    def higher(self) -> bool:
        """Whether a higher metric is a better one."""
        return self.kind == "classify"

    @property
    def script(self) -> str:
        return script_of(self, {**GOOD, **self.start})


def script_of(study: Study, settings: Mapping[str, str]) -> str:
    lines = "\n".join(f'{name} = "{value}"' for name, value in settings.items())
    return SCRIPT.format(**PIECES[study.kind], settings=lines, data=study.data)


def settings_in(script: str) -> dict[str, str]:
    return {name: value for name, value in LINE.findall(script) if name in SETTINGS}


def edit(script: str, instruction: str) -> str:
    """The script with a setting changed, by an instruction of two words, NAME VALUE; as it is if it has no such."""
    name, _, value = instruction.partition(" ")
    return re.sub(rf'^{re.escape(name)} = "\w*"$', f'{name} = "{value}"', script, flags=re.MULTILINE)


def load(name: str) -> str:
    return f"x, y = datasets.load_{name}(return_X_y=True)"


def make(call: str) -> str:
    return f"x, y = datasets.make_{call}"


WEAK_NEIGHBOURS = {"model": "neighbours", "strength": "low"}
TRAINING = (
    Study("wine", "classify", "mixed short", load("wine"), 0.9861, {"scaler": "none", "model": "neighbours"}),
    Study("cancer", "classify", "mixed long", load("breast_cancer"), 0.9825, {"features": "few"}),
    Study("digits", "classify", "same long", load("digits"), 0.9875, {"rows": "some"}),
    Study("iris", "classify", "same short", load("iris"), 0.9667, {"model": "tree", "strength": "low"}),
    Study("diabetes", "regress", "same long", load("diabetes"), 44.923, WEAK_NEIGHBOURS),
    Study("moons", "classify", "same long", make("moons(400, noise=0.15, random_state=0)"), 0.9812),
    Study(
        *("mixture", "classify", "same long"),
        make("classification(400, 20, n_informative=6, random_state=1)"),
        *(0.8562, {"strength": "low"}),
    ),
    Study(
        *("friedman", "regress", "same long"),
        make("friedman1(400, n_features=10, random_state=0)"),
        *(2.0167, {"features": "few"}),
    ),
    Study(
        *("plane", "regress", "same short"),
        make("regression(300, 12, n_informative=8, noise=20.0, random_state=0)"),
        *(17.2787, {"model": "tree"}),
    ),
)
HELD_OUT = (
    Study(
        *("blobs", "classify", "mixed long"),
        make("blobs(400, 6, centers=5, cluster_std=3.0, random_state=3)") + "\nx = x * 10.0 ** numpy.arange(6)[::-1]",
        *(0.9938, {"scaler": "none", "model": "neighbours"}),
    ),
    Study("parity", "classify", "same long", load("digits") + "\ny = y % 2", 0.9944, {"rows": "some"}),
    Study("circles", "classify", "same long", make("circles(400, noise=0.1, factor=0.6, random_state=0)"), 0.9938),
    Study(
        *("genes", "classify", "same short"),
        make("classification(300, 40, n_informative=10, n_redundant=10, random_state=5)"),
        *(0.9333, {"features": "few"}),
    ),
    Study("circuit", "regress", "mixed long", make("friedman2(400, random_state=0)"), 49.3698, {"strength": "low"}),
    Study(
        "sparse", "regress", "same long", make("sparse_uncorrelated(400, 10, random_state=0)"), 0.8436, WEAK_NEIGHBOURS
    ),
)

VALUES = tuple(dict.fromkeys(value for values in SETTINGS.values() for value in values))
STANDINGS, OUTCOMES = ("below", "level", "above", "far"), ("worse", "unchanged", "better")
TAGS = ("<thought>", "</thought>", "<action>", "</action>")
OTHERS = ("inspect", "run", "final")  # actions without arguments
FORM = re.compile(r"<thought> (\w+) </thought> <action> (\w+(?: \w+)*) </action>")
TOPICS = (*("strength", "model") * 9, *("scaler", "features", "rows") * 2)  # what proposals are about, mostly the same
PHRASES = ("tune the {}", "try another {}", "change the {}", "search over the {}", "reconsider the {}")


@dataclass(frozen=True)
class Workshop:
    """The words about studies, and an expert who speaks them."""

    seed: int = 0
    diverse: bool = True  # whether the expert is told other ideas in each episode, or always the same

    vocabulary = (
        *("classify", "regress", "mixed", "same", "short", "long", ":", "edit", *SETTINGS, *VALUES),
        *(*STANDINGS, *OUTCOMES, *TAGS, *OTHERS, "look"),
    )
    longest = 10

    def prompt(self, words: str, settings: Mapping[str, str], gain: float, last: Sequence[str]) -> str:
        """A state in words: the data, the settings, how far the metric has come, and the last two actions.

        words  what can be said of the data
        gain   over the initial metric, relative
        last   of each action so far, what it was and what came of it
        """
        standing = STANDINGS[sum(gain > bound for bound in (-0.02, 0.02, 0.1))]
        now = " ".join(f"{name} {settings.get(name, ':')}" for name in SETTINGS)
        return f"{words} : {now} : {standing} : {' : '.join(last[-2:])}"

    def settings(self, prompt: str) -> dict[str, str]:
        """Those that a prompt names."""
        words = prompt.split(" : ")[1].split()
        return dict(zip(words[::2], words[1::2], strict=True))

    def demonstration(self, draw: random.Random) -> Demonstration:
        """An action of the expert without a word of what came of earlier ones: only for `base` to know the words."""
        study = draw.choice(TRAINING)
        settings = {**GOOD, **study.start}
        prompt = self.prompt(f"{study.kind} {study.words}", settings, 0.0, ())
        return demonstration_of(prompt, self.expert(draw, tuple(SETTINGS), settings))

    def proposals(self, count: int) -> list[str]:
        """Ideas as an expert lists them: most are about the same two settings."""
        draw = random.Random(mix(self.seed, "ideas"))
        return [draw.choice(PHRASES).format(draw.choice(TOPICS)) for _ in range(count)]

    def expert(self, draw: random.Random, told: Sequence[str], settings: Mapping[str, str]) -> str:
        """A reply that changes one of the settings that ideas speak of, or looks around, or ends."""
        action = draw.choices(("edit", *OTHERS), (0.8, 0.08, 0.08, 0.04))[0]
        if action != "edit":
            return f"<thought> look </thought> <action> {action} </action>"
        topics = [name for name in SETTINGS if any(name in idea.split() for idea in told)]
        name = draw.choice(topics)
        value = draw.choice([one for one in SETTINGS[name] if one != settings.get(name)])
        return f"<thought> {name} </thought> <action> edit {name} {value} </action>"
