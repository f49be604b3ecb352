"""Images trained per second on MNIST: the U-Net of the recipe `mnist` against those of torchcfm and
diffusers, and a SiT of ours. A step is forward, backward and AdamW on a batch of the recipe; the
note of a row tells its size. Other rows hold our network against itself: compiled, and two steps in
two processes with a thread each against two steps with two threads.

All networks have the same number of parameters within 5 % and take 28 x 28 pixels as they are,
without a border. The U-Nets have attention where the side is 7 alone. Ours works on patches of 2 x 2
pixels, the other two on single pixels, as they are published: they do more work with as many
parameters. So the ratio says what a choice of network costs; `unet_quality` says what the work is
worth. The others keep torch's own layout of memory: in channels_last, as ours, they are no faster.
"""

import copy
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cfm_lite import losses
from cfm_lite.engine.compiled import compile_parts
from cfm_lite.errors import CFMError
from cfm_lite.runs.recipe import AUTO, build_model, precision_on, recipe
from tools.benchmarks.harness import CannotRun, Clock, NotRun, Row, compiling, faster, peer

SIDE, CLASSES = 28, 10
RECIPE = recipe("mnist")
# half the width and half the depth of mnist_sit: as many parameters as the U-Net
SIT = recipe("mnist_sit", hidden_size=96, depth=3)
Batch = tuple[Tensor, Tensor, Tensor]  # images, times, labels
NAMES = {
    "torchcfm": "torchcfm's U-Net",
    "diffusers": "diffusers' UNet2DModel",
    "sit": "our SiT of equal parameters",
}


def rows(clock: Clock) -> Iterator[Row | NotRun]:
    """The rows, each with its goal: on the threads that were asked for, and on all cores."""
    models, missing = networks()
    yield from missing
    batch = made_batch()
    for threads in dict.fromkeys((torch.get_num_threads(), all_cores())):
        for precision in dict.fromkeys(("float32", precision_on(models["ours"], AUTO))):
            steps = {name: step(model, batch, precision) for name, model in models.items()}
            where = f"{precision}, {threads} thread{'s' * (threads > 1)}"
            with on_threads(threads):
                times = clock(steps, repeats=7, block=1.0)
            for other in list(models)[1:]:
                yield faster(
                    f"U-Net, images trained, {where}: over {NAMES[other]}",
                    times,
                    "ours",
                    other,
                    None if other == "sit" else 1.0,
                    note=_note(times.medians("ours", other), models),
                )
            yield compiled(clock, models["ours"], batch, precision, threads, where)
    yield in_processes(clock, models["ours"], batch, precision, all_cores())


def compiled(
    clock: Clock, model: nn.Module, batch: Batch, precision: str, threads: int, where: str
) -> Row | NotRun:
    """A step of the compiled network over the same step as it is."""
    name, twin = f"U-Net, a compiled step, {where}", copy.deepcopy(model)
    compile_parts(twin)
    sides = {
        "compiled": step(twin, batch, precision),
        "as it is": step(model, batch, precision),
    }
    with on_threads(threads):
        try:
            note = f"the first compiled step takes {compiling(sides['compiled']):.0f} s"
        except CannotRun as error:
            return NotRun(name, str(error))
        times = clock(sides, repeats=7, block=1.0)
    return faster(f"{name}: over as it is", times, "compiled", "as it is", 1.0, note=note)


def in_processes(
    clock: Clock, model: nn.Module, batch: Batch, precision: str, count: int
) -> Row | NotRun:
    """`count` steps, one in each of as many processes with one thread, over as many steps of one
    process with `count` threads: what two trainings of the lab gain by not sharing their threads.
    """
    name = f"U-Net, {count} processes of 1 thread, {precision}"
    if count == 1:
        return NotRun(name, "this machine has one core")
    one = step(model, batch, precision)

    def threaded() -> None:
        for _ in range(count):
            one()

    with ExitStack() as open_ones, on_threads(count):
        pipes = [open_ones.enter_context(_stepping(precision)) for _ in range(count)]

        def spread() -> None:
            for pipe in pipes:
                pipe.send(True)
            for pipe in pipes:
                pipe.recv()

        times = clock({"processes": spread, "threads": threaded}, repeats=7, block=1.0)
    return faster(f"{name}: over {count} threads", times, "processes", "threads", 1.0)


@contextmanager
def _stepping(precision: str) -> Iterator[Connection]:
    """A process that makes a step for each thing that it is sent, and sends None when it is done."""
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    process = context.Process(target=_work, args=(its, precision), daemon=True)
    process.start()
    its.close()
    try:
        yield mine
    finally:
        mine.close()
        process.join()


def _work(pipe: Connection, precision: str) -> None:
    torch.set_num_threads(1)
    one = step(build_model(RECIPE, Mnist()), made_batch(), precision)
    with suppress(EOFError):
        while pipe.recv():
            one()
            pipe.send(None)


def _note(seconds: Mapping[str, float], models: Mapping[str, nn.Module]) -> str:
    sides = (
        f"{name} {RECIPE.batch / took:.0f} images/s with {parameters(models[name]):,} parameters"
        for name, took in seconds.items()
    )
    return f"batch {RECIPE.batch}, {SIDE} x {SIDE} pixels, no border; {', '.join(sides)}"


def all_cores() -> int:
    """The number of threads that uses the whole machine."""
    return os.cpu_count() or 1


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """With so many threads of torch inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Mnist(NamedTuple):
    """What a network must know of MNIST."""

    shape: tuple[int, ...] = (1, SIDE, SIDE)
    num_classes: int = CLASSES


def networks() -> tuple[dict[str, nn.Module], list[NotRun]]:
    """The networks by name, ours first, and the peers that are not installed. CFMError unless all
    have the same number of parameters within 5 %, for else there is nothing to compare.
    """
    models, missing = {"ours": build_model(RECIPE, Mnist())}, []
    for name, made in (("torchcfm", of_torchcfm), ("diffusers", of_diffusers)):
        try:
            models[name] = made()
        except CannotRun as error:
            missing.append(NotRun(NAMES[name], str(error)))
    models["sit"] = build_model(SIT, Mnist())
    counts = {name: parameters(model) for name, model in models.items()}
    if max(counts.values()) > 1.05 * counts["ours"] or min(counts.values()) < 0.95 * counts["ours"]:
        raise CFMError(f"the numbers of parameters differ by more than 5 %: {counts}.")
    return models, missing


def parameters(model: nn.Module) -> int:
    """The number of trained parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


class Wrapped(nn.Module):
    """The network of another library as `model(x, t, y)`; see docs/own_network.md."""

    num_classes = CLASSES

    def __init__(self, unet: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.unet, self.call = unet, call

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.call(self.unet, x, t, y)


def of_torchcfm() -> nn.Module:
    """torchcfm's U-Net. Its GroupNorm takes multiples of 32 channels, so all three levels have 32,
    with the two blocks of its CIFAR-10 example.
    """
    unet = peer("torchcfm.models.unet").UNetModel(
        (1, SIDE, SIDE),
        32,
        2,
        channel_mult=[1, 1, 1],
        # by its rule, 28 / 7: on the level whose pixels are 4 of the image's, which has a side of 7
        attention_resolutions="7",
        class_cond=True,
        num_classes=CLASSES + 1,  # one row for the null label
    )
    return Wrapped(unet, lambda unet, x, t, y: unet(t, x, y))


def of_diffusers() -> nn.Module:
    """diffusers' U-Net of three levels, as torchcfm's has: with two of them, so attention on a side
    of 14, its step takes twice as long.
    """
    unet = peer("diffusers.models.unets.unet_2d").UNet2DModel(
        sample_size=SIDE,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 32, 48),
        layers_per_block=1,
        norm_num_groups=8,
        num_class_embeds=CLASSES + 1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    return Wrapped(unet, lambda unet, x, t, y: unet(x, 1000 * t, class_labels=y).sample)


def made_batch() -> Batch:
    """Random images, times and labels: a step takes as long on these as on digits."""
    size = RECIPE.batch
    return torch.randn(size, 1, SIDE, SIDE), torch.rand(size), torch.randint(CLASSES, (size,))


def step(model: nn.Module, batch: Batch, precision: str) -> Callable[[], None]:
    """Forward, backward and one step of the optimizer that the library takes by default."""
    x, t, y = batch
    u = torch.randn_like(x)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)

    def side() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = losses.flow_matching(model(x, t, y), u)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return side
