"""REPA's alignment loss, forward and backward, at batch 256: how many aten calls it issues, and its
time against a loop over rows.

Every aten operator counts, those that others call included, as the profiler sees them. On a GPU
each is a launch of some microseconds, whatever its size. The official program loops over the batch
in Python, and so does the side beside ours.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from cfm_lite import losses
from tools.benchmarks.harness import Clock, Row, count, faster

BATCH, TOKENS, DIM = 256, 16, 96


def rows(clock: Clock) -> Iterator[Row]:
    """The rows, each with its goal."""
    target = torch.randn(BATCH, TOKENS, DIM)
    projected = torch.randn(BATCH, TOKENS, DIM, requires_grad=True)
    sides: dict[str, Callable[[], object]] = {
        name: _side(form, projected, target) for name, form in FORMS.items()
    }
    calls = {name: aten_calls(side) for name, side in sides.items()}
    name = f"alignment, B = {BATCH}: aten calls"
    yield count(name, calls["ours"], goal=100, unit=" calls")
    yield count(
        f"{name} of torch's cosine_similarity",
        calls["builtin"],
        unit=" calls",
        note="no checks, zero vectors as it happens",
    )
    yield count(f"{name} of a loop over rows", calls["loop"], unit=" calls")
    sides["one pass"] = lambda: torch.add(projected.detach(), target)
    times = clock(sides)
    name, note = (
        f"alignment, {BATCH} x {TOKENS} x {DIM}: over a loop over rows",
        "floor: two arrays read and one written, once",
    )
    yield faster(name, times, "ours", "loop", goal=5.0, floor="one pass", note=note)


def builtin(projected: Tensor, target: Tensor) -> Tensor:
    """The shortest expression, without checks, and without a choice of its own for zero vectors."""
    return -F.cosine_similarity(projected, target, dim=-1).mean()


def loop(projected: Tensor, target: Tensor) -> Tensor:
    """Minus the mean cosine, row by row."""
    total = projected.new_zeros(())
    for p, z in zip(projected, target):
        total = total - (F.normalize(p, dim=-1) * F.normalize(z, dim=-1)).sum(-1).mean()
    return total / len(projected)


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ours": losses.align,
    "loop": loop,
    "builtin": builtin,
}


def _side(
    form: Callable[[Tensor, Tensor], Tensor], projected: Tensor, target: Tensor
) -> Callable[[], None]:
    def side() -> None:
        projected.grad = None
        form(projected, target).backward()

    return side


def aten_calls(side: Callable[[], object]) -> int:
    """How many aten operators one call of `side` runs."""
    side()
    with profile(activities=[ProfilerActivity.CPU]) as record:
        side()
    return sum(event.count for event in record.key_averages() if event.key.startswith("aten::"))
