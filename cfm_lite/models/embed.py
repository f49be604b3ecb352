"""How the models here turn a time, a label and a position into vectors, and check their inputs.

    time(t) = MLP([cos(t w), sin(t w)])
    label(y) = table[y]
    position = [sin, cos] of column and row

Convention: t enters as it is, in [0, 1]; label `num_classes` is the null label. Names, shapes and
order are the official SiT's (Ma et al. 2024, arXiv:2401.08740).
"""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cfm_lite._internal.checks import (
    HALF,
    check_count,
    check_floating,
    check_labels,
    check_module,
    check_number,
    plain,
    transformed,
)
from cfm_lite._internal.networks import other_dtype
from cfm_lite.errors import ConfigError

__all__ = [
    "LabelEmbedder",
    "Labelled",
    "Network",
    "TimestepEmbedder",
    "autocasting",
    "check_blocks",
    "check_input",
    "count_parameters",
    "in_float32",
    "rotary_2d",
    "rotate",
    "run_block",
    "sincos_1d",
    "sincos_2d",
    "time_frequencies",
    "timestep_features",
]


class TimestepEmbedder(nn.Module):
    """A time (B,) as a vector (B, D): 256 sines and cosines, Linear, SiLU, Linear.

    It always runs in float32 or more. In 16 bits two neighbouring times of 250 would give almost
    the same vector.

    >>> TimestepEmbedder(hidden_size=8)(torch.zeros(2)).shape
    torch.Size([2, 8])
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
        """The vectors (B, D) of times (B,)."""
        return in_float32(self.mlp, _sines(t, self.frequencies))

    def _apply(self, fn: Any, recurse: bool = True) -> "TimestepEmbedder":
        # made again after every move or cast, so that they stay float32 and survive `to_empty`
        super()._apply(fn, recurse)
        self.frequencies = time_frequencies(self.features).to(
            self.mlp.get_parameter("0.weight").device
        )
        return self


class Network(nn.Module):
    """What all networks here share: `forward_features` gives the velocity and the features.

    >>> from cfm_lite.models import MLP
    >>> MLP(2, depth=1).config["depth"]
    1
    """

    forward_features: Callable[..., tuple[Tensor, dict[int, Tensor]]]

    @property
    def config(self) -> dict[str, Any]:
        """The keyword arguments that build this model again."""
        _, *names = inspect.signature(type(self).__init__).parameters
        return {name: getattr(self, name) for name in names}

    def forward(
        self,
        x: Float[Tensor, "batch *dims"],
        t: Float[Tensor, " batch"],
        y: Shaped[Tensor, "batch *condition"] | None = None,
    ) -> Float[Tensor, "batch *dims"]:
        """The velocity at x, at times in [0, 1] and for conditions y.

        y = None is the null condition for every row. Raises ConfigError for another shape, time or
        condition.
        """
        return self.forward_features(x, t, y)[0]


class Labelled(Network):
    """A network whose condition is a label (B,) below `num_classes`.

    >>> model = Labelled()
    >>> model.num_classes = 10
    >>> model.null_condition(torch.tensor([3, 7]))
    tensor([10, 10])
    """

    num_classes: int

    def null_condition(self, y: Tensor) -> Tensor:
        """The null label for each row of labels `y`: what a dropped row gets."""
        return torch.full_like(y, self.num_classes)


class LabelEmbedder(nn.Module):
    """A table of label vectors (B,) -> (B, D), with a last row for the null label if it is needed.

    >>> table = LabelEmbedder(num_classes=10, hidden_size=8, class_dropout_prob=0.1)
    >>> table.embedding_table.num_embeddings
    11
    """

    def __init__(self, num_classes: int, hidden_size: int, class_dropout_prob: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.has_null = class_dropout_prob > 0 or num_classes == 0
        self.embedding_table = nn.Embedding(num_classes + self.has_null, hidden_size)

    def forward(self, y: Tensor | None, x: Tensor) -> Tensor:
        """The vectors (B, D) of labels (B,), checked as in `labels`."""
        return self.embedding_table(self.labels(y, x))

    def labels(self, y: Tensor | None, x: Tensor) -> Tensor:
        """The checked labels of the batch `x`; the null label for each row if `y` is None.

        Raises ConfigError for labels out of range or on another device, and for None without a null
        label.
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
                f"in [0, {self.num_classes - 1}], or build the model with class_dropout_prob > 0."
            )
        return torch.full((x.shape[0],), self.num_classes, dtype=torch.long, device=x.device)


def autocasting(x: Tensor) -> bool:
    """True inside a torch.autocast for the device of `x`.

    >>> autocasting(torch.zeros(1))
    False
    """
    kind = x.device.type
    return kind in ("cpu", "cuda", "mps", "xpu") and torch.is_autocast_enabled(kind)


def in_float32(layers: nn.Module, x: Tensor) -> Tensor:
    """`layers(x)` in the precision of the weights and at least in float32, also under autocast.

    >>> in_float32(nn.Linear(2, 2).bfloat16(), torch.zeros(1, 2)).dtype
    torch.float32
    """
    kind = x.device.type
    with torch.autocast(kind, enabled=False) if autocasting(x) else contextlib.nullcontext():
        dtype = next(layers.parameters()).dtype
        if dtype not in HALF:
            return layers(x.to(dtype))
        wide = {name: p.float() for name, p in layers.named_parameters()}
        return torch.func.functional_call(layers, wide, (x.float(),))


def timestep_features(
    t: Float[Tensor, " batch"], dim: int = 256, max_period: float = 10000.0
) -> Float[Tensor, "batch dim"]:
    """[cos(t w), sin(t w)] with w_k = max_period^(-k / (dim // 2)), always in float32.

    An odd `dim` ends in a zero. The official code uses float32; a float64 model would otherwise
    differ from it by 1e-7.

    Raises:
        ConfigError: times that are not floating (B,), or `dim` below 2.

    >>> timestep_features(torch.zeros(1), dim=4)
    tensor([[1., 1., 0., 0.]])
    """
    check_floating(t=t)
    if t.dim() != 1:
        raise ConfigError(f"t has shape {tuple(t.shape)}; it must be (B,).")
    dim = check_count("dim", dim, 2)
    check_number("max_period", max_period, 0, math.inf, open_low=True)
    features = _sines(t, time_frequencies(dim, max_period).to(t.device))
    return F.pad(features, (0, dim % 2))


def time_frequencies(dim: int = 256, max_period: float = 10000.0) -> Tensor:
    """The dim // 2 angular frequencies of `timestep_features`, from 1 down to 1 / max_period.

    >>> time_frequencies(4)
    tensor([1.0000, 0.0100])
    """
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device="cpu")
    return torch.exp(-math.log(max_period) * steps / half)


def _sines(t: Tensor, frequencies: Tensor) -> Tensor:
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sincos_1d(positions: Tensor, dim: int) -> Tensor:
    """[sin(p w), cos(p w)] (N, dim) of positions (N,), with w_k = 10000^(-k / (dim / 2)).

    >>> sincos_1d(torch.zeros(1), dim=4)
    tensor([[0., 0., 1., 1.]], dtype=torch.float64)
    """
    k = torch.arange(dim // 2, dtype=torch.float64, device="cpu")
    angles = positions.double()[:, None] * 10000 ** (-k / (dim / 2))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def sincos_2d(dim: int, side: int) -> Tensor:
    """Positions of a side x side grid, row by row: (side * side, dim), first column, then row.

    >>> sincos_2d(dim=8, side=2).shape
    torch.Size([4, 8])
    """
    steps = torch.arange(side, device="cpu")
    row, column = torch.meshgrid(steps, steps, indexing="ij")
    return torch.cat([sincos_1d(p.flatten(), dim // 2) for p in (column, row)], dim=-1)


def rotary_2d(dim: int, side: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (side * side, dim / 2) of rotary positions on a grid, row by row.

    Half of the angles turn with the row, half with the column, by pi/2 a step down to pi/2 over the
    whole side: a query meets a key by where it lies from it. Reference: Su et al. 2021 (RoFormer,
    arXiv:2104.09864), with the two axes of FLUX's transformer.

    >>> rotary_2d(dim=8, side=2)[0].shape
    torch.Size([4, 4])
    """
    steps = torch.arange(side, dtype=torch.float64, device="cpu")
    row, column = torch.meshgrid(steps, steps, indexing="ij")
    quarter = dim // 4
    speeds = math.pi / 2 * side ** (-torch.arange(quarter, device="cpu") / max(quarter - 1, 1))
    angles = torch.cat([p.flatten()[:, None] * speeds for p in (row, column)], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys x (..., N, D), each pair (x_i, x_(i + D/2)) turned by its angle (N, D / 2).

    >>> rotate(torch.ones(1, 2), torch.zeros(1, 1), torch.ones(1, 1))
    tensor([[-1.,  1.]])
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def run_block(again: bool, block: nn.Module, *given: Any) -> Any:
    """`block(*given)`; with `again` only `given` is kept, and the block runs again in the backward
    pass: activation checkpointing.

    >>> run_block(True, nn.Linear(2, 3), torch.zeros(1, 2)).shape
    torch.Size([1, 3])
    """
    # torch.func has no hooks for what is saved
    if again and torch.is_grad_enabled() and not transformed(given[0]):
        # nothing in a block is random
        return checkpoint(block, *given, use_reentrant=False, preserve_rng_state=False)
    return block(*given)


def check_input(x: Tensor, shape: tuple[int, ...], weight: Tensor) -> None:
    """`x` must be (B, *shape), of the dtype of `weight` unless autocast casts it; else ConfigError.

    >>> check_input(torch.zeros(4, 2), (2,), torch.zeros(1))
    """
    check_floating(x=x)
    if x.shape[1:] != shape:
        raise ConfigError(
            f"x has shape {tuple(x.shape)}; this model takes (B, {', '.join(map(str, shape))})."
        )
    if x.dtype != weight.dtype and not autocasting(x):
        raise other_dtype(x, weight)


def check_blocks(blocks: Iterable[int], depth: int) -> set[int]:
    """`blocks`, a sequence of block numbers from 1 to `depth`, as a set; else ConfigError.

    >>> check_blocks((1, 2), depth=3)
    {1, 2}
    """
    numbers = list(map(plain, blocks)) if isinstance(blocks, Iterable) else [0]
    if not all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= depth for n in numbers):
        raise ConfigError(
            f"blocks is {blocks!r}; it must be a sequence of block numbers from 1 to {depth}, such "
            "as (1,)."
        )
    return set(numbers)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters a module has: (all, trainable).

    Raises:
        ConfigError: something else than a module.

    >>> count_parameters(nn.Linear(2, 3))
    (9, 9)
    """
    check_module(model=model)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)
