"""Crops: bits that depend on (seed, position) alone, torchvision's own transforms as the oracle."""

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ranks import SERVER
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from pitstop import crops
from pitstop.crops import RandomCrop, crop_box
from pitstop.randomness import draw, draws


def photo(height: int = 60, width: int = 80, channels: int = 3, *, last: bool = False) -> Tensor:
    """Smooth, so that a resize that is a little off shows as a little."""
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 4, width), indexing="ij")
    image = torch.stack([127 + 120 * torch.sin((1 + c) * x + y) for c in range(channels)]).to(torch.uint8)
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1) if last else image


def test_one_image_draws_what_a_batch_draws() -> None:
    positions = [0, 1, 7, 2**31, 2**40 + 5, 123_456_789_012]
    for seed in (0, 5, 2**33):
        whole = draws(seed, torch.tensor(positions), 14)
        assert whole.tolist() == [[draw(seed, position, lane) for lane in range(14)] for position in positions]


@pytest.mark.parametrize("augment", ["none", "light", "strong"])
def test_an_image_is_a_function_of_seed_and_position(augment: Any) -> None:
    image, crop = photo(), RandomCrop(24, 3, augment=augment)
    forward = [crop(image, p) for p in range(40)]
    again = pickle.loads(pickle.dumps(crop))  # as a worker gets it
    for p in reversed(range(40)):
        torch.rand(3)  # a generator that moves changes nothing
        assert torch.equal(again(image, p), forward[p])
    assert all((x.dtype, tuple(x.shape)) == (torch.uint8, (3, 24, 24)) for x in forward)
    assert len({x.numpy().tobytes() for x in forward}) >= 38  # solarized twice at 255, or all black
    other = [RandomCrop(24, 4, augment=augment)(image, p) for p in range(40)]
    assert sum(torch.equal(a, b) for a, b in zip(forward, other, strict=True)) == 0


def _in_worker(crop: RandomCrop, positions: list[int]) -> list[bytes]:
    torch.set_num_threads(1)
    return [crop(photo(), p).contiguous().numpy().tobytes() for p in positions]


@pytest.mark.slow
def test_another_process_computes_the_same_bits() -> None:
    crop = RandomCrop(24, 3, augment="light")
    with SERVER.Pool(2) as pool:
        halves = pool.starmap(_in_worker, [(crop, list(range(0, 20, 2))), (crop, list(range(1, 20, 2)))])
    for p in range(20):
        assert halves[p % 2][p // 2] == crop(photo(), p).contiguous().numpy().tobytes()


def test_the_image_given_stays_and_its_memory_order_does_not_count() -> None:
    image, last = photo(), photo(last=True)
    before = image.clone()
    for augment in ("none", "light", "strong"):
        crop = RandomCrop(32, 0, augment=augment)  # type: ignore[arg-type]
        for p in range(60):
            assert torch.equal(crop(image, p), crop(last, p)), (augment, p)
    assert torch.equal(image, before)


def boxes(number: int, height: int, width: int, min_scale: float) -> np.ndarray[Any, Any]:
    def at(position: int) -> Callable[[int], float]:
        return lambda lane: draw(1, position, lane)

    return np.array([crop_box(height, width, min_scale, at(p)) for p in range(number)], dtype=float)


@pytest.mark.parametrize(("height", "width", "min_scale"), [(256, 341, 0.35), (300, 200, 0.08), (64, 64, 0.9)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int, min_scale: float) -> None:
    """Two samples of Kolmogorov and Smirnov: of top, left, height, width, area and aspect."""
    from scipy.stats import ks_2samp

    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(8, scale=(min_scale, 1.0))
    image = torch.empty(3, height, width, dtype=torch.uint8)
    found = [theirs.make_params([image]) for _ in range(3000)]
    expected = np.array([[f["top"], f["left"], f["height"], f["width"]] for f in found], dtype=float)
    ours = boxes(3000, height, width, min_scale)
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    assert (ours[:, :2] >= 0).all()
    for name, of in {
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "height": lambda b: b[:, 2],
        "width": lambda b: b[:, 3],
        "area": lambda b: b[:, 2] * b[:, 3],
        "aspect": lambda b: b[:, 3] / b[:, 2],
    }.items():
        assert ks_2samp(of(ours), of(expected)).pvalue > 1e-3, name


@pytest.mark.parametrize(("height", "width"), [(10, 100), (100, 10), (1, 50), (50, 1), (1, 1), (2, 3)])
def test_images_that_no_crop_fits_give_their_centre(height: int, width: int) -> None:
    """Ten tries without a fit, as torchvision's: here by the largest area every time."""
    theirs = v2.RandomResizedCrop(8, scale=(1.0, 1.0), ratio=(3 / 4, 4 / 3))
    image = torch.empty(3, height, width, dtype=torch.uint8)
    if height * width > 100:
        expected = theirs.make_params([image])
        got = crop_box(height, width, 1.0, lambda lane: 0.5)
        assert got == tuple(max(1, expected[k]) if k in ("height", "width") else expected[k] for k in expected)
    for p in range(20):
        assert RandomCrop(16, 0)(photo(height, width), p).shape == (3, 16, 16)


def test_crop_resize_and_flip_are_torchvisions() -> None:
    """To the last bit or, in torch 2.6, where its order of channels decides how a half is rounded, to one of 255."""

    def alike(one: Tensor, other: Tensor) -> bool:
        return (one.int() - other.int()).abs().max().item() <= 1

    image, crop = photo(), RandomCrop(24, 9, augment="none")
    flips = 0
    for p in range(200):
        box = crop_box(60, 80, 0.35, lambda lane, p=p: draw(9, p, lane))  # type: ignore[misc]
        expected = functional.resized_crop(image, *box, size=[24, 24], antialias=True)
        got = crop(image, p)
        mirrored = alike(got, functional.horizontal_flip(expected))
        flips += mirrored
        assert mirrored or alike(got, expected)
    assert 70 < flips < 130  # 100, and three standard deviations are 21


def test_a_crop_agrees_with_pillow() -> None:
    from PIL import Image

    image = photo(200, 300)
    pil = Image.fromarray(image.permute(1, 2, 0).numpy())
    for p in range(20):
        top, left, h, w = crop_box(200, 300, 0.35, lambda lane, p=p: draw(2, p, lane))  # type: ignore[misc]
        mirrored = draw(2, p, crops.FLIP) < 0.5
        wanted = pil.resize((64, 64), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))
        if mirrored:
            wanted = wanted.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        got = RandomCrop(64, 2, augment="none")(image, p).permute(1, 2, 0).numpy().astype(int)
        assert np.abs(got - np.asarray(wanted).astype(int)).max() <= 2


def test_light_turns_and_jitters_within_its_bounds() -> None:
    """A grey image keeps its colour but for brightness: 0.8 to 1.2 times; black corners tell the angle."""
    grey = torch.full((3, 100, 100), 100, dtype=torch.uint8)
    crop = RandomCrop(64, 0, min_scale=1.0, augment="light")
    centres, dark = [], []
    for p in range(300):
        image = crop(grey, p)
        assert torch.equal(image[0], image[1])
        centres.append(int(image[0, 32, 32]))
        dark.append((image[0] < 20).float().mean().item())
    assert 78 <= min(centres) < 84
    assert 116 < max(centres) <= 122
    turned = functional.rotate(torch.full((1, 64, 64), 100, dtype=torch.uint8), 15.0)
    assert (turned < 20).float().mean().item() * 0.8 < max(dark) <= (turned < 20).float().mean().item() * 1.05
    assert min(dark) < 0.01


def test_light_is_torchvisions_functions_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, float]] = []
    real = crops.functional

    class Spy:
        InterpolationMode = real.InterpolationMode

        def __getattr__(self, name: str) -> Callable[..., Tensor]:
            def call(image: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
                called.append((name, arguments[0]))
                result: Tensor = getattr(real, name)(image, *arguments, **keywords)
                return result

            return call

    monkeypatch.setattr(crops, "functional", Spy())
    amounts: dict[str, list[float]] = {}
    for p in range(400):
        called.clear()
        RandomCrop(16, 1, augment="light")(photo(), p)
        names = [name for name, _ in called]
        assert names == ["rotate", "adjust_brightness", "adjust_contrast", "adjust_saturation"]
        for name, amount in called:
            amounts.setdefault(name, []).append(amount)
    for name, (low, high) in {
        "rotate": (-15, 15),
        "adjust_brightness": (0.8, 1.2),
        "adjust_saturation": (0.8, 1.2),
    }.items():
        values = np.array(amounts[name])
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.06 * (high - low)
    assert abs(np.corrcoef(amounts["adjust_brightness"], amounts["adjust_contrast"])[0, 1]) < 0.15


NAMES = list(v2.TrivialAugmentWide._AUGMENTATION_SPACE)


@pytest.mark.parametrize("operation", range(14), ids=NAMES)
def test_each_operation_is_torchvisions(operation: int) -> None:
    """At every magnitude and sign; its magnitudes are float32, 15.999999 pixels say, so some pixels round otherwise."""
    assert len(crops.OPERATIONS) == len(NAMES)
    theirs = v2.TrivialAugmentWide()
    image = photo(40, 40)
    magnitudes, signed = theirs._AUGMENTATION_SPACE[NAMES[operation]]
    values = magnitudes(crops.BINS, 40, 40)
    for number in range(0, crops.BINS, 3):
        for negative in (False, True) if signed else (False,):
            value = 0.0 if values is None else round(float(values[number]), 5) * (-1 if negative else 1)
            expected = theirs._apply_image_or_video_transform(image, NAMES[operation], value, theirs.interpolation, {})
            got = crops.trivial_augment(image, operation, number, negative=negative)
            off = (got.int() - expected.int()).abs()
            limit = 0.03 if NAMES[operation] == "Solarize" else 0.002  # a whole level, if it is at the threshold
            assert (off > 1).float().mean().item() < limit, (number, negative)
            assert not signed or number == 0 or not torch.equal(got, image)


def test_strong_draws_all_operations_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, bool]] = []

    def spy(image: Tensor, operation: int, magnitude_bin: int, *, negative: bool) -> Tensor:
        seen.append((operation, magnitude_bin, negative))
        return image

    monkeypatch.setattr(crops, "trivial_augment", spy)
    crop, image = RandomCrop(8, 0, augment="strong"), photo(12, 12)
    for p in range(4000):
        crop(image, p)
    for column, number in ((0, 14), (1, 31), (2, 2)):
        counts = np.bincount([int(row[column]) for row in seen], minlength=number)
        assert len(counts) == number
        chi2 = ((counts - 4000 / number) ** 2 / (4000 / number)).sum()
        assert chi2 < number - 1 + 4 * math.sqrt(2 * (number - 1))


def test_none_still_crops_and_one_channel_is_enough() -> None:
    image = photo()
    assert len({RandomCrop(24, 0, augment="none")(image, p).numpy().tobytes() for p in range(20)}) == 20
    for augment in ("none", "light", "strong"):
        for p in range(30):
            grey = RandomCrop(24, 0, augment=augment)(photo(channels=1), p)  # type: ignore[arg-type]
            assert (grey.dtype, tuple(grey.shape)) == (torch.uint8, (1, 24, 24))
