"""The whole demo, from an empty folder to the proof, and back to no folder at all.

This process only starts and kills others and shows what they report; so it needs no torch, starts
at once, and can be stopped at any time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from headrace.testing import Ledger

from ..commands.serve import PRIVATE_MARK
from ..transport.listener import MAX_PATH_BYTES
from . import files, proof, reports, signals
from .children import DaemonProcess, ReportingChild
from .errors import DemoError
from .interrupted import CHECKPOINT_STEPS, InterruptedRun
from .place import prepared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .place import Place
    from .screen import Screen

MIN_ACCURACY: Final = 0.95
"""What the model must reach on the test images."""


def run(screen: Screen, *, epochs: int, keep: bool, endpoint: str) -> None:
    """Run the demo; whatever happens, leave no process, and no data but what is to be kept.

    Args:
        screen: Where to show it.
        epochs: How long to train; at least 2, or the two kills come too close.
        keep: Whether the folder, and the bucket, stay.
        endpoint: Address of a proxy of the AIStore cluster to run on; empty: the data are files.

    Raises:
        DemoError: If something is not as promised.
        Stopped: If a signal told it to stop.
    """
    begin = time.perf_counter()
    with signals.raised():
        screen.title(
            "A model learns handwritten digits, and its trainer and its daemon are killed."
        )
        _run_in(screen, epochs, keep=keep, endpoint=endpoint)
    screen.say("done", f"in {time.perf_counter() - begin:.0f} s")


def _run_in(screen: Screen, epochs: int, *, keep: bool, endpoint: str) -> None:
    with (
        _workspace(screen, keep=keep, has_data=not endpoint) as folder,
        prepared(folder, endpoint, screen, keep=keep) as place,
    ):
        # A private daemon removes its folder even if this process is killed: so it gets all of it.
        private = folder / "private" if keep else folder
        private.mkdir(exist_ok=True)
        (private / PRIVATE_MARK).touch()
        environ = place.environ
        daemon = DaemonProcess(folder, private, environ)
        common = (str(folder), place.root, daemon.socket, "--epochs", str(epochs))
        checkpoints = ("--checkpoint-steps", str(CHECKPOINT_STEPS))
        trainer = ReportingChild("trainer", folder, *common, *checkpoints, environ=environ)
        judge = ReportingChild("judge", folder, *common, environ=environ)
        with daemon, trainer, judge:
            try:
                _tell(folder, place, daemon, trainer, judge, epochs, screen)
            finally:
                signals.ignore()


def _tell(
    folder: Path,
    place: Place,
    daemon: DaemonProcess,
    trainer: ReportingChild,
    judge: ReportingChild,
    epochs: int,
    screen: Screen,
) -> None:
    """Tell the story; whoever calls cleans up."""
    # All at once: each has imports to do before it needs another.
    for child in (judge, trainer, daemon):
        child.start()
    verdicts = judge.reports()
    with screen.bar("starting, loading torch"):
        written = judge.expect(reports.Written, verdicts)
    screen.say(
        "data",
        f"{written.num_train} images to train on, {written.num_test} to test on, {place.words}",
    )
    daemon.wait_until_it_listens()
    screen.say("daemon", f"pid {daemon.pid}, on a socket of its own")
    judge.permit()
    read = judge.expect(reports.Read, verdicts)
    screen.say("reference", f"{read.num_batches} batches of {epochs} epochs, read without a break")

    epoch_steps = read.num_batches // epochs
    InterruptedRun(trainer, daemon, epochs=epochs, epoch_steps=epoch_steps, screen=screen).run()

    judge.permit()
    accuracy = judge.expect(reports.Tested, verdicts).accuracy
    if accuracy < MIN_ACCURACY:
        raise DemoError(
            f"the model gets {accuracy:.1%} of the test images right after {epochs} epochs, at "
            f"least {MIN_ACCURACY:.0%} are due: train for longer with --epochs"
        )
    screen.say("accuracy", f"{accuracy:.1%} of the test images ({MIN_ACCURACY:.0%} are due)")

    uninterrupted = Ledger(folder / files.UNINTERRUPTED)
    interrupted = Ledger(folder / files.INTERRUPTED)
    screen.say("proof", f"uninterrupted: {proof.summary(uninterrupted)}")
    screen.say("", f"interrupted:   {proof.summary(interrupted)}")
    proof.check_equal(interrupted, uninterrupted)
    screen.say("", "the two runs are equal: nothing lost, repeated or reordered", "green")

    with screen.bar("measuring") as bar:
        for report in verdicts:
            match report:
                case reports.Measuring(name=name, num_done=num_done, num_total=num_total):
                    bar.move(f"measuring {name}", num_done, num_total)
                case reports.Failed(text=text):
                    raise DemoError(text)
                case reports.Measured() | reports.Unmeasured():
                    break
        else:
            raise DemoError(judge.explain_end())
    if isinstance(report, reports.Measured):
        _show_speed(report, screen)
    else:
        screen.say("speed", f"not measured: {report.why}")


def _show_speed(measured: reports.Measured, screen: Screen) -> None:
    num_rounds = len(measured.daemon.samples_per_s)
    screen.say("speed", f"samples/s, median of {num_rounds} (lowest to highest)")
    for result in (measured.daemon, *measured.natives):
        low, *_, high = sorted(result.samples_per_s)
        median = statistics.median(result.samples_per_s)
        screen.say("", f"{result.name:<26}{median:>9,.0f}   ({low:,.0f} to {high:,.0f})")
    native = max(statistics.median(result.samples_per_s) for result in measured.natives)
    ratio = statistics.median(measured.daemon.samples_per_s) / native
    faster = "daemon" if ratio > 1 else "native loader"
    screen.say(
        "",
        f"daemon / best native = {ratio:.2f}: here the {faster} is faster. {measured.note}",
    )


@contextlib.contextmanager
def _workspace(screen: Screen, *, keep: bool, has_data: bool) -> Iterator[Path]:
    """Make a temporary folder, and remove it at the end unless it is to be kept."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-demo-"))
    try:
        (folder / files.SCRATCH).mkdir()
        longest = MAX_PATH_BYTES - len("/private/headrace.sock")
        if len(os.fsencode(folder)) > longest:
            raise DemoError(
                f"{folder} is too long a path for a socket below it: set TMPDIR to a shorter one"
            )
        yield folder
    finally:
        shutil.rmtree(folder / files.SCRATCH if keep else folder, ignore_errors=True)
        if keep:
            data = "data, " if has_data else ""
            screen.say("kept", f"{data}checkpoint, ledgers and logs: {folder}")
