"""Bodies that no vendor documents are no information, whatever they are."""

import json
import random
from collections.abc import Callable, Sequence

import pytest
from metadata_server import event

from pitstop.notice import answers

UTC = answers.utc("it ends")
READERS: dict[str, tuple[Callable[[str], Sequence[answers.Due]], str]] = {  # with a body that is right
    "aws_action": (answers.aws_action, '{"action": "stop", "time": "2026-01-01T00:00:00Z"}'),
    "aws_rebalance": (answers.aws_rebalance, '{"noticeTime": "2026-01-01T00:00:00Z"}'),
    "gcp": (answers.gcp, "TRUE"),
    "azure": (answers.azure, json.dumps({"DocumentIncarnation": 1, "Events": [event()]})),
    "utc": (UTC, "2026-01-01T00:00:00Z"),
    "tencent": (answers.tencent, "2026-01-01 08:00:00"),
}
WRONG = [
    "<html><body>Sign in to Airport Wi-Fi</body></html>", "true", "null", "0", "[]", "{}", '"TRUE"', "TRUE FALSE",
    "TRUE\x00",
    "[" * 60_000, '{"a":' * 10_000, "9" * 60_000, '{"action": "terminate"}', '{"time": "2026-01-01T00:00:00Z"}',
    '{"action": "dance", "time": "2026-01-01T00:00:00Z"}', '{"action": ["stop"], "time": "2026-01-01T00:00:00Z"}',
    '{"action": "stop", "time": 5}', '{"action": "stop", "time": "tomorrow"}', '{"noticeTime": {}}',
    '{"action": "stop", "time": "2026-13-01T00:00:00Z"}', '{"action": "stop", "time": "2026-01-01T00:00:00"}',
    "2026-01-01", "2026-01-01T00:00:00", "2026-02-30T00:00:00Z", "2026-02-30 00:00:00", "0000-01-01T00:00:00Z",
    "2026-01-01T00:00:00Z and more", "2026-01-01T00:00:00+99:99", "\u0662026-01-01T00:00:00Z",
    "\u0662026-01-01 00:00:00", "-1", "nan",
    '{"Events": []}', '{"DocumentIncarnation": "1", "Events": []}', '{"DocumentIncarnation": 1, "Events": {}}',
    '{"DocumentIncarnation": 1, "Events": ["Preempt"]}', '{"DocumentIncarnation": 1, "Events": null}',
]  # fmt: skip
WRONG_EVENTS = [
    {"EventId": None}, {"EventId": "a b"}, {"EventId": "x" * 65}, {"Resources": "this-vm"}, {"Resources": [1]},
    {"Resources": None}, {"NotBefore": None}, {"NotBefore": "2026-01-01T00:00:00Z"}, {"NotBefore": " "},
    {"NotBefore": "Mon, 41 Sep 2016 18:29:47 GMT"}, {"NotBefore": "Mon, 19 Foo 2016 18:29:47 GMT"},
]  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_what_is_right_is_read(name: str) -> None:
    read, right = READERS[name]
    assert len(read(right)) == 1


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("body", WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_refused(name: str, body: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        READERS[name][0](body)


@pytest.mark.parametrize("changes", WRONG_EVENTS, ids=range(len(WRONG_EVENTS)))
def test_an_event_of_azure_of_another_form_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        answers.azure(json.dumps({"DocumentIncarnation": 1, "Events": [event(**changes)]}))


@pytest.mark.parametrize("name", READERS)
def test_garbled_bodies_do_nothing_worse_than_that(name: str) -> None:
    read, right = READERS[name]
    generator = random.Random(f"garble {name}")
    refused = 0
    for _ in range(2000):
        body = list(right)
        for _ in range(generator.randint(1, 4)):
            place = generator.randrange(len(body) + 1)
            body[place : place + generator.randint(0, 3)] = generator.choice(
                ["", "0", "9", '"', "}", "\\u0000", "Z", "é"]
            )
        try:
            assert len(read("".join(body))) <= 1
        except ValueError:
            refused += 1
    assert refused > 1000


@pytest.mark.parametrize("body", ["2026-01-01T00:00:00Z", "2026-01-01T08:00:00+08:00", "2025-12-31T19:00:00-05:00\n"])
def test_a_time_means_what_its_zone_says(body: str) -> None:
    (due,) = UTC(body)
    assert due.at is not None
    assert due.at.timestamp() == 1767225600


def test_a_time_of_tencent_is_utc_plus_8() -> None:
    (due,) = answers.tencent("2026-01-01 08:00:00")
    assert due.at is not None
    assert due.at.timestamp() == 1767225600


def test_an_empty_body_says_that_nothing_is_due_where_a_time_is_expected() -> None:
    assert UTC("") == UTC("\n") == []
