"""How a small classifier of real images learns: the judges of samples and REPA's small teachers are
both made here.

Shifts and noise widen a small data set; one cycle of the learning rate makes one seed give one
network.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

__all__ = ["JudgeSettings", "fit_classifier", "one_thread"]


@dataclass(frozen=True)
class JudgeSettings:
    """What a judge is and how it learns: `size` of the image, `stride` of the first layer,
    `channels` there, twice as many after.
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
    colours: int = field(
        default=1, repr=False
    )  # not in the name of a judge's file, which is older than colour


@contextmanager
def one_thread() -> Iterator[None]:
    """Layers this small gain little from a second thread, wait for it on a busy machine, and sum in
    another order with it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _shifted(x: Tensor, by: int, generator: Generator) -> Tensor:
    """Each image of `x` (B, C, S, S) moved by up to `by` pixels along both axes; the background -1
    fills what comes in.
    """
    padded = F.pad(x, (by, by, by, by), value=-1.0).movedim(1, -1)  # (B, S + 2 by, S + 2 by, C)
    top, left = torch.randint(2 * by + 1, (2, len(x)), generator=generator)
    steps = torch.arange(x.shape[-1])
    rows, columns = top[:, None] + steps, left[:, None] + steps  # (B, S)
    return padded[
        torch.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None, :]
    ].movedim(-1, 1)


def fit_classifier(
    judge: nn.Module, x: Tensor, y: Tensor, settings: JudgeSettings, generator: Generator
) -> None:
    """Train a classifier (images -> logits) by `settings`, with shifts and noise drawn from
    `generator`, and freeze it.
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
        for rows in torch.randperm(len(x), generator=generator)[: len(x) // batch * batch].split(
            batch
        ):
            images = _shifted(x[rows], settings.shift, generator)
            images = images + settings.noise * torch.randn(
                images.shape, generator=generator, dtype=torch.float32
            )
            loss = F.cross_entropy(judge(images), y[rows], label_smoothing=settings.smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    judge.requires_grad_(False).eval()
