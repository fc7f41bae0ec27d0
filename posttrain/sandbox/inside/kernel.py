"""Linux's calls that Python 3.11 has no names for, through ctypes. Each raises OSError as a function of `os` would."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence

libc = ctypes.CDLL(None, use_errno=True)

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, BIND, REC, PRIVATE, DETACH = 1, 2, 4, 4096, 16384, 1 << 18, 2
PDEATHSIG, DUMPABLE, CAPBSET_DROP, SUBREAPER, NO_NEW_PRIVS = 1, 4, 24, 36, 38
AT_FDCWD, AT_RECURSIVE, O_PATH = -100, 0x8000, 0x200000
CAPABILITIES = 0x20080522  # version 3 of capset's header
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
MOUNT_SETATTR, LANDLOCK_CREATE, LANDLOCK_RULE, LANDLOCK_RESTRICT = 442, 444, 445, 446  # the same on every machine

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE, IOCTL_DEV = 1, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # the rights that a rule for a file may name
DEVICES_AND_SOCKETS = 1 << 6 | 1 << 9 | 1 << 11  # making of character devices, sockets and block devices
RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}  # by Landlock's ABI
TCP, SCOPES = 3, 3  # binding and connecting (from ABI 4); abstract sockets and signals (from ABI 6)


def check_errno(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def system_call(number: int, *arguments: int | bytes | None) -> int:
    passed = (ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments)
    return check_errno(libc.syscall(ctypes.c_long(number), *passed))


def unshare(flags: int) -> None:
    check_errno(libc.unshare(flags))


def back_to(namespace: int) -> None:
    """Children are born again into the pid namespace that this descriptor names."""
    check_errno(libc.setns(namespace, NEWPID))


def set_process(option: int, value: int) -> None:
    """prctl(2)."""
    check_errno(libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)))


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    source_, kind_ = (None if text is None else text.encode() for text in (source, kind))
    check_errno(libc.mount(source_, os.fsencode(target), kind_, ctypes.c_ulong(flags), data.encode()))


def read_only(path: str, recursive: bool = True) -> None:
    """No writing and no set-uid programs below a mount (Linux 5.12)."""
    attributes = struct.pack("QQQQ", RDONLY | NOSUID, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    system_call(MOUNT_SETATTR, AT_FDCWD, os.fsencode(path), flags, attributes, len(attributes))


def pivot_here() -> None:
    """The current folder, a mount, becomes `/`; what was `/` is gone from this mount namespace."""
    system_call(PIVOT_ROOT[os.uname().machine], b".", b".")
    check_errno(libc.umount2(b".", DETACH))
    os.chdir("/")


def no_capabilities() -> None:
    """None held, and none to be had again by exec."""
    number = 0
    while libc.prctl(CAPBSET_DROP, ctypes.c_ulong(number), 0, 0, 0) == 0:
        number += 1
    check_errno(libc.capset(struct.pack("Ii", CAPABILITIES, 0), struct.pack("IIIIII", 0, 0, 0, 0, 0, 0)))


def landlock_abi() -> int:
    """The version of Landlock that this kernel has; OSError where it has none."""
    return system_call(LANDLOCK_CREATE, None, 0, 1)


def landlock(abi: int, readable: Sequence[str], writable: Sequence[str], devices: Sequence[str]) -> None:
    """Files: below `readable` to read and run, below `writable` all but devices and sockets, `devices` to read and
    write, nothing elsewhere.
    From ABI 4 no TCP, from ABI 6 no signal and no abstract socket of a process outside."""
    rights = RIGHTS[min(abi, 5)]
    attributes = struct.pack("QQQ", rights, TCP if abi >= 4 else 0, SCOPES if abi >= 6 else 0)
    rules = system_call(LANDLOCK_CREATE, attributes, 8 if abi < 4 else 16 if abi < 6 else 24, 0)
    allowed = [(path, EXECUTE | READ_FILE | READ_DIR) for path in readable]
    allowed += [(path, rights & ~DEVICES_AND_SOCKETS) for path in writable]
    allowed += [(path, READ_FILE | WRITE_FILE) for path in devices]
    for path, right in allowed:
        if os.path.exists(path):
            right &= rights if os.path.isdir(path) else rights & OF_FILES
            folder = os.open(path, O_PATH | os.O_CLOEXEC)
            system_call(LANDLOCK_RULE, rules, 1, struct.pack("=Qi", right, folder), 0)
            os.close(folder)
    system_call(LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)
