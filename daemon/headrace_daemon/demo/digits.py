"""The data of the demo: the handwritten digits inside scikit-learn, one file or object per image.

Each is a binary PGM of 8 × 8 pixels with values 0..16, and its folder is its label:
``train/7/0123.pgm``.  Which images are for testing never changes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from headrace import Objects, Stream, plans

from . import files

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from headrace import Batch

MAX_VALUE: Final = 16
"""Brightest value of a pixel."""

BATCH_SIZE: Final = 32

_SEED: Final = 17
_TEST_EVERY: Final = 5
_HEADER: Final = re.compile(rb"P5\s(\d+)\s(\d+)\s\d+\s")


def images() -> dict[str, bytes]:
    """Return all images by name: ``train/7/0123.pgm``, or ``test/…`` for those to test on.

    Every fifth image is for testing: neighbours in the set are by the same hand.
    """
    # Here, because the processes that only read do not need it; it takes seconds to import.
    from sklearn.datasets import load_digits

    digits = load_digits()
    found = {}
    for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = files.TEST if index % _TEST_EVERY == _TEST_EVERY - 1 else files.TRAIN
        found[f"{split}/{label}/{index:04}.pgm"] = encode(image)
    return found


def write(folder: Path, images: Mapping[str, bytes]) -> None:
    """Write images as files below a folder.

    Args:
        folder: Is there.
        images: By their names below it.
    """
    for name, value in images.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value)


def encode(image: NDArray[Any]) -> bytes:
    """Return an image, [height, width] of values in 0..16, as the bytes of a PGM file."""
    height, width = image.shape
    return b"P5\n%d %d\n%d\n" % (width, height, MAX_VALUE) + image.astype(np.uint8).tobytes()


def decode(name: str, value: bytes) -> tuple[torch.Tensor, int]:
    """Return a file or object as an image, u8[1, height, width], and its label.

    Args:
        name: Of a file below one of the two folders, or of an object in the bucket; its folder is
            the label.
        value: Its bytes.
    """
    header = _HEADER.match(value)
    assert header is not None, name
    pixels = np.frombuffer(value, np.uint8, offset=header.end())
    image = torch.from_numpy(pixels.reshape(1, int(header[2]), int(header[1])).copy())
    return image, int(name.split("/")[-2])


def collate(samples: Iterable[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images, u8[n, 1, height, width], and labels, i64[n], of a batch."""
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)


def tensors(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images and labels (see `collate`) of a batch with raw values."""
    return collate(decode(name, value) for name, value in batch)


def training_stream(root: str) -> Stream:
    """Return what the trainer reads: another order in each epoch.

    Args:
        root: The folder or bucket with the images, as a path or URI.
    """
    return Stream(_source(root, files.TRAIN), plans.Shuffled(batch_size=BATCH_SIZE, seed=_SEED))


def test_stream(root: str) -> Stream:
    """Return what the model is tested on, in order; `root` as for `training_stream`."""
    return Stream(_source(root, files.TEST), plans.Sequential(batch_size=BATCH_SIZE))


def _source(root: str, split: str) -> Objects:
    return Objects(f"{root}/{split}/", suffix=".pgm")
