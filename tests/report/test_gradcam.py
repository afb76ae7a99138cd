"""Grad-CAM on a real model of timm, against its definition."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pitstop import models
from pitstop.augment import normalise
from pitstop.checkpoint import write_final
from pitstop.errors import UserError
from pitstop.report.gradcam import grad_cam, heated

LOOK = {"classes": ("a", "b", "c"), "image_size": 64, "stem": "small"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    model = models.create("test_resnet", channels=3, seed=0, **LOOK)
    head = model.get_classifier()
    with torch.no_grad():  # the class that is said has channels, and so places, that speak for it and against it
        head.weight[0] = torch.tensor([1.0, -1.0]).repeat(head.in_features // 2)
        head.bias[0] = 100.0
    write_final(
        tmp_path / "final", model.state_dict(), models.card("test_resnet", mean=[0.5] * 3, std=[0.2] * 3, **LOOK)
    )
    return tmp_path


def pictures(number: int, channels: int = 3) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (number, 64, 64, channels), np.uint8))


def test_by_its_definition(run: Path) -> None:
    """The weight of a channel is the mean slope of what was said along its map: here by small changes of the map."""
    found = grad_cam(run, "final", pictures(8))
    model, card = models.load(run / "final")
    assert found.layer == "layer4"
    images_BCHW = torch.from_numpy(np.stack(pictures(8)).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        maps_BCHW = model.forward_features(normalise(images_BCHW, card["mean"], card["std"])).double()
        head = model.double().forward_head
        said_B = head(maps_BCHW).argmax(1)
        weights_BC = torch.zeros(maps_BCHW.shape[:2], dtype=torch.double)
        for channel in range(maps_BCHW.shape[1]):  # the sum of slopes of all places: all are raised together
            raised = maps_BCHW.clone()
            raised[:, channel] += 1e-3
            weights_BC[:, channel] = (head(raised) - head(maps_BCHW)).gather(1, said_B[:, None])[:, 0]
        expected_BHW = (weights_BC[:, :, None, None] * maps_BCHW).sum(1)
        assert (expected_BHW < 0).any(), "or the test would not see that it is cut off at 0"
        expected_BHW = torch.relu(expected_BHW)
        expected_BHW = nn.functional.interpolate(expected_BHW[:, None], (64, 64), mode="bilinear")[:, 0]
        expected_BHW /= expected_BHW.amax((1, 2), keepdim=True).clamp(min=1e-12)
    assert found.size == tuple(maps_BCHW.shape[2:])
    assert found.heat_MHW == pytest.approx(expected_BHW.numpy(), abs=1e-3)


def test_a_stage_with_maps_that_say_where(run: Path) -> None:
    """The last stage of a small image has one place: an earlier one is taken."""
    look = LOOK | {"image_size": 16}
    model = models.create("test_resnet", channels=3, seed=0, **look)
    write_final(run / "best", model.state_dict(), models.card("test_resnet", mean=[0.5] * 3, std=[0.2] * 3, **look))
    found = grad_cam(run, "best", [picture[:16, :16] for picture in pictures(1)])
    assert min(found.size) >= 4
    assert found.layer != "layer4"


def test_what_cannot_be_done(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 channels, the pictures have 1"):
        grad_cam(run, "final", pictures(1, channels=1))
    with pytest.raises(UserError, match="missing or damaged"):
        grad_cam(run, "best", pictures(1))
    look = LOOK | {"stem": "auto"}
    model = models.create("test_vit", channels=3, seed=0, **look)
    write_final(tmp_path / "vit", model.state_dict(), models.card("test_vit", mean=[0.5] * 3, std=[0.2] * 3, **look))
    with pytest.raises(UserError, match="no convolutional stage"):
        grad_cam(run, "vit", pictures(1))


def test_heat_lies_above_the_picture() -> None:
    grey_HWC = np.full((4, 4, 1), 100, np.uint8)
    heat_HW = np.zeros((4, 4), np.float32)
    heat_HW[0, 0] = 1
    hot_HWC = heated(grey_HWC, heat_HW)
    assert hot_HWC.shape == (4, 4, 3)
    assert hot_HWC[0, 0, 0] > 150, "inferno ends in light yellow"
    assert (hot_HWC[1:] == hot_HWC[1, 1]).all()
