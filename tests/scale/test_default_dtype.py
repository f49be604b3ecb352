"""torch's default type is the user's affair: under float64 everything trains and samples, and draws
in float32 stay as they were.
"""

import subprocess
import sys

import pytest

PROGRAM = """
import sys, torch
if sys.argv[1] == "float64":
    torch.set_default_dtype(torch.float64)
from cfm_lite import draws, guidance, metrics, objective, perturbations, samplers
from cfm_lite.data import digits, toy
from cfm_lite.data.batches import batches
from cfm_lite.models import MLP, SiT
from cfm_lite.objective import Contrastive, Dispersive
from cfm_lite.training import Trainer

g = lambda: torch.Generator().manual_seed(0)
for name in toy.TOYS:
    x1, y = toy.load(name, 64, g())
    assert x1.dtype == torch.float32
    print(name, x1.double().sum().item())
print(draws.drop_labels(torch.zeros(64, dtype=torch.long), 0.5, 1, generator=g()).sum().item())
for law in (draws.uniform_time, draws.logit_normal_time, draws.lognormal_time):
    print(law(8, generator=g()).double().sum().item())
print(perturbations.channel_shuffle(torch.arange(48.0, dtype=torch.float32).reshape(4, 3, 2, 2), generator=g()).flatten().tolist())
print(perturbations.expected_map(perturbations.crop_resize, (1, 3, 3), draws=3).sum().item())
print(metrics.sliced_wasserstein(x1, x1 + 1, n_projections=5, generator=g()).item())
x1, y = toy.load("two_classes", 64, g())
for term in (Dispersive(0.5, block=1), Contrastive(0.5, block=1)):
    trainer = Trainer(objective.vecor(MLP(2, 16, 2, 2), 0.1, perturb=perturbations.additive_noise).plus(term))
    assert torch.isfinite(list(trainer.run(batches(x1, y, size=16), 2))[-1]["loss"])
image, label = digits.load("train")
sit = SiT(input_size=8, patch_size=4, in_channels=1, hidden_size=8, depth=1, num_heads=2, num_classes=10)
trainer = Trainer(objective.vecor(sit, 0.1, perturb=perturbations.crop_resize))
list(trainer.run(batches(image, label, size=8), 2))
ts = torch.linspace(0, 1, 4)
samples = samplers.sample(guidance.cfg(trainer.ema, 3, 2.0), torch.randn(2, 1, 8, 8), ts)
assert samples.isfinite().all()
assert samplers.sample_sde(trainer.ema, torch.randn(2, 1, 8, 8), torch.linspace(0, 0.96, 4)).isfinite().all()
assert samplers.log_prob(MLP(2, 16, 2), torch.randn(3, 2), ts).isfinite().all()
"""


@pytest.fixture(scope="module")
def printed():
    def run(dtype):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", PROGRAM, dtype],
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert not done.returncode, done.stderr[-3000:]
        return done.stdout.splitlines()

    return run


def test_under_float64_everything_trains_and_draws_what_it_draws_under_float32(printed):
    assert printed("float64") == printed("float32")
