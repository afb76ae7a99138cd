"""Which image files a folder or an archive holds, in their order, by split and class; what is no use is said."""

import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pitstop import files
from pitstop.data import decode as decoding
from pitstop.data.archive import ARCHIVE_SUFFIXES, SPLITS, Member, Source
from pitstop.errors import UserError

MAX_SKIPPED_SHARE = 0.1
NUM_NAMED = 5
LIKE_A_SPLIT = re.compile(r"((\w*[_ -])?train(ing)?|test(ing)?|val|valid|validation)([_ -]?(set|data))?", re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """The image files of a source in their order: by split, class, and name."""

    classes: tuple[str, ...]
    splits: dict[str, list[Member]]  # by role: "train", and what else there is
    notes: list[str]


def arrange(
    source: Source, path: Path, roles: Mapping[str, Sequence[str]], *, required: Collection[str], expected: str
) -> Layout:
    """Finds the folder of each role ("train", "test") by its possible names, best first; classes are those of train.

    Args:
        path: of the source; `expected` is a sentence on what should lie there. Both for messages.

    Raises:
        UserError: a required role has no folder; fewer than two classes; a class without images or unknown to train.
    """
    found = {role: [name for name in names if name in source.folders] for role, names in roles.items()}
    if missing := [role for role in roles if role in required and not found[role]]:
        seen = ", ".join(f"{name}/" for name in source.top[:10]) or "no folder"
        names = sorted(os.listdir(path)) if path.is_dir() else ()
        packed = next((name for name in names if name.lower().endswith(ARCHIVE_SUFFIXES)), "")
        hint = f", but {packed}: did you mean --data {shlex.quote(str(path / packed))}?" if packed else "."
        raise UserError(f"{path} has no {missing[0]} folder; found {seen}{hint} {expected}")
    used = {names[0]: role for role, names in found.items() if names}
    splits: dict[str, list[Member]] = {role: [] for role in used.values()}
    others: list[str] = []
    for member in source.members:
        parts = member.name.split("/")
        if parts[0] not in used:
            continue
        if len(parts) > 2 and PurePosixPath(member.name).suffix.lower() in decoding.SUFFIXES:
            splits[used[parts[0]]].append(member)
        else:
            others.append(member.name)
    for members in splits.values():
        members.sort(key=class_and_name)
    train = next(name for name, role in used.items() if role == "train")
    classes = sorted({name.split("/")[1] for name in source.folders if name.startswith(f"{train}/")})
    _require_classes(classes, {folder: splits[role] for folder, role in used.items()}, path, expected)
    return Layout(tuple(classes), splits, _notes(found, others, source.refused))


def require_usual_names(source: Source, path: Path, expected: str) -> None:
    """Raises UserError for Train/, validation/ and their like: they would be taken for classes, or not be read."""
    if unusual := [name for name in source.top if LIKE_A_SPLIT.fullmatch(name) and name not in SPLITS]:
        raise UserError(
            f"{path}: {', '.join(f'{name}/' for name in unusual)}: is that a split? Rename it to train/, val/ or "
            f"test/, in small letters; or, if it is a class, put all class folders into a folder train/. {expected}"
        )


def _notes(found: Mapping[str, list[str]], others: list[str], refused: list[str]) -> list[str]:
    notes = []
    for role, names in found.items():
        if names and names != [role]:
            unused = "".join(f"; {split}/ is not read" for split in names[1:])
            notes.append(f"{names[0]}/ serves as the {role} set{unused}.")
    if others:
        notes.append(f"Ignored {len(others):,} files that are no images in a class folder, such as {min(others)}.")
    if refused:
        notes.append(f"Refused {len(refused):,}: {'; '.join(sorted(refused)[:NUM_NAMED])}.")
    return notes


def class_and_name(member: Member) -> tuple[str, str]:
    _, class_name, rest = member.name.split("/", 2)
    return class_name, rest


def _require_classes(classes: list[str], splits: dict[str, list[Member]], path: Path, expected: str) -> None:
    """`splits` by the folder they are in, train first."""
    train, *held_out = splits
    if len(classes) < 2:
        raise UserError(
            f"{path}: {train}/ has {len(classes)} class folder(s) {classes}, at least 2 are needed. {expected}"
        )
    with_images = {folder: {class_and_name(member)[0] for member in members} for folder, members in splits.items()}
    if empty := sorted(set(classes) - with_images[train]):
        raise UserError(f"{path}: no image in {listed(train, empty)}. Add images, or delete the folder. {expected}")
    for folder in held_out:
        if unknown := sorted(with_images[folder] - set(classes)):
            raise UserError(
                f"{path}: {listed(folder, unknown)} is a class that {train}/ lacks; {train}/ has "
                f"{listed(train, classes)}. The folders of a class must have the same name in both."
            )
        if not with_images[folder]:
            raise UserError(f"{path}: no image in {folder}/. {expected}")


def listed(split: str, names: Sequence[str]) -> str:
    return ", ".join(f"{split}/{name}" for name in names[:NUM_NAMED]) + (", ..." if names[NUM_NAMED:] else "")


def content_key(layout: Layout, *of: Any) -> str:
    """A hash of every file's name, size and mark, and of what `of` names besides."""
    listing = [[member.name, member.num_bytes, member.mark] for members in layout.splits.values() for member in members]
    return files.sha256(files.canonical_json([*of, layout.classes, list(layout.splits), listing]).encode())[:32]


def report_skipped(skipped: Mapping[str, str], num_files: int, path: Path, say: Callable[[str], None]) -> list[str]:
    """Says which files (name -> reason) are skipped, all of them, and returns it in a few words.

    Raises:
        UserError: more than a tenth of all are.
    """
    if not skipped:
        return []
    named = [f"{name}: {skipped[name]}" for name in sorted(skipped)]
    if len(skipped) > MAX_SKIPPED_SHARE * num_files:
        raise UserError(
            f"{path}: {len(skipped):,} of {num_files:,} image files cannot be used, more than a tenth:\n  "
            + "\n  ".join(named[:NUM_NAMED])
            + "\nRemove or replace them."
        )
    say(f"Skipped {len(skipped):,} of {num_files:,} image files:")
    for line in named:
        say(f"  {line}")
    return [f"{len(skipped):,} of {num_files:,} image files skipped, such as {min(skipped)}"]


def report_lacking(classes: Sequence[str], counts_K: Sequence[int], role: str, say: Callable[[str], None]) -> None:
    if lacking := [name for name, number in zip(classes, counts_K, strict=True) if number == 0]:
        more = ", ..." if lacking[NUM_NAMED:] else ""
        say(f"Classes without a {role} image: {', '.join(lacking[:NUM_NAMED])}{more}.")


def tally(members: Sequence[Member]) -> dict[str, Any]:
    """Images per class, and the hash of the names (without the split) and sizes in their order."""
    names = [[member.name.split("/", 1)[1], member.num_bytes] for member in members]
    return {
        "images": dict(Counter(class_and_name(member)[0] for member in members)),
        "sha256": files.sha256(files.canonical_json(names).encode()),
    }
