"""The judge of the demo, a process of its own: ``python -m headrace_daemon.demo.judge``.

It writes the data, keeps the ledger of a run that nobody interrupts, tests the model, and
measures.  Nobody kills it.  It takes a permit when it needs the daemon, and one when it needs the
trained model.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from headrace import DaemonDataset, Objects, Topology
from headrace.errors import HeadraceError
from headrace.testing import Ledger

from . import bucket, checkpoint, digits, files, model, race, reports
from .lifeline import Lifeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headrace import Stream


def main() -> None:
    """Judge from beginning to end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where everything else is, see `files`")
    parser.add_argument("root", help="where it puts the images, see `digits`")
    parser.add_argument("socket", help="of the daemon")
    parser.add_argument("--epochs", type=int, required=True)
    options = parser.parse_args()
    lifeline = Lifeline()
    torch.set_num_threads(1)
    try:
        _judge(options.folder, options.root, options.socket, options.epochs, lifeline)
    except HeadraceError as error:
        lifeline.report(reports.Failed(text=f"the judge ended early: {error}"))


def _judge(folder: Path, root: str, socket: str, epochs: int, lifeline: Lifeline) -> None:
    images = digits.images()
    _write(root, images)
    num_train = sum(name.startswith(files.TRAIN) for name in images)
    lifeline.report(reports.Written(num_train=num_train, num_test=len(images) - num_train))

    lifeline.take_permit()
    ledger = _read_once(folder, root, socket, epochs)
    lifeline.report(reports.Read(num_batches=len(ledger.entries)))

    lifeline.take_permit()
    lifeline.report(reports.Tested(accuracy=_accuracy(folder, root, socket)))
    lifeline.report(race.run(root, socket, lifeline.report))


def _write(root: str, images: Mapping[str, bytes]) -> None:
    """Write the images as files, or as objects if the root is a bucket."""
    target = Objects(root).bucket
    if target is None:
        digits.write(Path(root), images)
        return

    async def fill() -> None:
        async with bucket.client() as client:
            await bucket.fill(client, target, images.items())

    asyncio.run(fill())


def _read_once(folder: Path, root: str, socket: str, epochs: int) -> Ledger:
    """Return the ledger of what the trainer has to get."""
    ledger = Ledger(folder / files.UNINTERRUPTED)
    with _open(socket, digits.training_stream(root)) as dataset:
        for _ in range(epochs):
            for batch in dataset:
                ledger.record(batch)
    return ledger


def _accuracy(folder: Path, root: str, socket: str) -> float:
    """Return the accuracy of the trained model on the test images, read through the daemon."""
    saved = checkpoint.load(folder / files.CHECKPOINT)
    assert saved is not None
    network = model.make()
    network.load_state_dict(saved["model"])
    with _open(socket, digits.test_stream(root)) as dataset:
        return model.accuracy(network, map(digits.tensors, dataset))


@contextlib.contextmanager
def _open(socket: str, stream: Stream) -> Iterator[DaemonDataset]:
    dataset = DaemonDataset(socket, stream, topology=Topology())
    with contextlib.closing(dataset):
        yield dataset


if __name__ == "__main__":
    main()
