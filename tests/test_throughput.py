"""Model FLOP utilisation: the count of operations, the table of peaks, and what is known of
neither.
"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cfm_lite.models import MLP, SIT_CONFIGS, SiT
from cfm_lite.runs import throughput
from tools.benchmarks.gpu import parts


@pytest.mark.parametrize(
    ("settings", "paper"),
    [
        (SIT_CONFIGS["SiT-S/2"], 36.3e9),
        (SIT_CONFIGS["SiT-XL/2"], 711.7e9),
        (
            {
                "input_size": 8,
                "patch_size": 4,
                "in_channels": 3,
                "hidden_size": 48,
                "depth": 3,
                "num_heads": 2,
                "learn_sigma": True,
            },
            None,
        ),
        (
            {
                "input_size": 8,
                "hidden_size": 24,
                "depth": 1,
                "num_heads": 2,
                "mlp_ratio": 2.0,
                "qk_norm": True,
            },
            None,
        ),
    ],
)
def test_the_count_of_operations_is_that_of_torch_and_of_the_paper(settings, paper):
    with torch.device("meta"):
        model = SiT(**settings).to("meta")
        side = model.input_size
        given = (
            torch.randn(2, model.in_channels, side, side),
            torch.rand(2),
            torch.zeros(2, dtype=torch.long),
        )
    with FlopCounterMode(display=False) as counter:
        model(*given).sum().backward()
    # the backward pass needs no gradient of the latents, which is all that torch counts less
    first = (
        2
        * (side // model.patch_size) ** 2
        * model.hidden_size
        * model.patch_size**2
        * model.in_channels
    )
    # and what is fed by the times needs none either
    times = 2 * 256 * model.hidden_size
    assert throughput.train_flops(model) == pytest.approx(
        counter.get_total_flops() / 2 + first + times, rel=1e-9
    )
    assert paper is None or throughput.train_flops(model) == pytest.approx(paper, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "bf16", "tf32"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12, 494.7e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12),
        ("NVIDIA H100 NVL", 835.5e12, 417.5e12),
        ("NVIDIA H200", 989.4e12, 494.7e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12),
        ("NVIDIA A100 80GB PCIe", 312e12, 156e12),
        ("NVIDIA A10", 125e12, 62.5e12),
        ("NVIDIA L4", 121e12, 60e12),
        ("NVIDIA L40S", 362e12, 183e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
        ("NVIDIA A10G", None, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("a device of tomorrow", None, None),
    ],
)
def test_a_peak_is_that_of_the_very_device_or_none(name, bf16, tf32):
    assert throughput.peak_flops(name, "bf16") == bf16
    assert throughput.peak_flops(name, "tf32") == tf32
    assert throughput.peak_flops(name, "float32") is None  # not on tensor cores


def test_utilisation_is_flops_over_the_peak_and_none_where_one_is_not_known(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    with torch.device("meta"):
        model = SiT(**SIT_CONFIGS["SiT-XL/2"])
    gpu = torch.device("cuda", 0)
    assert throughput.utilisation(model, 219.2, gpu, "bf16") == pytest.approx(
        219.2 * 711.7e9 / 312e12, rel=1e-3
    )
    assert throughput.utilisation(model, 219.2, gpu, "float32") is None  # TF32 is off
    with parts.tf32():
        assert throughput.utilisation(model, 219.2, gpu, "float32") == pytest.approx(
            219.2 * 711.7e9 / 156e12, rel=1e-3
        )
    assert throughput.utilisation(model, 219.2, torch.device("cpu"), "bf16") is None
    assert throughput.utilisation(MLP(2), 219.2, gpu, "bf16") is None


class Hands:
    """A clock that a test moves."""

    def __init__(self):
        self.at = 100.0

    def __call__(self):
        return self.at


def test_the_rate_leaves_out_the_first_step_and_pauses_and_the_seconds_count_all():
    hands = Hands()
    clock = throughput.Clock(batch=8, spent=50.0, now=hands)
    for seconds in (60.0, 2.0, 2.0):  # the first step compiles
        hands.at += seconds
        clock.tick()
        with clock.paused():
            hands.at += 30.0  # such as saving
    assert clock.read() == {"seconds": 50.0 + 64.0 + 90.0, "images_per_second": 4.0}
    hands.at += 1.0
    clock.tick()
    assert clock.read() == {"seconds": 205.0, "images_per_second": 8.0}


def test_a_first_step_that_is_logged_alone_has_its_own_rate():
    hands = Hands()
    clock = throughput.Clock(batch=8, now=hands)
    hands.at += 4.0
    clock.tick()
    assert clock.read() == {"seconds": 4.0, "images_per_second": 2.0}
