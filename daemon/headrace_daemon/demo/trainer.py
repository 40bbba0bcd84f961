"""The trainer of the demo, a process of its own: ``python -m headrace_daemon.demo.trainer``.

An ordinary training loop, which does not know that it will be killed.  It resumes from its last
checkpoint, keeps a ledger of what it was given, and takes one permit to begin and one for each
step, so the demo can kill it at a step and not at a time.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Final

import torch
from torch.nn import functional

from headrace import DaemonDataset, Topology
from headrace.testing import Ledger

from . import checkpoint, digits, files, model, reports
from .lifeline import Lifeline

DEADLINE_S: Final = 60.0
"""How long the daemon may stay away, seconds."""

_SEED: Final = 0
_LEARNING_RATE: Final = 2e-3


def main() -> None:
    """Train until the last epoch is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where everything else is, see `files`")
    parser.add_argument("root", help="where the images are, see `digits`")
    parser.add_argument("socket", help="of the daemon")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--checkpoint-steps", type=int, required=True)
    options = parser.parse_args()
    lifeline = Lifeline()
    _forward_log(lifeline)
    # With one thread these layers are deterministic on a CPU; the other cores are the daemon's.
    torch.set_num_threads(1)
    torch.manual_seed(_SEED)
    network = model.make()
    optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
    lifeline.take_permit()

    folder: Path = options.folder
    dataset = DaemonDataset(
        options.socket,
        digits.training_stream(options.root),
        topology=Topology(),
        deadline_s=DEADLINE_S,
    )
    saved = checkpoint.load(folder / files.CHECKPOINT)
    if saved is not None:
        network.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        dataset.load_state_dict(saved["dataset"])
    position = dataset.state_dict()
    # What was trained after the checkpoint is trained again, and stands in the ledger once.
    ledger = Ledger(folder / files.INTERRUPTED)
    ledger.cut(position)
    lifeline.report(
        reports.Started(
            epoch=position["epoch"], step=position["step"], is_resumed=saved is not None
        )
    )
    for _ in range(position["epoch"], options.epochs):
        for batch in dataset:
            lifeline.take_permit()
            ledger.record(batch)
            images, labels = digits.tensors(batch)
            loss = functional.cross_entropy(model.scores(network, images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            position = dataset.state_dict()
            if position["update"] % options.checkpoint_steps == 0:
                checkpoint.save(folder / files.CHECKPOINT, network, optimizer, position)
            lifeline.report(
                reports.Step(
                    epoch=batch.meta["epoch"],
                    step=batch.meta["step"],
                    update=position["update"],
                    loss=loss.item(),
                )
            )
    checkpoint.save(folder / files.CHECKPOINT, network, optimizer, position)
    dataset.close()
    lifeline.report(reports.Finished())


class _Forward(logging.Handler):
    """Reports what the SDK logs."""

    def __init__(self, lifeline: Lifeline) -> None:
        super().__init__()
        self._lifeline = lifeline

    def emit(self, record: logging.LogRecord) -> None:
        self._lifeline.report(reports.Heard(text=record.getMessage()))


def _forward_log(lifeline: Lifeline) -> None:
    logger = logging.getLogger("headrace")
    logger.setLevel(logging.INFO)
    logger.addHandler(_Forward(lifeline))


if __name__ == "__main__":
    main()
