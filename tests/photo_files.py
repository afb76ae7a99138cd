"""Small photos in folders and archives, for tests of what reads them."""

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pitstop import data

Files = dict[str, bytes]
SIZE = 28  # load_size: 32
CLASSES = ("a cat", "z", "狗")


def picture(seed: int, kind: str = "JPEG") -> bytes:
    """Noise of few cells, so that resizing has something to blur; sides of 33 to 90 pixels."""
    generator = np.random.default_rng(seed)
    height, width = (int(side) for side in generator.integers(33, 90, 2))
    cells = Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    cells.resize((width, height), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def some_files(each: int = 12, *splits: str) -> Files:
    """`each` photos of each class in train/, and a third of that in every other split; every third a PNG."""
    return {
        f"{split}/{name}/{i:03}.{'png' if i % 3 == 0 else 'jpg'}": picture(
            10_000 * s + 100 * k + i, "PNG" if i % 3 == 0 else "JPEG"
        )
        for s, split in enumerate(("train", *splits))
        for k, name in enumerate(CLASSES)
        for i in range(each if split == "train" else each // 3)
    }


def tree_of(files: Files, folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def zip_of(files: Files, path: Path, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tar_of(files: Files, path: Path) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


class Said(list[str]):
    """A `say` that remembers."""

    def __call__(self, line: str) -> None:
        self.append(line)


def load(path: Path, said: Said | None = None, **more: Any) -> data.Photos:
    options: dict[str, Any] = {"image_size": SIZE, "seed": 3, "cache": False, "check": True, "workers": 0}
    options |= {"may_write": True, "say": Said() if said is None else said}
    return data.load_photos(str(path), **options | more)


def corner(image_CHW: Tensor, position: int) -> Tensor:
    """A "random" crop that depends on the position."""
    top, left = position % (image_CHW.shape[1] - SIZE + 1), 7 * position % (image_CHW.shape[2] - SIZE + 1)
    return image_CHW[:, top : top + SIZE, left : left + SIZE]


def plain(images_BCHW: Tensor, positions_B: Tensor) -> Tensor:
    return images_BCHW.float() + positions_B[:, None, None, None]


def batches(photos: data.PhotoSet, batch_size: int = 10, **more: Any) -> data.PhotoBatches:
    return data.PhotoBatches(photos, batch_size, **{"seed": 5, "crop": corner, "augment": plain} | more)


def digest(tensor: Tensor) -> str:
    """Of the values in their order, however they lie in memory."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def seen(batch: data.Batch) -> tuple[list[int], list[int], list[int], str]:
    return batch.positions_N.tolist(), batch.indices_N.tolist(), batch.targets_N.tolist(), digest(batch.images_NCHW)


def all_pixels(photos: data.PhotoSet) -> Tensor:
    return torch.cat(list(photos.read([(0, len(photos) // 2), (len(photos) // 2, len(photos))])))
