"""What a warning comes to, whoever gave it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Notice:
    """The machine will be taken, or someone wants the run to stop."""

    reason: str  # for people, e.g. "AWS takes this instance (terminate)"
    deadline: float | None = None  # time.monotonic() seconds; None: unknown
    stops: bool = True  # False: only a warning: save soon, go on
