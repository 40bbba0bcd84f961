"""Bound plans: shared by all feeds that run the same plan over the same data.

What a plan has to work out (weights that were checked, packed epochs, orders that are made as a
whole) is worked out once, whoever asks first.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Final

import msgspec

from headrace.plans.data import Data
from headrace.plans.engine import BoundPlan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.manifest import Manifest
    from headrace.plans.base import Described

    from .orders import OrderMaker

MAX_KEPT: Final = 16
"""Bound plans that are kept when nobody uses them; each has the whole orders of a few epochs, of 4
bytes per sample."""


class BoundPlans:
    """Binds plans to data; methods block and may be called from any thread.

    Args:
        orders: Makes long orders in a process of its own.
    """

    def __init__(self, orders: OrderMaker) -> None:
        self._orders = orders
        self._kept: OrderedDict[tuple[bytes, ...], BoundPlan] = OrderedDict()
        self._lock = Lock()

    def bind(self, plan: Described, manifests: Mapping[str, Manifest]) -> BoundPlan:
        """Return a plan over data.

        Args:
            plan: The plan.
            manifests: What the sources have: the main one under an empty name, those of parts of
                the plan by theirs.

        Raises:
            PlanError: If the plan does not fit the data.
        """
        facts = ((name.encode(), manifest.digest.encode()) for name, manifest in manifests.items())
        key = (msgspec.json.encode(plan), *(fact for pair in facts for fact in pair))
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                found = self._kept[key] = self._bound(plan, manifests)
                while len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
            else:
                self._kept.move_to_end(key)
            return found

    def _bound(self, plan: Described, manifests: Mapping[str, Manifest]) -> BoundPlan:
        main, *parts = (
            Data(len(manifest), manifest.digest, {"sizes": manifest.sizes}, manifest.bounds)
            for manifest in manifests.values()
        )
        if parts:
            named = dict(zip(list(manifests)[1:], parts, strict=True))
            main = Data(main.length, main.digest, main.columns, main.shards, named)
        bound = BoundPlan.to(plan, main)
        for order in bound.program.exact_orders:
            if order.recipe is not None and self._orders.is_worth_it(order.recipe):
                order.make = partial(self._orders.make, order.recipe)
        return bound
