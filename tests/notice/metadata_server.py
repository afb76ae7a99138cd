"""A metadata service of any cloud on 127.0.0.1: real HTTP, answers as the test wants them, requests written down."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from pitstop import notice

TOKEN_PATH = "/latest/api/token"
NAME_PATH = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
TOKEN_HEADERS = {"aws": "X-aws-ec2-metadata-token", "alibaba": "X-aliyun-ecs-metadata-token"}
ITEM = {
    "aws": "/latest/meta-data/spot/instance-action",
    "gcp": "/computeMetadata/v1/instance/preempted",
    "azure": "/metadata/scheduledevents?api-version=2020-07-01",
    "alibaba": "/latest/meta-data/instance/spot/termination-time",
    "tencent": "/latest/meta-data/spot/termination-time",
    "volcengine": "/latest/spot_instance_termination_time",
}
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
IDLE = {"gcp": (200, "FALSE"), "azure": (200, '{"DocumentIncarnation":1,"Events":[]}')}  # the others: 404
USUAL = {"aws": 120, "gcp": 30, "azure": 30, "alibaba": 300, "tencent": 120, "volcengine": 300}

Answer = tuple[int, str] | Callable[[BaseHTTPRequestHandler], None]


def event(**changes: Any) -> dict[str, Any]:
    """An event of Azure as its documentation shows it."""
    return {
        "EventId": "f020ba2e-3bc0-4c40-a10b-86575a9eabd5",
        "EventStatus": "Scheduled",
        "EventType": "Preempt",
        "ResourceType": "VirtualMachine",
        "Resources": ["other-vm", "this-vm"],
        "NotBefore": "",
        "Description": "",
        "EventSource": "Platform",
    } | changes


def due(cloud: str, at: datetime) -> str:
    """The body with which `cloud` says that the machine ends at `at`: from the documents, not from the code."""
    utc = at.astimezone(timezone.utc)
    if cloud == "aws":
        return f'{{"action": "terminate", "time": "{utc:%Y-%m-%dT%H:%M:%SZ}"}}'
    if cloud == "gcp":
        return "TRUE"
    if cloud == "azure":
        events = [event(NotBefore=format_datetime(utc, usegmt=True))]
        return json.dumps({"DocumentIncarnation": 2, "Events": events})
    if cloud == "tencent":
        return f"{utc + timedelta(hours=8):%Y-%m-%d %H:%M:%S}"
    return f"{utc:%Y-%m-%dT%H:%M:%SZ}"


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class MetadataServer:
    """`answers` by path, else 404. As `cloud` aws or alibaba, it answers only for a token that is still `valid`."""

    cloud: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)
    log: list[Request] = field(default_factory=list)
    valid: set[str] = field(default_factory=set)
    gone: threading.Event = field(default_factory=threading.Event)  # set when the server closes: hanging answers end

    def __enter__(self) -> "MetadataServer":
        if self.cloud:
            self.answers.setdefault(ITEM[self.cloud], IDLE.get(self.cloud, (404, "not found")))
        if self.cloud == "azure":
            self.answers.setdefault(NAME_PATH, (200, "This-VM"))
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.handle(self)

            do_PUT = do_CONNECT = do_POST = do_GET

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = False  # so that closing waits for them

            def handle_error(self, *args: object) -> None:
                pass  # the client left, as it should

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gone.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        self.log.append(Request(request.command, request.path, dict(request.headers.items())))
        token = TOKEN_HEADERS.get(self.cloud)
        if token and request.path != TOKEN_PATH and request.headers.get(token) not in self.valid:
            reply(request, 401, "")
            return
        if token and request.path == TOKEN_PATH and request.path not in self.answers:
            right = request.command == "PUT" and request.headers.get(f"{token}-ttl-seconds") == "21600"
            self.valid.add(new := f"secret-{len(self.log)}==")
            reply(request, 200 if right else 400, new)
            return
        answer = self.answers.get(request.path, (404, "not found"))
        if callable(answer):
            answer(request)
        else:
            reply(request, *answer)

    def asked(self, path: str, method: str = "GET") -> int:
        """How often."""
        return sum(request.path == path and request.method == method for request in self.log)


@dataclass
class Seen:
    """What a watch said."""

    notices: list[notice.Notice] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)
    watch: notice.Watch = field(init=False)


def reply(request: BaseHTTPRequestHandler, status: int, body: str, **headers: str) -> None:
    data = body.encode("utf-8", "surrogateescape")
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data)


def drip(server: MetadataServer, data: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    """Sends `data` byte by byte: each comes well within any time-out for one read."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        for byte in data:
            if server.gone.wait(0.05):
                break
            request.wfile.write(bytes([byte]))
        request.close_connection = True

    return answer


def hang(server: MetadataServer) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        server.gone.wait(30)
        request.close_connection = True

    return answer


def eventually(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Waits until `condition`, or fails."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.003)
