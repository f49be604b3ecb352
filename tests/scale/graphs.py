"""What torch's compiler makes of training: graphs, breaks and recompilations, on the ranks that
torchrun started or on one.

torchrun --nproc-per-node=2 -m tests.scale.graphs FILE     rank 0 writes {case: counts} as JSON
"""

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from cfm_lite import objective
from cfm_lite.engine import compiled
from cfm_lite.engine.parallel import ALONE, World, joined
from cfm_lite.models import MLP
from cfm_lite.runs.imagenet import build_imagenet_trainer, imagenet
from cfm_lite.runs.recipe import build_model
from cfm_lite.scale.dry_run import Made
from cfm_lite.training import Trainer

DEPTH, ROWS, MADE = (
    10,
    8,
    Made((4, 8, 8), 10),
)  # more blocks than the eight graphs after which torch gives a function up
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("ddp", "repa_vecor", {}),
    ("fsdp", "repa_vecor", {}),
    (
        "ddp",
        "dispersive",
        {"precision": "bf16", "hidden_size": 64},
    ),  # half precision is slow on many CPUs
    ("fsdp", "dispersive", {"precision": "bf16", "hidden_size": 64}),
]


def teacher(images: Tensor) -> Tensor:
    return images.flatten(1)[:, : 16 * 32].reshape(-1, 16, 32)


teacher.dim = 32  # pyright: ignore[reportFunctionMemberAccess]


def built(
    preset: str,
    world: World = ALONE,
    parallel: str = "ddp",
    *,
    compile: bool | None = True,
    **changes: Any,
) -> Trainer:
    """A trainer of ten blocks, each wide enough that DDP's first bucket ends inside it."""
    settings = {"depth": DEPTH, "hidden_size": 256, "shard": 4, "batch": ROWS, **changes}
    recipe = imagenet(preset, model="SiT-Ti/2", size=64, **settings)
    how: dict[str, Any] = {
        "teacher": teacher if recipe.align else None,
        "world": world,
        "parallel": parallel,
        "compile": compile,
    }
    return build_imagenet_trainer(recipe, MADE, model=build_model(recipe, MADE), **how)


def batch(preset: str, rows: int) -> tuple[Tensor, ...]:
    """Latents, labels and, for REPA, pictures."""
    x1, y = torch.randn(rows, 4, 8, 8), torch.arange(rows) % 10
    return (
        (x1, y, torch.randint(256, (rows, 3, 64, 64), dtype=torch.uint8))
        if "repa" in preset
        else (x1, y)
    )


class Counted:
    """A compiler that runs what it is given, and counts: graphs so far, and the breaks between
    them.
    """

    def __init__(self) -> None:
        torch._dynamo.reset()
        counters.clear()
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward

    @property
    def breaks(self) -> list[str]:
        return list(counters["graph_break"])


def counts(trainer: Trainer, data: tuple[Tensor, ...], counter: Counted) -> dict[str, Any]:
    """Graphs of the first step, those that two more make, and the losses; the average is used in
    between.
    """
    losses = [float(log["loss"]) for log in trainer.run([data], 1)]
    graphs = counter.graphs
    with torch.no_grad():
        trainer.ema(data[0], torch.rand(len(data[0])), data[1])
    losses += [float(log["loss"]) for log in trainer.run([data] * 2, 2)]
    return {
        "graphs": graphs,
        "again": counter.graphs - graphs,
        "breaks": counter.breaks,
        "losses": losses,
    }


def everything(world: World) -> dict[str, Any]:
    """The counts of every case on these ranks, and of a network without transformer blocks."""
    found = {}
    for parallel, preset, changes in CASES:
        counter = Counted()
        with patch.object(compiled, "BACKEND", counter):
            trainer = built(preset, world, parallel, **changes)
            found[f"{parallel} {preset}"] = counts(
                trainer, batch(preset, ROWS // world.size), counter
            )
    for parallel in ("ddp", "fsdp"):
        counter = Counted()
        with patch.object(compiled, "BACKEND", counter):
            model: nn.Module = MLP((4, 8, 8), 64, 3, num_classes=10, residual=True)
            trainer = Trainer(
                objective.fm(model).at(0, 0), compile=True, world=world, parallel=parallel
            )
            found[f"{parallel} mlp"] = counts(trainer, batch("sit", 8), counter)
    return found


if __name__ == "__main__":
    with joined() as world:
        found = everything(world)
        if world.is_main:
            Path(sys.argv[1]).write_text(json.dumps(found))
