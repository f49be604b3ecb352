"""Images trained per second on MNIST: the U-Net of the recipe `mnist` against those of torchcfm and
diffusers, and a SiT of ours. A step is forward, backward and AdamW on a batch of the recipe; the
note of a row tells its size. The last row of each kind is the same U-Net, compiled.

All networks have the same number of parameters within 5 % and take 28 x 28 pixels as they are,
without a border. The U-Nets have attention where the side is 7 alone. Ours works on patches of 2 x 2
pixels, the other two on single pixels, as they are published: they do more work with as many
parameters. So the ratio says what a choice of network costs; `unet_quality` says what the work is
worth. The others keep torch's own layout of memory: in channels_last, as ours, they are no faster.
"""

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cfm_lite import losses
from cfm_lite.engine.compiled import compile_parts, is_compiled
from cfm_lite.errors import CFMError, ConfigError
from cfm_lite.runs.recipe import AUTO, build_model, precision_on, recipe
from tools.benchmarks.harness import CannotRun, Clock, NotRun, Row, faster, peer

SIDE, CLASSES = 28, 10
RECIPE = recipe("mnist")
# half the width and half the depth of mnist_sit: as many parameters as the U-Net
SIT = recipe("mnist_sit", hidden_size=96, depth=3)
COMPILED = "U-Net, a compiled step"
NAMES = {
    "torchcfm": "torchcfm's U-Net",
    "diffusers": "diffusers' UNet2DModel",
    "sit": "our SiT of equal parameters",
}


def rows(clock: Clock) -> Iterator[Row | NotRun]:
    """The rows, each with its goal: on the threads that were asked for, and on all cores."""
    models, missing = networks()
    yield from missing
    batch, compiled = made_batch(), copy.deepcopy(models["ours"])
    try:
        can_compile = is_compiled(True, compiled, torch.device("cpu"))
        compile_parts(compiled)
    except ConfigError as error:
        can_compile = False
        yield NotRun(COMPILED, str(error))
    for threads in dict.fromkeys((torch.get_num_threads(), all_cores())):
        for precision in dict.fromkeys(("float32", precision_on(models["ours"], AUTO))):
            steps = {name: step(model, batch, precision) for name, model in models.items()}
            with on_threads(threads):
                if can_compile:
                    steps["compiled"] = step(compiled, batch, precision)
                times = clock(steps, repeats=7, block=1.0)
            where = f"{precision}, {threads} thread{'s' * (threads > 1)}"
            for other in list(models)[1:]:
                yield faster(
                    f"U-Net, images trained, {where}: over {NAMES[other]}",
                    times,
                    "ours",
                    other,
                    None if other == "sit" else 1.0,
                    note=_note(times.medians("ours", other), models),
                )
            if can_compile:
                yield faster(f"{COMPILED}, {where}: over as it is", times, "compiled", "ours")


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


def made_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Random images, times and labels: a step takes as long on these as on digits."""
    size = RECIPE.batch
    return torch.randn(size, 1, SIDE, SIDE), torch.rand(size), torch.randint(CLASSES, (size,))


def step(
    model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], precision: str
) -> Callable[[], None]:
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
