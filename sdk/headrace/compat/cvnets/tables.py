"""The tables of cvnets: sizes, and what each of them leaves room for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import PlanError
from ...plans import Scales
from ...plans.tables import image_rows, round_to, video_rows

if TYPE_CHECKING:
    from ...plans.scaled import Pairing


def make_divisible(v: float, divisor: int = 8, min_value: int | None = None) -> int:
    """Return the nearest multiple, halves up, at least `min_value`, never more than 10 % down."""
    if min_value is not None and min_value != divisor:
        raise PlanError(f"min_value={min_value} is not supported: it is the divisor, {divisor}")
    return round_to(v, divisor)


def image_batch_pairs(
    crop_size_w: int,
    crop_size_h: int,
    batch_size_gpu0: int,
    max_scales: int = 5,
    check_scale_div_factor: int = 32,
    min_crop_size_w: int = 160,
    max_crop_size_w: int = 320,
    min_crop_size_h: int = 160,
    max_crop_size_h: int = 320,
    *args: Any,  # noqa: ANN401
    pairing: Pairing = "head",
    **kwargs: Any,  # noqa: ANN401
) -> list[tuple[int, int, int]]:
    """Return the table (height, width, samples) of constant pixels."""
    scales = make_scales(
        crop_size_h,
        crop_size_w,
        min_crop_size_h,
        max_crop_size_h,
        min_crop_size_w,
        max_crop_size_w,
        max_scales,
        check_scale_div_factor,
        pairing,
    )
    return image_rows(scales, batch_size_gpu0)


def make_video_pairs(
    crop_size_h: int,
    crop_size_w: int,
    min_crop_size_h: int,
    max_crop_size_h: int,
    min_crop_size_w: int,
    max_crop_size_w: int,
    default_frames: int,
    max_scales: int = 5,
    check_scale_div_factor: int = 32,
    *args: Any,  # noqa: ANN401
    pairing: Pairing = "head",
    **kwargs: Any,  # noqa: ANN401
) -> list[tuple[int, int, int]]:
    """Return the table (height, width, frames) of constant pixels."""
    scales = make_scales(
        crop_size_h,
        crop_size_w,
        min_crop_size_h,
        max_crop_size_h,
        min_crop_size_w,
        max_crop_size_w,
        max_scales,
        check_scale_div_factor,
        pairing,
    )
    return video_rows(scales, default_frames)


def make_scales(
    height: int,
    width: int,
    min_height: int,
    max_height: int,
    min_width: int,
    max_width: int,
    count: int,
    divisor: int,
    pairing: Pairing,
) -> Scales:
    """Return the sizes as plans take them."""
    return Scales(
        height=height,
        width=width,
        min_height=min_height,
        max_height=max_height,
        min_width=min_width,
        max_width=max_width,
        count=int(count),
        divisor=divisor,
        pairing=pairing,
    )
