"""The files of a sampled run on points or pixels: an npz, and a picture beside it."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from cfm_lite import viz
from cfm_lite._internal.places import check_file, expanded
from cfm_lite.data import captions
from cfm_lite.data.datasets import DataSet, dataset
from cfm_lite.errors import ConfigError
from cfm_lite.evaluate.samples import save_samples
from cfm_lite.runs import Run, Spec
from cfm_lite.runs.recipe import Recipe
from cfm_lite.runs.sampling import Settings, draw_run, recorded, settings_of

__all__ = ["SHOWN", "drawing", "picture", "sample_file"]

SHOWN = 100  # samples in a picture
MADE_BY = "samples of cfm-lite sample"  # in a picture: it may be replaced by the next ones


def sample_file(run: Run, out: str | Path | None, settings: Settings) -> str:
    """Draw samples and write them to `out` (default: samples.npz in the run's folder, or in the
    current one for a run without a folder), with a picture beside it. For captions `out` may be a
    png: then only the picture is written.

    Returns what to print. Raises ConfigError for a wrong setting or a file that would be
    overwritten, and DataError if nothing can be written, before anything is drawn.
    """
    home = run.place.folder if run.place else Path()
    alone = run.spec is not None and run.spec.condition == "captions"
    path = check_file(
        expanded(out or home / "samples.npz"), (".npz", ".png") if alone else (".npz",)
    )
    if path.suffix == ".png":
        _check_picture(path)
        x, y = draw_run(run, settings)
        return f"picture in {picture(run, x, y, path)}"
    beside = check_file(path.with_suffix(".png"), (".png",))
    _check_replaceable(path)
    if out and beside.exists() and not path.exists():
        raise ConfigError(
            f"{beside} does not belong to {path}. It would be overwritten; move it, or choose "
            "another --out."
        )
    if out:  # in the run's own folder the picture is the run's
        _check_picture(beside)
    x, y = draw_run(run, settings)
    save_samples(path, x, y, recorded(run, settings))
    return f"samples in {path} and {picture(run, x, y, beside)}"


def drawing(recipe: Recipe, data: DataSet, folder: str | Path) -> Callable[[nn.Module, int], None]:
    """A function of a model and a step that writes FOLDER/samples-step-N.png, for `runs.train`.

    The noise is the same each time.
    """
    spec = Spec(data.shape, data.num_classes, data.condition)

    def draw(model: nn.Module, step: int) -> None:
        run = Run(recipe, model, step, spec=spec)
        x, y = draw_run(run, settings_of(run, SHOWN, seed=recipe.seed))
        picture(run, x, y, Path(folder) / f"samples-step-{step:08d}.png")

    return draw


def picture(run: Run, x: Tensor, y: Tensor, path: Path) -> Path:
    """samples.png: rows of the classes for images, or each over its class where they are not in
    turn; a cloud over the held-out data for points.
    """
    x = run.images(x)
    if run.spec is not None and run.spec.condition == "captions":
        said = captions.decode(y[:SHOWN])
        prompts = len(set(said))  # a few in turn have a column each
        columns = prompts if 1 < prompts <= 6 else 0
        return viz.save(viz.captioned(x[:SHOWN], said, columns=columns), path, about=MADE_BY)
    if x.dim() > 2 and run.spec is not None:
        columns = min(len(x), run.spec.num_classes)
        whole = min(len(x), SHOWN) // columns
        shown = y[: whole * columns].unflatten(0, (whole, columns))
        if not torch.equal(shown, shown[:1].expand_as(shown)):  # then no column is of one class
            told = [str(label) for label in y[:SHOWN].tolist()]
            figure = viz.captioned(x[:SHOWN], told, columns=columns, cell=0.72)
            return viz.save(figure, path, about=MADE_BY)
        rows = {f"sample {i + 1}": x[i * columns : (i + 1) * columns] for i in range(whole)}
        return viz.save(
            viz.image_grid(rows, [int(label) for label in y[:columns]]), path, about=MADE_BY
        )
    held = dataset(run.recipe.dataset).held_x1[:2000]
    return viz.save(viz.point_samples({"samples": x}, data=held), path, about=MADE_BY)


def _check_replaceable(path: Path) -> None:
    """Raise ConfigError for an npz that `sample_file` did not write: it may be somebody's data."""
    if not path.exists():
        return
    try:
        with zipfile.ZipFile(path) as archive:
            ours = {"x.npy", "y.npy", "settings.npy"} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return  # a half-written or damaged file: what it held is lost already
    if not ours:
        raise ConfigError(
            f"{path} holds no samples of cfm-lite sample. It would be overwritten; choose another "
            "--out."
        )


def _check_picture(path: Path) -> None:
    """Raise ConfigError for a picture that `picture` did not write."""
    if not path.exists() or not path.stat().st_size:
        return
    try:
        with Image.open(path) as image:
            ours = image.info.get("Description") == MADE_BY
    except OSError:
        ours = False
    if not ours:
        raise ConfigError(
            f"{path} is no picture of cfm-lite sample. It would be overwritten; move it, or choose "
            "another --out."
        )
