"""The same image in two splits is found by its bytes, whatever its name."""

import io
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from pitstop.data import load_photos
from pitstop.data.doubles import doubles
from pitstop.data.places import Tree


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)).save(path)


@pytest.mark.parametrize("doubles", [0, 2])
def test_images_in_two_splits(tmp_path: Path, doubles: int) -> None:
    for place, first in (("train", 0), ("val", 100), ("test", 200)):
        for label in ("a", "b"):
            for number in range(4):
                write(tmp_path / place / label / f"{number}.png", first + number + (50 if label == "b" else 0))
    for number in range(doubles):
        write(tmp_path / "test" / "b" / f"copy-{number}.png", number)  # of class a in train
        write(tmp_path / "test" / "a" / f"again-{number}.png", 200 + number)  # twice in one split: not our business
    said: list[str] = []
    load_photos(
        str(tmp_path), image_size=16, seed=0, cache=False, check=True, workers=0, may_write=False, say=said.append
    )
    lines = [line for line in said if "alike" in line]
    assert len(lines) == bool(doubles)
    assert all("2 images are in train and in test alike (16.7 % of test)" in line for line in lines)


def test_what_was_found_is_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PITSTOP_DATA_DIR", str(tmp_path / "kept"))
    folder, opened = tmp_path / "photos", list[int]()
    for seed, name in enumerate(("train/a/1", "train/a/2", "train/b/1", "train/b/2", "test/a/1", "test/b/1")):
        write(folder / f"{name}.png", seed)
    write(folder / "test" / "b" / "2.png", 0)
    real = Tree.open
    monkeypatch.setattr(Tree, "open", lambda tree, row: opened.append(row) or real(tree, row))

    def lines(seed: int = 0) -> list[str]:
        said: list[str] = []
        load_photos(
            str(folder), image_size=16, seed=seed, cache=False, check=True, workers=0, may_write=True, say=said.append
        )
        return [line for line in said if "alike" in line]

    first = lines()
    assert len(first) == 1
    assert opened
    opened.clear()
    assert lines() == first
    assert opened == [], "known"
    write(folder / "test" / "b" / "2.png", 77)
    assert lines() == []
    assert opened
    for file in (tmp_path / "kept" / "cache").glob("alike-*.json"):
        file.write_text("{")
    write(folder / "test" / "b" / "2.png", 0)
    assert lines() == first


class Split:
    """Some rows of files that are told; `read` are those that were opened. None: it cannot be opened."""

    def __init__(self, rows: Sequence[int], files: Sequence[bytes | None], read: list[int]) -> None:
        self.rows_N, self._files, self._read = np.array(rows), files, read
        self.pictures = SimpleNamespace(place=self)

    def __len__(self) -> int:
        return len(self.rows_N)

    def open(self, row: int) -> io.BytesIO:
        self._read.append(row)
        if (content := self._files[row]) is None:
            raise OSError(5, "Input/output error")
        return io.BytesIO(content)


def found(files: Sequence[bytes | None], **rows: Sequence[int]) -> tuple[list[str], list[int]]:
    """The lines, and which files were read."""
    read: list[int] = []
    sets = {split: cast(Any, Split(own, files, read)) for split, own in rows.items()}
    return doubles(sets, [len(content or b"....") for content in files]), read


def test_every_copy_is_too_good_but_it_is_one_image() -> None:
    lines, read = found([b"cat", b"dog", b"cat", b"cat", b"horse"], train=[0, 1], test=[2, 3, 4])
    (line,) = lines
    assert line.startswith("1 images are in train and in test alike (66.7 % of test)")
    assert sorted(read) == [0, 1, 2, 3], "of the horse's size there is one"


def test_only_sizes_that_two_splits_have_are_read() -> None:
    assert found([b"cat", b"dog", b"horse"], train=[0, 1], test=[2]) == ([], [])


def test_files_that_cannot_be_read_are_not_alike() -> None:
    lines, read = found([None, None, b"bird"], train=[0], test=[1, 2])
    assert lines == []
    assert sorted(read) == [0, 1, 2]
