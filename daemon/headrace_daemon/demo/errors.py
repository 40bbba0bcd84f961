"""The error of the demo."""

from __future__ import annotations

from headrace.errors import HeadraceError


class DemoError(HeadraceError):
    """The demo could not do, or did not find, what it promises."""

    code = "demo"
