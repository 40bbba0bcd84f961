"""What every test shares: the hypothesis profiles."""

from __future__ import annotations

import os

from hypothesis import settings

# The same examples on every run, so that a red test is the change's fault.
settings.register_profile("fast", max_examples=50, deadline=None, derandomize=True, database=None)
# New examples on every run: for a night, or for a change of the plan or the wire.
settings.register_profile("thorough", max_examples=2_000, deadline=None, print_blob=True)

# What the shell knows of a cluster is not for tests, which name theirs.
for name in [name for name in os.environ if name.startswith("AIS_")]:
    del os.environ[name]

settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))
