"""Decoded images on disk, so that they are decoded once: one safetensors file, verified when read."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pitstop import files
from pitstop.data.images import ImageSet
from pitstop.errors import UserError
from pitstop.locks import exclusive

METADATA_KEY = "pitstop"


@dataclass(frozen=True)
class Decoded:
    train: ImageSet
    test: ImageSet
    notes: list[str]  # what was skipped or resized, in a few words each


class Shelf(Protocol):
    """Where other machines find what this one has decoded; `pitstop.store.Shelf` is one."""

    def fetch(self, file: Path) -> bool: ...
    def offer(self, file: Path) -> None: ...


def load_or_build(
    file: Path,
    build: Callable[[], Decoded],
    *,
    say: Callable[[str], None],
    shelf: Shelf | None = None,
) -> Decoded:
    """What `file` holds, or the shelf; else what `build` returns, which is then kept in both, if disk and rights allow.

    One process builds, the others wait. A damaged file is built again.
    """
    if found := _read(file, say):
        return found
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".lock").touch()
    except OSError as error:
        say(f"Decoded images are not kept: {file.parent} cannot be written ({error.strerror}).")
        return build()
    with exclusive(file.with_suffix(".lock"), say=say):
        if found := _read(file, say):  # by the process that was waited for
            return found
        if shelf and shelf.fetch(file) and (found := _read(file, say)):
            return found
        built = build()
        if _write(file, built, say) and shelf:
            shelf.offer(file)
        return built


def _read(file: Path, say: Callable[[str], None]) -> Decoded | None:
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            about = json.loads(opened.metadata()[METADATA_KEY])
            # Cloned, as they are mapped: what was verified must not change with the file.
            tensors = {name: opened.get_tensor(name).clone() for name in _tensor_names()}
        if _sha256(tensors) != about["sha256"]:
            raise ValueError("its pixels have another checksum")
        train, test = (
            ImageSet(
                tensors[f"{split}_images"], tensors[f"{split}_labels"], tuple(about["classes"]), about["fingerprint"]
            )
            for split in ("train", "test")
        )
        notes = [str(note) for note in about["notes"]]
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        say(f"{file} is damaged ({error}): the images are decoded again.")
        return None
    say(f"Decoded images come from {file}" + (f": {'; '.join(notes)}." if notes else "."))
    return Decoded(train, test, notes)


def _write(file: Path, decoded: Decoded, say: Callable[[str], None]) -> bool:
    tensors = {
        f"{split}_{part}": tensor.contiguous()
        for split, images in (("train", decoded.train), ("test", decoded.test))
        for part, tensor in (("images", images.images_NCHW), ("labels", images.labels_N))
    }
    about = {
        "classes": decoded.train.classes,
        "fingerprint": decoded.train.fingerprint,
        "notes": decoded.notes,
        "sha256": _sha256(tensors),
    }
    needed_bytes = sum(tensor.nbytes for tensor in tensors.values()) + (1 << 20)
    try:
        files.require_space(file.parent, needed_bytes, "keeping the decoded images")
        files.write_atomic(file, save(tensors, {METADATA_KEY: files.canonical_json(about)}))
    except (UserError, OSError) as error:
        say(f"Decoded images are not kept: {error}")
        return False
    return True


def _tensor_names() -> list[str]:
    return [f"{split}_{part}" for split in ("train", "test") for part in ("images", "labels")]


def _sha256(tensors: dict[str, Tensor]) -> str:
    """Of each tensor's bytes, shape and type, in the order of their names."""
    return files.sha256(
        files.canonical_json(
            {
                name: [
                    str(tensor.dtype),
                    list(tensor.shape),
                    files.sha256(tensor.view(torch.uint8).numpy().data),
                ]
                for name, tensor in tensors.items()
            }
        ).encode()
    )
