"""One rank rings, the others hear; nobody hears an attempt before, or himself."""

import threading

import pytest
from torch.distributed import TCPStore

from pitstop.session.alarm import Alarm


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """As the group's first rank, or torchrun's agent, keeps it."""
    kept = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(kept.port))
    return kept


def listening(heard: threading.Event, notes: list[dict[str, object]]) -> Alarm:
    def hear(note: dict[str, object]) -> None:
        notes.append(note)
        heard.set()
        alarm._stopped.set()  # where a process would end

    alarm = Alarm(hear)
    alarm.start()
    return alarm


def test_the_others_hear(store: TCPStore) -> None:
    heard, own = threading.Event(), threading.Event()
    notes: list[dict[str, object]] = []
    other, mine = listening(heard, notes), listening(own, [])
    mine.ring({"from": 20, "text": "größer"})
    assert heard.is_set(), "it returns when they have heard"
    assert notes == [{"from": 20, "text": "größer"}]
    assert not own.is_set()
    for alarm in (other, mine):
        alarm.stop()
        assert not alarm.is_alive()


def test_an_attempt_of_torchruns_before_is_over(store: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its agent keeps the store over its restarts."""
    before = Alarm(lambda note: None)
    before.ring({"from": 20})
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    heard = threading.Event()
    alarm = listening(heard, [])
    assert not heard.wait(1.2)
    alarm.stop()


def test_a_store_that_is_gone_is_no_alarm(store: TCPStore) -> None:
    """The ranks part, and rank 0 first."""
    heard = threading.Event()
    alarm = Alarm(lambda note: heard.set())
    alarm._store = Gone()  # type: ignore[assignment]
    alarm.start()
    alarm.join(5)
    assert not alarm.is_alive()
    assert not heard.is_set()
    alarm.ring({"from": 2})


class Gone:
    def check(self, keys: list[str]) -> bool:
        raise RuntimeError("Connection reset by peer")

    def set(self, key: str, value: str) -> None:
        raise RuntimeError("Connection reset by peer")
