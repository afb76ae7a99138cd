"""Exports. The oracle: timm, torchvision, onnxruntime and torch.jit called here by hand, on images made here."""

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pitstop import export, models, predict
from pitstop.checkpoint import write_final
from pitstop.errors import UserError
from pitstop.export import formats, plain, proof

CLASSES = ("bird", "猫", "a dog", "d")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SIZE = 32
EXTRA = "not installed: pip install 'pitstop[export]' (120 MB)"


def make_run(path: Path, *, name: str = "test_resnet", channels: int = 3, stem: str = "auto") -> Path:
    """A run whose weights are far from those of a fresh model, whose blocks begin as nothing."""
    look = {"classes": CLASSES, "image_size": SIZE, "stem": stem}
    model = models.create(name, channels=channels, seed=1, **look)
    generator = torch.Generator().manual_seed(1)
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dim() == 1:
            low = 0.5 if key.endswith(("weight", "running_var")) else -0.5
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + low)
    model.get_classifier().weight.data.mul_(20)  # type: ignore[operator]
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text("{}")
    card = models.card(name, mean=MEAN[:channels], std=STD[:channels], **look)
    write_final(path / "final", model.state_dict(), card)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def images(channels: int = 3) -> Tensor:
    """Normalised images of our own, five of them, by the mean and std that were given above."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, channels, SIZE, SIZE)).astype(np.float32) / 255
    mean, std = (np.array(values[:channels], np.float32).reshape(-1, 1, 1) for values in (MEAN, STD))
    return torch.from_numpy((pixels - mean) / std)


def expected(run: Path, channels: int = 3) -> Tensor:
    model, _ = models.load(run / "final")
    with torch.no_grad():
        logits_NK: Tensor = model(images(channels))
    assert logits_NK.std(0).min() > 0.01, "the images must differ for the model"
    return logits_NK


def computed(model: nn.Module, channels: int = 3) -> Tensor:
    with torch.no_grad():
        logits_NK: Tensor = model.eval()(images(channels))
    return logits_NK


def assert_same(found_NK: Tensor, expected_NK: Tensor) -> None:
    """But for rounding: other memory formats add up in another order."""
    torch.testing.assert_close(found_NK, expected_NK, rtol=1e-4, atol=2e-4)


def timm_small(channels: int = 3) -> Any:
    """test_resnet with the small stem, in the lines that the documentation gives."""
    model: Any = timm.create_model("test_resnet", num_classes=4, in_chans=channels)
    model.conv1[0].stride = (1, 1)
    model.maxpool = nn.Identity()
    return model


def written(run: Path, name: str, folder: Path) -> Path:
    """The file alone, without the proof, which takes a process with another torch in it."""
    model, card = models.load(run / "final")
    file = folder / f"model{export.SUFFIXES[name]}"
    formats.WRITERS[name](model, export.described(card, run / "final"), file)
    return file


def check_about(about: dict[str, Any]) -> None:
    assert about["classes"] == list(CLASSES)
    assert (about["mean"], about["std"]) == (list(MEAN), list(STD))
    assert (about["image_size"], about["channels"], about["stem"]) == (SIZE, 3, "small")
    assert about["timm_arguments"] == {"num_classes": 4, "in_chans": 3}
    assert f"{SIZE}x{SIZE}" in about["resize"]


def test_safetensors_in_timm(run: Path, tmp_path: Path) -> None:
    file = written(run, "safetensors", tmp_path)
    model = timm_small()
    model.load_state_dict(load_file(file), strict=True)
    assert_same(computed(model), expected(run))
    with safe_open(file, "pt") as opened:
        check_about(json.loads(opened.metadata()["pitstop"]))


@pytest.mark.parametrize("channels", [1, 3])
def test_pth_in_timm(channels: int, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", channels=channels)
    file = written(run, "pth", tmp_path)
    state = torch.load(file, weights_only=True)  # noqa: TID251
    assert type(state) is dict
    assert {type(tensor) for tensor in state.values()} == {Tensor}
    model = timm_small(channels)
    model.load_state_dict(state, strict=True)
    assert_same(computed(model, channels), expected(run, channels))
    if channels == 3:
        check_about(json.loads((tmp_path / "model.json").read_text("utf-8")))


def test_onnx_in_onnxruntime(run: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason=EXTRA)
    pytest.importorskip("onnxscript", reason=EXTRA)
    file = written(run, "onnx", tmp_path)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.onnx"], "one file, no weights beside it"
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for number in (1, 2, 5):
        logits = session.run(["logits"], {"images": images()[:number].numpy()})[0]
        np.testing.assert_allclose(logits, expected(run)[:number].numpy(), rtol=1e-4, atol=1e-5)
    check_about(json.loads(session.get_modelmeta().custom_metadata_map["pitstop"]))


def test_torchscript_in_torch(run: Path, tmp_path: Path) -> None:
    file = written(run, "torchscript", tmp_path)
    extra = {"pitstop.json": ""}
    with pytest.warns(FutureWarning) if torch.__version__ >= "2.10" else nullcontext():
        model = torch.jit.load(str(file), _extra_files=extra)
    assert_same(computed(model), expected(run))
    check_about(json.loads(extra["pitstop.json"]))


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def tampered(change: Callable[[dict[str, Any]], object]) -> Callable[..., list[Path]]:
    """The writer of ONNX, with something else in the metadata."""

    def write(model: nn.Module, about: dict[str, Any], file: Path) -> list[Path]:
        about = json.loads(json.dumps(about))
        change(about)
        return formats._to_onnx(model, about, file)

    return write


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda about: about.update(mean=[0.4, 0.5, 0.61]), "computes other logits"),
        (lambda about: about.pop("std"), "does not load"),
    ],
)
def test_a_wrong_export_is_refused_and_leaves_nothing(
    change: Callable[[dict[str, Any]], object], reason: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript", reason=EXTRA)
    before = tree(run.parent)
    monkeypatch.setitem(formats.WRITERS, "onnx", tampered(change))
    with pytest.raises(UserError, match=reason):
        export.command([str(run), "--format", "onnx"])
    assert tree(run.parent) == before
    assert not (run / "export").exists()


@pytest.mark.slow
def test_from_the_command_line(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript", reason=EXTRA)
    before = tree(run)
    assert export.command([str(run), "--format", "onnx"]) == 0
    file = run / "export" / "final" / "model.onnx"
    said = capsys.readouterr().out
    assert f"{file}: " in said
    assert "by onnxruntime" in said
    found = float(said.split("difference of a logit is ")[1].split()[0])
    assert 0 < found < 1e-4
    first = file.read_bytes()
    first_file = shutil.copy(file, run.parent / "first.onnx")
    assert tree(run) == before | {"export/final/model.onnx": first}

    assert export.command([str(run), "--format", "onnx"]) == 0  # the same again
    assert "the same as was there" in capsys.readouterr().out
    monkeypatch.setitem(formats.WRITERS, "onnx", lambda model, about, file: [Path(shutil.copy(first_file, file))])
    file.write_bytes(b"mine")
    with pytest.raises(UserError, match="with other content"):
        export.command([str(run), "--format", "onnx"])
    assert file.read_bytes() == b"mine"
    other = run.parent / "new" / "名.onnx"
    assert export.command([str(run), "--format", "onnx", "--output", str(other)]) == 0
    assert other.read_bytes() == first


@pytest.mark.slow
@pytest.mark.parametrize("name", ["safetensors", "pth", "torchscript"])
def test_proofs_in_other_processes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """pth: torchvision's own resnet18 too, whose names and numbers timm shares."""
    big = name == "pth"
    run = make_run(
        tmp_path / "run", name="resnet18.a1_in1k" if big else "test_resnet", stem="imagenet" if big else "auto"
    )
    assert export.command([str(run), "--format", name]) == 0
    first = tree(run)
    said = capsys.readouterr().out
    file = run / "export" / "final" / f"model{export.SUFFIXES[name]}"
    if big:
        assert "by timm and torchvision" in said
        model = torchvision.models.resnet18(num_classes=4)
        model.load_state_dict(torch.load(file, weights_only=True), strict=True)  # noqa: TID251
        assert_same(computed(model), expected(run))
        monkeypatch.setattr(proof, "compared", lambda *_: (0.0, "nobody"))
        assert export.command([str(run), "--format", name]) == 0  # the same bytes, else it would be refused
        assert tree(run) == first


@pytest.mark.parametrize(
    ("words", "expected_"),
    [
        (["--format", "onnx", "--output", "model.pth"], r"ending in \.onnx"),
        (["--format", "pth", "--output", "model"], r"ending in \.pth"),
        (["--format", "pth", "--which", "best"], "say --which final"),
    ],
)
def test_refused_at_once(words: list[str], expected_: str, run: Path) -> None:
    with pytest.raises(UserError, match=expected_):
        export.command([str(run), *words])


def test_a_missing_extra(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name.startswith("onnxs") else object())
    with pytest.raises(UserError, match=r"^--format onnx needs onnxscript: pip install 'pitstop\[export\]'$"):
        export.command([str(run), "--format", "onnx"])


def test_the_lines_of_code_that_are_printed_build_the_model(tmp_path: Path) -> None:
    for name, stem in (("resnet18", "auto"), ("test_resnet", "auto"), ("resnet18", "imagenet"), ("test_vit", "auto")):
        run = make_run(tmp_path / f"{name}-{stem}", name=name, stem=stem)
        model, card = models.load(run / "final")
        lines = export.lines_of_code(model, export.described(card, run / "final"))
        scope: dict[str, Any] = {"timm": timm, "nn": nn}
        exec("\n".join(line.strip() for line in lines[1:]), scope)
        scope["model"].load_state_dict(load_file(run / "final" / "model.safetensors"), strict=True)
        assert_same(computed(scope["model"]), expected(run))
        assert len(lines) == (4 if stem == "auto" and "resnet" in name else 2)


PROBE = """
import json, sys
from pathlib import Path
import numpy as np
import plain

def probe(file, images_NCHW):
    found = []
    for name in ("pitstop", "pitstop.models", "timm", "torchvision", "torch"):
        try:
            __import__(name)
            found.append(name)
        except ImportError:
            pass
    Path("found.json").write_text(json.dumps(found))
    yield np.zeros((1, 1))

plain.from_onnx = plain.from_torchscript = plain.from_pth = plain.from_safetensors = probe
np.save("images.npy", np.zeros(1))
plain.main(sys.argv[1], "none", "images.npy", "logits.npy")
"""


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("onnx", []),
        pytest.param("torchscript", ["torch"], marks=pytest.mark.slow),
        pytest.param("pth", ["timm", "torchvision", "torch"], marks=pytest.mark.slow),
        pytest.param("safetensors", ["timm", "torchvision", "torch"], marks=pytest.mark.slow),
    ],
)
def test_the_other_process_has_no_pitstop(name: str, there: list[str], tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_bytes(Path(plain.__file__).read_bytes())
    (tmp_path / "probe.py").write_text(PROBE)
    subprocess.run([sys.executable, "probe.py", name], cwd=tmp_path, check=True, timeout=120)
    assert json.loads((tmp_path / "found.json").read_text()) == there


@pytest.mark.parametrize("words", [["--help"], ["run"], ["run", "--format", "onx"]])
def test_wrong_flags_are_answered_without_torch(words: list[str]) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from pitstop.export import command; sys.exit(command(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, "--format" in done.stdout + done.stderr) == (0 if words == ["--help"] else 2, True)


def test_real_images_are_real_and_differ() -> None:
    for channels in (1, 3):
        found = proof.photographs(channels, 32)
        assert (found.shape, found.dtype) == ((16, channels, 32, 32), np.uint8)
        assert len({image.tobytes() for image in found}) == 16
        assert (found.std(axis=(1, 2, 3)) > 4).all()


def blocks() -> dict[str, str]:
    """Code in docs/use.md, by the heading above it; "" is what comes before the first of them."""
    text = (Path(__file__).parents[1] / "docs" / "use.md").read_text("utf-8")
    parts = text.split("\n### ")
    found = {"": parts[0]} | {part.partition("\n")[0]: part for part in parts[1:]}
    return {name: part.split("```python\n")[1].split("```")[0] for name, part in found.items()}


@pytest.mark.parametrize("name", ["onnxruntime", "timm", "torchvision", "TorchScript", "pitstop"])
def test_the_code_of_the_documentation_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And answers what `pitstop predict` answers."""
    if name == "onnxruntime":
        pytest.importorskip("onnxscript", reason=EXTRA)
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "RUN", name="resnet18", stem="imagenet" if name == "torchvision" else "small")
    photo = proof.photographs(3, 200)[1].transpose(1, 2, 0)
    Image.fromarray(photo).save("photo.jpg")
    assert predict.command(["RUN", "photo.jpg", "--format", "json", "--output", "out.json", "--precision", "fp32"]) == 0
    [row] = json.loads(Path("out.json").read_text("utf-8"))
    form = {"onnxruntime": "onnx", "torchvision": "pth", "TorchScript": "torchscript"}.get(name, "safetensors")
    written(run, form, tmp_path)
    scope: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; a file is not closed
        exec(blocks()[""] + blocks()[name], scope)
    if name == "pitstop":
        assert scope["about"]["classes"] == list(CLASSES)
        return
    assert scope["answer"] == row["predictions"][0]["class"]
    shares = torch.as_tensor(scope["logits"])[0].softmax(0)
    for one in row["predictions"]:
        assert one["probability"] == pytest.approx(shares[CLASSES.index(one["class"])].item(), abs=1e-4)
