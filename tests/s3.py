"""An S3 server for tests (moto's, in this process) and a proxy in front of it that logs every request and does harm.

    with S3() as s3, s3.proxy() as proxy:
        s3.make_bucket("runs")
        os.environ |= proxy.environment          # or pass it to a subprocess
        proxy.fault = lambda seen: "503" if seen.method == "PUT" else None

Faults: "503"; "expired" (what S3 says of old credentials); "slow" (half a second first); "reset" (the connection,
before anything was read); "cut" (in the middle of the body); "lost" (done by the server, the answer never comes);
"partition" (nothing, until the client gives up); "late" (held until `proxy.deliver.set()`, and then done).
"""

import http.client
import io
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

from moto.server import ThreadedMotoServer

EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
# moto asks for no signature, but tells a request that has one from the public's.
ANYBODY = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
FORGETTABLE = {"connection", "transfer-encoding", "content-length", "date", "server"}


@dataclass(frozen=True)
class Seen:
    """A request: `name` is the object's key, without the bucket."""

    method: str
    name: str
    query: str
    fault: str | None


class S3:
    """moto's server on a port of its own; its buckets live in this process's memory."""

    def __enter__(self) -> "S3":
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.stop()

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.port)

    def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Straight to the server, past the proxy: for oracles. `path` is /bucket or /bucket/key."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {"Authorization": ANYBODY})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def make_bucket(self, name: str) -> None:
        assert self.request("PUT", f"/{name}")[0] == 200

    def get(self, bucket: str, key: str) -> bytes | None:
        status, body = self.request("GET", f"/{bucket}/{key}")
        return body if status == 200 else None

    def put(self, bucket: str, key: str, body: bytes) -> None:
        assert self.request("PUT", f"/{bucket}/{key}", body)[0] == 200

    def keys(self, bucket: str) -> list[str]:
        import xml.etree.ElementTree as xml

        tree = xml.fromstring(self.request("GET", f"/{bucket}?list-type=2&max-keys=1000")[1])
        return [element.text or "" for element in tree.iter() if element.tag.endswith("}Key")]

    def proxy(self) -> "Proxy":
        return Proxy(self.port)


def environment(port: int) -> dict[str, str]:
    """What obstore needs to know to find the server (or proxy) at `port`."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }


class Proxy:
    """Stands before the server; one connection a request, so that nothing lingers."""

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.fault: Callable[[Seen], str | None] = lambda seen: None
        self.log: list[Seen] = []
        self.drop_conditions = False  # as some S3-compatible stores do
        self.deliver = threading.Event()  # for "late"
        self.closed = threading.Event()

    def __enter__(self) -> "Proxy":
        handler = type("BoundHandler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = False  # closing waits for them
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.closed.set()
        self.deliver.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.port)

    def names(self, *methods: str) -> list[str]:
        """Keys of the requests with one of these methods, in order."""
        return [seen.name for seen in self.log if seen.method in methods]


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, http.client.HTTPException):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _any(self) -> None:
        self.close_connection = True
        parts = urlsplit(self.path)
        name = unquote(parts.path).lstrip("/").partition("/")[2]
        fault = self.proxy.fault(Seen(self.command, name, parts.query, None))
        self.proxy.log.append(Seen(self.command, name, parts.query, fault))
        length = int(self.headers.get("Content-Length", 0))
        if fault == "reset":
            self._reset()
            return
        if fault == "cut":
            self.rfile.read(length // 2)
            self._reset()
            return
        body = self.rfile.read(length)
        if fault == "503":
            self._answer(503, [], BUSY)
        elif fault == "expired":
            self._answer(403, [], EXPIRED)
        elif fault == "partition":
            self._wait_until_client_leaves()
        else:
            if fault == "slow":
                time.sleep(0.5)
            if fault == "late":
                self.proxy.deliver.wait()
            answer = self._forward(body)
            if fault == "lost":
                self._reset()
            else:
                self._answer(*answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection("127.0.0.1", self.proxy.upstream, timeout=30)
        try:
            dropped = {"connection", "if-match", "if-none-match"} if self.proxy.drop_conditions else {"connection"}
            headers = {key: value for key, value in self.headers.items() if key.lower() not in dropped}
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            upstream.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        length = str(len(body))
        for key, value in headers:
            if key.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif key.lower() not in FORGETTABLE:
                self.send_header(key, value)
        self.send_header("Content-Length", length)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.wfile.close()
        self.connection.close()
        self.rfile, self.wfile = io.BytesIO(), io.BytesIO()  # what the base class still closes and flushes

    def _wait_until_client_leaves(self) -> None:
        self.connection.settimeout(0.05)
        while not self.proxy.closed.is_set():
            try:
                if not self.connection.recv(1 << 16):
                    return
            except TimeoutError:
                continue
