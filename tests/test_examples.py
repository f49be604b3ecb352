"""Every public name of the ideas and the networks has an example, and each gives what it shows."""

import doctest
import importlib.util
import inspect

import pytest

from cfm_lite import errors

IDEAS = (
    "errors", "paths", "draws", "perturbations", "negatives", "losses", "terms", "objective",
    "theory", "guidance", "samplers", "metrics", "methods", "training", "pretrained",
    "models.embed", "models.mlp", "models.sit", "models.unet", "models.mmdit", "models.text", "models.official", "models.encoders",
    "data.captions", "data.words",
)  # fmt: skip
# what a term is given, and its form, of which CONTRIBUTING.md has examples; errors that need no
# example beside that of their base; the parts of two networks; and what trains for minutes or
# reads a large file
BARE = {"terms.Draw", "terms.Evaluated", "terms.Term", "pretrained.make", "models.text.ClipText"}
BARE |= {"models.text.open_clip"}  # it needs files
BARE |= {"models.unet.ConvBlock", "models.unet.SelfAttention"}
BARE |= {"models.mmdit.JointBlock", "models.mmdit.Stream"}
BARE |= {f"errors.{name}" for name in errors.__all__ if name != "CFMError"}


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


@pytest.mark.parametrize("idea", IDEAS)
def test_every_example_gives_what_it_shows(idea):
    needed = {"models.encoders": "timm", "samplers": "torchdiffeq", "models.text": "transformers"}
    needed = needed.get(idea, "torch")
    if not importlib.util.find_spec(needed):
        pytest.skip(f"not run: needs {needed}")
    module = importlib.import_module(f"cfm_lite.{idea}")
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("idea", IDEAS)
def test_every_public_name_has_an_example(idea):
    module = importlib.import_module(f"cfm_lite.{idea}")
    shown = examples(module)
    assert [name for name in public(module) if name not in shown and name not in BARE] == []
