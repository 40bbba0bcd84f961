"""What the processes of the demo tell it: one JSON line each."""

from __future__ import annotations

import msgspec


class Report(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all reports."""


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Repeated measurements of one contender."""

    name: str
    samples_per_s: list[float]


class Started(Report, frozen=True, kw_only=True):
    """The trainer knows where it begins; nothing is trained yet."""

    epoch: int
    step: int
    is_resumed: bool
    """Whether it has found a checkpoint."""


class Step(Report, frozen=True, kw_only=True):
    """The trainer has trained one batch, and has it in its ledger."""

    epoch: int
    step: int
    update: int
    """Batches trained since the very beginning, over all epochs."""

    loss: float


class Heard(Report, frozen=True, kw_only=True):
    """The SDK has logged something in the trainer."""

    text: str


class Finished(Report, frozen=True, kw_only=True):
    """The trainer has trained all epochs and written its last checkpoint."""


class Made(Report, frozen=True, kw_only=True):
    """The keeper has made the bucket."""

    version: str
    """Of AIStore; empty if the cluster does not say it."""

    num_targets: int


class Failed(Report, frozen=True, kw_only=True):
    """The keeper or the judge cannot do its part, and ends."""

    text: str
    """The reason, a sentence."""


class Written(Report, frozen=True, kw_only=True):
    """The judge has written the data."""

    num_train: int
    num_test: int


class Read(Report, frozen=True, kw_only=True):
    """The judge has read the stream once without a break; its ledger is complete."""

    num_batches: int


class Tested(Report, frozen=True, kw_only=True):
    """The judge has tested the trained model."""

    accuracy: float
    """Share of the test images that the model gets right, 0..1."""


class Measuring(Report, frozen=True, kw_only=True):
    """The judge measures one contender after the other."""

    name: str
    num_done: int
    num_total: int


class Measured(Report, frozen=True, kw_only=True):
    """The judge has measured the daemon, and the native loader in each variant."""

    daemon: Rates
    natives: list[Rates]
    note: str
    """What the comparison says, and what it does not."""


class Unmeasured(Report, frozen=True, kw_only=True):
    """The judge has nothing to compare the daemon with."""

    why: str


AnyReport = (
    Started
    | Step
    | Heard
    | Finished
    | Made
    | Failed
    | Written
    | Read
    | Tested
    | Measuring
    | Measured
    | Unmeasured
)


def encode(report: Report) -> bytes:
    """Return a report as a line."""
    return msgspec.json.encode(report) + b"\n"


def decode(line: bytes) -> AnyReport:
    """Return the report that a line holds."""
    report: AnyReport = msgspec.json.decode(line, type=AnyReport)
    return report
