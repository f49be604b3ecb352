"""What is drawn before a training step: times, pairings of noise with data, labels to drop.

Convention: t = 0 is noise, t = 1 is data. A time distribution is a function (n, *, generator,
device) -> (n,) float32 in [0, 1]. A coupling is a function (x0, x1, y) -> (x0, x1, y). Every draw
takes a generator; without one it uses torch's global state.
"""

import functools
import math
import re
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor

from cfm_lite._internal.checks import (
    check_alike,
    check_choice,
    check_count,
    check_generator,
    check_labels,
    check_number,
    check_tensor,
    plain,
)
from cfm_lite.errors import ConfigError
from cfm_lite.paths import LINEAR, Path

__all__ = [
    "class_labels",
    "drop_conditions",
    "drop_labels",
    "independent",
    "keyed_generator",
    "logit_normal_time",
    "lognormal_time",
    "minibatch_ot",
    "uniform_time",
]

Device = torch.device | str | None
Batch = Float[Tensor, "batch *dims"]
Labels = Integer[Tensor, " batch"]
Condition = Shaped[Tensor, "batch *caption"]


def keyed_generator(device: Device, *key: int | str) -> torch.Generator:
    """A generator on `device` that depends on the key alone, such as (seed, step, shard, "noise").

    Its seed is a 63-bit BLAKE2b hash of the key, the same in every process and on every machine.
    Neither the number of ranks nor an earlier draw changes it. (torch's CPU generator uses the low
    32 bits of a seed.)

    Raises:
        ConfigError: a part is neither an int nor a str. Its text could differ between processes.

    >>> torch.rand(2, generator=keyed_generator("cpu", 0, 1, "noise"))
    tensor([0.9743, 0.5872])
    """
    if not set(map(type, key)) <= {int, str}:  # asked first, because this runs at every draw
        key = tuple(map(plain, key))  # NumPy's 3 is 3
        for part in key:
            if not isinstance(part, int | str) or isinstance(part, bool):
                raise ConfigError(
                    f"the key holds {part!r} of type {type(part).__name__}; each part must be an "
                    "int or a str."
                )
    # of the tuple as text: joined parts would make (1, 23) and (12, 3) one key
    digest = blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device=_device(device)).manual_seed(int.from_bytes(digest, "big") >> 1)


def uniform_time(
    n: int, *, generator: torch.Generator | None = None, device: Device = None
) -> Float[Tensor, " n"]:
    """`n` times, uniform on [0, 1).

    Raises:
        ConfigError: `n` below 1, or a generator on another kind of device.

    >>> uniform_time(2, generator=torch.Generator().manual_seed(0))
    tensor([0.4963, 0.7682])
    """
    n, device = check_count("n", n), _place(generator, device)
    # float32 whatever the default dtype is: in float64 a seed gives other times
    return torch.rand(n, generator=generator, device=device, dtype=torch.float32)


def logit_normal_time(
    n: int,
    mean: float = 0.0,
    std: float = 1.0,
    *,
    generator: torch.Generator | None = None,
    device: Device = None,
) -> Float[Tensor, " n"]:
    """`n` times sigmoid(mean + std z) with z ~ N(0, 1); a mean above 0 favours times near the data.

    Raises:
        ConfigError: std is not above 0.

    Reference: Esser et al. 2024 (arXiv:2403.03206), section 3.1.

    >>> logit_normal_time(2, generator=torch.Generator().manual_seed(0))
    tensor([0.8236, 0.4272])
    """
    mean = check_number("mean", mean, -math.inf, math.inf)
    std = check_number("std", std, 0, math.inf, open_low=True)
    # the sigmoid of a normal lies in (0, 1): no time is cut off or drawn again
    return torch.sigmoid(mean + std * _normal(n, generator, device))


def lognormal_time(
    n: int, path: Path = LINEAR, *, generator: torch.Generator | None = None, device: Device = None
) -> Float[Tensor, " n"]:
    """`n` times whose ratio sigma(t) / alpha(t) is e^z with z ~ N(0, 1): REPA's "lognormal".

    In an `Objective` it follows the objective's path.

    Raises:
        ConfigError: the path is neither LINEAR nor COSINE.

    Reference: Yu et al. 2024 (arXiv:2410.06940), official loss.

    >>> lognormal_time(2, generator=torch.Generator().manual_seed(0))
    tensor([0.1764, 0.5728])
    """
    return _lognormal_law(path)(_normal(n, generator, device))


_LOGNORMAL: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda z: torch.sigmoid(-z),  # 1 / (1 + e^z), without overflow
    # sigma / alpha = 1 / tan(pi t / 2), solved for t
    "cosine": lambda z: 1 - torch.atan(torch.exp(z)) * (2 / math.pi),
}


def _lognormal_law(path: Path) -> Callable[[Tensor], Tensor]:
    name = path.name if isinstance(path, Path) else path
    check_choice("path", name, _LOGNORMAL)
    return _LOGNORMAL[name]


def quantiles(time: Callable[..., Tensor], n: int, path: Path = LINEAR) -> Float[Tensor, " n"]:
    """`n` times in float64 with equal shares of the distribution `time`, on the host.

    `time` is one of the distributions above, or a `functools.partial` of one with keywords.
    """
    draw, given = time, {}
    if isinstance(time, functools.partial):
        draw, given = time.func, time.keywords
    # midpoints: neither 0 nor 1, whose normal quantiles are infinite
    share = (torch.arange(n, dtype=torch.float64, device="cpu") + 0.5) / n
    if draw is uniform_time:
        return share
    z = torch.special.ndtri(share)
    if draw is logit_normal_time:
        return torch.sigmoid(given.get("mean", 0.0) + given.get("std", 1.0) * z)
    if draw is lognormal_time:
        return _lognormal_law(given.get("path", path))(z).flip(0)
    raise ConfigError(
        f"time is {getattr(draw, '__name__', type(draw).__name__)}, whose quantiles are not known; "
        "use uniform_time, logit_normal_time or lognormal_time."
    )


def _normal(n: int, generator: torch.Generator | None, device: Device) -> Tensor:
    n, device = check_count("n", n), _place(generator, device)
    return torch.randn(n, generator=generator, device=device, dtype=torch.float32)


def _place(generator: torch.Generator | None, device: Device) -> Device:
    """The device asked for, or else the generator's; ConfigError where the two differ in kind."""
    check_generator(generator)
    if generator is None or device is None:
        return _device(device) if generator is None else generator.device
    # by kind: a generator says cuda:0 where a caller says cuda
    if _device(device).type != generator.device.type:
        raise ConfigError(
            f"generator is on {generator.device}, device is {device}; leave device out, or make "
            "the generator there."
        )
    return device


def _device(device: Any) -> torch.device:
    try:
        return torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError, ValueError):
        raise ConfigError(
            f"device is {device!r:.60}; it must be a device of torch, such as 'cpu' or 'cuda'."
        ) from None


def independent(
    x0: Batch, x1: Batch, y: Condition | None = None
) -> tuple[Batch, Batch, Condition | None]:
    """Noise, data and labels as they come: any noise may meet any data point.

    Raises:
        ConfigError: shapes that differ.

    >>> independent(torch.zeros(2), torch.tensor([3.0, 4.0]))
    (tensor([0., 0.]), tensor([3., 4.]), None)
    """
    _check_pair(x0, x1, y)
    return x0, x1, y


def minibatch_ot(
    x0: Batch, x1: Batch, y: Condition | None = None
) -> tuple[Batch, Batch, Condition | None]:
    """Permute the noise so that the sum of squared distances to the data is smallest.

    The data and labels keep their order. The pairing does not look at the labels. So each class is
    trained on its own part of the noise. Sampling cannot know that part (Cheng and Schwing 2025,
    arXiv:2503.10636). The assignment problem is solved on the host, in O(B^3): this synchronises
    with the device.

    Raises:
        ConfigError: shapes that differ, or values that are not finite.

    Reference: Tong et al. 2024 (arXiv:2302.00482), section 3.2.

    >>> minibatch_ot(torch.tensor([[5.0], [0.0]]), torch.tensor([[1.0], [4.0]]))[0]
    tensor([[0.],
            [5.]])
    """
    _check_pair(x0, x1, y)
    # in float64, so that rounding does not decide between two pairings
    noise, data = (x.detach().reshape(len(x), -1).to("cpu", torch.float64) for x in (x0, x1))
    # |x1_i - x0_j|^2 without the squares: they sum to the same number under every permutation
    gain = data @ noise.T  # (B, B)
    if not gain.isfinite().all():
        raise ConfigError(
            "x0 or x1 holds NaN or infinite values; a pairing needs finite distances. Check the "
            "data."
        )
    try:
        table = gain.numpy()
    except RuntimeError:  # inside a transform of torch.func
        table = gain.tolist()
    from scipy.optimize import linear_sum_assignment  # late: it takes most of a second

    # the noise is permuted, so that data keep their labels and their place in the epoch
    _, order = linear_sum_assignment(table, maximize=True)
    return x0[torch.from_numpy(order).to(x0.device)], x1, y


def _check_pair(x0: Tensor, x1: Tensor, y: Tensor | None) -> None:
    check_alike(x0=x0, x1=x1)
    if x0.dim() < 1 or x0.shape[0] == 0:
        raise ConfigError(
            f"x0 and x1 have shape {tuple(x0.shape)}; they must be (B, *dims) with B of at least 1."
        )
    if y is not None and (not isinstance(y, Tensor) or y.shape[:1] != x1.shape[:1]):
        seen = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ConfigError(
            f"y is {seen} beside x1 {tuple(x1.shape)}; it must be a tensor with one label per row."
        )


def drop_labels(
    y: Labels, p: float, null: int, *, generator: torch.Generator | None = None
) -> Labels:
    """A copy of `y` in which each label is `null` with probability `p` in [0, 1].

    `null` is the number of classes.

    Raises:
        ConfigError: labels outside [0, null].

    Reference: Ho & Salimans 2022 (arXiv:2207.12598), algorithm 1.

    >>> drop_labels(torch.tensor([0, 1, 2]), p=1.0, null=10)
    tensor([10, 10, 10])
    """
    y = check_labels(y, None, check_count("null", null))
    return drop_conditions(y, p, torch.full_like(y, null), generator=generator)[0]


def drop_conditions(
    y: Condition, p: float, null: Condition, *, generator: torch.Generator | None = None
) -> tuple[Condition, Bool[Tensor, " batch"]]:
    """(seen, dropped): `y` with each row replaced by that of `null` with probability `p` in [0, 1],
    and which rows these are, (B,) bool.

    A condition is a label (B,), or a caption as word numbers (B, L) or features (B, L, D).

    Raises:
        ConfigError: `p` outside [0, 1], or a `null` of another shape than `y`.

    >>> seen, dropped = drop_conditions(torch.ones(2, 3), 1.0, torch.zeros(2, 3))
    >>> seen.sum(), dropped
    (tensor(0.), tensor([True, True]))
    """
    p = check_number("p", p, 0, 1)
    check_tensor(y=y, null=null)
    if null.shape != y.shape or not y.dim():
        raise ConfigError(
            f"null has shape {tuple(null.shape)} and y {tuple(y.shape)}; both must be (B, ...)."
        )
    check_generator(generator)
    device = _place(generator, None if generator else y.device)
    # one number a row whatever p is, so another p leaves all later draws as they were
    drawn = torch.rand(len(y), dtype=torch.float32, generator=generator, device=device)
    # rand lies in [0, 1): strictly below, p = 0 drops no row and p = 1 drops every row
    dropped = drawn.to(y.device) < p
    return torch.where(dropped.reshape(-1, *[1] * (y.dim() - 1)), null, y), dropped


def class_labels(
    labels: str,
    num_classes: int,
    n: int,
    *,
    first: int = 0,
    generator: torch.Generator | None = None,
) -> Integer[Tensor, " n"]:
    """The labels, int64, of `n` samples from row `first` on.

    `labels` is "turn" (the classes in turn), "random" (as in the programs of SiT and REPA), or a
    list such as "3,7" (these in turn). Random ones are the first `n` draws of `generator`, whatever
    `first` is: to go on, keep the generator, or give every part one of its own.

    Raises:
        ConfigError: another word, or a class outside [0, num_classes - 1].

    >>> class_labels("3,7", num_classes=10, n=4)
    tensor([3, 7, 3, 7])
    """
    check_count("num_classes", num_classes)
    check_count("n", n)
    check_count("first", first, low=0)
    check_generator(generator)
    check_labels_word(labels)
    if labels == "random":
        device = _place(generator, None)
        # with replacement, so classes are not equally often drawn, as in those programs
        return torch.randint(num_classes, (n,), generator=generator, device=device).cpu()
    turn = labels == "turn"
    chosen = torch.tensor(
        range(num_classes) if turn else _listed_classes(labels, num_classes), device="cpu"
    )
    # by the number of the row, so that a folder of samples can grow
    return chosen[torch.arange(first, first + n, device="cpu") % len(chosen)]


def check_labels_word(how: str) -> None:
    """`how` must be "turn", "random", or classes such as "3,7"; else ConfigError."""
    if not isinstance(how, str) or how not in ("turn", "random"):
        _listed_classes(how, 2**31)


def _listed_classes(how: Any, num_classes: int) -> list[int]:
    words = how.split(",") if isinstance(how, str) else [""]
    found = [int(word) for word in words if re.fullmatch(r" *[0-9]{1,9} *", word, re.ASCII)]
    if len(found) < len(words):
        raise ConfigError(
            f"labels is {how!r:.60}; it must be turn, random, or classes with commas between them, "
            "such as 3,7."
        )
    if max(found) >= num_classes:
        raise ConfigError(
            f"labels names the class {max(found)}; with num_classes = {num_classes} the classes "
            f"are 0 to {num_classes - 1}."
        )
    return found
