"""Programs that try to get out of a sandbox, to harm the machine, or to hang: what becomes of each.

`SIGNAL` in a source is 9 where processes have a namespace of their own, else 0, which only asks whether one may.
`{name}` is filled in by the test: files, addresses and processes of its own that a program must not reach.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from posttrain.sandbox import Limits


@dataclass(frozen=True)
class Attack:
    source: str
    status: str = "finished"
    exit: int | None = None  # as the outcome must have it; looked at where status is not finished
    stdout: str | None = ""  # None: anything
    needs: tuple[str, ...] = ()  # of `isolates`, or of what test_sandbox.py adds; without them it is not tried
    limits: Limits = Limits(wall_s=60)  # seconds that nothing here takes, however busy the machine
    stdin: str = ""
    files: dict[str, str] = field(default_factory=dict)
    says: str = ""  # in stderr


SOON = Limits(wall_s=0.4)
CROWD = Limits(wall_s=60, processes=6)
REACH = """
reached = []
for name, attempt in attempts.items():
    try:
        attempt()
    except OSError:
        continue
    reached.append(name)
print(*reached, end="")
"""
C = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"

ATTACKS = {
    # processes
    "fork": Attack("import os\nos.fork()", "error", 1, needs=("processes",), says="BlockingIOError"),
    "fork bomb": Attack(
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
        "timeout", needs=("processes",), limits=Limits(wall_s=1, processes=6),
    ),
    "forks are refused": Attack(
        "import os\nattempts = dict.fromkeys('ab', os.fork)" + REACH, needs=("processes",),
    ),
    "forks are counted": Attack(
        "import os, time\nmade = 0\ntry:\n    while True:\n        if os.fork() == 0:\n            time.sleep(3600)\n"
        "        made += 1\nexcept OSError:\n    os.write(1, str(made).encode())\n    os._exit(0)",
        stdout="5", needs=("a pid namespace",), limits=CROWD,
    ),
    "thread bomb": Attack(
        "import threading, time\nfor _ in range(10_000):\n    threading.Thread(target=time.sleep, args=(3600,)).start()",
        "error", 1, needs=("processes",), says="can't start new thread",
    ),
    "daemon": Attack(
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(3600)\n"
        "    os._exit(0)\nos.wait()\nprint('gone', end='')",
        stdout="gone", needs=("a pid namespace",), limits=CROWD,
    ),
    "zombies": Attack(
        "import os\nfor _ in range(4):\n    if os.fork() == 0:\n        os._exit(0)\nprint('left', end='')",
        stdout="left", needs=("a pid namespace",), limits=CROWD,
    ),
    "children of children": Attack(
        "import os, time\nfor _ in range(4):\n    if os.fork():\n        break\ntime.sleep(3600)",
        "timeout", needs=("a pid namespace",), limits=Limits(wall_s=0.4, processes=6),
    ),
    "stops itself": Attack("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "timeout", limits=SOON),
    "kills itself": Attack("import os\nos.kill(os.getpid(), 9)", "killed", -9),
    # (a signal to the first process of a namespace may be sent, and is then dropped)
    "kills its parent": Attack(
        "import os\nattempts = {'parent': lambda: os.kill(os.getppid(), SIGNAL)}" + REACH, stdout=None, needs=("processes",)
    ),
    "stops its parent": Attack(
        "import os\nattempts = {'parent': lambda: os.kill(os.getppid(), SIGNAL and 19)}" + REACH, stdout=None, needs=("processes",)
    ),
    "kills everything": Attack("import os\nattempts = {'all': lambda: os.kill(-1, SIGNAL)}" + REACH, needs=("processes",)),
    "kills the first process": Attack(
        "import os\nattempts = {'first': lambda: os.kill(1, SIGNAL)}" + REACH, stdout=None, needs=("processes",)
    ),
    "signals the trainer": Attack(
        "import os\nattempts = {'trainer': lambda: os.kill({trainer}, 0)}" + REACH, needs=("processes",)
    ),
    "ptrace": Attack(
        C + "attached = [p for p in (1, os.getppid(), {trainer}) if libc.ptrace(16, p, 0, 0) == 0]\n"
        "print(*attached, end='')",
        needs=("processes",),
    ),
    "memory of others": Attack(
        C + "buffer = ctypes.create_string_buffer(8)\npair = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)\n"
        "print(libc.process_vm_readv(os.getppid(), pair, 1, pair, 1, 0), end='')",
        stdout="-1", needs=("processes",),
    ),
    "signals by the kernel": Attack(
        "import fcntl, os, socket, struct\na, b = socket.socketpair()\n"
        "attempts = {'owner': lambda: fcntl.fcntl(a, 8, {victim}), 'owner by ioctl': lambda: fcntl.ioctl(a, 0x8901, struct.pack('i', {victim})),\n"
        " 'group': lambda: fcntl.ioctl(a, 0x8902, struct.pack('i', {victim})), 'owner of a kind': lambda: fcntl.fcntl(a, 15, struct.pack('ii', 1, {victim}))}"
        + REACH + "try:\n    fcntl.fcntl(a, 10, 9)\n    fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC)\n    b.send(b'x')\nexcept OSError:\n    pass",
        needs=("processes",),
    ),
    "outlives its keeper": Attack(
        C + "print(libc.prctl(1, 0, 0, 0, 0), end='')", stdout="-1", needs=("processes", "no pid namespace")
    ),
    # time
    "endless loop": Attack("while True: pass", "timeout", limits=SOON),
    "sleep": Attack("import time\ntime.sleep(1e6)", "timeout", limits=SOON),
    "ignores signals": Attack(
        "import signal, time\nfor s in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:\n"
        "    signal.signal(s, signal.SIG_IGN)\nwhile True: time.sleep(1)",
        "timeout", limits=SOON,
    ),
    "patched clocks": Attack(
        "import time\ntime.monotonic = time.time = lambda: 0.0\nwhile time.time() < 1: pass", "timeout", limits=SOON
    ),
    "hangs at exit": Attack("import atexit\n@atexit.register\ndef hang():\n    while True: pass", "timeout", limits=SOON),
    "hangs when deleted": Attack(
        "class Hang:\n    def __del__(self):\n        while True: pass\nhang = Hang()\ndel hang", "timeout", limits=SOON
    ),
    "hangs when the interpreter would delete it": Attack(
        "class Hang:\n    def __del__(self):\n        while True: pass\nhang = Hang()"
    ),
    "hangs in its message": Attack(
        "class Slow(Exception):\n    def __str__(self):\n        while True: pass\nraise Slow", "timeout", limits=SOON
    ),
    "exit is caught": Attack(
        "import sys\nwhile True:\n    try:\n        sys.exit(0)\n    except SystemExit:\n        pass", "timeout", limits=SOON
    ),
    # memory
    "list": Attack("x = [0] * 10**9", "memory", 1, says="MemoryError"),
    "bytes": Attack("x = bytearray(1 << 40)", "memory", 1, says="MemoryError"),
    "mmap": Attack("import mmap\nmmap.mmap(-1, 1 << 40)", "error", 1, says="Cannot allocate memory"),
    "doubling": Attack("s = 'a'\nwhile True: s += s", "memory", 1),
    "nested": Attack("x = None\nwhile True: x = [x, bytearray(1 << 20)]", "memory", 1),
    "memory is caught": Attack("try:\n    x = [0] * 10**9\nexcept MemoryError:\n    print('held', end='')", stdout="held"),
    "raises its limits": Attack(
        "import resource\nraised = []\nfor name in ('AS', 'FSIZE', 'NOFILE', 'CORE'):\n    try:\n"
        "        resource.setrlimit(getattr(resource, 'RLIMIT_' + name), (resource.RLIM_INFINITY,) * 2)\n"
        "        raised.append(name)\n    except ValueError:\n        pass\nprint(*raised, end='')",
        needs=("privileges",),
    ),
    "shared memory": Attack(
        "from multiprocessing import shared_memory\n"
        "attempts = {'shared': lambda: shared_memory.SharedMemory(create=True, size=1 << 20)}" + REACH,
        needs=("files",),
    ),
    "uncounted memory": Attack(
        C + "print(libc.shmget(0, 4096, 0o1600), libc.memfd_create(b'x', 0), libc.msgget(0, 0o1600), end='')",
        stdout="-1 -1 -1", needs=("system calls",),
    ),
    # output and input
    "endless stdout": Attack("while True: print('x' * 1000)", "output", stdout=None),
    "endless stderr": Attack("import sys\nwhile True: sys.stderr.write('x' * 1000)", "output"),
    "one huge line": Attack("print('x' * 10_000_000)", "output", stdout=None),
    "unread stdin": Attack("print('deaf', end='')", stdout="deaf", stdin="x" * 3_000_000),
    "writes to stdin": Attack(
        "import os\nattempts = {'write': lambda: os.write(0, b'x'), 'grow': lambda: os.ftruncate(0, 1 << 30)}" + REACH
    ),
    "no UTF-8": Attack("import os\nos.write(1, bytes([104, 255, 0, 105]))", stdout="h�\0i"),
    "closes everything": Attack("import os\nos.closerange(0, 100)\nprint('lost')", "error", 1),
    "writes to every descriptor": Attack(
        "import os\nopen_ = []\nfor n in range(3, 1000):\n    try:\n        os.fstat(n)\n        open_.append(n)\n"
        "    except OSError:\n        pass\nprint(*open_, end='')"
    ),
    # files
    "secrets": Attack(
        "import os\nattempts = {p: lambda p=p: os.open(p, os.O_RDONLY) for p in ('/etc/shadow', '/etc/passwd', '/root/.ssh', '/root/.bashrc',"
        " '/home', '/proc/1/environ', '/proc/self/environ', '/proc/{trainer}/environ', '/proc/{trainer}/mem', '/sys',"
        " '/dev/mem', '/dev/vda', '/dev/shm', '{secret}', '{here}')}" + REACH,
        needs=("files",),
    ),
    "lists the root": Attack("import os\nattempts = {'/': lambda: os.listdir('/proc'), '..': lambda: os.listdir('{above}')}" + REACH, needs=("files",)),
    "environment": Attack("import os\nprint([n for n in os.environ if 'SECRET' in n.upper()], end='')", stdout="[]"),
    "writes outside": Attack(
        "import os, sys\nattempts = {p: lambda p=p: open(p, 'w') for p in ('/x', '/usr/x', '/lib/x', '/etc/x', '/dev/x',"
        " '/posttrain-work/../x', '/posttrain-sandbox/x', '{secret}', '{here}/x', sys.base_prefix + '/x', os.__file__)}" + REACH,
        needs=("files",),
    ),
    "changes what is the user's": Attack(
        "import os\nflags = {'open to empty': os.O_TRUNC, 'open to empty, for nothing': os.O_TRUNC | 3}\n"
        "attempts = {n: lambda f=f: os.open('{owned}', f) for n, f in flags.items()} | {\n"
        " 'mode': lambda: os.chmod('{owned}', 0o777) or changed(), 'times': lambda: os.utime('{owned}', (1, 1)) or changed(),\n"
        " 'open mode': lambda: os.fchmod(os.open(os.__file__, os.O_RDONLY), 0) or changed(),\n"
        " 'attributes': lambda: os.setxattr('{owned}', 'user.x', b'1'), 'size': lambda: os.truncate('{owned}', 0),\n"
        " 'owner': lambda: os.chown('{owned}', -1, os.getgid())}\n"
        "def look(): return [(s.st_mode, s.st_mtime) for s in map(os.stat, ('{owned}', os.__file__))]\n"
        "def changed():\n    if look() == before: raise OSError\n"
        "try:\n    before = look()\nexcept OSError:\n    before = None" + REACH,
        needs=("files", "system calls"),
    ),
    "symbolic link": Attack(
        "import os\nos.symlink('{secret}', 'link')\nattempts = {'read': lambda: open('link')}" + REACH, needs=("files",)
    ),
    "hard link": Attack("import os\nattempts = {'link': lambda: os.link(os.__file__, 'link')}" + REACH, needs=("files",)),
    "device": Attack(
        "import os, stat\nattempts = {'device': lambda: os.mknod('disk', 0o600 | stat.S_IFBLK, os.makedev(254, 0))}"
        + REACH,
        needs=("privileges",),
    ),
    "huge file": Attack("open('x', 'wb').write(bytes(20 << 20))", "error", 1, says="File too large"),
    "sparse file": Attack("open('x', 'wb').truncate(1 << 40)", "error", 1, says="File too large"),
    "fills the disk": Attack(
        "made = 0\ntry:\n    while made < 100:\n        open(str(made), 'wb').write(bytes(1 << 20))\n        made += 1\n"
        "except OSError:\n    pass\nprint(10 < made <= 16, end='')",
        stdout="True", needs=("disk",),
    ),
    "many files": Attack(
        "made = 0\ntry:\n    while made < 10_000:\n        open(str(made), 'w').close()\n        made += 1\n"
        "except OSError:\n    pass\nprint(made < 2000, end='')",
        stdout="True", needs=("disk", "a count of files"),
    ),
    "locked folders": Attack("import os\nos.makedirs('a/b/c')\nos.chmod('a/b', 0)\nos.chmod('a', 0)"),
    # network
    "sockets": Attack(
        "import socket as s\nattempts = {\n"
        " 'tcp': lambda: s.create_connection(('127.0.0.1', {port}), 1),\n"
        " 'udp': lambda: s.socket(s.AF_INET, s.SOCK_DGRAM).sendto(b'out', ('127.0.0.1', {udp})),\n"
        " 'unix': lambda: s.socket(s.AF_UNIX).connect('{socket}'),\n"
        " 'abstract': lambda: s.socket(s.AF_UNIX).connect('\\0{abstract}'),\n"
        " 'dns': lambda: s.getaddrinfo('example.com', 80),\n"
        " 'raw': lambda: s.socket(s.AF_INET, s.SOCK_RAW, 1),\n"
        " 'netlink': lambda: s.socket(s.AF_NETLINK, s.SOCK_RAW, 0).bind((0, 0)) or s.if_indextoname(2),\n"
        " 'packet': lambda: s.socket(s.AF_PACKET, s.SOCK_RAW)}" + REACH,
        needs=("network",),
    ),
    # privileges
    "becomes root": Attack("import os\nattempts = {'root': lambda: os.setuid(0), 'group': lambda: os.setgroups([0])}" + REACH, needs=("privileges",)),
    "is nobody": Attack("import os\nprint(os.getuid() != 0 and os.geteuid() != 0, end='')", stdout="True", needs=("privileges",)),
    "namespaces": Attack(
        C + "print(libc.unshare(0x10000000), libc.mount(b'x', b'/tmp', b'tmpfs', 0, None), libc.chroot(b'.'), end='')",
        stdout="-1 -1 -1", needs=("system calls",),
    ),
    "kernel": Attack(
        C + "print(*[libc.syscall(n, 0, 0, 0, 0, 0) for n in (425, 434, 438, 435, 457, 458, 467)], end='')",
        stdout="-1 -1 -1 -1 -1 -1 -1", needs=("system calls",),
    ),
    "locks and watches of files that all see": Attack(
        C + "import fcntl\nfile = open('/etc/passwd') if os.path.exists('/etc/passwd') else open(os.__file__)\n"
        "attempts = {'flock': lambda: fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)}\n"
        + REACH + "\nprint(libc.inotify_init(), libc.inotify_init1(0), end='')", stdout="-1 -1", needs=("system calls",),
    ),
    "asynchronous input and output": Attack(
        C + "made = ctypes.c_ulong(0)\nnumber = 206 if os.uname().machine == 'x86_64' else 0\n"
        "print(libc.syscall(number, 1, ctypes.byref(made)), end='')", stdout="-1", needs=("system calls",),
    ),
    "other programs": Attack(
        "import os\nos.execv('/bin/sh', ['sh', '-c', 'echo out; read x < {secret} && echo $x; exit 3'])", "error", 3, stdout="out\n",
        needs=("files",),
    ),
    # the interpreter
    "segmentation fault": Attack("import ctypes\nctypes.string_at(0)", "killed", -11),
    "abort": Attack("import os\nos.abort()", "killed", -6),
    "exit code": Attack("import sys\nsys.exit(300)", "error", 44),
    "exit text": Attack("import sys\nsys.exit('so long')", "error", 1, says="so long"),
    "sudden exit": Attack("import os\nprint('lost')\nos._exit(7)", "error", 7),
    "silent exit": Attack("import os\nos._exit(0)"),
    "recursion": Attack("def f(): f()\nf()", "error", 1, says="RecursionError"),
    "recursion in C": Attack(
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n    def __getattr__(self, name): return getattr(self, name)\n"
        "A().x", "killed", -11, limits=Limits(wall_s=60, memory_mib=4096),
    ),
    "NUL in the source": Attack("print(1)\0", "error", 1),
    "syntax error": Attack("def f(:", "error", 1, says="SyntaxError"),
    "lone surrogate": Attack("x = '\udc80'", "error", 1),
    "nested source": Attack("(" * 100_000, "error", 1),
    "enormous source": Attack("#" * 4_000_000 + "\nprint('read', end='')", stdout="read"),
    "deep exceptions": Attack(
        "e = None\nfor i in range(20_000):\n    n = ValueError(i)\n    n.__cause__ = e\n    e = n\nraise e", "error", 1,
        stdout="", says="ValueError",
    ),
    "message with a surrogate": Attack("raise ValueError('\\udc80')", "error", 1, says="ValueError"),
    "modules beside it": Attack(
        "import json, time, wave\nprint(hasattr(json, 'mine') or hasattr(wave, 'mine') or time.time() < 0, end='')",
        stdout="False",
        files=dict.fromkeys(("json.py", "time.py", "wave.py", "sitecustomize.py", "usercustomize.py"), "mine = 1"),
    ),
    "empty modules": Attack("import sys\nsys.modules.clear()\nsys.path.clear()"),
    "redefined builtins": Attack(
        "import builtins\nfor name in ('exec', 'compile', 'print', 'open', 'max', 'len', 'isinstance', 'str'):\n"
        "    setattr(builtins, name, None)"
    ),
}  # fmt: skip
