"""Foreign weights into a model. Oracle: the tensors that were saved, timm's own adaptation, and a trap that may not
spring."""

import argparse
import json
import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from pitstop import pretrained, weights
from pitstop.errors import UserError


def model(seed: int, *, name: str = "test_resnet", classes: int = 10, channels: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=classes, in_chans=channels).eval()


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return model(1).state_dict()


def save_torch(value: object, path: Path) -> Path:
    torch.save(value, path)  # noqa: TID251
    return path


def loaded(into: nn.Module, source: Path) -> tuple[weights.Report, str]:
    said: list[str] = []
    return weights.load(into, source, say=said.append), "\n".join(said)


def same(into: nn.Module, state: dict[str, Tensor], but: tuple[str, ...] = ()) -> bool:
    return all(torch.equal(value, state[key]) for key, value in into.state_dict().items() if key not in but)


def test_safetensors(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.safetensors")
    into = model(2).to(memory_format=torch.channels_last)
    report, said = loaded(into, tmp_path / "w.safetensors")
    assert same(into, state)
    assert (report.fresh, report.unused, report.adapted) == ((), (), ())
    assert len(report.loaded) == len(state)
    assert f"{len(state)} of {len(state)} tensors fit" in said
    assert into.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("wrapper", ["", "state_dict", "model", "state_dict_ema"])
def test_pth_as_others_save_it(state: dict[str, Tensor], tmp_path: Path, prefix: str, wrapper: str) -> None:
    value: object = {prefix + key: tensor for key, tensor in state.items()}
    if wrapper:
        value = {wrapper: value, "epoch": 3, "arch": "test_resnet", "args": argparse.Namespace(lr=0.1)}
    into = model(2)
    loaded(into, save_torch(value, tmp_path / "w.pth"))
    assert same(into, state)


def test_the_average_is_preferred(state: dict[str, Tensor], tmp_path: Path) -> None:
    into = model(2)
    loaded(into, save_torch({"state_dict": model(3).state_dict(), "state_dict_ema": state}, tmp_path / "w.pth.tar"))
    assert same(into, state)


def test_the_old_format_of_torch(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=False)  # noqa: TID251
    into = model(2)
    loaded(into, tmp_path / "w.pth")
    assert same(into, state)


def test_torchvisions_resnet18(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    theirs = resnet18(num_classes=7).eval()
    into = model(2, name="resnet18", classes=7)
    report, _ = loaded(into, save_torch(theirs.state_dict(), tmp_path / "resnet18-f37072fd.pth"))
    assert (report.fresh, report.unused) == ((), ())
    images_NCHW = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(into(images_NCHW), theirs(images_NCHW))


def test_a_head_of_another_size_stays_fresh_and_is_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.safetensors")
    into, fresh = model(2, classes=4), model(2, classes=4).state_dict()
    report, said = loaded(into, tmp_path / "w.safetensors")
    assert same(into, state, but=("fc.weight", "fc.bias"))
    assert torch.equal(into.fc.weight, fresh["fc.weight"])
    assert report.fresh == ("fc.weight", "fc.bias")
    assert "begin fresh (2): fc.weight (4, " in said
    assert "there (10, " in said


@pytest.mark.parametrize(
    ("name", "conv"), [("test_resnet", "conv1.0"), ("resnet18", "conv1"), ("test_vit", "patch_embed.proj")]
)
def test_colours_to_grey_as_timm_does(tmp_path: Path, name: str, conv: str) -> None:
    state = model(1, name=name).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    into = model(2, name=name, channels=1)
    report, said = loaded(into, tmp_path / "w.safetensors")
    assert torch.equal(into.get_parameter(f"{conv}.weight"), adapt_input_conv(1, state[f"{conv}.weight"]))
    assert report.adapted == (f"{conv}.weight",)
    assert report.fresh == ()
    assert f"made to fit the channels (1): {conv}.weight" in said


def test_grey_to_colours_gives_what_it_gave(tmp_path: Path) -> None:
    grey = model(1, channels=1)
    save_file(grey.state_dict(), tmp_path / "w.safetensors")
    into = model(2)
    loaded(into, tmp_path / "w.safetensors")
    images_N1HW = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(into(images_N1HW.expand(-1, 3, -1, -1)), grey(images_N1HW), rtol=1e-4, atol=1e-5)


def test_another_stem_is_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.safetensors")
    into = model(2)
    into.layer1[0].conv1 = nn.Conv2d(into.layer1[0].conv1.in_channels, into.layer1[0].conv1.out_channels, 5, bias=False)
    report, said = loaded(into, tmp_path / "w.safetensors")
    assert report.fresh == ("layer1.0.conv1.weight",)
    assert report.unused == ("layer1.0.conv1.weight",)
    assert "layer1.0.conv1.weight" in said


def test_a_vit_of_another_size_gets_its_positions_as_timm_does_it(tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_file(timm.create_model("test_vit", img_size=160).state_dict(), tmp_path / "w.safetensors")
    theirs = timm.create_model(
        "test_vit", img_size=96, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "w.safetensors")}
    )
    into = timm.create_model("test_vit", img_size=96)
    report, _ = loaded(into, tmp_path / "w.safetensors")
    assert report.fresh == ()
    assert same(into, theirs.state_dict())


def run(tmp_path: Path, **parts: dict[str, Tensor]) -> Path:
    for part, state in parts.items():
        (tmp_path / "run" / part).mkdir(parents=True)
        save_file(state, tmp_path / "run" / part / "model.safetensors")
        card = {"model": "test_resnet", "mean": [0.1], "std": [0.2]}
        (tmp_path / "run" / part / "model.json").write_text(json.dumps(card))
    return tmp_path / "run"


def test_of_a_run_the_best_else_the_final(state: dict[str, Tensor], tmp_path: Path) -> None:
    other = model(3).state_dict()
    path = run(tmp_path, final=other, best=state)
    for source, expected in ((path, state), (path / "final", other), (path / "best" / "model.safetensors", state)):
        into = model(2)
        loaded(into, source)
        assert same(into, expected)
    for file in (path / "best").iterdir():
        file.unlink()
    loaded(into, path)
    assert same(into, other)


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"nor best/ or final/ with one\. This run is not finished"):
        loaded(model(2), tmp_path / "run")
    with pytest.raises(UserError, match="--weights takes pretrained, none, or the path"):
        loaded(model(2), tmp_path / "no.pth")


@pytest.mark.parametrize(
    ("name", "match"),
    [("resnet34", "a resnet34"), ("resnet50", "a resnet50"), ("test_vit", "a vision transformer of width 64")],
)
def test_another_architecture_is_refused_in_words(tmp_path: Path, name: str, match: str) -> None:
    save_file(timm.create_model(name).state_dict(), tmp_path / "w.safetensors")
    into = model(2, name="resnet18" if name == "resnet50" else "test_resnet")
    before = {key: value.clone() for key, value in into.state_dict().items()}
    with pytest.raises(UserError, match=rf"does not fit the model: of the model's [\d,]+ numbers.*It holds {match}"):
        loaded(into, tmp_path / "w.safetensors")
    assert same(into, before)


def test_names_that_are_not_ours(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="It holds 2 tensors: a, b"):
        loaded(model(2), tmp_path / "w.safetensors")


def test_more_than_the_model_has_is_named(tmp_path: Path) -> None:
    save_file(model(1, name="resnet34").state_dict(), tmp_path / "w.safetensors")
    report, said = loaded(model(2, name="resnet18"), tmp_path / "w.safetensors")
    named = [key for key in report.unused if not key.endswith("num_batches_tracked")]
    assert len(named) > 50
    assert f"  unused ({len(named)}): layer1.2.bn1.bias, " in said
    assert set(named) <= set(said.replace(",", "").split()), "every key that did not fit is named"
    assert "num_batches" not in said
    assert max(map(len, said.splitlines()[1:])) <= 120


class Trap:
    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.sprung),)


@pytest.mark.parametrize("protocol", ["zip", "pickle", "plain"])
def test_a_trap_never_springs(state: dict[str, Tensor], tmp_path: Path, protocol: str) -> None:
    value = {"state_dict": state, "optimizer": Trap(tmp_path / "sprung")}
    path = tmp_path / "w.pth"
    if protocol == "plain":
        path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=protocol == "zip")  # noqa: TID251
    with pytest.raises(UserError, match="cannot be read as plain weights"):
        loaded(model(2), path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("name", "data"), [("w.pth", b""), ("w.pth", b"<html>"), ("w.safetensors", b"<html>"), ("w.pt", b"PK\3\4cut")]
)
def test_damaged_files(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        loaded(model(2), tmp_path / name)


def test_a_cut_file(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_torch(state, tmp_path / "w.pth")
    save_file(state, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(UserError, match="damaged"):
            loaded(model(2), path)


@pytest.mark.parametrize("value", [[1, 2], {"epoch": 3}, {"state_dict": {"epoch": 3}}])
def test_no_weights_in_it(tmp_path: Path, value: object) -> None:
    with pytest.raises(UserError, match="holds no weights"):
        loaded(model(2), save_torch(value, tmp_path / "w.pth"))


def test_bring_names_the_content_not_the_path(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(state, tmp_path / "w.safetensors")

    def bring(spec: str, into: nn.Module, **options: bool) -> dict:
        return weights.bring(into, spec, name="test_resnet", say=lambda line: None, **{"may_write": True} | options)

    into = model(2)
    assert bring("none", into) == {"weights": "none"}
    assert same(into, model(2).state_dict())
    one = bring(str(tmp_path / "w.safetensors"), into)
    assert same(into, state)
    assert one["weights"] == "w.safetensors"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "w.safetensors").rename(tmp_path / "elsewhere" / "w.safetensors")
    assert bring(str(tmp_path / "elsewhere" / "w.safetensors"), into) == one
    save_file(model(3).state_dict(), tmp_path / "w.safetensors")
    assert bring(str(tmp_path / "w.safetensors"), into)["sha256"] != one["sha256"]

    monkeypatch.setattr(pretrained, "find", lambda name, **_: tmp_path / "elsewhere" / "w.safetensors")
    into = model(4)
    assert bring("pretrained", into) == {"weights": "timm/test_resnet.r160_in1k", "sha256": one["sha256"]}
    assert same(into, state)
    monkeypatch.setattr(pretrained, "find", lambda name, *, may_write, say: None)
    assert bring("pretrained", into, may_write=False)["sha256"] == "not here yet"


def test_normalisation(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = run(tmp_path, final=state)
    assert weights.normalisation(str(path), name="test_resnet") == ((0.1,) * 3, (0.2,) * 3)
    assert (weights.stem("auto", "none"), weights.stem("auto", "pretrained")) == ("auto", "imagenet")
    assert weights.stem("small", "pretrained") == "small"
    assert weights.normalisation("none", name="test_resnet") == ((0.5,) * 3, (0.5,) * 3)
    assert weights.normalisation("pretrained", name="test_resnet") == ((0.5,) * 3, (0.5,) * 3)
    save_file(
        state,
        tmp_path / "exported.safetensors",
        {"pitstop": json.dumps({"mean": [0.1], "std": [0.2], "stem": "small"})},
    )
    exported = str(tmp_path / "exported.safetensors")
    assert weights.normalisation(exported, name="test_resnet") == ((0.1,) * 3, (0.2,) * 3)
    assert weights.stem("auto", exported) == "small"
    (path / "final" / "model.json").write_text("torn {")
    assert weights.normalisation(str(path / "final"), name="test_resnet") == ((0.5,) * 3, (0.5,) * 3)
