"""Which walls this machine can put around a program, found by trying each in a child; and putting them up."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from . import kernel, seccomp, view

DESCRIPTORS = 64
STACK = 8 << 20
CROWD = 256  # processes of all programs together, where no user namespace lets each have a count of its own
APART = kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS


class Walls(NamedTuple):
    """What is put up. The first two are how: `shed` root's rights, or enter a user namespace to have any."""

    shed: bool = False
    user: bool = False
    counted: bool = False  # the program has a user namespace of its own, in which its processes are counted
    network: bool = False
    pids: bool = False
    mounts: bool = False
    landlock: int = 0
    seccomp: bool = False
    packages: tuple[str, ...] = ()  # folders of packages that programs may import and read, besides the interpreter's

    def isolates(self) -> list[str]:
        found = ["memory"] if sys.platform == "linux" else []
        if self.network or self.seccomp:
            found.append("network")
        if self.pids or (self.seccomp and self.landlock):
            found.append("processes")
        if self.mounts or self.landlock:
            found.append("files")
        if self.mounts:
            found.append("disk")
        if self.shed or (self.seccomp and os.getuid() != 0):
            found.append("privileges")
        if self.seccomp:
            found.append("system calls")
        return found


def failure_of(action: Callable[[], object]) -> str | None:
    """Why the action fails, in a child process that then ends; None if it works."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException as error:
            os.write(writing, (str(error) or type(error).__name__).encode())
        else:
            os.write(writing, b"works")
        finally:
            os._exit(0)
    os.close(writing)
    said = b"".join(iter(lambda: os.read(reading, 4096), b"")).decode()
    os.close(reading)
    os.waitpid(child, 0)
    return None if said == "works" else said or "it ended the process"


def in_new_user_namespace() -> None:
    """This process is nobody in a user namespace of its own, and may do there what root may."""
    user, group = os.getuid(), os.getgid()
    kernel.unshare(kernel.NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{view.NOBODY} {user} 1"),
        ("gid_map", f"{view.NOBODY} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def in_new_pid_namespace() -> int:
    """Goes on in a child, the first process of a pid namespace that it may leave and enter by this descriptor.

    This process waits, and ends as the child does; the child and all below it end with this process.
    """
    kernel.unshare(kernel.NEWPID)
    if child := os.fork():
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 255)
    kernel.set_process(kernel.PDEATHSIG, signal.SIGKILL)
    return os.open("/proc/self/ns/pid", os.O_RDONLY)


def nobody() -> None:
    os.setgroups([])
    os.setresgid(view.NOBODY, view.NOBODY, view.NOBODY)
    os.setresuid(view.NOBODY, view.NOBODY, view.NOBODY)


def reading_nobody() -> None:
    """Where there is no view of its own, the program must be let in to its interpreter's folder as it is."""
    nobody()
    os.listdir(os.path.dirname(os.__file__))


def examine_machine(empty: str) -> tuple[Walls, dict[str, str]]:
    """The walls of this machine, and a line on each for people. `empty`: a folder to try mounts on."""
    if sys.platform != "linux":
        return Walls(), {"namespaces, Landlock, seccomp": f"no: {sys.platform} has none"}
    root = os.geteuid() == 0
    user_fails = failure_of(in_new_user_namespace)
    user = not root and user_fails is None

    def failure_in_namespace(action: Callable[[], object]) -> str | None:
        return failure_of(lambda: (in_new_user_namespace() if user else None, action()))

    mount_fails = failure_in_namespace(lambda: (kernel.unshare(kernel.NEWNS), view.enter(empty), view.working_folder()))
    failures = {
        "shedding of root": failure_of(nobody if mount_fails is None else reading_nobody) if root else "not root",
        "user namespace": user_fails,
        "count of processes": failure_in_namespace(
            lambda: (nobody() if root else None, kernel.unshare(kernel.NEWUSER))
        ),
        "network, ipc and uts namespaces": failure_in_namespace(lambda: kernel.unshare(APART)),
        "pid namespace": failure_in_namespace(child_is_first),
        "mount namespace": mount_fails,
        "Landlock": failure_of(lambda: apply_landlock(empty)),
        "seccomp": failure_of(apply_seccomp),
    }
    shed, _, counted, network, pids, mounts, landlock, filters = (failure is None for failure in failures.values())
    abi = kernel.landlock_abi() if landlock else 0
    lines = {name: "yes" if failure is None else f"no: {failure}" for name, failure in failures.items()}
    if landlock:
        lines["Landlock"] = f"yes: ABI {abi}"
    return Walls(shed, user, counted, network, pids, mounts, abi, filters), lines


def child_is_first() -> None:
    own = in_new_pid_namespace()
    kernel.unshare(kernel.NEWPID)
    if (child := os.fork()) == 0:
        os._exit(os.getpid())
    kernel.back_to(own)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 1:
        raise OSError("a child in a new pid namespace is not its first process")


def apply_landlock(folder: str) -> None:
    kernel.set_process(kernel.NO_NEW_PRIVS, 1)
    kernel.landlock(kernel.landlock_abi(), view.readable(), [folder], view.DEVICES)


def apply_seccomp() -> None:
    kernel.set_process(kernel.NO_NEW_PRIVS, 1)
    seccomp.install(False, os.getpid(), False)


def confine(walls: Walls, limits: dict, work: str) -> None:
    """This process, about to run the program, loses its rights and gets its limits. Raises OSError."""
    set_limits(limits)
    if walls.shed:
        nobody()
    if walls.counted:
        kernel.unshare(kernel.NEWUSER)
    if walls.shed or walls.counted:
        kernel.no_capabilities()
    if sys.platform == "linux":
        kernel.set_process(kernel.NO_NEW_PRIVS, 1)
        kernel.set_process(kernel.PDEATHSIG, signal.SIGKILL)
    several = limits["processes"] > 1 and (walls.pids or not walls.seccomp)  # what cannot be ended is not begun
    if walls.counted or not several:
        most = limits["processes"] if several else 1
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
    elif walls.shed:
        resource.setrlimit(resource.RLIMIT_NPROC, (CROWD, CROWD))
    if walls.landlock:
        kernel.landlock(walls.landlock, view.readable(walls.packages), [work], view.DEVICES)
    if walls.seccomp:
        seccomp.install(several, None if walls.pids else os.getpid(), walls.mounts)


def set_limits(limits: dict) -> None:
    """Memory (of the address space), files, descriptors, no core dumps; what a system does not limit is left."""
    wanted = {
        resource.RLIMIT_AS: limits["memory_mib"] << 20,
        resource.RLIMIT_FSIZE: limits["file_mib"] << 20,
        resource.RLIMIT_NOFILE: DESCRIPTORS,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_STACK: STACK,
    }
    for which, most in wanted.items():
        if which == resource.RLIMIT_AS and sys.platform == "darwin":
            continue  # it refuses
        held = resource.getrlimit(which)[1]
        least = most if held == resource.RLIM_INFINITY else min(most, held)
        resource.setrlimit(which, (least, least))


def subreaper() -> None:
    """Orphans below this process become its children, so that it can end them."""
    if sys.platform == "linux":
        kernel.set_process(kernel.SUBREAPER, 1)


def processor_seconds(process: int) -> float | None:
    """CPU seconds of a child and its threads, from the kernel's clock for it; None where there are no such clocks."""
    if sys.platform != "linux":
        return None
    try:
        return time.clock_gettime((~process << 3) | 2)
    except OSError:  # it has ended and been waited for
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime
