"""The process that a run on several ranks starts for a model: python -m posttrain.serve.process ORDER.

It says in lines of JSON on its standard output what becomes of it: {"busy": true or false} every second while it loads
the model, then {"port": 4567}, or {"error": "..."}. It ends when the process that started it does, however that ended.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
import time
import traceback
from typing import Any

from posttrain.serve.scorer import Listener, Service, kind_at

BEAT_S = 1.0
BUSY = 0.01  # of a core: below it, nothing is being read, received or computed


def end_with(parent: int) -> None:
    """Wait for the end of standard input, which the parent holds open, or for another parent; then end the process."""
    while os.getppid() == parent and not select.select([0], [], [], BEAT_S)[0]:
        pass
    os._exit(0)


class Line:
    """Where the parent hears of us. What libraries print goes to standard error."""

    def __init__(self):
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.lock, self.over = threading.Lock(), False

    def say(self, last: bool = False, **said: Any) -> None:
        with self.lock:
            if not self.over:
                print(json.dumps(said), file=self.out, flush=True)
            self.over = self.over or last

    def beat(self) -> None:
        """Say every second, until the last word, whether something was done."""
        while not self.over:
            clock, cpu = time.monotonic(), time.process_time()
            time.sleep(BEAT_S)
            self.say(busy=time.process_time() - cpu > BUSY * (time.monotonic() - clock))


def main(order: dict[str, Any]) -> None:
    """`order`: the kind's place, the model's name, the options of its loading, the host to listen on, our parent."""
    threading.Thread(target=end_with, args=(order["parent"],), daemon=True).start()
    line = Line()
    threading.Thread(target=line.beat, daemon=True).start()
    try:
        kind = kind_at(order["kind"])
        model = kind.load(order["name"], **order["options"])
        listener = Listener(Service(kind, order["name"], model), order["host"], 0)
    except Exception as error:
        if not isinstance(error, ValueError | OSError):
            traceback.print_exc()
        line.say(error=str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}", last=True)
        sys.exit(1)
    line.say(port=listener.server_port, last=True)
    listener.serve_forever()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
