"""Calls of a function that nobody trusts, each with its value, its CPU seconds and its peak of memory.

The arguments go in and the values come out over a socket of the harness' own, one call at a time; what the function
prints is apart from them, and no expected answer ever enters the sandbox: compare outside.

What a submission can forge. Its process is its own, so it can find the harness there and answer in its place. It
gains little by that:

values   it must know them, and gets each call's arguments only once it has answered the one before.
seconds  the harness measures each call by the thread's CPU clock, to which it holds a reference from before the
         submission was loaded; and the kernel's clock of the whole process is read from outside it as the arguments go
         in and as the value comes out. Where the two differ by more than reading and writing that much JSON can take
         (`ALLOWANCE_S`, `BYTE_S`, `ELEMENT_S`), the call is charged the kernel's. So a forger hides 0.3 ms of a call,
         0.1 us for each byte of its arguments and value and 0.5 us for each element of its value, no more: an answer
         that is longer than the harness would write it is none. Work done before the first call is not in any call's
         seconds: it is `loading_s`, measured from outside.
repeats  each is a process of its own: nothing is remembered from one to the next. Equal arguments in one `Calls` may
         be answered from a cache.
peaks    can be forged by a submission that finds the harness; `outcome.memory_kib` cannot, but counts the interpreter.
one for the clock and another for the tests  every run must give the same results; where they differ, the call's result
         is `RaisedError("Inconsistent", ...)`.

On a system without clocks of other processes (macOS) the harness' own seconds are taken, and refused if they sum to
more than the process used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from posttrain.sandbox.inside.body import DEPTH
from posttrain.sandbox.program import MOST, USUAL, Limits, Outcome, Program, Sandbox, outcome, request

ALLOWANCE_S, BYTE_S, ELEMENT_S = 3e-4, 1e-7, 5e-7  # CPU seconds of a call that are the harness': of each, of each byte
# of JSON, and of each element of its value
TRACED_S, TRACED_MIB = 4, 6  # times the seconds, and times the memory, for the run in which allocations are traced
MEASURED = 200  # characters of an answer besides its value
MOST_MEASURED = 2.0**50  # seconds, or bytes, of a call


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of `function`, which `source` defines, with these arguments one after the other in one process.

    arguments  a tuple of positional arguments for each call, of JSON's types
    repeats    processes in which to time them; the least time of a call counts
    Raises ValueError for arguments that JSON cannot hold, or fewer than one repeat.
    """

    source: str
    function: str
    arguments: tuple[tuple[Any, ...], ...]
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"Calls(repeats={self.repeats}): not above zero")
        try:
            json.dumps(self.arguments)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"Calls of {self.function}: the arguments are not JSON: {error}") from None


@dataclass(frozen=True, slots=True)
class ReturnedValue:
    """A value, as JSON holds it: a tuple has become a list."""

    value: Any


@dataclass(frozen=True, slots=True)
class RaisedError:
    """An exception: the name of its class and the first 1000 characters of its message."""

    name: str
    message: str


@dataclass(frozen=True, slots=True)
class CallResults:
    """What came of the calls.

    outcome    of the first run; of the first that failed, if one did
    results    one for each call that was answered before the run ended
    seconds    CPU seconds of each of these calls, the least of the repeats
    peak_kib   KiB allocated by Python at the peak of each call, above what was allocated when it began; measured in a
               run of its own, which is not timed. Empty if that run failed, or ran out of memory where this one did
               not: then the memory could not be measured
    error      why not every call was answered; None if every one was, be it by an exception
    loading_s  CPU seconds of the process before its first call, its birth (about 3 ms) included
    """

    outcome: Outcome
    results: tuple[ReturnedValue | RaisedError, ...]
    seconds: tuple[float, ...]
    peak_kib: tuple[float, ...]
    error: str | None
    loading_s: float = 0.0


def run_calls(
    sandbox: Sandbox, calls: Sequence[Calls], limits: Limits = USUAL, at_once: int | None = None
) -> list[CallResults]:
    """The calls of each of `calls` made in the sandbox, in order; `at_once` processes side by side.

    Each process is alone, whatever `limits.processes`: others' seconds would be in no clock. Times are least noisy with
    `at_once=1`. Calls that fail in their first run are not repeated. The run that traces memory may take four times
    `limits.wall_s`, and six times the memory. Raises RuntimeError if the sandbox itself fails.
    """
    limits = replace(limits, processes=1)
    first = [
        ProcessAnswers(said, each, ())
        for said, each in zip(sandbox.answers(call_requests(calls, limits), at_once), calls, strict=True)
    ]
    sound = [i for i, run in enumerate(first) if run.error is None]
    again = [each for i in sound for each in [calls[i]] * (calls[i].repeats - 1)]
    traced_limits = replace(
        limits,
        wall_s=min(TRACED_S * limits.wall_s, MOST["wall_s"]),
        memory_mib=min(TRACED_MIB * limits.memory_mib, MOST["memory_mib"]),
    )
    requests = call_requests(again, limits) + call_requests([calls[i] for i in sound], traced_limits, traced=True)
    replies = sandbox.answers(requests, at_once)
    repeats, traced = iter(replies[: len(again)]), dict(zip(sound, replies[len(again) :], strict=True))
    return [
        reconcile_runs(
            run,
            [ProcessAnswers(next(repeats), each, run.texts) for _ in range(each.repeats - 1)],
            ProcessAnswers(traced[i], each, run.texts),
        )
        if i in traced
        else reconcile_runs(run, [], None)
        for i, (run, each) in enumerate(zip(first, calls, strict=True))
    ]


def call_requests(calls: Sequence[Calls], limits: Limits, traced: bool = False) -> list[dict[str, Any]]:
    return [
        request(
            Program(each.source),
            limits,
            {"function": each.function, "traced": traced},
            [json.dumps(arguments) for arguments in each.arguments],
        )
        for each in calls
    ]


def reconcile_runs(first: ProcessAnswers, repeats: list[ProcessAnswers], traced: ProcessAnswers | None) -> CallResults:
    """One account of all the runs."""
    timed = [first, *repeats]
    if traced and (traced.error or traced.ran_out(first)):
        traced = None
    failed = next((run for run in timed if run.error), None)
    answered = min(len(run.texts) for run in timed)
    results = list(first.results[:answered])
    for run in [*repeats, *([traced] if traced else [])]:
        for i, (one, other) in enumerate(zip(first.texts[:answered], run.texts, strict=False)):
            result = results[i]
            short = run is traced and isinstance(result, RaisedError) and result.name == "MemoryError"  # it has more
            if one != other and not short:
                results[i] = RaisedError("Inconsistent", "the same call came out differently in another process")
    return CallResults(
        outcome=(failed or first).outcome,
        results=tuple(results),
        seconds=tuple(min(run.seconds[i] for run in timed) for i in range(answered)),
        peak_kib=tuple(traced.peaks) if traced else (),
        error=failed.error if failed else None,
        loading_s=min(run.loading_s for run in timed),
    )


class ProcessAnswers:
    """What one process said, and what is believed of it.

    first  the texts that another process gave for the values, if one has been heard: a value that is the same is not
           parsed again, and one that is not is none
    """

    def __init__(self, said: dict[str, Any], calls: Calls, first: Sequence[str]) -> None:
        arguments = calls.arguments
        self.first = first
        self.outcome = outcome(said)
        self.texts: list[str] = []
        self.results: list[ReturnedValue | RaisedError] = []
        self.seconds: list[float] = []
        self.peaks: list[float] = []
        self.error: str | None = None
        self.loading_s = 0.0
        for i, (line, window) in enumerate(said["calls"]):
            if self.error is None:
                self.hear(i, line, window, arguments)
        self.error = self.error or said["broken"]
        if self.error is None and len(self.texts) < len(arguments):
            where = f"in call {len(self.texts)}" if said["calls"] else "before the first call"
            self.error = f"{self.outcome.status} {where}"
        if self.error is None and sum(self.seconds) > self.outcome.cpu_s + ALLOWANCE_S * len(arguments):
            self.error = "it claims more seconds than its process used"

    def hear(self, i: int, line: str, window: float | None, arguments: tuple[tuple[Any, ...], ...]) -> None:
        try:
            if i == 0:
                self.loading_s = window or 0.0
                said = json.loads(line).get("error")
                self.error = None if said is None else str(said)
                return
            text, measured = split_answer(line)
            seconds, peak = number(measured["seconds"]), number(measured["peak"])
            if not self.first:
                self.results.append(result(text))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            self.error = f"its answer to call {i - 1} is not the harness'"
            return
        believed = text if not self.first or text == self.first[i - 1] else ""
        size = len(believed) + len(json.dumps(arguments[i - 1]))
        self.texts.append(text)
        self.seconds.append(charged_seconds(seconds, window, BYTE_S * size + ELEMENT_S * elements(believed)))
        self.peaks.append(peak / 1024)

    def ran_out(self, other: ProcessAnswers) -> bool:
        """A call had not memory enough here, and had it there."""
        pairs = zip(self.texts, other.texts, strict=False)
        return any(here != there and here.startswith('{"raised":["MemoryError",') for here, there in pairs)


def split_answer(line: str) -> tuple[str, dict[str, Any]]:
    """The harness' answer in two: the value or exception, and what was measured. Raises ValueError."""
    at = line.rindex(',"seconds":')
    if len(line) - at > MEASURED:
        raise ValueError("more than measurements")
    return line[:at] + "}", json.loads("{" + line[at + 1 :])


def number(value: Any) -> float:
    """As the harness measures one. Raises ValueError for what is not finite, negative, or more than any machine has."""
    if type(value) not in (int, float) or not 0 <= value < MOST_MEASURED:
        raise ValueError(f"{value!r} was not measured")
    return float(value)


def result(text: str) -> ReturnedValue | RaisedError:
    """The value or exception. Raises an error of json, or ValueError for text that is longer than the harness' own."""
    answer = json.loads(text)
    if json.dumps(answer, separators=(",", ":")) != text:
        raise ValueError("padded")
    if depth(answer) > DEPTH + 2:
        raise ValueError("nested deeper than the harness says")
    if "raised" in answer:
        name, message = answer["raised"]
        return RaisedError(str(name), str(message))
    return ReturnedValue(answer["value"])


def depth(value: Any) -> int:
    """Of nested lists and objects, without recursion."""
    deepest, left = 0, [(value, 1)]
    while left:
        one, level = left.pop()
        if isinstance(one, list | dict):
            deepest = max(deepest, level)
            left += [(inner, level + 1) for inner in (one.values() if isinstance(one, dict) else one)]
    return deepest


def elements(text: str) -> int:
    """Of a value, no fewer than there are."""
    return 1 + text.count(",") + text.count("[") + text.count("{")


def charged_seconds(claimed: float, window: float | None, harness_s: float) -> float:
    """Those claimed, if the kernel's window around the call, less the harness' own, bears them out; else its."""
    if window is None:
        return claimed
    return claimed if window - ALLOWANCE_S - harness_s <= claimed <= window else window
