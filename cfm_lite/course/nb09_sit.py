"""What the exercises of notebook 09, SiT, ask for: pasting patches, two halves of a table, a count,
a first loss, an interval.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cfm_lite.course import exercise
from cfm_lite.data import digits
from cfm_lite.models import SiT
from cfm_lite.models.embed import sincos_2d

__all__ = ["block_parameters", "first_loss", "paste", "repair", "to_our_interval"]


@exercise("9.1")
def paste(answer: Callable[..., Tensor]) -> str | None:
    """paste(tokens, side, p, channels): tokens (B, side * side, p * p * channels) back as an image
    (B, channels, side * p, side * p).
    """
    side, p, channels = 3, 2, 4
    tokens = torch.arange(2.0 * side * side * p * p * channels).reshape(
        2, side * side, p * p * channels
    )
    with torch.device("meta"):
        model = SiT(
            input_size=side * p,
            patch_size=p,
            in_channels=channels,
            hidden_size=8,
            depth=1,
            num_heads=1,
            num_classes=1,
        )
    right, yours = model.unpatchify(tokens), answer(tokens, side, p, channels)
    if yours is None:
        return "not answered yet: the function returns None."
    if not isinstance(yours, Tensor):
        return f"return a tensor; yours is a {type(yours).__name__}."
    if yours.shape != right.shape:
        return (
            f"for two images of {side} x {side} tokens, p = {p} and {channels} channels, the shape "
            f"must be {tuple(right.shape)}; yours is "
            f"{tuple(yours.shape)}."
        )
    yours = yours.to(right.dtype)
    if torch.equal(yours, right):
        return None
    if torch.equal(yours.mT, right):
        return (
            "rows and columns are exchanged: the image is transposed. Tokens run row by row, and "
            "so do the pixels of a patch."
        )
    channel_first = tokens.unflatten(-1, (channels, p * p)).transpose(-1, -2).flatten(-2)
    if torch.equal(yours, model.unpatchify(channel_first)):
        return (
            "you read each token as (channel, row, column); the official order is (row, column, "
            "channel)."
        )
    if torch.equal(yours, tokens.reshape(2, channels, side * p, side * p)):
        return (
            "a reshape alone keeps the numbers in their old order. First reshape to six axes, then "
            "permute, then reshape."
        )
    return (
        "the pixels are not in their places. Axes after the first reshape: (B, token row, token "
        "column, pixel row, pixel column, channel); "
        "bring token row next to pixel row, and token column next to pixel column."
    )


@exercise("9.2")
def repair(answer: Callable[[Tensor], Tensor]) -> str | None:
    """repair(wrong): the position table with the column in the first half, from one with the row in
    the first half.
    """
    for dim, side in ((96, 4), (32, 3)):
        right = sincos_2d(dim, side)
        wrong = torch.cat([right[:, dim // 2 :], right[:, : dim // 2]], dim=1)
        yours = answer(wrong.clone()).to(right.dtype)
        if yours.shape != right.shape:
            return f"the shape must stay {tuple(right.shape)}; yours is {tuple(yours.shape)}."
        if torch.allclose(yours, wrong):
            return (
                "nothing has changed: compare the two heat maps. Which half repeats with every row "
                "of the image?"
            )
        if torch.allclose(yours, wrong.flip(1)):
            return (
                "flipping reverses the order inside each half as well. The halves change places, "
                "each in its own order."
            )
        if not torch.allclose(yours, right, atol=1e-6):
            return (
                "not yet. The first half must hold what the second half of `wrong` holds, and the "
                "other way round."
            )
    return None


@exercise("9.3")
def block_parameters(answer: Callable[[int], Any]) -> str | None:
    """count(D): the parameters of a SiT block of width D with mlp_ratio 4: 18 D^2 + 15 D."""
    for d in (96, 384, 1152):
        yours, right = float(answer(d)), 18 * d * d + 15 * d
        if yours == right:
            continue
        if yours == 18 * d * d:
            return (
                "those are the weights. Each Linear also has a bias: one number per output (3D + D "
                "+ 4D + D + 6D)."
            )
        if yours == 12 * d * d + 9 * d:
            return (
                "attention and MLP are right. The adaLN layer, D to 6D with a bias, belongs to the "
                "block too."
            )
        if yours == 17 * d * d + 14 * d:
            return (
                "attention has four matrices of D x D: three make queries, keys and values, one "
                "more mixes the heads at the end (proj)."
            )
        return (
            f"for D = {d} you count {yours:,.0f}; the right number differs by "
            f"{right - yours:+,.0f}. Linear(n, m) has n m + m parameters: "
            "qkv (D to 3D), proj (D to D), fc1 (D to 4D), fc2 (4D to D), adaLN (D to 6D)."
        )
    return None


@exercise("9.4")
def first_loss(answer: Any) -> str | None:
    """The flow-matching loss of a network whose output is 0, in expectation over noise: mean of
    x1^2 plus 1.
    """
    data = digits.load("train")[0]
    square = float(data.square().mean())
    yours = float(answer)
    if math.isclose(yours, square + 1, abs_tol=2e-3):
        return None
    if math.isclose(yours, square, abs_tol=2e-3):
        return (
            "that is the part of the data. The noise x0 in u = x1 - x0 has variance 1 in every "
            "pixel and adds to it."
        )
    if math.isclose(yours, float(data.var()) + 1, abs_tol=2e-3):
        return "the mean of the data counts as well: take the mean of x1 squared, not its variance."
    if math.isclose(yours, 64 * (square + 1), rel_tol=2e-3):
        return "the loss is a mean over the 64 pixels, not a sum."
    if math.isclose(yours, float((data.mean() - 0) ** 2) + 1, abs_tol=2e-3):
        return "first square, then average: the mean of x1^2 is not the square of its mean."
    return (
        f"{yours:.4g} is not it. With v = 0 the loss is the mean of (x1 - x0)^2. Expand it; x0 has "
        "mean 0, variance 1, and is independent."
    )


@exercise("9.5")
def to_our_interval(answer: Callable[[float, float], Any]) -> str | None:
    """ours(low, high) = (1 - high, 1 - low)."""
    for low, high in ((0.0, 0.7), (0.25, 0.65)):
        yours = [float(value) for value in answer(low, high)]
        right = [1 - high, 1 - low]
        if len(yours) != 2:
            return f"return two numbers, the lower and the upper end; yours are {len(yours)}."
        if all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(yours, right)):
            continue
        if all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(yours, right[::-1])):
            return (
                "both ends are right, in the wrong order: time runs the other way, so the upper "
                "end becomes the lower one."
            )
        if math.isclose(yours[0], low) and math.isclose(yours[1], high):
            return (
                "unchanged: but their t = 0 is data and ours is noise. The same moment has t_ours "
                "= 1 - t_theirs."
            )
        return (
            f"for [{low}, {high}] you give {yours}. Map both ends with t -> 1 - t and put the "
            "smaller one first."
        )
    return None
