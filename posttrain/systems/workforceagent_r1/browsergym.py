"""Live episodes in BrowserGym's environments (WorkArena, MiniWoB++, WebArena), where they are installed.

BrowserGym wants a playwright of its own version, and WorkArena a ServiceNow instance besides: install them in an
environment of their own, with this package.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import posttrain as pt
from posttrain.browser import Action
from posttrain.systems.workforceagent_r1.live import View

PREFIX = "browsergym/"


class Gym:
    """A `World` of an environment with gymnasium's interface and BrowserGym's observations."""

    def __init__(self, make: Callable[[], Any], tree: Callable[[Mapping[str, Any]], str], seed: int):
        self.make, self.tree, self.seed = make, tree, seed
        self.env: Any = None

    def begin(self) -> tuple[str, View]:
        self.env = self.calling(self.make)
        seen, _ = self.calling(lambda: self.env.reset(seed=self.seed))
        return str(seen["goal"]), View(self.tree(seen))

    def act(self, action: Action) -> View:
        seen, reward, terminated, truncated, _ = self.calling(lambda: self.env.step(str(action)))
        success = float(reward) > 0 if terminated or truncated else None
        return View(self.tree(seen), str(seen.get("last_action_error") or ""), success)

    def calling(self, work: Callable[[], Any]) -> Any:
        """What the environment raises is a fault of its machinery: a policy's mistakes are in its observations."""
        try:
            return work()
        except Exception as error:
            raise pt.EpisodeFailed(f"BrowserGym failed: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        env, self.env = self.env, None
        if env is not None:
            with contextlib.suppress(pt.EpisodeFailed):  # the episode is over
                self.calling(env.close)


def require_browsergym(name: str) -> Callable[[int], Gym]:
    """The worlds of an environment's id, such as browsergym/workarena.servicenow.order-standard-laptop, by seed.

    Raises ValueError where it is not installed.
    """
    benchmark = name.removeprefix(PREFIX).partition(".")[0]
    try:
        import gymnasium
        from browsergym.utils.obs import flatten_axtree_to_str  # type: ignore[import-not-found]

        importlib.import_module(f"browsergym.{benchmark}")  # this registers its environments
    except ImportError as error:
        raise ValueError(f"`suite={name}` needs pip install browsergym-{benchmark}: {error}") from error

    def tree(seen: Mapping[str, Any]) -> str:
        return flatten_axtree_to_str(seen["axtree_object"], extra_properties=seen["extra_element_properties"])

    return lambda seed: Gym(lambda: gymnasium.make(name), tree, seed)
