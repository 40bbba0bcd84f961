"""The data of the demo: the handwritten digits inside scikit-learn, one file per image.

A file is a binary PGM of 8 × 8 pixels with values 0..16, in a folder named by its label:
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
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from headrace import Batch

MAX_VALUE: Final = 16
"""Brightest value of a pixel."""

BATCH_SIZE: Final = 32

_SEED: Final = 17
_TEST_EVERY: Final = 5
_HEADER: Final = re.compile(rb"P5\s(\d+)\s(\d+)\s\d+\s")


def write(folder: Path) -> tuple[int, int]:
    """Write all images below a folder, some to train on and some to test on.

    Every fifth image is for testing: neighbours in the set are by the same hand.

    Returns:
        The number of images to train on, and to test on.
    """
    # Here, because the processes that only read do not need it; it takes seconds to import.
    from sklearn.datasets import load_digits

    digits = load_digits()
    counts = {files.TRAIN: 0, files.TEST: 0}
    for split in counts:
        for label in range(10):
            (folder / split / str(label)).mkdir(parents=True)
    for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = files.TEST if index % _TEST_EVERY == _TEST_EVERY - 1 else files.TRAIN
        counts[split] += 1
        (folder / split / str(label) / f"{index:04}.pgm").write_bytes(encode(image))
    return counts[files.TRAIN], counts[files.TEST]


def encode(image: NDArray[Any]) -> bytes:
    """Return an image, [height, width] of values in 0..16, as the bytes of a PGM file."""
    height, width = image.shape
    return b"P5\n%d %d\n%d\n" % (width, height, MAX_VALUE) + image.astype(np.uint8).tobytes()


def decode(name: str, value: bytes) -> tuple[torch.Tensor, int]:
    """Return a file as an image, u8[1, height, width], and its label.

    Args:
        name: Path below one of the two folders; it begins with the label.
        value: The bytes of the file.
    """
    header = _HEADER.match(value)
    assert header is not None, name
    pixels = np.frombuffer(value, np.uint8, offset=header.end())
    image = torch.from_numpy(pixels.reshape(1, int(header[2]), int(header[1])).copy())
    return image, int(name.partition("/")[0])


def collate(samples: Iterable[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images, u8[n, 1, height, width], and labels, i64[n], of a batch."""
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)


def tensors(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images and labels (see `collate`) of a batch with raw values."""
    return collate(decode(name, value) for name, value in batch)


def training_stream(folder: Path) -> Stream:
    """Return what the trainer reads: another order in each epoch."""
    source = Objects(str(folder / files.TRAIN), suffix=".pgm")
    return Stream(source, plans.Shuffled(batch_size=BATCH_SIZE, seed=_SEED))


def test_stream(folder: Path) -> Stream:
    """Return what the model is tested on, in order."""
    source = Objects(str(folder / files.TEST), suffix=".pgm")
    return Stream(source, plans.Sequential(batch_size=BATCH_SIZE))
