"""Checkpoints that a disk, a person or an attacker has altered: set aside, named, never used, never executed."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.harness import Run, assert_same, snapshot

from pitstop.checkpoint import seal

SAVES = ("--save_every", "5steps")
NEWEST, BEFORE = "step-00000010", "step-00000005"
STATE, MANIFEST = "state.safetensors", "manifest.json"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def cut(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share) if share < 1 else len(data) - 1])

    return damage


def rename_file_in_manifest(path: Path) -> None:
    manifest = json.loads(path.read_text())
    manifest["files"] = {f"../{BEFORE}/{STATE}": manifest["files"].pop(STATE)}
    manifest["seal"] = seal(manifest)
    path.write_text(json.dumps(manifest))


def of_another_step(path: Path) -> None:
    manifest = json.loads(path.read_text()) | {"step": 11}
    manifest["seal"] = seal(manifest)
    path.write_text(json.dumps(manifest))


def other_number(path: Path) -> None:
    """A digit of a pending loss: good JSON, of the same length, and wrong."""
    head, found, tail = path.read_text().partition('"loss": [')
    position = next(i for i, c in enumerate(tail) if c.isdigit())
    path.write_text(head + found + tail[:position] + str(9 - int(tail[position])) + tail[position + 1 :])


def without(*keys: str) -> Callable[[Path], None]:
    """Valid JSON in which something is missing that was always there."""

    def damage(path: Path) -> None:
        manifest = json.loads(path.read_text())
        inner = manifest
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        path.write_text(json.dumps(manifest))

    return damage


def foreign(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(text) and None


def directory_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "bit flip in the state": (STATE, flip),
    "bit flip in the manifest": (MANIFEST, flip),
    "state cut at 0": (STATE, cut(0)),
    "state cut at half": (STATE, cut(0.5)),
    "state cut at n-1": (STATE, cut(1)),
    "manifest cut at 0": (MANIFEST, cut(0)),
    "manifest cut at half": (MANIFEST, cut(0.5)),
    "manifest cut at n-1": (MANIFEST, cut(1)),
    "no state": (STATE, Path.unlink),
    "no manifest": (MANIFEST, Path.unlink),
    "a directory for a state": (STATE, directory_instead),
    "foreign JSON": (MANIFEST, foreign('{"hello": 1}')),
    "a JSON list": (MANIFEST, foreign("[1, 2]")),
    "JSON, very deep": (MANIFEST, foreign("[" * 100_000)),
    "files that are a list": (MANIFEST, foreign('{"format": 1, "step": 10, "files": ["state.safetensors"]}')),
    "a file that is no entry": (MANIFEST, foreign('{"format": 1, "step": 10, "files": {"state.safetensors": 3}}')),
    "a format that is text": (MANIFEST, foreign('{"format": "new"}')),
    "a file of the checkpoint before": (MANIFEST, rename_file_in_manifest),
    "of another step": (MANIFEST, of_another_step),
    "another number in the state of the owners": (MANIFEST, other_number),
    "no length of metrics": (MANIFEST, without("metrics_bytes")),
    "no state of the owners": (MANIFEST, without("state")),
    "no shape": (MANIFEST, without("shape")),
}


def put_into_manifest(folder: Path, data: bytes) -> None:
    """`data` as the state, with the size and hash that the manifest demands."""
    import hashlib

    (folder / STATE).write_bytes(data)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][STATE] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["seal"] = seal(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def broken_off(tiny: Callable[..., Run]) -> Run:
    """Killed in step 13: there are the checkpoints of the steps 5 and 10."""
    run = tiny(*SAVES)
    run.killed("step:13")
    assert run.checkpoints() == [BEFORE, NEWEST]
    return run


def check_used_the_one_before(run: Run, clean: Run, restored: int = 5) -> None:
    text = run.finish().text
    assert text.count("IS BAD AND NOT USED") == 1, text
    assert f"bad-{NEWEST}-1" in run.checkpoints()
    assert f"CHECKPOINT {NEWEST} IS BAD" in text
    assert [event["step"] for event in run.events("restore")] == [restored]
    assert len(run.events("bad_checkpoint")) == 1
    assert_same(run, clean)


@pytest.mark.parametrize(("name", "damage"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_set_aside(
    name: str, damage: Callable[[Path], None], tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    run = broken_off(tiny)
    damage(run.path / "checkpoints" / NEWEST / name)
    check_used_the_one_before(run, clean())


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_never_executed(tiny: Callable[..., Run], clean: Callable[..., Run], tmp_path: Path) -> None:
    run = broken_off(tiny)
    data = pickle.dumps(Payload(tmp_path / "executed"))
    put_into_manifest(run.path / "checkpoints" / NEWEST, data)
    check_used_the_one_before(run, clean())
    assert not (tmp_path / "executed").exists()
    pickle.loads(data)
    assert (tmp_path / "executed").exists(), "the payload would have done nothing"


def test_no_checkpoint_is_good(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    run = broken_off(tiny)
    for name in (NEWEST, BEFORE):
        flip(run.path / "checkpoints" / name / STATE)
    text = run.finish().text
    assert text.count("IS BAD AND NOT USED") == 2
    assert_same(run, clean())


def test_a_checkpoint_that_kills_twice_is_set_aside(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    run = broken_off(tiny)
    run.killed("loading")
    run.killed("loading")
    check_used_the_one_before(run, clean())


def test_a_kill_while_loading_and_good_luck_then_count_anew(
    tiny: Callable[..., Run], clean: Callable[..., Run]
) -> None:
    run = broken_off(tiny)
    for instant in ("loading", "restored", "loading", "restored", "loading"):
        run.killed(instant)
    run.finish()
    assert_same(run, clean())
    assert not [name for name in run.checkpoints() if name.startswith("bad-")]


def test_endless_kills_while_loading_end(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """Each checkpoint gets two tries. The last one there is is not thrown away: a person decides."""
    run = broken_off(tiny)
    kills = 0
    while -9 in (job := run.go(KILL_AT="loading")).codes:
        kills += 1
        assert kills <= 4, "an endless loop"
    assert kills == 4
    assert job.codes == [2], job.text
    assert "has ended the process 2 times" in job.text
    assert run.status()["restart"] == "person"
    assert BEFORE in run.checkpoints()
    (run.path / "checkpoints" / "loading.json").unlink()  # as the message says
    run.finish()
    assert [event["step"] for event in run.events("restore")] == [5]
    assert_same(run, clean())


def test_a_newer_format_is_refused(tiny: Callable[..., Run]) -> None:
    run = broken_off(tiny)
    path = run.path / "checkpoints" / NEWEST / MANIFEST
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    before = snapshot(run.path / "checkpoints" / NEWEST)
    job = run.go()
    assert job.code == 2
    assert "later pitstop" in job.text
    assert "Traceback" not in job.text
    assert snapshot(run.path / "checkpoints" / NEWEST) == before
