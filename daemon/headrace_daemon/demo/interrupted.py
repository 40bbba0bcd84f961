"""The interrupted run: a training whose trainer is killed, and later its daemon.

What decides is how far the trainer says it is, never the time: it takes a permit for each step,
so on any machine the kills come at the same place, give or take the permits under way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from . import reports
from .errors import DemoError

if TYPE_CHECKING:
    from .children import DaemonProcess, ReportingChild
    from .screen import Bar, Screen

CHECKPOINT_STEPS: Final = 20
"""The trainer writes a checkpoint after every so many batches."""

_PERMITS: Final = 4
"""Permits under way: the trainer works on while its report is read."""


class InterruptedRun:
    """Trains to the end, with a kill of each of two processes on the way.

    Args:
        trainer: Started, but without a permit to begin.
        daemon: Listens.
        epochs: How many the trainer was told to train.
        epoch_steps: Batches of one epoch.
        screen: Where to show it.
    """

    def __init__(
        self,
        trainer: ReportingChild,
        daemon: DaemonProcess,
        *,
        epochs: int,
        epoch_steps: int,
        screen: Screen,
    ) -> None:
        self._trainer = trainer
        self._daemon = daemon
        self._epoch_steps = epoch_steps
        self._steps = steps = epochs * epoch_steps
        self._screen = screen
        # Well after a checkpoint, and before the next one: some steps are lost and come again.
        checkpoints = 2 * steps // 5 // CHECKPOINT_STEPS
        self._kill_trainer_at = checkpoints * CHECKPOINT_STEPS + CHECKPOINT_STEPS // 2
        self._kill_daemon_at = 7 * steps // 10
        self._is_daemon_killed = False
        self._is_reconnected = False
        self._is_finished = False
        # What the trainer said last; None before its first step.
        self._last: reports.Step | None = None

    def run(self) -> None:
        """Train to the end.

        Raises:
            DemoError: If one of the processes does not do its part.
        """
        with self._screen.bar("training", is_kept=True) as bar:
            self._bar: Bar = bar
            self._train(self._kill_trainer_at)
            assert self._last is not None
            self._screen.say(
                "killed",
                f"trainer (pid {self._trainer.pid}) after epoch {self._last.epoch} step "
                f"{self._last.step}",
                "red",
            )
            self._trainer.start()
            bar.move("trainer loads torch", self._last.update, self._steps)
            self._train(None)
        if not self._is_finished:
            raise DemoError(self._trainer.explain_end())
        if not self._is_reconnected:
            raise DemoError("the trainer has finished without a new connection to the daemon")

    def _train(self, kill_at: int | None) -> None:
        """Follow one life of the trainer; it is killed at an update, if one is given."""
        is_killed = False
        self._trainer.permit(1 + _PERMITS)
        for report in self._trainer.reports():
            match report:
                case reports.Started():
                    self._show_start(report)
                case reports.Step(update=update):
                    self._trainer.permit(1)
                    self._show_step(report)
                    if kill_at is not None and update >= kill_at and not is_killed:
                        self._trainer.kill()
                        is_killed = True
                    elif update >= self._kill_daemon_at and not self._is_daemon_killed:
                        self._kill_daemon(report)
                case reports.Heard(text=text):
                    self._show_log(text)
                case reports.Finished():
                    self._is_finished = True
        if kill_at is not None and not is_killed:
            raise DemoError(self._trainer.explain_end())

    def _kill_daemon(self, report: reports.Step) -> None:
        self._is_daemon_killed = True
        pid = self._daemon.pid
        self._daemon.kill()
        self._screen.say(
            "killed", f"daemon (pid {pid}) after epoch {report.epoch} step {report.step}", "red"
        )
        # Nobody waits until it listens: to connect again is the business of the trainer.
        self._daemon.start()
        self._screen.say("daemon", f"started again (pid {self._daemon.pid})")

    def _show_start(self, report: reports.Started) -> None:
        where = f"epoch {report.epoch} step {report.step}"
        if self._last is None or not report.is_resumed:
            self._screen.say("trainer", f"pid {self._trainer.pid} begins at {where}")
        else:
            back = self._last.update - (report.epoch * self._epoch_steps + report.step)
            self._screen.say(
                "trainer",
                f"pid {self._trainer.pid} resumed at {where}, its checkpoint, {back} batches back",
            )

    def _show_log(self, text: str) -> None:
        if text.startswith("daemon is back"):
            self._is_reconnected = True
            self._screen.say("trainer", f"reconnected by itself; its log: {text}", "green")
        else:
            self._screen.say("trainer", f"its log: {text}")

    def _show_step(self, report: reports.Step) -> None:
        self._last = report
        where = f"epoch {report.epoch:2} step {report.step:2}"
        note = f"{report.update}/{self._steps} loss {report.loss:.3f}"
        self._bar.move(where, report.update, self._steps, note)
        if not self._screen.is_live and report.step == self._epoch_steps - 1:
            self._screen.say("epoch", f"{report.epoch} trained, last loss {report.loss:.3f}")
