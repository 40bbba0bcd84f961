"""What the samplers of cvnets share: options, ranks, and the items of a batch."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from ...checks import check_flag, check_integer
from ...errors import PlanError
from ...plans import Growth, MultiScale, Scales, VariableBatch, VideoVariable, base_only
from ...plans.tables import stage_of, table
from ...topology import Topology
from ..passes import AssertionPlanError, EpochPasses, choose_topology
from .options import Options
from .tables import make_scales

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ...plans.engine import PlannedBatch
    from ...plans.scaled import Pairing

ScaledPlan = MultiScale | VariableBatch | VideoVariable


class CvnetsSampler(EpochPasses):
    """What all samplers of cvnets but the chain share.

    Args:
        opts: The options: a namespace as cvnets parses it, or a map with the same names.
        n_data_samples: Samples of the dataset.
        is_training: Whether samples are shuffled and repeated, and sizes drawn.
        args: Ignored, as in the originals.
        num_replicas: Processes of a DDP sampler; by default those of torch.distributed or torchrun.
        rank: Rank of this process, likewise.
        device_count: GPUs that a process (DDP: a node) sees; by default torch is asked.
        pairing: How heights and widths become sizes, ``"head"``, ``"v0.3"`` or ``"position"`` (see
            `headrace.plans.Scales`); by default as the release does that had the sampler.
        seed: Seed of orders and sizes; 0 is the original.
        kwargs: Ignored, as in the originals.

    Raises:
        PlanError: If an option is missing or out of range.
    """

    PREFIX: ClassVar[Literal["bs", "msc", "vbs"]]
    """Where the options of the sampler stand."""

    IS_DISTRIBUTED: ClassVar[bool] = False
    PAIRING: ClassVar[Pairing] = "head"

    def __init__(
        self,
        opts: object,
        n_data_samples: int,
        is_training: bool = False,
        *args: Any,  # noqa: ANN401
        num_replicas: int | None = None,
        rank: int | None = None,
        device_count: int | None = None,
        pairing: Pairing | None = None,
        seed: int = 0,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        check_integer("n_data_samples", n_data_samples, 0, 2**63, PlanError)
        check_flag("is_training", is_training, PlanError)
        options = opts if isinstance(opts, Options) else Options(opts)
        self._options = options
        self._length = n_data_samples
        self.is_training = self.shuffle = is_training
        side = "train" if is_training else "val"
        self.batch_size_gpu0 = int(options[f"dataset.{side}_batch_size0"])
        self.num_repeats = int(options["sampler.num_repeats"]) if is_training else 1
        self.trunc_rep_aug = is_training and bool(options["sampler.truncated_repeat_aug_sampler"])
        self.n_gpus = _device_count() if device_count is None else max(1, device_count)
        self._pairing: Pairing = self.PAIRING if pairing is None else pairing
        self._seed = seed
        if self.IS_DISTRIBUTED:
            processes = choose_topology(rank, num_replicas)
            self.num_replicas, self.rank = processes.world_size, processes.rank
            self.sharding = is_training and bool(options["sampler.use_shards"])
            self.disable_shuffle_sharding = self.sharding and bool(
                options["sampler.disable_shuffle_sharding"]
            )
        else:
            self.num_replicas, self.rank = 1, 0
            self.sharding = self.disable_shuffle_sharding = False
        # The number of samples is made a multiple of it before they are shuffled.
        multiple = self.num_replicas if self.IS_DISTRIBUTED else self.n_gpus
        if -n_data_samples % multiple > n_data_samples:
            raise AssertionPlanError(
                f"n_data_samples={n_data_samples} cannot be padded to a multiple of {multiple} "
                "processes by repeating each sample once: use fewer processes"
            )
        self._build(multiple, None)

    @classmethod
    def from_opts(
        cls,
        opts: object,
        n_data_samples: int,
        is_training: bool = False,
        **kwargs: Any,  # noqa: ANN401 - those of the class
    ) -> Self:
        """Return a sampler from options, as `build_sampler` does for the one they name."""
        return cls(opts, n_data_samples, is_training, **kwargs)

    @property
    def topology(self) -> Topology:
        """What rank of how many the plan runs for."""
        return self._sampler.topology

    @property
    def length(self) -> int:
        """Samples that the plan runs over."""
        return self._run_length

    @property
    def img_batch_tuples(self) -> list[tuple[int, int, int]]:
        """The table in force in the epoch: (height, width, samples), of variable videos frames."""
        plan = self.plan
        assert isinstance(plan, MultiScale | VariableBatch | VideoVariable)
        stage = stage_of(plan.scale_growth, self.epoch)
        frames = isinstance(plan, VideoVariable)
        rows = table(plan, self.batch_size_gpu0, stage)
        return [(row.height, row.width, row.frames if frames else row.batch) for row in rows]

    def __iter__(self) -> Iterator[list[tuple[Any, ...]]]:
        """Yield the batches of the epoch."""
        return map(items, self.planned())

    def __len__(self) -> int:
        """Return the batches of the epoch."""
        return self._sampler.steps(self.epoch)

    def update_scales(
        self,
        epoch: int,
        is_master_node: bool = False,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Do nothing: the table follows from the epoch."""

    def update_indices(self, new_indices: Sequence[int]) -> None:
        """Run over these samples from the next pass on, in place of all."""
        self._build(1, tuple(map(int, new_indices)))

    # ---- the plan ------------------------------------------------------------------------------

    def _build(self, pad_to: int, subset: tuple[int, ...] | None) -> None:
        """Make the plan, and choose the ranks that it is dealt to."""
        slots = -(-self._length // pad_to) * pad_to if subset is None else len(subset)
        changes: dict[str, Any] = {"pad_to": pad_to, "subset": subset}
        topology, length = Topology(self.rank, self.num_replicas), self._length
        if self.IS_DISTRIBUTED:
            more, topology, is_empty = self._deal(slots)
            changes |= more
            if is_empty:
                changes, length = {}, 0
        order = "python" if self.is_training else "sequential"
        self._run_length = length
        self._run(
            self._make_plan(
                batch_size=self.batch_size_gpu0,
                order="sequential" if self.disable_shuffle_sharding else order,
                chooser="cvnets",
                seed=self._seed,
                repeats=self.num_repeats,
                truncate=self.trunc_rep_aug,
                **changes,
            ),
            length,
            topology,
        )

    def _deal(self, slots: int) -> tuple[dict[str, Any], Topology, bool]:
        """Return the split of a number of samples, and whether this rank gets none.

        Where the originals give ranks unequal shares (GPUs that do not divide the ranks, indices
        that the ranks do not), each rank has a plan of its own share instead of a part of one.
        """
        nodes, gpus = 1, self.num_replicas
        if self.sharding:
            gpus = self.n_gpus
            nodes = max(1, self.num_replicas // gpus)
        node, local = divmod(self.rank, gpus)
        lane = -(-slots // nodes)
        entries = lane if self.trunc_rep_aug else lane * self.num_repeats
        if nodes * gpus == self.num_replicas and entries % gpus == 0:
            return {"node_blocks": nodes}, Topology(self.rank, self.num_replicas), False
        if node * lane >= slots:
            return {}, Topology(), True
        return {"node_blocks": nodes, "part": (local, gpus)}, Topology(node, nodes), False

    def _make_plan(self, **options: Any) -> ScaledPlan:  # noqa: ANN401 - those of plans
        raise NotImplementedError

    def _option(self, name: str) -> Any:  # noqa: ANN401 - options are of any type
        return self._options[f"sampler.{self.PREFIX}.{name}"]

    def _scales(self) -> Scales:
        """Return the sizes in training, or the base size."""
        scales = make_scales(
            self._option("crop_size_height"),
            self._option("crop_size_width"),
            self._option("min_crop_size_height"),
            self._option("max_crop_size_height"),
            self._option("min_crop_size_width"),
            self._option("max_crop_size_width"),
            self._option("max_n_scales"),
            self._option("check_scale"),
            self._pairing,
        )
        return scales if self.is_training else base_only(scales)

    def _one_size(self) -> Scales:
        return Scales.one(self._option("crop_size_height"), self._option("crop_size_width"))

    def _growth(self) -> Growth | None:
        if not (self.is_training and self._option("scale_inc")):
            return None
        intervals = self._option("ep_intervals")
        return Growth(
            epochs=(intervals,) if isinstance(intervals, int) else tuple(intervals),
            min_factor=self._option("min_scale_inc_factor"),
            max_factor=self._option("max_scale_inc_factor"),
        )


class DistributedSampler(CvnetsSampler):
    """One of the processes of a DDP run."""

    IS_DISTRIBUTED = True


def items(batch: PlannedBatch, *labels: str) -> list[tuple[Any, ...]]:
    """Return a batch as the originals do: a tuple for each sample."""
    meta = batch.meta
    first = map(repeat, (meta["height"], meta["width"]))
    video = [meta[name] for name in ("frames", "clips") if name in meta]
    last = map(repeat, (*video, *labels))
    return list(zip(*first, batch.indices.tolist(), *last, strict=False))


def _device_count() -> int:
    """Return the GPUs that this process sees, at least 1."""
    try:
        import torch
    except ModuleNotFoundError:
        return 1
    return max(1, torch.cuda.device_count())
