"""Files whole or not there: crashes are raised at each system call that could be the last."""

import errno
import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from pitstop import files
from pitstop.errors import UserError


class PowerCut(BaseException):
    """Not an Exception: nothing may catch it."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_write_atomic_leaves_the_old_file_when_it_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "status.json"
    files.write_atomic(path, "old")

    def cut(*_: object) -> None:
        raise PowerCut

    monkeypatch.setattr(os, call, cut)
    with pytest.raises(PowerCut):
        files.write_atomic(path, "new and longer")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["status.json"]
    files.write_atomic(path, b"new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["status.json"]


def test_write_atomic_syncs_the_file_before_and_the_folder_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        calls.append("fsync " + ("folder" if os.readlink(f"/proc/self/fd/{descriptor}") == str(tmp_path) else "file"))
        fsync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        calls.append("rename")
        assert source.read_bytes() == b"x" * 10_000, "whole before it gets its name"
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    files.write_atomic(tmp_path / "a", b"x" * 10_000)
    assert calls == ["fsync file", "rename", "fsync folder"]
    calls.clear()
    files.write_atomic(tmp_path / "a", b"x" * 10_000, durable=False)
    assert calls == ["rename"]


def test_write_new_never_replaces_nor_follows(tmp_path: Path) -> None:
    files.write_new(tmp_path / "a", b"1")
    with pytest.raises(FileExistsError):
        files.write_new(tmp_path / "a", b"2")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="exists"):
        files.write_new(tmp_path / "link", b"2")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("instant", ["first file", "second file", "rename"])
def test_a_new_directory_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instant: str) -> None:
    final = tmp_path / "step-1"

    def fill() -> None:
        with files.new_directory(final) as temporary:
            for name in ("first", "second"):
                assert not final.exists()
                files.write_new(temporary / name, b"data")
                if instant == f"{name} file":
                    raise PowerCut

    def cut(*_: object) -> None:
        raise PowerCut

    if instant == "rename":
        monkeypatch.setattr(os, "rename", cut)
    with pytest.raises(PowerCut):
        fill()
    assert names(tmp_path) == []
    monkeypatch.undo()
    instant = "never"
    fill()
    assert names(final) == ["first", "second"]
    assert names(tmp_path) == ["step-1"]


def test_a_new_directory_takes_the_place_of_the_old(tmp_path: Path) -> None:
    final = tmp_path / "final"
    for content in (b"1", b"2"):
        with files.new_directory(final) as temporary:
            files.write_new(temporary / content.decode(), content)
    assert names(final) == ["2"]
    assert names(tmp_path) == ["final"]


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    """The same pid may come again: in a container it is always the same."""
    (tmp_path / "step-1").mkdir()
    (tmp_path / "status.json").touch()
    for left in (f".tmp-step-2-{os.getpid()}", f".trash-step-1-{os.getpid()}"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "junk").touch()
    (tmp_path / f".status.json.{os.getpid()}.tmp").touch()
    (tmp_path / ".hidden").touch()
    files.clear_leftovers(tmp_path)
    assert names(tmp_path) == [".hidden", "status.json", "step-1"]


def test_removing_never_leaves_half_under_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "step-1"
    folder.mkdir()
    (folder / "a").touch()

    def cut(path: Path, **_: object) -> None:
        assert not folder.exists(), "it has lost its name before anything in it is deleted"
        raise PowerCut

    monkeypatch.setattr(files.shutil, "rmtree", cut)
    with pytest.raises(PowerCut):
        files.remove_tree(folder)


def test_a_torn_line_is_ended_and_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": 2')
    file = files.AppendOnly(path)
    file.write('{"c": 3}\n')
    file.sync()
    assert path.read_bytes() == b'{"a": 1}\n{"b": 2\n{"c": 3}\n'
    assert files.read_lines(path) == [{"a": 1}, {"c": 3}]
    files.AppendOnly(path).write('{"d": 4}\n')
    assert path.read_bytes().endswith(b'{"c": 3}\n{"d": 4}\n'), "a whole line needs no end"


def test_two_writers_do_not_overwrite_each_other(tmp_path: Path) -> None:
    first, second = files.AppendOnly(tmp_path / "a"), files.AppendOnly(tmp_path / "a")
    for i in range(4):
        (first if i % 2 else second).write(f'{{"i": {i}}}\n')
    assert files.read_lines(tmp_path / "a") == [{"i": i} for i in range(4)]


def test_read_lines_passes_over_what_is_no_object(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert files.read_lines(path) == []
    path.write_bytes(b'{"a": 1}\n\n[1]\n3\n\xff\xfe\n{"b": "\xc3\xa9"}\n{"c"')
    assert files.read_lines(path) == [{"a": 1}, {"b": "é"}]


def test_a_line_that_does_not_fit_is_an_error_and_not_a_loss(tmp_path: Path) -> None:
    """A disk that is nearly full takes a part of a write without an error; a limit on the file's size does so too."""
    code = (
        "import resource, signal\nfrom pathlib import Path\nfrom pitstop.files import AppendOnly\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)); signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "file = AppendOnly(Path('lines')); file.write('12345\\n')\n"
        "try: file.write('1234567\\n')\n"
        "except OSError as error: print(error.strerror)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("File too large", "")


def test_lines_that_a_full_disk_refuses_come_later_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room, write = [6], os.write

    def take(descriptor: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = write(descriptor, data[: room[0]])
        room[0] -= taken
        return taken

    file = files.AppendOnly(tmp_path / "a")
    monkeypatch.setattr(os, "write", take)
    for line in ("one\n", "two\n", "three\n"):
        file.write(line)
    assert (tmp_path / "a").read_text() == "one\ntw"
    with pytest.raises(OSError, match="No space left"):
        file.sync()
    room[0] = 1000
    file.write("four\n")
    file.sync()
    assert (tmp_path / "a").read_text() == "one\ntwo\nthree\nfour\n"


def test_canonical_json_is_one_text_for_equal_values() -> None:
    assert files.canonical_json({"b": [1, 2.5, None], "a": {"y": "é", "x": True}}) == (
        '{"a":{"x":true,"y":"é"},"b":[1,2.5,null]}'
    )
    assert files.sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2


def test_json_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"name": "größe", "list": [1, 2.5, None]}
    files.write_json(path, value)
    assert files.read_json(path) == value == json.loads(path.read_text())
    with pytest.raises(ValueError, match=r"a\.json has \d+ bytes, more than the 5"):
        files.read_json(path, limit_bytes=5)
    path.write_text('{"a": ')
    with pytest.raises(ValueError, match=r"a\.json is no JSON"):
        files.read_json(path)
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "none")


def test_space_is_required_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage(10**10, 0, 100_000_000))
    files.require_space(tmp_path, 100_000_000, "a checkpoint")
    with pytest.raises(UserError) as refusal:
        files.require_space(tmp_path, 2_345_000_000, "3 checkpoints")
    for part in (str(tmp_path), "100 MB free", "3 checkpoints needs 2,345 MB", "--runs_dir"):
        assert part in str(refusal.value)


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_probe_finds_a_disk_that_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    files.probe(tmp_path)
    assert names(tmp_path) == []

    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("builtins.open" if call == "open" else f"os.{call}", refuse)
    with pytest.raises(UserError, match=r"Operation not supported.*--runs_dir"):
        files.probe(tmp_path)
    monkeypatch.undo()
    assert names(tmp_path) == []
