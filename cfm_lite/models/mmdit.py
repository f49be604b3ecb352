"""MMDiT: a transformer over image patches and caption tokens, which attend to each other.

    h, s = patches(x) + position, words(y)
    each block:   h, s = two streams with weights of their own, one attention over [s, h]
    v = unpatchify(final(h, c)),   c = time(t), with `pooled` + linear(mean of the words)

Convention: t = 0 is noise, t = 1 is data, unscaled. The caption acts through attention, and through
c only where that is asked. The last block reads the caption's tokens and returns none. Without
arguments this is the network of REPA's text-to-image experiments. Reference: Esser et al. 2024
(SD3, arXiv:2403.03206), section 4; Yu et al. 2024 (REPA, arXiv:2410.06940), appendix on MS-COCO.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from cfm_lite._internal.checks import (
    check_count,
    check_flag,
    check_number,
    check_time,
    plain,
    seen,
)
from cfm_lite.errors import ConfigError
from cfm_lite.models.embed import (
    Network,
    TimestepEmbedder,
    autocasting,
    check_blocks,
    check_input,
    rotary_2d,
    rotate,
    run_block,
    sincos_2d,
)
from cfm_lite.models.sit import (
    FeedForward,
    FinalLayer,
    PatchEmbed,
    attend,
    initialize,
    modulate,
    unpatchify,
)
from cfm_lite.models.text import WordEmbedding

__all__ = ["JointBlock", "MMDiT", "Stream"]

Caption = Integer[Tensor, "batch length"] | Float[Tensor, "batch length context"]


class MMDiT(Network):
    """The velocity (B, C, S, S) of images or latents x (B, C, S, S), S = `input_size`, at times t
    (B,), for captions y.

    With `vocab_size` > 0 a caption is a row of word numbers y (B, L) below it, with
    L = `context_length`, and word vectors are learnt; the row of zeros is the empty caption. With 0
    a caption is what a frozen encoder made of it, y (B, L, `context_dim`), and the buffer
    `null_context` (L, context_dim) holds what it made of the empty caption. y = None is the empty
    caption for every row.

    `zero_init` starts as SiT does, with an output of exactly 0; else PyTorch's own initial values,
    as in REPA's code. With `rotary` queries and keys of patches also turn with their place in the
    image, as in FLUX; captions stay. With `pooled` the mean of a caption's tokens, normalised, also
    modulates every block, as in SD3. With `phrases` the learnt vector of a word also tells of so
    many words on each side. The attribute `checkpointing` is SiT's. Raises ConfigError for sizes
    that do not divide.

    >>> model = MMDiT(8, 2, 3, 32, 2, 4, context_dim=16, context_length=5, vocab_size=9)
    >>> model(torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.ones(2, 5, dtype=torch.long)).shape
    torch.Size([2, 3, 8, 8])
    """

    condition = "captions"
    null_context: Tensor
    pos_embed: Tensor
    turn_cos: Tensor | None
    turn_sin: Tensor | None

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 768,
        depth: int = 24,
        num_heads: int = 24,
        mlp_ratio: float = 4.0,
        context_dim: int = 768,
        context_length: int = 77,
        vocab_size: int = 0,
        zero_init: bool = False,
        rotary: bool = False,
        pooled: bool = False,
        phrases: int = 0,
    ) -> None:
        super().__init__()
        self.input_size, self.patch_size, self.in_channels = map(
            plain, (input_size, patch_size, in_channels)
        )
        self.hidden_size, self.depth, self.num_heads, self.mlp_ratio = map(
            plain, (hidden_size, depth, num_heads, mlp_ratio)
        )
        self.context_dim, self.context_length, self.vocab_size, self.phrases = map(
            plain, (context_dim, context_length, vocab_size, phrases)
        )
        self.zero_init, self.rotary, self.pooled = zero_init, rotary, pooled
        self.checkpointing = False
        _check_sizes(self.config)
        width, tokens = self.hidden_size, self.input_size // self.patch_size
        self.x_embedder = PatchEmbed(self.patch_size, self.in_channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.words = (
            WordEmbedding(self.vocab_size, self.context_length, self.context_dim, self.phrases)
            if self.vocab_size
            else None
        )
        self.context_embedder = nn.Linear(self.context_dim, width)
        self.pool_embedder = nn.Linear(self.context_dim, width) if self.pooled else None
        self.blocks = nn.ModuleList(
            JointBlock(width, self.num_heads, self.mlp_ratio, pre_only=number == self.depth)
            for number in range(1, self.depth + 1)
        )
        self.final_layer = FinalLayer(width, self.patch_size, self.in_channels)
        if self.zero_init:
            initialize(self, normal=("t_embedder",))
            if self.words is not None:
                self.words.reset()
        self.register_buffer("pos_embed", sincos_2d(width, tokens).float()[None])
        turn = rotary_2d(width // self.num_heads, tokens) if self.rotary else (None, None)
        for name, angles in zip(("turn_cos", "turn_sin"), turn):
            self.register_buffer(name, None if angles is None else angles.float(), persistent=False)
        if self.words is None:
            self.register_buffer("null_context", torch.zeros(self.context_length, self.context_dim))

    def null_condition(self, y: Tensor) -> Tensor:
        """The empty caption for each row of captions `y`: what a dropped row gets.

        Raises ConfigError for labels, and for captions of another shape or kind.
        """
        if self.words is not None:
            return torch.zeros_like(self.words.numbers(y))
        return self.null_context.to(self._features(y)).expand_as(y)

    def forward_features(
        self,
        x: Float[Tensor, "batch channels height width"],
        t: Float[Tensor, " batch"],
        y: Caption | None = None,
        blocks: Iterable[int] = (),
    ) -> tuple[
        Float[Tensor, "batch channels height width"],
        dict[int, Float[Tensor, "batch tokens features"]],
    ]:
        """(velocity, {block number: its image tokens (B, T, D)}) of one pass; `blocks` are numbers
        from 1 to `depth`.

        Raises ConfigError for another shape, time, caption or block number.
        """
        wanted = check_blocks(blocks, self.depth)
        check_input(
            x, (self.in_channels, self.input_size, self.input_size), self.x_embedder.proj.weight
        )
        check_time(t, x)
        c = self.t_embedder(t)  # (B, D), in float32 at least: rounded once
        c = c if autocasting(x) else c.to(x.dtype)
        h = self.x_embedder(x) + self.pos_embed.to(x.dtype)  # (B, T, D)
        said = self._captions(y, x)  # (B, L, context_dim)
        s = self.context_embedder(said)  # (B, L, D)
        if self.pool_embedder is not None:
            mean = said.mean(1)
            c = c + self.pool_embedder(F.layer_norm(mean, mean.shape[1:]))
        turn = None if self.turn_cos is None else (self.turn_cos, self.turn_sin)
        features = {}
        for number, block in enumerate(self.blocks, 1):
            h, s = run_block(self.checkpointing, block, h, s, c, turn)
            if number in wanted:
                features[number] = h
        return unpatchify(self.final_layer(h, c), self.patch_size, self.in_channels), features

    def _captions(self, y: Tensor | None, x: Tensor) -> Tensor:
        """The features (B, L, context_dim) of the captions of `x`."""
        if isinstance(y, Tensor) and y.device != x.device:
            raise ConfigError(f"y is on {y.device} and x on {x.device}; use y.to(x.device).")
        if self.words is not None:
            blank = torch.zeros(len(x), self.context_length, dtype=torch.long, device=x.device)
            return self.words(blank if y is None else y, x)
        if y is None:
            return self.null_context.to(x.dtype).expand(len(x), -1, -1)
        if len(self._features(y)) != len(x):
            raise ConfigError(
                f"y holds {len(y)} captions for {len(x)} rows of x; give one for each."
            )
        return y if autocasting(x) else y.to(x.dtype)

    def _features(self, y: Tensor) -> Tensor:
        """`y` itself; ConfigError for anything but features of captions."""
        wanted, given = (self.context_length, self.context_dim), isinstance(y, Tensor)
        if not given or tuple(y.shape[1:]) != wanted or not y.is_floating_point():
            raise ConfigError(
                f"y has {seen(y)}{f' and dtype {y.dtype}' if given else ''}; this model takes a "
                f"tensor of the features of captions, floating, (B, {wanted[0]}, {wanted[1]}). "
                "Encode the captions with the encoder that it was trained with."
            )
        return y


class JointBlock(nn.Module):
    """Image tokens h (B, T, D) and caption tokens s (B, L, D): each stream is modulated and
    projected by weights of its own, and all tokens attend to all. With `pre_only` the caption's
    stream gives keys and values and ends there. `turn`, cosines and sines (T, D / heads / 2), turns
    queries and keys of the image.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, pre_only: bool) -> None:
        super().__init__()
        self.image = Stream(width, num_heads, mlp_ratio)
        self.text = Stream(width, num_heads, mlp_ratio, pre_only)

    def forward(
        self, h: Tensor, s: Tensor, c: Tensor, turn: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Both streams after the block: h (B, T, D) and s (B, L, D); c (B, D) holds the time."""
        q_s, k_s, v_s, *text = self.text.before(s, c)
        q_h, k_h, v_h, *image = self.image.before(h, c)
        if turn is not None:
            q_h, k_h = (rotate(part, *turn).type_as(v_h) for part in (q_h, k_h))
        length = s.shape[1]
        # the caption first, as in SD3
        mixed = attend(
            torch.cat([q_s, q_h], dim=2),
            torch.cat([k_s, k_h], dim=2),
            torch.cat([v_s, v_h], dim=2),
        )
        mixed = mixed.transpose(1, 2).flatten(2)  # (B, L + T, D)
        h = self.image.after(h, mixed[:, length:], *image)
        return h, self.text.after(s, mixed[:, :length], *text) if text else s


class Stream(nn.Module):
    """One kind of tokens x (B, N, D) in a `JointBlock`: a SiT block, cut open at its attention."""

    def __init__(
        self, width: int, num_heads: int, mlp_ratio: float, pre_only: bool = False
    ) -> None:
        super().__init__()
        self.num_heads, self.pre_only = num_heads, pre_only
        self.qkv = nn.Linear(width, 3 * width)
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), nn.Linear(width, (2 if pre_only else 6) * width)
        )
        if not pre_only:
            self.proj = nn.Linear(width, width)
            self.mlp = FeedForward(width, int(width * mlp_ratio))

    def before(self, x: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys, values (B, heads, N, D / heads), then what `after` needs of c (B, D)."""
        shift, scale, *rest = (
            self.adaLN_modulation(c).unsqueeze(1).chunk(2 if self.pre_only else 6, dim=-1)
        )
        qkv = self.qkv(modulate(x, shift, scale)).unflatten(-1, (3, self.num_heads, -1))
        return (*qkv.permute(2, 0, 3, 1, 4), *rest)

    def after(
        self, x: Tensor, mixed: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, gate_mlp: Tensor
    ) -> Tensor:
        """The stream x (B, N, D) after its share `mixed` of the attention and its MLP."""
        x = torch.addcmul(x, gate, self.proj(mixed))
        return torch.addcmul(x, gate_mlp, self.mlp(modulate(x, shift, scale)))


def _check_sizes(config: dict[str, Any]) -> None:
    for name in ("input_size", "patch_size", "in_channels", "hidden_size", "depth", "num_heads"):
        check_count(name, config[name])
    for name in ("context_dim", "context_length"):
        check_count(name, config[name])
    check_count("vocab_size", config["vocab_size"], low=0)
    if check_count("phrases", config["phrases"], low=0) and not config["vocab_size"]:
        raise ConfigError(
            f"phrases is {config['phrases']} and vocab_size 0; phrases are made of learnt word "
            "vectors. Give vocab_size, or leave phrases out: a frozen encoder has read the "
            "sentence."
        )
    check_number("mlp_ratio", config["mlp_ratio"], 0, 1e6, open_low=True)
    check_flag(**{name: config[name] for name in ("zero_init", "rotary", "pooled")})
    width, step = config["hidden_size"], 4 * config["num_heads"]
    if config["rotary"] and width % step:
        raise ConfigError(
            f"hidden_size is {width} and num_heads {config['num_heads']}; with rotary positions "
            f"hidden_size must be a multiple of {step}, four numbers for each head: a cosine and a "
            "sine turn two numbers on each of two axes. Use a multiple, such as "
            f"{-(-width // step) * step}."
        )
    for whole, part, divisor in (
        ("hidden_size", "num_heads", config["num_heads"]),
        ("hidden_size", "4 (a sine and a cosine for each of two axes)", 4),
        ("input_size", "patch_size", config["patch_size"]),
    ):
        if config[whole] % divisor:
            raise ConfigError(f"{whole} is {config[whole]}; it must be a multiple of {part}.")
