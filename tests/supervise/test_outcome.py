"""What follows from the end of an attempt, and when nobody tries again."""

import json
import signal
from pathlib import Path

import pytest

from pitstop.supervise.outcome import (
    FIRST_WAIT_SECONDS,
    LONGEST_WAIT_SECONDS,
    GiveUp,
    Outcome,
    Patience,
    judge,
    newest_step,
    read_outcome,
)

TERM, INT, USR1 = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1


def test_the_word_is_read(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    assert read_outcome(path) == Outcome()
    path.write_text(json.dumps({"run": "/runs/r", "pid": 7}))
    assert read_outcome(path) == Outcome(run=Path("/runs/r"))
    path.write_text(json.dumps({"run": "/runs/r", "pid": 7, "newest": -1}))
    assert read_outcome(path) == Outcome(run=Path("/runs/r"), newest=-1)
    record = {
        "run": "/runs/r",
        "pid": 7,
        "state": "stopped",
        "restart": "now",
        "reason": "x",
        "exit_code": 75,
        "step": 4,
    }
    path.write_text(json.dumps(record))
    assert read_outcome(path) == Outcome(Path("/runs/r"), "now", "x", 75)


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", '{"run": 3, "restart": "soon", "exit_code": "x", "newest": "s"}']
)
def test_garbage_is_no_word(text: str, tmp_path: Path) -> None:
    (tmp_path / "outcome.json").write_text(text)
    assert read_outcome(tmp_path / "outcome.json").restart == ""
    assert read_outcome(tmp_path / "outcome.json").run is None
    assert read_outcome(tmp_path / "outcome.json").newest is None


def test_a_word_without_a_code(tmp_path: Path) -> None:
    for restart, code in (("never", 0), ("person", 76), ("now", 1)):
        (tmp_path / "outcome.json").write_text(json.dumps({"restart": restart}))
        assert read_outcome(tmp_path / "outcome.json").exit_code == code


@pytest.mark.parametrize(
    ("word", "code", "passed", "expected", "state", "again"),
    [
        (("never", 0), 1, [], 0, "finished", False),
        (("never", 0), -11, [TERM], 0, "finished", False),  # a crash after the end changes nothing
        (("now", 75), 1, [TERM], 75, "stopped", False),
        (("now", 75), 1, [], 75, "stopped", False),  # a cloud's notice, --max_hours, the lock
        (("person", 76), 1, [TERM], 76, "stopped", False),
        (("person", 2), 1, [], 2, "failed", False),
        (("now", 1), 1, [], 1, "failed", True),
        (("person", 1), 1, [], 1, "failed", False),
        (("now", 1), 1, [TERM], 75, "stopped", False),
        ((), -9, [], 1, "failed", True),
        ((), 1, [], 1, "failed", True),
        ((), 143, [], 1, "failed", True),
        ((), -9, [USR1], 75, "stopped", False),
        ((), -9, [TERM, INT], 76, "stopped", False),
        ((), 0, [], 0, "finished", False),
        ((), 2, [], 2, "failed", False),
        ((), 75, [], 75, "stopped", False),
        ((), 76, [], 76, "stopped", False),
    ],
)
def test_verdicts(
    word: tuple[str, int] | tuple[()], code: int, passed: list[int], expected: int, state: str, again: bool
) -> None:
    outcome = Outcome(restart=word[0], exit_code=word[1]) if word else Outcome()
    verdict = judge(outcome, code, passed)
    assert (verdict.code, verdict.state, verdict.again) == (expected, state, again)


def checkpoint(run: Path, step: int) -> None:
    (run / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)


def test_the_newest_step_is_by_number(tmp_path: Path) -> None:
    assert newest_step(None) is None
    assert newest_step(tmp_path) is None
    for step in (9, 120, 100000000):
        checkpoint(tmp_path, step)
    for name in ("bad-step-99999999", ".tmp-step-00000500-3", "step-x", "loading.json"):
        (tmp_path / "checkpoints" / name).mkdir()
    assert newest_step(tmp_path) == 100000000


def test_it_waits_longer_and_after_progress_anew(tmp_path: Path) -> None:
    patience = Patience(restarts=50)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "loading.json").touch()  # failures that the recipe counts: see below
    waits = [patience.after_failure(tmp_path) for _ in range(12)]
    assert waits[:4] == [FIRST_WAIT_SECONDS, 2, 4, 8]
    assert waits[-1] == LONGEST_WAIT_SECONDS == 300
    checkpoint(tmp_path, 3)
    assert patience.after_failure(tmp_path) == FIRST_WAIT_SECONDS


def test_two_failures_in_a_row_without_progress_are_enough(tmp_path: Path) -> None:
    patience = Patience(restarts=50)
    for step in (1, 2):
        checkpoint(tmp_path, step)
        patience.after_failure(tmp_path)
        patience.after_failure(tmp_path)  # once in vain
    checkpoint(tmp_path, 3)
    patience.after_failure(tmp_path)
    patience.after_failure(tmp_path)
    with pytest.raises(GiveUp, match="after step 3"):
        patience.after_failure(tmp_path)


def test_checkpoints_from_before_are_no_progress(tmp_path: Path) -> None:
    """The first attempt says where it began: two at one step are enough then too."""
    patience = Patience(restarts=50)
    checkpoint(tmp_path, 5)
    patience.after_failure(tmp_path, 5)
    with pytest.raises(GiveUp, match="after step 5"):
        patience.after_failure(tmp_path, 5)
    patience = Patience(restarts=50)
    patience.after_failure(tmp_path, -1)  # 5 was its own
    patience.after_failure(tmp_path, 5)
    checkpoint(tmp_path, 6)
    assert patience.after_failure(tmp_path, 5) == FIRST_WAIT_SECONDS
    patience.after_failure(tmp_path, None)  # died before it could say: at what the one before left
    with pytest.raises(GiveUp, match="after step 6"):
        patience.after_failure(tmp_path, 6)


def test_before_the_first_checkpoint_two_are_enough(tmp_path: Path) -> None:
    patience = Patience(restarts=50)
    patience.after_failure(tmp_path, -1)
    with pytest.raises(GiveUp, match="before the first checkpoint"):
        patience.after_failure(tmp_path, -1)


def test_a_checkpoint_whose_loading_kills_is_the_recipes_to_count(tmp_path: Path) -> None:
    """After two such ends the recipe sets it aside: the third start must come."""
    patience = Patience(restarts=50)
    checkpoint(tmp_path, 5)
    checkpoint(tmp_path, 9)
    patience.after_failure(tmp_path)
    (tmp_path / "checkpoints" / "loading.json").touch()
    patience.after_failure(tmp_path)
    patience.after_failure(tmp_path)
    (tmp_path / "checkpoints" / "loading.json").unlink()
    (tmp_path / "checkpoints" / "step-00000009").rename(tmp_path / "checkpoints" / "bad-step-00000009")
    patience.after_failure(tmp_path)
    patience.after_failure(tmp_path)
    with pytest.raises(GiveUp, match="after step 5"):
        patience.after_failure(tmp_path)


def test_restarts_are_counted() -> None:
    with pytest.raises(GiveUp, match="--restarts"):
        Patience(restarts=0).after_failure(None)
