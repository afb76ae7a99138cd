"""Predictions. The oracle: the run's own evaluation over the same files, Pillow called directly, json and csv."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pitstop import augment, data, models, predict
from pitstop.checkpoint import write_final
from pitstop.data.folder import load_folder
from pitstop.errors import UserError
from pitstop.evaluate import evaluate
from pitstop.predict import classify, inputs

CLASSES = ("bird", "猫猫", "a dog")
SIZE = 16
EXECUTABLE = (
    "import sys; sys.modules['torch'] = None; from pitstop.predict import command; sys.exit(command(sys.argv[1:]))"
)


def make_run(path: Path, *, channels: int = 3, size: int = SIZE, which: str = "final", **more: Any) -> Path:
    """A run whose model tells images apart: with weights and statistics as if it had been trained."""
    look = {"classes": CLASSES, "image_size": size, "stem": "auto"}
    model = models.create("test_resnet", channels=channels, seed=1, **look)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dim() == 1:
            low = 0.5 if name.endswith(("weight", "running_var")) else -0.5
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + low)
    model.state_dict()["fc.weight"].mul_(10)
    with torch.no_grad():  # so that each class is the likeliest of some image
        model.state_dict()["fc.bias"].sub_(model.eval()(torch.randn(64, channels, size, size)).mean(0))
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.25, 0.3)[:channels]
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"config": {"precision": "fp32"}}))
    write_final(path / which, model.state_dict(), models.card("test_resnet", mean=mean, std=std, **look, **more))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def noise(seed: int, height: int = SIZE, width: int = SIZE) -> Image.Image:
    """Coarse, so that models tell one from the other."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)


def save(path: str, image: Image.Image | int, **options: Any) -> str:
    """Writes an image, or the one of that seed. Returns the path."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    (noise(image) if isinstance(image, int) else image).save(path, **options)
    return path


def told(run: Path, *words: str, code: int = 0) -> list[tuple[str, dict[str, float]]]:
    """(image, class -> probability) as `--output` has them in JSON."""
    out = Path("out.json")
    assert predict.command([str(run), *words, "--format", "json", "--output", str(out)]) == code
    rows = json.loads(out.read_text("utf-8"))
    out.unlink()
    return [(row["image"], {one["class"]: one["probability"] for one in row["predictions"]}) for row in rows]


def many_images(folder: Path) -> None:
    """train/ and test/ of images of many shapes and kinds."""
    kinds = [("a.png", {}), ("b.jpg", {"quality": 95}), ("c.bmp", {}), ("d.webp", {}), ("e.tiff", {}), ("f.gif", {})]
    for split in ("train", "test"):
        for number, name in enumerate(CLASSES):
            for seed, (file, options) in enumerate(kinds):
                image = noise(10 * number + seed, height=SIZE + 5 * seed, width=SIZE + 9 * number)
                save(str(folder / split / name / file), image, **options)
            save(str(folder / split / name / "g.png"), noise(90 + number).convert("RGBA"))


def test_it_sees_the_bytes_that_the_evaluation_saw_and_says_what_that_said(run: Path, here: Path) -> None:
    many_images(here / "photos")
    _, test = load_folder(here / "photos", image_size=SIZE, cache=None, say=lambda _: None)
    with ExitStack() as stack:
        pictures = inputs.find(["photos/test"], stack)
        model, about = models.load(run / "final")
        outcomes = [outcome for batch in classify.batches(pictures, about) for outcome in batch]
    by_class = sorted(outcomes, key=lambda outcome: sorted(CLASSES).index(Path(outcome[0].name).parent.name))
    seen_NCHW = torch.stack([pixels for _, pixels in by_class if isinstance(pixels, torch.Tensor)])
    assert torch.equal(seen_NCHW, test.images_NCHW)

    normalise = partial(augment.normalise, mean=about["mean"], std=about["std"])
    expected_NK = evaluate(model, test, normalise=normalise).logits_NK.softmax(1)
    assert expected_NK.amax(0).sub(expected_NK.amin(0)).min() > 0.1, "the images must differ for the model"
    said = dict(told(run, "photos/test"))
    found_NK = torch.tensor([[said[picture.name][name] for name in CLASSES] for picture, _ in by_class])
    torch.testing.assert_close(found_NK, expected_NK, atol=2e-6, rtol=0)


def test_photos_too(tmp_path: Path, here: Path) -> None:
    """Resized by their shorter side, then the middle: as the loader of photos evaluates them, to the byte."""
    sizes = [(40, 30), (90, 40), (33, 200), (36, 36), (400, 300)]
    for split in ("train", "val"):
        for name in CLASSES:
            for seed, (width, height) in enumerate(sizes):
                save(f"photos/{split}/{name}/{seed}.jpg", noise(seed, height, width), quality=90)
    options = {"seed": 0, "cache": False, "check": False, "workers": 0, "may_write": False, "say": lambda _: None}
    photos = data.load_photos("photos", image_size=28, **options)
    make_run(tmp_path / "run", size=28, load_size=data.load_size(28))
    _, about = models.load(tmp_path / "run" / "final")
    with ExitStack() as stack:
        pictures = inputs.find(["photos/val"], stack)
        outcomes = [outcome for batch in classify.batches(pictures, about) for outcome in batch]
    seen = {picture.name.removeprefix("photos/val/"): pixels for picture, pixels in outcomes}
    [expected_NCHW] = photos.val.read([(0, len(photos.val))])
    for name, expected_CHW in zip(photos.val.names, expected_NCHW, strict=True):
        found = seen[name]
        assert isinstance(found, torch.Tensor), found
        assert torch.equal(found, expected_CHW), name


def test_a_model_of_one_channel_sees_grey(tmp_path: Path) -> None:
    make_run(tmp_path / "run", channels=1)
    _, about = models.load(tmp_path / "run" / "final")
    colour = Image.fromarray(np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
    for image in (colour, colour.convert("L")):
        found = classify.pixels(Path(save("image.png", image)).read_bytes(), about)
        assert isinstance(found, torch.Tensor)
        assert np.array_equal(found.numpy(), np.asarray(colour.convert("L"))[None])
    assert len(told(tmp_path / "run", "image.png")) == 1


RED = (250, 10, 20)


def odd_formats() -> Iterator[tuple[str, Callable[[str], object]]]:
    plain = Image.new("RGB", (SIZE, 2 * SIZE), RED)
    clear = plain.convert("RGBA")
    clear.putalpha(0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned: lies on its side
    frames = [plain, Image.new("RGB", plain.size, "blue")]
    half = noise(1, 20, 10)
    yield "alpha.png", lambda path: clear.save(path)
    yield "cmyk.jpg", lambda path: plain.convert("CMYK").save(path, quality=100)
    yield "moving.gif", lambda path: frames[0].save(path, save_all=True, append_images=frames[1:])
    yield "sixteen.png", lambda path: Image.fromarray(np.full((16, 16), 51400, np.uint16)).save(path)
    yield (
        "turned.jpg",
        lambda path: half.transpose(Image.Transpose.ROTATE_90).save(path, quality=100, subsampling=0, exif=exif),
    )


def test_odd_formats(run: Path) -> None:
    _, about = models.load(run / "final")
    seen = {}
    for name, write in odd_formats():
        write(name)
        found = classify.pixels(Path(name).read_bytes(), about)
        assert isinstance(found, torch.Tensor), name
        seen[name] = found.float()
    assert (seen["alpha.png"] == 255).all(), "what is transparent is white"
    assert (seen["cmyk.jpg"] - torch.tensor(RED)[:, None, None]).abs().max() < 8
    assert (seen["moving.gif"] - torch.tensor(RED)[:, None, None]).abs().max() < 8
    assert (seen["sixteen.png"] == 200).all()
    upright = np.asarray(noise(1, 20, 10).resize((SIZE, SIZE), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(seen["turned.jpg"].numpy() - upright).mean() < 4


def test_what_is_of_no_use_is_named_and_the_rest_is_done(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save("all/a.jpg", 1)
    save("all/z.jpg", 2)
    whole = Path(save("all/x.png", noise(1, 200, 200))).read_bytes()
    Path("all/cut.png").write_bytes(whole[: len(whole) // 2])
    Path("all/empty.jpg").write_bytes(b"")
    Path("all/phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    Path("all/gone.jpg").symlink_to("nowhere")
    os.mkfifo("all/pipe.jpg")
    assert [name for name, _ in told(run, "all", code=1)] == ["all/a.jpg", "all/x.png", "all/z.jpg"]
    said = capsys.readouterr().err
    for name, reason in (
        ("cut.png", "truncated"), ("empty.jpg", "no image"), ("phone.heic", "HEIC"), ("gone.jpg", "No such file"),
        ("pipe.jpg", "no regular file"),
    ):  # fmt: skip
        assert [line for line in said.splitlines() if line.startswith(f"skipped all/{name}: ") and reason in line], said
    assert "3 of 8 images, 5 skipped" in said


def test_the_order_is_that_of_the_words_and_of_names(run: Path) -> None:
    for seed, name in enumerate(("b/2.png", "b/10.png", "b/里/图.PNG", "a.png", "c 1.png", "b/a/z.png", "[x].png")):
        save(name, seed)
    for name in ("b/.hidden.png", "b/.cache/x.png", "b/__MACOSX/y.png"):
        save(name, 0)
    Path("b/notes.txt").write_text("no image")
    Path("b/again").symlink_to("..")  # back to where we are: read once, and not for ever
    names = [name for name, _ in told(run, "c 1.png", "b", "a.png", "[x].png", "--top", "1", "?.png", "a.png")]
    inside = ["b/10.png", "b/2.png", "b/a/z.png"]
    again = ["b/again/[x].png", "b/again/a.png", "b/again/c 1.png"]
    assert names == ["c 1.png", *inside, *again, "b/里/图.PNG", "a.png", "[x].png", "a.png", "a.png"]
    Path("b/again").unlink()
    assert [name for name, _ in told(run, "b/**/[0-9z]*.png")] == ["b/10.png", "b/2.png", "b/a/z.png"]


def test_members_of_an_archive(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    buffer = io.BytesIO()
    noise(1).save(buffer, "PNG")
    with zipfile.ZipFile("all.zip", "w") as archive:
        archive.writestr("z.png", buffer.getvalue())
        archive.writestr("__MACOSX/z.png", b"")
        archive.writestr("folder/notes.txt", b"")
        archive.writestr("folder/b.png", b"no image")
        archive.writestr("folder/XXXXXX.png", buffer.getvalue())
    # As programs for Windows in China write it, and Python does not: bytes in GBK, and no flag that says UTF-8.
    Path("all.zip").write_bytes(Path("all.zip").read_bytes().replace(b"XXXXXX.png", "猫照片.png".encode("gbk")))
    save("z.png", 1)
    rows = dict(told(run, "all.zip", "z.png", code=1))
    assert list(rows) == ["all.zip/folder/猫照片.png", "all.zip/z.png", "z.png"]
    assert rows["all.zip/z.png"] == rows["z.png"]
    assert "skipped all.zip/folder/b.png: no image" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
def test_members_of_a_tar(
    run: Path, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same as of the folder that was packed, whatever the order in it; no name leads out, no link is followed."""
    Path("in/b").mkdir(parents=True)
    for number, name in enumerate(("b/z.png", "a.png", "b/猫.png")):
        save(f"in/{name}", number)
    Path("in/bad.png").write_bytes(b"no image")
    Path("in/notes.txt").write_bytes(b"")
    Path("in/.hidden.png").write_bytes(b"")
    Path("in/link.png").symlink_to("a.png")
    with tarfile.open(f"all{suffix}", "w:" if suffix == ".tar" else "w:gz") as archive:
        archive.add("in", "./in")
        archive.add("in/a.png", "../../out.png")
    Path("in/link.png").unlink()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary := tmp_path / "temporary"))
    temporary.mkdir()
    rows = told(run, f"all{suffix}", code=1)
    assert not list(temporary.iterdir())
    folder = [(f"all{suffix}/{name}", shares) for name, shares in told(run, "in", code=1)]
    assert rows == folder
    assert f"skipped all{suffix}/in/bad.png: no image" in capsys.readouterr().err
    assert not Path("../../out.png").exists()


def columns(line: str) -> list[int]:
    """Where the words of a line that stand behind two spaces begin, on a terminal; 猫 and 里 take two columns."""
    starts, column = [], 0
    for index, character in enumerate(line):
        if character != " " and line[max(0, index - 2) : index] in ("  ", ""):
            starts.append(column)
        column += 2 if character in "猫里图" else 1
    return starts


def test_the_table_is_aligned(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(12):
        save(f"{'猫里' * (seed % 3)}{seed}.png", seed)
    rows = told(run, "*.png")
    capsys.readouterr()
    assert predict.command([str(run), "*.png", "--top", "9"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [name for name, _ in rows]
    assert {names[0] for _, names in ((name, list(shares)) for name, shares in rows)} > {"bird"}, "one class only"
    at = columns(head)
    assert len(at) == 4
    for line, (_, shares) in zip(lines, rows, strict=True):
        assert set(at) <= {*columns(line)}, f"{head}\n{line}"
        for name, share in shares.items():
            assert name in line
            assert f"{100 * share:.2f}%" in line


def test_csv_and_json_say_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (('a "quoted", name.png', 1), ("猫.png", 2)):
        save(name, seed)
    rows = told(run, "*.png", "--top", "2")
    capsys.readouterr()
    assert predict.command([str(run), "*.png", "--top", "2", "--format", "csv"]) == 0
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(found[0]) == ["image", "class_1", "probability_1", "class_2", "probability_2"]
    for row, (name, shares) in zip(found, rows, strict=True):
        assert row["image"] == name
        assert {row["class_1"]: float(row["probability_1"]), row["class_2"]: float(row["probability_2"])} == shares
        assert float(row["probability_1"]) >= float(row["probability_2"])
    assert all(abs(sum(shares.values()) - 1) < 1e-5 for _, shares in told(run, "*.png", "--top", "99"))


def test_names_that_would_command_a_terminal_are_spelled_out(run: Path) -> None:
    save("a\x1b[31m\n.png", 1)
    Path(os.fsdecode(b"b\xff.png")).write_bytes(Path("a\x1b[31m\n.png").read_bytes())
    assert [name for name, _ in told(run, ".")] == ["./a\\x1b[31m\\n.png", "./b\\xff.png"]


@pytest.mark.parametrize("words", [("--output", "out.json"), ()])
def test_ctrl_c_leaves_what_is_done(
    words: tuple[str, ...], run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(9):
        save(f"{seed}.png", seed)
    monkeypatch.setattr(classify, "MOST_AT_ONCE", 2)
    on_device = classify.on_device

    def interrupting(*arguments: Any) -> tuple[classify.Model, str]:
        model, where = on_device(*arguments)
        calls = iter(range(9))

        def call(images_BCHW: torch.Tensor) -> torch.Tensor:
            if next(calls) == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return model(images_BCHW)

        return call, where

    monkeypatch.setattr(classify, "on_device", interrupting)
    before = signal.getsignal(signal.SIGINT)
    assert predict.command([str(run), ".", "--format", "json", *words]) == 76
    assert signal.getsignal(signal.SIGINT) is before
    said = capsys.readouterr()
    rows = json.loads(Path("out.json").read_text() if words else said.out)
    assert [row["image"] for row in rows] == ["./0.png", "./1.png", "./2.png", "./3.png"]
    assert "4 of 9 images" in said.err
    assert "5 images were not looked at" in said.err


def test_a_reader_that_has_seen_enough(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("a.png", 1)
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert predict.command([str(run), "a.png"]) == 0


def test_weights_that_give_no_numbers(run: Path, tmp_path: Path) -> None:
    broken = make_run(tmp_path / "broken")
    model, about = models.load(broken / "final")
    state = model.state_dict()
    state["fc.bias"][0] = float("nan")
    write_final(broken / "final", state, about)
    save("a.png", 1)
    with pytest.raises(UserError, match=r"final gives no numbers.*--which"):
        predict.command([str(broken), "a.png", "--output", "out.csv"])
    assert sorted(os.listdir()) == ["a.png", "broken"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nothing.png"], "no such file"),
        (["*.tiff"], "nothing matches"),
        (["empty"], "holds no image"),
        (["broken.zip"], "cannot be read"),
        (["broken.tar.gz"], "cannot be read"),
        (["a.png", "--output", "a.png"], "is there already"),
        (["a.png", "--output", "no/such/x.csv"], "no directory"),
    ],
)
def test_what_cannot_be_done_is_refused(words: list[str], expected: str, run: Path) -> None:
    save("a.png", 1)
    Path("empty").mkdir()
    Path("broken.zip").write_bytes(b"PK")
    Path("broken.tar.gz").write_bytes(b"\x1f\x8b")
    before = Path("a.png").read_bytes()
    with pytest.raises(UserError, match=expected):
        predict.command([str(run), *words])
    assert Path("a.png").read_bytes() == before


def test_best_where_there_is_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    save("a.png", 1)
    final = told(run, "a.png")
    model, about = models.load(run / "final")
    state = model.state_dict()
    state["fc.bias"] += torch.tensor([5.0, 0, 0])
    write_final(run / "best", state, about)
    best = told(run, "a.png")
    assert best != final
    assert told(run, "a.png", "--which", "best") == best
    assert told(run, "a.png", "--which", "final") == final


@pytest.mark.parametrize(
    ("status", "which", "expected"),
    [
        ({"state": "running", "step": 30, "total_steps": 80}, "auto", "neither.*running at step 30 of 80.*attach"),
        ({"state": "stopped", "step": 30, "total_steps": 80}, "best", "no best/ yet.*stopped at step 30.*it continues"),
        ({"state": "finished"}, "final", "bring them back"),
        ({}, "auto", "not begun"),
    ],
)
def test_a_run_that_is_not_there_yet(status: dict[str, Any], which: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "run" / "status.json").write_text(json.dumps(status))
    with pytest.raises(UserError, match=expected):
        predict.command([str(tmp_path / "run"), "a.png", "--which", which])


def test_the_other_weights_are_named(run: Path) -> None:
    with pytest.raises(UserError, match=r"no best/.*say --which final"):
        predict.command([str(run), "a.png", "--which", "best"])


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        ("model.json", lambda text: text[:50], "damaged"),
        ("model.json", lambda text: text.replace(b'"channels": 3', b'"channels": 1'), "damaged"),
        ("model.json", lambda text: text.replace(b"test_resnet", b"test_efficientnet"), "does not fit"),
        ("model.safetensors", lambda text: text[:1000], "damaged"),
    ],
)
def test_damaged_weights(file: str, change: Callable[[bytes], bytes], expected: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    path = run / "final" / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=expected):
        models.load(run / "final")
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        models.load(run / "final")


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["--help"], 0, "usage: pitstop predict RUN IMAGES"),
        (["run"], 2, "IMAGES is missing"),
        (["run", "a.png", "b.png", "--tpo", "3"], 2, "did you mean --top"),
        (["run", "a.png", "--top", "0"], 2, "--top 0"),
    ],
)
def test_wrong_flags_are_answered_without_torch(words: list[str], code: int, expected: str) -> None:
    done = subprocess.run([sys.executable, "-c", EXECUTABLE, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert expected in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("told_", "expected"), [("bf16", "bf16"), ("fp32", "fp32"), ("fp16", "auto"), ("auto", "auto"), (7, "auto")]
)
def test_the_precision_is_the_runs_own(told_: object, expected: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"config": {"precision": told_}}))
    assert classify._usual_precision(tmp_path / "final", torch.device("cpu")) == expected
