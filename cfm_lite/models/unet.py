"""UNet: a small convolutional network for images, which converges on a laptop.

    down:    h = stem(pixel_unshuffle(x)); for each level: blocks, half the side for the next
    middle:  block, attention, block
    up:      for each level: blocks on [h, what it gave on the way down], twice the side
    v = pixel_shuffle(head(h))

Convention: t = 0 is noise, t = 1 is data; the output is exactly 0 before training. Every block is
modulated by c = time(t) + label(y), as in SiT. Reference: Ronneberger et al. 2015 (U-Net,
arXiv:1505.04597); Ho et al. 2020 (DDPM, arXiv:2006.11239), appendix B; Dhariwal & Nichol 2021 (ADM,
arXiv:2105.05233), section 3. It is smaller than ADM's network; docs/own_network.md wraps that one.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from cfm_lite._internal.checks import check_count, check_number, check_time, plain, transformed
from cfm_lite.errors import ConfigError
from cfm_lite.models.embed import (
    LabelEmbedder,
    Labelled,
    TimestepEmbedder,
    autocasting,
    check_blocks,
    check_input,
)
from cfm_lite.models.sit import attend

__all__ = ["ConvBlock", "SelfAttention", "UNet"]

GROUPS, SIDES = 8, (8, 64)


class UNet(Labelled):
    """The velocity (B, C, S, S) of images x (B, C, S, S), S = `input_size`, at times t (B,).

    `channels` are the widths of the levels, from the finest. The stem turns patches of `patch_size`
    pixels a side into channels, so the finest level has a side of S / patch_size, and each further
    level half of it. A level has `num_res_blocks` blocks on each way. Blocks are numbered from 1 to
    `depth` as they run: down, two in the middle, up. `num_classes` and `class_dropout_prob` are
    those of `SiT`: label `num_classes` is the null label.

    Raises ConfigError for sides outside 8 to 64 or that cannot be halved, for channels that
    GroupNorm or the heads cannot divide or of which a group would hold one number, and for counts
    below 1.

    >>> UNet(8, 1, channels=(8, 16))(torch.zeros(2, 1, 8, 8), torch.zeros(2)).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        input_size: int = 28,
        in_channels: int = 1,
        channels: Sequence[int] = (32, 64),
        num_res_blocks: int = 1,
        patch_size: int = 2,
        num_heads: int = 4,
        num_classes: int = 10,
        class_dropout_prob: float = 0.1,
    ) -> None:
        super().__init__()
        self.channels = _widths(channels)
        self.input_size, self.in_channels = plain(input_size), plain(in_channels)
        self.num_res_blocks, self.patch_size = plain(num_res_blocks), plain(patch_size)
        self.num_heads = plain(num_heads)
        self.num_classes, self.class_dropout_prob = plain(num_classes), class_dropout_prob
        _check_sizes(self.config)
        self.depth = 2 * self.num_res_blocks * len(self.channels) + 2
        first, last = self.channels[0], self.channels[-1]
        pixels, condition = self.in_channels * self.patch_size**2, 4 * first
        self.t_embedder = TimestepEmbedder(condition)
        self.y_embedder = LabelEmbedder(self.num_classes, condition, class_dropout_prob)

        def blocks(width: int, first: int, count: int) -> nn.ModuleList:
            return nn.ModuleList(
                ConvBlock(width if i else first, width, condition) for i in range(count)
            )

        steps = list(zip(self.channels, self.channels[1:]))
        self.stem = nn.Conv2d(pixels, first, 3, padding=1)
        self.down = nn.ModuleList(
            blocks(width, width, self.num_res_blocks) for width in self.channels
        )
        self.downsample = nn.ModuleList(
            nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in steps
        )
        self.middle = blocks(last, last, 2)
        self.attention = SelfAttention(last, self.num_heads)
        self.up = nn.ModuleList(
            blocks(width, 2 * width, self.num_res_blocks) for width in self.channels
        )
        self.upsample = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in steps)
        self.norm = Norm(GROUPS, first)
        self.head = nn.Conv2d(first, pixels, 3, padding=1)
        _zero(self.head)
        # a step takes a fifth less time than without; torch's stubs lack this keyword
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def grid(self, block: int) -> tuple[int, int]:
        """(side, width) of the features after `block`: (B, side * side, width).

        Raises ConfigError for a block outside 1 to `depth`.
        """
        levels = len(self.channels)
        numbers = [n for n in range(levels) for _ in range(self.num_res_blocks)]
        level = [*numbers, levels - 1, levels - 1, *reversed(numbers)]
        (block,) = check_blocks([block], self.depth)
        n = level[block - 1]
        return self.input_size // self.patch_size // 2**n, self.channels[n]

    def forward_features(
        self,
        x: Float[Tensor, "batch channels height width"],
        t: Float[Tensor, " batch"],
        y: Integer[Tensor, " batch"] | None = None,
        blocks: Iterable[int] = (),
    ) -> tuple[
        Float[Tensor, "batch channels height width"],
        dict[int, Float[Tensor, "batch tokens features"]],
    ]:
        """(velocity, {block number: its output (B, T, D)}) of one pass; `grid` tells T and D.

        Raises ConfigError for another shape, time, label or block number.
        """
        wanted = check_blocks(blocks, self.depth)
        check_input(x, (self.in_channels, self.input_size, self.input_size), self.stem.weight)
        check_time(t, x)
        c = F.silu(self.t_embedder(t) + self.y_embedder(y, x))  # in float32: rounded once
        c = c if autocasting(x) else c.to(x.dtype)
        features: dict[int, Tensor] = {}
        number = 0

        def run(part: Any, h: Tensor) -> Tensor:
            nonlocal number
            for block in part:
                h, number = block(h, c), number + 1
                if number in wanted:
                    features[number] = h.flatten(2).mT  # (B, T, D)
            return h

        h = self.stem(_channels_last(_unshuffle(x, self.patch_size)))
        skips = [h := run(self.down[0], h)]
        for halve, part in zip(self.downsample, self.down[1:]):
            skips.append(h := run(part, halve(h)))
        h = run(self.middle[:1], h)
        h = run(self.middle[1:], self.attention(h))
        for level in reversed(range(len(self.channels))):
            h = run(self.up[level], torch.cat([h, skips[level]], dim=1))
            if level:
                # a 1x1 convolution and a copy commute, and the convolution is cheaper first
                h = F.interpolate(self.upsample[level - 1](h), scale_factor=2.0)
        v = self.head(F.silu(self.norm(h)))
        v = F.pixel_shuffle(v, self.patch_size) if len(x) else v.reshape(x.shape)
        return v.contiguous(), features


class Norm(nn.GroupNorm):
    """GroupNorm that torch.func differentiates in every layout of h."""

    def forward(self, input: Tensor) -> Tensor:
        # its second derivatives take views that channels_last does not have
        """`input` (B, C, S, S), normalised in each group of channels."""
        return super().forward(input.contiguous() if transformed(input) else input)


class ConvBlock(nn.Module):
    """h + conv(silu((1 + scale) norm(conv(silu(norm(h)))) + shift)), scale and shift from c."""

    def __init__(self, width: int, out: int, condition: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(GROUPS, width), Norm(GROUPS, out)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.modulation = nn.Linear(condition, 2 * out)
        self.skip = nn.Conv2d(width, out, 1) if width != out else nn.Identity()
        _zero(self.conv2)  # a block is its skip at the start
        _zero(self.modulation)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:  # (B, C, S, S), (B, D)
        """The features (B, C_out, S, S) of h (B, C, S, S), with time and label in c (B, D)."""
        scale, shift = self.modulation(c)[..., None, None].chunk(2, dim=1)  # each (B, C, 1, 1)
        inner = self.norm2(self.conv1(F.silu(self.norm1(h))))
        return self.skip(h) + self.conv2(F.silu(torch.addcmul(shift, inner, 1 + scale)))


class SelfAttention(nn.Module):
    """h + attention of all pixels of h (B, C, S, S) to each other."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = Norm(GROUPS, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        _zero(self.proj)

    def forward(self, h: Tensor) -> Tensor:
        """The same shape (B, C, S, S) as `h`; each pixel sees all others."""
        tokens = self.norm(h).flatten(2).mT  # (B, T, C)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = self.proj(attend(q, k, v).transpose(1, 2).flatten(2))
        return h + mixed.mT.reshape(h.shape)


def _unshuffle(x: Tensor, patch: int) -> Tensor:
    if len(x):
        return F.pixel_unshuffle(x, patch)
    # torch's leaves an empty batch as it is
    return x.reshape(0, x.shape[1] * patch**2, x.shape[2] // patch, x.shape[3] // patch)


def _channels_last(x: Tensor) -> Tensor:
    # oneDNN's convolutions are faster so; vmap knows no such layout
    return x if transformed(x) else x.contiguous(memory_format=torch.channels_last)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _widths(channels: Any) -> tuple[int, ...]:
    widths = plain(channels)
    if not isinstance(widths, tuple | list) or not widths:
        raise ConfigError(
            f"channels is {channels!r:.60}; it must be the width of each level, from the finest, "
            "such as (32, 64)."
        )
    return tuple(map(plain, widths))


def _check_sizes(config: dict[str, Any]) -> None:
    for name in ("input_size", "in_channels", "num_res_blocks", "patch_size", "num_heads"):
        check_count(name, config[name])
    check_count("num_classes", config["num_classes"], low=0)
    check_number("class_dropout_prob", config["class_dropout_prob"], 0, 1)
    side, patch, widths = config["input_size"], config["patch_size"], config["channels"]
    if not SIDES[0] <= side <= SIDES[1]:
        raise ConfigError(
            f"input_size is {side}; a UNet takes images of {SIDES[0]} to {SIDES[1]} pixels a side. "
            "Resize them, or encode larger ones with a VAE."
        )
    for width in widths:
        check_count("channels", width)
        if width % GROUPS:
            raise ConfigError(
                f"channels holds {width}; each width must be a multiple of {GROUPS}, the groups "
                f"of GroupNorm, such as {-(-width // GROUPS) * GROUPS}."
            )
    if widths[-1] % config["num_heads"]:
        raise ConfigError(
            f"num_heads is {config['num_heads']}, and the last of channels is {widths[-1]}; "
            "it must be a multiple of num_heads."
        )
    factor = patch * 2 ** (len(widths) - 1)
    if side % factor:
        raise ConfigError(
            f"input_size is {side}, which patch_size {patch} and {len(widths)} level"
            f"{'s' * (len(widths) > 1)} divide by {factor}; it must be a multiple. Use "
            f"{' or '.join(_remedies(config))}."
        )
    if not _fits(side, patch, widths):
        raise ConfigError(
            f"the last of channels is {widths[-1]} on a level of 1 x 1 pixels; each of GroupNorm's "
            f"{GROUPS} groups would hold one number there, and make it 0. Use "
            f"{' or '.join([f'{2 * widths[-1]} channels there', *_remedies(config)])}."
        )


def _fits(side: int, patch: int, widths: Sequence[int]) -> bool:
    """Whether sides can be halved so often, and a group of GroupNorm holds at least two numbers."""
    whole, left = divmod(side, patch * 2 ** (len(widths) - 1))
    return not left and (whole > 1 or widths[-1] > GROUPS)


def _remedies(config: dict[str, Any]) -> list[str]:
    """What fits in the place of these sizes: fewer levels, patch_size 1, other images."""
    side, patch, widths = config["input_size"], config["patch_size"], config["channels"]

    def most(patch: int) -> int:
        """The most levels that fit, up to these; 0 for none."""
        fit = (
            n
            for n in range(len(widths), 0, -1)
            if _fits(side, patch, widths[:n]) and not widths[n - 1] % config["num_heads"]
        )
        return next(fit, 0)

    def levels(n: int) -> str:
        return f"{n} level{'s' * (n > 1)}"

    found = [levels(most(patch))] if most(patch) else []
    if most(1) > most(patch):
        found.append("patch_size 1" + (f" with {levels(most(1))}" if most(1) < len(widths) else ""))
    images = [s for s in range(SIDES[0], SIDES[1] + 1) if _fits(s, patch, widths)]
    if images:
        found.append(f"images of {min(images, key=lambda s: (abs(s - side), -s))} pixels")
    return found or ["patch_size 1 with 1 level and num_heads 1"]
