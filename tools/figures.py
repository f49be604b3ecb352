"""The README's moving picture: python -m tools.figures

The same noise is carried to two classes that lie close together, by FM's exact field and by ΔFM's.
Nothing is trained and nothing is random but the seeded noise. Writes
data/results/fm_against_repulsion.webp, and the numbers in it beside it as .json.
"""

from pathlib import Path

import torch
from torch import Tensor

from cfm_lite import samplers, theory, viz
from cfm_lite.draws import keyed_generator
from cfm_lite.runs import write_json
from tools import animation

RESULTS = Path(__file__).resolve().parents[1] / "data" / "results"
WEIGHT = 0.35
CENTRES = torch.tensor([[-0.55, 2.0], [0.55, 2.0]], dtype=torch.float64)
SPREAD = 0.35
CLOSE_CLASSES = theory.GaussianMixture([0.5, 0.5], CENTRES, [SPREAD, SPREAD])
LIMITS = (-2.35, 2.35, -1.8, 2.9)
LOOKS = {"fm": "FM learns where to go", "delta_fm": "ΔFM learns also where not to go"}


def velocity(method: str, y: Tensor, weight: float = WEIGHT) -> viz.Velocity:
    """The exact optimum of `method` for labels `y` (B,)."""
    return lambda x, t: theory.optimal_velocity(
        CLOSE_CLASSES, x, t, y, method=method, weight=weight
    )


def push(y: Tensor, weight: float = WEIGHT) -> viz.Velocity:
    """What ΔFM adds to FM: weight (v - E[u_neg]) / (1 - weight)."""
    both, attract = velocity("delta_fm", y, weight), velocity("fm", y, weight)
    return lambda x, t: both(x, t) - attract(x, t)


def rows(n: int = 4096, steps: int = 100) -> list[dict]:
    """How far apart the classes end, how wide each is, and which share lies nearer to the other
    one.
    """
    y = torch.arange(2 * n) % 2
    x0 = torch.randn(
        n, 2, generator=keyed_generator("cpu", 0, "moving picture, numbers"), dtype=torch.float64
    ).repeat_interleave(2, 0)
    place = {
        "dataset": "close_classes",
        "seed": 0,
        "steps": 0,
        "nfe": samplers.evaluations("heun", steps).nfe,
        "sampler": "heun",
        "weight": WEIGHT,
        "samples": 2 * n,
    }
    found = [
        {
            **place,
            "method": "real",
            "metric": "class_gap",
            "value": float(CENTRES[1, 0] - CENTRES[0, 0]),
        },
        {**place, "method": "real", "metric": "class_spread", "value": SPREAD},
    ]
    for method in LOOKS:
        ends = samplers.sample(
            velocity(method, y), x0, torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        )
        left, right = ends[y == 0, 0], ends[y == 1, 0]
        values = {
            "class_gap": right.mean() - left.mean(),
            "class_spread": torch.cat([left - left.mean(), right - right.mean()]).std(),
            "nearer_to_the_other": ((left > 0).double().mean() + (right < 0).double().mean()) / 2,
        }
        found += [
            {**place, "method": method, "metric": name, "value": float(value)}
            for name, value in values.items()
        ]
    return found


def notes(measured: list[dict]) -> dict[str, str]:
    """What stands in each panel at the end."""
    at = {(row["method"], row["metric"]): row["value"] for row in measured}
    share = {
        method: f"{100 * at[method, 'nearer_to_the_other']:.1f} % lie nearer to the other class"
        for method in LOOKS
    }
    gap, wide = (
        f"({at['delta_fm', name]:.2f}, data {at['real', name]:.2f})"
        for name in ("class_gap", "class_spread")
    )
    return {
        "fm": f"Like the data:\n{share['fm']}",
        "delta_fm": f"λ = {WEIGHT:g}: {share['delta_fm']},\nbut they are too far apart {gap}\n"
        f"and too narrow {wide}",
    }


def films(
    ts: Tensor, notes: dict[str, str], n: int = 45, seed: int = 3
) -> tuple[list[animation.Film], Tensor]:
    """Both films of `n` noise points, each sent to both classes, and the labels (2n,); arrows on
    the first pair.
    """
    noise = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise[0] = torch.tensor([0.1, -1.0])  # in the middle, where the arrows are easiest to read
    x0, y = noise.repeat_interleave(2, 0), torch.arange(2 * n) % 2
    looks = {
        method: {"color": viz.METHOD_COLORS[method], "note": notes[method], "marked": (0, 1)}
        for method in LOOKS
    }
    plain = animation.film(LOOKS["fm"], velocity("fm", y), x0, ts, **looks["fm"])
    repelled = animation.film(
        LOOKS["delta_fm"], velocity("fm", y), x0, ts, repel=push(y), **looks["delta_fm"]
    )
    return [plain, repelled], y


def density(label: int) -> viz.Density:
    """The log density of one class of the data."""
    return lambda x: CLOSE_CLASSES.log_prob(
        x, torch.ones(len(x), dtype=x.dtype), torch.full((len(x),), label)
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    measured = rows()
    write_json(RESULTS / "fm_against_repulsion.json", measured)
    ts = torch.linspace(0, 1, 51, dtype=torch.float64)
    both, labels = films(ts, notes(measured))
    pictures = animation.frames(
        both, ts, LIMITS, classes=labels, densities=[density(0), density(1)]
    )
    animation.save_animation(
        pictures, RESULTS / "fm_against_repulsion.webp", fps=20, hold=(1.0, 2.0)
    )
