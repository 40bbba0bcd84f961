"""The chain of cvnets: samplers of several tasks in one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import PlanError
from ...plans import Chain
from ..passes import EpochPasses
from .base import CvnetsSampler, items
from .names import SAMPLER_REGISTRY, build_sampler
from .options import Options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


@SAMPLER_REGISTRY.register("chain_sampler")
class ChainSampler(EpochPasses):
    """Several samplers in one: batches of ``(height, width, index, task)``.

    Args:
        opts: The options; ``sampler.chain_sampler`` lists the tasks, ``sampler.chain_sampler_mode``
            is ``"sequential"`` or ``"interleave"``.
        n_data_samples: Samples of the dataset of each task.
        is_training: As for the samplers.
        args: Ignored, as in the original.
        kwargs: Passed to the samplers.

    Raises:
        PlanError: If a task has no samples, or two have one name.
    """

    def __init__(
        self,
        opts: object,
        n_data_samples: Mapping[str, int],
        is_training: bool = False,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        options = opts if isinstance(opts, Options) else Options(opts)
        tasks = options["sampler.chain_sampler"]
        if not isinstance(tasks, list | tuple) or not tasks:
            raise PlanError(
                f"sampler.chain_sampler={tasks!r} must list at least one task, with task_name and "
                "sampler_config"
            )
        self.sampling_mode = options["sampler.chain_sampler_mode"]
        self.samplers_dict: dict[str, CvnetsSampler] = {}
        for task in tasks:
            name = _task_name(task, n_data_samples, self.samplers_dict)
            self.samplers_dict[name] = build_sampler(
                options.with_(_task_options(task)), n_data_samples[name], is_training, **kwargs
            )
        first, *others = (child.topology for child in self.samplers_dict.values())
        if any(topology != first for topology in others):
            raise PlanError(
                "the samplers of the chain deal to ranks in different ways, so their steps cannot "
                "be kept together: let the number of GPUs divide that of the processes"
            )
        plans: dict[str, Any] = {name: child.plan for name, child in self.samplers_dict.items()}
        self._run(
            Chain(plans=plans, mode=self.sampling_mode),
            {name: child.length for name, child in self.samplers_dict.items()},
            first,
        )

    def __iter__(self) -> Iterator[list[tuple[Any, ...]]]:
        """Yield the batches of the epoch."""
        return (items(batch, batch.stream) for batch in self.planned())

    def __len__(self) -> int:
        """Return the batches of the epoch."""
        return self._sampler.steps(self.epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass, of all tasks."""
        super().set_epoch(epoch)
        for child in self.samplers_dict.values():
            child.set_epoch(epoch)

    def update_scales(
        self,
        epoch: int,
        is_master_node: bool = False,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Do nothing: the tables follow from the epoch."""

    def update_indices(self, new_indices: Sequence[int]) -> None:
        """Refuse: indices of which task?"""
        raise NotImplementedError("a chain has indices of several tasks: make a new chain instead")


def _task_name(task: Any, n_data_samples: object, known: Mapping[str, Any]) -> str:  # noqa: ANN401
    lacking = [key for key in ("task_name", "sampler_config") if not task.get(key)]
    if lacking:
        raise PlanError(f"sampler.chain_sampler has a task without {lacking[0]}: {task!r}")
    name = str(task["task_name"])
    if name in known:
        raise PlanError(f"sampler.chain_sampler has two tasks named {name!r}: rename one")
    if not hasattr(n_data_samples, "keys") or name not in n_data_samples:  # type: ignore[operator]
        raise PlanError(
            f"n_data_samples={n_data_samples!r} has no entry for task {name!r}: give the number "
            "of samples of each task"
        )
    return name


def _task_options(task: Mapping[str, Any]) -> dict[str, Any]:
    changes = {"sampler": task["sampler_config"]}
    sizes = ("train_batch_size0", "val_batch_size0")
    changes["dataset"] = {name: task[name] for name in sizes if task.get(name) is not None}
    return changes
