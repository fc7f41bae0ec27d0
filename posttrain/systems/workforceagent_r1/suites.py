"""What an agent is tried on: tasks, and what plays each of them."""

from __future__ import annotations

import mimetypes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import posttrain as pt
from posttrain.browser import Browser
from posttrain.browser.chromium import require_browser
from posttrain.browser.serving import PageServer
from posttrain.systems.workforceagent_r1.browsergym import PREFIX, require_browsergym
from posttrain.systems.workforceagent_r1.live import Instance, Tab, Tabs, World
from posttrain.systems.workforceagent_r1.oracle import instance_of

MINIWOB_START = """seed => {
  core.EPISODE_MAX_TIME = 1e9;  // else what is earned falls with the time that a policy takes
  Math.seedrandom(seed);
  core.startEpisodeReal();
  return core.getUtterance();
}"""
MINIWOB_OUTCOME = "message => WOB_DONE_GLOBAL ? WOB_RAW_REWARD_GLOBAL > 0 : null"


@dataclass(frozen=True, slots=True)
class Suite:
    """Tasks whose truth is what `world` needs; `threads` do the work of their pages."""

    tasks: Sequence[pt.Task]
    world: Callable[[pt.Task], World]
    threads: ThreadPoolExecutor


@contextmanager
def suite(
    name: str, count: int, seed: int, at_once: int, shifted: bool = False, tasks: Sequence[str] = ()
) -> Iterator[Suite]:
    """Open what a name stands for: workplace, miniwob, or the id of an environment of BrowserGym's.

    count    instances: of the workplace in all, else of each task
    tasks    of MiniWoB++, all if none are given
    shifted  the layout of the workplace
    Raises ValueError for a name or task that is unknown, or without what it needs.
    """
    if name.startswith(PREFIX):
        worlds = require_browsergym(name)
        found = [pt.Task(f"{name}/{i}", (), pt.mix(seed, name, i) % 2**31) for i in range(count)]
        with ThreadPoolExecutor(1) as threads:  # playwright's plain interface lives in one thread
            yield Suite(found, lambda task: worlds(task.truth), threads)
        return
    pt.check_choice(name, ("workplace", "miniwob"), "suite")
    require_browser()
    with ExitStack() as stack:
        if name == "workplace":
            from posttrain.lab.world.workplace import Workplace

            place = Workplace(seed)
            server = stack.enter_context(PageServer(place.page))
            instances = [instance_of(place.job(i, "test", shifted), server.origin) for i in range(count)]
        else:
            folder = miniwob_folder()
            server = stack.enter_context(PageServer(lambda path: file_in(folder, path)))
            chosen = tasks or sorted(one.stem for one in (folder / "miniwob").glob("*.html"))
            for one in chosen:
                if not (folder / "miniwob" / f"{one}.html").is_file():
                    raise ValueError(f"`tasks={one}`: MiniWoB++ has no such page")
            instances = [miniwob_instance(one, i, server.origin, seed) for one in chosen for i in range(count)]
        tabs = Tabs(stack.enter_context(Browser()))
        threads = stack.enter_context(ThreadPoolExecutor(at_once))
        found = [pt.Task(one.key, (), one, {"kind": one.kind}) for one in instances]
        yield Suite(found, lambda task: Tab(tabs, task.truth), threads)


def miniwob_folder() -> Path:
    """Raises ValueError where the package is not installed."""
    from importlib.util import find_spec

    found = find_spec("miniwob")  # importing it would load Selenium
    if found is None or found.origin is None:
        raise ValueError("`suite=miniwob` needs the pages: pip install miniwob")
    return Path(found.origin).parent / "html"


def file_in(folder: Path, path: str) -> tuple[str, bytes] | None:
    """A file below the folder, and nothing outside of it."""
    file = (folder / unquote(urlsplit(path).path).lstrip("/")).resolve()
    if not file.is_relative_to(folder.resolve()) or not file.is_file():
        return None
    return mimetypes.guess_type(file.name)[0] or "application/octet-stream", file.read_bytes()


def miniwob_instance(task: str, number: int, origin: str, seed: int) -> Instance:
    drawn = pt.mix(seed, task, number) % 2**31
    start = f"() => ({MINIWOB_START})({drawn})"
    return Instance(f"{task}/{number}", task, f"{origin}/miniwob/{task}.html", start, MINIWOB_OUTCOME, drawn)
