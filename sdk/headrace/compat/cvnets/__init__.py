"""The samplers of cvnets: batches of ``(height, width, index)``, of videos with frames and clips.

Image samplers are those of the newest revision, video samplers those of v0.3, the last release that
had them.  Where they differ from their originals:

* Every draw comes from a private generator, ``random.Random(seed + epoch)`` with ``seed=0``, so
  that nobody else's draws change a size, and all ranks have the same one.
* The table of sizes is a function of the epoch: `update_scales` has nothing left to do, calling it
  twice or resuming after an interval changes nothing, and in evaluation the size stays.
* `len` counts batches, not samples.
* In a chain, a task keeps its name, and its draws are its own.
"""

from __future__ import annotations

from .chain import ChainSampler
from .images import (
    BatchSampler,
    BatchSamplerDDP,
    MultiScaleSampler,
    MultiScaleSamplerDDP,
    VariableBatchSampler,
    VariableBatchSamplerDDP,
)
from .names import SAMPLER_REGISTRY, build_sampler, create_sampler
from .options import add_sampler_arguments
from .tables import image_batch_pairs, make_divisible, make_video_pairs
from .videos import (
    VideoBatchSampler,
    VideoBatchSamplerDDP,
    VideoVariableSeqSampler,
    VideoVariableSeqSamplerDDP,
)

__all__ = [
    "SAMPLER_REGISTRY",
    "BatchSampler",
    "BatchSamplerDDP",
    "ChainSampler",
    "MultiScaleSampler",
    "MultiScaleSamplerDDP",
    "VariableBatchSampler",
    "VariableBatchSamplerDDP",
    "VideoBatchSampler",
    "VideoBatchSamplerDDP",
    "VideoVariableSeqSampler",
    "VideoVariableSeqSamplerDDP",
    "add_sampler_arguments",
    "build_sampler",
    "create_sampler",
    "image_batch_pairs",
    "make_divisible",
    "make_video_pairs",
]
