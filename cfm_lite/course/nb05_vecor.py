"""What the exercises of notebook 05 ask for: a latent-space negative, the share of the noise, the
gain of shifts, shuffled channels, settings of K.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from cfm_lite.course import exercise
from cfm_lite.negatives import perturbed
from cfm_lite.paths import COSINE, FlowSample

__all__ = [
    "gain_of_shifts",
    "latent_negative",
    "noise_share",
    "same_optimum",
    "shuffled_channels",
]


def _halved(x: Tensor, *, generator: Generator | None = None) -> Tensor:
    """A perturbation without chance, so that two implementations must agree to the last digit."""
    return 0.5 * x.flip(-1) + 0.25


def _sample() -> FlowSample:
    g = torch.Generator().manual_seed(5)
    x0, x1 = torch.randn(2, 6, 2, 4, 4, generator=g, dtype=torch.float64)
    t = torch.rand(6, generator=g, dtype=torch.float64)
    return FlowSample(x0, x1, t, *COSINE.interpolate(x0, x1, t))


@exercise("5.1")
def latent_negative(answer: Callable[..., Any]) -> str | None:
    """negative(sample, transform, path): the velocity of the path from the same noise to the
    perturbed data, at the same time.
    """
    sample = _sample()
    state = torch.get_rng_state()
    first, second = (answer(sample, _halved, COSINE) for _ in range(2))
    torch.set_rng_state(state)
    if first is None or first is ...:
        return "not answered yet: return one velocity, made with path.interpolate."
    if isinstance(first, tuple):
        return (
            "interpolate returns a pair (position, velocity); the negative is the second of them: "
            "[1]."
        )
    if not isinstance(first, Tensor) or first.shape != sample.u_t.shape:
        return f"the negative must be a tensor of the shape of u_t, {tuple(sample.u_t.shape)}."
    if not torch.equal(first, second):
        return (
            "two calls give two answers, so something is still drawn again. Which noise belongs to "
            "the pair?"
        )
    right = perturbed(_halved, space="latent", path=COSINE)(sample)
    if torch.allclose(first, right):
        return None
    if torch.allclose(first, COSINE.interpolate(sample.x0, _halved(sample.x1), sample.t)[0]):
        return (
            "this is the position x_t of the wrong pair; its velocity is the second thing that "
            "interpolate returns."
        )
    if torch.allclose(first, _halved(sample.u_t)):
        return (
            "this perturbs the velocity: velocity space. In latent space the data are perturbed, "
            "then the velocity is computed."
        )
    if torch.allclose(first, _halved(sample.x1) - sample.x0):
        return "right for the linear path only; let the path do it: path.interpolate(x0, x1, t)[1]."
    return (
        "not right: perturb sample.x1, keep sample.x0 and sample.t, and take the path's velocity."
    )


@exercise("5.2")
def noise_share(answer: Callable[..., Any]) -> str | None:
    """noise_part(channels): E|P x0 - x0|^2 per coordinate, P uniform over the permutations other
    than the identity.
    """
    for channels in (3, 2, 4, 6):
        mine = float(answer(channels))
        stays = (math.factorial(channels - 1) - 1) / (math.factorial(channels) - 1)
        if abs(mine - 2 * (1 - stays)) < 1e-6:
            continue
        if abs(mine - (1 - stays)) < 1e-6:
            return (
                "this is the chance that a channel moves. Then it is replaced by independent "
                "noise: E(a - b)² is not 1."
            )
        if abs(mine - 2 * (1 - 1 / channels)) < 1e-6:
            return (
                "this counts all C! permutations. Leave out the identity: of the C! - 1 others, "
                "(C-1)! - 1 keep a given channel."
            )
        if abs(mine - 2) < 1e-6:
            return (
                f"right if every channel moved. With {channels} channels some permutations keep "
                "some channels in place."
            )
        return (
            f"not right for C = {channels}. It is the chance that a channel moves, times E(a - b)² "
            "of two independent normal numbers."
        )
    return None


@exercise("5.3")
def gain_of_shifts(answer: Callable[..., Any]) -> str | None:
    """gain(weight, channels, k) = (1 + weight k / (C - 1)) / (1 - weight k), for shifts in a
    circle by 1 to C - 1 places.
    """
    for weight, channels, k in ((0.05, 4, 1), (0.35, 2, 1), (0.2, 3, 3), (0.1, 5, 4)):
        mine, total, others = float(answer(weight, channels, k)), weight * k, channels - 1
        if abs(mine - (1 + total / others) / (1 - total)) < 1e-6:
            continue
        if abs(mine - 1 / (1 - total)) < 1e-6:
            return (
                "1/(1 - λK) holds if a channel may stay in its place. Here it never does, so the "
                "mean of its deviations is not 0."
            )
        if abs(mine - (1 - total / others) / (1 - total)) < 1e-6:
            return "a sign: subtracting λK times a negative multiple of d adds to d."
        if abs(mine - (1 + total / (math.factorial(channels) - 1)) / (1 - total)) < 1e-6:
            return (
                "this is the second row of the table. There are C - 1 shifts here, and each "
                "brings a channel to another place."
            )
        if k > 1 and abs(mine - (1 + weight / others) / (1 - weight)) < 1e-6:
            return "K is missing: each of the K negatives has the same mean, so λ becomes λK."
        return (
            f"not right for λ = {weight:g}, C = {channels}, K = {k}. A channel goes to each of the "
            "other C - 1 places equally often: what is the mean of P d? Put it into "
            "(d - λK E[P d]) / (1 - λK)."
        )
    return None


@exercise("5.4")
def shuffled_channels(my_shuffle: Callable[..., Any]) -> str | None:
    """my_shuffle(u, generator): per row a uniform permutation of the channels, never the
    identity.
    """
    rows, channels = 3000, 3
    u = (torch.arange(channels) + 10.0 * torch.arange(rows)[:, None])[..., None] + torch.tensor(
        [0.0, 0.25]
    )
    mine, again, other = (my_shuffle(u, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    if mine is None or mine is ...:
        return "your function returns ... or None; return a tensor like u."
    if mine.shape != u.shape:
        return f"the shape must stay {tuple(u.shape)}; yours is {tuple(mine.shape)}."
    if not torch.equal(mine.sort(1).values, u):
        return "each row must keep its own channels, each once, with all that belongs to them."
    if not torch.equal(mine, again) or torch.equal(mine, other):
        return "the random numbers must come from `generator`, and from nothing else."
    order = (mine[..., 0] - 10.0 * torch.arange(rows)[:, None]).long()
    kinds, counts = order.unique(dim=0, return_counts=True)
    if len(kinds) == 1:
        return "all rows got the same permutation; draw one per row."
    if (kinds == torch.arange(channels)).all(1).any():
        return f"{int((order == torch.arange(channels)).all(1).sum())} rows kept their order."
    if len(kinds) < math.factorial(channels) - 1:
        return f"only {len(kinds)} permutations of {channels} channels appear; there are 5 others."
    if float(counts.max() - counts.min()) > 0.25 * rows / len(kinds):
        return (
            f"not uniform: of {rows} rows the permutations got {counts.tolist()}. Draw again where "
            "the order is unchanged; do not repair it."
        )
    try:
        my_shuffle(u[:, :1], torch.Generator())
    except ValueError:
        return None
    return "one channel cannot be shuffled: raise a ValueError."


@exercise("5.5")
def same_optimum(answer: Callable[..., Any]) -> str | None:
    """same_optimum(weight, k, new_k) = (weight k / new_k, sqrt(k / new_k)), or None for λK >= 1."""
    if answer(0.2, 1, 4) in (None, ...):
        return "not answered yet: return the new weight and the change of the noise."
    for weight, k, new_k in ((0.2, 1, 4), (0.05, 4, 1), (0.1, 3, 6)):
        mine = answer(weight, k, new_k)
        if not isinstance(mine, tuple | list) or len(mine) != 2:
            return "return two numbers: the new weight, and the factor of the noise."
        new, noise = (float(part) for part in mine)
        if abs(new - weight * new_k / k) < 1e-9 and k != new_k:
            return "you multiplied; the product λK must stay the same when K changes."
        if abs(new - weight * k / new_k) > 1e-9:
            return f"the weight {new:g} is not right: the optimum depends on the product λK alone."
        if abs(noise - k / new_k) < 1e-9:
            return "the weight is right; the noise falls like 1/√K, not like 1/K."
        if abs(noise - (new_k / k) ** 0.5) < 1e-9:
            return "the weight is right; more negatives make the target less noisy, not more."
        if abs(noise - (k / new_k) ** 0.5) > 1e-9:
            return "the weight is right; look at the curve above for the noise."
    for case in ((0.25, 4, 1), (0.5, 3, 6)):
        if answer(*case) is not None:
            return f"weight {case[0]:g} with K = {case[1]}: λK is not below 1. Return None."
    return None
