"""The child process of `--grade math`: reads [gold, reply] lines, writes verdicts. It imports nothing of posttrain,
so that it starts without torch."""

import json
import logging
import sys

from math_verify import parse, verify


def read(text: str) -> list:
    return parse(text, parsing_timeout=None)  # type: ignore[arg-type]  # the parent kills; no alarms here


def verdict(gold: str, reply: str) -> str:
    truth = read(f"${gold}$") or read(gold)
    if not truth:
        return "unreadable"
    said = read(reply)
    return "right" if said and verify(truth, said, timeout_seconds=None) else "wrong"


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    print("ready", flush=True)
    for line in sys.stdin:
        print(verdict(*json.loads(line)), flush=True)
