"""From a policy to a port that answers."""

from __future__ import annotations

import ipaddress
import socket
import sys
from pathlib import Path

from posttrain.policy.text import TextPolicy


def listen(
    policy: TextPolicy,
    name: str,
    *,
    host: str,
    port: int,
    record: Path | None = None,
    trainable: bool = False,
    key: str | None = None,
) -> None:
    """Serve until interrupted.

    Raises ValueError naming the extra, or for an address that others reach without a key; OSError when the port is
    taken.
    """
    check_key(host, key)
    try:
        import uvicorn

        from posttrain.serve.app import App
    except ImportError as error:
        raise ValueError("posttrain serve needs the extra: pip install 'posttrain[serve]'") from error
    from posttrain.serve.record import Recorder

    listening = socket.create_server((host, port))
    app = App(policy, name, Recorder(record), trainable, key)
    where = f"http://{host}:{listening.getsockname()[1]}/v1"
    print(f"serving {name} at {where}; Ctrl-C ends it", file=sys.stderr, flush=True)
    server = uvicorn.Server(uvicorn.Config(app.routes(), log_level="warning"))
    try:
        server.run(sockets=[listening])
    finally:
        app.desk.close()
        app.clerk.shutdown()


def check_key(host: str, key: str | None) -> None:
    """Raises ValueError for an address that other machines reach, without a key that they must show."""
    try:
        alone = ipaddress.ip_address(host).is_loopback
    except ValueError:
        alone = host == "localhost"
    if not alone and not key:
        raise ValueError(f"`host={host}`: other machines reach it, so give `api_key` (or POSTTRAIN_API_KEY) too")
