"""The watch against real HTTP: every cloud, due and not due, and everything that may answer in a cloud's place."""

import os
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import pytest
from metadata_server import (
    IDLE,
    ITEM,
    NAME_PATH,
    REBALANCE,
    TOKEN_HEADERS,
    TOKEN_PATH,
    USUAL,
    MetadataServer,
    Seen,
    drip,
    due,
    event,
    eventually,
    hang,
    reply,
)

from pitstop.notice import ask as asking
from pitstop.notice import watch as watching

Start = Callable[..., Seen]
NAMES = {"gcp": "Google Cloud", "azure": "Azure", "alibaba": "Alibaba Cloud", "tencent": "Tencent Cloud", "aws": "AWS",
         "volcengine": "Volcengine"}  # fmt: skip
TIMED = ("aws", "alibaba", "tencent", "volcengine")  # they say when, and what they said may stay


def now() -> datetime:
    return datetime.now(timezone.utc)


def in_seconds(seconds: float) -> datetime:
    return now() + timedelta(seconds=seconds)


def polls(server: MetadataServer, number: int) -> None:
    """Waits until the item has been asked for `number` times more."""
    path = ITEM[server.cloud]
    before = server.asked(path)
    eventually(lambda: server.asked(path) >= before + number)


def seconds_left(seen: Seen) -> float:
    """By the only notice."""
    eventually(lambda: seen.notices)
    (notice,) = seen.notices
    assert notice.deadline is not None
    return notice.deadline - time.monotonic()


@pytest.mark.parametrize("cloud", ITEM)
def test_a_notice_comes_once_with_its_deadline(cloud: str, start: Start) -> None:
    half = USUAL[cloud] / 2
    with MetadataServer(cloud) as server:
        server.answers[ITEM[cloud]] = (200, due(cloud, in_seconds(half)))
        seen = start(server)
        assert seconds_left(seen) == pytest.approx(30 if cloud == "gcp" else half, abs=2)
        polls(server, 3)
        seen.watch.stop()
    assert len(seen.notices) == 1
    assert seen.notices[0].stops
    assert seen.notices[0].reason.startswith(NAMES[cloud])
    assert seen.unreachable == []


@pytest.mark.parametrize("cloud", ITEM)
def test_where_nothing_is_due_nothing_is_said(cloud: str, start: Start) -> None:
    with MetadataServer(cloud) as server:
        seen = start(server, patience_seconds=0.0)
        polls(server, 5)
        seen.watch.stop()
    assert (seen.notices, seen.unreachable) == ([], [])


@pytest.mark.parametrize("cloud", ITEM)
def test_nothing_is_asked_for_but_what_is_needed(cloud: str, start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    with MetadataServer(cloud) as server:
        server.answers[ITEM[cloud]] = (200, due(cloud, in_seconds(20)))
        seen = start(server)
        eventually(lambda: seen.notices)
        polls(server, 2)
        seen.watch.stop()
    asked = {(request.method, request.path) for request in server.log}
    extra = {
        "aws": {("PUT", TOKEN_PATH), ("GET", REBALANCE)},
        "alibaba": {("PUT", TOKEN_PATH)},
        "azure": {("GET", NAME_PATH)},
    }
    assert asked == {("GET", ITEM[cloud])} | extra.get(cloud, set())
    needed = {"gcp": ("Metadata-Flavor", "Google"), "azure": ("Metadata", "true")}.get(cloud)
    assert all(request.headers.get(needed[0]) == needed[1] for request in server.log if needed)
    assert server.asked(TOKEN_PATH, "PUT") == (cloud in TOKEN_HEADERS)  # one token serves
    assert capfd.readouterr() == ("", "")


# What may be there instead of the service, or wrong with it


def redirect_to(url: str) -> Callable[..., None]:
    return lambda request: reply(request, 302, "", Location=f"{url}/elsewhere")


BAD = {
    "500": (500, "TRUE"),
    "403": (403, "TRUE"),
    "garbage": (200, "\udcff\udc00\udc01"),
    "html": (200, "<html><body>Sign in to Airport Wi-Fi</body></html>"),
    "json": (200, '{"error": "unauthorized"}'),
    "oversize": (200, " " * 70_000),
    "oversize to the end": lambda request: request.wfile.write(b"HTTP/1.1 200 OK\r\n\r\nTRUE" + b" " * 70_000),
    "no http": lambda request: request.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "short": lambda request: request.wfile.write(
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nConnection: close\r\n\r\nTRUE"
    ),
    "endless": lambda request: request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\nTRUE"),
    "endless chunk": lambda request: request.wfile.write(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFF\r\nTRUE"
    ),
    "reset": lambda request: request.connection.close(),
}


@pytest.mark.parametrize("cloud", ITEM)
@pytest.mark.parametrize("bad", BAD)
def test_what_makes_no_sense_is_no_information(cloud: str, bad: str, start: Start) -> None:
    def answer(request: object) -> None:
        wanted = BAD[bad]
        if callable(wanted):
            request.close_connection = True
            wanted(request)
        else:
            status, body = wanted
            if bad == "oversize":  # what it begins with would be a notice
                body = due(cloud, in_seconds(20)) + body
            reply(request, status, body)

    with MetadataServer(cloud, {ITEM[cloud]: answer, REBALANCE: answer}) as server:
        seen = start(server, patience_seconds=0.05)
        eventually(lambda: seen.unreachable)
        seen.watch.stop()
    assert seen.notices == []
    assert len(seen.unreachable) == 1
    assert NAMES[cloud] in seen.unreachable[0]
    assert server.url in seen.unreachable[0]


@pytest.mark.parametrize("cloud", ITEM)
def test_redirects_are_not_followed(cloud: str, start: Start) -> None:
    with MetadataServer() as target, MetadataServer(cloud) as server:
        target.answers["/elsewhere"] = (200, due(cloud, in_seconds(20)))
        server.answers[ITEM[cloud]] = redirect_to(target.url)
        server.answers[REBALANCE] = redirect_to(target.url)
        seen = start(server, patience_seconds=0.05)
        eventually(lambda: seen.unreachable)
        seen.watch.stop()
        assert server.asked(ITEM[cloud]) > 0
        assert target.log == []
    assert seen.notices == []


def test_a_proxy_is_not_used(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    with MetadataServer() as proxy, MetadataServer("gcp") as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        server.answers[ITEM["gcp"]] = (200, "TRUE")
        seen = start(server)
        eventually(lambda: seen.notices)
        assert proxy.log == []
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, proxy.url)  # and one that is dead by now
    with MetadataServer("gcp", {ITEM["gcp"]: (200, "TRUE")}) as server:
        seen = start(server)
        eventually(lambda: seen.notices)


@pytest.mark.parametrize("data", [b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500, b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 3000])
def test_a_slow_drip_ends_with_the_request_s_time(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "TIMEOUT_SECONDS", 0.3)
    with MetadataServer() as server:
        server.answers["/x"] = drip(server, data)
        began = time.monotonic()
        assert asking.ask(server.url, "GET", "/x", {}) is None
        assert 0.25 < time.monotonic() - began < 1.0


def test_a_head_without_end_is_cut_off() -> None:
    def answer(request: object) -> None:
        request.close_connection = True
        while True:  # until the client leaves
            request.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)

    with MetadataServer(answers={"/x": answer}) as server:
        began = time.monotonic()
        assert asking.ask(server.url, "GET", "/x", {}) is None
        assert time.monotonic() - began < asking.TIMEOUT_SECONDS / 2  # not by the clock


def test_an_answer_in_chunks_is_read() -> None:
    def answer(request: object) -> None:
        request.close_connection = True
        request.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nTR\r\n2\r\nUE\r\n0\r\n\r\n")

    with MetadataServer(answers={"/x": answer}) as server:
        assert asking.ask(server.url, "GET", "/x", {}) == asking.Answer(200, "TRUE")


def test_nobody_listens() -> None:
    with MetadataServer() as server:
        pass
    assert asking.ask(server.url, "GET", "/x", {}) is None


def test_stopping_does_not_wait_for_an_answer(start: Start) -> None:
    """With the real time-out of 2 s, of which several would follow each other."""
    with MetadataServer("aws") as server:
        server.answers[TOKEN_PATH] = hang(server)
        seen = start(server, patience_seconds=0.0)
        eventually(lambda: server.asked(TOKEN_PATH, "PUT"))
        began = time.monotonic()
        seen.watch.stop()
        assert time.monotonic() - began < 3.0
        assert not seen.watch.is_alive()
    assert (seen.notices, seen.unreachable) == ([], [])  # nothing is said any more
    assert len(server.log) == 1


def test_stopping_does_not_wait_for_the_next_question(start: Start) -> None:
    with MetadataServer("aws") as server:
        seen = start(server, every_seconds=60.0)
        eventually(lambda: server.asked(REBALANCE))
        began = time.monotonic()
        seen.watch.stop()
        seen.watch.stop()
        assert time.monotonic() - began < 1.0
        assert not seen.watch.is_alive()


def test_stopping_what_was_never_started() -> None:
    provider = watching.Provider("x", "http://127.0.0.1:1", (), 1.0, 1.0, ())
    watching.Watch(provider, notify=print, unreachable=print).stop()


def test_a_notice_may_stop_the_watch_from_its_own_thread(start: Start) -> None:
    with MetadataServer("gcp", {ITEM["gcp"]: (200, "TRUE")}) as server:
        seen = start(server, every_seconds=60.0)
        seen.watch._notify = lambda notice: seen.watch.stop()
        seen.watch.join(5)
        assert not seen.watch.is_alive()


# Tokens


@pytest.mark.parametrize("cloud", TOKEN_HEADERS)
def test_a_token_that_is_no_longer_known_is_renewed_at_once(cloud: str, start: Start) -> None:
    with MetadataServer(cloud) as server:
        seen = start(server)
        polls(server, 2)
        assert server.asked(TOKEN_PATH, "PUT") == 1
        server.answers[ITEM[cloud]] = (200, due(cloud, in_seconds(20)))
        server.valid.clear()
        eventually(lambda: seen.notices)
        assert server.asked(TOKEN_PATH, "PUT") == 2
        assert len(seen.notices) == 1


@pytest.mark.parametrize("cloud", TOKEN_HEADERS)
def test_a_token_is_renewed_before_it_ends(cloud: str, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    with MetadataServer(cloud) as server:
        server.answers[TOKEN_PATH] = (200, "t")
        server.valid.add("t")
        monkeypatch.setattr(watching, "TOKEN_SECONDS", 0.2)
        start(server)
        eventually(lambda: server.asked(TOKEN_PATH, "PUT") == 3)
        assert server.asked(ITEM[cloud]) > 3


@pytest.mark.parametrize("cloud", TOKEN_HEADERS)
@pytest.mark.parametrize("token", ["", "<html>no</html> no", "a\r\nX: b", "a" * 2000, "é"])
def test_what_is_no_token_is_never_sent(cloud: str, token: str, start: Start) -> None:
    with MetadataServer(cloud, {TOKEN_PATH: (200, token)}) as server:
        seen = start(server, patience_seconds=0.05)
        eventually(lambda: seen.unreachable)
        seen.watch.stop()
    assert {request.path for request in server.log} == {TOKEN_PATH}
    assert ("HttpPutResponseHopLimit" in seen.unreachable[0]) == (cloud == "aws")


def test_tokens_that_are_never_accepted_do_not_make_a_storm(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "RARELY_SECONDS", 60.0)
    with MetadataServer("alibaba", {TOKEN_PATH: (200, "wrong")}) as server:
        seen = start(server, patience_seconds=0.0)
        eventually(lambda: seen.unreachable)
        time.sleep(0.1)
        seen.watch.stop()
    assert [request.method for request in server.log] == ["PUT", "GET", "PUT", "GET"]


# Times


@pytest.mark.parametrize("cloud", TIMED)
def test_an_end_that_never_came_is_no_notice(cloud: str, start: Start) -> None:
    with MetadataServer(cloud) as server:
        server.answers[ITEM[cloud]] = (200, due(cloud, in_seconds(-600)))
        seen = start(server, patience_seconds=0.0)
        polls(server, 3)
        assert (seen.notices, seen.unreachable) == ([], [])
        server.answers[ITEM[cloud]] = (200, due(cloud, in_seconds(50)))  # now it is meant
        assert seconds_left(seen) == pytest.approx(50, abs=2)


@pytest.mark.parametrize("cloud", [*TIMED, "azure"])
def test_an_end_that_is_just_over_is_now(cloud: str, start: Start) -> None:
    with MetadataServer(cloud) as server:
        server.answers[ITEM[cloud]] = (200, due(cloud, in_seconds(-20)))
        assert seconds_left(start(server)) == pytest.approx(0, abs=2)


@pytest.mark.parametrize("cloud", [*TIMED, "azure"])
@pytest.mark.parametrize("year", [9999, 2100])
def test_an_end_absurdly_far_is_the_vendor_s_usual_time(cloud: str, year: int, start: Start) -> None:
    with MetadataServer(cloud) as server:
        server.answers[ITEM[cloud]] = (200, due(cloud, datetime(year, 12, 30, tzinfo=timezone.utc)))
        assert seconds_left(start(server)) == pytest.approx(USUAL[cloud], abs=2)


@pytest.mark.parametrize("cloud", [*TIMED, "azure"])
@pytest.mark.parametrize("wrong_by", [timedelta(hours=1), timedelta(hours=-1), timedelta(days=-20000)])
def test_a_wrong_wall_clock_costs_no_notice(
    cloud: str, wrong_by: timedelta, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "wall_now", lambda: now() + wrong_by)
    with MetadataServer(cloud) as server:
        seen = start(server)
        polls(server, 2)  # nothing is due; then, while we look on, something is
        server.answers[ITEM[cloud]] = (200, due(cloud, in_seconds(20)))
        assert seconds_left(seen) == pytest.approx(USUAL[cloud], abs=2)


def test_the_first_and_the_last_second_there_are(start: Start) -> None:
    for body in ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"):
        with MetadataServer("volcengine", {ITEM["volcengine"]: (200, body)}) as server:
            seen = start(server)
            polls(server, 2)
            assert len(seen.notices) == body.startswith("9")


def test_tencent_counts_in_utc_plus_8(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "wall_now", lambda: datetime(2025, 12, 31, 23, 59, 30, tzinfo=timezone.utc))
    with MetadataServer("tencent", {ITEM["tencent"]: (200, "2026-01-01 08:00:15\n")}) as server:
        assert seconds_left(start(server)) == pytest.approx(45, abs=2)


def test_another_time_is_another_notice(start: Start) -> None:
    with MetadataServer("aws", {ITEM["aws"]: (200, due("aws", in_seconds(100)))}) as server:
        seen = start(server)
        eventually(lambda: len(seen.notices) == 1)
        server.answers[ITEM["aws"]] = (200, due("aws", in_seconds(50)))
        eventually(lambda: len(seen.notices) == 2)
        polls(server, 3)
    assert len(seen.notices) == 2


# What only one cloud has


def test_aws_hibernates_at_once(start: Start) -> None:
    body = due("aws", in_seconds(100)).replace("terminate", "hibernate")
    with MetadataServer("aws", {ITEM["aws"]: (200, body)}) as server:
        assert seconds_left(start(server)) == pytest.approx(0, abs=2)


def test_aws_s_recommendation_is_a_warning_only(start: Start) -> None:
    with MetadataServer("aws", {REBALANCE: (200, '{"noticeTime": "2020-10-27T08:22:00Z"}')}) as server:
        seen = start(server)
        eventually(lambda: seen.notices)
        (warning,) = seen.notices
        assert (warning.stops, warning.deadline) == (False, None)
        server.answers[ITEM["aws"]] = (200, due("aws", in_seconds(90)))
        eventually(lambda: len(seen.notices) == 2)
        polls(server, 2)
    assert [notice.stops for notice in seen.notices] == [False, True]


def events(*given: dict[str, object]) -> tuple[int, str]:
    import json

    return 200, json.dumps({"DocumentIncarnation": 7, "Events": list(given)})


@pytest.mark.parametrize(
    "changes",
    [
        {"Resources": ["other-vm"]}, {"Resources": []}, {"Resources": ["this-vm-2", "xthis-vm"]},
        {"EventType": "Reboot"}, {"EventType": "Freeze"}, {"EventType": "Redeploy"}, {"EventType": "Terminate"},
        {"EventType": ["Preempt"]}, {"EventStatus": "Completed"}, {"EventStatus": "Canceled"}, {"EventStatus": None},
    ],
)  # fmt: skip
def test_azure_tells_of_others_too(changes: dict[str, object], start: Start) -> None:
    with MetadataServer("azure", {ITEM["azure"]: events(event(**changes))}) as server:
        seen = start(server, patience_seconds=0.0)
        polls(server, 3)
        assert (seen.notices, seen.unreachable) == ([], [])
        server.answers[ITEM["azure"]] = events(event(**changes), event(EventId="ours"))
        eventually(lambda: seen.notices)


def test_azure_has_begun_when_the_time_is_blank(start: Start) -> None:
    with MetadataServer("azure", {ITEM["azure"]: events(event(EventStatus="Started", NotBefore=""))}) as server:
        assert seconds_left(start(server)) == pytest.approx(0, abs=2)


def test_azure_s_event_is_one_from_its_plan_to_its_start(start: Start) -> None:
    with MetadataServer("azure") as server:
        server.answers[ITEM["azure"]] = (200, due("azure", in_seconds(20)))
        seen = start(server)
        eventually(lambda: seen.notices)
        server.answers[ITEM["azure"]] = events(event(EventStatus="Started"))
        polls(server, 3)
    assert len(seen.notices) == 1


def test_azure_s_past_time_is_the_usual_time(start: Start) -> None:
    """An event that is over leaves the list: so it is not over, and the clock is wrong."""
    with MetadataServer("azure") as server:
        server.answers[ITEM["azure"]] = (200, due("azure", in_seconds(-4000)))
        assert seconds_left(start(server)) == pytest.approx(30, abs=2)


def test_azure_s_events_wait_for_this_machine_s_name(start: Start) -> None:
    with MetadataServer("azure", {ITEM["azure"]: events(event()), NAME_PATH: (200, "<html>")}) as server:
        seen = start(server)
        polls(server, 3)
        assert seen.notices == []
        server.answers[NAME_PATH] = (200, "this-vm")
        eventually(lambda: seen.notices)


def test_azure_may_take_its_time_with_the_first_answer(start: Start) -> None:
    from pitstop import notice

    azure = notice.find("azure")
    assert azure is not None
    assert azure.patience_seconds > 120
    with MetadataServer("azure", {ITEM["azure"]: (500, "")}) as server:
        seen = start(server, patience_seconds=azure.patience_seconds)
        polls(server, 5)
        assert seen.unreachable == []
        server.answers[ITEM["azure"]] = events(event())
        eventually(lambda: seen.notices)


@pytest.mark.parametrize("page", ["\udcff", "x" * 70_000])
def test_the_page_that_comes_with_a_404_does_not_matter(page: str, start: Start) -> None:
    with MetadataServer("tencent", {ITEM["tencent"]: (404, page)}) as server:
        seen = start(server, patience_seconds=0.0)
        polls(server, 3)
        seen.watch.stop()
    assert seen.unreachable == []


@pytest.mark.parametrize("cloud", ["gcp", "azure"])
def test_a_missing_item_is_no_answer_of_google_and_azure(cloud: str, start: Start) -> None:
    with MetadataServer(cloud, {ITEM[cloud]: (404, "")}) as server:
        seen = start(server, patience_seconds=0.05)
        eventually(lambda: seen.unreachable)


# Silence


def test_silence_is_said_once_and_then_asked_about_rarely(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "RARELY_SECONDS", 0.25)
    with MetadataServer("gcp", {ITEM["gcp"]: (500, "")}) as server:
        seen = start(server, patience_seconds=0.05)
        eventually(lambda: seen.unreachable)
        before = server.asked(ITEM["gcp"])
        time.sleep(0.6)
        assert 1 <= server.asked(ITEM["gcp"]) - before <= 4
        server.answers[ITEM["gcp"]] = IDLE["gcp"]  # it begins to answer
        polls(server, 10)  # and is asked often again
        server.answers[ITEM["gcp"]] = (200, "TRUE")
        eventually(lambda: seen.notices)
    assert len(seen.unreachable) == 1


def test_silence_after_an_answer_is_not_said(start: Start) -> None:
    with MetadataServer("gcp") as server:
        seen = start(server, patience_seconds=0.05)
        polls(server, 2)
        server.answers[ITEM["gcp"]] = (500, "")
        polls(server, 20)
        server.answers[ITEM["gcp"]] = (200, "TRUE")
        eventually(lambda: seen.notices)
    assert seen.unreachable == []


def test_threads_and_sockets_do_not_pile_up(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def ours() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "pitstop-notice"]

    monkeypatch.setattr(asking, "TIMEOUT_SECONDS", 0.05)
    with MetadataServer() as other:
        pass
    descriptors = len(os.listdir("/proc/self/fd"))
    for cloud in [*ITEM, *ITEM]:
        with MetadataServer(cloud) as server:
            server.answers[REBALANCE] = hang(server)
            seen = start(server)
            polls(server, 3)
            assert len(ours()) == 1
            assert ours()[0].daemon
            seen.watch.stop()
        assert ours() == []
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert other.log == []
