"""What a file must hash to."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pitstop.errors import UserError


@dataclass(frozen=True)
class Checksum:
    """`expected` may be the beginning of the hexadecimal digits, which is all that torch's file names tell."""

    algorithm: Literal["md5", "sha256"]
    expected: str

    def __str__(self) -> str:
        return f"{self.algorithm.upper()} {self.expected}"

    def of(self, path: Path) -> str:
        return digest(path, self.algorithm)

    def matches(self, path: Path) -> bool:
        return self.of(path).startswith(self.expected)

    def require(self, path: Path) -> None:
        """Raises UserError with both checksums if `path` has another one."""
        if not (got := self.of(path)).startswith(self.expected):
            raise UserError(
                f"{path} is damaged or another file: expected {self}, got {got} ({path.stat().st_size:,} bytes). "
                "Delete it, or replace it by the right one."
            )


def digest(path: Path, algorithm: str) -> str:
    """Of the file, in hexadecimal digits."""
    hashed = hashlib.new(algorithm, usedforsecurity=False)  # MD5 is what torchvision publishes
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            hashed.update(piece)
    return hashed.hexdigest()
