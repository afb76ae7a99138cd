"""Writing behind the training: one at a time, what became of it is told once, and nothing is lost with the thread."""

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pitstop import checkpoint
from pitstop.checkpoint import Poisoned, Writer


def nothing() -> None:
    pass


@pytest.fixture
def held() -> Iterator[tuple[Callable[[], None], threading.Event]]:
    """A `before` that stands until the event is set."""
    go = threading.Event()

    def wait() -> None:
        assert go.wait(20)

    yield wait, go
    go.set()


def live(value: float = 1.0) -> dict[str, Tensor]:
    return {"model/w": torch.full((4, 3), value), "model/steps": torch.tensor(7)}


def saved(writer: Writer, step: int, tensors: dict[str, Tensor], before: Callable[[], object] = nothing) -> object:
    writer.begin(step, tensors, set(), {"state": {}}, before)
    return writer.take(wait=True)


def test_what_it_writes_verifies(tmp_path: Path) -> None:
    writer = Writer(tmp_path, keep=2)
    writer.prepare(live())
    for step in (1, 2, 3):
        result = saved(writer, step, live(float(step)))
        assert (result.step, result.error) == (step, None)
        files = [path.stat().st_size for path in (tmp_path / f"step-{step:08d}").iterdir()]
        assert result.bytes == sum(files)
        assert result.write_seconds > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    found = checkpoint.verify(tmp_path / "step-00000003")
    assert found.tensors.keys() == live().keys()
    assert torch.equal(found.tensors["model/w"], live(3.0)["model/w"])


def test_training_goes_on_meanwhile(tmp_path: Path, held: tuple[Callable[[], None], threading.Event]) -> None:
    """The checkpoint holds what was there when it began."""
    before, go = held
    tensors, writer = live(1.0), Writer(tmp_path, keep=2)
    writer.begin(5, tensors, set(), {}, before)
    assert writer.busy
    assert writer.take() is None
    tensors["model/w"].fill_(9.0)
    assert list(tmp_path.iterdir()) == []
    go.set()
    result = writer.take(wait=True)
    assert result is not None
    assert result.error is None
    assert not writer.busy
    assert writer.take() is None, "told twice"
    assert writer.take(wait=True) is None
    assert torch.equal(checkpoint.verify(tmp_path / "step-00000005").tensors["model/w"], live(1.0)["model/w"])


def test_one_at_a_time(tmp_path: Path, held: tuple[Callable[[], None], threading.Event]) -> None:
    before, go = held
    writer = Writer(tmp_path, keep=2)
    writer.begin(1, live(), set(), {}, before)
    with pytest.raises(AssertionError, match="not taken"):
        writer.begin(2, live(), set(), {}, nothing)
    go.set()
    writer.take(wait=True)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_metrics_are_durable_first(tmp_path: Path) -> None:
    there: list[list[Path]] = []
    saved(Writer(tmp_path, keep=2), 1, live(), lambda: there.append(list(tmp_path.iterdir())))
    assert there == [[]]


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    """An OSError is told, of the writing and of what comes before; the next save is another matter."""
    writer, folder = Writer(tmp_path / "checkpoints", keep=2), tmp_path / "checkpoints"
    folder.touch()
    result = saved(writer, 1, live())
    assert isinstance(result.error, OSError)
    assert result.bytes == 0
    folder.unlink()
    folder.mkdir()

    def full() -> None:
        raise OSError(28, "No space left on device")

    assert str(saved(writer, 2, live(), full).error).endswith("No space left on device")
    assert list(folder.iterdir()) == []
    assert saved(writer, 3, live()).error is None
    assert [path.name for path in folder.iterdir()] == ["step-00000003"]


def test_a_defect_is_raised_where_the_training_looks(tmp_path: Path) -> None:
    def defect() -> None:
        raise KeyError("a defect")

    writer = Writer(tmp_path, keep=2)
    writer.begin(1, live(), set(), {}, defect)
    with pytest.raises(KeyError, match="a defect"):
        writer.take(wait=True)
    assert list(tmp_path.iterdir()) == []


def test_a_poisoned_tensor_is_named_and_not_written(tmp_path: Path) -> None:
    writer, tensors = Writer(tmp_path, keep=2), live()
    writer.prepare(tensors)
    assert saved(writer, 1, tensors).error is None
    tensors["model/w"][2, 1] = math.nan
    result = saved(writer, 2, tensors)
    assert isinstance(result.error, Poisoned)
    assert "model/w hold" in str(result.error)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_several_poisoned_tensors(tmp_path: Path) -> None:
    tensors = {name: torch.full((2,), math.inf) for name in ("b", "a", "c")}
    assert "a and 2 more tensors hold" in str(saved(Writer(tmp_path, keep=2), 1, tensors).error)


def test_a_mask_that_was_infinite_from_the_start_is_allowed(tmp_path: Path) -> None:
    """Of attention, say; but only that one."""
    tensors = live() | {"model/mask": torch.tensor([0.0, -math.inf])}
    writer = Writer(tmp_path, keep=2)
    writer.prepare(tensors)
    assert saved(writer, 1, tensors).error is None
    assert checkpoint.verify(tmp_path / "step-00000001").tensors["model/mask"].tolist() == [0.0, -math.inf]
    tensors["model/w"][0, 0] = math.inf
    assert "model/w hold" in str(saved(writer, 2, tensors).error)


def test_state_that_an_optimizer_makes_in_its_first_step(tmp_path: Path) -> None:
    """Further tensors, and none of the old exemptions forgotten."""
    tensors = live() | {"model/mask": torch.tensor([0.0, -math.inf])}
    writer = Writer(tmp_path, keep=2)
    writer.prepare(tensors)
    more = tensors | {"optimizer/w/exp_avg": torch.ones(4, 3)}
    assert saved(writer, 1, more).error is None
    assert checkpoint.verify(tmp_path / "step-00000001").tensors.keys() == more.keys()
    more["optimizer/w/exp_avg"][0, 0] = math.nan
    assert isinstance(saved(writer, 2, more).error, Poisoned)


def test_what_is_still_is_copied_beside_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update waits until the copy is made; what may change before is copied at once."""
    fill, go = checkpoint.Image.fill, threading.Event()

    def slow(self: checkpoint.Image, tensors: dict[str, Tensor]) -> None:
        if threading.current_thread().name == "pitstop-save":
            assert go.wait(20)
        fill(self, tensors)

    tensors, writer = {"model/w": torch.ones(4), "model/running_mean": torch.ones(4)}, Writer(tmp_path, keep=2)
    writer.prepare(tensors)
    monkeypatch.setattr(checkpoint.Image, "fill", slow)
    writer.begin(5, tensors, {"model/w"}, {"state": {}}, nothing)
    tensors["model/running_mean"].fill_(9.0)  # a forward pass
    updated = threading.Event()

    def update() -> None:
        writer.settle()
        tensors["model/w"].fill_(9.0)
        updated.set()

    thread = threading.Thread(target=update)
    thread.start()
    assert not updated.wait(0.2), "the update did not wait"
    go.set()
    thread.join(20)
    result = writer.take(wait=True)
    assert result is not None
    assert result.stall_seconds >= 0.2, "the wait is part of what the training pays"
    written = checkpoint.verify(tmp_path / "step-00000005").tensors
    assert {name: tensor.tolist() for name, tensor in written.items()} == dict.fromkeys(tensors, [1.0] * 4)


def test_a_copy_that_fails_lets_the_update_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(tmp_path, keep=2)
    writer.prepare(live())

    def broken(self: checkpoint.Image, tensors: dict[str, Tensor]) -> None:
        if threading.current_thread().name == "pitstop-save":
            raise ZeroDivisionError

    monkeypatch.setattr(checkpoint.Image, "fill", broken)
    writer.begin(5, live(), set(live()), {}, nothing)
    writer.settle()
    with pytest.raises(ZeroDivisionError):
        writer.take(wait=True)


def test_one_that_is_changed_all_the_same_fails_the_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By weights that are clamped, say: what is half copied is no checkpoint."""
    fill, go, tensors = checkpoint.Image.fill, threading.Event(), live()

    def slow(self: checkpoint.Image, given: dict[str, Tensor]) -> None:
        if threading.current_thread().name == "pitstop-save":
            assert go.wait(20)
        fill(self, given)

    writer = Writer(tmp_path, keep=2)
    writer.prepare(tensors)
    monkeypatch.setattr(checkpoint.Image, "fill", slow)
    writer.begin(5, tensors, {"model/w"}, {"state": {}}, nothing)
    tensors["model/w"].clamp_(-0.5, 0.5)
    go.set()
    result = writer.take(wait=True)
    assert isinstance(result.error, checkpoint.Moved)
    assert "model/w was changed" in str(result.error)
    assert list(tmp_path.iterdir()) == []
