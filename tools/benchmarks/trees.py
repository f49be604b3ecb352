"""An older tree of this repository against this one: `python -m tools.benchmarks trees`.

Each tree has a process of its own, because a process can hold only one package of a name. The two
work in turn, never at once: a line on its input asks a process for one block of a case. So other
work on the machine slows both alike. A loss is a ratio whose whole interval lies below the goal.

This file runs inside both trees, so its cases use only names that both have.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parents[2]
OLD = "118e749"  # the last commit before the rooms of the second edition
Call = Callable[[], object]


def rows(clock: Any) -> Iterator[Any]:
    """One row a case: the old tree's time over ours, and its 95 % interval over the rounds."""
    from tools.benchmarks.harness import Row, unpacked

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        trees = {"old": unpacked(OLD, Path(folder)), "new": HERE}
        sides = {side: stack.enter_context(Worker(tree)) for side, tree in trees.items()}
        for name in CASES:
            times = clock({side: ask.block(name) for side, ask in sides.items()}, repeats=21)
            old, new = (np.array(times.seconds[side]) for side in ("old", "new"))
            low, high = interval(old / new)
            yield Row(
                f"trees, {name}: over {OLD}",
                float(np.median(old / new)),
                float(old.min() / new.min()),
                ">=",
                0.97,
                times=times.medians("new", "old"),
                minima=times.minima("new", "old"),
                repeats=times.repeats,
                note=f"95 % interval {low:.3f} to {high:.3f}",
            )


def interval(ratios: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median of `ratios` (n,)."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (draws, len(ratios))), axis=1)
    return float(np.quantile(medians, 0.025)), float(np.quantile(medians, 0.975))


class Worker:
    """A process that imports the package of `tree` and runs the cases that it is asked for."""

    def __init__(self, tree: Path) -> None:
        threads = str(torch.get_num_threads())
        self.process = subprocess.Popen(
            [sys.executable, __file__, threads],
            env={**os.environ, "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"},
            cwd=tree,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate()

    def block(self, name: str) -> Call:
        """Runs one block of the case `name` in the process, and waits for its end."""

        def side() -> None:
            assert self.process.stdin
            assert self.process.stdout
            print(name, file=self.process.stdin, flush=True)
            if not self.process.stdout.readline():
                raise RuntimeError(f"the process of {self.process.args} ended in case {name!r}")

        return side


def _serve() -> None:
    # an editable install would lend an old tree the modules that it lacks
    own = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
    sys.meta_path[:] = own
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(sys.argv[1]))
    ready: dict[str, Call] = {}
    for line in sys.stdin:
        make, calls = CASES[name := line.strip()]
        if name not in ready:
            torch.manual_seed(0)
            ready[name] = make()
        for _ in range(calls):
            ready[name]()
        print("done", flush=True)


def _points(kind: str, **more: Any) -> Call:
    from cfm_lite import models

    return _steps(kind, models.MLP(2, num_classes=2), torch.randn(4096, 2), 256, more)


def _latents(kind: str, **more: Any) -> Call:
    from cfm_lite import models

    model = models.SiT(16, 2, 4, hidden_size=64, depth=4, num_heads=4, num_classes=2)
    return _steps(kind, model, torch.randn(256, 4, 16, 16), 32, more)


def _steps(kind: str, model: Any, x1: torch.Tensor, size: int, more: dict[str, Any]) -> Call:
    from cfm_lite import objective
    from cfm_lite.data import batches
    from cfm_lite.training import Trainer

    trainer = Trainer(getattr(objective, kind)(model, **more))
    y = torch.randint(2, (len(x1),))
    log = trainer.run(batches.batches(x1, y, size=size), steps=10**6)
    return lambda: next(log)


def _save() -> Call:
    from cfm_lite import models, objective
    from cfm_lite.training import Trainer

    trainer = Trainer(objective.fm(models.MLP(2, hidden_size=512, num_classes=2)))
    folder = Path(tempfile.mkdtemp())
    return lambda: (trainer.save(folder / "step"), shutil.rmtree(folder / "step"))


def _sampled(solver: str) -> Call:
    from cfm_lite import guidance, models, samplers

    model = models.MLP(2, num_classes=2).requires_grad_(False)
    velocity = guidance.cfg(model, torch.zeros(256, dtype=torch.long), 2.0)
    x, times = torch.randn(256, 2), torch.linspace(0, 0.96, 33)
    return lambda: getattr(samplers, solver)(velocity, x, times)


def _dispersive() -> Call:
    from cfm_lite import losses

    h = torch.randn(256, 4096, requires_grad=True)
    return lambda: torch.autograd.grad(losses.dispersive(h), h)


def _negatives() -> Call:
    from cfm_lite import negatives
    from cfm_lite.paths import FlowSample

    x, t, y = torch.randn(4096, 2), torch.rand(4096), torch.randint(10, (4096,))
    sample = FlowSample(x, x, t, x, x, y)
    draw = torch.Generator().manual_seed(0)
    return lambda: negatives.other_class(sample, generator=draw)


def _exact() -> Call:
    from cfm_lite import theory
    from cfm_lite.data import toy

    mixture = toy.mixture("two_classes")
    x, t = torch.randn(4096, 2), torch.rand(4096)
    return lambda: theory.optimal_velocity(mixture, x, t, method="delta_fm", weight=0.05)


def _measured(name: str, *more: Any) -> Call:
    from cfm_lite import metrics

    real, fake = torch.randn(2000, 64), torch.randn(2000, 64)
    return lambda: getattr(metrics, name)(real, fake, *more)


# the name of each: what makes its call, and how many calls a block has
CASES: dict[str, tuple[Callable[[], Call], int]] = {
    "step, points, FM": (partial(_points, "fm"), 50),
    "step, points, ΔFM": (partial(_points, "delta_fm"), 50),
    "step, points, VeCoR": (partial(_points, "vecor"), 50),
    "step, SiT, FM": (partial(_latents, "fm"), 2),
    "step, SiT, VeCoR": (partial(_latents, "vecor"), 2),
    "step, SiT, dispersive": (partial(_latents, "dispersive"), 2),
    "save": (_save, 2),
    "sample, guided": (partial(_sampled, "sample"), 4),
    "sample by the SDE, guided": (partial(_sampled, "sample_sde"), 4),
    "dispersive, 256 x 4,096": (_dispersive, 10),
    "negatives of another class, 4,096": (_negatives, 50),
    "exact velocity, 4,096": (_exact, 20),
    "precision and recall, 2,000 x 64": (partial(_measured, "precision_recall"), 1),
    "Fréchet distance, 2,000 x 64": (partial(_measured, "frechet"), 5),
    "sliced Wasserstein, 2,000 x 64": (partial(_measured, "sliced_wasserstein"), 2),
}

if __name__ == "__main__":
    _serve()
