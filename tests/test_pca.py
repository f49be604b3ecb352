"""The linear codec of the digits."""

import pytest
import torch

from cfm_lite.data import digits
from cfm_lite.data.pca import PCA
from cfm_lite.errors import ConfigError

X = digits.load("train")[0]


def test_all_components_give_the_images_back():
    few = torch.randn(200, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    codec = PCA(few, 12)
    torch.testing.assert_close(codec.decode(codec.encode(few)), few, rtol=0, atol=1e-5)
    assert codec.kept == pytest.approx(1)


def test_latents_are_uncorrelated_and_of_mean_variance_one():
    z = PCA(X).encode(X).flatten(1).double()
    cov = z.T.cov()
    torch.testing.assert_close(
        cov.diagonal().mean(), torch.tensor(1.0, dtype=torch.float64), rtol=1e-4, atol=0
    )
    assert (cov - cov.diagonal().diag()).abs().max() < 1e-3
    assert (cov.diagonal().diff() <= 1e-6).all()


def test_distances_in_latents_are_distances_in_pixels():
    codec = PCA(X)
    z = torch.randn(5, 32, 1, 1)
    pixels = torch.cdist(codec.decode(z).flatten(1), codec.decode(z).flatten(1))
    torch.testing.assert_close(
        pixels, codec.scale * torch.cdist(z.flatten(1), z.flatten(1)), rtol=1e-3, atol=1e-3
    )
    assert 0.9 < codec.kept < 1


def test_more_components_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="smaller one"):
        PCA(X, 65)
