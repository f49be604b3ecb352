"""100 Euler steps in the plane, network 3-64-64-64-2: what the sampler adds to the bare network calls, and torchdiffeq beside it.

The field is a plain function of (x, t) on every side; the bare side calls it 100 times and keeps nothing. torchdiffeq is
asked in two ways, with the grid as its output times and with a step size, and compared by the faster one.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from cfm_lite import samplers
from tests.benchmarks.harness import Clock, MissingPeer, NotRun, Row, Times, count, faster, peer, takes
from tests.benchmarks.toy import Field

STEPS = 100


@torch.no_grad()
def rows(clock: Clock) -> Iterator[Row | NotRun]:
    """The goals of performance.md, C2 and D."""
    network = Field().requires_grad_(False)

    def field(x: Tensor, t: Tensor) -> Tensor:
        return network(x, t)

    times = clock(repeats=25, block=0.2, **our_sides(field, torch.randn(1024, 2)))
    name = "sampler, N = 1024: time over bare network calls"
    yield takes(name, times, "ours", "bare", goal=1.03, floor="by hand", note="by hand: the shortest loop, in place, no checks")
    x = torch.randn(16, 2)
    try:
        peers = {"torchdiffeq": torchdiffeq_side(clock, field, x)}
    except MissingPeer as error:
        peers = {}
        yield NotRun("sampler, N = 16: over torchdiffeq's euler", str(error))
    times = clock(repeats=15, **our_sides(field, x), **peers)
    if peers:
        yield faster("sampler, N = 16: over torchdiffeq's euler", times, "ours", "torchdiffeq", goal=1.6, floor="bare")
    yield takes("sampler, N = 16: time over bare network calls", times, "ours", "bare", floor="by hand")
    yield count("sampler, N = 16: added to a bare call, per step", added(times, "ours"), 5.0, floor=added(times, "by hand"), unit=" us")


def our_sides(field, x: Tensor) -> dict:
    """The sampler, the bare calls, and the shortest loop that one could write by hand."""
    ts = torch.linspace(0, 1, STEPS + 1)
    table = ts[:, None].expand(-1, len(x)).contiguous()

    def bare() -> None:
        for t in table[:-1].unbind():
            field(x, t)

    def by_hand() -> None:
        state = x.clone()
        for t in table[:-1].unbind():
            state.add_(field(state, t), alpha=1 / STEPS)

    return {"ours": lambda: samplers.sample(field, x, ts, step=samplers.euler), "bare": bare, "by hand": by_hand}


def torchdiffeq_side(clock: Clock, field, x: Tensor):
    """torchdiffeq's euler over the same grid, in the faster of its two forms."""
    odeint = peer("torchdiffeq").odeint

    def flow(t: Tensor, state: Tensor) -> Tensor:
        return field(state, t.expand(len(state)))

    grid = partial(odeint, flow, x, torch.linspace(0, 1, STEPS + 1), method="euler")
    size = partial(odeint, flow, x, torch.tensor([0.0, 1.0]), method="euler", options={"step_size": 1 / STEPS})
    times = clock(repeats=5, grid=grid, size=size).medians("grid", "size")
    return grid if times["grid"] <= times["size"] else size


def added(times: Times, side: str) -> float:
    """Microseconds that a step of `side` takes beyond the bare call."""
    middle = times.medians(side, "bare")
    return 1e6 * (middle[side] - middle["bare"]) / STEPS
