"""A small network for points and tiny images, plain or residual.

    plain:     h = silu(A [x, t] + label(y)); each further layer h <- silu(W h); v = output(h)
    residual:  h = A x + time(t) + label(y); each block h <- h + W2 silu(W1 norm(h));
               v = output(norm(h))

Convention: t = 0 is noise, t = 1 is data. The output layer starts at 0, so the first velocity is
exactly 0.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from cfm_lite._internal.checks import (
    check_count,
    check_flag,
    check_labels,
    check_number,
    check_time,
    plain,
    promote,
)
from cfm_lite.errors import ConfigError
from cfm_lite.models.embed import (
    LabelEmbedder,
    Labelled,
    TimestepEmbedder,
    autocasting,
    check_blocks,
    check_input,
    in_float32,
)

__all__ = ["MLP", "ResidualBlock"]


class MLP(Labelled):
    """The velocity of points (B, D), or of x (B, *data_shape) taken as one flat vector.

    A label is a vector added to the first layer, which is what a one-hot code beside x would do.
    Label `num_classes` is the null label.

    Args:
        depth: hidden layers, or blocks if `residual`; at least 1, as every size.
        num_classes: 0 has no labels.
        class_dropout_prob: above 0 the null label has a row. The number does nothing else here.
        residual: False reads the time as one more coordinate: enough for 2D, and fast. True has
            SiT's time features: for digits, with `hidden_size=256`.

    Raises:
        ConfigError: a size below 1.

    >>> MLP(2)(torch.ones(1, 2), torch.zeros(1))
    tensor([[0., 0.]], grad_fn=<ViewBackward0>)
    """

    def __init__(
        self,
        data_shape: int | Sequence[int] = 2,
        hidden_size: int = 64,
        depth: int = 3,
        num_classes: int = 0,
        class_dropout_prob: float = 0.1,
        residual: bool = False,
    ) -> None:
        super().__init__()
        shape: Any = plain(data_shape)
        self.data_shape: tuple[int, ...] = (
            tuple(map(plain, shape)) if isinstance(shape, tuple | list) else (shape,)
        )
        hidden_size, depth, num_classes = map(plain, (hidden_size, depth, num_classes))
        self.hidden_size, self.depth, self.num_classes = hidden_size, depth, num_classes
        self.class_dropout_prob, self.residual = class_dropout_prob, residual
        _check_sizes(self.config)
        dim = math.prod(self.data_shape)
        self.input = nn.Linear(dim if residual else dim + 1, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size) if residual else None
        self.y_embedder = (
            LabelEmbedder(num_classes, hidden_size, class_dropout_prob) if num_classes else None
        )
        self.blocks = nn.ModuleList(
            _residual_blocks(hidden_size, depth) if residual else _plain_blocks(hidden_size, depth)
        )
        self.norm = nn.LayerNorm(hidden_size) if residual else nn.Identity()
        self.output = nn.Linear(hidden_size, dim)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward_features(
        self,
        x: Float[Tensor, "batch *dims"],
        t: Float[Tensor, " batch"],
        y: Integer[Tensor, " batch"] | None = None,
        blocks: Iterable[int] = (),
    ) -> tuple[Float[Tensor, "batch *dims"], dict[int, Float[Tensor, "batch *features"]]]:
        """(velocity, {block: its output (B, hidden_size)}) of one pass; blocks count from 1.

        Raises ConfigError for another shape, time, label or block number.

        >>> MLP(2).forward_features(torch.ones(1, 2), torch.zeros(1), blocks=(1,))[1][1].shape
        torch.Size([1, 64])
        """
        wanted = check_blocks(blocks, self.depth)
        check_input(x, self.data_shape, self.input.weight)
        check_time(t, x)
        h = self._first(x.flatten(1), t, y)  # (B, H)
        features = {}
        for number, block in enumerate(self.blocks, 1):
            h = block(h)
            if number in wanted:
                features[number] = h
        return self.output(self.norm(h)).reshape(x.shape), features

    def _first(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        if self.t_embedder is None:
            # the time is a coordinate of the first layer, so that layer rounds neither
            h = in_float32(self.input, torch.cat([x, t[:, None].to(promote(x).dtype)], dim=1))
        else:
            h = self.input(x) + self.t_embedder(t)
        if self.y_embedder is not None:
            h = h + self.y_embedder(y, x)
        elif y is not None:
            check_labels(y, x, 0)
        return h if autocasting(x) else h.to(x.dtype)  # from here on in the dtype of the weights


class ResidualBlock(nn.Module):
    """h + W2 silu(W1 norm(h)) of h (B, H).

    >>> ResidualBlock(4)(torch.zeros(1, 4)).shape
    torch.Size([1, 4])
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.fc1 = nn.Linear(hidden_size, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, h: Tensor) -> Tensor:
        """The same shape (B, H) as `h`."""
        return h + self.fc2(nn.functional.silu(self.fc1(self.norm(h))))


def _residual_blocks(hidden_size: int, depth: int) -> list[nn.Module]:
    return [ResidualBlock(hidden_size) for _ in range(depth)]


def _plain_blocks(hidden_size: int, depth: int) -> list[nn.Module]:
    # the input layer is the Linear of the first one
    return [
        nn.SiLU(),
        *(nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.SiLU()) for _ in range(depth - 1)),
    ]


def _check_sizes(config: dict[str, Any]) -> None:
    if not config["data_shape"]:
        raise ConfigError(
            "data_shape is empty; give the number of coordinates, such as 2, or a shape such as "
            "(1, 8, 8)."
        )
    for size in config["data_shape"]:
        check_count("data_shape", size)
    check_count("hidden_size", config["hidden_size"])
    check_count("depth", config["depth"])
    check_count("num_classes", config["num_classes"], low=0)
    check_number("class_dropout_prob", config["class_dropout_prob"], 0, 1)
    check_flag(residual=config["residual"])
