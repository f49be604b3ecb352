"""docs/own_network.md runs as printed: every network trains, knows the null label, gives its
features and is sampled.
"""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from cfm_lite import draws, guidance, metrics, objective, samplers
from cfm_lite._internal.lazy import optional
from cfm_lite.data import digits
from cfm_lite.paths import LINEAR
from cfm_lite.training import Trainer

TEXT = (Path(__file__).parent.parent / "docs" / "own_network.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
NETWORKS = {
    "torchcfm": BLOCKS[0],
    "UNet2DModel": BLOCKS[1],
    "DiTTransformer2DModel": BLOCKS[2],
    "timm": BLOCKS[3],
}
PACKAGES = {
    "torchcfm": "torchcfm",
    "UNet2DModel": "diffusers",
    "DiTTransformer2DModel": "diffusers",
    "timm": "timm",
}
HAS = {package: importlib.util.find_spec(package) is not None for package in set(PACKAGES.values())}


def run(block, **names):
    if "import timm" in block or "from diffusers" in block:
        optional("timm", "imagenet")  # declares what torchvision lacks beside a CPU build of torch
    exec(block, names)  # noqa: S102 (our own text)
    return names


def case(name, package):
    return pytest.param(
        name,
        marks=()
        if HAS[package]
        else pytest.mark.skip(reason=f"not run: {package} is not installed"),
    )


@pytest.mark.parametrize("name", [case(*pair) for pair in PACKAGES.items()])
def test_a_network_of_another_library_trains_and_is_sampled(name):
    assert name in NETWORKS[name]
    torch.manual_seed(0)
    model = run(NETWORKS[name])["model"]
    x1, y = digits.load("train")
    x1, y = x1[:32], y[:32] if hasattr(model, "num_classes") else None
    featured = hasattr(model, "forward_features")
    trainer = Trainer(
        objective.dispersive(model, block=1) if featured else objective.fm(model), lr=2e-3
    )
    losses = [float(log["flow_matching"]) for log in trainer.run([(x1, y)] * 30, 30)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    velocity = (
        guidance.cfg(trainer.ema, 3, 2.0) if y is not None else trainer.ema
    )  # guidance asks for the null label
    samples = samplers.sample(velocity, torch.randn(2, 1, 8, 8), torch.linspace(0, 1, 4))
    assert samples.shape == (2, 1, 8, 8)
    assert samples.isfinite().all()
    if featured:
        v, features = model.eval().forward_features(x1, torch.full((32,), 0.5), y, blocks=(1, 2))
        assert {block: tuple(h.shape) for block, h in features.items()} == {
            1: (32, 16, 32),
            2: (32, 16, 32),
        }
        alone = (
            model(x1, torch.full((32,), 0.5), y)
            if y is not None
            else model(x1, torch.full((32,), 0.5))
        )
        torch.testing.assert_close(v, alone)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_wrapper_fits_in_twenty_lines(name):
    code = NETWORKS[name][NETWORKS[name].index("class ") :]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20


def test_the_block_that_trains_runs_as_printed(capsys):
    if HAS["timm"]:
        names = run(NETWORKS["timm"] + BLOCKS[4])
        assert names["images"].shape == (4, 1, 8, 8)
        assert len(capsys.readouterr().out.splitlines()) == 20


def test_a_network_of_captions_drops_them_and_moves_away_from_a_negative_prompt(capsys):
    torch.manual_seed(0)
    names = run(BLOCKS[5])
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 20
    assert losses[-1] < 0.7 * losses[0]
    assert names["images"].shape == (4, 3, 32, 32)
    model, y, away = names["trainer"].ema, names["y"], names["away"]
    x, t = names["images"][:1], torch.full((1,), 0.5)
    v, against, empty = (model(x, t, said) for said in (y, away, torch.zeros_like(y)))
    assert not torch.equal(against, empty)
    torch.testing.assert_close(names["velocity"](x, t), against + 2 * (v - against))
    torch.testing.assert_close(guidance.cfg(model, y, 2.0)(x, t), empty + 2 * (v - empty))
    built = objective.fm(model, label_dropout=1.0).train().at(0, 0)  # every caption is dropped
    assert torch.equal(built._draw(x, y)[0].y, model.null_condition(y))


def test_eight_gaussians_flow_to_two_moons():
    torch.manual_seed(0)
    names = run(BLOCKS[6])
    distance = [
        float(
            metrics.sliced_wasserstein(
                names[which], names["moons"][:500], generator=torch.Generator().manual_seed(0)
            )
        )
        for which in ("start", "samples")
    ]
    assert distance[1] < 0.3 * distance[0]


def test_transport_inside_a_class_keeps_the_noise_of_a_class_and_shortens_its_way():
    names = run(BLOCKS[7])
    g = torch.Generator().manual_seed(0)
    x0, x1, y = (
        torch.randn(64, 2, generator=g),
        torch.randn(64, 2, generator=g),
        torch.arange(64) % 2,
    )
    paired = names["ot_within_classes"](x0, x1, y)[0]
    for label in (0, 1):
        rows = y == label
        assert torch.equal(paired[rows].sort(0).values, x0[rows].sort(0).values)
        assert (paired[rows] - x1[rows]).square().sum() < 0.8 * (x0[rows] - x1[rows]).square().sum()
    assert torch.isfinite(names["built"](x1, y)[0])
    assert not torch.equal(paired, draws.minibatch_ot(x0, x1, y)[0])


def test_predictions_of_data_and_of_noise_become_velocities():
    names = run(BLOCKS[8])
    g = torch.Generator().manual_seed(0)
    x0, x1, t = (
        torch.randn(64, 2, generator=g),
        torch.randn(64, 2, generator=g),
        0.1 + 0.8 * torch.rand(64, generator=g),
    )
    x_t, u = LINEAR.interpolate(x0, x1, t)
    for which, target in (("x_prediction", x1), ("noise_prediction", x0)):
        model = names[which].model
        torch.testing.assert_close(model.convert(x_t, target, t), u, rtol=1e-3, atol=1e-4)
        trainer = Trainer(names[which], lr=1e-2)
        losses = [float(log["loss"]) for log in trainer.run([(x1, torch.arange(64) % 2)] * 60, 60)]
        assert sum(losses[-10:]) < sum(losses[:10])
