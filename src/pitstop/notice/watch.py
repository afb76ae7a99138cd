"""The one thread that asks. Whatever goes wrong here is no news: the training never notices."""

import re
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone

from pitstop.notice.answers import Due
from pitstop.notice.ask import Answer, ask
from pitstop.notice.clouds import TOKEN_SECONDS, VM_NAME, Item, Provider
from pitstop.notice.notice import Notice

RARELY_SECONDS = 60.0  # between questions to what has never answered
CLOCK_SECONDS = 60.0  # by which the wall clock may be wrong, or an announced end late
JOIN_SECONDS = 3.0
TOKEN = re.compile(r"[!-~]{1,1024}")  # printable, no space: it becomes a header


def wall_now() -> datetime:
    return datetime.now(timezone.utc)


class Watch(threading.Thread):
    """Asks `provider` until it is stopped. From this thread it calls `notify` once for each distinct notice, and
    `unreachable` once, with what is wrong ("AWS does not answer at ..."), if nothing sensible came while its patience
    lasted; then it goes on asking, rarely."""

    def __init__(
        self, provider: Provider, *, notify: Callable[[Notice], None], unreachable: Callable[[str], None]
    ) -> None:
        super().__init__(name="pitstop-notice", daemon=True)
        self._provider, self._notify, self._unreachable = provider, notify, unreachable
        self._stopped = threading.Event()
        self._token, self._token_until = "", 0.0
        self._machine = ""  # this machine's own name, where the provider tells of others too
        self._idle: set[str] = set()  # items that have said that nothing is due
        self._told: set[str] = set()

    def run(self) -> None:
        began, reached, said = time.monotonic(), False, False
        while not self._stopped.is_set():
            for item in self._provider.items:
                reached |= self._look(item)
            if not (reached or said) and time.monotonic() - began >= self._provider.patience_seconds:
                if self._stopped.is_set():
                    return
                said = True
                hint = f" ({self._provider.hint})" if self._provider.hint else ""
                self._unreachable(f"{self._provider.name} does not answer at {self._provider.base}{hint}")
            self._stopped.wait(self._provider.every_seconds if reached or not said else RARELY_SECONDS)

    def stop(self) -> None:
        """Returns within some three seconds, also while a request hangs or a name is being looked up."""
        self._stopped.set()
        if self.is_alive() and threading.current_thread() is not self:
            self.join(timeout=JOIN_SECONDS)

    def _look(self, item: Item) -> bool:
        """Whether the answer made sense."""
        answer = self._get(item.path)
        if answer is None or (answer.status == 404 and not item.missing_is_idle) or answer.status not in (200, 404):
            return False
        try:
            found = item.read(answer.body) if answer.status == 200 else []
        except ValueError:
            return False
        if any(due.names is not None for due in found) and not self._knows_its_name():
            return False
        mine = [due for due in found if due.names is None or self._machine in due.names]
        for due in mine:
            self._tell(due, was_idle=item.path in self._idle)
        if not mine:
            self._idle.add(item.path)
        return True

    def _tell(self, due: Due, *, was_idle: bool) -> None:
        if due.key in self._told:
            return
        notice = self._notice(due, was_idle)
        if notice is not None:
            self._told.add(due.key)
            self._notify(notice)

    def _notice(self, due: Due, was_idle: bool) -> Notice | None:
        """None: left over from an end that never came. If it was not there before and yet lies in the past, or it lies
        further ahead than the vendor ever tells, then the wall clock is wrong, and the vendor's usual time is taken."""
        now, usual = time.monotonic(), self._provider.notice_seconds
        if not due.stops:
            return Notice(due.what, stops=False)
        left = usual
        if due.at_once:
            left = 0.0
        elif due.at is not None:
            left = (due.at - wall_now()).total_seconds()
        if left < -CLOCK_SECONDS:
            if self._provider.may_be_stale and not was_idle:
                return None
            left = usual
        return Notice(due.what, now + min(max(left, 0.0), usual))

    def _knows_its_name(self) -> bool:
        if not self._machine and self._provider.name_path:
            answer = self._get(self._provider.name_path)
            if answer is not None and answer.status == 200 and VM_NAME.fullmatch(answer.body.strip()):
                self._machine = answer.body.strip().casefold()
        return bool(self._machine)

    def _get(self, path: str) -> Answer | None:
        """With a token where one is needed: a new one if the service no longer knows the last."""
        for _ in range(2):
            headers = dict(self._provider.headers)
            if self._provider.token:
                if not self._has_token(self._provider.token):
                    return None
                headers[self._provider.token] = self._token
            answer = self._ask("GET", path, headers)
            if answer is None or answer.status != 401 or not self._provider.token:
                return answer
            self._token = ""
        return None

    def _has_token(self, header: str) -> bool:
        if not self._token or time.monotonic() >= self._token_until:
            self._token, asked = "", time.monotonic()
            answer = self._ask("PUT", "/latest/api/token", {f"{header}-ttl-seconds": str(TOKEN_SECONDS)})
            if answer is not None and answer.status == 200 and TOKEN.fullmatch(answer.body.strip()):
                self._token, self._token_until = answer.body.strip(), asked + TOKEN_SECONDS * 0.9
        return bool(self._token)

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> Answer | None:
        return None if self._stopped.is_set() else ask(self._provider.base, method, path, headers)
