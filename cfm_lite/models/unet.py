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

from cfm_lite._internal.checks import check_time, plain, transformed
from cfm_lite.models.embed import (
    LabelEmbedder,
    Labelled,
    TimestepEmbedder,
    autocasting,
    check_blocks,
    check_input,
)
from cfm_lite.models.sit import attend
from cfm_lite.models.unet_sizes import Norm, check_sizes, widths_of

__all__ = ["ConvBlock", "SelfAttention", "UNet"]
Images = Float[Tensor, "batch channels height width"]


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
        self.channels, self.class_dropout_prob = widths_of(channels), class_dropout_prob
        self.input_size, self.in_channels = plain(input_size), plain(in_channels)
        self.num_res_blocks, self.patch_size = plain(num_res_blocks), plain(patch_size)
        self.num_heads, self.num_classes = plain(num_heads), plain(num_classes)
        check_sizes(self.config)
        first, last, count = self.channels[0], self.channels[-1], self.num_res_blocks
        self.depth = 2 * count * len(self.channels) + 2
        pixels, condition = self.in_channels * self.patch_size**2, 4 * first
        self.t_embedder = TimestepEmbedder(condition)
        self.y_embedder = LabelEmbedder(self.num_classes, condition, class_dropout_prob)

        def blocks(width: int, given: int, number: int) -> nn.ModuleList:
            return nn.ModuleList(
                ConvBlock(width if i else given, width, condition) for i in range(number)
            )

        steps = list(zip(self.channels, self.channels[1:]))
        self.stem = nn.Conv2d(pixels, first, 3, padding=1)
        self.down = nn.ModuleList(blocks(width, width, count) for width in self.channels)
        self.downsample = nn.ModuleList(
            nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in steps
        )
        self.middle = blocks(last, last, 2)
        self.attention = SelfAttention(last, self.num_heads)
        self.up = nn.ModuleList(blocks(width, 2 * width, count) for width in self.channels)
        self.upsample = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in steps)
        self.norm = Norm(first)
        self.head = nn.Conv2d(first, pixels, 3, padding=1)
        _zero(self.head)
        # a step takes a fifth less time than without; torch's stubs lack this keyword
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def grid(self, block: int) -> tuple[int, int]:
        """(side, width) of the features after `block`: (B, side * side, width).

        Raises ConfigError for a block outside 1 to `depth`.
        """
        down = [n for n in range(len(self.channels)) for _ in range(self.num_res_blocks)]
        (block,) = check_blocks([block], self.depth)
        n = [*down, down[-1], down[-1], *reversed(down)][block - 1]
        return self.input_size // self.patch_size // 2**n, self.channels[n]

    def forward_features(
        self,
        x: Images,
        t: Float[Tensor, " batch"],
        y: Integer[Tensor, " batch"] | None = None,
        blocks: Iterable[int] = (),
    ) -> tuple[Images, dict[int, Float[Tensor, "batch tokens features"]]]:
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

        h = self.stem(_patches(x, self.patch_size))
        skips = [h := run(self.down[0], h)]
        for halve, part in zip(self.downsample, self.down[1:]):
            skips.append(h := run(part, halve(h)))
        h = run(self.middle[1:], self.attention(run(self.middle[:1], h)))
        for level in reversed(range(len(self.channels))):
            h = run(self.up[level], torch.cat([h, skips[level]], dim=1))
            if level:
                # a 1x1 convolution and a copy commute, and the convolution is cheaper first
                h = F.interpolate(self.upsample[level - 1](h), scale_factor=2.0)
        v = self.head(F.silu(self.norm(h)))
        v = F.pixel_shuffle(v, self.patch_size) if len(x) else v.reshape(x.shape)
        return v.contiguous(), features


class ConvBlock(nn.Module):
    """h + conv(silu((1 + scale) norm(conv(silu(norm(h)))) + shift)), scale and shift from c."""

    def __init__(self, width: int, out: int, condition: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(width), Norm(out)
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
        self.norm = Norm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        _zero(self.proj)

    def forward(self, h: Tensor) -> Tensor:
        """The same shape (B, C, S, S) as `h`; each pixel sees all others."""
        tokens = self.norm(h).flatten(2).mT  # (B, T, C)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = self.proj(attend(q, k, v).transpose(1, 2).flatten(2))
        return h + mixed.mT.reshape(h.shape)


def _patches(x: Tensor, patch: int) -> Tensor:
    """F.pixel_unshuffle, of no rows too, in the layout that oneDNN takes fast; vmap knows none."""
    side = x.shape[2] // patch
    h = x.unflatten(2, (side, patch)).unflatten(4, (side, patch)).permute(0, 1, 3, 5, 2, 4)
    h = h.flatten(1, 3)  # (B, C patch², side, side)
    return h if transformed(x) else h.contiguous(memory_format=torch.channels_last)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
