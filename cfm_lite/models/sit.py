"""SiT: a transformer over image patches, every block of which is modulated by time and class.

    v(x, t, y) = unpatchify(final(block_L(... block_1(patches(x) + position, c) ...), c)),   c = time(t) + label(y)

Convention: t = 0 is noise, t = 1 is data, and t enters as it is, in [0, 1], unscaled. Parameter
names, shapes and initial values are the official SiT's, so that state dicts pass both ways; the
output is exactly 0 before training. Reference: Ma et al. 2024 (SiT, arXiv:2401.08740); Peebles &
Xie 2023 (DiT, arXiv:2212.09748), section 3.
"""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cfm_lite._internal.checks import (
    HALF,
    check_count,
    check_flag,
    check_number,
    check_time,
    plain,
    transformed,
)
from cfm_lite.errors import ConfigError
from cfm_lite.models.embed import (
    LabelEmbedder,
    TimestepEmbedder,
    autocasting,
    check_blocks,
    check_input,
    sincos_2d,
)

__all__ = [
    "SIT_CONFIGS",
    "Attention",
    "FeedForward",
    "FinalLayer",
    "PatchEmbed",
    "SiT",
    "SiTBlock",
    "attend",
    "modulate",
]

_SIZES = {
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
}  # depth, hidden_size, num_heads
SIT_CONFIGS: dict[str, dict[str, int]] = {
    f"SiT-{size}/{patch}": {
        "depth": depth,
        "hidden_size": hidden,
        "patch_size": patch,
        "num_heads": heads,
    }
    for size, (depth, hidden, heads) in _SIZES.items()
    for patch in (2, 4, 8)
}


class SiT(nn.Module):
    """The transformer: velocity (B, C, H, W) of images or latents x (B, C, H, W), H = W =
    `input_size`, at times t (B,).

    `num_classes` counts the classes; label `num_classes` is the null label. Its row exists if
    `class_dropout_prob` > 0: the number does nothing else here, labels are dropped in `Objective`.
    `learn_sigma` doubles the head's channels, as the official checkpoints do; the second half is
    never returned. `depth` and `hidden_size` describe the features. With `checkpointing` set, a
    block keeps its input alone and runs again in the backward pass: memory for a third more work.
    Raises ConfigError for sizes that do not divide. Reference: SiT, table 1 (the sizes in
    `SIT_CONFIGS`).
    """

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        num_classes: int = 1000,
        learn_sigma: bool = False,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        input_size, patch_size, in_channels, num_classes = map(
            plain, (input_size, patch_size, in_channels, num_classes)
        )
        hidden_size, depth, num_heads, mlp_ratio = map(
            plain, (hidden_size, depth, num_heads, mlp_ratio)
        )
        self.input_size, self.patch_size, self.in_channels, self.num_classes = (
            input_size,
            patch_size,
            in_channels,
            num_classes,
        )
        self.hidden_size, self.depth, self.num_heads, self.mlp_ratio = (
            hidden_size,
            depth,
            num_heads,
            mlp_ratio,
        )
        self.class_dropout_prob, self.learn_sigma, self.qk_norm = (
            class_dropout_prob,
            learn_sigma,
            qk_norm,
        )
        self.checkpointing = False
        self.dropped_keys: tuple[str, ...] = ()  # what `load_official` found in a file and left out
        _check_sizes(self.config)
        self.out_channels = 2 * in_channels if learn_sigma else in_channels
        self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size, class_dropout_prob)
        tokens = (input_size // patch_size) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, hidden_size), requires_grad=False)
        self.blocks = nn.ModuleList(
            SiTBlock(hidden_size, num_heads, mlp_ratio, qk_norm) for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, patch_size, self.out_channels)
        self.initialize_weights()

    @property
    def config(self) -> dict[str, Any]:
        """The keyword arguments that build this model again."""
        return {name: getattr(self, name) for name in inspect.signature(SiT).parameters}

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        t: Float[Tensor, " batch"],
        y: Integer[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """The velocity (B, C, H, W) at x (B, C, H, W), t (B,) in [0, 1] and labels y (B,) in [0,
        num_classes].

        y = None is the null label for every row. Raises ConfigError for another shape, time or
        label.
        """
        return self.forward_features(x, t, y)[0]

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
        """(velocity, {block number: its output (B, T, D)}) of one pass; `blocks` are numbers from 1
        to `depth`.
        """
        wanted = check_blocks(blocks, self.depth)
        check_input(
            x, (self.in_channels, self.input_size, self.input_size), self.x_embedder.proj.weight
        )
        check_time(t, x)
        c = self.t_embedder(t) + self.y_embedder(
            y, x
        )  # (B, D), in float32 at least: rounded once, not twice
        c = c if autocasting(x) else c.to(x.dtype)
        h = self.x_embedder(x) + self.pos_embed  # (B, T, D)
        features = {}
        again = (
            self.checkpointing and torch.is_grad_enabled() and not transformed(h)
        )  # torch.func has no hooks for what is saved
        for number, block in enumerate(self.blocks, 1):
            h = self._again_later(block, h, c) if again else block(h, c)
            if number in wanted:
                features[number] = h
        return self.unpatchify(self.final_layer(h, c)), features

    def _again_later(self, block: nn.Module, h: Tensor, c: Tensor) -> Tensor:
        return checkpoint(
            block, h, c, use_reentrant=False, preserve_rng_state=False
        )  # nothing in a block is random

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, p * p * C_out), row by row, as an image (B, C, H, W) of the first C
        channels.
        """
        side, p = self.input_size // self.patch_size, self.patch_size
        image = tokens.reshape(len(tokens), side, side, p, p, self.out_channels)[
            ..., : self.in_channels
        ]
        return image.permute(0, 5, 1, 3, 2, 4).reshape(
            len(tokens), self.in_channels, self.input_size, self.input_size
        )

    def initialize_weights(self) -> None:
        """The official initial values. Every gate and the head start at 0 (adaLN-Zero): each block
        is the identity.
        """
        for name, parameter in self.named_parameters():
            if (
                name.endswith("bias")
                or "adaLN_modulation" in name
                or name.startswith("final_layer")
            ):
                nn.init.zeros_(parameter)
            elif name.startswith(("t_embedder", "y_embedder")):
                nn.init.normal_(parameter, std=0.02)
            elif "_norm" in name:
                nn.init.ones_(parameter)
            elif name != "pos_embed":
                nn.init.xavier_uniform_(
                    parameter.view(len(parameter), -1)
                )  # the patch layer counts as a Linear
        with torch.no_grad():
            self.pos_embed.copy_(sincos_2d(self.hidden_size, self.input_size // self.patch_size))


class SiTBlock(nn.Module):
    """Attention, then an MLP, each between a shift and scale of its input and a gate on its output,
    all three from c.
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, qk_norm: bool) -> None:
        super().__init__()
        self.attn = Attention(hidden_size, num_heads, qk_norm)
        self.mlp = FeedForward(hidden_size, int(hidden_size * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # (B, T, D), (B, D)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (
            self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=-1)
        )  # (B, 1, D)
        x = torch.addcmul(
            x, gate, self.attn(modulate(x, shift, scale))
        )  # one pass over memory instead of two
        return torch.addcmul(x, gate_mlp, self.mlp(modulate(x, shift_mlp, scale_mlp)))


class Attention(nn.Module):
    """Self-attention of all tokens; with `qk_norm`, queries and keys pass a LayerNorm over the head
    dimension first.
    """

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.q_norm = nn.LayerNorm(hidden_size // num_heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(hidden_size // num_heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D)
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )  # each (B, heads, T, D / heads)
        q, k = (
            self.q_norm(q).type_as(v),
            self.k_norm(k).type_as(v),
        )  # under autocast a LayerNorm returns float32
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear, GELU (tanh form), Linear, on each token."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, inner_size)
        self.fc2 = nn.Linear(inner_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class FinalLayer(nn.Module):
    """Shift and scale from c, then a Linear to the p * p * C_out values of each token's patch."""

    def __init__(self, hidden_size: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, patch_size * patch_size * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=-1)
        return self.linear(modulate(x, shift, scale))  # (B, T, p * p * C_out)


class PatchEmbed(nn.Module):
    """Cuts an image (B, C, H, W) into patches, row by row, and maps each to a token: (B, T, D)."""

    def __init__(self, patch_size: int, in_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        # a copy: of tokens that lie transposed, torch's CPU compiler gives gradients that are off
        # by 5 % (2.13), and each block copies
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(d)) v of queries, keys and values (B, heads, T, d)."""
    if (q.requires_grad and q.device.type == "cpu" and q.dtype in HALF) or transformed(q, k, v):
        # the fused CPU kernel's backward pass in half precision takes about five times as long as
        # these two products, and no
        # fused kernel has a forward-mode or a second derivative
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The tokens x (B, T, D), each normalised over D, times 1 + `scale` plus `shift` (B, 1, D)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def _check_sizes(config: dict[str, Any]) -> None:
    for name in ("input_size", "patch_size", "in_channels", "hidden_size", "depth", "num_heads"):
        check_count(name, config[name])
    check_count("num_classes", config["num_classes"], low=0)
    check_number("mlp_ratio", config["mlp_ratio"], 0, 1e6, open_low=True)
    check_flag(learn_sigma=config["learn_sigma"], qk_norm=config["qk_norm"])
    check_number("class_dropout_prob", config["class_dropout_prob"], 0, 1)
    # the position table holds a sine and a cosine for each of two axes
    for whole, part in (
        ("hidden_size", "num_heads"),
        ("hidden_size", 4),
        ("input_size", "patch_size"),
    ):
        divisor = config[part] if isinstance(part, str) else part
        if config[whole] % divisor:
            raise ConfigError(
                f"{whole} {config[whole]} is not a multiple of "
                f"{part if divisor == part else f'{part} {divisor}'}."
            )
