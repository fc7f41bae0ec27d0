"""Untrusted code is run, often, and nothing gets out or hangs.

    with sandbox() as box:
        outcome = box.run(Program("print(sum(map(int, input().split())))", "1 2 3"), Limits(wall_s=2))

What isolates what (`probe()` says which of these this machine has, `Sandbox.isolates` what a sandbox makes of them):

network       an empty network namespace; seccomp refuses every socket; Landlock refuses TCP
processes     a pid namespace, whose first process is ours: what a program starts ends with it. Where there is none,
              seccomp refuses forks and threads, and lets it signal only itself
files         a root of its own that holds the interpreter, the system's libraries and four devices, read-only, and an
              empty working folder; Landlock allows the same and no more. No /proc, no /sys, no home, no /etc
privileges    user nobody, no capabilities, no way to get any (no_new_privs, an empty bounding set)
memory        the address space of each process has a limit
disk          the working folder is a memory file system of limited size, gone with the program
system calls  seccomp refuses those that no graded program needs: other processes' memory, namespaces, mounts,
              keyrings, io_uring, bpf and the like, and memory that no limit counts
time          wall clock, watched by the program's parent; output is read with a cap; forks and threads are counted

The zygote is a Python of its own with a clean environment and the standard library alone, not a fork of the trainer:
there is no secret in it. It stays behind the same walls and forks itself for each program (about 10 ms). bubblewrap
starts a container and an interpreter for each (about 0.1 s); plain isolates nothing, and warns.

What it is not: a virtual machine. A program talks to the kernel that everything else runs on, and a defect there is a
way out. Programs can tell what machine they run on, use a core for as long as `Limits.wall_s` says, and warm caches
that the next one feels. Two programs share no file that either can write, no memory, no socket.
"""

from posttrain.sandbox.backends import probe, sandbox
from posttrain.sandbox.calls import CallResults, Calls, RaisedError, ReturnedValue, run_calls
from posttrain.sandbox.memo import Memo
from posttrain.sandbox.program import Limits, Outcome, Program, Sandbox
from posttrain.sandbox.session import Session, SessionEnded, open_session

__all__ = [
    "CallResults",
    "Calls",
    "Limits",
    "Memo",
    "Outcome",
    "Program",
    "RaisedError",
    "ReturnedValue",
    "Sandbox",
    "Session",
    "SessionEnded",
    "open_session",
    "probe",
    "run_calls",
    "sandbox",
]  # fmt: skip
