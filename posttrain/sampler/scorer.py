"""A model that scores in another process, asked over HTTP (posttrain/serve/scorer.py is the other side)."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import weakref
from collections.abc import Mapping
from typing import Any

import httpx

from posttrain.ranks import PATIENCE
from posttrain.sampler.server import FIRST_PAUSE_S, LONGEST_PAUSE_S, RETRIED, ServerError, excerpt

CONNECT_S = 10.0
RETRIES = 5


class Connection:
    """An address that answers for a model, from any thread.

    A user's server is tried again for what may pass. A process of the run's own is not: when it does not take a
    connection it has died, and ChildProcessError says so.

    kind     "reward model", ...
    own      it is a process that this run started
    process  the same, in the process that started it
    """

    def __init__(self, address: str, kind: str, *, own: bool = False, process: subprocess.Popen | None = None):
        self.address, self.kind, self.own, self.process = address.rstrip("/"), kind, own, process
        self.retries = 0 if own else RETRIES
        self.patience_s = PATIENCE.total_seconds()
        key = None if own else os.environ.get("POSTTRAIN_API_KEY")
        self.client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(self.patience_s, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None),
            trust_env=not own,  # no proxy stands before a process of ours
        )
        weakref.finalize(self, self.client.close)
        self.about = self.checked()

    def checked(self) -> Mapping[str, Any]:
        """What it says of itself. Raises ValueError when it does not serve this kind of model."""
        answer = self.request("GET", "/about", None)
        said = said_in(answer)
        if answer.is_error or "kind" not in said:
            raise ValueError(
                f"{self.address} is no server of a {self.kind}: posttrain serve starts one; see its help on a scorer"
            )
        if said["kind"] != self.kind:
            raise ValueError(f"{self.address} serves a {said['kind']}, not a {self.kind}")
        return said

    def call(self, operation: str, payload: Any) -> list[Any]:
        """The result of an operation, one item for each that was sent.

        Raises ChildProcessError when a process of the run's own has died; ServerError when a server does not answer, or
        refuses, or has finished nothing for `POSTTRAIN_PATIENCE_S` seconds.
        """
        answer = self.request("POST", f"/{operation}", payload)
        said = said_in(answer)
        if "result" not in said:
            raise ServerError(f"{self.address}/{operation}: {said.get('error') or excerpt(answer)}")
        return said["result"]

    def request(self, method: str, path: str, payload: Any) -> httpx.Response:
        pause = FIRST_PAUSE_S
        for attempt in range(self.retries + 1):
            try:
                answer = self.client.request(
                    method, self.address + path, **({} if payload is None else {"json": payload})
                )
                if answer.status_code not in RETRIED or attempt == self.retries:
                    return answer
            except httpx.ReadTimeout as error:
                raise ServerError(
                    f"the {self.kind} at {self.address} has finished nothing for {self.patience_s:g} s "
                    "(POSTTRAIN_PATIENCE_S): it hangs"
                ) from error
            except httpx.TransportError as error:
                if self.own:
                    raise ChildProcessError(self.obituary()) from error
                if attempt == self.retries:
                    said = f"{type(error).__name__}: {error} ({self.retries} retries)"
                    raise ServerError(f"the {self.kind} at {self.address}: {said}. Is the server up?") from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
        raise AssertionError

    def obituary(self) -> str:
        how = "it does not answer any more"
        if self.process is not None:
            try:
                how = ended(self.process.wait(CONNECT_S))
            except subprocess.TimeoutExpired:
                how = f"process {self.process.pid} takes no connection"
        return f"the process of the {self.kind} at {self.address} has died: {how}. What it said is in this run's output"


def ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (", as the kernel does when memory runs out" if -code == signal.SIGKILL else "")


def said_in(answer: httpx.Response) -> dict[str, Any]:
    """Its JSON object; empty where it is none."""
    try:
        said = answer.json()
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def is_address(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def without_ranks(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """An environment for a process that is none of the ranks."""
    ours = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}
    return {name: value for name, value in environment.items() if name not in ours}
