"""A small SiT on 28 x 28 images, patch 4, width 192, 6 blocks, 3 heads, batch 64: forward and
backward, no optimizer.

The other side is built in the style of the official program from timm's parts (PatchEmbed,
Attention, Mlp): its own pass for each shift, scale and gate, time frequencies made anew in every
call, float32 throughout. Both models hold the same weights, and their outputs are compared before
anything is timed.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cfm_lite import losses
from cfm_lite.errors import CFMError
from cfm_lite.models import SiT
from tools.benchmarks.harness import Clock, Row, compiling, faster, peer

BATCH, SIDE, PATCH, WIDTH, DEPTH, HEADS, CLASSES = 64, 28, 4, 192, 6, 3, 10
TOKENS = (SIDE // PATCH) ** 2


def rows(clock: Clock) -> Iterator[Row]:
    """The rows, each with its goal."""
    model = SiT(SIDE, PATCH, 1, WIDTH, DEPTH, HEADS, num_classes=CLASSES)
    official = official_style(model.config)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.02 * torch.randn_like(p)  # the gates start at 0, which would hide a difference
    official.load_state_dict(model.state_dict())
    batch = torch.randn(BATCH, 1, SIDE, SIDE), torch.rand(BATCH), torch.randint(CLASSES, (BATCH,))
    check_agreement(model, official, batch)
    sides = {
        "ours float32": training_side(model, batch),
        "ours bf16": training_side(model, batch, bf16=True),
        "official float32": training_side(official, batch),
        "official bf16": training_side(official, batch, bf16=True),
        "products float32": products(torch.float32),
        "products bf16": products(torch.bfloat16),
    }
    times = clock(sides, block=1.0)
    note = (
        "official style, built from timm's parts. Floor: the products of the blocks' linear layers"
    )
    for ours, other, goal in (
        ("bf16", "float32", 1.8),
        ("float32", "float32", 1.05),
        ("bf16", "bf16", None),
    ):
        name = f"SiT {ours}: over the official style in {other}"
        yield faster(
            name,
            times,
            f"ours {ours}",
            f"official {other}",
            goal,
            floor=f"products {ours}",
            note=note,
        )
    if clock.quick:
        return
    compiled = training_side(model, batch, bf16=True, run=torch.compile(model))
    seconds = compiling(compiled)
    times = clock(
        {"ours compiled": compiled, "official float32": sides["official float32"]}, block=1.0
    )
    name, note = (
        "SiT bf16 compiled: over the official style in float32",
        f"{note}; compiled in {seconds:.1f} s",
    )
    yield faster(name, times, "ours compiled", "official float32", goal=2.1, note=note)


def training_side(
    model: nn.Module,
    batch: tuple[Tensor, Tensor, Tensor],
    bf16: bool = False,
    run: Callable[..., Tensor] | None = None,
) -> Callable[[], None]:
    """Forward, by `run` if it is given, and backward of the flow-matching loss."""
    x, t, y = batch
    u, run = (
        torch.randn_like(x),
        model if run is None else run,
    )  # a compiled model has no truth value

    def side() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = losses.flow_matching(run(x, t, y), u)
        model.zero_grad()
        loss.backward()

    return side


def products(dtype: torch.dtype) -> Callable[[], None]:
    """The floor: what the linear layers of the blocks multiply, forward and backward."""
    sizes = [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]
    layers = [
        [
            torch.randn(shape, dtype=dtype)
            for shape in ((BATCH * TOKENS, a), (a, b), (BATCH * TOKENS, b))
        ]
        for a, b in sizes
    ]

    def side() -> None:
        for _ in range(DEPTH):
            for x, w, out in layers:
                torch.mm(x, w)
                torch.mm(out, w.T)
                torch.mm(x.T, out)

    return side


@torch.no_grad()
def check_agreement(
    model: nn.Module, official: nn.Module, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    """CFMError unless both models give one velocity, for else their times cannot be compared."""
    gap = (model(*batch) - official(*batch)).abs().max().item()
    if not gap < 1e-4:
        raise CFMError(f"the two networks differ by {gap:.2g}; there is nothing to compare.")


def official_style(config: Mapping[str, Any]) -> nn.Module:
    """The network of the official program for the settings of a SiT (`SiT.config`), with its names
    of parameters.
    """
    layers = peer("timm.layers")
    side, patch, channels, width = (
        config[name] for name in ("input_size", "patch_size", "in_channels", "hidden_size")
    )
    grid, out = side // patch, 2 * channels if config["learn_sigma"] else channels

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = (
                nn.LayerNorm(width, elementwise_affine=False, eps=1e-6) for _ in range(2)
            )
            self.attn = layers.Attention(width, num_heads=config["num_heads"], qkv_bias=True)
            self.mlp = layers.Mlp(width, 4 * width, act_layer=lambda: nn.GELU(approximate="tanh"))
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c).chunk(
                6, dim=1
            )
            x = x + gate[:, None] * self.attn(_modulate(self.norm1(x), shift, scale))
            return x + gate_mlp[:, None] * self.mlp(_modulate(self.norm2(x), shift_mlp, scale_mlp))

    class Final(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
            self.linear = nn.Linear(width, patch * patch * out)
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
            return self.linear(_modulate(self.norm_final(x), shift, scale))

    class Official(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x_embedder = layers.PatchEmbed(side, patch, channels, width)
            self.t_embedder = nn.ModuleDict(
                {"mlp": nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))}
            )
            self.y_embedder = nn.ModuleDict(
                {"embedding_table": nn.Embedding(config["num_classes"] + 1, width)}
            )
            self.pos_embed = nn.Parameter(torch.zeros(1, grid * grid, width), requires_grad=False)
            self.blocks = nn.ModuleList(Block() for _ in range(config["depth"]))
            self.final_layer = Final()

        def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            c = self.t_embedder["mlp"](_time_features(t)) + self.y_embedder["embedding_table"](y)
            h = self.x_embedder(x) + self.pos_embed
            for block in self.blocks:
                h = block(h, c)
            patches = self.final_layer(h, c).reshape(len(x), grid, grid, patch, patch, out)
            return torch.einsum("nhwpqc->nchpwq", patches).reshape(len(x), out, side, side)[
                :, :channels
            ]

    return Official()


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


def _time_features(t: Tensor) -> Tensor:
    frequencies = torch.exp(-math.log(10_000) * torch.arange(128, dtype=torch.float32) / 128).to(
        t.device
    )
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
