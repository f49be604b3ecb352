"""100 Euler steps in the plane, network 3-64-64-64-2: what the sampler adds to the bare network
calls, and other packages beside it.

The network is written as plain functions of (x, t), the same on every side, so that no time but the
solver's stands beside its products. The bare side calls it 100 times and keeps nothing. The
overhead at N = 1024 is so small that the places which one process happens to give its tensors
decide about it: that row takes the median over several processes.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from cfm_lite import samplers
from tools.benchmarks.harness import Clock, Row, Times, count, elsewhere, faster, peer, takes
from tools.benchmarks.toy import Field

STEPS = 100
Velocity = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def rows(clock: Clock) -> Iterator[Row]:
    """The rows, each with its goal."""
    runs = [
        elsewhere("sampler", f"seconds(1024, {3 if clock.quick else 7})")
        for _ in range(1 if clock.quick else 7)
    ]
    times = Times({side: [second for run in runs for second in run[side]] for side in runs[0]})
    note = f"{len(runs)} processes; floor: the shortest loop by hand, in place, without checks"
    yield takes(
        "sampler, N = 1024: over bare calls",
        times,
        "ours",
        "bare",
        goal=1.03,
        floor="by hand",
        note=note,
    )

    network, x = functions(Field()), torch.randn(16, 2)
    times = clock(our_sides(network, x), repeats=15)
    yield takes("sampler, N = 16: over bare calls", times, "ours", "bare", floor="by hand")
    extra = {
        side: 1e6 * (value - times.medians("bare")["bare"]) / STEPS
        for side, value in times.medians("ours", "by hand").items()
    }
    yield count(
        "sampler, N = 16: added to each bare call",
        extra["ours"],
        goal=5.0,
        floor=extra["by hand"],
        unit=" us",
    )

    others = torchdiffeq_sides(network, x) | flow_matching_side(network, x)
    times = clock(our_sides(network, x) | others, repeats=15)
    for other, goal in (
        ("torchdiffeq, same grid", 1.6),
        ("torchdiffeq, step_size", None),
        ("flow_matching", None),
    ):
        yield faster(f"sampler, N = 16: over {other}", times, "ours", other, goal, floor="bare")
    module = Field().requires_grad_(False)
    times = clock(our_sides(module.__call__, x) | torchdiffeq_sides(module.__call__, x), repeats=15)
    yield faster(
        "sampler, N = 16, an nn.Module: over torchdiffeq",
        times,
        "ours",
        "torchdiffeq, same grid",
        floor="bare",
    )


def functions(field: Field) -> Velocity:
    """The network of `field` without its modules."""
    layers = [
        (layer.weight.detach(), layer.bias.detach())
        for layer in field.net
        if isinstance(layer, torch.nn.Linear)
    ]

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        h = torch.cat([x, t[:, None]], dim=1)
        for weight, bias in layers[:-1]:
            h = F.selu(F.linear(h, weight, bias))
        return F.linear(h, *layers[-1])

    return velocity


def our_sides(field: Velocity, x: Tensor) -> dict[str, Callable[[], object]]:
    """The sampler, the bare calls, and the shortest loop that one could write by hand."""
    ts = torch.linspace(0, 1, STEPS + 1)
    table = ts[:-1, None].expand(-1, len(x)).contiguous()

    def bare() -> None:
        for t in table.unbind():
            field(x, t)

    def by_hand() -> None:
        state = x.clone()
        for t in table.unbind():
            state.add_(field(state, t), alpha=1 / STEPS)

    return {
        "ours": lambda: samplers.sample(field, x, ts, step=samplers.euler),
        "bare": bare,
        "by hand": by_hand,
    }


@torch.no_grad()
def seconds(n: int, repeats: int) -> Mapping[str, list[float]]:
    """What a process of its own measures: the seconds of each of our sides."""
    return Clock()(our_sides(functions(Field()), torch.randn(n, 2)), repeats, block=0.15).seconds


def torchdiffeq_sides(field: Velocity, x: Tensor) -> dict[str, Callable[[], object]]:
    """torchdiffeq's euler: told the grid, as our sampler is, or told a step size, which keeps fewer
    states.
    """
    odeint = peer("torchdiffeq").odeint
    ts, ends = torch.linspace(0, 1, STEPS + 1), torch.tensor([0.0, 1.0])

    def flow(t: Tensor, state: Tensor) -> Tensor:
        return field(state, t.expand(len(state)))

    return {
        "torchdiffeq, same grid": lambda: odeint(flow, x, ts, method="euler")[-1],
        "torchdiffeq, step_size": lambda: odeint(
            flow, x, ends, method="euler", options={"step_size": 1 / STEPS}
        )[-1],
    }


def flow_matching_side(field: Velocity, x: Tensor) -> dict[str, Callable[[], object]]:
    """The solver of Meta's package, which calls torchdiffeq."""
    solver = peer("flow_matching.solver").ODESolver(
        velocity_model=lambda x, t: field(x, t.expand(len(x)))
    )
    return {"flow_matching": lambda: solver.sample(x, step_size=1 / STEPS, method="euler")}
