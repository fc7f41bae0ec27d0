"""The process of the program itself: what runs the source there, and what answers calls of a function of it.

Nothing here is a secret and nothing here can be trusted once the source has run: whoever owns a process can change
all that is in it. What is known about a run is measured from outside, by keeper.py.
"""

from __future__ import annotations

import atexit
import binascii
import contextlib
import gc
import io
import json
import linecache
import os
import site
import sys
import threading
import time
import traceback
import tracemalloc
import types
from collections.abc import Callable
from typing import Any

NAME = "program.py"
MESSAGE = 1000  # characters of an exception's message
TRACEBACK = 10_000  # characters of a traceback, of which the last ones matter
OUR_FRAMES = 2  # above the program's own in a traceback
FILES = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
DEPTH = 100  # of nested lists and dictionaries in a value


def load_main(source: str) -> dict[str, Any]:
    """The names of a main module in which the source has run."""
    module = types.ModuleType("__main__")
    module.__file__ = NAME
    sys.modules["__main__"] = module
    sys.argv = [NAME]
    sys.path.append(os.getcwd())  # last: a file of the program never hides the standard library
    linecache.cache[NAME] = len(source), None, source.splitlines(keepends=True), NAME  # for tracebacks
    site.setquit()
    exec(compile(source, NAME, "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def write_files(files: dict[str, str | list[str]]) -> None:
    """Text, or bytes as a list of their base64 alone."""
    for name, held in files.items():
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        data = held.encode("utf-8", "surrogatepass") if isinstance(held, str) else binascii.a2b_base64(held[0])
        with open(name, "wb") as file:
            file.write(data)


def run_main(source: str, files: dict[str, str | list[str]]) -> int:
    """The exit code of the source, run as the main module with all that Python does at the end of one."""
    try:
        write_files(files)
        load_main(source)
        code = 0
    except BaseException as error:
        code = report_exception(error)
    after = shut_down()
    return code or after


def shut_down() -> int:
    """Threads are waited for, what was to be done at exit is done, output is written: 0, or 1 if any of it fails."""
    code = 0
    try:
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        flush_files()
    except BaseException as error:
        code = report_exception(error)
    return code


def flush_files() -> None:
    """Writes what files that nobody closed still hold, as Python does when it deletes them at its end."""
    with contextlib.suppress(MemoryError):
        held: list[Any] = [each for each in (*gc.get_objects(), sys.__stdout__) if issubclass(type(each), FILES)]
        for kind in FILES:  # those of text first, which write to the others
            for file in [each for each in held if issubclass(type(each), kind)]:
                with contextlib.suppress(OSError, ValueError):  # it is closed, or cannot be written
                    file.flush()  # type: ignore[union-attr]  (one of FILES)


def report_exception(error: BaseException) -> int:
    """The exit code that Python gives an exception which nobody caught; its traceback goes to stderr."""
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 255
        os.write(2, f"{error.code}\n".encode(errors="replace"))
        return 1
    try:
        for _ in range(OUR_FRAMES):
            error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        text = "".join(traceback.format_exception(error))[-TRACEBACK:]
        os.write(2, text.encode(errors="replace"))
    except BaseException:  # a traceback may be too deep or too large to print
        os.write(2, f"{type(error).__name__}\n".encode())
    if isinstance(error, MemoryError) and type(error) is not MemoryError:
        os.write(2, b"MemoryError\n")  # the keeper looks for it in the last line
    return 1


def calls(channel: int, source: str, files: dict[str, str | list[str]], function: str, traced: bool) -> int:
    """Loads the source, says so on the channel, then answers each line of arguments with a line; 0 at its end.

    The functions that measure and answer are bound to local names before the source runs.
    """
    clock, decode = time.thread_time, json.loads
    encode = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode
    send, lines = sender(channel), os.fdopen(os.dup(channel), "r", encoding="utf-8")
    start, peak, stop = tracemalloc.start, tracemalloc.get_traced_memory, tracemalloc.stop
    try:
        write_files(files)
        namespace = load_main(source)
    except BaseException as error:
        send(encode({"error": f"{type(error).__name__}: {message(error)}"}))
        return report_exception(error)
    if function not in namespace:
        send(encode({"error": f"the source defines no {function}"}))
        return 1
    called = namespace[function]
    send("{}")
    for line in lines:
        arguments = decode(line)
        if traced:
            start()
        before = clock()
        try:
            value = called(*arguments)
            measured = {"seconds": clock() - before, "peak": peak()[1]}
            stop()
            answer = encode({"value": json_value(value), **measured})
        except BaseException as error:
            measured = {"seconds": clock() - before, "peak": peak()[1]}
            stop()
            answer = encode({"raised": [type(error).__name__, message(error)], **measured})
        send(answer)
    return 0


def sender(channel: int) -> Callable[[str], None]:
    write = os.write

    def send(text: str) -> None:
        data = memoryview(text.encode() + b"\n")
        while data:
            data = data[write(channel, data) :]

    return send


def message(error: BaseException) -> str:
    try:
        return str(error)[:MESSAGE].encode(errors="replace").decode()
    except BaseException as second:
        return f"its message raises {type(second).__name__}"


def json_value(value: Any, depth: int = 0) -> Any:
    """The value itself, built of JSON's own types and no subclass of one. Raises TypeError naming what is not."""
    kind = type(value)
    if depth > DEPTH:
        raise TypeError(f"returned a value nested deeper than {DEPTH}")
    if kind in (list, tuple):
        return [json_value(item, depth + 1) for item in value]
    if kind is dict and all(type(key) is str for key in value):
        return {key: json_value(item, depth + 1) for key, item in value.items()}
    if kind not in (str, int, float, bool, type(None)):
        raise TypeError(f"returned a {kind.__name__}, which is no JSON value")
    return value
