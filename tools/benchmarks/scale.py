"""What a CPU can say of the full scale: calls, graphs and host reads of a training step, and its
time beside the official style.

Calls are counted on a device without numbers (tests/fakegpu.py), where every operator that a GPU
would launch is seen. The times are those of a tiny SiT of S's width: whole steps, in float32, the
official style being built from timm's parts (sit.py).
"""

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._dynamo.utils import counters

from cfm_lite import objective
from cfm_lite.models import SIT_CONFIGS, SiT
from tests import fakegpu
from tools.benchmarks.gpu import sides
from tools.benchmarks.harness import Clock, Row, count, faster
from tools.benchmarks.sit import check_agreement, official_style

METHODS = ("delta_fm", "vecor", "dispersive", "repa")
SIZES: dict[str, Any] = {
    "input_size": 16,
    "hidden_size": 384,
    "depth": 2,
    "num_heads": 6,
    "num_classes": 10,
}
BATCH = 16


def rows(clock: Clock) -> Iterator[Row]:
    """Issue-sized goals where there are any: no host read, one graph."""
    yield from _counted()
    yield from _graphs()
    yield from _timed(clock)


def _counted() -> Iterator[Row]:
    presets = ("sit", *METHODS)
    *steps, gram = fakegpu.elsewhere(
        *[f"step({name!r})" for name in presets], "gram_calls(32, 256 * 1152)"
    )
    plain = steps[0]["calls"]
    note = f"SiT of 2 blocks, batch {fakegpu.BATCH} in shards of {fakegpu.SHARD}, eager, bf16; "
    note += "with clip, AdamW, average and guard"
    yield count("scale, plain flow matching: calls in a step", plain, unit=" calls", note=note)
    for name, step in zip(presets, steps):
        waits = len(step["reads"]) + len(step["copies"])
        yield count(
            f"scale, {name}: host reads and copies in a step that is not logged", waits, goal=0
        )
        if name != "sit":
            yield count(
                f"scale, {name}: calls more than plain flow matching",
                step["calls"] - plain,
                unit=" calls",
                note=note,
            )
    yield count(
        "scale, dispersive: calls of a shard of SiT-XL's Gram matrix",
        gram,
        goal=20,
        unit=" calls",
        note="forward and backward",
    )


def _graphs() -> Iterator[Row]:
    for name in ("fm", "delta_fm", "vecor", "dispersive"):
        torch._dynamo.reset()
        counters.clear()
        graphs: list[Any] = []
        built = sides.trainer(
            getattr(objective, name)(SiT(**SIZES), shard=8), BATCH, BATCH, precision="float32"
        )
        built._forward = torch.compile(
            built._wrapped, dynamic=False, backend=functools.partial(_kept, graphs)
        )
        step = sides.stepping(built, [_batch()])
        step(), step()
        yield count(
            f"scale, {name}: compiled graphs of a step",
            len(graphs),
            goal=1,
            note=f"{sum(graphs)} calls in it; draws stay outside",
        )


def _kept(graphs: list[Any], graph: Any, inputs: Any) -> Callable[..., Any]:
    graphs.append(sum(node.op.startswith("call") for node in graph.graph.nodes))
    return graph.forward


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(BATCH, 4, 16, 16), torch.randint(10, (BATCH,))


def _timed(clock: Clock) -> Iterator[Row]:
    ours = SiT(**SIZES)
    with torch.no_grad():
        for p in ours.parameters():
            p += 0.02 * torch.randn_like(p)
    style, (x1, y) = official_style(ours.config), _batch()
    style.load_state_dict(ours.state_dict())
    check_agreement(ours, style, (x1, torch.rand(BATCH), y))
    theirs = sides.OfficialStep(style, sides.plain_loss(10), BATCH)
    built = sides.trainer(objective.fm(ours, shard=8), BATCH, BATCH, precision="float32")
    both: dict[str, Callable[[], Any]] = {
        "ours": sides.stepping(built, [(x1, y)]),
        "official": lambda: theirs(x1, y),
    }
    note = f"official style from timm's parts; width 384, 2 blocks, batch {BATCH}, float32; "
    note += "ours also clips and guards"
    yield faster(
        "scale, a whole step: over the official style",
        clock(both, block=0.5),
        "ours",
        "official",
        note=note,
    )
    for size, average, adamw in (("33 million", 1.4, 4.0), ("0.7 million", 5.0, None)):
        yield from _updates(clock, size, average, adamw)


def _updates(clock: Clock, size: str, average: float, adamw: float | None) -> Iterator[Row]:
    """The optimizer and the average apart, each beside the official program's."""
    sizes: dict[str, Any] = dict(
        SIT_CONFIGS["SiT-S/2"]
        if size == "33 million"
        else {"hidden_size": 96, "depth": 4, "num_heads": 3}
    )
    model = SiT(**sizes)
    built, theirs = (
        sides.trainer(objective.fm(model), 8, 8),
        sides.OfficialStep(copy.deepcopy(model), sides.plain_loss(10), 8),
    )
    for p in [*model.parameters(), *theirs.model.parameters()]:
        p.grad = torch.randn_like(p) if p.requires_grad else None
    built._update()
    ours, note = (
        built._averages["ema"],
        "the official program's average goes tensor by tensor, and its AdamW is torch's default",
    )
    both: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours.update_parameters(model),
        "official": theirs._average,
    }
    yield faster(
        f"scale, average of {size} numbers: over the official style",
        clock(both),
        "ours",
        "official",
        average,
        note=note,
    )
    both = {"ours": built.optimizer.step, "official": theirs.optimizer.step}
    yield faster(
        f"scale, AdamW on {size} numbers: over the official style",
        clock(both),
        "ours",
        "official",
        adamw,
        note=note,
    )
