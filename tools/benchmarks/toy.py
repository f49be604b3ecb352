"""A training step in the plane, eight Gaussians -> moons: torchcfm's tutorial loop against ours,
plain, full and compiled.

All sides do the same work: torchcfm's distribution of the data, new points in every step, the same
noise of 0.1 around the path, batch 256, network 3-64-64-64-2 with SELU, Adam at 1e-3, float32. Our
loops draw many batches in one call and use each once. The "vectorised" side is the tutorial loop
with samplers that have no Python loop: it shows how much of the gain is only that.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from cfm_lite import draws, losses
from cfm_lite.objective import Objective
from cfm_lite.paths import LINEAR
from cfm_lite.training import Trainer
from tools.benchmarks.harness import Clock, Row, compiling, faster, peer, takes

BATCH, WIDTH, SIGMA, LR = 256, 64, 0.1, 1e-3
POOL = 64  # batches drawn at once
Step = Callable[[], object]


def rows(clock: Clock) -> Iterator[Row]:
    """The rows, each with its goal."""
    flow, utils, models = (
        peer(f"torchcfm.{name}") for name in ("conditional_flow_matching", "utils", "models.models")
    )
    matcher, network = (
        flow.ConditionalFlowMatcher(sigma=SIGMA),
        partial(models.MLP, dim=2, time_varying=True),
    )
    others: dict[str, Step] = {
        "tutorial": tutorial_step(matcher, network(), utils.sample_8gaussians, utils.sample_moons),
        "vectorised": tutorial_step(matcher, network(), eight_gaussians, moons),
        "products": bare_products(),
    }
    times = clock(
        others
        | {
            "plain": plain_step(Field()),
            "careful": careful_step(Field()),
            "trainer": trainer_step(Field()),
        },
        repeats=15,
    )
    note = "torchcfm's tutorial, or the same with vectorised samplers. "
    note += "Floor: the matrix products of a step"
    yield faster(
        "toy, plain loop: over torchcfm's tutorial",
        times,
        "plain",
        "tutorial",
        4.0,
        "products",
        note,
    )
    yield faster(
        "toy, plain loop: over vectorised torchcfm",
        times,
        "plain",
        "vectorised",
        1.2,
        "products",
        note,
    )
    more = f"{note}. The Trainer also keys its draws by step, guards, clips, averages and logs"
    yield faster(
        "toy, Trainer: over torchcfm's tutorial",
        times,
        "trainer",
        "tutorial",
        None,
        "products",
        more,
    )
    yield faster(
        "toy, Trainer: over vectorised torchcfm",
        times,
        "trainer",
        "vectorised",
        1.0,
        "products",
        more,
    )
    yield takes(
        "toy, Trainer: over a plain loop that draws, clips, averages",
        times,
        "trainer",
        "careful",
        1.2,
        note="The plain loop draws from a generator of the step, clips and averages, as the "
        "Trainer does; it checks nothing, guards nothing and logs nothing",
    )
    # after the others: what torch.compile loads slows eager code down by a few percent
    compiled = compiled_step(Field())
    note = f"{note}. Compiled in {compiling(compiled):.1f} s"
    times = clock(others | {"compiled": compiled}, repeats=15)
    yield faster(
        "toy, compiled step: over torchcfm's tutorial",
        times,
        "compiled",
        "tutorial",
        6.5,
        "products",
        note,
    )
    yield faster(
        "toy, compiled step: over vectorised torchcfm",
        times,
        "compiled",
        "vectorised",
        2.1,
        "products",
        note,
    )


class Field(nn.Module):
    """The tutorial's network as a velocity of x (B, 2) and t (B,)."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [3, WIDTH, WIDTH, WIDTH, 2]
        layers = [module for a, b in pairwise(sizes) for module in (nn.Linear(a, b), nn.SELU())]
        self.net = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.net(torch.cat([x, t[:, None]], dim=1))


def eight_gaussians(*shape: int) -> Tensor:
    """torchcfm's sample_8gaussians without its loop, (*shape, 2): centres on a circle of radius 5,
    variance sqrt(0.1).
    """
    angles = torch.randint(8, shape) * (math.pi / 4)
    return 5 * torch.stack([angles.cos(), angles.sin()], dim=-1) + 0.1**0.25 * torch.randn(
        *shape, 2
    )


def moons(*shape: int) -> Tensor:
    """The distribution of torchcfm's sample_moons, (*shape, 2).

    The angles are equal in every batch, and one uniform shift moves both axes of a point.
    """
    upper, lower = (
        torch.linspace(0, math.pi, part) for part in (shape[-1] // 2, shape[-1] - shape[-1] // 2)
    )
    x = torch.cat([upper.cos(), 1 - lower.cos()])
    y = torch.cat([upper.sin(), 0.5 - lower.sin()])
    return 3 * (torch.stack([x, y], dim=-1) + 0.2 * torch.rand(*shape, 1)) - 1


def draws_of_a_path() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless batches (x, t, u) of new points; the path is walked for many batches at once, and no
    draw is used twice.
    """
    while True:
        x0, x1 = (law(POOL, BATCH).flatten(0, 1) for law in (eight_gaussians, moons))
        t = draws.uniform_time(len(x1))
        x_t, u_t = LINEAR.interpolate(x0, x1, t)
        x = x_t + SIGMA * torch.randn_like(x_t)
        yield from zip(x.split(BATCH), t.split(BATCH), u_t.split(BATCH))


def tutorial_step(
    matcher,
    model: nn.Module,
    sample_x0: Callable[[int], Tensor],
    sample_x1: Callable[[int], Tensor],
) -> Step:
    """One step of torchcfm's Flow_matching_tutorial, on its own matcher and network."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)

    def step() -> None:
        optimizer.zero_grad()
        t, x_t, u_t = matcher.sample_location_and_conditional_flow(
            sample_x0(BATCH), sample_x1(BATCH)
        )
        loss = torch.mean((model(torch.cat([x_t, t[:, None]], dim=-1)) - u_t) ** 2)
        loss.backward()
        optimizer.step()

    return step


def plain_step(model: nn.Module) -> Step:
    """The loop one would write on a blackboard, with the library's path and loss."""
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=LR, fused=True)
    batches = draws_of_a_path()

    def step() -> None:
        x, t, u = next(batches)
        loss = losses.flow_matching(model(x, t), u)
        # optimizer.zero_grad() without its entry for the profiler, 5 % of a step
        for p in parameters:
            p.grad = None
        loss.backward()
        optimizer.step()

    return step


def trainer_step(model: nn.Module) -> Step:
    """The library's own loop; the coupling puts the eight Gaussians where the objective has drawn
    noise.
    """
    current: list[Tensor] = []

    def data() -> Iterator[Tensor]:
        for x0, x1 in pairs():
            current[:] = [x0]
            yield x1

    objective = Objective(model, couple=lambda x0, x1, y: (current[0], x1, y))
    trainer = Trainer(objective, torch.optim.Adam(model.parameters(), lr=LR, fused=True))
    return partial(next, trainer.run(data(), steps=10**9))


def careful_step(model: nn.Module) -> Step:
    """What the Trainer does, as a plain loop: it draws at every step from a generator of that step,
    clips, and averages.
    """
    parameters = list(model.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.Adam(parameters, lr=LR, fused=True)
    batches = pairs()
    count = 0

    def step() -> None:
        nonlocal count
        x0, x1 = next(batches)
        generator = torch.Generator().manual_seed(count)
        torch.randn(x1.shape, generator=generator)  # noise, in whose place x0 is put
        t = draws.uniform_time(BATCH, generator=generator)
        x_t, u_t = LINEAR.interpolate(x0, x1, t)
        loss = losses.flow_matching(model(x_t, t), u_t)
        for p in parameters:
            p.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - min(0.999, (1 + count) / (10 + count)))
        count += 1

    return step


def pairs() -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches (x0, x1) of both laws, drawn many at once."""
    while True:
        yield from zip(eight_gaussians(POOL, BATCH), moons(POOL, BATCH))


def compiled_step(model: nn.Module) -> Step:
    """Loss, gradient and Adam as one compiled graph on one flat vector of parameters; the first
    call compiles.
    """
    shapes = {name: p.shape for name, p in model.named_parameters()}
    w = torch.cat([p.detach().flatten() for p in model.parameters()])
    mean, square = torch.zeros_like(w), torch.zeros_like(w)
    k, batches = torch.zeros(()), draws_of_a_path()

    def loss(w: Tensor, x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        parts = w.split([shape.numel() for shape in shapes.values()])
        parameters = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts)}
        return losses.flow_matching(torch.func.functional_call(model, parameters, (x, t)), u)

    @torch.compile(fullgraph=True, dynamic=False)
    def update(w: Tensor, mean: Tensor, square: Tensor, k: Tensor, *batch: Tensor) -> Tensor:
        gradient, value = torch.func.grad_and_value(loss)(w, *batch)
        k.add_(1)
        mean.lerp_(gradient, 1 - 0.9)
        square.lerp_(gradient.square(), 1 - 0.999)
        w.sub_(LR / (1 - 0.9**k) * mean / ((square / (1 - 0.999**k)).sqrt() + 1e-8))
        return value

    def step() -> None:
        update(w, mean, square, k, *next(batches))

    return step


def bare_products() -> Step:
    """The floor: the matrix products of one step, forward and backward, and nothing else."""
    sizes = [3, WIDTH, WIDTH, WIDTH, 2]
    inputs = [torch.randn(BATCH, size) for size in sizes]
    weights = [torch.randn(a, b) for a, b in pairwise(sizes)]

    def step() -> None:
        for x, w, out in zip(inputs, weights, inputs[1:]):
            torch.mm(x, w)
            torch.mm(x.T, out)
        for w, out in zip(weights[1:], inputs[2:]):
            torch.mm(out, w.T)

    return step
