from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from headrace_daemon.demo import digits

if TYPE_CHECKING:
    from pathlib import Path


def test_file_is_a_binary_pgm() -> None:
    image = np.arange(6, dtype=np.float64).reshape(2, 3)
    assert digits.encode(image) == b"P5\n3 2\n16\n\x00\x01\x02\x03\x04\x05"


@pytest.mark.parametrize("value", range(digits.MAX_VALUE + 1))
def test_decoding_gives_back_what_was_encoded(value: int) -> None:
    # Some of the values are white space in ASCII, which also ends the header.
    image = np.full((8, 8), value)
    decoded, label = digits.decode("7/0123.pgm", digits.encode(image))
    assert label == 7
    assert decoded.dtype == torch.uint8
    assert decoded.shape == (1, 8, 8)
    assert set(decoded.flatten().tolist()) == {value}


def test_label_is_the_folder_whatever_stands_before_it() -> None:
    value = digits.encode(np.zeros((8, 8)))
    assert digits.decode("train/4/0123.pgm", value)[1] == 4


def test_batch_is_one_tensor_of_images_and_one_of_labels() -> None:
    one = torch.ones(1, 8, 8, dtype=torch.uint8)
    images, labels = digits.collate([(one, 3), (2 * one, 5)])
    assert images.shape == (2, 1, 8, 8)
    assert set(images[1].flatten().tolist()) == {2}
    assert labels.tolist() == [3, 5]


@pytest.mark.slow
def test_written_files_are_the_digits_of_scikit_learn(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits.write(tmp_path, digits.images())
    expected = load_digits()
    seen = {}
    for split in ("train", "test"):
        for path in (tmp_path / split).rglob("*.pgm"):
            name = path.relative_to(tmp_path / split).as_posix()
            image, label = digits.decode(name, path.read_bytes())
            index = int(path.stem)
            assert index not in seen
            seen[index] = split
            assert label == expected.target[index]
            assert np.array_equal(image[0].numpy(), expected.images[index])
    assert sorted(seen) == list(range(len(expected.target)))
    assert list(seen.values()).count("train") == 1438
    assert [split for _, split in sorted(seen.items())][:6] == ["train"] * 4 + ["test", "train"]
    labels_of_test = {int(folder.name) for folder in (tmp_path / "test").iterdir()}
    assert labels_of_test == set(range(10))
