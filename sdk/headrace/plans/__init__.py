"""Sampler plans: what is read and in which order.

The public plans are frozen, validated values; what executes them (`headrace.plans.engine`) is made
of pure functions of (plan, data, cursor, topology).  A plan is an **order** × a **cut** × a
**tail** × a **split**, and compositions are plans of plans:

======================  ============================================================================
`Sequential`            manifest order, fixed batches
`Shuffled`              ``order="keyed" | "torch" | "torch-continued" | "python"``, fixed batches
`ShardShuffled`         shard order and a window, fixed batches
`ByteBudget`            any order, as many samples as fit (``max_bytes=``, or ``max_total=``)
`MultiScale`            any order, fixed batches, a size (h, w) for each step
`VariableBatch`         … and a batch size that keeps the pixels of a step constant
`VideoVariable`         … frames and clips
`Chain`                 one plan after the other, or a step of each in turn
`Interleaved`           a main plan with `Limits`, and extras at intervals (`Every`)
`Drawn`                 the order of any torch sampler, in compositions of this process
`FromSampler`           any torch sampler or batch sampler; runs in the trainer
======================  ============================================================================

Modifiers of all orders (`headrace.plans.base.Ordered`): ``subset``, ``pad_to``, ``node_blocks``,
``reverse``, ``repeats``, ``truncate``, ``part``, ``replicated``.  Tails: ``short | drop | wrap |
wrap-once``, and ``uneven="fill" | "drop"`` for the entries that the ranks do not divide.

**Literal behaviour is an option**, never another engine.  What the samplers of other systems are:

* helios *Random*: ``Shuffled(order="torch", seed=seed mod 2**64, batch_size=b)``; *Sequential*:
  ``Sequential(batch_size=b)``; *Distributed*: either with ``uneven="drop"`` if its ``drop_last`` is
  set, else ``uneven="fill"``; ``tail="drop"`` if the *loader* drops its last batch, else
  ``tail="short"``.  ``start_iter = k`` is the position ``seek``-ed by k steps.
* cvnets: ``order="python", chooser="cvnets"`` in training, ``order="sequential"`` in evaluation;
  ``pad_to=D`` with D the number of GPUs (plain) or processes (DDP); ``repeats=num_repeats``,
  ``truncate=truncated_repeat_aug_sampler``; shards: ``node_blocks=max(1, R // gpus_per_node)``, and
  ``order="sequential"`` with ``disable_shuffle_sharding``.  Batch samplers are
  ``MultiScale(scales=Scales.one(h, w))``, with ``tail="short"`` (plain) or ``"wrap-once"`` (DDP);
  the others have ``tail="wrap-once"``; evaluation of those is `base_only` scales.
  ``Scales(pairing="head")`` for the newest revision, ``"v0.3"`` for the video release;
  ``scale_growth=Growth(epochs, min_factor, max_factor)`` if ``scale_inc``.  Video:
  ``VideoVariable(vary="frames", clip_law="cvnets")``; the plain one ``vary="nothing"``.
  ``ChainSampler``: ``Chain(plans={task: plan, …}, mode=…)``.
* aistore *DynamicBatchSampler*: ``ByteBudget(max_total=budget, zero="drop", oversized="own" |
  "drop", drop_last, saturation_factor, tail="short")`` with ``order="sequential"``, or
  ``order="torch", reverse=True`` (``"torch-continued"`` for a generator that is seeded once).
* noether *InterleavedSampler*: ``Interleaved(train, extras, limits, samples_of="rank")``;
  ``drop_last`` of the sampler is ``tail="drop"`` of ``train`` with ``uneven`` as for helios, and
  the batch size clamped to the length; extras have ``tail="short", same_order=True``.  A sampler
  that knows no ranks is ``replicated=True``.  ``evaluation`` is a limit of 0.

Without a daemon: ``plan.batch_sampler(length_or_sizes, rank=, world_size=)``.  What a batch carries
besides indices stands in `PlannedBatch.meta`: ``height width frames clips`` of scaled plans,
``total`` of budgets, and `PlannedBatch.stream`, the name in a composition.
"""

from __future__ import annotations

from .base import Slice
from .composite import Chain, Every, Interleaved, Limits, Link, Plan
from .cursor import Cursor, Seek
from .data import Data
from .from_sampler import Drawn, FromSampler
from .registry import create, register
from .sampler import PlanBatchSampler
from .scaled import Growth, MultiScale, Scales, VariableBatch, VideoVariable, base_only
from .spec import ByteBudget, Sequential, ShardShuffled, Shuffled

__all__ = [
    "ByteBudget",
    "Chain",
    "Cursor",
    "Data",
    "Drawn",
    "Every",
    "FromSampler",
    "Growth",
    "Interleaved",
    "Limits",
    "Link",
    "MultiScale",
    "Plan",
    "PlanBatchSampler",
    "Scales",
    "Seek",
    "Sequential",
    "ShardShuffled",
    "Shuffled",
    "Slice",
    "VariableBatch",
    "VideoVariable",
    "base_only",
    "create",
    "register",
]
