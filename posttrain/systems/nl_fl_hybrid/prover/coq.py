"""Coq, in one process that stays: a script costs some 20 ms, where a fresh process would cost a second."""

from __future__ import annotations

import os
import re
import resource
import selectors
import shutil
import subprocess
import tempfile
import time
import weakref
from pathlib import Path

from posttrain.systems.nl_fl_hybrid.prover import MISSING, ProverDied, Verdict
from posttrain.systems.nl_fl_hybrid.prover.script import Refused, check_statement, sentences, witness

INTEGERS, REALS = "ZArith Znumtheory QArith Lia Lqa", "Reals Lra"  # the first have no axiom
PREAMBLE = (
    *("Unset Lia Cache.", "Unset Nia Cache.", "Unset Nra Cache."),  # which are files
    "Open Scope Z_scope.",
    "Ltac Zify.zify_post_hook ::= Z.to_euclidean_division_equations.",  # so that lia handles mod and div
)
PROMPT = re.compile(rb"<prompt>.*?</prompt>", re.DOTALL)
CLOSED = "Closed under the global context"
CLASSICAL = {  # what the library's real numbers rest on
    "ClassicalDedekindReals.sig_forall_dec",
    "ClassicalDedekindReals.sig_not_dec",
    "FunctionalExtensionality.functional_extensionality_dep",
}
MEMORY = 4 << 30  # bytes of address space
WAIT_S = 60.0  # without any work of the process: it hangs
MOST_OUTPUT = 1 << 20  # bytes that a sentence may print


class TooLong(Exception):
    """A script asked for more work than it may."""


class Coq:
    """Checks by Coq's kernel, of what it was allowed to be shown.

    seconds  of the process's own work that a script may take; other load on the machine does not count
    reals    statements may be about real numbers, whose library has axioms
    audit    ask Coq which axioms each proof rests on, which takes 0.4 s where `lia` was used. Without it what keeps
             axioms out is `script` alone: no command is let through, and without reals the library has none
    Raises ValueError where Coq is not installed.
    """

    language = "coq"

    def __init__(self, seconds: float = 5.0, *, reals: bool = True, audit: bool = True):
        if not shutil.which("coqtop"):
            raise ValueError(MISSING)
        if reals and not audit:
            raise ValueError("`audit=False` needs `reals=False`: the library of real numbers has axioms")
        self.seconds, self.reals, self.audit = seconds, reals, audit
        self.folder = tempfile.mkdtemp(prefix="coq-")
        self.remove_folder = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.process: subprocess.Popen[bytes] | None = None
        self.end_process = weakref.finalize(self, int)  # nothing yet

    def check(self, statement: str, script: str) -> Verdict:
        """Raises ProverDied when the process ends whatever it is asked."""
        start = time.perf_counter()
        try:
            stated, steps = check_statement(statement), sentences(script)
            found = witness(stated, steps)
        except Refused as reason:
            return Verdict(False, error=str(reason))
        try:
            error, axioms = self.prove(stated, steps)
        except TooLong:
            self.end()
            error, axioms = f"it took more than {self.seconds} s", ()
            return Verdict(False, found, error, timed_out=True, milliseconds=1000 * (time.perf_counter() - start))
        took = 1000 * (time.perf_counter() - start)
        return Verdict(not error and not axioms, found, error, axioms, took)

    def prove(self, statement: str, steps: list[str]) -> tuple[str, tuple[str, ...]]:
        """What is wrong with a proof, and the axioms it rests on that are not allowed."""
        if self.process is None:
            self.start()
        deadline = self.work() + self.seconds
        try:
            said = self.send(f"Theorem posttrain : {statement}.", deadline)
            for step in steps if not is_error(said) else ():
                said = self.send(step, deadline)
                if is_error(said):
                    break
            if not is_error(said):
                said = self.send("Qed.", deadline)
            if is_error(said):
                return error_of(said), ()
            if not self.audit:
                return "", ()
            return "", forbidden_axioms(self.send("Print Assumptions posttrain.", deadline))
        except ProverDied:
            self.end()
            raise
        finally:
            if self.process is not None:
                self.send("Abort All.", deadline + self.seconds)
                self.send("Reset posttrain.", deadline + self.seconds)

    # ---- the process

    def start(self) -> None:
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "HOME": self.folder}
        self.process = subprocess.Popen(
            ["coqtop", "-q", "-emacs", "-w", "none"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            env=environment,
            bufsize=0,
        )
        self.end_process = weakref.finalize(self, kill, self.process)
        if hasattr(resource, "prlimit"):
            pid = self.process.pid
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))  # it cannot write a file, whatever it is told
            resource.prlimit(pid, resource.RLIMIT_AS, (MEMORY, MEMORY))
        self.answer(WAIT_S)
        for line in (f"Require Import {INTEGERS} {REALS if self.reals else ''}.", *PREAMBLE):
            if is_error(said := self.send(line, WAIT_S)):
                raise ProverDied(f"coqtop cannot load its library: {error_of(said)}")

    def send(self, sentence: str, deadline: float) -> str:
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(sentence.encode() + b"\n")
        except BrokenPipeError as error:
            raise ProverDied("coqtop ended") from error
        return self.answer(deadline)

    def answer(self, deadline: float) -> str:
        """What is printed up to the next prompt. Raises TooLong once the process's work is past the deadline."""
        assert self.process is not None
        assert self.process.stdout is not None
        found, idle = bytearray(), time.monotonic()
        with selectors.DefaultSelector() as ready:
            ready.register(self.process.stdout, selectors.EVENT_READ)
            while not PROMPT.search(found):
                if ready.select(0.2):
                    piece = os.read(self.process.stdout.fileno(), 1 << 16)
                    if not piece:
                        raise ProverDied("coqtop ended")
                    found += piece
                    idle = time.monotonic()
                if self.work() > deadline or len(found) > MOST_OUTPUT:
                    raise TooLong
                if time.monotonic() - idle > WAIT_S + self.seconds:
                    raise TooLong
        return PROMPT.sub(b"", bytes(found)).decode(errors="replace")

    def work(self) -> float:
        """CPU seconds of the process so far; the wall clock where the system does not say."""
        assert self.process is not None
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return time.monotonic()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        """Kill the process; the next script starts another."""
        self.end_process()
        self.process = None

    def close(self) -> None:
        self.end()
        self.remove_folder()


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def is_error(said: str) -> bool:
    return bool(re.search(r"^(?:Syntax )?[Ee]rror", untagged(said), re.MULTILINE))


def error_of(said: str) -> str:
    text = untagged(said)
    match = re.search(r"^(?:Syntax )?[Ee]rror:?\s*(.*)", text, re.MULTILINE | re.DOTALL)
    return " ".join((match[1] if match else text).split())[:300] or "unknown"


def untagged(said: str) -> str:
    return re.sub(r"<infomsg>.*?</infomsg>", "", said, flags=re.DOTALL).strip()


def forbidden_axioms(said: str) -> tuple[str, ...]:
    """Those of a proof's assumptions that are not among the allowed ones."""
    text = untagged(said)
    if CLOSED in text:
        return ()
    names = re.findall(r"^([\w.']+)\s*:", text.partition("Axioms:")[2], re.MULTILINE)
    return tuple(name for name in names if name not in CLASSICAL) if names else ("unknown",)
