"""A linear codec: images to their leading principal components and back, the "latents" of the
digits.

    z = W (x - mean) / scale        x = mean + scale W' z
    W: the leading eigenvectors of the covariance of the training rows

One scale for all components makes the mean variance of z equal to 1 and keeps W orthonormal. So
distances in latents are distances in pixels. Latents are (B, components, 1, 1): a component counts
as a channel.
"""

import torch
from torch import Tensor

from cfm_lite._internal.checks import check_count, full_precision
from cfm_lite.errors import ConfigError

__all__ = ["PCA"]


class PCA:
    """Fitted on images `x` (N, *dims), N > `components`. `kept` is the components' share of the
    variance.

    Raises ConfigError for components that are not below the number of images, or more than an image
    has numbers.

    >>> x = torch.arange(12.0).reshape(6, 1, 1, 2)  # six images on one line
    >>> PCA(x, components=1).decode(PCA(x, components=1).encode(x)).flatten()[:4].round(decimals=3)
    tensor([0., 1., 2., 3.])
    """

    def __init__(self, x: Tensor, components: int = 32) -> None:
        flat = x.flatten(1).double()
        if check_count("components", components) > min(len(flat) - 1, flat.shape[1]):
            raise ConfigError(
                f"components is {components}; {len(flat)} images of {flat.shape[1]} numbers have "
                "fewer. Use a smaller one."
            )
        self.dims, self.mean = tuple(x.shape[1:]), flat.mean(0)
        values, vectors = torch.linalg.eigh(
            (flat - self.mean).mT @ (flat - self.mean) / (len(flat) - 1)
        )
        order = values.argsort(descending=True)[:components]
        largest = vectors[:, order].gather(0, vectors[:, order].abs().argmax(0, keepdim=True))
        # (D, components); a sign that does not depend on the solver
        self.basis = vectors[:, order] * largest.sign()
        self.scale = float(values[order].mean().sqrt())
        self.kept = float(values[order].sum() / values.sum())

    @full_precision()
    def encode(self, x: Tensor) -> Tensor:
        """Latents (B, components, 1, 1) of images (B, *dims)."""
        flat = x.flatten(1) - self.mean.to(x)
        return (flat @ self.basis.to(x) / self.scale)[:, :, None, None]

    @full_precision()
    def decode(self, z: Tensor) -> Tensor:
        """Images (B, *dims) of latents (B, components, 1, 1)."""
        flat = self.mean.to(z) + self.scale * z.flatten(1) @ self.basis.to(z).mT
        return flat.reshape(len(z), *self.dims)
