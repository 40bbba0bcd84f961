"""Recorded streams of other systems, and what runs them through our public API.

    .venv/bin/python -m tests.golden FILE…

Each case says what is owed to it (`match`): `exact` and `exact-or-fixed` are reproduced by the
classes of `headrace.compat`; for `deviate`, a recorded defect, a checker knows what comes instead.
No case is known by its name.

``recorded/`` has recorded runs of the originals (torch 2.13, numpy 2.4, Python 3.11), packed; files
from elsewhere are taken as well, packed or not.
"""
