"""What a training step asks of a device: nothing back, few calls, one compiled graph."""

import subprocess
import sys

import pytest
import torch
from torch._dynamo.utils import counters

from cfm_lite.runs.imagenet import PRESETS, build_imagenet_trainer, imagenet
from cfm_lite.scale.dry_run import Made
from tests import fakegpu


def teacher(images):
    return images.flatten(1)[:, : 16 * 32].reshape(-1, 16, 32)


teacher.dim = 32


def trainer(preset, compile=False, device="cpu", **changes):
    recipe = imagenet(preset, model="SiT-Ti/2", batch=16, shard=8, size=64, **changes)
    given = teacher if recipe.align else None
    return build_imagenet_trainer(
        recipe, Made((4, 8, 8), 10), teacher=given, compile=compile, device=device
    )


def batch(preset):
    x1, y = torch.randn(16, 4, 8, 8), torch.randint(10, (16,))
    return (
        (x1, y, torch.randint(256, (16, 3, 64, 64), dtype=torch.uint8))
        if "repa" in preset
        else (x1, y)
    )


@pytest.fixture(scope="module")
def steps():
    """What a step of each preset does on a device that has no numbers."""
    found = fakegpu.elsewhere(
        *[f"step({preset!r})" for preset in PRESETS],
        "spoiled()",
        "copying()",
        "gram_calls(32, 256 * 1152)",
        "hurried()",
    )
    return dict(zip([*PRESETS, "spoiled", "copying", "gram", "hurried"], found))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_step_that_is_not_logged_reads_nothing_back_and_copies_nothing(steps, preset):
    assert steps[preset]["reads"] == []
    assert steps[preset]["copies"] == []
    assert steps[preset]["by_name"]["_fused_adamw_"] == 1
    assert steps[preset]["by_name"]["_fused_sgd_"] == 1  # the average


def test_the_device_without_numbers_sees_a_read_and_a_copy(steps):
    assert "local_scalar_dense" in steps["spoiled"]["reads"][0]
    assert steps["copying"]["copies"] == ["_to_copy"]


@pytest.mark.parametrize(
    ("preset", "extra"), [("delta_fm", 40), ("vecor", 80), ("dispersive", 100)]
)
def test_a_regulariser_adds_few_calls_to_a_step_of_two_shards(steps, preset, extra):
    assert 0 < steps[preset]["calls"] - steps["sit"]["calls"] <= extra


def test_the_gram_matrix_of_a_shard_of_sit_xl_takes_few_calls(steps):
    assert steps["gram"] <= 20  # a loop over small slabs took 829


def test_a_copy_to_the_host_is_waited_for(steps):
    """Labels, times, noise or signs on a GPU, samples on the host: not a number is read too soon."""
    assert steps["hurried"] == {"labels": 0, "times": 0, "noise": 0, "signs": 0, "on purpose": 1}


@pytest.mark.gpu
@pytest.mark.parametrize("preset", PRESETS)
def test_on_cuda_a_step_that_is_not_logged_reads_nothing_back(preset):
    built, data = (
        trainer(preset, device="cuda", precision="bf16"),
        tuple(x.cuda() for x in batch(preset)),
    )
    built.log_every = 10**6
    steps = built.run([data] * 5, 5)
    next(steps), next(steps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        next(steps), next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(p).all() for p in built.ema.parameters())


def test_the_first_call_of_an_objective_may_be_a_compiled_one():
    """What stays outside of the graphs is not looked into, whatever was called before."""
    program = (
        "import torch; from cfm_lite import models, objective; "
        "net = torch.compile(objective.fm(models.MLP(2)), backend='eager'); "
        "print(net(torch.ones(4, 2))[0].isfinite().item())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("preset", PRESETS)
def test_model_and_losses_are_one_graph_that_is_compiled_once(preset):
    torch._dynamo.reset()
    counters.clear()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    built, data = trainer(preset), batch(preset)
    built._forward = torch.compile(built._wrapped, dynamic=False, backend=backend)
    for _ in built.run([data] * 3, 3):
        pass
    assert len(graphs) == 1
    (reason,) = counters["graph_break"]
    assert "Objective._draw" in reason  # what is random stays outside, on purpose
