"""From a policy to a port that answers."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from posttrain.policy.text import TextPolicy


def listen(
    policy: TextPolicy, name: str, *, host: str, port: int, record: Path | None = None, trainable: bool = False
) -> None:
    """Serve until interrupted. Raises ValueError naming the extra, OSError when the port is taken."""
    try:
        import uvicorn

        from posttrain.serve.app import App
    except ImportError as error:
        raise ValueError("posttrain serve needs the extra: pip install 'posttrain[serve]'") from error
    from posttrain.serve.record import Recorder

    listening = socket.create_server((host, port))
    app = App(policy, name, Recorder(record), trainable)
    where = f"http://{host}:{listening.getsockname()[1]}/v1"
    print(f"serving {name} at {where}; Ctrl-C ends it", file=sys.stderr, flush=True)
    server = uvicorn.Server(uvicorn.Config(app.routes(), log_level="warning"))
    try:
        server.run(sockets=[listening])
    finally:
        app.desk.close()
