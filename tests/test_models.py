"""Models: stems by what comes out of them, weights by their statistics and their bits."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from pitstop import models
from pitstop.errors import UserError

TEN = tuple("0123456789")


def create(name: str = "test_resnet", **changes: Any) -> nn.Module:
    options: dict[str, Any] = {"classes": TEN, "channels": 3, "image_size": 16, "stem": "auto", "seed": 0}
    return models.create(name, **(options | changes))


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in model.state_dict().items()}


def stem_size(model: nn.Module, size: int, channels: int = 3) -> int:
    """Side of the feature map that the first residual block is given."""
    sizes: list[int] = []

    def look(_: nn.Module, inputs: Sequence[Tensor]) -> None:
        sizes.append(inputs[0].shape[-1])

    handle = model.get_submodule("layer1").register_forward_pre_hook(look)
    with torch.no_grad():
        model.eval()(torch.zeros(1, channels, size, size))
    handle.remove()
    return sizes[0]


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "test_resnet"])
def test_small_stem_keeps_the_size(name: str) -> None:
    model = create(name, stem="small")
    assert stem_size(model, 16) == 16
    assert not any(isinstance(module, nn.MaxPool2d) for module in model.modules())
    if name != "test_resnet":  # whose own stem is of three convolutions
        conv = model.get_submodule("conv1")
        assert isinstance(conv, nn.Conv2d)
        assert (conv.kernel_size, conv.stride, conv.padding, conv.bias) == ((3, 3), (1, 1), (1, 1), None)
        expected = math.sqrt(2 / (64 * 3 * 3))  # He et al. 2015, by the fan out
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.06)  # of 1,728 normal weights: 3.5 sigma
        assert abs(conv.weight.mean().item()) < 4 * expected / math.sqrt(1728)
        kurtosis = ((conv.weight / conv.weight.std()) ** 4).mean().item()
        assert 2.5 < kurtosis < 3.5, "normal has 3; torch's default, which is uniform, 1.8"


@pytest.mark.parametrize("name", ["resnet18", "test_resnet"])
def test_the_stem_of_imagenet_shrinks(name: str) -> None:
    assert stem_size(create(name, stem="imagenet"), 16) == 4


def test_parameters_of_resnet18() -> None:
    """11,173,962: He et al.'s CIFAR form of resnet18 as the CIFAR repositories count it."""
    assert sum(p.numel() for p in create("resnet18", stem="small", image_size=32).parameters()) == 11_173_962
    assert sum(p.numel() for p in create("resnet18", stem="imagenet", image_size=32, channels=1).parameters()) == sum(
        p.numel() for p in timm.create_model("resnet18", num_classes=10, in_chans=1).parameters()
    )


@pytest.mark.parametrize(("size", "expected"), [(8, 8), (63, 63), (64, 16)])
def test_auto_stem_follows_the_image_size(size: int, expected: int) -> None:
    assert stem_size(create("test_resnet", image_size=size), size) == expected


def test_same_seed_same_bits_whatever_was_drawn_before() -> None:
    torch.manual_seed(1)
    first = create()
    torch.manual_seed(2)
    torch.rand(1000)
    assert bits(create()) == bits(first)
    other = bits(create(seed=1))
    weights = [name for name, tensor in first.state_dict().items() if tensor.ndim >= 2]
    assert len(weights) > 5
    assert all(other[name] != bits(first)[name] for name in weights), "every weight depends on the seed"


def test_models_come_in_training_mode_in_channels_last_with_fresh_statistics() -> None:
    model = create("resnet18", stem="small")
    assert all(module.training for module in model.modules())
    assert model.get_submodule("layer1.0.conv1").weight.is_contiguous(memory_format=torch.channels_last)
    fresh = timm.create_model("resnet18")
    means = {
        name: value for name, value in model.state_dict().items() if name.endswith(("running_mean", "running_var"))
    }
    assert means
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in means.items()), "the size check left it"
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_classes_and_channels() -> None:
    model = create(classes=("a", "b", "c"), channels=1)
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 3)


def test_a_transformer_of_fixed_size_works_or_is_refused_in_words() -> None:
    vit = create("vit_tiny_patch16_224", image_size=32)
    assert vit(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(UserError, match=r"--model vit_tiny_patch16_224 does not take images of 8x8 .*resnet18"):
        create("vit_tiny_patch16_224", image_size=8)
    mixer = create("mixer_s32_224", image_size=32)
    assert mixer(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_a_model_without_such_a_stem() -> None:
    with pytest.raises(UserError, match=r"mobilenetv3_small_050 has no stem .* --stem imagenet"):
        create("mobilenetv3_small_050", stem="small", image_size=32)
    assert bits(create("mobilenetv3_small_050", image_size=32)) == bits(
        create("mobilenetv3_small_050", stem="imagenet", image_size=32)
    )


@pytest.mark.parametrize(("name", "near"), [("resnet81", "resnet18"), ("restnet50", "resnet50")])
def test_an_unknown_name_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"--model {name}: timm .* has no such model. Did you mean .*{near}"):
        create(name)


def test_a_name_like_nothing_says_where_the_list_is() -> None:
    with pytest.raises(UserError, match=r"timm.list_models\(\)"):
        create("@@@@")


def test_a_name_with_the_tag_of_its_weights() -> None:
    assert bits(create("test_resnet.r160_in1k")) == bits(create("test_resnet"))
    with pytest.raises(
        UserError, match=r"test_resnet\.r161: Invalid pretrained tag.*There are: test_resnet\.r160_in1k"
    ):
        create("test_resnet.r161")


@pytest.mark.parametrize("channels", [1, 3])
def test_the_card_is_enough_to_build_the_model_again(channels: int) -> None:
    shape = {"classes": ("cat", "dog"), "image_size": 16, "stem": "small"}
    model = create(channels=channels, seed=5, **shape)
    card = models.card("test_resnet", mean=(0.5,) * channels, std=(0.25,) * channels, **shape)  # type: ignore[arg-type]
    read = json.loads(json.dumps(card))
    fields = {name: read[name] for name in ("classes", "channels", "image_size", "stem")}
    again = models.create(read["model"], seed=0, **fields)
    again.load_state_dict(model.state_dict())
    images = torch.rand(2, channels, 16, 16)
    assert torch.equal(again.eval()(images), model.eval()(images))
    assert (read["mean"], read["std"], read["timm"]) == ([0.5] * channels, [0.25] * channels, timm.__version__)
