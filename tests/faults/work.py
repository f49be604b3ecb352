"""A small training that can be killed, stopped and resumed, and the result that it must reach."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from cfm_lite.data.batches import batches
from cfm_lite.data.datasets import DataSet, dataset
from cfm_lite.engine import checkpoint
from cfm_lite.objective import Alignment, Objective
from cfm_lite.runs.recipe import Recipe, build_model, build_objective, build_trainer
from cfm_lite.training import Trainer

POINTS = Recipe(
    dataset="two_classes",
    hidden_size=16,
    depth=3,
    batch=32,
    shard=16,
    steps=60,
    perturb="channel_shuffle",
    warmup=7,
    ema=0.9,
)
DIGITS = POINTS.changed(dataset="digits", perturb="crop_resize", spread=0.2)
ROWS = 640  # 20 batches an epoch, so 60 steps are three epochs
METHODS = ("fm", "delta_fm", "vecor", "vecor_latent", "dispersive", "contrastive", "repa")


def data_of(recipe: Recipe) -> DataSet:
    data = dataset(recipe.dataset, points=ROWS, limit=ROWS)
    return data._replace(y=data.y[:ROWS])


def new_trainer(recipe: Recipe, data: DataSet) -> Trainer:
    """The trainer of a recipe; where the data has no teacher of its own, REPA's is a fixed random
    map.
    """
    model = build_model(recipe, data)
    if recipe.method != "repa":
        return build_trainer(recipe, model)
    plain = build_objective(recipe.changed(method="fm"), model)
    return build_trainer(recipe, model, built=_aligned(plain, recipe, data))


def _aligned(plain: Objective, recipe: Recipe, data: DataSet) -> Objective:
    generator = torch.Generator().manual_seed(5)
    fixed = torch.randn(data.x1[0].numel(), 6, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return plain.plus(
            Alignment(
                0.5,
                2,
                recipe.hidden_size,
                lambda x: torch.tanh(x.flatten(1) @ fixed)[:, None],
                6,
                width=16,
            )
        )


def steps(trainer: Trainer, recipe: Recipe, data: DataSet, until: int) -> Iterator[tuple[int, str]]:
    """(step, the loss to the last bit) up to step `until`."""
    if trainer.step < until:
        source = batches(data.x1, data.y, size=recipe.batch, seed=recipe.seed, start=trainer.step)
        for log in trainer.run(source, until - trainer.step):
            yield trainer.step, float(log["loss"]).hex()


def digest(trainer: Trainer) -> str:
    """A hash of everything that training changes: parameters, average, moments."""
    found = hashlib.sha256()
    states = (trainer.objective.state_dict(), trainer.ema.state_dict())
    entries = trainer.optimizer.state_dict()["state"]
    moments = [entries[i][name] for i in sorted(entries) for name in sorted(entries[i])]
    for value in (*(v for state in states for v in state.values()), *moments):
        found.update(torch.as_tensor(value).detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def unbroken(recipe: Recipe, data: DataSet) -> tuple[dict[int, str], str]:
    """The loss curve and the digest of a run that nothing stops."""
    trainer = new_trainer(recipe, data)
    return dict(steps(trainer, recipe, data, recipe.steps)), digest(trainer)


def going_on(recipe: Recipe, data: DataSet, folder: Path) -> Trainer:
    """A trainer at the newest checkpoint in `folder`, or at the start where there is none."""
    trainer = new_trainer(recipe, data)
    return trainer.resume(folder) if any(folder.glob("step-*")) else trainer


Save = Callable[..., Path]


def naive_save(directory, step, weights, optimizer, state, *, keep=3) -> Path:
    """What many programs do: take the old file away, then write the new one in its place."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / f"step-{step:08d}"
    for old in directory.glob("step-*"):
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    final.mkdir()
    checkpoint._write_files(final, weights, optimizer, {**state, "step": step})
    return final
