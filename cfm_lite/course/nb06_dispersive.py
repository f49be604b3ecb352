"""What the exercises of notebook 06, the dispersive losses, ask for: the factor d, two floors, and
a loss that is met by growing alone.
"""

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cfm_lite import losses, pretrained
from cfm_lite._internal.checks import check_choice
from cfm_lite.course import exercise, number
from cfm_lite.data import digits

__all__ = ["cosine_floor", "covariance_floor", "free_of_charge", "grown", "same_loss"]


@exercise("6.1")
def same_loss(answer: Any) -> str | None:
    """The temperature that makes the undivided loss equal to the divided one: 0.5 d, with d = 256 *
    768.
    """
    d, tau = 256 * 768, number(answer)
    if math.isclose(tau, 0.5 * d, rel_tol=1e-6):
        return None
    if math.isclose(tau, 0.5 / d, rel_tol=1e-6):
        return (
            "the right factor on the wrong side: without / d the distances are d times larger, so "
            "exp(-D / τ) needs a larger τ."
        )
    if math.isclose(tau, d, rel_tol=1e-6):
        return "nearly: that is d alone. The divided loss already has τ = 0.5; multiply it by d."
    if math.isclose(tau, 0.5 * 768, rel_tol=1e-6):
        return (
            "d counts every number that is flattened: all 256 tokens times the width 768, not the "
            "width alone."
        )
    if math.isclose(tau, 0.5 * math.sqrt(d), rel_tol=1e-3):
        return "no root: D is a *squared* distance, and / d divides it by d itself."
    return (
        f"{tau:g} is not it. Set D / τ_without equal to (D / d) / 0.5 and solve for τ_without; d = "
        "256 * 768."
    )


@exercise("6.2")
def cosine_floor(answer: Any) -> str | None:
    """Four vectors that reach the lower bound of the cosine variant: a regular simplex around the
    origin.
    """
    h = torch.as_tensor(answer).double()
    if h.dim() != 2 or len(h) != 4:
        return f"four rows are needed, a tensor (4, d); yours has shape {tuple(h.shape)}."
    if not (h.norm(dim=1) > 1e-6).all():
        return "one of your vectors is zero: it has no direction, so no cosine."
    tau, pairs = 0.5, 4
    floor = math.log(
        math.exp(1 / tau) / pairs + (pairs - 1) / pairs * math.exp(-1 / ((pairs - 1) * tau))
    )
    value = float(losses.dispersive(h, "infonce_cosine", tau))
    if value < floor + 1e-5:
        return None
    unit = nn.functional.normalize(h)
    cosines = (unit @ unit.T)[~torch.eye(4, dtype=torch.bool)]
    if cosines.abs().max() < 1e-6:
        return (
            f"loss {value:.4f}: at right angles, every cosine is 0. They can be negative: push "
            "until the four vectors sum to zero."
        )
    if (cosines + 1).abs().min() < 1e-6:
        return (
            f"loss {value:.4f}: two of them are opposite, which leaves the others less room. Make "
            "all six cosines equal."
        )
    return (
        f"loss {value:.4f}, the bound is {floor:.4f}. All cosines must be -1/3: the corners of a "
        "tetrahedron around the origin."
    )


@exercise("6.3")
def covariance_floor(answer: Callable[[int, int], Any]) -> str | None:
    """floor(d, B) = d^2 / min(d, B - 1) - d."""
    seen = {
        (d, rows): float(answer(d, rows))
        for d, rows in ((192, 128), (16, 128), (768, 32), (100, 101))
    }
    right = {(d, rows): d * d / min(d, rows - 1) - d for d, rows in seen}
    if all(math.isclose(seen[key], right[key], rel_tol=1e-6, abs_tol=1e-6) for key in seen):
        return None
    if all(
        math.isclose(seen[d, rows], d * d / min(d, rows) - d, rel_tol=1e-6, abs_tol=1e-6)
        for d, rows in seen
    ):
        return "almost: the columns are centred, so the rank r is at most B - 1, not B."
    if all(math.isclose(seen[d, rows], d * d / min(d, rows - 1), rel_tol=1e-6) for d, rows in seen):
        return (
            "that bounds the sum over *all* m, n. The loss leaves out the diagonal, whose d ones "
            "must be subtracted."
        )
    if seen[16, 128] < -1e-6:
        return (
            "for d = 16 and B = 128 yours is negative; a sum of squares is not. The rank is r = "
            "min(d, B - 1)."
        )
    return (
        f"for d = 192 and B = 128 yours gives {seen[192, 128]:.4g}. Start from |C|^2 >= d^2 / r, "
        "with r = min(d, B - 1)."
    )


PARTS = ("input", "time_1", "time_2", "label_table", "fc1", "fc2", "output")


def _layers(model: Any) -> dict[str, list[nn.Module]]:
    """The layers of the residual MLP under the names of exercise 6.4."""
    time = model.t_embedder.mlp
    found = [[model.input], [time[0]], [time[2]], [model.y_embedder.embedding_table]]
    found += [[block.fc1 for block in model.blocks], [block.fc2 for block in model.blocks]]
    return dict(zip(PARTS, [*found, [model.output]], strict=True))


@torch.no_grad()
def grown(model: nn.Module, factor: float, parts: Iterable[str]) -> nn.Module:
    """A copy of the MLP `model` in which all weights and biases of `parts` are multiplied."""
    copied = copy.deepcopy(model)
    layers = _layers(copied)
    for part in parts:
        check_choice("part", part, PARTS)
        for layer in layers[part]:
            for weight in layer.parameters():
                weight.mul_(factor)
    return copied


@exercise("6.4", ours={"input", "time_2", "label_table", "fc2"})
@torch.no_grad()
def free_of_charge(answer: Any) -> str | None:
    """The parts that are added into h: the velocity stays the same, features grow."""
    if not isinstance(answer, set | list | tuple) or any(part is ... for part in answer):
        return f"not answered yet. Give a set of names, of {', '.join(PARTS)}."
    model: Any = pretrained.load("digits_fm")
    x1, y = digits.load("judge")
    x1, y, g = x1[:64], y[:64], torch.Generator().manual_seed(1)
    t = torch.rand(len(x1), generator=g, dtype=torch.float32)
    x0 = torch.randn(x1.shape, generator=g, dtype=torch.float32)
    x_t = torch.lerp(x0, x1, t[:, None, None, None])
    larger: Any = grown(model, 4.0, set(answer))
    v, h = model.forward_features(x_t, t, y, blocks=(1, 2, 3))
    v_grown, h_grown = larger.forward_features(x_t, t, y, blocks=(1, 2, 3))
    return _growth_hint(v, h, v_grown, h_grown)


def _growth_hint(
    v: Tensor, h: dict[int, Tensor], v_grown: Tensor, h_grown: dict[int, Tensor]
) -> str | None:
    gain = {block: float(h_grown[block].norm() / h[block].norm()) for block in h}
    error = float((v_grown - v).abs().max())
    if abs(gain[1] - 1) < 1e-3:
        return (
            "the features after block 1 are as long as before. Multiply everything that is added "
            "into h."
        )
    straight = {
        block: torch.nn.functional.cosine_similarity(h_grown[block], h[block]).min() for block in h
    }
    if straight[1] < 0.999:
        return (
            "the features of block 1 have turned: some of what is added into h has the factor, "
            "and some has not. Look at the first two lines of the list."
        )
    if min(straight.values()) < 0.999 or max(abs(g - 4) for g in gain.values()) > 0.02:
        grew = ", ".join(f"{g:.2f}" for g in gain.values())
        return (
            f"asked for 4 times as long, the features after the blocks grew by {grew}. What does a "
            "block add to h?"
        )
    if error > 1e-3:
        return (
            f"the velocity changed by up to {error:.3g}. The LayerNorm before the output layer "
            "already removes the factor."
        )
    return None
