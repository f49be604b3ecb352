"""What the picture of precision and recall must show, and what it refuses; readable text inside the
canvas, as in test_viz.py.
"""

import pytest
import torch

from cfm_lite import metrics, viz
from cfm_lite.course import figures
from cfm_lite.errors import ConfigError
from tests import test_viz


def clouds() -> tuple[torch.Tensor, torch.Tensor]:
    """Real points in two groups; samples that miss one of them, and five strays."""
    g = torch.Generator().manual_seed(0)
    real = torch.cat(
        [torch.randn(30, 2, generator=g) * 0.4 - 2, torch.randn(30, 2, generator=g) * 0.4 + 2]
    )
    fake = torch.cat(
        [
            torch.randn(35, 2, generator=g) * 0.35 - 2,
            torch.tensor([[2.5, -2.5]]) + torch.randn(5, 2, generator=g) * 0.2,
        ]
    )
    return real, fake


@pytest.fixture
def picture(monkeypatch: pytest.MonkeyPatch) -> viz.Picture:
    shown = figures.neighbourhoods(*clouds())
    monkeypatch.setattr(test_viz, "figure", lambda name: shown)
    test_viz.drawn_texts.cache_clear()
    return shown


def test_text_is_readable_inside_the_canvas_and_does_not_overlap(picture: viz.Picture) -> None:
    test_viz.test_every_text_lies_inside_the_canvas("neighbourhoods")
    test_viz.test_no_text_is_smaller_than_nine_points("neighbourhoods")
    test_viz.test_no_two_texts_overlap("neighbourhoods")


def test_the_panels_share_limits_and_the_legend_stands_outside(picture: viz.Picture) -> None:
    first, second = picture.axes
    assert first.get_xlim() == second.get_xlim()
    assert first.get_ylim() == second.get_ylim()
    picture.canvas.draw()
    assert (
        not second.get_legend().get_window_extent().overlaps(second.get_window_extent().padded(-2))
    )


def test_crosses_and_titles_are_those_of_the_metric(picture: viz.Picture) -> None:
    real, fake = clouds()
    precision, recall = (float(share) for share in metrics.precision_recall(real, fake))
    for axes, share, total in zip(picture.axes, (precision, recall), (len(fake), len(real))):
        discs, _, inside, crosses = axes.collections
        assert len(inside.get_offsets()) == round(share * total)
        assert len(crosses.get_offsets()) == total - round(share * total)
        assert len(discs.get_paths()) == len(real) + len(fake) - total
        assert f"{100 * share:.0f} %" in axes.get_title(loc="left")
    assert precision > 0.7
    assert recall < 0.6  # one group is missing


@pytest.mark.parametrize(
    ("real", "fake", "words"),
    [
        (torch.zeros(9, 3), torch.zeros(9, 2), r"real has shape \(9, 3\)"),
        (torch.zeros(9, 2), torch.full((9, 2), float("nan")), "fake holds 18 values"),
        (torch.zeros(9, 2), torch.zeros(3, 2), "fake has shape"),
    ],
)
def test_bad_input_is_refused(real: torch.Tensor, fake: torch.Tensor, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        figures.neighbourhoods(real, fake)
