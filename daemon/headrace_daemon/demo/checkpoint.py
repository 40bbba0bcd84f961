"""The checkpoint of the demo's trainer: model, optimizer and position, in one file.

It is written aside and renamed, so whenever the trainer is killed, what is there is whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from torch.optim import Optimizer


def save(path: Path, model: nn.Module, optimizer: Optimizer, position: dict[str, Any]) -> None:
    """Replace the checkpoint.

    Args:
        path: Where it stands.
        model: Its weights are saved.
        optimizer: Its state is saved.
        position: What `DaemonDataset.state_dict` returns.
    """
    aside = path.with_suffix(".writing")
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "dataset": position,
    }
    torch.save(state, aside)
    aside.replace(path)


def load(path: Path) -> dict[str, Any] | None:
    """Return the checkpoint as it was saved, or None if there is none yet."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state
