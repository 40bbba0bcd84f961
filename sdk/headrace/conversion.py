"""Types that values from outside are converted to."""

from __future__ import annotations

from typing import Any

import msgspec


def prepare(*kinds: Any) -> None:  # noqa: ANN401 - types, and unions of them
    """Make what msgspec needs to convert values to some types; call it behind their definition.

    Otherwise it does so when the first value comes, and crashes (msgspec 0.22) where a second
    thread has one before that is done.
    """
    for kind in kinds:
        msgspec.json.Decoder(kind)
