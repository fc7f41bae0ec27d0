"""The shape of the code: what imports what, how long things are, and that the documents keep up."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path

import pytest

import posttrain as pt

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "posttrain").rglob("*.py"))
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_core_modules_do_not_import_systems_nor_systems_one_another():
    for path in FILES:
        inside = path.relative_to(ROOT / "posttrain").parts
        wanted = {name for name in imports(path) if name.startswith("posttrain.systems")}
        if inside[0] == "systems" and len(inside) > 1:
            own = "posttrain.systems." + inside[1].removesuffix(".py")
            assert all(name.startswith(own) for name in wanted), path
        elif inside[0] != "cli":
            assert not wanted, path


def test_no_module_hides_the_standard_library_or_tells_nothing():
    for path in FILES:
        if path.stem not in ("__init__", "__main__"):
            assert path.stem not in sys.stdlib_module_names, path
            assert path.stem not in {"utils", "helpers", "common", "misc", "types"}, path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_short(path):
    tree = ast.parse(path.read_text())
    assert len(path.read_text().splitlines()) <= 420
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 70, f"{path.name}: {node.name}"


def test_every_public_name_exists_and_is_documented():
    for name in pt.__all__:
        thing = getattr(pt, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert getattr(thing, "__doc__", None) or name in UNDOCUMENTED, name


UNDOCUMENTED = {"k1", "k2", "k3"}  # the head of their module explains the three together


def test_no_unfinished_business():
    for path in FILES:
        assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError", path.read_text()), path


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_and_names_in_the_documents_lead_somewhere(path):
    text = path.read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (path.parent / target).exists(), target
    for name in re.findall(r"\bpt\.([A-Za-z_]\w*)", text):
        assert name in pt.__all__, f"{path.name} speaks of pt.{name}"
    for module in re.findall(r"`posttrain/([\w/]+\.\w+)`", text):
        assert (ROOT / "posttrain" / module).is_file(), module


def test_the_python_of_the_documents_compiles():
    for path in DOCS:
        for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
            compile(block, str(path), "exec")


def test_the_commands_of_the_documents_parse():
    """Every option in a `posttrain ...` line of the documents is an option of that command."""
    import contextlib
    import io

    from posttrain.cli import main

    for command in ("train", "eval", "sft", "prefer", "show", "list", "doctor", "claims", "serve", "schedule"):
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            main([command, "--help"])
        for path in DOCS:
            for block in re.findall(r"```(?:sh|bash)\n(.*?)```", path.read_text(), re.DOTALL):
                for line in block.replace("\\\n", " ").splitlines():
                    if line.startswith(f"posttrain {command}"):
                        for option in re.findall(r"(--[a-z-]+)", line.partition("#")[0]):
                            assert option in shown.getvalue(), f"{path.name}: {line}"


def test_every_logged_metric_is_in_the_glossary(make, tmp_path, monkeypatch):
    """Runs of every kind, each name they log looked up in docs/metrics.md."""
    import torch
    from conftest import digits, task
    from inline import Inline

    from posttrain import preference
    from posttrain.policy.value import Critic, Gae
    from posttrain.sampler.weights import Twin
    from posttrain.scale import asynchronous
    from posttrain.scale.asynchronous import Players
    from posttrain.systems.diversity import diversity
    from posttrain.systems.entropy import kl_cov, probed

    glossary = set(re.findall(r"^\| `([^`]+)`", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))
    reward = pt.weighted(digits=(1.0, pt.each(digits)))
    policy = make(max_new=4)
    kl = {"kl": 0.1, "reference": policy.frozen()}
    recipes = [
        pt.grpo(reward, samples=2, **kl),
        pt.dapo(reward, max_new=4, samples=2),
        pt.ppo(reward, advantage=Gae(Critic(policy)), samples=2, **kl),
        pt.cispo(reward, samples=2),
    ]
    pairs = [pt.Pair((pt.user("hi"),), "yes", "no")]
    logged: set[str] = set()

    def run(name):
        return pt.Run(tmp_path / name, steps=1, tasks=1, quiet=True, eval_every=1)

    for i, recipe in enumerate(recipes):
        logged |= set(pt.train(policy, [task()], recipe, run(f"t{i}"), held_out=[task("h")]).history[0])
    got = pt.gather(policy, pt.Shuffled([task()]), recipes[0], 1)
    spied = pt.update(policy, torch.optim.SGD(policy.parameters(), 0.1), got.rows, pt.entropy_bonus, corrected=True)
    logged |= set(spied)
    restrained = pt.total((1.0, probed(kl_cov(0.5))), (0.1, diversity(False)))
    logged |= set(pt.update(policy, torch.optim.SGD(policy.parameters(), 0.1), got.rows, restrained))
    demonstrations = [pt.Demonstration((pt.user("hi"), pt.assistant("yes")))]
    logged |= set(pt.sft(policy, demonstrations, run("s")).history[0])
    logged |= set(pt.prefer(policy, pairs, preference.dpo(), run("p"), reference=policy.frozen()).history[0])
    policy.save(tmp_path / "base")
    model = pt.reward_model(str(tmp_path / "base"))
    logged |= set(pt.train_reward_model(model, pairs, run("m")).history[0])
    logged |= set(pt.train(make(max_new=4), [task()], recipes[3], run("e"), sampler=Twin(make(max_new=4))).history[0])
    monkeypatch.setattr(asynchronous, "crew_of", lambda build, players: Inline(build))
    build = lambda: (make(max_new=4), pt.cispo(reward, samples=2))  # noqa: E731
    players = Players(staleness=1)
    logged |= set(
        asynchronous.train_with_players(*build()[:1], [task()], build()[1], run("a"), build, players).history[0]
    )
    families = {"part/": "part/NAME", "age/": "age/N"}
    plain = {next((family for start, family in families.items() if name.startswith(start)), name) for name in logged}
    assert plain <= glossary, f"not in docs/metrics.md: {sorted(plain - glossary)}"
    assert glossary <= plain, f"in docs/metrics.md, but logged by nothing: {sorted(glossary - plain)}"
