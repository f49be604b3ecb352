"""How a small classifier of real images learns: a judge of samples, or a small teacher for REPA.

Shifts and noise widen a small data set. With one cycle of the learning rate one seed gives one
network.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import safetensors
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from cfm_lite._internal.checks import load_weights
from cfm_lite._internal.networks import made_in_float32, seeded
from cfm_lite.errors import CFMError

__all__ = ["UNREADABLE", "JudgeSettings", "fit_classifier", "one_thread", "restored", "trained"]

# what a damaged file of weights raises
UNREADABLE = (safetensors.SafetensorError, CFMError, OSError, KeyError, ValueError, RuntimeError)
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class JudgeSettings:
    """What a judge is and how it learns.

    `size` is that of the image. The first layer has `stride` and `channels`, and those after it
    twice as many channels.
    """

    size: int
    stride: int
    channels: int
    epochs: int
    batch: int
    shift: int = 1  # pixels that an image may move by, in each direction
    noise: float = 0.1
    smoothing: float = 0.1
    learning_rate: float = 5e-3  # the peak of one cycle
    weight_decay: float = 0.05
    # left out of the name of a judge's file, which is older than colour
    colours: int = field(default=1, repr=False)
    classes: int = field(default=10, repr=False)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run with one thread: small layers gain little from two, and two sum in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _shifted(x: Tensor, by: int, generator: Generator) -> Tensor:
    """Each image of `x` (B, C, S, S) moved by up to `by` pixels along both axes, over -1."""
    padded = F.pad(x, (by, by, by, by), value=-1.0).movedim(1, -1)  # (B, S + 2 by, S + 2 by, C)
    top, left = torch.randint(2 * by + 1, (2, len(x)), generator=generator, device="cpu")
    steps = torch.arange(x.shape[-1], device="cpu")
    rows, columns = top[:, None] + steps, left[:, None] + steps  # (B, S)
    each = torch.arange(len(x), device="cpu")[:, None, None]
    return padded[each, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def fit_classifier(
    judge: nn.Module, x: Tensor, y: Tensor, settings: JudgeSettings, generator: Generator
) -> None:
    """Train a classifier (images -> logits) by `settings`, and freeze it.

    Shifts and noise are drawn from `generator`.
    """
    batch = min(settings.batch, len(x))
    steps = settings.epochs * (len(x) // batch)
    optimizer = torch.optim.AdamW(
        judge.parameters(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=steps + 1
    )
    for _ in range(settings.epochs):
        order = torch.randperm(len(x), generator=generator, device="cpu")
        for rows in order[: len(x) // batch * batch].split(batch):
            images = _shifted(x[rows], settings.shift, generator)
            noise = torch.randn(
                images.shape, generator=generator, device="cpu", dtype=torch.float32
            )
            images = images + settings.noise * noise
            loss = F.cross_entropy(judge(images), y[rows], label_smoothing=settings.smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    judge.requires_grad_(False).eval()


@made_in_float32()
def trained(
    make: Callable[[], Network], x: Tensor, y: Tensor, settings: JudgeSettings, seed: int
) -> Network:
    """What `make` builds, trained on one thread and frozen; one seed gives one network.

    The global random state stays as it was.
    """
    with seeded(seed):
        network = make()
    with one_thread():
        fit_classifier(network, x, y, settings, torch.Generator().manual_seed(seed))
    return network


@made_in_float32()
def restored(
    path: Path, make: Callable[[Mapping[str, str]], Network]
) -> tuple[Network, Mapping[str, str]]:
    """(what `make` builds from the facts in a file, with the file's weights; these facts), frozen.

    Raises one of UNREADABLE for a damaged file.
    """
    with safetensors.safe_open(path, "pt") as file:
        facts, names = file.metadata() or {}, file.keys()  # the file is not a mapping
        weights = {name: file.get_tensor(name) for name in names}
    with torch.random.fork_rng(devices=[]):  # the initial weights are replaced
        network = make(facts)
    load_weights(network, weights, "it")
    return network.requires_grad_(False).eval(), facts
