"""Decoded images that another machine has brought: the same bytes, and never in the way."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from store.machines import Machine

from pitstop.data.cache import Decoded, load_or_build
from pitstop.data.images import ImageSet
from pitstop.store import Shelf


def decoded() -> Decoded:
    pixels = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    sets = [ImageSet(pixels.clone(), torch.tensor([0, 1]), ("a", "b"), {"source": "made up"}) for _ in range(2)]
    return Decoded(*sets, [])


def wait_for_uploads() -> None:
    for thread in threading.enumerate():
        if thread.name == "pitstop-shelf":
            thread.join(20)


def load(folder: Path, url: str, said: list[str], build: Callable[[], Decoded] = decoded) -> Decoded:
    found = load_or_build(folder / "abc.safetensors", build, say=said.append, shelf=Shelf(url, said.append))
    wait_for_uploads()
    return found


def never() -> Decoded:
    raise AssertionError("decoded again")


def test_a_second_machine_decodes_nothing(tmp_path: Path, machine: Callable[[str], Machine]) -> None:
    url, said = machine("a").url, []
    load(tmp_path / "first", url, said)
    found = load(tmp_path / "second", url, said, never)
    assert torch.equal(found.train.images_NCHW, decoded().train.images_NCHW)
    names = [path.name for path in sorted((tmp_path / "second").iterdir())]
    assert names == ["abc.lock", "abc.safetensors"]
    assert (tmp_path / "first/abc.safetensors").read_bytes() == (tmp_path / "second/abc.safetensors").read_bytes()
    assert any("brought the decoded images" in line for line in said), said


def test_a_damaged_one_is_decoded_again(tmp_path: Path) -> None:
    url, said = f"file://{tmp_path}/store", []
    load(tmp_path / "first", url, said)
    stored = next((tmp_path / "store").rglob("abc.safetensors"))
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1
    stored.write_bytes(data)
    found = load(tmp_path / "second", url, said)
    assert torch.equal(found.train.images_NCHW, decoded().train.images_NCHW)
    assert any("is damaged" in line for line in said), said


def test_a_store_that_is_not_there_costs_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    found = load(tmp_path / "first", "file:///proc/nothing", said)
    assert len(found.train) == 2
    assert len([line for line in said if line.startswith("store:")]) == 2, said
