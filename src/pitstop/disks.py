"""Disks that will not outlive the machine: said before the first paid step, with a place that will.

Only what the kernel says counts: /proc/self/mountinfo (proc(5)) and /sys/block. What it does not say, such as whether
the whole machine is deleted with its root disk, nobody is warned of.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}
LAYERS = {"overlay", "aufs", "fuse.fuse-overlayfs"}  # what a container writes on its image
NETWORK = re.compile(r"nfs4?|cifs|smb3|ceph|lustre|beegfs|gpfs|virtiofs")
LOCAL = re.compile(r"ext3|ext4|xfs|btrfs|zfs|f2fs")
FUSE = re.compile(r"fuse|fuse\..+")  # buckets, Google Drive: some have no locks, which is found out at the start
INSTANCE_STORES = (  # what the disk calls itself in /sys/block/*/device/model: emptied when the instance stops
    ("an instance store of AWS", re.compile(r"Amazon EC2 NVMe Instance Storage")),
    ("a local SSD of Google Cloud", re.compile(r"nvme_card\d*|EphemeralDisk")),  # nvme_card-pd is a persistent disk
    ("a local disk of Azure", re.compile(r"Microsoft NVMe Direct Disk( v\d+)?")),
)
AZURE_TEMPORARY = ("azure/resource", "cloud/azure_resource")  # below /dev/disk: the SCSI one has no model of its own
EMPTY_DIR = "/kubernetes.io~empty-dir/"  # in the path, on its disk, of what is mounted

KNOWN = {  # where rented containers keep things, best first: mount point -> directory there, what it is
    "/root/autodl-fs": ("", "AutoDL's file storage, outlives the instance"),
    "/root/autodl-tmp": ("", "AutoDL's data disk, outlives a stop, not a release"),
    "/workspace": ("", "the pod's volume, outlives the container"),
    "/content/drive": ("MyDrive", "Google Drive"),
    "/kaggle/working": ("", "kept by Kaggle with a saved version"),
}
SYSTEM = re.compile(r"/(boot|dev|efi|etc|lib\d*|proc|run|snap|sys|tmp|usr|var)(/.*)?")


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo."""

    number: str
    parent: str
    device: str  # major:minor
    root: str  # the directory of its file system that is mounted
    point: str
    writable: bool
    kind: str
    source: str


def _writable_directory(path: Path) -> bool:
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def fleeting(
    path: Path,
    mounts: Path = Path("/proc/self/mountinfo"),
    blocks: Path = Path("/sys/block"),
    links: Path = Path("/dev/disk"),
    usable: Callable[[Path], bool] = _writable_directory,
) -> str | None:
    """Why what is written below `path`, which need not exist yet, will not outlive the machine: two lines for a person,
    the second with a place that will, if one is mounted. None where it will, or nothing is known."""
    table = list(_read(mounts))
    target = Path(os.path.realpath(path))
    found = _holding(target, table)
    disks = _Disks(blocks, links)
    reason = disks.why_fleeting(found) if found else None
    if not (found and reason):
        return None
    advice = (
        "No lasting disk is mounted here: mount one and name it with --runs_dir, or copy the saves off with --store."
    )
    for place, what in _lasting(table, disks):
        if usable(place):
            advice = f"Lasting: --runs_dir {place / 'runs'} ({what}); or copy the saves off the machine with --store."
            break
    return f"{target} lies on {reason}: mounted at {found.point}, {found.kind}.\n{advice}"


def _read(mounts: Path) -> Iterator[Mount]:
    try:
        lines = mounts.read_text("utf-8", "surrogateescape").split("\n")
    except OSError:  # not Linux, or a sandbox
        return
    for line in lines:
        before, dash, after = line.partition(" - ")
        first, last = before.split(" "), after.split(" ")
        if dash and len(first) >= 6 and len(last) >= 3:
            number, parent, device, root, point, options = first[:6]
            writable = "rw" in options.split(",") and "ro" not in last[2].split(",")
            yield Mount(number, parent, device, _plain(root), _plain(point), writable, last[0], _plain(last[1]))


def _plain(text: str) -> str:
    r"""Blank, tab, newline and backslash stand there as \040, \011, \012 and \134."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _holding(path: Path, table: list[Mount]) -> Mount | None:
    """The mount that `path` is on, found as the kernel finds it: down the path, onto whatever is mounted on the place
    reached so far. The longest match alone would take a mount that a later one hides."""
    here = next((mount for mount in table if mount.point == "/"), None)
    for place in [*map(str, reversed(path.parents)), str(path)]:
        while here and (above := _mounted_on(here, place, table)):
            here = above
    return here


def _mounted_on(below: Mount, place: str, table: list[Mount]) -> Mount | None:
    on = (mount for mount in table if mount.parent == below.number and mount.point == place and mount != below)
    return next(on, None)


class _Disks:
    """The block devices of this machine."""

    def __init__(self, blocks: Path, links: Path) -> None:
        self._blocks, self._links = blocks, links

    def why_fleeting(self, mount: Mount) -> str | None:
        if mount.kind in IN_MEMORY:
            return "a disk in memory, gone with a restart"
        if mount.kind in LAYERS:
            return "the container's own layer, gone with the container"
        if EMPTY_DIR in mount.root:
            return "an emptyDir of Kubernetes, gone with the pod"
        disk = self._disk(mount)
        return self._why(disk, set()) if disk else None

    def _disk(self, mount: Mount) -> Path | None:
        """The whole disk in /sys/block. By number; by name for btrfs, whose numbers are made up."""
        name = Path(mount.source).name if mount.source.startswith("/dev/") else None
        try:
            disks = sorted(self._blocks.iterdir())
        except OSError:
            return None
        for disk in disks:
            for device in (disk, *sorted(disk.glob(f"{disk.name}*/"))):
                if _text(device / "dev") == mount.device or (mount.kind == "btrfs" and device.name == name):
                    return disk
        return None

    def _why(self, disk: Path, seen: set[str]) -> str | None:
        if disk.name in seen:
            return None
        seen.add(disk.name)
        model = _text(disk / "device" / "model")
        for name, pattern in INSTANCE_STORES:
            if pattern.fullmatch(model):
                return f"{name}, emptied when the instance stops"
        for link in AZURE_TEMPORARY:
            if (self._links / link).is_symlink() and os.readlink(self._links / link).endswith(f"/{disk.name}"):
                return "Azure's temporary disk, emptied when the machine stops"
        try:
            parts = sorted((disk / "slaves").iterdir())  # of a RAID, of LVM, under encryption
        except OSError:
            return None
        return next((why for part in parts if (why := self._why(self._whole(part.name), seen))), None)

    def _whole(self, name: str) -> Path:
        """The disk of a partition."""
        return next((disk.parent for disk in self._blocks.glob(f"*/{name}")), self._blocks / name)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _lasting(table: list[Mount], disks: _Disks) -> list[tuple[Path, str]]:
    """Where, and what that is: known places first, then network file systems, local disks, FUSE, and at last the home
    directory where the root disk lasts."""
    home = Path(os.path.expanduser("~"))
    ranked = []
    for mount in table:
        kinds = [number for number, kind in enumerate((NETWORK, LOCAL, FUSE)) if kind.fullmatch(mount.kind)]
        place = home if mount.point == "/" else Path(mount.point)
        if not kinds or not mount.writable or SYSTEM.fullmatch(mount.point):
            continue
        if mount.point == "/" and not (LOCAL.fullmatch(mount.kind) and home.is_absolute()):
            continue
        if _holding(place, table) != mount or disks.why_fleeting(mount):
            continue
        if mount.point in KNOWN:
            below, what = KNOWN[mount.point]
            ranked.append((list(KNOWN).index(mount.point) - len(KNOWN), place / below, what))
        else:
            ranked.append((9 if mount.point == "/" else kinds[0], place, mount.kind))
    return [(place, what) for _, place, what in sorted(ranked)]
