"""The judge of the demo, a process of its own: ``python -m headrace_daemon.demo.judge``.

It writes the data, keeps the ledger of a run that nobody interrupts, tests the model, and
measures.  Nobody kills it.  It takes a permit when it needs the daemon, and one when it needs the
trained model.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from headrace import DaemonDataset, Topology
from headrace.testing import Ledger

from . import checkpoint, digits, files, model, race, reports
from .lifeline import Lifeline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace import Stream


def main() -> None:
    """Judge from beginning to end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where everything is, see `files`")
    parser.add_argument("socket", help="of the daemon")
    parser.add_argument("--epochs", type=int, required=True)
    options = parser.parse_args()
    folder, socket = options.folder, options.socket
    lifeline = Lifeline()
    torch.set_num_threads(1)

    num_train, num_test = digits.write(folder)
    lifeline.report(reports.Written(num_train=num_train, num_test=num_test))

    lifeline.take_permit()
    ledger = _read_once(folder, socket, options.epochs)
    lifeline.report(reports.Read(num_batches=len(ledger.entries)))

    lifeline.take_permit()
    lifeline.report(reports.Tested(accuracy=_accuracy(folder, socket)))
    lifeline.report(race.run(folder, socket, lifeline.report))


def _read_once(folder: Path, socket: str, epochs: int) -> Ledger:
    """Return the ledger of what the trainer has to get."""
    ledger = Ledger(folder / files.UNINTERRUPTED)
    with _open(socket, digits.training_stream(folder)) as dataset:
        for _ in range(epochs):
            for batch in dataset:
                ledger.record(batch)
    return ledger


def _accuracy(folder: Path, socket: str) -> float:
    """Return the accuracy of the trained model on the test images, read through the daemon."""
    saved = checkpoint.load(folder / files.CHECKPOINT)
    assert saved is not None
    network = model.make()
    network.load_state_dict(saved["model"])
    with _open(socket, digits.test_stream(folder)) as dataset:
        return model.accuracy(network, map(digits.tensors, dataset))


@contextlib.contextmanager
def _open(socket: str, stream: Stream) -> Iterator[DaemonDataset]:
    dataset = DaemonDataset(socket, stream, topology=Topology())
    with contextlib.closing(dataset):
        yield dataset


if __name__ == "__main__":
    main()
