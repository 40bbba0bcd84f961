"""The model of the demo: two small convolutions, enough for digits of 8 × 8 pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from . import digits

if TYPE_CHECKING:
    from collections.abc import Iterable


def make() -> nn.Sequential:
    """Return an untrained model: f32[n, 1, 8, 8] in, scores f32[n, 10] out."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def scores(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the scores of images as `digits.collate` makes them."""
    result: torch.Tensor = model(images.float() / digits.MAX_VALUE)
    return result


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Return the share of labels that the model gets right, 0..1."""
    num_right = num_seen = 0
    for images, labels in batches:
        num_right += int((scores(model, images).argmax(dim=1) == labels).sum())
        num_seen += len(labels)
    return num_right / num_seen
