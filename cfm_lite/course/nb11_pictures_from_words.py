"""The exercises of notebook 11: the empty caption, one attention over words and patches, a negative
prompt, and guidance that is trained in.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cfm_lite.course import exercise
from cfm_lite.data import captions

__all__ = ["dropped_rows", "joint", "negative_prompt", "trained_in"]


def _dropped(y: Tensor, rows: Tensor) -> Tensor:
    return y.masked_fill(rows[:, None], 0)


@exercise("11.1", ours=_dropped)
def dropped_rows(answer: Callable[[Tensor, Tensor], Tensor]) -> str | None:
    """`without(y, rows)`: captions (B, L) of which those in `rows` are empty."""
    y = captions.encode(
        ["a red seven", "a blue star", "a small pink two above a large green cross"]
    )
    before, rows = y.clone(), torch.tensor([True, False, True])
    seen = answer(y, rows)
    if not torch.equal(y, before):
        return "you changed the captions that were handed in. Copy them first: y.clone()."
    if tuple(seen.shape) != tuple(y.shape):
        return f"the result has shape {tuple(seen.shape)}; it must be that of y, {tuple(y.shape)}."
    if not torch.equal(seen[1], y[1]):
        return "a row that is not dropped must keep its caption."
    if bool((seen[rows] != 0).any()):
        return "a dropped row is the empty caption: the word number 0 in every place."
    return None


def _joint(
    q_s: Tensor, k_s: Tensor, v_s: Tensor, q_h: Tensor, k_h: Tensor, v_h: Tensor
) -> tuple[Tensor, ...]:
    k, v = torch.cat([k_s, k_h], dim=2), torch.cat([v_s, v_h], dim=2)
    return tuple(F.scaled_dot_product_attention(q, k, v) for q in (q_s, q_h))


@exercise("11.2", ours=_joint)
def joint(answer: Callable[..., Any]) -> str | None:
    """`mixed(q_s, k_s, v_s, q_h, k_h, v_h)`: (words, patches) of one attention over both."""
    g = torch.Generator().manual_seed(0)
    q_s, k_s, v_s = torch.randn(3, 1, 2, 3, 4, generator=g)  # three words
    q_h, k_h, v_h = torch.randn(3, 1, 2, 5, 4, generator=g)  # five patches
    seen = answer(q_s, k_s, v_s, q_h, k_h, v_h)
    if not isinstance(seen, tuple | list) or len(seen) != 2:
        return "return two tensors, (words, patches)."
    words, patches = seen
    if tuple(words.shape) != tuple(q_s.shape) or tuple(patches.shape) != tuple(q_h.shape):
        return (
            f"the words must be {tuple(q_s.shape)} and the patches {tuple(q_h.shape)}; yours are "
            f"{tuple(words.shape)} and {tuple(patches.shape)}. Cut the result where the words end."
        )
    right = _joint(q_s, k_s, v_s, q_h, k_h, v_h)
    if all(torch.allclose(a, b, atol=1e-5) for a, b in zip((words, patches), right)):
        return None
    apart = [F.scaled_dot_product_attention(*p) for p in ((q_s, k_s, v_s), (q_h, k_h, v_h))]
    if torch.allclose(patches, apart[1], atol=1e-5):
        return (
            "these are two attentions: no patch reads a word. Join the keys and the values first."
        )
    bare = (q_h @ torch.cat([k_s, k_h], 2).mT).softmax(-1) @ torch.cat([v_s, v_h], 2)
    if torch.allclose(patches, bare, atol=1e-5):
        return "divide q·k by the root of the width of a head before the softmax."
    return "each query must see all keys, words first; the values stand in the order of the keys."


def _away(v: Tensor, v_neg: Tensor, scale: float) -> Tensor:
    return v_neg + scale * (v - v_neg)


@exercise("11.3", ours=_away)
def negative_prompt(answer: Callable[[Tensor, Tensor, float], Tensor]) -> str | None:
    """`guided_away(v, v_neg, scale)`: v_neg + scale (v - v_neg)."""
    v, v_neg = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    for scale in (1.0, 2.0, 3.5):
        seen = answer(v, v_neg, scale)
        if torch.allclose(seen, _away(v, v_neg, scale)):
            continue
        if torch.allclose(seen, v + scale * (v - v_neg)):
            return "with a scale of 1 nothing may change. You start from v: start from v_neg."
        if torch.allclose(seen, v - scale * v_neg):
            return "not away from 0, but away from v_neg: multiply the difference v - v_neg."
        if torch.allclose(seen, v + scale * (v_neg - v)):
            return "that moves towards the negative prompt. Turn the difference around."
        return f"for scale {scale:g} yours gives {seen.tolist()}. Extrapolate from v_neg through v."
    return None


@exercise("11.4", ours=lambda weight: 1 / (1 - 2 * weight))
def trained_in(answer: Callable[[float], float]) -> str | None:
    """`trained_scale(weight)`: 1 / (1 - 2λ), for two captions that are each other's negative."""
    seen = {weight: float(answer(weight)) for weight in (0.0, 0.05, 0.2, 0.4)}
    if all(math.isclose(value, 1 / (1 - 2 * w), rel_tol=1e-6) for w, value in seen.items()):
        return None
    if all(math.isclose(value, 1 / (1 - w), rel_tol=1e-6) for w, value in seen.items()):
        return "that holds the negative fixed. Here it moves too: subtract the two equations."
    if all(math.isclose(value, 1 - 2 * w, rel_tol=1e-6) for w, value in seen.items()):
        return "nearly: (1 - 2λ)(v₁ - v₂) = u₁ - u₂. Solve for v₁ - v₂."
    return (
        f"for λ = 0.2 yours gives {seen[0.2]:.4g}. Subtract (1 - λ) v₂ + λ v₁ = u₂ from "
        "(1 - λ) v₁ + λ v₂ = u₁."
    )
