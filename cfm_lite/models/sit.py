"""SiT: a transformer over image patches, every block of which is modulated by time and class.

    c = time(t) + label(y)
    v(x, t, y) = unpatchify(final(block_L(... block_1(patches(x) + position, c) ...), c))

Convention: t = 0 is noise, t = 1 is data, and t enters as it is, in [0, 1], unscaled. Parameter
names, shapes and initial values are the official SiT's, so that state dicts pass both ways; the
output is exactly 0 before training. Reference: Ma et al. 2024 (SiT, arXiv:2401.08740); Peebles &
Xie 2023 (DiT, arXiv:2212.09748), section 3.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

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
    Labelled,
    TimestepEmbedder,
    autocasting,
    check_blocks,
    check_input,
    run_block,
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
    "initialize",
    "modulate",
    "unpatchify",
]

# depth, hidden_size, num_heads
_SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
SIT_CONFIGS: dict[str, dict[str, int]] = {
    f"SiT-{size}/{patch}": dict(depth=depth, hidden_size=hidden, patch_size=patch, num_heads=heads)
    for size, (depth, hidden, heads) in _SIZES.items()
    for patch in (2, 4, 8)
}


class SiT(Labelled):
    """The transformer: the velocity of images or latents (B, C, H, W), H = W = `input_size`.

    With the attribute `checkpointing` set, a block keeps only its input and runs again in the
    backward pass: less memory for a third more work.

    Args:
        class_dropout_prob: above 0 the null label has a row. The number does nothing else here:
            labels are dropped in `Objective`.
        num_classes: the number of classes; label `num_classes` is the null label.
        learn_sigma: doubles the head's channels, as the official checkpoints do; the second half is
            never returned.

    Raises:
        ConfigError: sizes that do not divide.

    Reference: SiT, table 1 (the sizes in `SIT_CONFIGS`).

    >>> small = SiT(input_size=4, in_channels=1, hidden_size=8, depth=1, num_heads=2)
    >>> small(torch.ones(1, 1, 4, 4), torch.zeros(1)).abs().max().item()
    0.0
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
        sizes = map(plain, (input_size, patch_size, in_channels, num_classes))
        self.input_size, self.patch_size, self.in_channels, self.num_classes = sizes
        sizes = map(plain, (hidden_size, depth, num_heads, mlp_ratio))
        self.hidden_size, self.depth, self.num_heads, self.mlp_ratio = sizes
        self.class_dropout_prob = class_dropout_prob
        self.learn_sigma, self.qk_norm = learn_sigma, qk_norm
        self.checkpointing = False
        self.dropped_keys: tuple[str, ...] = ()  # what `load_official` found in a file and left out
        _check_sizes(self.config)
        input_size, patch_size, in_channels = self.input_size, self.patch_size, self.in_channels
        hidden_size, num_classes = self.hidden_size, self.num_classes
        self.out_channels = 2 * in_channels if learn_sigma else in_channels
        self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size, class_dropout_prob)
        tokens = (input_size // patch_size) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, hidden_size), requires_grad=False)
        self.blocks = nn.ModuleList(
            SiTBlock(hidden_size, self.num_heads, self.mlp_ratio, qk_norm)
            for _ in range(self.depth)
        )
        self.final_layer = FinalLayer(hidden_size, patch_size, self.out_channels)
        self.initialize_weights()

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
        """(velocity, {block: its output (B, T, D)}) of one pass; blocks count from 1.

        Raises ConfigError for another shape, time, label or block number.

        >>> small = SiT(input_size=4, in_channels=1, hidden_size=8, depth=1, num_heads=2)
        >>> small.forward_features(torch.ones(1, 1, 4, 4), torch.zeros(1), blocks=(1,))[1][1].shape
        torch.Size([1, 4, 8])
        """
        wanted = check_blocks(blocks, self.depth)
        shape = self.in_channels, self.input_size, self.input_size
        check_input(x, shape, self.x_embedder.proj.weight)
        check_time(t, x)
        # (B, D), in float32 at least: rounded once, not twice
        c = self.t_embedder(t) + self.y_embedder(y, x)
        c = c if autocasting(x) else c.to(x.dtype)
        h = self.x_embedder(x) + self.pos_embed  # (B, T, D)
        features = {}
        for number, block in enumerate(self.blocks, 1):
            h = run_block(self.checkpointing, block, h, c)
            if number in wanted:
                features[number] = h
        return self.unpatchify(self.final_layer(h, c)), features

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, p * p * C_out), row by row, as images of the first C channels."""
        return unpatchify(tokens, self.patch_size, self.in_channels)

    def initialize_weights(self) -> None:
        """Set the official initial values.

        Every gate and the head start at 0 (adaLN-Zero), so each block is the identity.
        """
        initialize(self, normal=("t_embedder", "y_embedder"))
        with torch.no_grad():
            self.pos_embed.copy_(sincos_2d(self.hidden_size, self.input_size // self.patch_size))


class SiTBlock(nn.Module):
    """Attention, then an MLP, each with a shift and scale of its input and a gate on its output.

    All three come from c.

    >>> SiTBlock(8, 2, 4.0, qk_norm=False)(torch.zeros(1, 4, 8), torch.zeros(1, 8)).shape
    torch.Size([1, 4, 8])
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, qk_norm: bool) -> None:
        super().__init__()
        self.attn = Attention(hidden_size, num_heads, qk_norm)
        self.mlp = FeedForward(hidden_size, int(hidden_size * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # (B, T, D), (B, D)
        """The tokens (B, T, D) after the block; c (B, D) holds time and label."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (
            self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=-1)
        )  # (B, 1, D)
        # addcmul is one pass over memory instead of two
        x = torch.addcmul(x, gate, self.attn(modulate(x, shift, scale)))
        return torch.addcmul(x, gate_mlp, self.mlp(modulate(x, shift_mlp, scale_mlp)))


class Attention(nn.Module):
    """Self-attention of all tokens; with `qk_norm`, of normalised queries and keys.

    >>> Attention(8, 2, qk_norm=True)(torch.zeros(1, 4, 8)).shape
    torch.Size([1, 4, 8])
    """

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.q_norm = nn.LayerNorm(hidden_size // num_heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(hidden_size // num_heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D)
        # each (B, heads, T, D / heads)
        """The tokens (B, T, D), each a mixture of all of them."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        # under autocast a LayerNorm returns float32
        q, k = self.q_norm(q).type_as(v), self.k_norm(k).type_as(v)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear, GELU (tanh form), Linear, on each token.

    >>> FeedForward(8, 32)(torch.zeros(1, 4, 8)).shape
    torch.Size([1, 4, 8])
    """

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, inner_size)
        self.fc2 = nn.Linear(inner_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Each of the tokens (B, T, D) by itself, through the inner size and back."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class FinalLayer(nn.Module):
    """Shift and scale from c, then a Linear to the p * p * C_out values of each token's patch.

    >>> FinalLayer(8, 2, 3)(torch.zeros(1, 4, 8), torch.zeros(1, 8)).shape
    torch.Size([1, 4, 12])
    """

    def __init__(self, hidden_size: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, patch_size * patch_size * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """The pixels (B, T, p * p * C_out) of tokens x (B, T, D); c (B, D) as in `SiTBlock`."""
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=-1)
        return self.linear(modulate(x, shift, scale))  # (B, T, p * p * C_out)


class PatchEmbed(nn.Module):
    """Cuts an image (B, C, H, W) into patches, row by row, and maps each to a token: (B, T, D).

    >>> PatchEmbed(2, 3, 8)(torch.zeros(1, 3, 4, 4)).shape
    torch.Size([1, 4, 8])
    """

    def __init__(self, patch_size: int, in_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        # a copy: for transposed tokens torch's CPU compiler gives gradients with an error of 5 %
        # (2.13), and each block would copy them anyway
        """The tokens (B, T, D) of images x (B, C, H, W), with T = (H / p) (W / p)."""
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(d)) v of queries, keys and values (B, heads, T, d).

    >>> attend(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), torch.ones(1, 1, 2, 4)).mean()
    tensor(1.)
    """
    if (q.requires_grad and q.device.type == "cpu" and q.dtype in HALF) or transformed(q, k, v):
        # in half precision the backward pass of the fused CPU kernel takes about five times as long
        # as these two products, and no fused kernel has a forward-mode or a second derivative
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The tokens x (B, T, D), each normalised over D, times 1 + `scale` plus `shift` (B, 1, D).

    >>> modulate(torch.tensor([[[-1.0, 1.0]]]), torch.ones(1, 1, 2), torch.ones(1, 1, 2))
    tensor([[[-1.0000,  3.0000]]])
    """
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def unpatchify(tokens: Tensor, patch_size: int, channels: int) -> Tensor:
    """Tokens (B, T, p * p * C_out) of a square, row by row, as an image of their first `channels`.

    >>> unpatchify(torch.zeros(2, 16, 12), patch_size=2, channels=3).shape
    torch.Size([2, 3, 8, 8])
    """
    side = round(tokens.shape[1] ** 0.5)
    image = tokens.unflatten(1, (side, side)).unflatten(-1, (patch_size, patch_size, -1))
    image = image[..., :channels].permute(0, 5, 1, 3, 2, 4)  # (B, C, row, p, column, p)
    return image.reshape(len(tokens), channels, side * patch_size, side * patch_size)


def initialize(model: nn.Module, normal: tuple[str, ...]) -> None:
    """The official initial values of SiT; what starts with a name of `normal` is small and random.

    Every gate and the head start at 0 (adaLN-Zero): each block is the identity.

    >>> initialize(model := SiT(4, 2, 1, 8, 1, 2), normal=("t_embedder", "y_embedder"))
    >>> bool(model.blocks[0].adaLN_modulation[1].weight.any())
    False
    """
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "adaLN_modulation" in name or name.startswith("final_layer"):
            nn.init.zeros_(parameter)
        elif name.startswith(normal):
            nn.init.normal_(parameter, std=0.02)
        elif "_norm" in name:
            nn.init.ones_(parameter)
        elif name != "pos_embed":
            # the patch layer counts as a Linear
            nn.init.xavier_uniform_(parameter.view(len(parameter), -1))


def _check_sizes(config: dict[str, Any]) -> None:
    for name in ("input_size", "patch_size", "in_channels", "hidden_size", "depth", "num_heads"):
        check_count(name, config[name])
    check_count("num_classes", config["num_classes"], low=0)
    check_number("mlp_ratio", config["mlp_ratio"], 0, 1e6, open_low=True)
    check_flag(learn_sigma=config["learn_sigma"], qk_norm=config["qk_norm"])
    check_number("class_dropout_prob", config["class_dropout_prob"], 0, 1)
    # the position table holds a sine and a cosine for each of two axes
    multiples = ("hidden_size", "num_heads"), ("hidden_size", 4), ("input_size", "patch_size")
    for whole, part in multiples:
        divisor = config[part] if isinstance(part, str) else part
        if config[whole] % divisor:
            of = part if divisor == part else f"{part} {divisor}"
            raise ConfigError(f"{whole} {config[whole]} is not a multiple of {of}.")
