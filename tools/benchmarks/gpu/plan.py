"""How large everything is: at full scale for one GPU of 80 GB, or tiny, so that every line can be
tried on a CPU.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["FULL", "TINY", "Bench", "Network", "Plan"]


@dataclass(frozen=True)
class Network:
    """The micro-batch of a network, and the share of the measured ceiling, in percent, that its
    training step should reach.
    """

    micro: int
    goal: float


@dataclass(frozen=True)
class Plan:
    """Sizes and counts; `main` is the network of all parts but the throughput of the others."""

    name: str
    main: str
    networks: Mapping[str, Network]
    side: int  # of a latent
    classes: int
    batch: int
    shard: int
    local: int  # the batch of one of eight GPUs
    teacher: int  # channels of a teacher's token
    projector: int  # width of what is aligned with it
    squares: tuple[int, ...]  # of the matrix products that give the ceiling
    copied: int  # numbers in the copy that gives the bandwidth
    steps: int  # of the sampler
    drawn: int  # images at once
    warmup: int
    rounds: int  # where a comparison has long steps, `few` of them after `few` steps of warm-up
    few: int
    block: int  # steps in a row
    card: float  # bytes of the small card
    backend: str = "inductor"

    @property
    def tokens(self) -> int:
        """Tokens of one latent; all networks have patches of 2."""
        return (self.side // 2) ** 2


FULL = Plan(
    name="full",
    main="SiT-XL/2",
    networks={
        "SiT-XL/2": Network(64, 45),
        "SiT-L/2": Network(64, 45),
        "SiT-B/2": Network(128, 38),
        "SiT-S/2": Network(256, 25),
    },
    side=32,
    classes=1000,
    batch=256,
    shard=32,
    local=32,
    teacher=768,
    projector=2048,
    squares=(4096, 8192, 16384),
    copied=2**28,
    steps=250,
    drawn=32,
    warmup=20,
    rounds=13,
    few=4,
    block=4,
    card=24e9,
)
TINY = Plan(
    name="tiny",
    main="SiT-Ti/2",
    networks={"SiT-Ti/2": Network(8, 45)},
    side=8,
    classes=10,
    batch=16,
    shard=4,
    local=4,
    teacher=24,
    projector=32,
    squares=(64, 128),
    copied=2**16,
    steps=8,
    drawn=2,
    warmup=1,
    rounds=2,
    few=1,
    block=1,
    card=24e9,
    backend="eager",
)


@dataclass
class Bench:
    """One run: the plan, the device, and what earlier parts found for later ones."""

    plan: Plan
    device: torch.device
    official: Path | None = None  # the user's copy of the official program
    deadline: float = math.inf  # of the part at hand, by time.monotonic
    ceiling: float | None = None  # FLOP/s of the largest matrix product
    bandwidth: float | None = None  # bytes/s of a copy
    compiles: bool = True  # torch.compile works here; else the steps run as they are

    @property
    def on_gpu(self) -> bool:
        """True where CUDA's own tools can be used."""
        return self.device.type == "cuda"

    @property
    def late(self) -> bool:
        """True when the part has used up its share."""
        return time.monotonic() > self.deadline
