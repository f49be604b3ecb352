"""Table 1 of the dispersive-loss paper as an experiment on digits: every variant, with and without
positive pairs, over several seeds.

    python -m tools.table1      writes data/results/dispersive_digits.json (nine minutes, one core)

Arms: plain FM; each variant as a dispersive loss; its contrastive counterpart with the second
view's time drawn again ("contrastive_independent") or within 0.005 of the first
("contrastive_restricted"). All arms of one seed start from the same network and see the same
batches. Nothing is tuned per arm: weight 0.5, tau 0.5, margin 1, block 1, as the paper's defaults;
the covariance loss is a sum over feature pairs, so its weight is divided by the width. Beside the
samples' quality, rows hold what became of the features. Reference: Wang and He 2025
(arXiv:2506.09027), table 1.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cfm_lite import lab as experiments
from cfm_lite import metrics
from cfm_lite.data.datasets import DataSet, dataset
from cfm_lite.draws import keyed_generator
from cfm_lite.evaluate import judges
from cfm_lite.losses import VARIANTS
from cfm_lite.runs import facts, train, write_json
from cfm_lite.runs.recipe import Recipe, recipe

BASE = recipe("digits", hidden_size=128, batch=128, steps=700)
SEEDS = range(6)
NFE, SAMPLES = 16, 898
Row = dict[str, Any]


def arms() -> Iterator[tuple[str, str, Recipe]]:
    """(method, variant, recipe) of every arm; plain FM has no variant."""
    yield "fm", "none", BASE
    for variant in VARIANTS:
        spread = BASE.spread / BASE.hidden_size if variant == "covariance" else BASE.spread
        changes = {"variant": variant, "spread": spread}
        yield "dispersive", variant, BASE.changed(method="dispersive", **changes)
        for views in ("independent", "restricted"):
            yield (
                f"contrastive_{views}",
                variant,
                BASE.changed(method="contrastive", views=views, **changes),
            )


@torch.no_grad()
def feature_statistics(model: nn.Module, data: DataSet, block: int = 1) -> dict[str, float]:
    """What the features after `block` are like for held-out digits, each with noise and a time of
    its own, as in training.
    """
    x1, g = data.held_x1, keyed_generator("cpu", 0, "features")
    t = torch.rand(len(x1), generator=g)
    x_t = torch.lerp(torch.randn(x1.shape, generator=g), x1, t[:, None, None, None])
    h = model.forward_features(x_t, t, data.held_y, blocks=(block,))[1][block]
    unit = nn.functional.normalize(h)
    cosines = unit @ unit.T
    return {
        "feature_norm": float(h.norm(dim=1).mean()),
        "feature_cosine": float((cosines.sum() - cosines.trace()) / (len(h) * (len(h) - 1))),
        "feature_rank": float(metrics.effective_rank(h)),
        "time_share": explained(h, powers(t)),
        "time_and_label_share": explained(
            h, torch.cat([powers(t), nn.functional.one_hot(data.held_y, data.num_classes)], dim=1)
        ),
    }


def powers(t: Tensor, degree: int = 5) -> Tensor:
    """1, t, ..., t^degree of times `t` (B,) as (B, degree + 1)."""
    return t[:, None] ** torch.arange(degree + 1)


def explained(h: Tensor, causes: Tensor) -> float:
    """The share of the variance of the features `h` (B, d) that a linear map of `causes` (B, k)
    explains.
    """
    a, b = causes.double(), (h - h.mean(0)).double()
    rest = b - a @ (torch.linalg.pinv(a) @ b)
    return float(1 - rest.square().sum() / b.square().sum())


def rows_of(
    method: str, variant: str, chosen: Recipe, data: DataSet, judge: judges.Judge
) -> list[Row]:
    """Train one arm with one seed and measure it."""
    began = time.process_time()
    run = train(chosen, data, progress=False)
    seconds = time.process_time() - began
    model = run.model.eval()
    rows = experiments.rows_of(
        experiments.Arm(method, chosen.method), run, data, judge, nfes=(NFE,), n=SAMPLES
    )
    extra = {
        **feature_statistics(model, data),
        "flow_matching": held_out_loss(model, data),
        "train_seconds": seconds,
    }
    rows += [{**rows[0], "metric": name, "value": value} for name, value in extra.items()]
    return [{**row, "variant": variant} for row in rows]


@torch.no_grad()
def held_out_loss(model: nn.Module, data: DataSet, repeats: int = 8) -> float:
    """The flow-matching loss on held-out digits, with the same noise and times for every arm."""
    g, losses = keyed_generator("cpu", 0, "held-out loss"), []
    for _ in range(repeats):
        x0, t = (
            torch.randn(data.held_x1.shape, generator=g),
            torch.rand(len(data.held_x1), generator=g),
        )
        x_t = torch.lerp(x0, data.held_x1, t[:, None, None, None])
        losses.append((model(x_t, t, data.held_y) - (data.held_x1 - x0)).square().mean())
    return float(torch.stack(losses).mean())


def main() -> None:
    torch.set_num_threads(1)
    data, judge, rows, began = (
        dataset("digits"),
        judges.judge_for("digits"),
        [],
        time.process_time(),
    )
    into = Path(__file__).parent.parent / "data" / "results"
    for seed in SEEDS:
        for method, variant, chosen in arms():
            rows += rows_of(method, variant, chosen.changed(seed=seed), data, judge)
            print(
                f"seed {seed}  {method:<24} {variant:<16} {time.process_time() - began:6.0f} s",
                flush=True,
            )
        write_json(into / "dispersive_digits.json", rows)
    info = {
        "command": "python -m tools.table1",
        "recipe": BASE.as_dict(),
        "seeds": list(SEEDS),
        "samples": SAMPLES,
    }
    info |= {
        "covariance_weight": BASE.spread / BASE.hidden_size,
        "judge": judge.fingerprint,
        "cpu_seconds": time.process_time() - began,
    }
    write_json(into / "dispersive_digits.info.json", {**info, "facts": facts()})


if __name__ == "__main__":
    main()
