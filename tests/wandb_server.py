"""A W&B server as small as wandb-core lets it be: it keeps what it is sent, counts rows, and fails when told to.

It answers the GraphQL operations of a run and of an artifact, `file_stream` (lines at an offset, as W&B's own does) and
the PUT of files; a key that is not KEY gets 401. `server.fault` is "", "500", "hang" (reads and never answers), "reset"
(drops the connection), "logged out" (nobody knows who asks: an anonymous viewer, who may do nothing) or "refuses rows"
(file_stream answers 403, for good); `server.down()` and `server.up()` make the port refuse and take again. Use it as a
context manager.
"""

import base64
import json
import socket
import struct
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789abcdef0123456789abcdef01234567"  # of the right form, of nobody


@dataclass
class StoredRun:
    """What the server knows of one run."""

    history: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    upserts: list[dict[str, Any]] = field(default_factory=list)  # the variables that were given
    files: dict[str, bytes] = field(default_factory=dict)
    ends: list[dict[str, Any]] = field(default_factory=list)  # file_stream's words on preempting and completion
    rewritten: int = 0  # lines that came again, and were others than before
    gaps: int = 0  # requests that left lines out

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.history]

    def put(self, lines: list[str], offset: int, content: list[str]) -> None:
        self.gaps += offset > len(lines)
        for number, line in enumerate(content, offset):
            if number < len(lines):
                self.rewritten += json.loads(lines[number]) != json.loads(line)
                lines[number] = line
            else:
                lines.append(line)

    def stream(self, body: dict[str, Any]) -> None:
        """One request of file_stream."""
        files = body.get("files") or {}
        if part := files.get("wandb-history.jsonl"):
            self.put(self.history, part["offset"], part["content"])
        if part := files.get("wandb-events.jsonl"):
            self.put(self.events, part["offset"], part["content"])
        if part := files.get("wandb-summary.json"):
            self.summary = json.loads(part["content"][-1])
        if end := {key: body[key] for key in ("preempting", "complete", "exitcode") if body.get(key) is not None}:
            self.ends.append(end)


class WandbServer:
    """See the module. Attributes: runs (by (project, id)), received (every body), operations (counted by name)."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str], StoredRun] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.received: list[bytes] = []
        self.operations: Counter[str] = Counter()
        self.requests = 0
        self.errors: list[str] = []  # of this server: defects of the test
        self.fault = ""
        self.lock = threading.Lock()
        self.over = threading.Event()
        self._port = 0
        self.up()

    def up(self) -> None:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                answer(owner, self)

            do_PUT = do_GET = do_POST

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                error = sys.exc_info()[1]
                if not isinstance(error, OSError):  # else a client that was killed
                    owner.errors.append(f"{type(error).__name__}: {error}")

        self._http = Server(("127.0.0.1", self._port), Handler)
        self._port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def down(self) -> None:
        """Refuses connections, and answers nothing on those that are open."""
        self.fault = "reset"
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that has an account here."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}

    def run(self, project: str = "pitstop") -> StoredRun:
        """The only run there."""
        ((where, found),) = self.runs.items()
        assert where[0] == project
        return found

    def __enter__(self) -> "WandbServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        if self._thread.is_alive():
            self.down()
        assert self.errors == [], self.errors


def answer(server: WandbServer, request: BaseHTTPRequestHandler) -> None:
    """One request, or the fault of the day."""
    body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
    fault = server.fault
    with server.lock:
        server.requests += 1
        server.received.append(request.path.encode() + b"\n" + body)
    if fault == "hang":
        while not server.over.wait(0.1) and server.fault == "hang":
            pass
    if fault in ("hang", "reset"):
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.close_connection = True
        return
    reply: Any = {"errors": [{"message": fault or "user is not logged in"}]}
    code = refusal(request, fault)
    if code == 200:
        with server.lock:
            reply = answers(server, request, body)
    data = json.dumps(reply).encode()
    request.send_response(code)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data)


def refusal(request: BaseHTTPRequestHandler, fault: str) -> int:
    """The status of the answer, if it is one; 200: none. Files are put without a key, as to W&B's own storage."""
    if fault == "500":
        return 500
    words = request.headers.get("Authorization", "").split() or [""]
    if not request.path.startswith("/put/") and base64.b64decode(words[-1]) != f"api:{KEY}".encode():
        return 401
    return 403 if fault in ("logged out", "refuses rows") and request.path.endswith("file_stream") else 200


def answers(server: WandbServer, request: BaseHTTPRequestHandler, body: bytes) -> Any:
    if request.path == "/graphql":
        question = json.loads(body)
        name = question.get("operationName") or "?"
        server.operations[name] += 1
        if server.fault == "logged out":
            nobody = {"Viewer": {"viewer": None}, "RunResumeStatus": {"model": None}}
            return {"data": nobody[name]} if name in nobody else {"errors": [{"message": "permission denied"}]}
        data = graphql(server, name, question.get("variables") or {})
        return {"errors": [{"message": f"{name} is unknown here"}]} if data is None else {"data": data}
    parts = request.path.strip("/").split("/")
    if parts[-1] == "file_stream":
        server.runs[parts[2], parts[3]].stream(json.loads(body))
    elif parts[0] == "put" and parts[1] != "artifact":
        server.runs[parts[1], parts[2]].files["/".join(parts[3:])] = body
    return {}


def graphql(server: WandbServer, name: str, given: dict[str, Any]) -> dict[str, Any] | None:
    if name == "Viewer":
        viewer = {"id": "1", "entity": "me", "username": "me", "email": "me@here", "flags": "{}", "admin": False}
        return {"viewer": {**viewer, "teams": {"edges": []}}}
    if name == "ServerFeaturesQuery":
        return {"serverInfo": {"features": []}}
    if name == "RunResumeStatus":
        stored = server.runs.get((given["project"], given["name"]))
        return {"model": {"id": "m", "name": given["project"], "entity": ME, "bucket": stored and tail(given, stored)}}
    if name == "UpsertBucket":
        stored = server.runs.setdefault((given["project"], given["name"]), StoredRun())
        stored.upserts.append(given)
        stored.config |= json.loads(given.get("config") or "{}")
        return {"upsertBucket": {"bucket": bucket(given, stored), "inserted": True}}
    if name == "CreateRunFiles":
        urls = [
            {"name": file, "uploadUrl": f"{server.url}/put/{given['project']}/{given['run']}/{file}"}
            for file in given["files"]
        ]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": urls}}
    return artifact(server, name, given)


ME = {"id": "e", "name": "me"}


def bucket(given: dict[str, Any], stored: StoredRun) -> dict[str, Any]:
    shown = {"id": base64.b64encode(given["name"].encode()).decode(), "name": given["name"], "displayName": None}
    project = {"id": "p", "name": given["project"], "entity": ME}
    about = {"description": None, "config": json.dumps(stored.config), "sweepName": None, "project": project}
    return shown | about | {"historyLineCount": len(stored.history)}


def tail(given: dict[str, Any], stored: StoredRun) -> dict[str, Any]:
    """What a client that resumes is told."""
    lines = {
        "logLineCount": 0,
        "eventsLineCount": len(stored.events),
        "historyTail": json.dumps(stored.history[-1:]),
        "eventsTail": json.dumps(stored.events[-1:]),
        "summaryMetrics": json.dumps(stored.summary),
    }
    return bucket(given, stored) | lines | {"tags": [], "notes": None, "wandbConfig": json.dumps({"t": 1})}


def artifact(server: WandbServer, name: str, given: dict[str, Any]) -> dict[str, Any] | None:
    upload = {"uploadUrl": f"{server.url}/put/artifact/x", "uploadHeaders": []}
    if name == "CreateArtifact":
        server.artifacts.append(given["input"])
        sequence = {"latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": "a", "state": "PENDING", "artifactSequence": sequence}}}
    if name in ("CreateArtifactManifest", "UpdateArtifactManifest"):
        manifest = {"artifactManifest": {"id": "f", "file": {"id": "g", **upload}}}
        return {name[0].lower() + name[1:]: manifest}
    if name == "CreateArtifactFiles":
        nodes = [
            {"node": {"storagePath": None, "uploadMultipartUrls": None, "artifact": {"id": "a"}, **upload}}
            for _ in given.get("artifactFiles") or given["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": nodes}}}
    if name == "CommitArtifact":
        server.artifacts[-1]["committed"] = True
        return {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}}
    return None
