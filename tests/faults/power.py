"""What a disk may hold after the power has failed: every call that changes a directory is noted, and played back.

A file system promises little (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014): the bytes of a file
are on the disk after fsync(file), its name after fsync(directory). What was not fsynced may be there, or not, or in
part, in any order. That is POSIX; `ordered` is what ext4 and XFS do: names reach the disk in the order of the calls,
and each fsync takes along all names before it.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from faults.recorder import Call, Nodes, change_bytes

SECTOR = 512


def some_subsets(calls: list[Call], chance: random.Random) -> Iterator[tuple[Call, ...]]:
    """All of them if they are few; else all beginnings, each one alone, each one missing, and some at random."""
    if len(calls) <= 4:
        for size in range(len(calls) + 1):
            yield from combinations(calls, size)
        return
    for number in range(len(calls) + 1):
        yield tuple(calls[:number])
    for number in range(len(calls)):
        yield (calls[number],)
        yield tuple(calls[:number] + calls[number + 1 :])
    for _ in range(6):
        yield tuple(call for call in calls if chance.random() < 0.5)


def torn(content: bytes, calls: list[Call]) -> list[bytes]:
    """What may be there of a file whose last changes were not fsynced: none of them, all, some, the size alone, the
    first sectors, every second sector."""
    after = [content]
    for call in calls:
        after.append(change_bytes(after[-1], call))
    whole = after[-1]
    without_first = content
    for call in calls[1:]:
        without_first = change_bytes(without_first, call)
    begun = min((call.offset for call in calls), default=0)
    zeros = whole[:begun].ljust(len(whole), b"\x00")
    border = (begun // SECTOR + 1) * SECTOR
    sectors = b"".join(
        (whole if start // SECTOR % 2 else zeros)[start : start + SECTOR] for start in range(0, len(whole), SECTOR)
    )
    middle = (begun + len(whole)) // 2
    return [*after, without_first, zeros, whole[:border].ljust(len(whole), b"\x00"), sectors, whole[:middle]]


@dataclass(frozen=True)
class State:
    """What the disk may hold, and the notes that were made before the power failed."""

    tree: dict[str, bytes | None]
    notes: list[Any]


def states(calls: list[Call], *, ordered: bool) -> Iterator[State]:
    """Legal states of the disk, each once. Looked at right before each fsync and note, and at the end: what may be
    there at any other time may be there then, too."""
    chance, seen = random.Random(0), set()
    for number, next_call in enumerate([*calls, Call("note")]):
        if next_call.kind not in ("fsync", "note"):
            continue
        notes = [call.note for call in calls[:number] if call.kind == "note"]
        for tree in at_call(calls[:number], ordered, chance):
            key = hashlib.sha256(repr((sorted(tree.items()), notes[-1:])).encode()).digest()
            if key not in seen:
                seen.add(key)
                yield State(tree, notes)


def at_call(calls: list[Call], ordered: bool, chance: random.Random) -> Iterator[dict[str, bytes | None]]:
    """Trees that may be there if the power fails after these calls."""
    durable = Nodes()
    names: list[Call] = []  # not fsynced
    changes: dict[int, list[Call]] = {}  # file -> not fsynced
    for call in calls:
        if call.kind == "name":
            durable.add(call.entry, call.directory)
            names.append(call)
        elif call.kind == "data":
            changes.setdefault(call.node, []).append(call)
        elif call.kind == "fsync":
            for done in [name for name in names if ordered or name.node == call.node]:
                names.remove(done)
                durable.apply(done)
            for done in changes.pop(call.node, []):
                durable.apply(done)
    beginnings = [tuple(names[:count]) for count in range(len(names) + 1)]
    for subset in beginnings if ordered else some_subsets(names, chance):
        nodes = Nodes({node: dict(entries) for node, entries in durable.directories.items()}, dict(durable.contents))
        for call in subset:
            nodes.apply(call)
        choices = {node: torn(nodes.contents[node], of_file) for node, of_file in changes.items()}
        picks = [{node: contents[0] for node, contents in choices.items()}]
        picks.append({node: contents[len(changes[node])] for node, contents in choices.items()})
        picks.append({node: chance.choice(contents) for node, contents in choices.items()})
        if len(subset) in (0, len(names)):
            picks += [{node: content} for node, contents in choices.items() for content in contents[1:]]
        for pick in picks:
            yield Nodes(nodes.directories, nodes.contents | pick).tree()
