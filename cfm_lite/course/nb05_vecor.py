"""What the exercises of notebook 05 ask for: a latent-space negative, the share of the noise, the
gain of a shuffle, settings of K.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from cfm_lite.course import exercise
from cfm_lite.negatives import perturbed
from cfm_lite.paths import COSINE, FlowSample

__all__ = ["equal_settings", "gain_of_shuffles", "latent_negative", "noise_share"]


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
            "two calls give two answers, so something is still drawn anew. Which noise belongs to "
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
def gain_of_shuffles(answer: Callable[..., Any]) -> str | None:
    """gain(weight, channels, k) = (1 + weight k / (C! - 1)) / (1 - weight k)."""
    for weight, channels, k in ((0.05, 4, 1), (0.35, 2, 1), (0.2, 3, 3), (0.1, 2, 4)):
        mine, total, others = (
            float(answer(weight, channels, k)),
            weight * k,
            math.factorial(channels) - 1,
        )
        if abs(mine - (1 + total / others) / (1 - total)) < 1e-6:
            continue
        if abs(mine - 1 / (1 - total)) < 1e-6:
            return (
                "1/(1 - λK) holds if the identity is among the permutations. Without it, E[d_P] = "
                "-d/(C! - 1), not 0."
            )
        if abs(mine - (1 - total / others) / (1 - total)) < 1e-6:
            return "a sign: subtracting λK times -d/(C! - 1) adds to d."
        if abs(mine - (1 + total / (channels - 1)) / (1 - total)) < 1e-6 and channels > 2:
            return (
                "C - 1 belongs to permutations that move every channel (derangements); here any "
                "but the identity may come: C! - 1."
            )
        if k > 1 and abs(mine - (1 + weight / others) / (1 - weight)) < 1e-6:
            return "K is missing: each of the K negatives has the same mean, so λ becomes λK."
        return (
            f"not right for λ = {weight:g}, C = {channels}, K = {k}. Put E[P d] = -d/(C! - 1) into "
            "(d - λK E[P d]) / (1 - λK)."
        )
    return None


@exercise("5.4")
def equal_settings(answer: Any) -> str | None:
    """The weight for which K = 4 has the optimum of weight 0.2 with K = 1, and the largest K that
    weight 0.2 allows.
    """
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        return "give two numbers: (weight, largest_k)."
    if any(part is ... or part is None for part in answer):
        return "not answered yet: put a number into both places."
    weight, largest = (float(part) for part in answer)
    if abs(weight - 0.8) < 1e-9:
        return "you multiplied; the product λK must stay at 0.2 while K grows to 4."
    if abs(weight - 0.05) > 1e-9:
        return f"the weight {weight:g} is not right: the optimum depends on the product λK alone."
    if largest == 5:
        return (
            "the weight is right; at K = 5 the product is exactly 1, and the loss has no minimum "
            "there."
        )
    if largest != 4:
        return f"the weight is right; the largest K is not {largest:g}: λK must stay below 1."
    return None
