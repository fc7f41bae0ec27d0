"""Coq, in one process that stays: a script costs some 20 ms, where a fresh process would cost a second."""

from __future__ import annotations

import os
import re
import resource
import secrets
import selectors
import shutil
import subprocess
import tempfile
import time
import weakref
from pathlib import Path

from posttrain.systems.nl_fl_hybrid.prover.script import Refused, check_statement, sentences, witness
from posttrain.systems.nl_fl_hybrid.prover.verdict import MISSING, ProverDied, Verdict

INTEGERS, REALS = "ZArith Znumtheory QArith Lia Lqa", "Reals Lra"  # the first have no axiom
PREAMBLE = (
    *("Unset Lia Cache.", "Unset Nia Cache.", "Unset Nra Cache."),  # which are files
    "Open Scope Z_scope.",
    "Ltac Zify.zify_post_hook ::= Z.to_euclidean_division_equations.",  # so that lia handles mod and div
)
PROMPT = re.compile(r"<prompt>[^<>]* < \d+ \|[^<>]*\| \d+ < </prompt>")
BROKEN = re.compile(r"^(?:Out of memory|Stack overflow|Anomaly|Fatal error)", re.MULTILINE)
CLOSED = "Closed under the global context"
CLASSICAL = {  # what the library's real numbers rest on
    "ClassicalDedekindReals.sig_forall_dec",
    "ClassicalDedekindReals.sig_not_dec",
    "FunctionalExtensionality.functional_extensionality_dep",
}
MEMORY = 4 << 30  # bytes of address space
WAIT_S = 60.0  # without any work of the process: it hangs
MOST_OUTPUT = 1 << 20  # bytes that a sentence may print
MOST_CHECKS = 500  # of one process


class TooLong(Exception):
    """A script asked for more work, memory or paper than it may."""


class Coq:
    """Lets Coq's kernel check what `script` lets through.

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
        self.checks = 0  # of this process, which grows with each

    def check(self, statement: str, script: str) -> Verdict:
        """Raises ProverDied when coqtop ends for no fault of the script; the next check starts another."""
        start, found = time.perf_counter(), None
        try:
            stated, steps = check_statement(statement), sentences(script)
            found = witness(stated, steps)
            error, axioms = self.prove(stated, steps)
        except Refused as reason:
            return Verdict(False, error=str(reason))
        except TooLong as reason:
            took = 1000 * (time.perf_counter() - start)
            return Verdict(False, found, str(reason), timed_out=True, milliseconds=took)
        took = 1000 * (time.perf_counter() - start)
        return Verdict(not error and not axioms, found, error, axioms, took)

    def prove(self, statement: str, steps: list[str]) -> tuple[str, tuple[str, ...]]:
        """What is wrong with a proof, and the axioms it rests on that are not allowed. After a failure of the process,
        and after so many checks, the next one gets another.
        """
        if self.process is None or self.checks >= MOST_CHECKS:
            self.end()
            self.start()
        self.checks += 1
        name, deadline = f"theorem_{secrets.token_hex(8)}", self.work() + self.seconds
        try:
            found = self.prove_as(name, statement, steps, deadline)
            for cleaning in ("Abort All.", f"Reset {name}."):
                self.send(cleaning, deadline + self.seconds)
        except (TooLong, ProverDied):
            self.end()
            raise
        return found

    def prove_as(self, name: str, statement: str, steps: list[str], deadline: float) -> tuple[str, tuple[str, ...]]:
        """The theorem is there afterwards only if the kernel took its proof: Coq is asked for it by its name."""
        for sentence in (f"Theorem {name} : {statement}.", *steps, "Qed."):
            if is_error(said := self.send(sentence, deadline)):
                return error_of(said), ()
        if f"Constant Top.{name}" not in self.send(f"Locate {name}.", deadline).split("\n"):
            return "Coq does not know the theorem", ()
        return "", forbidden_axioms(self.send(f"Print Assumptions {name}.", deadline)) if self.audit else ()

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
        self.end_process, self.checks = weakref.finalize(self, kill, self.process), 0
        if hasattr(resource, "prlimit"):
            pid = self.process.pid
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))  # it cannot write a file, whatever it is told
            resource.prlimit(pid, resource.RLIMIT_AS, (MEMORY, MEMORY))
        try:
            for line in (f"Require Import {INTEGERS} {REALS if self.reals else ''}.", *PREAMBLE):
                if is_error(said := self.send(line, WAIT_S)):
                    raise ProverDied(f"coqtop cannot load its library: {error_of(said)}")
        except (TooLong, ProverDied) as error:
            self.end()
            raise ProverDied(f"coqtop does not start: {error}") from error

    def send(self, sentence: str, deadline: float) -> str:
        """What Coq prints of a sentence. Raises TooLong, and ProverDied.

        It ends with the answer to a question that only we know: nothing that a script prints is taken for that.
        """
        assert self.process is not None
        assert self.process.stdin is not None
        nonce = f"nothing_{secrets.token_hex(8)}"
        try:
            self.process.stdin.write(f"{sentence}\nLocate {nonce}.\n".encode())
        except BrokenPipeError as error:
            raise ProverDied("coqtop ended") from error
        said = PROMPT.sub("", self.answer(f"No object of basename {nonce}", deadline))
        if BROKEN.search(said):
            raise TooLong(f"Coq gave up: {BROKEN.findall(said)[0]}")
        return said

    def answer(self, last: str, deadline: float) -> str:
        """What is printed before `last`. Raises TooLong once the process's work is past the deadline."""
        assert self.process is not None
        assert self.process.stdout is not None
        found, idle, wanted = bytearray(), time.monotonic(), last.encode()
        with selectors.DefaultSelector() as ready:
            ready.register(self.process.stdout, selectors.EVENT_READ)
            while wanted not in found:
                if ready.select(0.2):
                    piece = os.read(self.process.stdout.fileno(), 1 << 16)
                    if not piece:
                        raise ProverDied("coqtop ended")
                    found += piece
                    idle = time.monotonic()
                if len(found) > MOST_OUTPUT:
                    raise TooLong(f"it prints more than {MOST_OUTPUT} bytes")
                if self.work() > deadline or time.monotonic() - idle > WAIT_S + self.seconds:
                    raise TooLong(f"it takes more than {self.seconds} s")
        return bytes(found).partition(wanted)[0].decode(errors="replace")

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
    if CLOSED in text.split("\n"):
        return ()
    names = re.findall(r"^([\w.']+)\s*:", text.partition("Axioms:")[2], re.MULTILINE)
    return tuple(name for name in names if name not in CLASSICAL) if names else ("unknown",)
