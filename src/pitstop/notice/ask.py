"""One HTTP request to a metadata service. The same address gives out credentials, and on a strange network anything may
answer there: no proxy, no redirect, bounded time and size, and neither tokens nor bodies are ever logged."""

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 2.0  # of a whole request
MOST_BYTES = 64 * 1024  # of a whole answer


@dataclass(frozen=True)
class Answer:
    status: int
    body: str  # empty unless the status is 200


class _Impatient(socket.socket):
    """Ends at one deadline whatever comes in: an ordinary time-out begins anew with each byte of a slow drip."""

    def __init__(self, seconds: float) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_STREAM)
        self._deadline, self._bytes = time.monotonic() + seconds, 0
        self.settimeout(seconds)

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer takes too long")
        self.settimeout(left)
        count = super().recv_into(*args, **kwargs)
        self._bytes += count
        if self._bytes > MOST_BYTES:
            raise OSError("the answer is too long")
        return count


def ask(base: str, method: str, path: str, headers: Mapping[str, str]) -> Answer | None:
    """What `base` (http://host:port) answers, or None: nothing, too late, too long, or no HTTP.

    A name is looked up by the system, which may take longer than the time-out.
    """
    address = urlsplit(base)
    host, port = address.hostname or "", address.port or 80
    connection = HTTPConnection(host, port)  # of http.client: it knows of no proxy and follows no redirect
    with _Impatient(TIMEOUT_SECONDS) as connected:
        connection.sock = connected
        try:
            connected.connect((host, port))
            connection.request(method, path, headers=dict(headers))
            with connection.getresponse() as response:
                body = response.read(MOST_BYTES) if response.status == 200 else b""
                cut_off = response.status == 200 and response.length  # bytes that were promised and did not come
                return None if cut_off else Answer(response.status, body.decode())
        except (OSError, HTTPException, UnicodeDecodeError):
            return None
        finally:
            connection.close()
