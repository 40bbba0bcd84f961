"""Drop-in samplers: the names, arguments, item shapes and orders of other systems, on our plans.

One module for each system: `helios`, `aistore`, `cvnets`, `noether`.  A class here maps arguments
to a plan and planned batches to items; which samples come in which order is the plan's business.
Each has the plan as `plan`, so that a daemon can serve the same ledger, and works with a plain
torch ``DataLoader`` without one.  torch is imported only where it is asked something.

Literal are orders, sizes and paddings.  What is not copied are defects: positions that are lost,
generators that others can move, numbers of samples where numbers of batches are due.  The
docstrings say where a class differs from its original.
"""

from __future__ import annotations
