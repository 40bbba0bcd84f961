"""The samplers of cvnets by name, and what makes one from options."""

from __future__ import annotations

from typing import Any, Final

from ..registry import Registry
from .options import Options


class SamplerRegistry(Registry):
    """Samplers by the names of the option ``sampler.name``."""

    def register(self, name: str) -> Any:  # noqa: ANN401 - a decorator
        """Return a decorator that registers a class."""
        return self.named(name)


SAMPLER_REGISTRY: Final = SamplerRegistry("sampler")


def build_sampler(
    opts: object,
    n_data_samples: Any,  # noqa: ANN401 - a number, or one for each task
    is_training: bool = False,
    get_item_metadata: object = None,
    *args: Any,  # noqa: ANN401
    **kwargs: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401 - any registered class
    """Return the sampler that the options name; that for DDP if they say so.

    Args:
        opts: The options.
        n_data_samples: Samples of the dataset; for a chain, of each task.
        is_training: Whether it is for training.
        get_item_metadata: Ignored, as by the samplers of the original.
        args: Ignored, as in the original.
        kwargs: Passed to the class.
    """
    options = opts if isinstance(opts, Options) else Options(opts)
    name = options["sampler.name"]
    is_distributed = bool(options["ddp.use_distributed"])
    if is_distributed and not name.endswith("_ddp") and name != "chain_sampler":
        name += "_ddp"
    return create_sampler(name, options, n_data_samples, is_training, **kwargs)


def create_sampler(
    name: str,
    opts: object,
    n_data_samples: Any,  # noqa: ANN401
    is_training: bool = False,
    **kwargs: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Return the sampler that is registered by a name.

    Raises:
        PlanError: If there is none.
    """
    return SAMPLER_REGISTRY[name](opts, n_data_samples, is_training, **kwargs)
