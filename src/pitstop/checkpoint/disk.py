"""Checkpoints on disk: complete and verified, or not there.

    checkpoints/step-00001200/state.safetensors    every tensor
                              manifest.json        sizes, SHA-256, step, shape, versions, everything that is no tensor

Written into a temporary sibling, each file fsynced, the manifest last, then renamed: see `files.new_directory`. No
pickle anywhere: what is read is JSON and safetensors, and only after its hash was compared.
"""

import contextlib
import errno
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pitstop.errors import UserError
from pitstop.files import (
    canonical_json,
    checkpoint_steps,
    new_directory,
    plain,
    read_json,
    remove_tree,
    set_aside,
    sha256,
    write_json,
    write_new,
)

FORMAT = 1
STATE, MANIFEST, LOADING = "state.safetensors", "manifest.json", "loading.json"
TRIES = 2  # loads that may end the process before the checkpoint is taken to be the cause

Say = Callable[[str], None]


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after `step` steps."""

    step: int
    path: Path
    manifest: dict[str, Any]
    tensors: dict[str, Tensor]


def to_bytes(tensors: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    """Tensors as one safetensors file; equal content gives equal bytes.

    One metadata key holding canonical JSON: the order of several would change from process to process.
    """
    # Copies of their own: safetensors refuses tensors that share memory, as tied weights do.
    contiguous = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach()) for name, tensor in tensors.items()
    }
    return safetensors.torch.save(contiguous, metadata={"pitstop": canonical_json(about)})


def write(directory: Path, step: int, data: bytes | memoryview, about: dict[str, Any], *, keep: int) -> int:
    """Commits one checkpoint and then prunes to the newest `keep`. Returns its size in bytes.

    Args:
        data: state.safetensors (`to_bytes`, or `Image.file`).

    Raises:
        OSError: it could not be written; what was there before is untouched.
    """
    files = {STATE: {"bytes": len(data), "sha256": sha256(data)}}
    manifest = plain({"format": FORMAT, "step": step, **about, "files": files})  # a pending loss may be NaN
    manifest["seal"] = seal(manifest)
    text = json.dumps(manifest, indent=1, ensure_ascii=False).encode()
    with new_directory(directory / f"step-{step:08d}") as temporary:
        write_new(temporary / STATE, data)
        write_new(temporary / MANIFEST, text)
    with contextlib.suppress(OSError):  # it is saved all the same; what stays is pruned by the next
        for _, path in checkpoint_steps(directory)[keep:]:
            remove_tree(path)
    return len(data) + len(text)


def write_final(directory: Path, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
    """`final/`: model.safetensors and model.json, all that is needed to use the model; the same bytes each time."""
    with new_directory(directory) as temporary:
        write_new(temporary / "model.safetensors", to_bytes(tensors, card))
        write_new(temporary / "model.json", (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode())


def seal(manifest: dict[str, Any]) -> str:
    """SHA-256 over the rest of the manifest: a flipped bit in the loss scale would else be believed."""
    return sha256(canonical_json({key: value for key, value in manifest.items() if key != "seal"}).encode())


def verify(path: Path) -> Checkpoint:
    """Reads a checkpoint whole, compares every hash and makes its tensors. Raises as `compare`."""
    manifest, data = compare(path)
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{STATE} cannot be read: {error}") from error
    return Checkpoint(manifest["step"], path, manifest, tensors)


def compare(path: Path) -> tuple[dict[str, Any], bytes]:
    """Manifest and state.safetensors of a checkpoint that is, by every hash, what was written.

    Raises:
        ValueError: it is torn, altered, or of an older format; OSError: a file is missing or cannot be read.
        UserError: a later pitstop wrote it.
    """
    manifest = read_json(path / MANIFEST)
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise UserError(f"{path} was written by a later pitstop: update this one (pip install -U pitstop).")
    if found != FORMAT:
        raise ValueError(f"its format is {found}, {FORMAT} was expected")
    if manifest.get("seal") != seal(manifest):
        raise ValueError("its manifest is not what was written: its SHA-256 is another")
    files = manifest.get("files")
    if not isinstance(files, dict) or set(files) != {STATE} or not isinstance(files[STATE], dict):
        raise ValueError(f"its manifest does not list {STATE} and nothing else")
    data = (path / STATE).read_bytes()
    expected = files[STATE]
    if len(data) != expected.get("bytes"):
        raise ValueError(f"{STATE} has {len(data)} bytes, {expected.get('bytes')} were written")
    if sha256(data) != expected.get("sha256"):
        raise ValueError(f"{STATE} is not what was written: its SHA-256 is another")
    if manifest.get("step") != int(path.name.removeprefix("step-")):
        raise ValueError(f"its manifest is that of step {manifest.get('step')}")
    return manifest, data


def _tries(directory: Path, path: Path) -> int:
    """How often in a row loading this checkpoint has begun and not ended."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        marker = read_json(directory / LOADING)
        return int(marker["tries"]) if marker.get("checkpoint") == path.name else 0
    return 0


def newest(directory: Path, *, complain: Say) -> Checkpoint | None:
    """The newest checkpoint that verifies, or None where there is none; a bad one is set aside and named.

    A checkpoint whose loading has ended the process twice is set aside too, so that no restart goes on for ever at the
    same place; but not the last one, since the run would then begin anew without anyone having been asked.

    Raises:
        UserError: a checkpoint was written by a later pitstop, or the last one ends the process that loads it.
    """
    steps = checkpoint_steps(directory)
    for _, path in steps:
        tries = _tries(directory, path)
        if tries >= TRIES and path == steps[-1][1]:
            raise UserError(
                f"loading {path} has ended the process {tries} times (out of memory?), and there is no older one. "
                f"To try again: rm {directory / LOADING}. To begin anew: pitstop archive {directory.parent}"
            )
        found: Checkpoint | str = f"the process ended {tries} times while loading it"
        if tries < TRIES:
            found = _verify_marked(directory, path, tries + 1)
        if isinstance(found, Checkpoint):
            return found
        _complain(path, found, complain)
    return None


def _verify_marked(directory: Path, path: Path, tries: int) -> Checkpoint | str:
    """`verify`, with a mark on the disk that stays only if the process is killed meanwhile: the checkpoint, or what is
    wrong with it. Raises OSError if the mark cannot be made or removed, which says nothing about the checkpoint."""
    write_json(directory / LOADING, {"checkpoint": path.name, "tries": tries})
    try:
        return verify(path)
    except UserError:
        raise  # a person must look: no other one is tried
    except (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        return str(error)
    except OSError as error:
        if error.errno != errno.EIO:
            raise  # no permission, say: the checkpoint may be good, a person must look
        return f"the disk cannot read it ({error.strerror})"
    finally:
        (directory / LOADING).unlink(missing_ok=True)


def _complain(path: Path, why: str, complain: Say) -> None:
    aside = set_aside(path)
    complain(f"CHECKPOINT {path.name} IS BAD AND NOT USED: {why}. It is kept as {aside}; the one before is tried.")
