"""The child process of `--grade math`: reads lines of [gold, answer, CPU seconds] and writes verdicts.

The kernel ends it when a verdict takes more. It imports nothing of posttrain, so that it starts without torch.
"""

import json
import logging
import math
import resource
import sys
import time

from equality import verdict  # type: ignore[import-not-found]  # beside this file, which runs as a script


def allow(seconds: int) -> None:
    """Let this process use so many CPU seconds more, and up to one besides."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = math.ceil(time.process_time()) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    print("ready", flush=True)
    for line in sys.stdin:
        gold, answer, seconds = json.loads(line)
        allow(seconds)
        print(verdict(gold, answer), flush=True)
