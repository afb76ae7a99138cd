"""`pitstop fetch WHAT`: brings data or weights before the hour is paid for. Data need no torch, nothing needs a GPU."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field

from pitstop.config import from_environment
from pitstop.download import KNOWN, Arrival, Remote, bring, download
from pitstop.download.checksum import digest
from pitstop.errors import FINISHED, PERSON_DECIDES, UserError
from pitstop.flags import parse
from pitstop.values import Directory


class Fetch(BaseModel):
    """Brings data or pretrained weights to where recipes find them; goes on where an earlier try was cut."""

    model_config = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True)

    what: str = Field(min_length=1)
    """cifar10, cifar100, mnist, fashion_mnist, a timm model (resnet18, resnet18.a1_in1k), or a URL"""
    data_dir: Directory = from_environment("PITSTOP_DATA_DIR", "data")
    """where data are kept (weights: HF_HOME, by default ~/.cache/huggingface)"""
    price: float = from_environment("PITSTOP_PRICE", "0", ge=0)
    """of the machine per hour: what the wait costs is then shown"""
    currency: str = Field("CNY", min_length=1, max_length=12)
    """of --price"""


def command(argv: Sequence[str]) -> int:
    """The exit code of `pitstop fetch <argv>`.

    Raises:
        SystemExit: after the help, and for wrong flags.
        UserError: it cannot be had; what has arrived is kept.
    """
    flags = parse(Fetch, argv, words=("what",), program="pitstop fetch")
    with_line = _Line(sys.stderr.isatty())
    arrival = Arrival(
        with_line.say,
        live=with_line.write if with_line.live else None,
        price=flags.price,
        currency=flags.currency,
        advice=f"If that is too slow: {_advice(flags.what)}.",
    )
    try:
        place = _bring(flags, arrival)
    except KeyboardInterrupt:
        with_line.say(f"stopped; what has arrived is kept, and pitstop fetch {flags.what} goes on from there")
        return PERSON_DECIDES
    finally:
        with_line.close()
    print(f"{flags.what} is at {place}", flush=True)
    return FINISHED


def _bring(flags: Fetch, arrival: Arrival) -> Path:
    if flags.what in KNOWN:
        bring(flags.what, flags.data_dir, arrival)
        return Path(os.path.commonpath(list(KNOWN[flags.what].paths(flags.data_dir))))
    if "://" in flags.what:
        return _bring_url(flags.what, flags.data_dir, arrival)
    arrival.say(f"looking for the pretrained weights of {flags.what} ...")  # torch takes seconds to import
    from pitstop import pretrained

    found = pretrained.find(flags.what, may_write=True, say=arrival.say, arrival=arrival)
    assert found is not None, "it may write"
    return found


def _bring_url(url: str, folder: Path, arrival: Arrival) -> Path:
    """Whose checksum nobody knows: the length is verified, and the SHA-256 is said."""
    name = Path(unquote(urlsplit(url).path)).name
    if not name:
        raise UserError(f"{url} names no file: its last part would be the name on disk.")
    target = folder / name
    if target.is_dir():
        raise UserError(f"{target}, where {url} would be kept, is a folder: give another --data_dir.")
    if target.exists():
        arrival.say(f"{target} is there already: delete it to fetch it anew.")
    else:
        arrival.say(f"{target} is not there: downloading {url}.")
    download(Remote((url,)), target, arrival)
    arrival.say(f"{target.stat().st_size:,} bytes, SHA-256 {digest(target, 'sha256')}")
    return target


def _advice(what: str) -> str:
    if what in KNOWN:
        return KNOWN[what].advice
    if "://" in what:
        return "another address of the same file, or a proxy (https_proxy), may be faster"
    return "set HF_ENDPOINT=https://hf-mirror.com (or another mirror of Hugging Face) before the command"


class _Line:
    """On a terminal one line that is written over; lines that stay are put above it."""

    def __init__(self, live: bool) -> None:
        self.live, self._width = live, 0

    def write(self, text: str) -> None:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80  # some terminals say that they have none
        text = text[: columns - 1]
        sys.stderr.write(f"\r{text:<{self._width}}")
        sys.stderr.flush()
        self._width = len(text)

    def say(self, text: str) -> None:
        self.close()
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            self._width = 0
