"""Precision and recall at the size of a published number: 50,000 samples, 10,000 real images, 2,048
features of each.

The other side takes every distance in float64, as the definition says and as the results of ours
are. The features are made: rectified mixtures of 64 hidden numbers, so that they lie near a surface
of few dimensions, as a network's features do.
"""

import resource
import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from cfm_lite import metrics
from tools.benchmarks.harness import Clock, Row, count, faster

WIDTH, HIDDEN = 2048, 64


def rows(clock: Clock) -> Iterator[Row]:
    """The whole size once, because it takes minutes; a tenth of it with a quick clock.

    The ratio is taken on few rows.
    """
    samples, real = (5_000, 1_000) if clock.quick else (50_000, 10_000)
    fake, held = features(samples, 1), features(real, 2)
    before, began, spent = _peak(), time.perf_counter(), time.process_time()
    metrics.precision_recall(held, fake, progress=sys.stderr.isatty())
    minutes, cores = (time.perf_counter() - began) / 60, (time.process_time() - spent) / 60
    name = f"precision and recall, {samples:,} x {real:,} x {WIDTH:,}"
    note = "on a busy machine other programs have their share of it; the core minutes are its own"
    yield count(
        f"{name}, {torch.get_num_threads()} threads: minutes",
        minutes,
        goal=10.0,
        unit=" min",
        note=note,
    )
    yield count(f"{name}: core minutes", cores, goal=20.0, unit=" min")
    yield count(
        f"{name}: memory beyond the features", (_peak() - before) / 2**30, goal=2.0, unit=" GiB"
    )
    few = features(600, 3), features(400, 4)
    times = clock(
        {"ours": lambda: metrics.precision_recall(*few), "float64": lambda: direct(*few)}, repeats=7
    )
    yield faster(
        f"precision and recall, 600 x 400 x {WIDTH:,}: over float64 throughout",
        times,
        "ours",
        "float64",
    )


def features(n: int, seed: int) -> Tensor:
    """Made-up features (n, 2048) float32, all from one distribution."""
    mix = torch.randn(HIDDEN, WIDTH, generator=torch.Generator().manual_seed(0)) / HIDDEN**0.5
    generator = torch.Generator().manual_seed(seed)
    return torch.cat(
        [
            torch.randn(min(1000, n - i), HIDDEN, generator=generator) @ mix
            for i in range(0, n, 1000)
        ]
    ).relu_()


def direct(real: Tensor, fake: Tensor, k: int = 3) -> tuple[Tensor, Tensor]:
    """The definition, every distance in float64."""
    real, fake = real.double(), fake.double()
    radii = [
        torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").kthvalue(k + 1, dim=1).values
        for x in (real, fake)
    ]
    across = torch.cdist(fake, real, compute_mode="donot_use_mm_for_euclid_dist")
    return (across <= radii[0]).any(1).double().mean(), (across <= radii[1][:, None]).any(
        0
    ).double().mean()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
