"""Every public name of the ideas, of the networks and of the rooms that a user calls has an example,
and each gives what it shows.
"""

import doctest
import importlib.util
import inspect

import pytest

from cfm_lite import errors

IDEAS = (
    "errors", "paths", "draws", "perturbations", "negatives", "losses", "terms", "objective",
    "theory", "guidance", "samplers", "metrics", "methods", "training", "pretrained",
    "models.embed", "models.mlp", "models.sit", "models.unet", "models.unet_sizes", "models.mmdit", "models.text",
    "models.official", "models.encoders",
    "data.captions", "data.words",
)  # fmt: skip
# the rooms whose functions a user calls
ROOMS = (
    "data.archive", "data.batches", "data.cifar10", "data.datasets", "data.digits", "data.images", "data.mnist",
    "data.pca", "data.teachers", "data.toy",
    "engine.average", "engine.batches", "engine.checkpoint", "engine.compiled", "engine.guard", "engine.optimizers",
    "engine.parallel", "engine.settings", "engine.sharded", "engine.state", "engine.trainable",
    "runs.folder", "runs.imagenet", "runs.loop", "runs.machine", "runs.reads", "runs.recipe", "runs.run",
    "runs.sampling", "runs.segments", "runs.spec", "runs.throughput",
    "evaluate.card", "evaluate.clip", "evaluate.images", "evaluate.inception", "evaluate.judges", "evaluate.measures",
    "evaluate.reader", "evaluate.reference", "evaluate.samples",
    "viz.artists", "viz.exact", "viz.fields", "viz.lab", "viz.lines", "viz.pictures", "viz.results", "viz.style",
    "lab.figures", "lab.statistics",
)  # fmt: skip
# what a term is given, and its form, of which CONTRIBUTING.md has examples; errors that need no
# example beside that of their base; the parts of two networks; and what trains for minutes or
# reads a large file
BARE = {"terms.Draw", "terms.Evaluated", "terms.Term", "pretrained.make", "models.text.ClipText"}
BARE |= {"models.text.open_clip"}  # it needs files
BARE |= {"models.unet.ConvBlock", "models.unet.SelfAttention"}
BARE |= {"models.mmdit.JointBlock", "models.mmdit.Stream"}
BARE |= {f"errors.{name}" for name in errors.__all__ if name != "CFMError"}
# they need the files of a data set, or fetch them
BARE |= {f"data.{name}.{what}" for name in ("cifar10", "mnist") for what in ("download", "load")}
BARE |= {"data.archive.samples", "evaluate.clip.ClipScore", "evaluate.inception.inception"}
# it writes into the user's cache; an open tar in the middle of its reading
BARE |= {"data.archive.unpacked", "data.archive.read_to_end"}
# they train for seconds, or measure for as long
BARE |= {"data.teachers.train_teacher", "data.teachers.teacher_for"}
BARE |= {"evaluate.judges.train_judge", "evaluate.reader.train_reader"}
BARE |= {"evaluate.images.evaluate_samples"}
BARE |= {"evaluate.samples.evaluate", "evaluate.samples.evaluate_file"}
# they need several ranks
BARE |= {f"engine.sharded.{name}" for name in ("exchanging", "shard", "spread")}
# they need a compiler
BARE |= {"engine.compiled.compile_parts", "engine.compiled.unsplit"}
# they need the files of a run on latents
BARE |= {"runs.folder.read_mean", "runs.sampling.draw_part"}


def examples(module):
    """{name: its doctest} of the functions, classes and methods of a module that have one."""
    found = doctest.DocTestFinder().find(module)
    return {test.name.removeprefix("cfm_lite."): test for test in found if test.examples}


def public(module):
    """The full names of the functions and classes that a module defines and lists in `__all__`."""
    for name in module.__all__:
        value = getattr(module, name)
        if (inspect.isfunction(value) or inspect.isclass(value)) and (
            value.__module__ == module.__name__
        ):
            yield f"{module.__name__}.{name}".removeprefix("cfm_lite.")


@pytest.mark.parametrize("idea", IDEAS + ROOMS)
def test_every_example_gives_what_it_shows(idea):
    needed = {"models.encoders": "timm", "samplers": "torchdiffeq", "models.text": "transformers"}
    needed = needed.get(idea, "torch")
    if not importlib.util.find_spec(needed):
        pytest.skip(f"not run: needs {needed}")
    module = importlib.import_module(f"cfm_lite.{idea}")
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("idea", IDEAS + ROOMS)
def test_every_public_name_has_an_example(idea):
    module = importlib.import_module(f"cfm_lite.{idea}")
    shown = examples(module)
    assert [name for name in public(module) if name not in shown and name not in BARE] == []
