"""The shape of the code: what imports what, how long things are, and that the documents keep up."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path

import pytest

import posttrain as pt
from posttrain import systems

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
        wanted = {name for name in imports(path) if name.startswith("posttrain.systems.")}
        if inside[0] == "systems" and len(inside) > 1:
            own = "posttrain.systems." + inside[1].removesuffix(".py")
            assert all(name.startswith(own) for name in wanted), path
        elif inside[0] not in ("cli", "lab"):
            assert not wanted, path


def test_the_library_imports_neither_its_laboratory_nor_its_command_line():
    for path in FILES:
        inside = path.relative_to(ROOT / "posttrain").parts
        if inside[0] not in ("systems", "lab", "cli", "__main__.py"):
            rooms = {".".join(name.split(".")[:2]) for name in imports(path)}
            assert not rooms & {"posttrain.lab", "posttrain.cli"}, path


def test_no_module_imports_one_that_imports_it():
    """Not even lazily, nor for types alone."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    edges = {name: {one for one in imports(path) if one in modules} - {name} for name, path in modules.items()}
    for name in edges:  # `from posttrain.x import y` names both: the package only counts where y is no module
        for one in list(edges[name]):
            if any(other.startswith(f"{one}.") for other in edges[name]) and modules[one].name == "__init__.py":
                edges[name].discard(one)
    seen: dict[str, int] = {}

    def visit(name: str, path: list[str]) -> None:
        if seen.get(name) == 2:
            return
        assert seen.get(name) != 1, " -> ".join([*path[path.index(name) :], name])
        seen[name] = 1
        for other in sorted(edges[name]):
            visit(other, [*path, name])
        seen[name] = 2

    for name in edges:
        visit(name, [])


def strings(tree: ast.Module) -> list[str]:
    """Every string of a module that is no docstring: neither of a definition nor of a field."""
    prose = {
        id(one.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        for one in node.body
        if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    ]


PROGRAMS = (
    "browser/chromium.py",
    "lab/page.py",
    "policy/gguf_file.py",
    "sandbox",
    "sampler/vllm.py",
    "scale",
    "run/directory.py",
    "serve/process.py",
    "lab/index.py",
)  # these hold whole commands


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_library_speaks_of_arguments_and_not_of_flags(path):
    """Errors name `argument=value`; the command line makes flags of them (posttrain/cli/bridge.py)."""
    inside = str(path.relative_to(ROOT / "posttrain"))
    if inside.startswith(("cli/", *PROGRAMS)):
        return
    found = [text for text in strings(ast.parse(path.read_text())) if re.search(r"(?<![\w-])--[a-z][a-z-]+", text)]
    smoke = [text for text in found if text.startswith("--") or text.count(" --")]
    if "/lab" in inside or inside.startswith("systems/"):
        found = [text for text in found if text not in smoke]  # `SMOKE` holds command lines
    assert not found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_how_small_a_smoke_test_is_stands_in_the_kit_alone(path):
    if path.parent.name != "cli" and path != ROOT / "posttrain" / "lab" / "arms.py":
        tree = ast.parse(path.read_text())
        assert not any(
            isinstance(node, ast.IfExp | ast.If) and "quick" in ast.unparse(node.test) for node in ast.walk(tree)
        )


# Bare participles that named functions once: a function is a noun for what it returns, or a plain verb.
PARTICIPLES = frozenset(
    [
        "measured",
        "asked",
        "answered",
        "fitting",
        "begun",
        "practised",
        "demonstrated",
        "trained",
        "learned",
        "learnt",
        "taught",
        "judged",
        "told",
        "shown",
        "said",
        "swept",
        "played",
        "kept",
        "collected",
        "described",
        "prepared",
        "evaluated",
        "examined",
        "imitated",
        "reinforced",
        "spoilt",
        "divided",
        "drawn",
        "located",
        "loaded",
        "sent",
        "started",
        "failed",
        "imported",
        "synchronised",
        "remembering",
        "summed",
        "detached",
        "written",
        "granted",
        "reported",
        "found",
        "built",
        "made",
        "given",
        "taken",
        "chosen",
        "seen",
        "heard",
        "wanted",
        "walked",
        "predicted",
    ]
)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_function_is_named_by_a_bare_participle(path):
    defined = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
    assert not defined & PARTICIPLES


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

    for command in (
        "train",
        "eval",
        "sft",
        "prefer",
        "show",
        "list",
        "doctor",
        "claims",
        "serve",
        "schedule",
        "compare",
    ):
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            main([command, "--help"])
        for path in DOCS:
            for block in re.findall(r"```(?:sh|bash)\n(.*?)```", path.read_text(), re.DOTALL):
                for line in block.replace("\\\n", " ").splitlines():
                    if line.startswith(f"posttrain {command}"):
                        for option in re.findall(r"(--[a-z-]+)", line.partition("#")[0]):
                            assert option in shown.getvalue(), f"{path.name}: {line}"


def test_the_stages_of_the_documents_take_their_options():
    """Every option in a `posttrain run SYSTEM ...` line of the documents is an option of that stage."""
    from posttrain.cli.bridge import options_of, spelled
    from posttrain.cli.commands import choose

    wrong = []
    for path in DOCS:
        for block in re.findall(r"```(?:sh|bash)\n(.*?)```", path.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = line.partition("#")[0].split()
                if (
                    words[:2] == ["posttrain", "run"]
                    and len(words) > 2
                    and "my_paper" not in line
                    and "--help" not in line
                ):
                    chosen = choose(words[1:])
                    known = {spelled(name) for name in options_of(chosen.function)}
                    known |= {spelled(f"no_{name}") for name in options_of(chosen.function)}
                    wrong += [
                        f"{path.name}: {w}: {line.strip()}"
                        for w in chosen.rest
                        if w.startswith("--") and w not in known
                    ]
    assert not wrong


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
    kl = {"kl": 0.1, "reference": policy.frozen_copy()}
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
    got = pt.gather(policy, pt.ShuffledSource([task()]), recipes[0], 1)
    spied = pt.update(policy, torch.optim.SGD(policy.parameters(), 0.1), got.rows, pt.entropy_bonus, corrected=True)
    logged |= set(spied)
    restrained = pt.total((1.0, probed(kl_cov(0.5))), (0.1, diversity(False)))
    logged |= set(pt.update(policy, torch.optim.SGD(policy.parameters(), 0.1), got.rows, restrained))
    demonstrations = [pt.Demonstration((pt.user("hi"), pt.assistant("yes")))]
    logged |= set(pt.sft(policy, demonstrations, run("s")).history[0])
    logged |= set(pt.prefer(policy, pairs, preference.dpo(), run("p"), reference=policy.frozen_copy()).history[0])
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


def test_the_index_tables_are_what_docstrings_say():
    """After a change of docstrings: `posttrain list --write docs`."""
    from posttrain.lab.index import citations, papers_table, systems_table, with_table

    chosen = [systems.system(name) for name in systems.names()]
    for page, table in (("systems.md", systems_table(chosen)), ("papers.md", papers_table(citations()))):
        text = (ROOT / "docs" / page).read_text()
        assert with_table(text, table) == text, page
