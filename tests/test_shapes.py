"""The shapes in the signatures are what the functions take and give."""

import pytest
import torch
from jaxtyping import TypeCheckError

from cfm_lite import losses
from tests import shapes


@pytest.mark.skipif(not shapes.ON, reason="not run: make test-shapes enforces the shapes")
def test_a_shape_that_is_not_that_of_the_signature_meets_the_hook():
    with pytest.raises(TypeCheckError, match="batch"):  # shapes: keep
        losses.squared_error(torch.zeros(4, 2), torch.zeros(4, 3))


def test_every_public_signature_of_an_idea_gives_its_shapes():
    bare = []
    for room in ("paths", "draws", "perturbations", "negatives", "losses", "theory", "metrics"):
        for name, function in shapes.public(room):
            for argument, kind in function.__annotations__.items():
                if kind is torch.Tensor or kind == torch.Tensor | None:
                    bare.append(f"{room}.{name}: {argument}")
    assert not bare
