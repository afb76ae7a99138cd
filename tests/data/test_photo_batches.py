"""The stream over photos: the same bytes whoever decodes them, and what happens when files or workers break."""

import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from photo_files import Said, all_pixels, batches, corner, digest, load, picture, plain, seen, some_files, tree_of
from ranks import results

from pitstop import data
from pitstop.data import workers as workers_module
from pitstop.data.stream import Stream
from pitstop.data.workers import bring, number_of, piece_images
from pitstop.randomness import permutation

STEPS = 9
Seen = list[tuple[list[int], list[int], list[int], str]]


@pytest.fixture(autouse=True)
def small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a batch of ten comes in several."""
    monkeypatch.setattr(workers_module, "PIECE_IMAGES", 4)
    monkeypatch.setenv("PITSTOP_DATA_DIR", str(tmp_path / "kept"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return tree_of(some_files(12), tmp_path / "tree")


def children() -> set[int]:
    """That were forked, and are no other programs."""
    own, found = Path("/proc/self/cmdline").read_bytes(), set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it ends just now
            for pid in (task / "children").read_text().split():
                with suppress(OSError):
                    if Path(f"/proc/{pid}/cmdline").read_bytes() == own:
                        found.add(int(pid))
    return found


def through(photos: data.PhotoSet, start: int = 0, **more: object) -> Seen:
    return [seen(batch) for batch in batches(photos, **more).between(start, STEPS)]


def test_the_same_bytes_with_any_number_of_workers_cached_or_not(tree: Path) -> None:
    plain = load(tree)
    expected = through(plain.train)
    count = len(plain.train)
    order = [i for epoch in range(4) for i in permutation(5, epoch, count).tolist()]
    assert list(itertools.chain.from_iterable(step[0] for step in expected)) == list(range(10 * STEPS))
    assert list(itertools.chain.from_iterable(step[1] for step in expected)) == order[: 10 * STEPS]
    assert [label for step in expected for label in step[2]] == plain.train.labels_N[order[: 10 * STEPS]].tolist()
    assert len({step[3] for step in expected}) == STEPS
    evaluated = digest(all_pixels(plain.val))
    for number, cache in ((1, False), (3, False), (0, True), (1, True), (3, True)):
        photos = load(tree, workers=number, cache=cache)
        assert (photos.train.pictures.pixels is not None) == cache
        assert through(photos.train) == expected, (number, cache)
        assert digest(all_pixels(photos.val)) == evaluated


def test_a_restart_at_any_step_sees_the_same(tree: Path) -> None:
    photos = load(tree).train
    expected = through(photos)
    for start in range(STEPS):
        assert through(photos, start) == expected[start:]
    assert through(load(tree, workers=2).train, 5) == expected[5:]


def _rank(rank: int, world: int, tree: str, kept: str) -> Seen:
    os.environ["PITSTOP_DATA_DIR"] = kept
    return through(load(Path(tree), cache=True).train, batch_size=11, rank=rank, world=world, micro_batch=2)


def test_three_ranks_bring_what_one_brings(tree: Path, tmp_path: Path) -> None:
    """They also build one cache together."""
    alone = load(tree, cache=True, workers=0)
    ranks = results(3, _rank, str(tree), str(tmp_path / "shared"))
    assert len(list((tmp_path / "shared" / "cache").glob("*.images"))) == 1
    whole = list(batches(alone.train, 11).between(0, STEPS))
    for step in range(STEPS):
        parts = [rank[step] for rank in ranks]
        for field in (0, 1, 2):
            assert list(itertools.chain.from_iterable(part[field] for part in parts)) == seen(whole[step])[field]
        lengths = itertools.accumulate((len(part[0]) for part in parts), initial=0)
        for (first, end), part in zip(itertools.pairwise(lengths), parts, strict=True):
            assert digest(whole[step].images_NCHW[first:end]) == part[3]


@pytest.mark.parametrize("workers", [0, 2])
def test_fewer_images_than_a_batch(workers: int, tmp_path: Path) -> None:
    photos = load(tree_of(some_files(2), tmp_path / "tiny"), workers=workers).train
    assert len(photos) == 3
    steps = list(batches(photos, 10).between(0, 3))
    assert [len(step.targets_N) for step in steps] == [10] * 3
    order = [i for epoch in range(10) for i in permutation(5, epoch, 3).tolist()]
    assert torch.cat([step.indices_N for step in steps]).tolist() == order
    assert batches(photos, 10).total_steps(2) == 1


def test_what_a_batch_is(tree: Path) -> None:
    photos = load(tree).train
    mixed: list[int] = []

    def mix(images: torch.Tensor, labels: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        mixed.append(step)
        return images, torch.nn.functional.one_hot(labels, 3).float()

    stream = batches(photos, mix=mix, micro_batch=4)
    batch = next(stream.between(2, 3))
    assert (batch.step, batch.global_size, batch.seed, mixed) == (2, 10, 5, [2])
    assert [len(targets) for _, targets in batch.micro_batches] == [2, 4, 4]
    assert stream.largest_micro_batch == 4
    assert (stream.epoch_length, stream.dataset) == (len(photos), photos)
    assert batch.images_NCHW.is_contiguous(memory_format=torch.channels_last)
    places = zip(batch.positions_N.tolist(), batch.indices_N.tolist(), strict=True)
    cropped = torch.stack([corner(photos.image(index, []), position) for position, index in places])
    assert digest(batch.images_NCHW) == digest(plain(cropped, batch.positions_N))


# What breaks later


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_breaks_later_costs_a_line(workers: int, tree: Path) -> None:
    """The next of its class takes its place, in the training and in the evaluation, whoever finds out; that the figures
    of an evaluation count it twice is said."""
    said = Said()
    photos = load(tree, said, workers=workers)
    before = all_pixels(photos.train)
    names = list(photos.train.names)
    gone, cut = names.index("z/004.jpg"), max(i for i, name in enumerate(names) if name.startswith("a cat/"))
    (tree / "train" / names[gone]).unlink()
    (tree / "train" / names[cut]).write_bytes(picture(3)[:200])
    said.clear()
    after = [all_pixels(photos.train) for _ in range(2)][-1]
    first_cat = min(i for i, name in enumerate(names) if name.startswith("a cat/"))
    expected = list(range(len(names)))
    expected[gone], expected[cut] = gone + 1, first_cat
    assert digest(after) == digest(before[expected])
    assert any(step[1].count(gone) for step in through(photos.train))
    assert sorted(line.split(": ")[0] for line in said) == [f"train/{names[cut]}", f"train/{names[gone]}"]
    assert all("counted in its place: the figures are not quite right" in line for line in said)
    assert any("No such file" in line for line in said)
    photos.train.pictures._told.clear()
    said.clear()
    through(photos.train)
    assert len(said) == 2
    assert all("Another image of its class takes its place" in line for line in said)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_is_gone_ends_it(workers: int, tree: Path) -> None:
    photos = load(tree, workers=workers)
    tree.rename(tree.with_name("away"))
    with pytest.raises(RuntimeError, match=r"cannot be read \(.*No such file.*Is the disk still there") as caught:
        through(photos.train)
    _gone(2.0)  # although the traceback still knows them
    assert caught.tb is not None


# Workers


def test_leaving_early_ends_the_workers(tree: Path) -> None:
    photos = load(tree, workers=2).train
    for batch in batches(photos).between(0, 4000):
        assert len(children()) == 2
        assert {os.getpgid(pid) for pid in children()} == children(), "each has a group of its own"
        if batch.step == 3:
            break
    _gone()
    stream = batches(photos).between(0, 4000)
    next(stream)
    stream.close()
    _gone()
    with pytest.raises(ZeroDivisionError):
        _fails(photos)
    _gone()
    reading = photos.read([(i, i + 5) for i in range(20)])
    next(reading)
    del reading
    _gone()


def _fails(photos: data.PhotoSet) -> None:
    for _ in batches(photos).between(0, 4000):
        raise ZeroDivisionError


def _gone(seconds: float = 8.0) -> None:
    deadline = time.monotonic() + seconds
    while children():
        assert time.monotonic() < deadline, "workers are left"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_is_killed_ends_it_in_words(number: int, tree: Path) -> None:
    photos = load(tree, workers=2).train
    with pytest.raises(RuntimeError, match="DataLoader worker"):  # noqa: PT012 (raised wherever the signal arrives)
        for batch in batches(photos).between(0, 4000):
            if batch.step == 2:
                os.kill(min(children()), number)
                time.sleep(0.2)
    _gone()


def test_the_words_name_memory_and_the_flag() -> None:
    def dies(item: int) -> int:
        if item == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    with pytest.raises(RuntimeError, match=r"DataLoader worker .*\. .*memory was full.*--workers \(now 1\)"):
        list(bring(dies, range(10), 1))


def test_bring_keeps_the_order_and_what_a_worker_raises() -> None:
    def work(item: int) -> int:
        time.sleep(0.01 * (item % 3))
        if item == 7:
            raise LookupError("seven")
        return -item

    for number in (0, 1, 3):
        assert list(bring(work, range(7), number)) == [-i for i in range(7)]
        with pytest.raises(LookupError, match="seven"):
            list(bring(work, range(20), number))


def test_the_generator_of_torch_is_not_drawn_from(tree: Path) -> None:
    photos = load(tree, workers=1).train
    torch.manual_seed(1)
    state = torch.get_rng_state()
    next(batches(photos).between(0, 5))
    assert torch.equal(torch.get_rng_state(), state)


def test_work_ahead_is_bounded() -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1000):
            begun.append(item)
            yield item

    results = bring(lambda item: item, items(), 2)
    next(results)
    time.sleep(0.3)
    assert len(begun) <= 2 * workers_module.PREFETCH + 1
    results.close()


def test_how_many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(workers_module, "cpu_threads", lambda local: 64 // local)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert [number_of(wanted, device) for wanted in (0, 5, "auto") for device in (cpu, gpu)] == [0, 0, 5, 5, 2, 8]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert [number_of("auto", device) for device in (cpu, gpu)] == [16, 16]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert [number_of("auto", device) for device in (cpu, gpu)] == [1, 1]


def test_pieces_fit_into_the_shared_memory_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "PIECE_IMAGES", 32)

    class Disk:
        f_bavail, f_frsize = 64 << 8, 4096  # 64 MB

    monkeypatch.setattr(os, "statvfs", lambda path: Disk)
    for image_bytes in (3 * 32**2, 3 * 224**2, 3 * 512**2):
        for number in (1, 8, 16):
            images = piece_images(image_bytes, number)
            assert 1 <= images <= 32
            assert images == 1 or images * image_bytes * number * 3 <= 32 << 20
    assert piece_images(3 * 224**2, 0) == 32


def test_a_fork_beside_threads_works(tree: Path) -> None:
    """The training has threads: one that writes checkpoints, a heartbeat."""
    stop = threading.Event()
    thread = threading.Thread(target=lambda: [sum(range(1000)) for _ in iter(stop.is_set, True)])
    thread.start()
    try:
        assert through(load(tree, workers=2).train) == through(load(tree).train)
    finally:
        stop.set()
        thread.join()


# The weighted stream


def test_weights_are_how_often_an_image_comes() -> None:
    weights = torch.tensor([0.0, 1.0, 5.0, 0.0, 2.0, 2.0, 0.0])
    stream = Stream(7, 100, seed=1, weights_N=weights)
    drawn = torch.cat([stream.positions(step)[1] for step in range(500)])
    counts = torch.bincount(drawn, minlength=7) / len(drawn)
    assert counts[[0, 3, 6]].tolist() == [0, 0, 0]
    assert torch.allclose(counts, weights / 10, atol=0.01)
    assert torch.equal(stream.positions(400)[1], Stream(7, 100, seed=1, weights_N=3 * weights).positions(400)[1])
    parts = [Stream(7, 100, seed=1, weights_N=weights, rank=rank, world=3).positions(10)[1] for rank in range(3)]
    assert torch.equal(torch.cat(parts), stream.positions(10)[1])
    assert not torch.equal(Stream(7, 100, seed=2, weights_N=weights).positions(10)[1], stream.positions(10)[1])


def test_a_weighted_stream_brings_what_it_draws(tree: Path) -> None:
    photos = load(tree).train
    weights = (photos.labels_N == 1).float() * 9 + 1
    expected = through(photos, weights_N=weights)
    assert through(load(tree, workers=2, cache=True).train, weights_N=weights) == expected
    labels = Counter(label for step in expected for label in step[2])
    assert labels[1] > labels[0] + labels[2]
    assert batches(photos, weights_N=weights).epoch_length == len(photos)


def test_time_without_a_batch_is_counted(tree: Path) -> None:
    photos = load(tree, workers=1)

    def slow(image_CHW: torch.Tensor, position: int) -> torch.Tensor:
        time.sleep(0.02)
        return image_CHW[:, : photos.train.size, : photos.train.size]

    stream = batches(photos.train, crop=slow)
    for _ in stream.between(0, 3):
        pass
    assert stream.waited_seconds > 0.2, "thirty images of 20 ms, one after the other, but for what came before"
    before = stream.waited_seconds
    for _ in stream.between(3, 6):
        time.sleep(0.5)  # a device that is slower
    assert stream.waited_seconds - before < 1.2
