"""A seccomp filter: system calls that no graded program needs are refused, however the rest of the machine is set up.

It is what keeps the network and other processes away where a container grants no namespaces, and makes the kernel's
surface smaller where it does. The numbers are those of x86-64 and of AArch64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence

from . import kernel

MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # AUDIT_ARCH, column of the tables below
ABSENT = -1

REFUSED = {
    "socket": (41, 198),
    # memory that no limit counts
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180), "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "process_madvise": (440, 440),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setaffinity": (203, 122), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274),
    # namespaces, mounts, the machine
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "open_tree": (428, 428), "open_tree_attr": (467, 467), "statmount": (457, 457), "listmount": (458, 458),
    "move_mount": (429, 429), "mount_setattr": (442, 442), "swapon": (167, 224),
    "swapoff": (168, 225), "reboot": (169, 142), "acct": (163, 89), "quotactl": (179, 60), "syslog": (103, 116),
    "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "iopl": (172, ABSENT),
    "ioperm": (173, ABSENT), "modify_ldt": (154, ABSENT), "personality": (135, 92),
    # the kernel's own machinery, where its defects lie
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262), "io_setup": (206, 0),
    # what passes bits between programs by files that all of them see, and what shows who opens them
    "flock": (73, 32), "inotify_init": (253, ABSENT), "inotify_init1": (294, 26), "inotify_add_watch": (254, 27),
}  # fmt: skip
# what Landlock leaves open of files outside the working folder, where no mount namespace hides them
OF_OWNERS = {
    "chown": (92, ABSENT), "lchown": (94, ABSENT), "fchown": (93, 55), "fchownat": (260, 54), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466), "file_setattr": (469, 469),
    "truncate": (76, 45),
}  # fmt: skip
OF_MODES_AND_TIMES = {
    "chmod": (90, ABSENT), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "utime": (132, ABSENT),
    "utimes": (235, ABSENT), "futimesat": (261, ABSENT), "utimensat": (280, 88),
}  # fmt: skip
OPENS = (((2, ABSENT), 1), ((257, 56), 2))  # open and openat, and which argument has the flags
OPENAT2 = (437, 437)
EMPTYING = (os.O_TRUNC, os.O_ACCMODE, os.O_TRUNC | os.O_ACCMODE)  # flags that change a file without leave to write
FORKS = {"fork": (57, ABSENT), "vfork": (58, ABSENT), "clone": (56, 220)}
CLONE, CLONE3 = (56, 220), (435, 435)
SIGNALS = {
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "sigqueue": (129, 138),
    "tgsigqueue": (297, 240),
}
PRLIMIT = (302, 261)
# by which a process has the kernel signal another, or outlives the one that would end it: call, argument, its values
SIGNALS_BY_KERNEL = (
    ((72, 25), 1, (8, 10, 15)),  # fcntl: F_SETOWN, F_SETSIG, F_SETOWN_EX
    ((16, 29), 1, (0x8901, 0x8902)),  # ioctl: FIOSETOWN, SIOCSPGRP
    ((157, 167), 0, (kernel.PDEATHSIG,)),  # prctl
)
NEW_NAMESPACES = 0x7E020000  # the flags of clone(2) that make namespaces

LOAD, EQUAL, ANY_BIT, AT_LEAST, AND, RETURN = 0x20, 0x15, 0x45, 0x35, 0x54, 0x06  # instructions of classic BPF
NUMBER, ARCHITECTURE, FIRST = 0, 4, 16  # where seccomp_data holds them; of an argument, the low half (little-endian)
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
NOT_DONE = 0  # the error of a call that succeeds without doing anything
Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def refusal(number: int = errno.EPERM) -> Instruction:
    return RETURN, 0, 0, REFUSE | number


def argument(index: int) -> Instruction:
    return LOAD, 0, 0, FIRST + 8 * index


def unless(number: int, index: int, values: Sequence[int], mask: int = 0xFFFFFFFF) -> list[Instruction]:
    """Allows the system call, except with one of these values of the argument's bits in the mask."""
    code = [argument(index), (AND, 0, 0, mask)]
    for value in values:
        code += [(EQUAL, 0, 1, value), refusal()]
    return [(EQUAL, 0, len(code) + 1, number), *code, (RETURN, 0, 0, ALLOW)]


def answers(forks: bool, hidden: bool) -> list[tuple[tuple[int, int], int]]:
    """System calls that are not made, whatever their arguments, and the error of each."""
    found = [(numbers, errno.EPERM) for numbers in REFUSED.values()]
    found.append((CLONE3, errno.ENOSYS if forks else errno.EAGAIN))  # glibc then asks clone, whose flags can be read
    if not forks:
        found += [(numbers, errno.EAGAIN) for numbers in FORKS.values()]
    if not hidden:
        found += [(numbers, errno.EPERM) for numbers in OF_OWNERS.values()]
        found += [(numbers, NOT_DONE) for numbers in OF_MODES_AND_TIMES.values()]  # shutil.copy needs them to succeed
        found.append((OPENAT2, errno.ENOSYS))  # whose flags cannot be read
    return found


def program(forks: bool, own: int | None, hidden: bool) -> list[Instruction]:
    """The filter's instructions. `forks`: may the program have processes and threads; `own`: if the only process that
    it may signal is itself, its number; `hidden`: are others' files out of its sight."""
    architecture, column = MACHINES[os.uname().machine]
    code = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, architecture), refusal(), (LOAD, 0, 0, NUMBER)]
    code += [(AT_LEAST, 0, 1, 0x40000000), refusal()]  # x32's numbers
    for numbers, error in answers(forks, hidden):
        if numbers[column] != ABSENT:
            code += [(EQUAL, 0, 1, numbers[column]), refusal(error)]
    if forks:
        code += [(EQUAL, 0, 4, CLONE[column]), argument(0), (ANY_BIT, 0, 1, NEW_NAMESPACES), refusal()]
        code += [(RETURN, 0, 0, ALLOW)]
    if not hidden:
        for numbers, index in OPENS:
            if numbers[column] != ABSENT:
                code += unless(numbers[column], index, EMPTYING, os.O_TRUNC | os.O_ACCMODE)
    if own is not None:
        for numbers in [*SIGNALS.values(), PRLIMIT]:
            code += [(EQUAL, 0, 5, numbers[column]), argument(0), (EQUAL, 2, 0, own)]
            code += [(EQUAL, 1 if numbers is PRLIMIT else 0, 0, 0), refusal(), (RETURN, 0, 0, ALLOW)]
        for numbers, index, values in SIGNALS_BY_KERNEL:
            code += unless(numbers[column], index, values)
    return [*code, (RETURN, 0, 0, ALLOW)]


def install(forks: bool, own: int | None, hidden: bool) -> None:
    """Filters this process and its children from now on; it must have set NO_NEW_PRIVS. Raises OSError."""
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program(forks, own, hidden))
    held = ctypes.create_string_buffer(code)
    header = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(held))
    kernel.check_errno(kernel.libc.prctl(22, ctypes.c_ulong(2), ctypes.c_char_p(header), 0, 0))
