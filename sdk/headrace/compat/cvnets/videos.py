"""The video samplers of cvnets v0.3."""

from __future__ import annotations

from typing import Any, Literal

from ...plans import VideoVariable
from .base import CvnetsSampler, DistributedSampler, ScaledPlan
from .images import BatchSampler
from .names import SAMPLER_REGISTRY


@SAMPLER_REGISTRY.register("video_batch_sampler")
class VideoBatchSampler(BatchSampler):
    """One size, one number of frames and clips, batches of a fixed size."""

    def _make_plan(self, **options: Any) -> ScaledPlan:  # noqa: ANN401
        return VideoVariable(
            scales=self._one_size(),
            vary="nothing",
            frames=self._option("num_frames_per_clip"),
            clips=self._option("clips_per_video"),
            tail=self._tail(),
            **options,
        )


@SAMPLER_REGISTRY.register("video_batch_sampler_ddp")
class VideoBatchSamplerDDP(VideoBatchSampler, DistributedSampler):
    """The share of one process; the last batch is filled up from its start."""


@SAMPLER_REGISTRY.register("video_variable_seq_sampler")
class VideoVariableSeqSampler(CvnetsSampler):
    """A size for each batch, and so many frames that the pixels of a clip stay the same.

    Args:
        opts: As for all.
        n_data_samples: As for all.
        is_training: As for all.
        clip_law: What drawn clips do to the batch size: ``"cvnets"`` as in the original, or
            ``"budget"`` (see `headrace.plans.VideoVariable`).
        args: As for all.
        kwargs: As for all.
    """

    PREFIX = "vbs"
    PAIRING = "v0.3"

    def __init__(
        self,
        opts: object,
        n_data_samples: int,
        is_training: bool = False,
        *args: Any,  # noqa: ANN401
        clip_law: Literal["cvnets", "budget"] = "cvnets",
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        self._clip_law = clip_law
        super().__init__(opts, n_data_samples, is_training, *args, **kwargs)

    def _make_plan(self, **options: Any) -> ScaledPlan:  # noqa: ANN401
        is_random = self.is_training and bool(self._option("random_video_clips"))
        if is_random:
            options["random_clips"] = True
            options["min_clips"] = self._option("min_clips_per_video") or 1
            options["max_clips"] = self._option("max_clips_per_video")
        return VideoVariable(
            scales=self._scales(),
            frames=self._option("num_frames_per_clip"),
            clips=self._option("clips_per_video"),
            clip_law=self._clip_law,
            tail="wrap-once",
            **options,
        )


@SAMPLER_REGISTRY.register("video_variable_seq_sampler_ddp")
class VideoVariableSeqSamplerDDP(VideoVariableSeqSampler, DistributedSampler):
    """The share of one process; all have the same size, frames and clips at the same step."""
