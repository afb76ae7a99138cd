"""The pretrained weights that timm would use: found where timm finds them, or brought there, in bounded time.

The layout of the cache is that of huggingface_hub ("Understand caching" in its documentation): blobs named by their
checksum, snapshots/<commit>/<file> that link to them, refs/<revision> that names the commit.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg
from torch.hub import get_dir

from pitstop import files
from pitstop.download import Arrival, Checksum, DownloadError, Remote, download
from pitstop.download.hub import look_up
from pitstop.errors import UserError

HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there
ADVICE = "set HF_ENDPOINT=https://hf-mirror.com (or another mirror of Hugging Face) before the command"
SHA256 = re.compile(r"[0-9a-f]{64}")


def source(model: str) -> str:
    """What the weights are called: `timm/resnet18.a1_in1k`, or the name of a file.

    Raises:
        UserError: timm has no such model, or no pretrained weights for it that can be loaded.
    """
    cfg = _config(model)
    return str(cfg.hf_hub_id or Path(cfg.file or cfg.url).name)


def normalisation(model: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std, of pixels in 0..1, that the weights were trained with; ImageNet's where timm names none."""
    cfg = tagged(model) if timm.is_model(model) else None
    if cfg is None:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return tuple(cfg.mean), tuple(cfg.std)


def find(model: str, *, may_write: bool, say: Callable[[str], None], arrival: Arrival | None = None) -> Path | None:
    """The file with timm's pretrained weights for `model` (`resnet18`, or with a tag `resnet18.a1_in1k`).

    Taken from the cache of Hugging Face (HF_HOME, HF_HUB_CACHE), else (`may_write`, and HF_HUB_OFFLINE is not set)
    downloaded into it from HF_ENDPOINT, by one process while the others wait. None: it is not there, and nothing may be
    written.

    Raises:
        UserError: no such weights, no network (within 10 s), no room, a damaged file; it says how to go on.
    """
    cfg = _config(model)
    if cfg.file:
        return Path(cfg.file)
    if found := _cached(cfg):
        return found
    name = source(model)
    if not may_write:
        say(f"The pretrained weights {name} are not here yet: a run downloads them.")
        return None
    if constants.HF_HUB_OFFLINE and cfg.hf_hub_id:
        raise _unavailable(model, name, f"they are not in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set")
    arrival = arrival or Arrival(say, advice=f"If that is too slow: {ADVICE}.")
    try:
        return _from_hub(cfg.hf_hub_id, cfg.hf_hub_filename, arrival) if cfg.hf_hub_id else _from_url(cfg.url, arrival)
    except DownloadError as error:
        raise _unavailable(model, name, str(error)) from error
    except OSError as error:
        raise UserError(f"The weights {name} cannot be kept: {error}. Set HF_HOME to a folder for them.") from error


def verified(file: Path) -> str:
    """The SHA-256 of what `find` has returned, which it has compared with the name of the blob; "": another name."""
    name = file.resolve().name
    return name if SHA256.fullmatch(name) else ""


def tagged(model: str) -> Any:
    """timm's PretrainedCfg of a model that timm has; None: timm has no weights for it.

    Raises:
        UserError: it has none of this tag (`a1_in1k` of `resnet18.a1_in1k`).
    """
    try:
        return get_pretrained_cfg(model)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{model.split('.')[0]}.*")) or "none"
        raise UserError(f"{model}: {error} There are: {tags}.") from error


def _config(model: str) -> Any:
    """timm's PretrainedCfg, which says where the weights are."""
    if not timm.is_model(model):
        raise UserError(f"{model}: timm {timm.__version__} has no such model.")
    cfg = tagged(model)
    if cfg is None or not (cfg.hf_hub_id or cfg.url or cfg.file):
        raise UserError(f"timm has no pretrained weights for {model}: give --weights FILE or --weights none.")
    if cfg.url and not cfg.hf_hub_id and (cfg.custom_load or str(cfg.url).endswith(".npz")):
        raise UserError(f"The weights of {model} ({cfg.url}) are of another program: give --weights FILE.")
    return cfg


def _split(hub_id: str) -> tuple[str, str]:
    """(repository, revision) of timm's `hf_hub_id`."""
    repository, _, revision = hub_id.partition("@")
    return repository, revision or "main"


def _names(file_name: str | None) -> tuple[str, ...]:
    return (file_name,) if file_name else HUB_FILES


def _cached(cfg: Any) -> Path | None:
    """Raises UserError if it is there and damaged: its name, or that of the blob, tells what it must hash to."""
    if cfg.hf_hub_id:
        repository, revision = _split(cfg.hf_hub_id)
        for name in _names(cfg.hf_hub_filename):
            found = try_to_load_from_cache(repository, name, cache_dir=constants.HF_HUB_CACHE, revision=revision)
            if isinstance(found, str):
                blob = Path(found).resolve()
                if SHA256.fullmatch(blob.name):
                    Checksum("sha256", blob.name).require(blob)
                return Path(found)
        return None
    target, checksum = _hub_directory(cfg.url)
    if not target.exists():
        return None
    if checksum:
        checksum.require(target)
    return target


def _from_hub(hub_id: str, file_name: str | None, arrival: Arrival) -> Path:
    """Raises DownloadError; OSError if the cache cannot be written."""
    repository, revision = _split(hub_id)
    arrival.say(f"Asking {constants.ENDPOINT} for {repository}.")
    for name in _names(file_name):
        url = f"{constants.ENDPOINT}/{repository}/resolve/{revision}/{name}"
        if (found := look_up(url, arrival.say)) is not None:
            break
    else:
        raise DownloadError(f"{constants.ENDPOINT}/{repository} has no {' and no '.join(_names(file_name))}.")
    storage = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    blob, link = storage / "blobs" / found.etag, storage / "snapshots" / found.commit / name
    size = f" ({found.size_bytes / 1e6:,.1f} MB)" if found.size_bytes else ""
    arrival.say(f"{repository}/{name} is not in {constants.HF_HUB_CACHE}: downloading {url}{size}.")
    checksum = Checksum("sha256", found.etag) if SHA256.fullmatch(found.etag) else None
    download(Remote((url,), checksum, found.size_bytes), blob, arrival, name=f"{repository}/{name}")
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.unlink(missing_ok=True)  # a link to nowhere
        try:
            os.symlink(os.path.relpath(blob, link.parent), link)
        except FileExistsError:  # another process was faster
            pass
        except OSError:  # a file system without links; huggingface_hub does the same there
            os.replace(blob, link)
    (storage / "refs").mkdir(exist_ok=True)
    files.write_atomic(storage / "refs" / revision, found.commit)
    return link


def _hub_directory(url: str) -> tuple[Path, Checksum | None]:
    """Where torch.hub keeps what it loads from `url`, whose name ends in the beginning of its SHA-256."""
    name = Path(url).name
    digits = re.search(r"-([a-f0-9]{8,})\.", name)
    return Path(get_dir()) / "checkpoints" / name, Checksum("sha256", digits[1]) if digits else None


def _from_url(url: str, arrival: Arrival) -> Path:
    target, checksum = _hub_directory(url)
    arrival.say(f"{target} is not there: downloading {url}.")
    download(Remote((url,), checksum), target, arrival)
    return target


def _unavailable(model: str, name: str, cause: str) -> UserError:
    return UserError(
        f"The pretrained weights of {model} ({name}) cannot be had: {cause}\n"
        "To go on, do one of these:\n"
        f"  - {ADVICE}\n"
        f"  - where there is a network: pitstop fetch {model}, which goes on where it was cut; then bring the\n"
        f"    folder {constants.HF_HUB_CACHE} here, or set HF_HOME to where it lies\n"
        "  - --weights FILE: a .safetensors or .pth of this model, or the directory of another run\n"
        "  - --weights none: begins with random weights"
    )
