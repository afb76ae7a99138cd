"""How an attempt ended, by the recipe's own word; what follows from it; and when to give up.

accelerate and torchrun turn every exit code into 1, so the word is a file (PITSTOP_OUTCOME), written by rank 0.
"""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pitstop.errors import BAD_USAGE, FAILED, FINISHED, PERSON_DECIDES, START_AGAIN
from pitstop.files import checkpoint_steps, read_json

CODE_OF = {"never": FINISHED, "person": PERSON_DECIDES, "now": FAILED}  # where the word lacks the code
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 300.0
IN_VAIN = 2  # failed attempts in a row that bring no new checkpoint, before nobody tries again


@dataclass(frozen=True)
class Outcome:
    """What rank 0 wrote: first where its run is and at which checkpoint, at the end how it ended."""

    run: Path | None = None
    restart: str = ""  # now, person or never; empty: it has not ended by its own word
    reason: str = ""
    exit_code: int = FAILED
    newest: int | None = None  # step of the newest checkpoint when the attempt began; -1: none; None: not said


def read_outcome(path: Path) -> Outcome:
    """What stands in the file; an empty Outcome where there is none, or it is not what was agreed."""
    try:
        record: dict[str, Any] = dict(read_json(path, limit_bytes=1 << 20))
    except (OSError, ValueError, TypeError):
        return Outcome()
    run, restart, code, newest = (record.get(key) for key in ("run", "restart", "exit_code", "newest"))
    known = restart if restart in CODE_OF else ""
    return Outcome(
        run=Path(run) if isinstance(run, str) and run else None,
        restart=known,
        reason=str(record.get("reason") or ""),
        exit_code=code if isinstance(code, int) and 0 <= code < 256 else CODE_OF.get(known, FAILED),
        newest=newest if isinstance(newest, int) and not isinstance(newest, bool) else None,
    )


def newest_step(run: Path | None) -> int | None:
    """The step of the newest checkpoint, or None: there is none, or nobody knows where the run is."""
    if run is None or not (folder := run / "checkpoints").is_dir():
        return None
    return next((step for step, _ in checkpoint_steps(folder)), None)


@dataclass(frozen=True)
class Verdict:
    """The exit code that an attempt's end asks for, why, and whether it may be tried again."""

    code: int
    reason: str
    again: bool = False

    @property
    def state(self) -> str:
        """As in status.json."""
        return {FINISHED: "finished", START_AGAIN: "stopped", PERSON_DECIDES: "stopped"}.get(self.code, "failed")


def stop_code(passed: Sequence[int]) -> int:
    """What a stop by these signals means: Ctrl-C is a person's wish, the others a machine's."""
    return PERSON_DECIDES if signal.SIGINT in passed else START_AGAIN


def judge(outcome: Outcome, code: int, passed: Sequence[int]) -> Verdict:
    """What follows from the end of an attempt: its word, its exit code (negative: a signal), the signals passed on.

    75 is never tried again here, whoever asked for it: after a notice the machine goes away, after --max_hours the
    next attempt is the engine's to grant, and a run directory that another process holds is being trained already.
    """
    if outcome.restart and outcome.exit_code != FAILED:
        return Verdict(outcome.exit_code, outcome.reason)
    if not outcome.restart and code in (FINISHED, BAD_USAGE, START_AGAIN, PERSON_DECIDES):
        return Verdict(code, "it ended before there was a run" if code else "")
    reason = outcome.reason if outcome.restart else f"it died without a word ({describe(code)})"
    if passed:
        return Verdict(stop_code(passed), f"{reason}, after {signal.Signals(passed[-1]).name}")
    return Verdict(FAILED, reason, again=outcome.restart in ("", "now"))


def describe(code: int) -> str:
    """An exit code in words."""
    if code == -signal.SIGKILL:
        return "SIGKILL: out of memory? dmesg tells"
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


class GiveUp(Exception):
    """It is not tried again; the text says why."""


class Patience:
    """Waits longer from failure to failure, anew after progress; ends after too many, or when they bring nothing."""

    def __init__(self, restarts: int) -> None:
        self._most = restarts
        self._newest: int | None = None
        self._in_vain = 0
        self._wait_seconds = FIRST_WAIT_SECONDS
        self.used = 0

    def after_failure(self, run: Path | None, first_newest: int | None = None) -> float:
        """Seconds to wait before the next attempt; `first_newest` as in `Outcome.newest`, by default what was found
        after the attempt before.

        An attempt that was killed while it loaded a checkpoint is not held against the run: the recipe counts those
        itself (loading.json), sets the checkpoint aside after two, and goes on from the one before or asks a person.

        Raises:
            GiveUp: there is no use.
        """
        newest = newest_step(run)
        before = self._newest if first_newest is None else first_newest if first_newest >= 0 else None
        if newest is not None and (before is None or newest > before):
            self._in_vain, self._wait_seconds = 0, FIRST_WAIT_SECONDS
        elif newest == before and not (run is not None and (run / "checkpoints" / "loading.json").exists()):
            self._in_vain += 1
        self._newest = newest
        if self._in_vain >= IN_VAIN:
            where = "before the first checkpoint" if newest is None else f"after step {newest}, the newest checkpoint"
            raise GiveUp(f"{IN_VAIN} failed attempts in a row brought no new checkpoint: it fails {where}")
        if self.used >= self._most:
            raise GiveUp(f"it was started again {self.used} times (--restarts)")
        self.used += 1
        wait = self._wait_seconds
        self._wait_seconds = min(2 * wait, LONGEST_WAIT_SECONDS)
        return wait
