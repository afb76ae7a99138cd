"""An attempt from its first signal handler to its exit code, whatever happens in between."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from pitstop import notice
from pitstop.clocks import process_age
from pitstop.config import RecipeConfig
from pitstop.errors import FINISHED, PERSON_DECIDES, UserError
from pitstop.output import sturdy
from pitstop.session.attempt import Attempt
from pitstop.session.heir import start_again
from pitstop.session.place import Place, check_meeting, find, launched_rank, launched_world
from pitstop.stopper import Limit, Stopper, stop_file, time_limit

TOLD_AGAIN_SECONDS = 1.0


@contextmanager
def life(config: RecipeConfig, recipe: Path) -> Iterator[tuple[Attempt, Place, Stopper]]:
    """What a session needs, and an end in order: status, lock and exit code are right however the attempt goes.

    Raises:
        SystemExit: 0 the run was finished before; 1 the next attempt does it in another way; 2 a person must put
            something right; 75 stopped, start again; 76 stopped, a person decides.
    """
    stopper = Stopper()
    with sturdy():
        attempt = Attempt(config, recipe, launched_rank(), lambda: stopper.seconds_left)
        try:
            with _written_down(attempt, stopper):
                stopper.install(lambda: _start_again(attempt))
                stopper.heed_hangup()
                check_meeting()
                with _watching(config, attempt, stopper):
                    finished = attempt.look()
                    if finished and launched_world() == 1:
                        raise SystemExit(FINISHED)
                    with stopper.waiting() if launched_world() > 1 else nullcontext():
                        place = find(config)
                    if place.of_rank_0(finished):
                        place.part()
                        raise SystemExit(FINISHED)
                    yield attempt, place, stopper
        except SystemExit:
            stopper.leave()
            raise
        finally:
            attempt.close(stopper.exit_code or PERSON_DECIDES, stopper.reason)
            stopper.uninstall()


@contextmanager
def _written_down(attempt: Attempt, stopper: Stopper) -> Iterator[None]:
    """Why the attempt fails, and what that means: for people, for launchers, for the next attempt."""
    try:
        yield
    except UserError as error:
        attempt.refused(error)
        raise SystemExit(error.exit_code) from None
    except Exception as error:
        cause = _told_again(error)
        with _deaf_to_workers():
            attempt.log_traceback()
            stopper.leave_if_asked(wait=not attempt.leads)  # a crash of another rank must not look like a stop
            attempt.failed(cause)
        raise


def _start_again(attempt: Attempt) -> None:
    """The terminal was closed, which is no wish to stop: one of the ranks sees to it that the run goes on."""
    if not attempt.leads or not attempt.wants_more:
        return
    try:
        log = start_again(attempt.run.path.parent)
    except OSError as error:
        print(f"SIGHUP: the same command was not given again ({error.strerror})", file=sys.stderr, flush=True)
    else:
        print(f"SIGHUP: {f'the same command goes on, see {log}' if log else 'stopped'}", file=sys.stderr, flush=True)


def _told_again(error: Exception) -> Exception:
    """A killed worker of a DataLoader is told twice: by its broken pipe, and by a handler of torch's that raises in
    whatever runs just then. Only the second says what has happened."""
    if not isinstance(error, (ConnectionError, EOFError)):
        return error
    try:
        time.sleep(TOLD_AGAIN_SECONDS)  # a handler that raises ends it
    except RuntimeError as second:
        return second
    return error


@contextmanager
def _deaf_to_workers() -> Iterator[None]:
    """Until it is written down why the attempt failed: what torch's handler raises must not cut that short."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


@contextmanager
def _watching(config: RecipeConfig, attempt: Attempt, stopper: Stopper) -> Iterator[None]:
    """Looks out for everything that may ask for a stop: clocks, the budget, a file STOP, the cloud."""
    if attempt.leads:
        run = attempt.run
        stopper.watch(stop_file(run.path), time_limit(config.max_hours, process_age))
        stopper.watch(Limit(lambda: run.spent(config.budget), PERSON_DECIDES))
        stopper.watch(Limit(attempt.taken_over, PERSON_DECIDES))
    provider = None
    if os.environ.get("LOCAL_RANK", "0") == "0" and not config.dry_run:  # each machine has its own cloud to ask
        provider = notice.find(config.cloud)
    if provider is None:
        yield
        return
    watch = notice.Watch(provider, notify=stopper.notice, unreachable=attempt.no_notices)
    watch.start()
    try:
        yield
    finally:
        watch.stop()
