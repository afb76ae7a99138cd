"""The digits against scikit-learn's own arrays."""

import numpy as np
import pytest
import torch
from sklearn import datasets

from pitstop.data import load_digits


def test_digits_are_scikit_learns() -> None:
    train, test = load_digits(8)
    raw = datasets.load_digits()
    assert (len(train), len(test)) == (1437, 360)
    expected = np.rint(raw.images * 255 / 16).astype(np.uint8)[:, None]
    assert np.array_equal(torch.cat([train.images_NCHW, test.images_NCHW]).numpy(), expected)
    assert torch.cat([train.labels_N, test.labels_N]).tolist() == raw.target.tolist()
    assert train.images_NCHW.max() == 255
    assert train.classes == tuple("0123456789")
    assert train.labels_N.dtype == torch.int64


def test_resizing_keeps_the_corners_and_the_fingerprint_knows_the_size() -> None:
    small, _ = load_digits(8)
    large, test = load_digits(32)
    assert large.images_NCHW.shape == (1437, 1, 32, 32)
    assert test.images_NCHW.dtype == torch.uint8
    assert torch.equal(large.images_NCHW[..., ::31, ::31], small.images_NCHW[..., ::7, ::7])
    assert large.fingerprint != small.fingerprint
    assert load_digits(32)[0].fingerprint == large.fingerprint


@pytest.mark.parametrize("size", [8, 16])
def test_sets_do_not_share_memory_with_the_whole(size: int) -> None:
    _, test = load_digits(size)
    assert test.images_NCHW.untyped_storage().nbytes() == 360 * size * size
