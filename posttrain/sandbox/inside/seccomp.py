"""A seccomp filter: system calls that no graded program needs are refused, however the rest of the machine is set up.

It is what keeps the network and other processes away where a container grants no namespaces, and makes the kernel's
surface smaller where it does. The numbers are those of x86-64 and of AArch64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

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
    "open_tree": (428, 428), "move_mount": (429, 429), "mount_setattr": (442, 442), "swapon": (167, 224),
    "swapoff": (168, 225), "reboot": (169, 142), "acct": (163, 89), "quotactl": (179, 60), "syslog": (103, 116),
    "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "iopl": (172, ABSENT),
    "ioperm": (173, ABSENT), "modify_ldt": (154, ABSENT), "personality": (135, 92),
    # the kernel's own machinery, where its defects lie
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
}  # fmt: skip
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
NEW_NAMESPACES = 0x7E020000  # the flags of clone(2) that make namespaces

LOAD, EQUAL, ANY_BIT, AT_LEAST, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06  # instructions of classic BPF
NUMBER, ARCHITECTURE, FIRST = 0, 4, 16  # where seccomp_data holds them; of an argument, the low half (little-endian)
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def refused(number: int = errno.EPERM) -> Instruction:
    return RETURN, 0, 0, REFUSE | number


def program(forks: bool, own: int | None) -> list[Instruction]:
    """The filter's instructions. `forks`: may the program have processes and threads; `own`: if the only process that
    it may signal is itself, its number."""
    architecture, column = MACHINES[os.uname().machine]
    code = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, architecture), refused(), (LOAD, 0, 0, NUMBER)]
    code += [(AT_LEAST, 0, 1, 0x40000000), refused()]  # x32's numbers
    fixed = [(numbers, errno.EPERM) for numbers in REFUSED.values()]
    fixed.append((CLONE3, errno.ENOSYS if forks else errno.EAGAIN))  # glibc then asks clone, whose flags can be read
    if not forks:
        fixed += [(numbers, errno.EAGAIN) for numbers in FORKS.values()]
    for numbers, answer in fixed:
        if numbers[column] != ABSENT:
            code += [(EQUAL, 0, 1, numbers[column]), refused(answer)]
    if forks:
        code += [(EQUAL, 0, 4, CLONE[column]), (LOAD, 0, 0, FIRST), (ANY_BIT, 0, 1, NEW_NAMESPACES), refused()]
        code += [(RETURN, 0, 0, ALLOW)]
    if own is not None:
        for numbers in [*SIGNALS.values(), PRLIMIT]:
            code += [(EQUAL, 0, 5, numbers[column]), (LOAD, 0, 0, FIRST), (EQUAL, 2, 0, own)]
            code += [(EQUAL, 1 if numbers is PRLIMIT else 0, 0, 0), refused(), (RETURN, 0, 0, ALLOW)]
    return [*code, (RETURN, 0, 0, ALLOW)]


def install(forks: bool, own: int | None) -> None:
    """Filters this process and its children from now on; it must have set NO_NEW_PRIVS. Raises OSError."""
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program(forks, own))
    held = ctypes.create_string_buffer(code)
    header = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(held))
    kernel.checked(kernel.libc.prctl(22, ctypes.c_ulong(2), ctypes.c_char_p(header), 0, 0))
