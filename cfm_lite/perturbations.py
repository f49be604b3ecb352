"""Perturbations make wrong but plausible tensors: of the shape and dtype of x, and never x itself.

Each row gets its own draw. `x` is (B, C, H, W), pixels or latents. channel_shuffle, color_jitter
and additive_noise also take (B, D), where a coordinate counts as a channel. VeCoR repels from
velocities made of these (Hong et al. 2025, arXiv:2511.18942). Its parameters are not published, so
the defaults here are choices and are named as such. Each function raises ConfigError for data of
another shape and for options out of range.
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Generator, Tensor

from cfm_lite._internal.checks import (
    check_count,
    check_flag,
    check_floating,
    check_generator,
    check_number,
    expand,
    full_precision,
    promote,
)
from cfm_lite._internal.networks import check_keywords
from cfm_lite.errors import ConfigError

__all__ = [
    "additive_noise",
    "channel_shuffle",
    "color_jitter",
    "crop_resize",
    "cutmix",
    "expected_map",
    "gaussian_blur",
    "other_row",
    "shuffle_share",
]

Range = tuple[float, float]
Channels = Float[Tensor, "batch channels *dims"]
Images = Float[Tensor, "batch channels height width"]


def channel_shuffle(
    x: Channels,
    *,
    per_sample: bool = True,
    exclude_identity: bool = True,
    generator: Generator | None = None,
) -> Channels:
    """The channels (dimension 1) in random order, one order per row or, if asked, per batch.

    The order is uniform over the C! - 1 orders other than the identity (some channels may stay in
    place), or over all C! of them. It is exact up to C = 8. From there on the identity, of
    probability below 3e-6, is replaced by one swap.

    Raises:
        ConfigError: C = 1.

    >>> channel_shuffle(torch.tensor([[1.0, 2.0]]))
    tensor([[2., 1.]])
    """
    _check(x, "channel_shuffle", generator)
    check_flag(per_sample=per_sample, exclude_identity=exclude_identity)
    if x.shape[1] < 2:
        raise ConfigError(
            f"channel_shuffle needs at least 2 channels; x has shape {tuple(x.shape)}. For grey "
            "images use crop_resize or cutmix."
        )
    n = len(x) if per_sample else 1
    order = _random_orders(n, x.shape[1], exclude_identity, x.device, generator)
    if not per_sample:
        return x[:, order[0]]
    return x[torch.arange(len(x), device=x.device)[:, None], order]


def crop_resize(
    x: Images, *, side: Range = (0.6, 0.9), generator: Generator | None = None
) -> Images:
    """A random window of each image, resized back bilinearly.

    The window's sides are s H and s W with s uniform on `side`, within (0, 1). Its place is uniform
    inside the image. The default range is that of a public third-party implementation of VeCoR.

    Raises:
        ConfigError: data that are no images, or a `side` outside (0, 1).

    >>> crop_resize(torch.ones(1, 1, 2, 2)).round()
    tensor([[[[1., 1.],
              [1., 1.]]]])
    """
    _check_images(x, "crop_resize", generator)
    _check_range("side", side, 0, 1)
    z = promote(x)
    scale = _uniform(z, side, generator)
    room = 1 - scale  # the window's centre lies in [-room, room] on grid_sample's axis from -1 to 1
    row, column = (room * _uniform(z, (-1, 1), generator) for _ in range(2))
    zero = torch.zeros_like(scale)
    axes = torch.stack([scale, zero, column], 1), torch.stack([zero, scale, row], 1)
    with full_precision():
        grid = F.affine_grid(torch.stack(axes, 1), list(z.shape), align_corners=False)
    window = F.grid_sample(z, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return window.to(x.dtype)


def cutmix(x: Images, *, area: Range = (0.25, 0.5), generator: Generator | None = None) -> Images:
    """Paste into each image one box of another row, at the same place.

    The other row is uniform over the rest.
    The box covers a share of the image that is uniform on `area`, within (0, 1). It has the image's
    aspect (sides rounded to pixels, one at least), and its place is uniform inside the image. Yun
    et al. 2019 (arXiv:1905.04899) draw the share from (0, 1). Here the box is larger, so that it is
    rarely only an empty corner.

    Raises:
        ConfigError: a batch of one.

    >>> pair = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
    >>> cutmix(pair).mean((1, 2, 3))
    tensor([0.2500, 0.7500])
    """
    _check_images(x, "cutmix", generator)
    _check_range("area", area, 0, 1)
    if len(x) < 2:
        raise ConfigError(
            f"cutmix pastes from another row, and x {tuple(x.shape)} has {len(x)}. Use a batch of "
            "at least 2, or crop_resize."
        )
    # a box of the image's aspect that covers a share a has the sides sqrt(a) H and sqrt(a) W
    ratio = _uniform(x, area, generator).sqrt()
    rows = _random_span(x, x.shape[2], ratio, generator)  # (B, H)
    columns = _random_span(x, x.shape[3], ratio, generator)  # (B, W)
    box = rows[:, None, :, None] & columns[:, None, None, :]  # (B, 1, H, W)
    return torch.where(box, x[other_row(len(x), x.device, generator)], x)


def gaussian_blur(
    x: Images, *, sigma: Range = (0.5, 1.5), generator: Generator | None = None
) -> Images:
    """Each image under a Gaussian blur whose width in pixels is uniform on `sigma`, above 0.2.

    At the border the weights are rescaled to sum to one, so a constant image stays as it is. The
    default range is a choice.

    Raises:
        ConfigError: data that are no images, or a `sigma` that is not above 0.2.

    >>> gaussian_blur(torch.ones(1, 1, 2, 2))
    tensor([[[[1., 1.],
              [1., 1.]]]])
    """
    _check_images(x, "gaussian_blur", generator)
    _check_range("sigma", sigma, 0.2, math.inf)  # a narrower one changes nothing
    z = promote(x)
    width = expand(_uniform(z, sigma, generator), z[:, 0])  # (B, 1, 1)
    # a Gaussian is a product: a blur along each axis is exact, and takes small matrices
    # (B, 1, H, H) and (B, 1, W, W)
    down, across = (_blur_matrix(size, width)[:, None] for size in z.shape[2:])
    with full_precision():
        return (down @ z @ across.mT).to(x.dtype)


def color_jitter(
    x: Channels,
    *,
    contrast: float = 0.4,
    brightness: float = 0.4,
    generator: Generator | None = None,
) -> Channels:
    """Every channel of every row scaled by 1 + a and shifted by b; it suits latents too.

    |a| is uniform on [contrast / 2, contrast] and |b| on [brightness / 2, brightness], both with a
    random sign, so that no draw is close to the identity.

    Args:
        contrast: in [0, 1).
        brightness: in units of x; one of the two must be positive.

    Raises:
        ConfigError: a contrast outside [0, 1), a negative brightness, or both 0.

    >>> shift = color_jitter(torch.zeros(1, 3), brightness=0.4).abs()
    >>> bool((shift >= 0.2).all() and (shift <= 0.4).all())
    True
    """
    _check(x, "color_jitter", generator)
    contrast = check_number("contrast", contrast, 0, 1, open_high=True)
    brightness = check_number("brightness", brightness, 0, math.inf)
    if contrast == brightness == 0:
        raise ConfigError(
            "contrast and brightness are both 0, which changes nothing; make one of them positive."
        )
    z = promote(x)
    scale, shift = (_signed(z, size, generator) for size in (contrast, brightness))
    return (z * (1 + scale) + shift).to(x.dtype)


def additive_noise(
    x: Channels, *, std: float = 0.5, generator: Generator | None = None
) -> Channels:
    """`x` plus independent normal noise of standard deviation `std` > 0, in units of x.

    In velocity space its mean is the true velocity. So the optimum stays that of flow matching,
    which makes it a useful control.

    Raises:
        ConfigError: a std that is not above 0.

    >>> additive_noise(torch.zeros(1, 2), std=0.1).shape
    torch.Size([1, 2])
    """
    _check(x, "additive_noise", generator)
    std = check_number("std", std, 0, math.inf, open_low=True)
    z = promote(x)
    noise = torch.randn(z.shape, dtype=z.dtype, device=z.device, generator=generator)
    return (z + std * noise).to(x.dtype)


def expected_map(
    transform: Callable[..., Tensor], shape: tuple[int, ...], draws: int = 2000, seed: int = 0
) -> Float[Tensor, "size size"]:
    """E[P] (D, D) of a random linear `transform` of samples of `shape`, with D = prod(shape).

    So E[P x] = x.flatten(1) @ E[P].T. It is a mean over draws from `seed` for every basis vector;
    that of `channel_shuffle` is exact. The standard error of an entry is that of one draw over
    sqrt(draws), below 0.02 for `crop_resize`.

    Args:
        draws: at least 2.

    Raises:
        ConfigError: a transform that is not linear, such as color_jitter's shift, or that mixes
            the rows of a batch, such as cutmix.

    >>> expected_map(channel_shuffle, (2,))
    tensor([[0., 1.],
            [1., 0.]])
    """
    check_keywords("transform", transform, "transform(x, *, generator=None)", 1, ("generator",))
    draws = check_count("draws", draws, low=2)
    if not isinstance(shape, tuple | list) or not shape:
        raise ConfigError(
            f"shape is {shape!r:.60}; it must be the dims of one sample, such as (1, 8, 8)."
        )
    shape = tuple(check_count("shape", size) for size in shape)
    seed = check_count("seed", seed, low=0)
    try:
        hash(transform)
    except TypeError:  # such as an instance of a dataclass: it cannot be a key of the cache
        return _expected_map.__wrapped__(transform, shape, draws, seed)
    # a clone, so that nobody writes into the cache
    return _expected_map(transform, shape, draws, seed).clone()


@functools.cache
def _expected_map(
    transform: Callable[..., Tensor], shape: tuple[int, ...], draws: int, seed: int
) -> Tensor:
    generator, size = torch.Generator().manual_seed(seed), math.prod(shape)
    if transform is channel_shuffle and shape[0] > 1:
        share, same = (
            shuffle_share(shape[0]),
            torch.eye(shape[0], dtype=torch.float32, device="cpu"),
        )
        mean = share * same + (1 - share) / shape[0]  # the mean of the channels stays
        return torch.kron(mean, torch.eye(size // shape[0], dtype=torch.float32, device="cpu"))
    # a batch whose rows are the basis: each call gives one draw of every column of P
    basis = torch.eye(size, dtype=torch.float32, device="cpu").reshape(size, *shape)
    name = getattr(transform, "__name__", transform)
    if transform(torch.zeros_like(basis), generator=generator).abs().max() > 0:
        raise ConfigError(f"{name} does not map 0 to 0, so it is not linear; use crop_resize.")
    every_second = torch.zeros_like(basis)
    every_second[::2] = 1

    def same_draws(x: Tensor) -> Tensor:
        # of another generator than the mean's, whose draws so stay the same
        return transform(x, generator=torch.Generator().manual_seed(seed))

    if same_draws(every_second)[1::2].any():
        raise ConfigError(
            f"{name} mixes the rows of a batch, so it is no map of one sample; use crop_resize."
        )
    apart = torch.Generator().manual_seed(seed)
    x, z = torch.randn((2, *basis.shape), generator=apart, dtype=torch.float32, device="cpu")
    whole, parts = same_draws(3 * z - 2 * x), 3 * same_draws(z) - 2 * same_draws(x)
    # rounding alone stays far below this; not <=, so that NaN is refused too
    if not (whole - parts).abs().max() <= 1e-3 * whole.abs().max():
        raise ConfigError(
            f"{name} is not linear: with equal draws, P(3z - 2x) differs from 3 P(z) - 2 P(x). Use "
            "crop_resize, or a linear map that draws from its generator alone."
        )
    total = torch.zeros(size, size, dtype=torch.float32, device="cpu")
    for _ in range(draws):
        total += transform(basis, generator=generator).reshape(size, size)
    return (total / draws).mT.contiguous()


def shuffle_share(channels: int, exclude_identity: bool = True) -> float:
    """What a shuffle of 2 or more channels leaves, on average, of a deviation from their mean.

    Over all C! orders that is 0. Without the identity, which leaves all of it, the C! - 1 others
    must leave -1 / (C! - 1).

    >>> shuffle_share(3)
    -0.2
    """
    others = math.factorial(min(channels, 20)) - 1  # beyond 20 channels it is below 1e-18
    return -1 / others if exclude_identity else 0.0


def other_row(
    n: int, device: torch.device, generator: Generator | None = None
) -> Integer[Tensor, " n"]:
    """For each of `n` >= 2 rows the number of another row, uniform over the rest; O(n).

    The draws are independent, so repeats are allowed.

    >>> other_row(2, torch.device("cpu"))
    tensor([1, 0])
    """
    # 1 to n - 1 steps around the batch never end where they began
    steps = torch.randint(1, n, (n,), device=device, generator=generator)
    return (torch.arange(n, device=device) + steps) % n


def _check(x: Tensor, name: str, generator: Generator | None) -> None:
    check_floating(x=x)
    if x.dim() < 2 or x.numel() == 0:
        raise ConfigError(
            f"{name} needs data (B, D) or images (B, C, H, W), not empty; x has shape "
            f"{tuple(x.shape)}."
        )
    check_generator(generator, x)


def _check_images(x: Tensor, name: str, generator: Generator | None) -> None:
    _check(x, name, generator)
    if x.dim() != 4 or x.shape[2] * x.shape[3] < 2:
        raise ConfigError(
            f"{name} needs images (B, C, H, W) of more than one pixel; x has shape "
            f"{tuple(x.shape)}. For (B, D) use channel_shuffle, color_jitter or additive_noise."
        )


def _check_range(name: str, bounds: Range, low: float, high: float) -> None:
    pair = isinstance(bounds, (tuple, list)) and len(bounds) == 2
    for bound in bounds if pair else ():
        check_number(name, bound, low, high, open_low=True, open_high=True)
    if not pair or bounds[0] > bounds[1]:
        raise ConfigError(f"{name} is {bounds!r:.60}; it must be (low, high) with low <= high.")


def _uniform(x: Tensor, bounds: Range, generator: Generator | None) -> Tensor:
    """One number per row of `x`, (B,)."""
    low, high = bounds
    u = torch.rand(len(x), dtype=promote(x).dtype, device=x.device, generator=generator)
    return low + (high - low) * u


def _signed(x: Tensor, size: float, generator: Generator | None) -> Tensor:
    """One number per row and channel, (B, C, 1, ...): in [size / 2, size], with a random sign."""
    # u holds the sign, and the place in the range
    u = 2 * torch.rand(x.shape[:2], dtype=x.dtype, device=x.device, generator=generator) - 1
    signed = size / 2 * (u + torch.where(u < 0, -1, 1))
    return signed.reshape(*x.shape[:2], *([1] * (x.dim() - 2)))


def _random_orders(
    n: int, channels: int, exclude_identity: bool, device: torch.device, generator: Generator | None
) -> Tensor:
    """(n, C) permutations, drawn without reading a value back to the host."""
    if channels > 8:
        u = torch.rand(n, channels, dtype=torch.float32, device=device, generator=generator)
        order, identity = u.argsort(1), torch.arange(channels, device=device)
        swapped = torch.cat([identity[:2].flip(0), identity[2:]])
        excluded = exclude_identity & (order == identity).all(1, keepdim=True)
        return torch.where(excluded, swapped, order)
    # rank 0 is the identity: to begin at 1 leaves it out
    rank = torch.randint(
        int(exclude_identity), math.factorial(channels), (n,), device=device, generator=generator
    )
    return _unrank(rank, channels)


def _unrank(rank: Tensor, channels: int) -> Tensor:
    """The permutations (n, C) with these numbers in lexicographic order; 0 is the identity."""
    # the Lehmer code: digit k counts the smaller entries that come after entry k
    digits = [rank // math.factorial(channels - 1 - k) % (channels - k) for k in range(channels)]
    order = torch.stack(digits, 1)
    # from the last: an entry takes its place among those that are left, so later ones move up
    for k in reversed(range(channels - 1)):
        order[:, k + 1 :] += order[:, k + 1 :] >= order[:, k : k + 1]
    return order


def _random_span(x: Tensor, size: int, ratio: Tensor, generator: Generator | None) -> Tensor:
    """(B, size) bool: a run of round(ratio * size) positions, at least one, at a uniform place."""
    length = (ratio * size).round().clamp_min(1)
    start = (_uniform(x, (0, 1), generator) * (size - length + 1)).floor()
    start = torch.minimum(start, size - length)  # u (n + 1) may round up to n + 1
    place = torch.arange(size, device=x.device)
    return (place >= start[:, None]) & (place < (start + length)[:, None])


def _blur_matrix(size: int, width: Tensor) -> Tensor:
    """(B, size, size): row i weighs position j by exp(-(i - j)^2 / (2 width^2)), normalised."""
    place = torch.arange(size, device=width.device, dtype=width.dtype)
    return torch.softmax(-((place[:, None] - place) ** 2) / (2 * width**2), dim=-1)
