"""What may go wrong between here and a bucket, in words for a person; and how long to wait before the next try."""

import itertools
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from pitstop.errors import FAILED, UserError

Result = TypeVar("Result")

FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.5, 60.0
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired", "InvalidToken"}
LASTING = ("401", "403", "404")  # HTTP: asking again does not help, a person must do something
NETWORK = (  # what the Rust library names deep in its error -> what it means
    (r"ConnectionRefused|onnection refused", "connection refused"),
    (r"dns error|lookup address", "its host name cannot be found (no network?)"),
    (r"TimedOut|timed out|deadline has elapsed|kind: Timeout", "timed out"),
    (r"ConnectionReset|reset by peer|BrokenPipe|IncompleteMessage|closed before|ConnectionAborted", "connection cut"),
    (r"NetworkUnreachable|HostUnreachable|unreachable", "the network is unreachable"),
)


class StoreError(Exception):
    """A request failed. `lasting`: not by chance; a person must do something (credentials, bucket)."""

    def __init__(self, reason: str, *, lasting: bool = False) -> None:
        super().__init__(reason)
        self.lasting = lasting


class Conflict(StoreError):
    """The object is no longer the one that was to be replaced. `found`: what is there, and its version."""

    def __init__(self, reason: str, found: tuple[bytes, dict[str, str]] | None = None) -> None:
        super().__init__(reason)
        self.found = found


class Unsupported(StoreError):
    """The store does not know this request."""


class StoreUnreachable(UserError):
    """The store did not answer, for a minute: exit code 1, after which `pitstop launch` tries again, with pauses."""

    exit_code = FAILED


def reason(error: BaseException) -> str:
    """One line out of an error that may carry a page: status and code of the answer, or what the network did."""
    text = str(error)
    if status := re.search(r"status code: (\d{3}[A-Za-z ]*)", text):
        code = re.search(r"<Code>(\w{1,60})</Code>", text)
        words = status[1].strip() + (f", {code[1]}" if code else "")
        return words + (" (the credentials have expired)" if code and code[1] in EXPIRED else "")
    for pattern, meaning in NETWORK:
        if re.search(pattern, text):
            return meaning
    return next(iter(text.splitlines()), type(error).__name__)[:200]


@contextmanager
def translated() -> Iterator[None]:
    """Errors of obstore as StoreError; FileNotFoundError stays where it is the object that is not there."""
    from obstore import exceptions

    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error) or "ContainerNotFound" in str(error):
            raise StoreError("there is no such bucket", lasting=True) from error
        raise
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
        raise Conflict(reason(error)) from error
    except (exceptions.NotSupportedError, NotImplementedError) as error:
        raise Unsupported(reason(error)) from error
    except (exceptions.BaseError, ValueError, OSError) as error:
        why = reason(error)
        if why.startswith("501"):
            raise Unsupported(why) from error
        raise StoreError(why, lasting=_lasting(error, why)) from error


def _lasting(error: BaseException, why: str) -> bool:
    from obstore import exceptions

    return (
        isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError)
        or why.startswith(LASTING)
        or "expired" in why
        or "(os error" in why  # of a file:// store
    )


def delays() -> Iterator[float]:
    """Seconds to wait before the 2nd, 3rd ... try: doubling, with jitter, as a fleet should not come back at once."""
    for tries in itertools.count():
        yield min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** min(tries, 20)) * random.uniform(0.5, 1)


def patiently(
    action: Callable[[], Result], seconds: float, waiting: Callable[[StoreError], None] = lambda error: None
) -> Result:
    """Does `action`, and again for up to `seconds` if it fails by chance; the first time `waiting` is told. Raises
    StoreError."""
    deadline = time.monotonic() + seconds
    for tries, pause in enumerate(delays()):
        delay = min(pause, seconds / 10)  # or the last pauses, the longest, would use up half of the time
        try:
            return action()
        except (Conflict, Unsupported):
            raise
        except StoreError as error:
            if error.lasting or time.monotonic() + delay > deadline:
                raise
            if tries == 0:
                waiting(error)
            time.sleep(delay)
    raise AssertionError("delays() has no end")


def attended(action: Callable[[], Result]) -> Result:
    """Does `action` in a thread of its own: a request that hangs hears no signal, but who waits for a thread does."""
    answer: Future[Result] = Future()

    def work() -> None:
        try:
            answer.set_result(action())
        except Exception as error:  # whatever it is, it is raised where it is waited for
            answer.set_exception(error)

    threading.Thread(target=work, name="pitstop-download", daemon=True).start()
    return answer.result()
