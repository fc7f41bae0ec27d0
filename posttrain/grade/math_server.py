"""The child process of `--grade math`: reads lines of [gold, reply, CPU seconds] and writes verdicts.

The kernel ends it when a verdict takes more. It imports nothing of posttrain, so that it starts without torch.
"""

import json
import logging
import math
import resource
import sys
import time

from math_verify import parse, verify


def read(text: str) -> list:
    return parse(text, parsing_timeout=None)  # type: ignore[arg-type]  # the kernel kills; no alarms here


def verdict(gold: str, reply: str) -> str:
    truth = read(f"${gold}$") or read(gold)
    if not truth:
        return "unreadable"
    said = read(reply)
    return "right" if said and verify(truth, said, timeout_seconds=None) else "wrong"


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
        gold, reply, seconds = json.loads(line)
        allow(seconds)
        print(verdict(gold, reply), flush=True)
