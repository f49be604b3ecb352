"""What is looked at beside the samples: against the exact field the exact law has no error, and a
scaled velocity is longer.
"""

import pytest
import torch
from torch import nn

from cfm_lite.data.datasets import dataset
from cfm_lite.lab import ARMS, balanced_labels, diagnostics, draw_samples
from cfm_lite.runs import Run
from cfm_lite.runs.recipe import Recipe, build_model, recipe

DATA = dataset("two_classes", points=2000)


class Exact(nn.Module):
    """The exact field as a network, with features of a known length."""

    num_classes = 2

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x, t, y=None):
        return DATA.mixture.velocity(x, t, y)

    def forward_features(self, x, t, y, blocks):
        return self(x, t, y), {block: torch.full((len(x), 4), 3.0) for block in blocks}


RUN = Run(recipe("toy").changed(weight=0.2), Exact())


def test_the_exact_field_has_no_error_and_a_deficit_below_one():
    values = diagnostics.field_values(ARMS["fm"], RUN, DATA)
    assert values["field_error"] == pytest.approx(0, abs=1e-6)
    assert 0.5 < values["velocity_deficit"] < 1
    assert values["velocity_deficit"] == pytest.approx(
        sum(values[f"velocity_deficit_at_{t:g}"] for t in diagnostics.TIMES) / 5
    )
    assert (values["feature_norm"], values["feature_rank"]) == (6.0, 1.0)


def test_scaling_lengthens_every_velocity_by_its_factor():
    plain, scaled = (
        diagnostics.field_values(ARMS[name], RUN, DATA) for name in ("fm", "fm_scaled")
    )
    for t in diagnostics.TIMES:
        name = f"velocity_deficit_at_{t:g}"
        assert scaled[name] == pytest.approx(plain[name] / 0.8, rel=1e-5)
    assert scaled["field_error"] == pytest.approx(0.25, rel=1e-4)
    assert "feature_norm" not in scaled  # the network is FM's


def test_paths_of_the_exact_field_end_where_the_exact_flow_does_and_stay_on_the_law():
    y = balanced_labels(2, 600)
    samples = draw_samples(ARMS["fm"], RUN, DATA, y, 100, solver="heun")
    values = diagnostics.path_values(ARMS["fm"], RUN, DATA, samples, y, 100, "heun")
    assert values["trajectory_error"] == pytest.approx(0, abs=1e-5)
    assert abs(values["drift"]) < 0.1
    assert values["class_separation"] == pytest.approx(1, abs=0.1)
    assert 0.5 < values["straightness"] < 1
    few = draw_samples(ARMS["fm"], RUN, DATA, y, 4)
    assert (
        diagnostics.path_values(ARMS["fm"], RUN, DATA, few, y, 4, "euler")["trajectory_error"]
        > 0.05
    )


def test_retargeted_fm_parts_the_classes():
    y = balanced_labels(2, 600)
    parted = draw_samples(ARMS["fm_retargeted"], RUN, DATA, y, 50)
    assert (
        diagnostics.path_values(ARMS["fm_retargeted"], RUN, DATA, parted, y, 50, "euler")[
            "class_separation"
        ]
        > 1.05
    )


def test_the_sde_has_no_straight_way_and_images_no_exact_law():
    y = balanced_labels(2, 20)
    samples = draw_samples(ARMS["fm"], RUN, DATA, y, 4, solver="sde")
    assert set(diagnostics.path_values(ARMS["fm"], RUN, DATA, samples, y, 4, "sde")) == {
        "trajectory_error",
        "class_separation",
    }
    digits, small = dataset("digits"), Recipe(hidden_size=8, depth=1)
    run = Run(small, build_model(small, digits).eval())
    y = balanced_labels(10, 20)
    x = draw_samples(ARMS["fm"], run, digits, y, 2)
    assert set(diagnostics.path_values(ARMS["fm"], run, digits, x, y, 2, "euler")) == {
        "straightness"
    }
    assert "field_error" not in diagnostics.field_values(ARMS["fm"], run, digits)
