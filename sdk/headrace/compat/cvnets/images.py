"""The image samplers of cvnets."""

from __future__ import annotations

from typing import Any

from ...plans import MultiScale, VariableBatch
from .base import CvnetsSampler, DistributedSampler, ScaledPlan
from .names import SAMPLER_REGISTRY


@SAMPLER_REGISTRY.register("batch_sampler")
class BatchSampler(CvnetsSampler):
    """One size, batches of a fixed size; the last one may be smaller."""

    PREFIX = "bs"

    def _make_plan(self, **options: Any) -> ScaledPlan:  # noqa: ANN401
        return MultiScale(scales=self._one_size(), tail=self._tail(), **options)

    def _tail(self) -> Any:  # noqa: ANN401 - a literal of plans
        # Between processes, the last batch is filled up from the start of the rank's share.
        return "wrap-once" if self.IS_DISTRIBUTED else "short"


@SAMPLER_REGISTRY.register("batch_sampler_ddp")
class BatchSamplerDDP(BatchSampler, DistributedSampler):
    """The share of one process; the last batch is filled up from its start."""


@SAMPLER_REGISTRY.register("multi_scale_sampler")
class MultiScaleSampler(CvnetsSampler):
    """A size for each batch, batches of a fixed size."""

    PREFIX = "msc"

    def _make_plan(self, **options: Any) -> ScaledPlan:  # noqa: ANN401
        return MultiScale(scales=self._scales(), tail="wrap-once", **options)


@SAMPLER_REGISTRY.register("multi_scale_sampler_ddp")
class MultiScaleSamplerDDP(MultiScaleSampler, DistributedSampler):
    """The share of one process; all have the same size at the same step."""


@SAMPLER_REGISTRY.register("variable_batch_sampler")
class VariableBatchSampler(CvnetsSampler):
    """A size for each batch, and so many samples that its pixels stay the same."""

    PREFIX = "vbs"

    def _make_plan(self, **options: Any) -> ScaledPlan:  # noqa: ANN401
        return VariableBatch(
            scales=self._scales(), scale_growth=self._growth(), tail="wrap-once", **options
        )


@SAMPLER_REGISTRY.register("variable_batch_sampler_ddp")
class VariableBatchSamplerDDP(VariableBatchSampler, DistributedSampler):
    """The share of one process; all have the same size and number at the same step."""
