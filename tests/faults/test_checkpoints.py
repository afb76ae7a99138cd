"""Checkpoints that a disk, a person or an attacker has altered: set aside, named, never used, never executed."""

import contextlib
import json
import os
import pickle
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.harness import Run, Warm, assert_same, snapshot

from pitstop.checkpoint import newest, seal
from pitstop.errors import UserError

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


def field(name: str, value: object) -> Callable[[Path], None]:
    """Another value, under a seal that fits."""

    def damage(path: Path) -> None:
        manifest = json.loads(path.read_text()) | {name: value}
        manifest["seal"] = seal(manifest)
        path.write_text(json.dumps(manifest))

    return damage


def of_format(number: float | None) -> Callable[[Path], None]:
    return field("format", number)


def longer(path: Path) -> None:
    """100 MB of good JSON, without taking the room."""
    text = path.read_bytes()
    with open(path, "wb") as file:
        file.truncate(100 << 20)
        file.write(text)


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/state.safetensors")


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
    "an older format": (MANIFEST, of_format(0)),
    "a format with a point": (MANIFEST, of_format(1.5)),
    "no format": (MANIFEST, of_format(None)),
    "a step that is text": (MANIFEST, field("step", "10")),
    "a size that is negative": (MANIFEST, field("files", {STATE: {"bytes": -1, "sha256": ""}})),
    "more files than there are": (MANIFEST, field("files", {STATE: {}, "optimizer.bin": {}})),
    "an endless manifest": (MANIFEST, longer),
    "a link to nowhere": (STATE, link),
}


@pytest.fixture(scope="module")
def two(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoints/ with two that are good; for copies."""
    run = Run(warm, tmp_path_factory.mktemp("two"), *SAVES)
    run.killed("step:13")
    assert run.checkpoints() == [BEFORE, NEWEST]
    return run.path / "checkpoints"


def load_copy(two: Path, copy: Path, name: str, data: bytes) -> tuple[int, list[str]]:
    """The step that is loaded, and the complaints, if the newest checkpoint has `data` in the file `name`."""
    shutil.copytree(two, copy)
    (copy / NEWEST / name).write_bytes(data)
    complaints: list[str] = []
    found = newest(copy, complain=complaints.append)
    assert found is not None
    shutil.rmtree(copy)
    return found.step, complaints


@pytest.mark.parametrize("name", [STATE, MANIFEST])
def test_bits_that_flip(name: str, two: Path, tmp_path: Path) -> None:
    """At both ends, and at 20 places in between."""
    chance, good = random.Random(name), (two / NEWEST / name).read_bytes()
    assert load_copy(two, tmp_path / "good", name, good) == (10, [])
    for place in [0, len(good) - 1, *chance.sample(range(1, len(good) - 1), 20)]:
        data = bytearray(good)
        data[place] ^= 1 << chance.randrange(8)
        step, complaints = load_copy(two, tmp_path / str(place), name, bytes(data))
        if name == MANIFEST and same_json(data, good):
            continue  # a blank became another blank
        assert (step, len(complaints)) == (5, 1), f"byte {place}: {complaints}"


@pytest.mark.parametrize("name", [STATE, MANIFEST])
def test_a_file_that_is_cut(name: str, two: Path, tmp_path: Path) -> None:
    chance, good = random.Random(name), (two / NEWEST / name).read_bytes()
    for size in [0, 1, 7, 8, 9, 512, len(good) // 2, len(good) - 1, *chance.sample(range(len(good)), 8)]:
        step, complaints = load_copy(two, tmp_path / str(size), name, good[:size])
        assert (step, len(complaints)) == (5, 1), f"{size} bytes: {complaints}"
        step, complaints = load_copy(two, tmp_path / f"{size} zeros", name, good[:size].ljust(len(good), b"\x00"))
        assert (step, len(complaints)) == (5, 1), f"{size} bytes, then zeros: {complaints}"


def same_json(one: bytes, other: bytes) -> bool:
    with contextlib.suppress(ValueError, RecursionError):
        return bool(json.loads(one) == json.loads(other))
    return False


def spoiled(text: bytes, chance: random.Random) -> bytes:
    """JSON as it comes from a bad disk or a careless hand: pieces lost, doubled, turned; other values; no text."""
    first, last = sorted(chance.sample(range(len(text)), 2))
    last = min(last, first + 200)
    piece = text[first:last]
    odd = [b"null", b"[]", b"-1", b"1e999", b"NaN", b'"\\ud800"', b"\xff\xfe", b"\x00" * 9, b"{", b'"', b"[" * 5000]
    return chance.choice(
        [
            text[:first] + text[last:],
            text[:first] + piece + piece + text[last:],
            text[:first] + piece[::-1] + text[last:],
            text[:first] + chance.choice(odd) + text[last:],
            text[:first] + chance.randbytes(len(piece)) + text[last:],
            re.sub(rb": [^,\n]+", lambda match: b": " + chance.choice([match[0][2:]] * 9 + odd[:5]), text),
        ]
    )


def test_manifests_that_are_spoiled(two: Path, tmp_path: Path) -> None:
    chance, good = random.Random(6), (two / NEWEST / MANIFEST).read_bytes()
    bad = 0
    for number in range(150):
        data = spoiled(good, chance)
        try:
            step, complaints = load_copy(two, tmp_path / str(number), MANIFEST, data)
        except UserError as error:  # its format seems to be a later one
            assert "later pitstop" in str(error)  # noqa: PT017
            shutil.rmtree(tmp_path / str(number))
            continue
        assert (step, len(complaints)) == ((10, 0) if same_json(data, good) else (5, 1)), data
        bad += step == 5
    assert bad > 120


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


def test_an_entry_that_is_none(tiny: Callable[..., Run], clean: Callable[..., Run]) -> None:
    """Under a seal that fits: nobody writes that by accident."""
    run = broken_off(tiny)
    field("files", {STATE: 3})(run.path / "checkpoints" / NEWEST / MANIFEST)
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


PICKLED = [
    "pytorch_model.bin",
    "model.pt",
    "optimizer.bin",
    "scheduler.bin",
    "sampler.bin",
    "scaler.pt",
    "random_states_0.pkl",
    "custom_checkpoint_0.pkl",
    "dl_state_dict.bin",
    "data.pkl",
    "state.pt",
    "loading.json",
    "model.safetensors",
    "model.json",
]


def test_a_pickle_under_any_name_is_never_executed(
    tiny: Callable[..., Run], clean: Callable[..., Run], tmp_path: Path
) -> None:
    """In every directory and under every name that such programs read, ours and Accelerate's, and in place of every
    file there is; loaded, looked at by the command line, finished, and started once more."""
    run = broken_off(tiny)
    data = pickle.dumps(Payload(tmp_path / "executed"))
    folder = run.path / "checkpoints"
    foreign_step, final = folder / "step-00000012", run.path / "final"
    for place in (folder / NEWEST, folder, foreign_step, final):
        place.mkdir(exist_ok=True)
        for name in (*PICKLED, STATE, MANIFEST):
            (place / name).write_bytes(data)
    for name in ("status.json", "best.pt", "STOPPED.pkl"):
        (run.path / name).write_bytes(data)
    text = run.finish().text
    assert text.count("IS BAD AND NOT USED") == 2, text
    assert [event["step"] for event in run.events("restore")] == [5]
    for name in (*PICKLED, STATE, MANIFEST):
        (folder / name).unlink(missing_ok=True)
    assert_same(run, clean())
    run.finish()
    assert not (tmp_path / "executed").exists()


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


def test_a_checkpoint_that_kills_twice_is_set_aside_with_a_store_too(
    tiny: Callable[..., Run], clean: Callable[..., Run], tmp_path: Path
) -> None:
    """The store has it as well, and is asked before anything is loaded."""
    run = tiny(*SAVES, "--store", f"file://{tmp_path}/store")
    assert run.go(KILL_AT="step:10", KILL_SIGNAL="TERM").codes == [75]  # who stops in order waits for the store
    assert run.checkpoints() == [BEFORE, NEWEST]
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
