"""ΔFM's negatives: another row for each row, uniformly; ours in O(B) against the official program's
sort in O(B^2 log B).

Both sides return the wrong velocities, so both gather; on points in the plane that costs next to
nothing, and for latents of a SiT the row says what it costs. The sort form is written from its
description (methods.md, 2.2): every row lists all row numbers with its own put first, drops that
one, and picks one of the rest.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cfm_lite import negatives
from cfm_lite.paths import FlowSample
from tools.benchmarks.harness import Clock, Row, faster, takes

LATENT = (4, 32, 32)


def rows(clock: Clock) -> Iterator[Row]:
    """The rows, each with its goal."""
    times = clock(sides(256, (2,)))
    yield faster(
        "negatives, B = 256: over the sort form", times, "ours", "sort", goal=25.0, floor="gather"
    )
    times = clock(sides(256, LATENT))
    yield faster(
        "negatives, B = 256 latents 4 x 32 x 32: over the sort form",
        times,
        "ours",
        "sort",
        floor="gather",
    )
    times = clock(sides(4096, (2,)), repeats=7)
    yield faster(
        "negatives, B = 4,096: over the sort form",
        times,
        "ours",
        "sort",
        goal=1000.0,
        floor="gather",
    )
    few, once = sides(4096, (2,))["ours"], sides(65_536, (2,))["ours"]
    times = clock({"65,536": once, "16 x 4,096": lambda: [few() for _ in range(16)]})
    note = "linear: 1.0. The sort form would need two tables of 32 GiB"
    yield takes(
        "negatives, B = 65,536: time over 16 batches of 4,096",
        times,
        "65,536",
        "16 x 4,096",
        goal=2.0,
        note=note,
    )


def sides(batch: int, shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """Ours, the sort form, and the floor: rows that are known, gathered."""
    u = torch.randn(batch, *shape)
    sample = FlowSample(x0=u, x1=u, t=torch.rand(batch), x_t=u, u_t=u)
    known = torch.randint(batch, (batch,))
    return {
        "ours": lambda: negatives.in_batch(sample),
        "sort": lambda: by_sorting(u),
        "gather": lambda: u.index_select(0, known),
    }


def by_sorting(u: Tensor) -> Tensor:
    """A wrong velocity for each row of `u` (B, *dims), uniform over the other rows, by way of a (B,
    B) table.
    """
    n = len(u)
    table = torch.arange(n).repeat(n, 1)
    table.fill_diagonal_(-1)
    others = table.sort(dim=1).values[:, 1:]  # (B, B - 1)
    pick = torch.randint(n - 1, (n, 1))
    return u[others.gather(1, pick).squeeze(1)]
