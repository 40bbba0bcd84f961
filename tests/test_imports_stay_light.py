"""House rule: the trainer's side imports in a moment and drags nothing heavy in."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"aiohttp", "asyncio", "headrace_daemon", "rich", "torch", "uvloop"}


def modules_after_importing(module: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after one import."""
    script = f"import json, sys, {module}; print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", script],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


MODULES = [
    "headrace",
    "headrace.compat.aistore",
    "headrace.compat.cvnets",
    "headrace.compat.helios",
    "headrace.compat.noether",
    "headrace.members",
    "headrace.plans",
    "headrace.protocol",
]


@pytest.mark.parametrize("module", MODULES)
def test_importing_the_sdk_loads_nothing_heavy(module: str) -> None:
    assert modules_after_importing(module) & HEAVY == set()
