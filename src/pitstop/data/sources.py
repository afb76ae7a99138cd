"""What `--data` may name: a known set, a folder, or an archive."""

import difflib
import os
from collections.abc import Callable
from pathlib import Path

from pitstop.data.archive import ARCHIVE_SUFFIXES
from pitstop.data.cache import Shelf
from pitstop.data.cifar import DATASETS, CifarName, load_cifar
from pitstop.data.folder import load_folder
from pitstop.data.images import ImageSet
from pitstop.data.mnist import CLASSES, idx_files, load_idx, load_mnist
from pitstop.download import KNOWN
from pitstop.errors import UserError

ACCEPTED = (
    f"--data takes {', '.join(KNOWN)}, or the path of a folder or an archive ({', '.join(ARCHIVE_SUFFIXES)}) "
    "with train/<class>/* and test/<class>/*, or of a folder with IDX files (train-images-idx3-ubyte, ...)."
)


def load(
    spec: str,
    *,
    image_size: int,
    may_write: bool,
    say: Callable[[str], None],
    shelf: Shelf | None = None,
) -> tuple[ImageSet, ImageSet]:
    """Train and test set that `spec` names, of image_size x image_size.

    Downloads and decoded images are kept below `PITSTOP_DATA_DIR` (default `data`). Unless it `may_write` (a dry run)
    nothing is downloaded, extracted or kept: a known set that is not there comes back on the `meta` device. What was
    decoded is offered to the `shelf`, for other machines.

    Raises:
        UserError: `spec` names nothing, or what it names cannot be used.
    """
    data_dir = Path(os.environ.get("PITSTOP_DATA_DIR") or "data").expanduser()
    for name in DATASETS:
        if spec == name:
            _require_size(name, image_size, 32)
            return load_cifar(name, data_dir, download=may_write, extract=may_write, say=say)
    for mnist in CLASSES:
        if spec == mnist:
            _require_size(mnist, image_size, 28)
            return load_mnist(mnist, data_dir, may_write=may_write, say=say)
    path = Path(spec).expanduser()
    if not spec or not path.exists():
        raise UserError(f"There is no data named {spec!r}{_nearest(spec, path)}. {ACCEPTED}")
    if held := _cifar_at(path):
        name, folder = held
        _require_size(name, image_size, 32)
        return load_cifar(name, folder, download=False, extract=may_write, say=say)
    if idx_files(path):
        train, test = load_idx(path)
        _require_size(spec, image_size, train.size)
        return train, test
    cache = data_dir / "cache" if may_write else None
    return load_folder(path, image_size=image_size, cache=cache, say=say, shelf=shelf)


def _cifar_at(path: Path) -> tuple[CifarName, Path] | None:
    """The set that torchvision's archive or batches at `path`, or directly in it, hold; with the folder around them.

    Of both in one folder CIFAR-10 is meant.
    """
    for name, dataset in DATASETS.items():
        own = (dataset.filename, dataset.base_folder)
        if path.name in own:
            return name, path.parent
        if path.is_dir() and any((path / each).exists() for each in own):
            return name, path
    return None


def _require_size(name: str, image_size: int, size: int) -> None:
    if image_size != size:
        raise UserError(
            f"{name} has images of {size}x{size}, but {image_size}x{image_size} are asked for (--image_size). "
            "Images of your own (--data FOLDER|ZIP) are resized to any size."
        )


def _nearest(spec: str, path: Path) -> str:
    siblings = [str(path.with_name(each)) for each in os.listdir(path.parent)] if path.parent.is_dir() else []
    near = difflib.get_close_matches(spec.lower(), list(KNOWN), n=1) or difflib.get_close_matches(
        str(path), siblings, n=1
    )
    return f", nor such a path; did you mean {near[0]!r}?" if near else ", nor such a path"
