"""Negatives: a FlowSample in, wrong velocities out, for  L = |v - u_t|^2 - weight * sum_k |v - u_neg_k|^2.

Convention: `Negatives` maps a sample to `u_neg` (B, *dims) or (K, B, *dims), or to (u_neg, keep)
where `keep` (B,) is False for rows that have no negative. Each takes a generator on the sample's
device. A target carries no gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from cfm_lite._internal.checks import (
    check_choice,
    check_count,
    check_floating,
    check_generator,
    check_labels,
    check_same_shape,
    on_host,
    warn_once,
)
from cfm_lite._internal.networks import check_keywords
from cfm_lite.errors import ConfigError
from cfm_lite.paths import LINEAR, FlowSample, Path, check_path
from cfm_lite.perturbations import other_row

__all__ = ["Negatives", "Perturbed", "in_batch", "in_batch_mean", "other_class", "perturbed"]

Negatives = Callable[..., Tensor | tuple[Tensor, Tensor]]  # (sample, *, generator=None)

SPACES = ("velocity", "latent", "image")


def in_batch(
    sample: FlowSample, *, generator: Generator | None = None
) -> Float[Tensor, "batch *dims"] | tuple[Float[Tensor, "batch *dims"], Bool[Tensor, " batch"]]:
    """The velocity of another row for each row, (B, *dims): uniform over the other rows,
    independent, repeats allowed; O(B).

    A batch of one has no other row: it gives (u_t, keep) with nothing kept, and warns once.
    Reference: Stoica et al. 2025 (arXiv:2506.05350), official code; each row keeps its own time.
    """
    u = _velocity_of(sample)
    check_generator(generator, u)
    if len(u) < 2:
        warn_once(
            "a batch of one holds no negative: nothing is repelled. Use batches (or shards) of at "
            "least two."
        )
        return u, torch.zeros(len(u), dtype=torch.bool, device=u.device)
    return u.index_select(0, other_row(len(u), u.device, generator))


def in_batch_mean(data_mean: Float[Tensor, "*dims"], path: Path = LINEAR) -> Float[Tensor, "*dims"]:
    """E[u_neg] (*dims) of `in_batch`: (alpha(1) - alpha(0)) E[x1], with `data_mean` = E[x1] (*dims).

    It holds for noise of mean 0 and uniform times, whatever x_t and y are.
    """
    check_floating(data_mean=data_mean)
    start, end = check_path(path).alpha(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    return (end - start) * data_mean


def other_class(
    sample: FlowSample, *, generator: Generator | None = None
) -> tuple[Float[Tensor, "batch *dims"], Bool[Tensor, " batch"]]:
    """The velocity of a row of another class for each row, and `keep` (B,), False where the batch
    holds no other class; O(B log B).

    Uniform over all rows whose label differs; the null label counts as a class like any other.
    Raises ConfigError without labels. Reference: Stoica et al. 2025 (arXiv:2506.05350),
    class-conditioned sampling; its uniform fallback is left out.
    """
    u, y = _velocity_of(sample), sample.y
    if y is None:
        raise ConfigError(
            "other_class needs labels and the sample has y=None. Give labels (B,), or use in_batch."
        )
    check_generator(generator, u)
    y = check_labels(y, u, torch.iinfo(torch.int64).max)
    labels, order = torch.sort(y)
    first, last = (
        torch.searchsorted(labels, y, right=right) for right in (False, True)
    )  # the row's class is labels[first:last]
    others = len(y) - (last - first)  # (B,)
    # a 62-bit number modulo B: no row is favoured by more than B / 2^62
    place = torch.randint(2**62, y.shape, device=u.device, generator=generator) % others.clamp_min(
        1
    )
    place = torch.where(place < first, place, place + last - first).clamp_max(len(y) - 1)
    return u.index_select(0, order[place]), others > 0


def _velocity_of(sample: Any) -> Tensor:
    if not isinstance(sample, FlowSample):
        raise ConfigError(f"sample has type {type(sample).__name__}; it must be a FlowSample.")
    return sample.u_t.detach()


@dataclass(frozen=True)
class Perturbed:
    """`perturbed` below, as a function of a sample; `k` is the number of negatives per row."""

    transform: Callable[..., Tensor]
    space: str = "velocity"
    path: Path | None = None
    k: int = 1
    codec: Any = None

    def __post_init__(self) -> None:
        check_choice("space", self.space, SPACES)
        check_count("k", self.k)
        check_keywords(
            "transform", self.transform, "transform(x, *, generator=None)", 1, ("generator",)
        )
        if self.path is not None:
            check_path(self.path)
        if self.space == "image" and self.codec is None:
            warn_once(
                "space='image' without a codec is space='latent': the data themselves are "
                "perturbed. For latents, give their codec."
            )
        if self.codec is not None and not (
            callable(getattr(self.codec, "encode", None))
            and callable(getattr(self.codec, "decode", None))
        ):
            raise ConfigError(
                f"codec is {self.codec!r}; it must have the methods encode and decode."
            )

    @torch.no_grad()
    def __call__(
        self, sample: FlowSample, *, generator: Generator | None = None, path: Path | None = None
    ) -> Tensor:
        """The negatives of `sample`; `path` is the objective's, for one that was made without a
        path of its own.
        """
        check_generator(generator, _velocity_of(sample))
        drawn = [self._one(sample, generator, self.path or path) for _ in range(self.k)]
        return drawn[0] if self.k == 1 else torch.stack(drawn)

    def _one(self, sample: FlowSample, generator: Generator | None, path: Path | None) -> Tensor:
        if self.space == "velocity":
            u_neg = self.transform(sample.u_t, generator=generator)
            check_same_shape(u_t=sample.u_t, perturbed=u_neg)
            return u_neg
        x1 = self._perturb_data(sample.x1, generator)
        check_same_shape(x1=sample.x1, perturbed=x1)
        return (path or _linear(sample)).interpolate(sample.x0, x1, sample.t)[
            1
        ]  # the same noise and time

    def _perturb_data(self, x1: Tensor, generator: Generator | None) -> Tensor:
        if self.space == "latent" or self.codec is None:
            return self.transform(x1, generator=generator)
        image = self.transform(self.codec.decode(x1), generator=generator)
        return self.codec.encode(image).to(x1.dtype)


def _linear(sample: FlowSample) -> Path:
    """LINEAR, for a sample outside of an objective; ConfigError where its velocity shows that it
    lies on another path.
    """
    expected = LINEAR.interpolate(sample.x0, sample.x1, sample.t)[1]
    if on_host(expected) and not torch.allclose(
        sample.u_t.to(expected), expected, rtol=1e-2, atol=1e-2, equal_nan=True
    ):
        raise ConfigError(
            "the sample does not lie on the linear path, and no path was given; name it: "
            "perturbed(..., path=COSINE)."
        )
    return LINEAR


def perturbed(
    transform: Callable[..., Tensor],
    *,
    space: str = "velocity",
    path: Path | None = None,
    k: int = 1,
    codec: Any = None,
) -> Perturbed:
    """VeCoR's negatives: the velocity after a perturbation A, `k` independent draws, (B, *dims) or
    (k, B, *dims) for k > 1.

    space "velocity": A(u_t). "latent": the velocity of `path` from the same x0 to A(x1) at the same
    t. "image": the same with codec.encode(A(codec.decode(x1))); data without a codec are pixels
    already. Without a `path` it is that of the objective (which refuses another one), and LINEAR
    where there is no objective. A linear A of the velocity perturbs the noise too, so its negatives
    lie farther off than those of the same A in latent space. Raises ConfigError for an unknown
    space. Reference: Hong et al. 2025 (arXiv:2511.18942); its default is channel_shuffle in
    velocity space with k = 1.
    """
    return Perturbed(transform, space, path, k, codec)
