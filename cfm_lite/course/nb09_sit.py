"""What the exercises of notebook 09, SiT, ask for: patches there and back, the similarity of two
positions, the block with adaLN, a first loss.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cfm_lite._internal.networks import seeded
from cfm_lite.course import exercise, number
from cfm_lite.data import digits
from cfm_lite.models import SiT
from cfm_lite.models.embed import sincos_2d
from cfm_lite.models.sit import SiTBlock

__all__ = ["block_by_hand", "first_loss", "likeness", "patches_there_and_back"]


def _cut(x: Tensor, p: int) -> Tensor:
    b, c, h, w = x.shape
    if h % p or w % p:
        raise ValueError(f"patches of {p} do not fill {h} x {w} pixels.")
    pieces = x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)
    return pieces.reshape(b, -1, c * p * p)


def _paste(tokens: Tensor, side: int, p: int, channels: int) -> Tensor:
    pieces = tokens.reshape(-1, side, side, p, p, channels).permute(0, 5, 1, 3, 2, 4)
    return pieces.reshape(-1, channels, side * p, side * p)


@exercise("9.1", ours=(_cut, _paste))
def patches_there_and_back(
    answer: tuple[Callable[..., Tensor], Callable[..., Tensor]],
) -> str | None:
    """(cut, paste): images to tokens, and the last layer's tokens to images."""
    cut, paste = answer
    x = torch.arange(2.0 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    mine, right = cut(x, 2), _cut(x, 2)
    if mine is None or mine is ...:
        return "not answered yet: `cut_up` returns None or ...."
    if mine.shape != right.shape:
        return f"cut_up: the shape must be {tuple(right.shape)}; yours is {tuple(mine.shape)}."
    if torch.equal(mine.sort(-1).values, right.sort(-1).values):
        if not torch.equal(mine, right):
            return "cut_up: the order inside a token is (channel, pixel row, pixel column)."
    elif not torch.equal(mine, right):
        return "cut_up: a token must hold one square of 2 x 2 pixels, and tokens run row by row."
    try:
        cut(x, 4)
    except ValueError:
        return _wrong_paste(paste)
    except RuntimeError:
        pass
    return "cut_up: patches of 4 do not fill 4 x 6 pixels. Raise a ValueError that says so."


def _wrong_paste(answer: Callable[..., Tensor]) -> str | None:
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
    if yours is None or yours is ...:
        return "not answered yet: `paste` returns None."
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
def likeness(answer: Callable[[int, int, int], Any]) -> str | None:
    """likeness(down, right, D): the mean of cos(offset · ω) over both axes and all frequencies."""
    for dim, side in ((96, 4), (48, 7)):
        table = sincos_2d(dim, side).double()
        for down, right in ((0, 0), (0, 2), (1, 0), (3, 1), (-2, 3)):
            start = max(0, -down) * side
            a, b = table[start], table[start + down * side + right]
            wanted = float(torch.nn.functional.cosine_similarity(a, b, dim=0))
            yours = float(answer(down, right, dim))
            if math.isclose(yours, wanted, abs_tol=1e-6):
                continue
            if math.isclose(yours, 2 * wanted, abs_tol=1e-6):
                return "twice too large: both halves together have the length of one vector."
            if math.isclose(yours, wanted * dim / 4, abs_tol=1e-4) or math.isclose(
                yours, wanted * dim / 2, abs_tol=1e-4
            ):
                return "this is the inner product. Divide by the squared length of a position."
            return (
                f"for {down} rows and {right} columns at D = {dim} it gives {yours:.4f}, and the "
                f"table {wanted:.4f}. Each frequency gives cos(offset · ω), once for the rows and "
                "once for the columns."
            )
    return None


def _adaln_block(block: Any, x: Tensor, c: Tensor, heads: int) -> Tensor:
    return block(x, c)


@exercise("9.3", ours=_adaln_block)
@torch.no_grad()
def block_by_hand(answer: Callable[..., Any]) -> str | None:
    """my_block(block, x, c, heads) is the block's own answer."""
    with seeded(0):
        block = SiTBlock(hidden_size=24, num_heads=3, mlp_ratio=4.0, qk_norm=False)
        x, c = torch.randn(2, 5, 24), torch.randn(2, 24)
    gates: Any = block.adaLN_modulation[-1]  # the linear map that makes the six vectors
    qkv: Any = block.attn.qkv
    for layer in (gates, qkv):
        torch.nn.init.normal_(layer.weight, std=0.4, generator=torch.Generator().manual_seed(1))
    yours = answer(block, x, c, 3)
    if yours is None or yours is ...:
        return "not answered yet: your function returns None or ...; return tokens like x."
    if not isinstance(yours, Tensor) or yours.shape != x.shape:
        return f"return tokens of the shape of x, {tuple(x.shape)}."
    right = block(x, c)
    if torch.allclose(yours, right, atol=1e-4):
        return None
    kept = gates.weight.clone()
    gates.weight.zero_()
    gates.bias.zero_()
    closed = answer(block, x, c, 3)
    gates.weight.copy_(kept)
    if not torch.allclose(closed, x, atol=1e-5):
        return "with all six vectors 0 the gates are shut, and a block must return x unchanged."
    gates.weight[3 * 24 :] = 0  # the second half is shut: attention alone
    hint = (
        "the attention half is wrong. Order: shift, scale, gate; (1 + scale) norm(x) + shift; "
        "softmax(q k / √d) over the tokens; the heads behind the tokens; proj; gate; plus x."
    )
    if torch.allclose(answer(block, x, c, 3), block(x, c), atol=1e-4):
        hint = "the attention half is right; the MLP half starts from its result, with a new norm."
    return hint


@exercise("9.4")
def first_loss(answer: Any) -> str | None:
    """The flow-matching loss of a network whose output is 0, in expectation over noise: mean of
    x1^2 plus 1.
    """
    data = digits.load("train")[0]
    square = float(data.square().mean())
    yours = number(answer)
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
