"""The options of cvnets samplers: where they are read, their defaults, and their command line.

cvnets keeps options as attributes with dots in their names (``sampler.vbs.max_n_scales``) of an
``argparse.Namespace``.  Maps, flat or nested as in its YAML files, are read as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from ...errors import PlanError

if TYPE_CHECKING:
    import argparse

_SIZES: Final[dict[str, Any]] = {
    "crop_size_width": 256,
    "crop_size_height": 256,
}
_SCALES: Final[dict[str, Any]] = {
    **_SIZES,
    "min_crop_size_width": 160,
    "max_crop_size_width": 320,
    "min_crop_size_height": 160,
    "max_crop_size_height": 320,
    "max_n_scales": 5,
    "check_scale": 32,
    "scale_inc": False,
}
_VIDEO: Final[dict[str, Any]] = {"num_frames_per_clip": 8, "clips_per_video": 1}


def _prefixed(prefix: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in options.items()}


DEFAULTS: Final[Mapping[str, Any]] = {
    "sampler.name": "batch_sampler",
    "sampler.num_repeats": 1,
    "sampler.truncated_repeat_aug_sampler": False,
    "sampler.use_shards": False,
    "sampler.disable_shuffle_sharding": False,
    **_prefixed("sampler.bs", _SIZES | _VIDEO),
    **_prefixed("sampler.msc", _SCALES),
    **_prefixed(
        "sampler.vbs",
        _SCALES
        | _VIDEO
        | {
            "ep_intervals": [40],
            "min_scale_inc_factor": 1.0,
            "max_scale_inc_factor": 1.0,
            "random_video_clips": False,
            "min_clips_per_video": 1,
            "max_clips_per_video": 5,
            # Declared by the original and used by nothing there.
            "min_frames_per_clip": None,
        },
    ),
    "sampler.chain_sampler": None,
    "sampler.chain_sampler_mode": "sequential",
    "dataset.train_batch_size0": None,
    "dataset.val_batch_size0": None,
    "ddp.use_distributed": False,
}
"""Every option that the samplers read, with the default of its command line."""


class Options:
    """Read access to options by their dotted names.

    Args:
        opts: A namespace whose attributes have dotted names, or a map, flat or nested.
    """

    def __init__(self, opts: object) -> None:
        facts = opts if isinstance(opts, Mapping) else vars(opts)
        self._values = flatten(facts)

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - options are of any type
        value = self._values.get(name, DEFAULTS[name])
        if value is None and name.startswith("dataset."):
            raise PlanError(f"option {name!r} is missing: give the samples per batch of a process")
        return value

    def with_(self, changes: Mapping[str, Any]) -> Options:
        """Return options with some changed; names are dotted."""
        return Options({**self._values, **changes})


def flatten(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested map as one with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def add_sampler_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the options of all samplers to a command line, named and defaulted as in cvnets."""
    group = parser.add_argument_group("samplers")
    for name, default in DEFAULTS.items():
        if not name.startswith("sampler."):
            continue
        flag = "--" + name.replace("_", "-")
        if name == "sampler.chain_sampler":
            group.add_argument(flag, dest=name, type=json.loads, action="append")
        elif isinstance(default, bool):
            group.add_argument(flag, dest=name, action="store_true", default=default)
        elif isinstance(default, list):
            group.add_argument(flag, dest=name, type=int, nargs="+", default=default)
        else:
            kind = int if default is None else type(default)
            group.add_argument(flag, dest=name, type=kind, default=default)
    return parser
