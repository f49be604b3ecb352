"""A compiled step is the eager one, by torch's own compiler: gradients, losses and norms in float32."""

import shutil

import pytest
import torch

from tests.test_step import batch, trainer

pytestmark = [
    pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="not run: torch.compile needs a C++ compiler"),
    pytest.mark.filterwarnings("ignore:.*_prims_common.check.*:FutureWarning"),  # raised inside torch's compiler
    pytest.mark.timeout(300),
]


@pytest.mark.parametrize("preset", ["delta_fm", "dispersive", "repa_vecor"])  # every term; vecor's graph is delta_fm's, and holds sit's
def test_compiled_steps_agree_with_eager_ones_in_float32(preset):
    torch._dynamo.reset()
    data, logs, gradients = batch(preset), [], []
    for compiled in (False, True):
        built = trainer(preset, compile=compiled, depth=1, block=1, align_block=1)
        steps = built.run([data] * 3, 3)
        log = [next(steps)]
        gradients.append({name: p.grad.clone() for name, p in built.objective.named_parameters() if p.grad is not None})
        logs.append([{name: value.item() for name, value in each.items()} for each in [*log, *steps]])
    for eager, compiled in zip(*logs):
        assert compiled == pytest.approx(eager, rel=1e-5, abs=1e-6)
    assert gradients[0].keys() == gradients[1].keys()
    for name, eager in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], eager, rtol=1e-4, atol=1e-6, msg=name)
