"""What every model here turns into vectors first: a time, a label, a position. And the checks of a
model's inputs.

    time(t) = MLP([cos(t w), sin(t w)]),   label(y) = table[y],   position = [sin, cos] of column and row

Convention: t enters as it is, in [0, 1]; label `num_classes` is the null label. Names, shapes and
order are the official SiT's (Ma et al. 2024, arXiv:2401.08740).
"""

import contextlib
import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cfm_lite._internal.checks import (
    HALF,
    check_count,
    check_floating,
    check_labels,
    check_module,
    check_number,
    plain,
)
from cfm_lite.errors import ConfigError

__all__ = [
    "LabelEmbedder",
    "TimestepEmbedder",
    "autocasting",
    "check_blocks",
    "check_input",
    "count_parameters",
    "in_float32",
    "sincos_1d",
    "sincos_2d",
    "time_frequencies",
    "timestep_features",
]


class TimestepEmbedder(nn.Module):
    """A time t (B,) as a vector (B, D): 256 sines and cosines, Linear, SiLU, Linear.

    Never in less than float32: rounded to 16 bits, the vectors of two neighbouring times of 250 are
    hardly different ones.
    """

    frequencies: Tensor

    def __init__(self, hidden_size: int, features: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(features, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )
        self.features = features
        self.register_buffer("frequencies", time_frequencies(features), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        return in_float32(self.mlp, _sines(t, self.frequencies))

    def _apply(self, fn: Any, recurse: bool = True) -> "TimestepEmbedder":
        # frequencies are made anew after every move or cast: they stay float32, and `to_empty`
        # cannot lose them
        super()._apply(fn, recurse)
        self.frequencies = time_frequencies(self.features).to(
            self.mlp.get_parameter("0.weight").device
        )
        return self


class LabelEmbedder(nn.Module):
    """A table of label vectors (B,) -> (B, D), with a last row for the null label if anything asks
    for it.
    """

    def __init__(self, num_classes: int, hidden_size: int, class_dropout_prob: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.has_null = class_dropout_prob > 0 or num_classes == 0
        self.embedding_table = nn.Embedding(num_classes + self.has_null, hidden_size)

    def forward(self, y: Tensor | None, x: Tensor) -> Tensor:
        return self.embedding_table(self.labels(y, x))

    def labels(self, y: Tensor | None, x: Tensor) -> Tensor:
        """`y` (B,) checked against the batch `x`, or the null label for each of its rows if `y` is
        None.
        """
        if y is not None:
            y = check_labels(y, x, self.num_classes if self.has_null else self.num_classes - 1)
            if y.device != x.device:
                raise ConfigError(
                    f"y is on {y.device} and x on {x.device}; move both to one device."
                )
            return y
        if not self.has_null:
            raise ConfigError(
                "y is None, but this model has no null label (class_dropout_prob=0): give labels "
                f"in [0, {self.num_classes - 1}], "
                "or build the model with class_dropout_prob > 0."
            )
        return torch.full((x.shape[0],), self.num_classes, dtype=torch.long, device=x.device)


def autocasting(x: Tensor) -> bool:
    """True inside a torch.autocast for the device of `x`."""
    return x.device.type in ("cpu", "cuda", "mps", "xpu") and torch.is_autocast_enabled(
        x.device.type
    )


def in_float32(layers: nn.Module, x: Tensor) -> Tensor:
    """`layers(x)` in the precision of the weights, but at least float32, whatever autocast and the
    weights' own type ask for.
    """
    with (
        torch.autocast(x.device.type, enabled=False) if autocasting(x) else contextlib.nullcontext()
    ):
        dtype = next(layers.parameters()).dtype
        if dtype not in HALF:
            return layers(x.to(dtype))
        wide = {name: p.float() for name, p in layers.named_parameters()}
        return torch.func.functional_call(layers, wide, (x.float(),))


def timestep_features(
    t: Float[Tensor, " batch"], dim: int = 256, max_period: float = 10000.0
) -> Float[Tensor, "batch dim"]:
    """[cos(t w), sin(t w)] (B, dim) of t (B,), in float32 whatever t's dtype, with w_k =
    max_period^(-k / (dim // 2)).

    An odd `dim` ends in a zero. Float32 as in the official code: a float64 model would otherwise
    differ from it by 1e-7.
    """
    check_floating(t=t)
    if t.dim() != 1:
        raise ConfigError(f"t has shape {tuple(t.shape)}; it must be (B,).")
    dim = check_count("dim", dim, 2)
    check_number("max_period", max_period, 0, math.inf, open_low=True)
    features = _sines(t, time_frequencies(dim, max_period).to(t.device))
    return F.pad(features, (0, dim % 2))


def time_frequencies(dim: int = 256, max_period: float = 10000.0) -> Tensor:
    """The dim // 2 angular frequencies of `timestep_features`, float32 on the host, from 1 down
    towards 1 / max_period.
    """
    half = dim // 2
    return torch.exp(
        -math.log(max_period) * torch.arange(half, dtype=torch.float32, device="cpu") / half
    )


def _sines(t: Tensor, frequencies: Tensor) -> Tensor:
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sincos_1d(positions: Tensor, dim: int) -> Tensor:
    """[sin(p w), cos(p w)] (N, dim) of positions (N,), in float64, with w_k = 10000^(-k / (dim /
    2)).
    """
    k = torch.arange(dim // 2, dtype=torch.float64, device="cpu")
    angles = positions.double()[:, None] * 10000 ** (-k / (dim / 2))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def sincos_2d(dim: int, side: int) -> Tensor:
    """Positions of a side x side grid, row by row, as (side * side, dim) float64: the column in the
    first half, then the row.
    """
    steps = torch.arange(side, device="cpu")
    row, column = torch.meshgrid(steps, steps, indexing="ij")
    return torch.cat(
        [sincos_1d(column.flatten(), dim // 2), sincos_1d(row.flatten(), dim // 2)], dim=-1
    )


def check_input(x: Tensor, shape: tuple[int, ...], weight: Tensor) -> None:
    """Raise ConfigError unless x is (B, *shape) and of a dtype that meets `weight` or is cast by
    autocast.
    """
    check_floating(x=x)
    if x.shape[1:] != shape:
        raise ConfigError(
            f"x has shape {tuple(x.shape)}; this model takes (B, {', '.join(map(str, shape))})."
        )
    if x.dtype != weight.dtype and not autocasting(x):
        raise ConfigError(
            f"x has dtype {x.dtype} and the weights {weight.dtype}: cast one of them, or use "
            "torch.autocast."
        )


def check_blocks(blocks: Iterable[int], depth: int) -> set[int]:
    """`blocks` as a set; ConfigError unless it is a sequence of block numbers from 1 to `depth`."""
    numbers = list(map(plain, blocks)) if isinstance(blocks, Iterable) else [0]
    if not all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= depth for n in numbers):
        raise ConfigError(
            f"blocks is {blocks!r}; it must be a sequence of block numbers from 1 to {depth}, such "
            "as (1,)."
        )
    return set(numbers)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(all, trainable) parameter numbers; a SiT's position table is not trained. ConfigError for
    what is no module.
    """
    check_module(model=model)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)
