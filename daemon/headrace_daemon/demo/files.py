"""What lies in the folder of the demo: the names that its processes agree on.

The images are in a bucket instead if the demo runs on AIStore, by the same names.
"""

from __future__ import annotations

from typing import Final

TRAIN: Final = "train"
"""Folder of the images to train on; below it one folder per label."""

TEST: Final = "test"
"""Folder of the images to test on."""

CHECKPOINT: Final = "checkpoint.pt"
"""The trainer's last checkpoint."""

INTERRUPTED: Final = "interrupted.jsonl"
"""Ledger of the trainer, over all its lives."""

UNINTERRUPTED: Final = "uninterrupted.jsonl"
"""Ledger of the same stream, read once by a process that nobody killed."""

SCRATCH: Final = "tmp"
"""Folder for the temporary files of all processes; torch leaves some behind."""
