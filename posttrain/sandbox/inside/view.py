"""The files that a program sees: the interpreter's and the system's libraries, four devices, a working folder.

With a mount namespace the rest is not there at all; Landlock refuses the same on a kernel that has it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from . import kernel

SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/urandom")
WORK = "/posttrain-work"
INODES = 2000  # files and folders of one program
NOBODY = 65534


def interpreter() -> list[str]:
    """The folders of the running Python that do not lie below the system's own."""
    given = (sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.__file__))
    places = {*given, *map(os.path.realpath, given)}
    inner = ("/usr", "/lib", "/lib64", *places)
    return sorted(p for p in places if not any(p != i and p.startswith(i + "/") for i in inner) and p != "/usr")


def below_tmp(packages: Sequence[str] = ()) -> bool:
    """The interpreter, or a folder of packages, lies there, where nothing may be laid over it then."""
    return any(place.startswith("/tmp/") for place in (*interpreter(), *packages))


def readable(packages: Sequence[str] = ()) -> list[str]:
    return [*SYSTEM, *interpreter(), *packages]


def enter(empty: str, packages: Sequence[str] = ()) -> None:
    """This process, in a mount namespace of its own, gets a root that holds only what `readable` names and
    the devices.

    empty     a folder to build it on
    packages  folders of packages that it holds too
    """
    kernel.mount(None, "/", None, kernel.REC | kernel.PRIVATE)
    kernel.mount("tmpfs", empty, "tmpfs", kernel.NOSUID | kernel.NODEV, "size=1m,nr_inodes=1000,mode=755")
    for path in (*readable(packages), *DEVICES):
        target = empty + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(path) and not path.startswith("/etc"):
            os.symlink(os.readlink(path), target)
        elif os.path.isdir(path):
            os.mkdir(target)
        elif os.path.exists(path):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        if os.path.exists(path) and not os.path.islink(target):
            kernel.mount(path, target, None, kernel.BIND | kernel.REC)
            if path not in DEVICES:
                kernel.read_only(target)
    os.mkdir(empty + WORK)
    os.makedirs(empty + "/tmp", exist_ok=True)
    os.chdir(empty)
    kernel.pivot_here()
    kernel.read_only("/", recursive=False)


def working_folder(mebibytes: int = 1, packages: Sequence[str] = ()) -> None:
    """Mounts an empty folder of limited size at `WORK`, and at /tmp if it can be had, in a mount namespace of this
    process' own."""
    data = f"size={mebibytes}m,nr_inodes={INODES},mode=700,uid={NOBODY},gid={NOBODY}"
    kernel.mount("tmpfs", WORK, "tmpfs", kernel.NOSUID | kernel.NODEV, data)
    if not below_tmp(packages):
        kernel.mount(WORK, "/tmp", None, kernel.BIND)
