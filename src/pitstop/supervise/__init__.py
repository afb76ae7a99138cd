"""`pitstop launch`: starts a recipe, passes signals on, starts it again after a crash, and leaves no process behind."""

import signal
from collections.abc import Sequence

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
WAITED = (signal.SIGCHLD, *STOP_SIGNALS)


def command(argv: Sequence[str]) -> int:
    """The exit code of `pitstop launch <argv>`: 0 finished, 75 start again, 76 a person decides, 2 bad usage, 1 failed.

    Raises:
        UserError: it cannot be started so. SystemExit: after the help (0) and after wrong flags (2).
    """
    # First of all, for the kernel drops a SIGTERM that PID 1 of a container neither handles nor blocks. Blocked ones
    # wait until `sigtimedwait` takes them, one at a time: there is no handler, so nothing is interrupted.
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITED)
    from pitstop.supervise.launch import main

    return main(argv)
