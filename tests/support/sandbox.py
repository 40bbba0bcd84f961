"""The part of a unit's sandbox that can be tried without systemd: what the kernel refuses.

    python -m tests.support.sandbox headrace.service PROGRAM ARGUMENT…

runs a program under the system calls, the address families and the ban on writable code of a unit.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
from ctypes.util import find_library
from typing import Any, Final

from .units import Unit, only, read

_ALLOW: Final = 0x7FFF0000  # seccomp(2)
_REFUSE: Final = 0x00050000
_EQUAL: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38  # prctl(2)
_PR_SET_MDWE: Final = 65  # Linux 6.3
_FAMILIES: Final = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10}


class _Compare(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


def why_not() -> str:
    """Say what is missing to try it; empty if nothing is."""
    if shutil.which("systemd-analyze") is None:
        return "no systemd-analyze on PATH, which knows the groups of system calls"
    return "" if find_library("seccomp") else "no libseccomp"


def _members(name: str) -> set[str]:
    """Return the system calls of a group such as ``@system-service``, or the one of that name."""
    if not name.startswith("@"):
        return {name}
    command = ["systemd-analyze", "syscall-filter", "--no-pager", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    words = [line.strip() for line in done.stdout.splitlines()[1:]]
    return set().union(*(_members(word) for word in words if word and word[0] != "#"))


def allowed_calls(unit: Unit) -> set[str]:
    """Return the system calls that a unit allows."""
    calls: set[str] = set()
    for value in unit["Service"]["SystemCallFilter"]:
        named = set().union(*(_members(name) for name in value.removeprefix("~").split()))
        calls = calls - named if value.startswith("~") else calls | named
    return calls


def enter(unit: Unit) -> None:
    """Put this process, and all that it becomes, under the restrictions of a unit."""
    calls = allowed_calls(unit)
    families = only(unit, "Service", "RestrictAddressFamilies").split()
    assert only(unit, "Service", "SystemCallErrorNumber") == "EPERM"
    libc, seccomp = ctypes.CDLL(None), ctypes.CDLL(find_library("seccomp"))
    seccomp.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(_REFUSE | errno.EPERM)))

    def allow(call: str, *comparisons: Any) -> None:  # noqa: ANN401 - of ctypes
        number = seccomp.seccomp_syscall_resolve_name(call.encode())
        if number >= 0:  # negative: a call of another architecture
            action = ctypes.c_uint32(_ALLOW)
            done = seccomp.seccomp_rule_add_array(
                rules, action, number, len(comparisons), (_Compare * 1)(*comparisons)
            )
            assert done == 0, (call, done)

    for call in calls - {"socket"}:
        allow(call)
    for family in families:
        allow("socket", _Compare(0, _EQUAL, _FAMILIES[family], 0))
    assert libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    if only(unit, "Service", "MemoryDenyWriteExecute") == "yes":
        libc.prctl(_PR_SET_MDWE, 1, 0, 0, 0)  # an older kernel has none
    assert seccomp.seccomp_load(rules) == 0


if __name__ == "__main__":
    enter(read(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
