"""Packages outside of the standard library that programs of a sandbox may import."""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from collections.abc import Sequence

from posttrain.sandbox.program import Limits, Program, Sandbox

ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL")}  # programs may start none
ROOMY = Limits(wall_s=120.0, memory_mib=4096)  # for an import


def package_folders() -> tuple[str, ...]:
    """The site-packages of this environment."""
    return tuple(dict.fromkeys(os.path.realpath(sysconfig.get_path(name)) for name in ("purelib", "platlib")))


def check_there(packages: Sequence[str]) -> None:
    """Raises ValueError naming a package that this environment does not have."""
    for name in packages:
        parts = name.split(".")
        if not all(map(str.isidentifier, parts)) or importlib.util.find_spec(parts[0]) is None:
            raise ValueError(f"sandbox(packages=...): there is no package {name!r} here; install it with pip")


def check_importable(box: Sandbox, packages: Sequence[str]) -> None:
    """Raises ValueError naming a package that a program cannot import, and why; the sandbox is closed then."""
    for name in packages:
        tried = box.run(Program(f"import {name}"), ROOMY)
        if tried.status != "finished":
            box.close()
            why = tried.stderr.strip().rpartition("\n")[2] or tried.status
            raise ValueError(f"sandbox(packages=...): programs cannot import {name!r}: {why}")
