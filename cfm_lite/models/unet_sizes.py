"""The normalisation of a UNet, which sizes it allows, and what fits in the place of others."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from cfm_lite._internal.checks import check_count, check_number, plain, transformed
from cfm_lite.errors import ConfigError

__all__ = ["Norm", "check_sizes", "widths_of"]

GROUPS, SIDES = 8, (8, 64)


class Norm(nn.GroupNorm):
    """GroupNorm of 8 groups that torch.func can differentiate twice: there it needs another layout.

    >>> Norm(16).num_groups
    8
    """

    def __init__(self, width: int) -> None:
        super().__init__(GROUPS, width)

    def forward(self, input: Tensor) -> Tensor:
        """`input` (B, C, S, S), normalised in each group of channels."""
        return super().forward(input.contiguous() if transformed(input) else input)


def widths_of(channels: Any) -> tuple[int, ...]:
    """The widths of the levels. ConfigError for what is no sequence, or an empty one.

    >>> widths_of([32, 64])
    (32, 64)
    """
    widths = plain(channels)
    if not isinstance(widths, tuple | list) or not widths:
        raise ConfigError(
            f"channels is {channels!r:.60}; it must be the width of each level, from the finest, "
            "such as (32, 64)."
        )
    return tuple(map(plain, widths))


def check_sizes(config: dict[str, Any]) -> None:
    """ConfigError for arguments of a UNet that do not fit each other, with what would fit.

    >>> from cfm_lite.models import UNet
    >>> check_sizes(UNet().config)  # they fit
    """
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
