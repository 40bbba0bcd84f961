"""How long does `import headrace` take, and what does it bring along?

Isolated: clean interpreters that import the package, minus clean interpreters that import nothing.

Run: ``.venv/bin/python -m benchmarks.bench_import``.

How to read: the difference should be below 0.2 s, and neither torch nor aiohttp may be loaded; the
test `tests/test_imports_stay_light.py` holds the latter.
"""

from __future__ import annotations

import subprocess
import sys
import time

from .harness import interleave, report


def run(code: str) -> dict[str, float]:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return {"seconds": time.perf_counter() - started}


def main() -> None:
    results = interleave(
        {
            "nothing": lambda: run("pass"),
            "import numpy": lambda: run("import numpy"),
            "import headrace": lambda: run("import headrace"),
        },
        repeats=15,
    )
    report("import", results)


if __name__ == "__main__":
    main()
