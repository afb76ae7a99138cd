"""Which disk is it, and will it last: mount tables as containers, clouds and rentals have them, written down here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pitstop.disks import fleeting

VM = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
25 24 0:23 / /dev/shm rw,relatime - tmpfs tmpfs rw,size=24684096k
24 27 0:6 / /dev rw,relatime - devtmpfs devtmpfs rw,mode=755
27 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw,discard
28 27 254:15 / /boot/efi rw,relatime - vfat /dev/vda15 rw
29 27 7:0 / /snap/core/1 ro,nodev - squashfs /dev/loop0 ro
30 27 0:40 / /tmp rw,nosuid - tmpfs tmpfs rw
31 27 0:41 / /run rw,nosuid - tmpfs tmpfs rw
"""
CONTAINER = """\
600 500 0:52 / / rw,relatime - overlay overlay rw,lowerdir=/l/A:/l/B,upperdir=/u,workdir=/w
601 600 0:55 / /proc rw,nosuid - proc proc rw
602 600 0:56 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k
603 602 0:58 / /dev/shm rw,nosuid - tmpfs shm rw,size=65536k
604 600 259:1 /docker/containers/abc/resolv.conf /etc/resolv.conf rw - ext4 /dev/nvme0n1p1 rw
605 600 259:1 /usr/bin/nvidia-smi /usr/bin/nvidia-smi ro - ext4 /dev/nvme0n1p1 rw
606 600 0:60 / /var/lib/thing rw - ext4 /dev/sdz rw
"""


class Machine:
    """A mount table, and the block devices in a made-up /sys/block and /dev/disk."""

    def __init__(self, root: Path, table: str) -> None:
        self.mounts, self.blocks, self.links = root / "mountinfo", root / "block", root / "disk"
        self.mounts.write_text(table)
        self.blocks.mkdir()
        self.links.mkdir()

    def disk(self, name: str, number: str, model: str = "", partitions: dict[str, str] | None = None) -> None:
        (self.blocks / name / "device").mkdir(parents=True)
        (self.blocks / name / "dev").write_text(number + "\n")
        (self.blocks / name / "device" / "model").write_text(f"{model:40}\n")
        for partition, its_number in (partitions or {}).items():
            (self.blocks / name / partition).mkdir()
            (self.blocks / name / partition / "dev").write_text(its_number + "\n")

    def slaves(self, name: str, *parts: str) -> None:
        for part in parts:
            (self.blocks / name / "slaves" / part).mkdir(parents=True)

    def ask(self, path: str, usable: set[str] | None = None) -> str | None:
        return fleeting(
            Path(path),
            self.mounts,
            self.blocks,
            self.links,
            usable=lambda place: usable is None or str(place) in usable,
        )


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nohome")  # paths here must not run into links of the machine that tests


def warned(text: str | None, *parts: str) -> None:
    assert text is not None
    assert len(text.splitlines()) == 2
    for part in parts:
        assert part in text
    assert "--store" in text


def test_a_root_disk_is_nothing_to_warn_of(tmp_path: Path) -> None:
    machine = Machine(tmp_path, VM)
    machine.disk("vda", "254:0", partitions={"vda1": "254:1", "vda15": "254:15"})
    for path in ("/", "/nohome/runs", "/srv/x/y/z", "/tmpfile", "/devil", "/runs"):
        assert machine.ask(path) is None


@pytest.mark.parametrize("path", ["/dev/shm/runs", "/tmp/nope/runs", "/run/nope"])
def test_memory_does_not_last_but_the_root_disk_does(path: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path, VM)
    warned(machine.ask(path), f"{path} lies on a disk in memory", "tmpfs", "--runs_dir /nohome/runs (ext4)")
    warned(machine.ask(path, usable=set()), "No lasting disk")


def test_a_relative_path_is_one_below_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = "27 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
    machine = Machine(tmp_path, root + f"40 27 0:70 / {tmp_path} rw - tmpfs tmpfs rw\n")
    (tmp_path / "link").symlink_to("/srv")
    warned(machine.ask("runs/deep"), f"{tmp_path}/runs/deep", f"mounted at {tmp_path}")
    assert machine.ask("link/runs") is None


def test_a_container_s_layer_goes_with_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path, CONTAINER)
    warned(machine.ask("/app/runs"), "container's own layer", "overlay", "mounted at /", "No lasting disk")


def test_a_volume_in_a_container_lasts_and_is_recommended(tmp_path: Path) -> None:
    machine = Machine(tmp_path, CONTAINER + "700 600 259:1 /srv/data /data rw - ext4 /dev/nvme0n1p1 rw\n")
    machine.disk("nvme0n1", "259:0", "Amazon Elastic Block Store", {"nvme0n1p1": "259:1"})
    assert machine.ask("/data/runs") is None
    warned(machine.ask("/app/runs"), "--runs_dir /data/runs (ext4)")
    warned(machine.ask("/app/runs", usable={"/etc/resolv.conf"}), "No lasting disk")


AUTODL = """\
701 600 8:1 /a/1 /root/autodl-tmp rw - xfs /dev/sda1 rw
702 600 0:90 / /root/autodl-fs rw - fuse.juicefs JuiceFS:fs rw
703 600 0:91 / /root/autodl-pub ro - nfs4 10.0.0.1:/pub rw
"""


def test_autodl(tmp_path: Path) -> None:
    machine = Machine(tmp_path, CONTAINER + AUTODL)
    warned(machine.ask("/root/code/runs"), "--runs_dir /root/autodl-fs/runs (AutoDL's file storage")
    without = machine.ask("/root/code/runs", usable={"/root/autodl-tmp", "/root/autodl-pub"})
    warned(without, "--runs_dir /root/autodl-tmp/runs", "not a release")
    assert machine.ask("/root/autodl-tmp/runs") is None


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("700 600 0:70 / /workspace rw - fuse mfs#eu rw", "/workspace/runs"),
        ("700 600 0:70 / /content/drive rw - fuse.drive drive rw", "/content/drive/MyDrive/runs"),
        ("700 600 7:1 / /kaggle/working rw - ext4 /dev/loop1 rw", "/kaggle/working/runs"),
        ("700 600 0:70 / /mnt/my\\040disk\\134x rw - nfs4 h:/x rw", "/mnt/my disk\\x/runs"),
        ("700 600 0:70 / /mnt/é rw - ceph h:/x rw", "/mnt/é/runs"),
        ("700 600 0:70 / /home/me rw - btrfs /dev/sdb rw", "/home/me/runs"),
    ],
)
def test_places_that_last(line: str, place: str, tmp_path: Path) -> None:
    warned(Machine(tmp_path, CONTAINER + line + "\n").ask("/app/runs"), f"--runs_dir {place} (")


@pytest.mark.parametrize(
    "line",
    [
        "700 600 0:70 / /mnt/x ro - nfs4 h:/x rw",
        "700 600 0:70 / /mnt/x rw - nfs4 h:/x ro",
        "700 600 0:70 / /mnt/x rw - tmpfs x rw",
        "700 600 0:70 / /mnt/x rw - squashfs x rw",
        "700 600 0:70 / /mnt/x rw - overlay x rw",
        "700 600 0:70 / /mnt/x rw - fuse.fuse-overlayfs x rw",
        "700 600 0:70 / /mnt/x rw - fusectl x rw",
        "700 600 0:70 / /proc/cpuinfo rw - fuse.lxcfs lxcfs rw",
        "700 600 0:70 / /var/lib/lxcfs rw - fuse.lxcfs lxcfs rw",
        "700 600 8:1 /k/pods/u/volumes/kubernetes.io~empty-dir/s /scratch rw - ext4 /dev/sda1 rw",
        "700 600 259:9 / /scratch rw - ext4 /dev/nvme9n1 rw",
        "700 999 0:70 / /mnt/x rw - nfs4 h:/x rw",  # of another tree: not to be reached
    ],
)
def test_places_that_do_not(line: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path, CONTAINER + line + "\n")
    machine.disk("nvme9n1", "259:9", "Amazon EC2 NVMe Instance Storage")
    warned(machine.ask("/app/runs"), "No lasting disk")


def test_network_before_local_before_fuse_before_the_root_disk(tmp_path: Path) -> None:
    places = {"/a": "fuse.gcsfuse", "/b": "xfs", "/c": "nfs4"}
    lines = [f"{n} 27 0:{n} / {point} rw - {kind} x rw\n" for n, (point, kind) in enumerate(places.items(), 70)]
    machine = Machine(tmp_path, VM + "".join(lines))
    left = {*places, "/nohome"}
    for expected in ("/c", "/b", "/a", "/nohome"):
        warned(machine.ask("/dev/shm", usable=left), f"--runs_dir {expected}/runs")
        left.remove(expected)


def test_an_empty_dir_of_kubernetes_goes_with_the_pod(tmp_path: Path) -> None:
    line = "700 600 8:1 /kubelet/pods/u/volumes/kubernetes.io~empty-dir/s /scratch rw - ext4 /dev/sda1 rw\n"
    warned(Machine(tmp_path, CONTAINER + line).ask("/scratch/runs"), "emptyDir", "ext4")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("Amazon EC2 NVMe Instance Storage", "AWS"), ("Amazon Elastic Block Store", ""),
        ("nvme_card", "Google"), ("nvme_card12", "Google"), ("nvme_card-pd", ""), ("EphemeralDisk", "Google"),
        ("PersistentDisk", ""), ("Microsoft NVMe Direct Disk v2", "Azure"), ("Microsoft NVMe Direct Disk", "Azure"),
        ("MSFT NVMe Accelerator v1.0", ""), ("Virtual Disk", ""), ("Samsung SSD 990 PRO 2TB", ""), ("", ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("how", ["whole", "partition", "btrfs", "raid", "lvm on a partition"])
def test_disks_are_known_by_their_model(model: str, said: str, how: str, tmp_path: Path) -> None:
    number, kind, source = {
        "whole": ("259:4", "xfs", "/dev/nvme1n1"),
        "partition": ("259:5", "ext4", "/dev/disk/by-uuid/x"),
        "btrfs": ("0:77", "btrfs", "/dev/nvme1n1p1"),
        "raid": ("9:0", "ext4", "/dev/md0"),
        "lvm on a partition": ("253:0", "ext4", "/dev/mapper/vg-x"),
    }[how]
    machine = Machine(tmp_path, VM + f"40 27 {number} / /mnt/fast rw - {kind} {source} rw\n")
    machine.disk("vda", "254:0", "", {"vda1": "254:1"})
    machine.disk("nvme1n1", "259:4", model, {"nvme1n1p1": "259:5"})
    machine.disk("md0", "9:0")
    machine.slaves("md0", "nvme1n1")
    machine.disk("dm-0", "253:0")
    machine.slaves("dm-0", "nvme1n1p1")
    text = machine.ask("/mnt/fast/runs")
    if said:
        warned(text, said, "emptied when the instance stops", "--runs_dir /nohome/runs")
    else:
        assert text is None
    assert machine.ask("/nohome/runs") is None


@pytest.mark.parametrize("link", ["azure/resource", "cloud/azure_resource"])
def test_azure_s_temporary_disk_is_known_by_its_link(link: str, tmp_path: Path) -> None:
    machine = Machine(
        tmp_path, VM + "40 27 8:17 / /mnt rw - ext4 /dev/sdb1 rw\n41 40 8:33 / /mnt/d rw - xfs /dev/sdc1 rw\n"
    )
    machine.disk("sdb", "8:16", "Virtual Disk", {"sdb1": "8:17"})
    machine.disk("sdc", "8:32", "Virtual Disk", {"sdc1": "8:33"})
    assert machine.ask("/mnt/runs") is None
    (machine.links / link).parent.mkdir()
    (machine.links / link).symlink_to("../../sdb")
    warned(machine.ask("/mnt/runs"), "Azure's temporary disk", "--runs_dir /mnt/d/runs")
    assert machine.ask("/mnt/d/runs") is None
    assert machine.ask("/srv/runs") is None


def test_a_raid_of_itself_does_not_go_round_for_ever(tmp_path: Path) -> None:
    machine = Machine(tmp_path, VM + "40 27 9:0 / /mnt/x rw - ext4 /dev/md0 rw\n")
    machine.disk("md0", "9:0")
    machine.slaves("md0", "md0")
    assert machine.ask("/mnt/x") is None


def test_what_is_mounted_over_counts(tmp_path: Path) -> None:
    table = "50 27 0:80 / /x/y rw - tmpfs a rw\n51 27 8:1 / /x rw - ext4 /dev/sda1 rw\n"
    assert Machine(tmp_path, VM + table).ask("/x/y/runs") is None, "/x hides what was at /x/y"
    over = tmp_path / "over"
    over.mkdir()
    warned(
        Machine(over, VM + "52 27 8:1 / /x rw - ext4 s rw\n53 52 0:80 / /x rw - tmpfs a rw\n").ask("/x/r"), "in memory"
    )


def test_a_root_on_a_root(tmp_path: Path) -> None:
    """As an initial RAM disk leaves them: the lower one is its own parent."""
    machine = Machine(tmp_path, "1 1 0:2 / / rw - rootfs rootfs rw\n27 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
    assert machine.ask("/srv") is None
    memory = tmp_path / "memory"
    memory.mkdir()
    warned(Machine(memory, "1 1 0:2 / / rw - rootfs rootfs rw\n2 1 0:3 / / rw - tmpfs t rw\n").ask("/srv"), "in memory")


@pytest.mark.parametrize("table", ["", "\n\n", "garbage\n", "1 2 3 - tmpfs\n", "27 1 8:1 / / rw - ext4\n", "- - -\n"])
def test_a_table_that_says_nothing_warns_of_nothing(table: str, tmp_path: Path) -> None:
    assert Machine(tmp_path, table).ask("/srv") is None
    assert fleeting(Path("/srv"), tmp_path / "no", tmp_path / "no", tmp_path / "no") is None


def test_a_link_to_itself_is_no_reason_to_fall(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    Machine(tmp_path, VM).ask(str(tmp_path / "loop" / "runs"))


def test_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # a user id that nobody has
    warned(Machine(tmp_path, VM).ask("/dev/shm/x"), "No lasting disk")


def test_a_home_on_a_disk_that_does_not_last_is_not_recommended(tmp_path: Path) -> None:
    warned(Machine(tmp_path, VM + "40 27 0:80 / /nohome rw - tmpfs t rw\n").ask("/dev/shm/x"), "No lasting disk")


IN_A_NAMESPACE = """
mount -t tmpfs pitstop-test "$1" || exit 77
exec "$2" -c "if True:
    import sys
    from pathlib import Path
    from pitstop.disks import fleeting
    for path in sys.argv[1:]:
        print(fleeting(Path(path)))
" "$1/a/runs" "$3"
"""


def test_a_disk_in_memory_really_mounted(tmp_path: Path) -> None:
    """Under a name with a blank, in a mount namespace of its own: the kernel writes the table."""
    place, beside = tmp_path / "in memory", tmp_path / "beside"
    place.mkdir()
    before = fleeting(beside)
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", IN_A_NAMESPACE, "sh", place, sys.executable, beside]
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip("nothing may be mounted here")
    assert done.returncode == 0, done.stderr
    first, rest = done.stdout.split("\n", 1)
    assert first == f"{place}/a/runs lies on a disk in memory, gone with a restart: mounted at {place}, tmpfs."
    assert rest.endswith(f"\n{before}\n")
    assert fleeting(place) == before, "nothing was mounted out here"
