"""A Chromium that outlives its pages, and pages that wait for nobody longer than their deadline.

One thread runs playwright's asyncio loop; everybody else calls plain functions, from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import tempfile
import threading
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from posttrain.core import EpisodeFailed
from posttrain.seeding import mix

if TYPE_CHECKING:
    from playwright import async_api as playwright

Result = TypeVar("Result")
NOWHERE = "http://127.0.0.1:9"  # the port of "discard", on which nothing listens
SWITCHES = (
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--force-webrtc-ip-handling-policy",
)
OPENERS = ("xdg-open", "xdg-email", "gio", "gvfs-open", "gnome-open", "kde-open", "exo-open")
LATE: list[asyncio.Future[Any]] = []  # drivers that are being ended: the loop itself holds them weakly
NAMES = ("chromium", "chromium-browser", "google-chrome")
INSTALL = "install Debian's (apt-get install chromium), or name one in POSTTRAIN_CHROMIUM"


def chromium_path() -> str:
    """POSTTRAIN_CHROMIUM, or the Chromium of this machine. Raises ValueError where there is none."""
    if named := os.environ.get("POSTTRAIN_CHROMIUM"):
        if not os.access(named, os.X_OK):
            raise ValueError(f"POSTTRAIN_CHROMIUM={named}: there is no program")
        return named
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise ValueError(f"there is no Chromium here: {INSTALL}")
    return found


def require_browser() -> None:
    """Raises ValueError, before any work, that says what to install."""
    try:
        import playwright.async_api  # noqa: F401
    except ImportError as error:
        raise ValueError("a browser needs the extra: pip install 'posttrain[web]'") from error
    chromium_path()


def origin(url: str) -> str:
    """`http://127.0.0.1:8000` of an address; empty for one that is neither http nor https."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme in ("http", "https") and parts.netloc else ""


class Browser:
    """One Chromium, started with the first page, and again for the next page when it has died.

    deadline_s  of each call; one that takes longer raises EpisodeFailed
    action_s    for which an action waits until its element can be acted on; then it is an error of the policy's
    Raises ValueError where playwright or Chromium is not installed.
    """

    def __init__(self, *, deadline_s: float = 30.0, action_s: float = 2.0):
        require_browser()
        self.deadline_s, self.action_s = deadline_s, action_s
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda loop, context: None)  # playwright's own, when its driver has died
        self.state: dict[str, Any] = {}  # driver, chromium and pid of the one that runs
        self.starting: asyncio.Lock | None = None
        self.openers = idle_openers()
        self.thread = threading.Thread(target=self.loop.run_forever, name="browser", daemon=True)
        self.thread.start()
        self.finalizer = weakref.finalize(self, stop, self.loop, self.thread, self.state, self.openers)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End Chromium and its driver."""
        self.finalizer()

    def open(self, url: str, *, allow: Sequence[str] = (), seed: int = 0) -> Page:
        """A page in a context of its own, at `url`.

        allow  the origins that it may reach; that of `url` if none are given
        seed   of the ids that its elements get
        """
        allowed = tuple(allow) or (origin(url),)
        for one in allowed:
            if urlsplit(one).hostname != "127.0.0.1":
                raise ValueError(f"`allow={one}`: pages are served on http://127.0.0.1:PORT, and no name is resolved")
        try:
            page = self.wait(self.new_page(allowed, seed))
        except EpisodeFailed:
            self.kill_if_silent()
            raise
        try:
            page.goto(url)
        except (EpisodeFailed, ValueError):
            page.close()
            raise
        return page

    def wait(self, work: Coroutine[Any, Any, Result], deadline_s: float | None = None) -> Result:
        """The result of work on the browser's thread. Raises EpisodeFailed after the deadline, or if it fails."""
        from playwright.async_api import Error

        if not self.finalizer.alive:
            work.close()
            raise EpisodeFailed("the browser is closed")
        limit = self.deadline_s if deadline_s is None else deadline_s
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(limit)
        except TimeoutError as error:
            future.cancel()
            raise EpisodeFailed(f"the browser did not answer within {limit:g} s") from error
        except Error as error:
            raise EpisodeFailed(f"the browser failed: {first_line(error)}") from error

    async def new_page(self, allowed: tuple[str, ...], seed: int) -> Page:
        context = await self.new_context(allowed)
        context.set_default_timeout(1000 * self.action_s)

        async def admit(route: playwright.Route) -> None:
            with contextlib.suppress(Exception):  # the page may be gone by now
                await (route.continue_() if origin(route.request.url) in allowed else route.abort("blockedbyclient"))

        async def close_popup(popup: playwright.Page) -> None:
            with contextlib.suppress(Exception):
                if await popup.opener() is not None:
                    await popup.close()

        await context.route("**/*", admit)
        await context.route_web_socket("**/*", lambda socket: socket.close())
        context.on("page", close_popup)
        page = await context.new_page()
        return Page(self, page, await context.new_cdp_session(page), allowed, seed)

    async def new_context(self, allowed: tuple[str, ...]) -> playwright.BrowserContext:
        """A context that reaches these origins directly, and everything else through a proxy that goes nowhere.

        A browser that has no more contexts to give is started again, once.
        """
        from playwright.async_api import Error

        bypass = ",".join(urlsplit(one).netloc for one in allowed)
        options: Any = {
            "proxy": {"server": NOWHERE, "bypass": bypass},
            "accept_downloads": False,
            "service_workers": "block",
        }
        chromium = await self.running()
        try:
            return await chromium.new_context(**options)
        except Error:
            if self.state.get("chromium") is chromium:
                await end(self.state)
            return await (await self.running()).new_context(**options)

    async def running(self) -> playwright.Browser:
        """The Chromium that runs; started if there is none."""
        from playwright.async_api import async_playwright

        self.starting = self.starting or asyncio.Lock()
        async with self.starting:
            if "chromium" in self.state and self.state["chromium"].is_connected() and is_running(self.state["pid"]):
                return self.state["chromium"]
            await end(self.state)
            self.state["driver"] = await started(async_playwright())
            self.state["chromium"] = await self.state["driver"].chromium.launch(
                executable_path=chromium_path(),
                proxy={"server": NOWHERE},
                args=list(SWITCHES),
                env={**os.environ, "PATH": os.pathsep.join([self.openers.name, os.environ.get("PATH", "")])},
                chromium_sandbox=os.geteuid() != 0,
                timeout=1000 * self.deadline_s,
            )
            session = await self.state["chromium"].new_browser_cdp_session()
            known = (await session.send("SystemInfo.getProcessInfo"))["processInfo"]
            self.state["pid"] = next(one["id"] for one in known if one["type"] == "browser")
            return self.state["chromium"]

    def kill_if_silent(self) -> None:
        """End a Chromium that answers nothing, so that the next page gets a new one."""
        chromium = self.state.get("chromium")
        if chromium is None:
            return
        try:
            self.wait(answer(chromium), min(self.deadline_s, 5.0))
        except EpisodeFailed:
            kill(self.state)


class Page:
    """A page in a context of its own. What the browser does wrong raises EpisodeFailed."""

    def __init__(
        self,
        browser: Browser,
        page: playwright.Page,
        session: playwright.CDPSession,
        allowed: tuple[str, ...],
        seed: int,
    ):
        self.browser, self.page, self.session, self.allowed, self.seed = browser, page, session, allowed, seed
        self.bids: Mapping[int, str] = {}  # of the nodes that were seen last, by the browser's own numbers
        self.loaded = 0  # addresses gone to, so that every load draws other ids
        self.draw = random.Random()

    def goto(self, url: str) -> None:
        """Raises ValueError for an address outside of the page's origins, EpisodeFailed when it cannot be loaded."""
        self.browser.wait(self.load(url, self.browser.deadline_s))

    async def load(self, url: str, seconds: float) -> None:
        if origin(url) not in self.allowed:
            raise ValueError(f"{url[:200]}: this address cannot be opened here")
        self.loaded += 1
        self.draw.seed(mix(self.seed, self.loaded))
        await self.page.goto(url, wait_until="load", timeout=1000 * seconds)

    def evaluate(self, expression: str, argument: Any = None) -> Any:
        """What JavaScript of the evaluator's own returns."""
        return self.browser.wait(self.page.evaluate(expression, argument))

    def close(self) -> None:
        """End the page and its context; a browser that cannot do that is ended itself."""
        try:
            self.browser.wait(self.page.context.close())
        except EpisodeFailed:
            self.browser.kill_if_silent()


def idle_openers() -> tempfile.TemporaryDirectory[str]:
    """A folder of programs that do nothing, by the names that Chromium starts for addresses of other programs.

    `mailto:` and its like never reach a route: Chromium hands them to the desktop.
    """
    folder = tempfile.TemporaryDirectory(prefix="posttrain-browser-")
    for name in OPENERS:
        os.symlink(shutil.which("true") or "/bin/true", os.path.join(folder.name, name))
    return folder


async def started(driver: Any) -> Any:
    """A driver that is started; one that a deadline interrupts is stopped once it has come up."""
    coming = asyncio.ensure_future(driver.start())
    try:
        return await asyncio.shield(coming)
    except asyncio.CancelledError:
        coming.add_done_callback(stop_late)
        raise


def stop_late(coming: asyncio.Future[Any]) -> None:
    """The driver came up after its deadline: it is ended."""
    if coming.exception() is None:
        LATE.append(asyncio.ensure_future(coming.result().stop()))


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


async def answer(chromium: playwright.Browser) -> None:
    session = await chromium.new_browser_cdp_session()
    await session.send("Browser.getVersion")
    await session.detach()


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def kill(state: dict[str, Any]) -> None:
    if "pid" in state:
        with contextlib.suppress(ProcessLookupError):
            os.kill(state["pid"], signal.SIGKILL)


async def end(state: dict[str, Any]) -> None:
    """What runs of a browser, ended, whether it answers or not."""
    for name, stop in (("chromium", "close"), ("driver", "stop")):
        if name in state:
            with contextlib.suppress(Exception):  # it may be dead: then there is nothing to end
                await asyncio.wait_for(getattr(state[name], stop)(), 5.0)
    kill(state)
    state.clear()


def stop(
    loop: asyncio.AbstractEventLoop,
    thread: threading.Thread,
    state: dict[str, Any],
    openers: tempfile.TemporaryDirectory[str],
) -> None:
    with contextlib.suppress(TimeoutError):
        asyncio.run_coroutine_threadsafe(end(state), loop).result(15.0)
    kill(state)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5.0)
    openers.cleanup()
    if not loop.is_running():
        loop.close()
