"""``python -m headrace_daemon`` is the ``headrace`` command."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()
