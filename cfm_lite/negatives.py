"""Negatives: a FlowSample in, wrong velocities out, for L = |v - u_t|^2 - λ sum_k |v - u_neg_k|^2.

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
    as_labels,
    check_choice,
    check_count,
    check_floating,
    check_generator,
    check_labels,
    check_same_shape,
    on_host,
    warn_once,
)
from cfm_lite._internal.networks import check_caption, check_keywords, evaluating
from cfm_lite.draws import quantiles, uniform_time
from cfm_lite.errors import ConfigError
from cfm_lite.paths import LINEAR, FlowSample, Path, check_path, on_path
from cfm_lite.perturbations import other_row

__all__ = [
    "Negatives",
    "Perturbed",
    "in_batch",
    "in_batch_mean",
    "other_class",
    "other_condition",
    "perturbed",
]

Negatives = Callable[..., Tensor | tuple[Tensor, Tensor]]  # (sample, *, generator=None)

SPACES = ("velocity", "latent", "image")
_QUANTILES = 2**16  # times over which the mean of d_alpha is taken
_AT_ONCE = 2**24  # numbers of captions that are compared at once on a device
Batch = Float[Tensor, "batch *dims"]
Keep = Bool[Tensor, " batch"]


def in_batch(
    sample: FlowSample, *, generator: Generator | None = None
) -> Batch | tuple[Batch, Keep]:
    """For each row the velocity of another row, uniform over the other rows; O(B).

    The draws are independent, so repeats are allowed. A batch of one has no other row: it gives
    (u_t, keep) with nothing kept, and warns once.

    Raises:
        ConfigError: a sample that is no FlowSample, or a generator on another device.

    Reference: Stoica et al. 2025 (arXiv:2506.05350), official code; each row keeps its own time.

    >>> x0, x1, t = torch.zeros(2, 1), torch.tensor([[1.0], [2.0]]), torch.zeros(2)
    >>> in_batch(FlowSample(x0, x1, t, *LINEAR.interpolate(x0, x1, t)))
    tensor([[2.],
            [1.]])
    """
    u = _velocity_of(sample)
    check_generator(generator, u)
    if len(u) < 2:
        warn_once(
            "a batch of one holds no negative: nothing is repelled. Use batches (or shards) of at "
            "least two."
        )
        # a full u_neg and an empty keep: shapes stay those of every other batch
        return u, torch.zeros(len(u), dtype=torch.bool, device=u.device)
    # the other row's velocity as it is, of its own time and noise
    return u.index_select(0, other_row(len(u), u.device, generator))


def in_batch_mean(
    data_mean: Float[Tensor, "*dims"],
    path: Path = LINEAR,
    time: Callable[..., Tensor] = uniform_time,
) -> Float[Tensor, "*dims"]:
    """E[u_neg] of `in_batch`: E[d_alpha(t)] E[x1], with `data_mean` = E[x1] and t drawn by `time`.

    With uniform times it is (alpha(1) - alpha(0)) E[x1]. It holds for noise of mean 0, whatever x_t
    and y are.

    Raises:
        ConfigError: a mean of integers, a path that is no Path, a `time` of your own, or one of
            another path.

    >>> in_batch_mean(torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """
    check_floating(data_mean=data_mean)
    # a negative has its own time, so the mean is over all times and depends on no t
    if time is not uniform_time:
        t = quantiles(time, _QUANTILES, check_path(path)).clamp(max=path.train_end)
        on_path(time, path, "time")  # times of another path are not those of this one
        return path.d_alpha(t).mean().item() * data_mean
    # the mean of d_alpha over uniform times
    start, end = (
        check_path(path).alpha(torch.tensor([0.0, 1.0], dtype=torch.float64, device="cpu")).tolist()
    )
    return (end - start) * data_mean


def other_class(sample: FlowSample, *, generator: Generator | None = None) -> tuple[Batch, Keep]:
    """For each row the velocity of a row of another class, and whether there is one; O(B log B).

    It is uniform over all rows whose condition differs, a label or a caption. The null label, or
    the empty caption, counts as a class. Captions on a GPU are compared pair by pair, O(B^2).

    Raises:
        ConfigError: a sample without labels.

    Reference: Stoica et al. 2025 (arXiv:2506.05350), class-conditioned sampling; its uniform
    fallback is left out.

    >>> x0, x1, t = torch.zeros(2, 1), torch.tensor([[1.0], [2.0]]), torch.zeros(2)
    >>> pair = FlowSample(x0, x1, t, *LINEAR.interpolate(x0, x1, t), y=torch.tensor([3, 7]))
    >>> other_class(pair)[0].flatten()
    tensor([2., 1.])
    """
    rows, keep = _other_rows("other_class", sample, generator)
    return _velocity_of(sample).index_select(0, rows), keep


def other_condition(
    sample: FlowSample, *, generator: Generator | None = None
) -> tuple[Tensor, Keep]:
    """For each row the condition (B,) or (B, L) of a row of another one, and whether there is one.

    The rows are those that `other_class` takes. `terms.ConditionRepulsion` asks the network what it
    makes of these conditions.

    Raises:
        ConfigError: a sample without labels.

    >>> x0, x1, t = torch.zeros(2, 1), torch.tensor([[1.0], [2.0]]), torch.zeros(2)
    >>> pair = FlowSample(x0, x1, t, *LINEAR.interpolate(x0, x1, t), y=torch.tensor([3, 7]))
    >>> other_condition(pair)[0]
    tensor([7, 3])
    """
    rows, keep = _other_rows("other_condition", sample, generator)
    y: Any = as_labels(sample.y)
    return y.index_select(0, rows), keep


def _other_rows(
    asker: str, sample: FlowSample, generator: Generator | None
) -> tuple[Tensor, Tensor]:
    """For each row the number of a row with another condition, and whether there is one."""
    u, y = _velocity_of(sample), as_labels(sample.y)
    if y is None:
        # what is asked for a condition cannot take another row's velocity
        other = ", or use in_batch" if asker == "other_class" else " or captions"
        raise ConfigError(f"{asker} needs y, and the sample has y=None. Give labels (B,){other}.")
    check_generator(generator, u)
    # captions: equal ones count as one class
    if isinstance(y, Tensor) and y.dim() > 1 and y.shape[1] > 1:
        y = _caption_numbers(check_caption(y, u).flatten(1))
    y = check_labels(y, u, torch.iinfo(torch.int64).max)
    # sorted, a class is one stretch: others are found without a (B, B) mask
    labels, order = torch.sort(y)
    # the row's own class is labels[first:last]
    first, last = (torch.searchsorted(labels, y, right=right) for right in (False, True))
    others = len(y) - (last - first)  # (B,)
    # a 62-bit number modulo B: no row is favoured by more than B / 2^62
    place = torch.randint(2**62, y.shape, device=u.device, generator=generator)
    # a row without another class gets any number here, and keep = False below
    place = place % others.clamp_min(1)
    # the others are numbered without the own stretch, so a place behind it moves on
    place = torch.where(place < first, place, place + last - first).clamp_max(len(y) - 1)
    return order[place], others > 0


def _caption_numbers(y: Tensor) -> Tensor:
    """A number for each row of `y` (B, D): rows that are equal have one number."""
    if on_host(y):
        return torch.unique(y, dim=0, return_inverse=True)[1]
    # `unique` would wait for the device, which alone knows how many there are; so every row is
    # compared with every other, and takes the number of the first that is equal
    equal = torch.ones(len(y), len(y), dtype=torch.bool, device=y.device)
    for part in y.split(max(1, _AT_ONCE // len(y) ** 2), dim=1):
        equal &= (part[:, None] == part).all(-1)
    return equal.long().argmax(1)


def _velocity_of(sample: Any) -> Tensor:
    if not isinstance(sample, FlowSample):
        raise ConfigError(f"sample has type {type(sample).__name__}; it must be a FlowSample.")
    return sample.u_t.detach()  # a target carries no gradient


@dataclass(frozen=True)
class Perturbed:
    """What `perturbed` gives: a function of a sample, with `k` negatives per row.

    Raises:
        ConfigError: an unknown space, k below 1, a transform without a keyword `generator`, or a
            codec without encode and decode, or where nothing is decoded.

    >>> from cfm_lite.perturbations import channel_shuffle
    >>> Perturbed(channel_shuffle).space
    'velocity'
    """

    transform: Callable[..., Tensor]
    space: str = "velocity"
    path: Path | None = None
    k: int = 1
    codec: Any = None

    def __post_init__(self) -> None:
        check_choice("space", self.space, SPACES)
        check_count("k", self.k)
        call = "transform(x, *, generator=None)"
        check_keywords("transform", self.transform, call, 1, ("generator",))
        if self.path is not None:
            check_path(self.path)
        if self.space == "image" and self.codec is None:
            warn_once(
                "space='image' without a codec acts like space='latent': the data themselves are "
                "perturbed. For latents, give their codec."
            )
        methods = (getattr(self.codec, name, None) for name in ("encode", "decode"))
        if self.codec is not None and not all(map(callable, methods)):
            raise ConfigError(
                f"codec is {self.codec!r}; it must have the methods encode and decode."
            )
        if self.codec is not None and self.space != "image":
            raise ConfigError(
                f"a codec was given and space is {self.space!r}, which reads none; give "
                "space='image', or leave codec out."
            )

    @torch.no_grad()
    def __call__(
        self, sample: FlowSample, *, generator: Generator | None = None, path: Path | None = None
    ) -> Tensor:
        """The negatives of `sample`.

        `path` is the objective's, which refuses another one of this object's own.

        Raises:
            ConfigError: a transform that changes the shape, or a sample without an objective that
                lies on another path: this object's own, else the linear one.
        """
        check_generator(generator, _velocity_of(sample))
        # K draws, not one draw K times: the mean over them is less noisy
        drawn = [self._one(sample, generator, path) for _ in range(self.k)]
        return drawn[0] if self.k == 1 else torch.stack(drawn)

    def _one(self, sample: FlowSample, generator: Generator | None, path: Path | None) -> Tensor:
        if self.space == "velocity":
            # P u = d_alpha P x1 + d_sigma P x0 for a linear P: here the noise is perturbed too
            u_neg = self.transform(sample.u_t, generator=generator)
            check_same_shape(u_t=sample.u_t, perturbed=u_neg)
            return u_neg
        x1 = self._perturb_data(sample.x1, generator)
        check_same_shape(x1=sample.x1, perturbed=x1)
        # the same noise and time
        _, u_neg = (path or _path_of(sample, self.path)).interpolate(sample.x0, x1, sample.t)
        return u_neg

    def _perturb_data(self, x1: Tensor, generator: Generator | None) -> Tensor:
        if self.codec is None:
            return self.transform(x1, generator=generator)
        # a crop of latents is no latent of a crop: what is plausible is a matter of pixels
        with evaluating(self.codec):  # frozen also inside: it has no part in the training
            image = self.transform(self.codec.decode(x1), generator=generator)
            return self.codec.encode(image).to(x1.dtype)


def _path_of(sample: FlowSample, own: Path | None) -> Path:
    """The path of a sample without an objective: `own`, else LINEAR; ConfigError for another."""
    path = own or LINEAR
    expected = path.interpolate(sample.x0, sample.x1, sample.t)[1]
    # loose, as half precision needs: it only has to tell one path from another
    u, tolerance = sample.u_t.to(expected), {"rtol": 1e-2, "atol": 1e-2, "equal_nan": True}
    if on_host(expected) and not torch.allclose(u, expected, **tolerance):
        raise ConfigError(
            f"the sample does not lie on the path {path.name!r} of these negatives; give them the "
            "sample's, such as perturbed(..., path=COSINE)."
        )
    return path


def perturbed(
    transform: Callable[..., Tensor],
    *,
    space: str = "velocity",
    path: Path | None = None,
    k: int = 1,
    codec: Any = None,
) -> Perturbed:
    """VeCoR's negatives: the velocity after a perturbation A = `transform`, in `k` draws.

    They are (B, *dims), or (k, B, *dims) for k > 1. A linear A of the velocity perturbs the noise
    too, so its negatives lie farther off than those of the same A in latent space.

    Args:
        space: "velocity" gives A(u_t). "latent" gives the velocity from the same x0 to A(x1) at the
            same t. "image" does so with codec.encode(A(codec.decode(x1))); data without a codec
            are pixels already.
        path: by default that of the objective, which refuses another one; without an objective
            that of the sample, by default LINEAR.

    Raises:
        ConfigError: an unknown space, a transform without a generator, or a codec with another
            space than "image".

    Reference: Hong et al. 2025 (arXiv:2511.18942); its default is channel_shuffle in velocity space
    with k = 1.

    >>> from cfm_lite.perturbations import channel_shuffle
    >>> x0, x1, t = torch.zeros(1, 2), torch.tensor([[1.0, 2.0]]), torch.zeros(1)
    >>> perturbed(channel_shuffle)(FlowSample(x0, x1, t, *LINEAR.interpolate(x0, x1, t)))
    tensor([[2., 1.]])
    """
    return Perturbed(transform, space, path, k, codec)
