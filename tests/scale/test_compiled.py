"""A compiled step is the eager one, by torch's own compiler: losses, norms and weights after three steps in float32."""

import copy
import shutil

import pytest
import torch

from tests.test_step import batch, trainer

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="not run: torch.compile needs a C++ compiler")


@pytest.mark.parametrize("preset", ["sit", "delta_fm", "vecor", "dispersive", "repa_vecor"])
def test_compiled_steps_agree_with_eager_ones_in_float32(preset):
    torch._dynamo.reset()
    data, logs, weights = batch(preset), [], []
    for compiled in (False, True):
        built = trainer(preset, compile=compiled)
        logs.append([{name: value.item() for name, value in log.items()} for log in built.run([data] * 3, 3)])
        weights.append(copy.deepcopy(built.objective.state_dict()))
    for eager, compiled in zip(*logs):
        assert compiled == pytest.approx(eager, rel=1e-5, abs=1e-6)
    for name, eager in weights[0].items():
        # where a gradient is rounding alone, AdamW's first steps turn its sign into a whole step of the learning rate
        torch.testing.assert_close(weights[1][name], eager, rtol=1e-5, atol=1e-5, msg=name)
