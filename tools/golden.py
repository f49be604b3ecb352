"""Does another tree train the same bits? `python -m tools.golden --against COMMIT [--steps N]`

Both trees run one after the other, on one thread of one machine, because bits differ between
processors. They run every recipe with every method, draw samples of each, and make the rows of a
quick trial of the lab. Weights, the optimizer's tensors, averages, the log, samples and row values
are compared as hashes. The exit code is 1 if something differs.

This file runs inside both trees, so it looks for modules under their present and their older names.
"""

import argparse
import hashlib
import importlib
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("fm", "delta_fm", "vecor", "vecor_latent", "vecor_image", "dispersive", "contrastive")
RECIPES: dict[str, dict[str, Any]] = {  # what is changed, to be quick
    "toy": {},
    "digits": {},
    "digits_sit": {"batch": 64, "shard": 32},
    "mnist": {
        "model": "sit",
        "hidden_size": 32,
        "depth": 2,
        "num_heads": 2,
        "patch_size": 7,
        "block": 1,
        "align_block": 2,
        "batch": 16,
        "shard": 8,
        "lr": 1e-3,
        "warmup": 200,
        "cooldown": 0.2,
        "ema": 0.999,
        "precision": "bf16",
        # as they were before the recipe was tuned
        "time": "uniform",
        "time_mean": 0.0,
        "label_dropout": 0.1,
    },
    "toy_all": {
        "accumulate": 2,
        "shard": 128,
        "time": "logit_normal",
        "coupling": "minibatch_ot",
        "ema2": 0.9,
        "path": "cosine",
    },
}
PRESETS = (
    "sit",
    "delta_fm",
    "vecor",
    "dispersive",
    "dispersive_torch",
    "repa",
    "repa_delta_fm",
    "repa_vecor",
)
ARMS = ("fm", "fm_retargeted", "delta_fm", "delta_fm_debiased")  # of the lab
ROW = ("method", "dataset", "seed", "steps", "nfe", "sampler", "metric", "value")


class Made:
    """Stands in for data that would be downloaded. Only the shape counts."""

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        self.shape, self.num_classes = shape, num_classes


def main() -> int:
    """Compare this tree with the commit that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.golden", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--against", metavar="COMMIT", help="the tree to compare with")
    parser.add_argument("--steps", type=int, default=200, help="training steps of each run (200)")
    parser.add_argument("--only", default="", help="cases whose name begins so, such as toy/")
    parser.add_argument("--tell", type=Path, help="write this tree's hashes to a file, and stop")
    options = parser.parse_args()
    if options.tell:
        # an editable install would lend an old tree the modules that it lacks
        own = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
        sys.meta_path[:] = own
        options.tell.write_text(json.dumps(hashes(options.steps, options.only), indent=1))
        return 0
    if not options.against:
        parser.error("--against COMMIT is missing")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        tree.mkdir()
        archive = subprocess.Popen(
            ["git", "archive", options.against], cwd=ROOT, stdout=subprocess.PIPE
        )
        subprocess.run(["tar", "-x", "-C", tree], stdin=archive.stdout, check=True)
        if archive.wait():
            return 2  # git has said why
        old, new = (told(place, Path(folder), options) for place in (tree, ROOT))
    return report(old, new)


def told(tree: Path, folder: Path, options: Any) -> dict[str, dict[str, str]]:
    """The hashes of one tree, from a process that imports that tree's package."""
    out = folder / f"{tree.name}.json"
    command = [
        sys.executable,
        __file__,
        "--tell",
        out,
        "--steps",
        str(options.steps),
        "--only",
        options.only,
    ]
    surroundings = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run(command, cwd=tree, env=surroundings, check=True)
    return json.loads(out.read_text())


def report(old: dict[str, dict[str, str]], new: dict[str, dict[str, str]]) -> int:
    """Print a line for each case, and what differs in it; 1 where something does."""
    wrong = 0
    for case in dict.fromkeys((*old, *new)):
        before, now = old.get(case, {}), new.get(case, {})
        parts = dict.fromkeys((*before, *now))
        other = [part for part in parts if before.get(part) != now.get(part)]
        wrong += bool(other)
        print(f"{case:<28} {'DIFFERS: ' if other else 'identical: '}{', '.join(other or parts)}")
    print(f"{wrong} of {len({*old, *new})} cases differ")
    return 1 if wrong or not new else 0


def hashes(steps: int, only: str = "") -> dict[str, dict[str, str]]:
    """The hashes of every case of this tree, by case and part."""
    torch.set_num_threads(1)
    found: dict[str, dict[str, str]] = {}
    for name, method in itertools.product(RECIPES, (*METHODS, "repa")):
        if (name, method) == ("mnist", "repa"):
            continue  # its teacher needs the real pictures
        if f"{name}/{method}".startswith(only):
            found[f"{name}/{method}"] = _tried(_trained, name, method, steps)
    for preset in PRESETS:
        if f"imagenet/{preset}".startswith(only):
            found[f"imagenet/{preset}"] = _tried(_imagenet, preset, steps)
    if "lab/toy".startswith(only):
        found["lab/toy"] = _tried(_lab, steps)
    return found


def _tried(work: Any, *settings: Any) -> dict[str, str]:
    """The hashes, or the kind of error with which this combination is refused."""
    from cfm_lite.errors import CFMError

    try:
        return work(*settings)
    except CFMError as error:
        return {"refused": type(error).__name__}


def _trained(name: str, method: str, steps: int) -> dict[str, str]:
    recipe = _get("recipe", "runs.recipe", "recipes")(
        name.removesuffix("_all"), method=method, steps=steps, seed=3, **RECIPES[name]
    )
    dataset, batches = _get("dataset", "data.datasets"), _get("batches", "data.batches")
    if name == "mnist":
        g = torch.Generator().manual_seed(0)
        data: Any = Made((1, 28, 28), 10)
        x1, y = torch.randn(64, *data.shape, generator=g), torch.arange(64) % 10
    else:
        data = dataset(recipe.dataset)
        x1, y = data.x1, data.y
    model = _get("build_model", "runs.recipe", "recipes")(recipe, data)
    trainer = _get("build_trainer", "runs.recipe", "recipes")(recipe, model)
    return _run(trainer, batches(x1, y, size=recipe.batch, seed=3), steps, data)


def _imagenet(preset: str, steps: int) -> dict[str, str]:
    places = ("runs.imagenet", "scale.imagenet", "recipes.imagenet")
    recipe = _get("imagenet", *places)(
        preset, model="SiT-Ti/2", batch=8, shard=4, steps=steps, size=32, seed=3
    )
    data, teacher = Made((4, 4, 4), 5), _get("Given", *places)(16)
    trainer = _get("build_imagenet_trainer", *places)(recipe, data, teacher=teacher)
    return _run(trainer, _latents(bool(recipe.align)), steps, data)


def _latents(features: bool) -> Iterator[tuple[Tensor, ...]]:
    g = torch.Generator().manual_seed(1)
    while True:
        batch = torch.randn(8, 4, 4, 4, generator=g), torch.randint(5, (8,), generator=g)
        yield (*batch, torch.randn(8, 4, 16, generator=g)) if features else batch


def _run(trainer: Any, batches: Any, steps: int, data: Any) -> dict[str, str]:
    trainer.log_every = 20
    log = [
        {name: float(value).hex() for name, value in line.items()}
        for line in trainer.run(batches, steps)
    ]
    moments = trainer.optimizer.state_dict()["state"]
    found = {
        "weights": _hash(trainer.objective.state_dict()),
        "optimizer": _hash({f"{i}.{k}": v for i, e in moments.items() for k, v in e.items()}),
        "average": _hash(trainer.ema.state_dict()),
        "log": hashlib.sha256(json.dumps(log).encode()).hexdigest(),
    }
    if trainer.ema2 is not None:
        found["second average"] = _hash(trainer.ema2.state_dict())
    g = torch.Generator().manual_seed(2)
    x0, y = torch.randn(16, *data.shape, generator=g), torch.arange(16) % data.num_classes
    conditional, sample = _get("conditional", "guidance"), _get("sample", "samplers")
    drawn = sample(conditional(trainer.ema.eval(), y), x0, torch.linspace(0, 1, 9))
    return {**found, "samples": _hash({"x": drawn})}


def _lab(steps: int) -> dict[str, str]:
    trials = _get("trials", "lab.suites", "experiments.suites")
    jobs_of, run_job = (
        _get(name, "lab.jobs", "experiments.jobs") for name in ("jobs_of", "run_job")
    )
    found, changed = {}, {"steps": steps}
    with tempfile.TemporaryDirectory() as folder:
        parts = Path(folder)
        for job in jobs_of(
            trials("toy", "core", seeds=[0], arms=ARMS, changes=changed, quick=True)
        ):
            run_job(job, parts, "cpu")
        rows = [row for path in parts.glob("*.json") for row in json.loads(path.read_text())]
    for method in sorted({row["method"] for row in rows}):
        mine = sorted(
            json.dumps({name: row.get(name) for name in ROW})
            for row in rows
            if row["method"] == method
        )
        found[f"rows of {method}"] = hashlib.sha256("\n".join(mine).encode()).hexdigest()
    return found


def _get(name: str, *modules: str) -> Any:
    """What is called `name` in the first of `modules` of the package that this tree has."""
    for module in modules:
        try:
            found = getattr(importlib.import_module(f"cfm_lite.{module}"), name, None)
        except ModuleNotFoundError:
            continue
        if found is not None:
            return found
    raise ImportError(f"no {name} in {', '.join(modules)}")


def _hash(tensors: Any) -> str:
    digest = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        x = torch.as_tensor(x).detach().cpu().contiguous()
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(
            x.flatten().view(torch.uint8).numpy().tobytes() if math.prod(x.shape) else b""
        )
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
