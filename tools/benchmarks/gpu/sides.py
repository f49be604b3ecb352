"""Both sides of a training step: ours, and the official program's, from our own parts or from a
folder that the user gives.
"""

import contextlib
import copy
import importlib
import itertools
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cfm_lite.engine.compiled import blocks_of
from cfm_lite.errors import ConfigError
from cfm_lite.models import SiT
from cfm_lite.objective import Objective
from cfm_lite.runs.imagenet import MODELS
from cfm_lite.training import Trainer
from tools.benchmarks.gpu.plan import Bench
from tools.benchmarks.harness import CannotRun
from tools.benchmarks.sit import official_style

__all__ = [
    "OfficialStep",
    "batches",
    "compiled",
    "network",
    "official",
    "plain_loss",
    "select",
    "stepping",
    "trainer",
]

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def network(bench: Bench, name: str, **changes: Any) -> SiT:
    """A SiT on the device whose every weight is random: what is zero costs less power, and the
    clocks would rise.
    """
    settings = {
        "input_size": bench.plan.side,
        "num_classes": bench.plan.classes,
        **MODELS[name],
        **changes,
    }
    with torch.device(bench.device):
        model = SiT(**settings).to(bench.device)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p), alpha=0.02)
    return model


def compiled(bench: Bench, model: SiT) -> SiT:
    """The model with its blocks compiled, as a run's are on CUDA by default: one graph for all of
    them.
    """
    for block in blocks_of(model) if bench.compiles else ():
        block.compile(dynamic=False, backend=bench.plan.backend)
    return model


def trainer(objective: Objective, rows: int, micro: int, **changes: Any) -> Trainer:
    """A trainer with everything switched on: clip, fused AdamW, average, guard, bf16; `compiled`
    says whether blocks are compiled.
    """
    settings = {
        "lr": 1e-4,
        "clip": 1.0,
        "ema_decay": 0.9999,
        "precision": "bf16",
        "log_every": 100,
        "compile": False,
        **changes,
    }
    return Trainer(objective, accumulate=rows // micro, **settings)


def batches(
    bench: Bench, rows: int, context: tuple[int, ...] = (), kept: int = 4
) -> list[tuple[Tensor, ...]]:
    """`kept` batches of random latents and labels that lie on the device, and a context in bf16
    where its dims are given.
    """
    plan, device = bench.plan, bench.device
    made = []
    for _ in range(kept):
        x1 = torch.randn(rows, 4, plan.side, plan.side, device=device)
        y = torch.randint(plan.classes, (rows,), device=device)
        features = (
            (torch.randn(rows, *context, device=device, dtype=torch.bfloat16),) if context else ()
        )
        made.append((x1, y, *features))
    return made


def stepping(built: Trainer, data: list[tuple[Tensor, ...]]) -> Callable[[], Any]:
    """One training step a call, as `Trainer.run` makes it, over the batches in turn."""
    source: Iterator[Any] = built.run(itertools.cycle(data), 10**9)
    return lambda: next(source)


def select(built: Trainer, objective: Objective) -> None:
    """Train the same model, with the same optimizer and average, by another objective."""
    built.objective = built._wrapped = built._forward = objective
    objective.train()


class OfficialStep:
    """The official program's training step: un-fused AdamW, an average tensor by tensor in Python,
    a number read back every time.
    """

    def __init__(self, model: nn.Module, loss: Loss, micro: int) -> None:
        self.model, self.loss, self.micro, self.running = model, loss, micro, 0.0
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0)
        self.ema = copy.deepcopy(model).requires_grad_(False)

    def __call__(self, x1: Tensor, y: Tensor, *, half: bool = False) -> None:
        self.optimizer.zero_grad()
        for x, labels in zip(x1.split(self.micro), y.split(self.micro)):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
                loss = self.loss(self.model, x, labels)
            (loss * (len(x) / len(x1))).backward()
        self.optimizer.step()
        self._average()
        self.running += loss.item()

    @torch.no_grad()
    def _average(self, decay: float = 0.9999) -> None:
        averaged = OrderedDict(self.ema.named_parameters())
        for name, p in OrderedDict(self.model.named_parameters()).items():
            averaged[name].mul_(decay).add_(p.data, alpha=1 - decay)


def plain_loss(null: int) -> Loss:
    """Flow matching with times drawn on the host; one label of ten becomes `null`."""

    def loss(model: nn.Module, x1: Tensor, y: Tensor) -> Tensor:
        t = torch.rand(len(x1)).to(x1)
        x0, s = torch.randn_like(x1), t.view(-1, 1, 1, 1)
        v = model(
            s * x1 + (1 - s) * x0,
            t,
            torch.where(torch.rand(len(y), device=y.device) < 0.1, null, y),
        )
        return (v - (x1 - x0)).square().flatten(1).mean(1).mean()

    return loss


def official(bench: Bench, ours: SiT, name: str) -> tuple[nn.Module, Loss, str]:
    """(the other side's network with our weights, its loss, where it comes from)."""
    if bench.official is None:
        with torch.device(bench.device):
            style = official_style(ours.config)
        model, loss, source = (
            style,
            plain_loss(bench.plan.classes),
            "the official style, built from timm's parts",
        )
    else:
        model, loss, source = _from_folder(bench, name)
    model = model.to(bench.device).train()
    model.load_state_dict(ours.state_dict())
    return model, loss, source


def _from_folder(bench: Bench, name: str) -> tuple[nn.Module, Loss, str]:
    """The official SiT repository in the user's folder; CannotRun where it is something else."""
    folder = Path(str(bench.official)).resolve()
    with _first_on_path(folder):
        try:
            models, transport = (
                importlib.import_module("models"),
                importlib.import_module("transport"),
            )
            model = models.SiT_models[name](
                input_size=bench.plan.side, num_classes=bench.plan.classes
            )
            flow = transport.create_transport("Linear", "velocity", None, None, None)
        except Exception as error:  # another program fails in its own ways
            raise CannotRun(
                f"{folder} is not an official SiT that can be imported ({type(error).__name__}: "
                f"{error})"
            ) from error
    return (
        model,
        lambda net, x, y: flow.training_losses(net, x, {"y": y})["loss"].mean(),
        f"the official program in {folder.name}",
    )


@contextlib.contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    if not folder.is_dir():
        raise ConfigError(
            f"--official {folder} is not a folder; give that of the official SiT repository."
        )
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
