"""The hash of a system's code: what changes results changes it, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain import systems
from posttrain.lab.code_hash import SOURCE, hash_of, reached_code

SYSTEM = '''"""A system."""
from posttrain.lab.claim import Claim
from posttrain.world.coins import Coins, side as tossed

RATE = 0.1
SHOWN = "heads"
PARTS = {"toy": lambda plain, tiny: stage(plain)}
SMOKE = {"steps": 1}
STAGES = {"train": stage} if SMOKE else {}
FIRST = (Claim("heads", "says", "heads", "toy", 0.5),)
CLAIMS = (*FIRST,)


def stage(plain):
    return plain


class Counter:
    """Counts."""

    start: int
    step: int = 1


def arm(rate: float):
    def run(seed: int, quick: bool) -> dict[str, float]:
        """Its measures."""
        from posttrain.world import coins

        steps: int = 2 if quick else 20
        return {"heads": tossed(Coins(seed), rate) * steps + coins.biased(Counter(seed).step)}

    return run


ARMS = {"toy": arm(RATE)}
'''
WORLD = '''"""A world."""
from posttrain.world.words import spoken
EDGE = 3


class Coins:
    def __init__(self, seed):
        self.seed = spoken(seed)


def side(coins, rate):
    return coins.seed * rate


def biased(step):
    return step * EDGE


def unused():
    return 4
'''
WORDS = """
def spoken(seed):
    return seed + 7
"""


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / "posttrain" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def toy_hash(root: Path, system: str = SYSTEM, world: str = WORLD, words: str = WORDS) -> str:
    return hash_of(
        "posttrain.systems.toy",
        write(root, {"systems/toy.py": system, "world/coins.py": world, "world/words.py": words}),
    )


@pytest.fixture
def before(tmp_path) -> str:
    return toy_hash(tmp_path / "before")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A system."""', '"""Another text."""'),
        ('        """Its measures."""\n', ""),
        ("RATE = 0.1", "RATE = 0.1  # why"),
        ("rate: float", "rate: int"),
        (" -> dict[str, float]", ""),
        ("steps: int = 2", "steps = 2"),
        ("start: int", "start: float"),
        ("ARMS = ", "ARMS: dict[str, object] = "),
        ("from posttrain.lab.claim import Claim", "from posttrain.lab.claim import Claim\nimport math"),
        ('"heads", "says"', '"heads come up", "says so"'),
        ("CLAIMS = (*FIRST,)", "SECOND = ()\nCLAIMS = FIRST + SECOND"),
        ('SHOWN = "heads"', 'SHOWN = "tails"'),
        ('"toy": lambda plain, tiny: stage(plain)', '"toy": lambda plain, tiny: plain'),
        ('{"steps": 1}', '{"steps": 2}'),
        ('STAGES = {"train": stage} if SMOKE else {}', ""),
        ("    return plain\n", "    return plain, 5\n"),
    ],
)
def test_what_leaves_results_as_they_are_leaves_the_hash(before, tmp_path, old, new):
    assert old in SYSTEM
    assert toy_hash(tmp_path / "after", SYSTEM.replace(old, new)) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("RATE = 0.1", "RATE = 0.2"),
        ("else 20", "else 30"),
        ('ARMS = {"toy": arm(RATE)}', 'ARMS = {"toy": arm(RATE), "other": arm(0.0)}'),
        ('ARMS = {"toy": arm(RATE)}', 'ARMS = {"toy": arm(RATE)}\nARMS |= {"other": arm(0.0)}'),
        ('ARMS = {"toy": arm(RATE)}', 'ARMS = {"toy": arm(RATE)}\nARMS["other"] = arm(0.0)'),
        ("step: int = 1", "step: int = 2"),
        ("    start: int\n    step: int = 1", "    step: int = 1\n    start: int = 0"),
        ("side as tossed", "other as tossed"),
    ],
)
def test_what_may_change_results_changes_the_hash(before, tmp_path, old, new):
    assert old in SYSTEM
    world = WORLD + "\n\ndef other(coins, rate):\n    return rate\n"
    assert toy_hash(tmp_path / "same", SYSTEM, world) == before
    assert toy_hash(tmp_path / "after", SYSTEM.replace(old, new), world) != before


def test_worlds_count_as_far_as_arms_reach(before, tmp_path):
    assert toy_hash(tmp_path / "unused", world=WORLD.replace("return 4", "return 5")) == before
    assert toy_hash(tmp_path / "method", world=WORLD.replace("= spoken(seed)", "= spoken(seed) + 1")) != before
    assert toy_hash(tmp_path / "constant", world=WORLD.replace("EDGE = 3", "EDGE = 4")) != before
    assert toy_hash(tmp_path / "world of a world", words=WORDS.replace("7", "8")) != before


def test_worlds_may_move_with_their_package(before, tmp_path):
    files = {"systems/toy.py": SYSTEM, "lab/world/coins.py": WORLD, "lab/world/words.py": WORDS}
    moved = {name: text.replace("posttrain.world", "posttrain.lab.world") for name, text in files.items()}
    assert hash_of("posttrain.systems.toy", write(tmp_path, moved)) == before


def test_a_file_may_be_divided_renamed_and_reordered(before, tmp_path):
    claims, start = SYSTEM.index("FIRST = "), SYSTEM.index("class Counter")
    constants, stage, rest = SYSTEM[:claims], SYSTEM[claims:start], SYSTEM[start:]
    arms = rest.replace("ARMS =", "from .settings import RATE\nARMS =")
    worlds = {"world/coins.py": WORLD, "world/words.py": WORDS}
    imports = "from posttrain.world.coins import Coins, side as tossed\n"
    divided = {
        "systems/toy/__init__.py": "from posttrain.systems.toy.lab import ARMS\nfrom posttrain.systems.toy.stages import CLAIMS\n",
        "systems/toy/settings.py": constants,
        "systems/toy/stages.py": "from posttrain.lab.claim import Claim\n" + stage,
        "systems/toy/lab.py": imports + arms,
    }
    assert hash_of("posttrain.systems.toy", write(tmp_path / "divided", divided | worlds)) == before
    lazy = divided | {"systems/toy/__init__.py": '"""Nothing is imported."""\n'}
    lazy["systems/toy/experiments.py"] = lazy.pop("systems/toy/lab.py")
    assert hash_of("posttrain.systems.toy", write(tmp_path / "renamed", lazy | worlds)) == before
    assert toy_hash(tmp_path / "reordered", rest + "\n\n" + stage + constants) == before


def test_a_module_that_is_passed_around_counts_whole(tmp_path):
    use = "from posttrain.world import coins\nARMS = {'toy': lambda seed, quick: vars(coins)}\n"
    changed = WORLD.replace("return 4", "return 5")
    assert toy_hash(tmp_path / "a", use) != toy_hash(tmp_path / "b", use, changed)


@pytest.mark.parametrize("name", systems.names())
def test_every_system_s_hash_holds_its_arms_and_no_claims(name):
    code = reached_code(f"posttrain.systems.{name}", SOURCE)
    assert any(part.startswith("ARMS = ") for part in code)
    assert not any(part.startswith("CLAIMS") for part in code)
    assert len(code) > 10
