"""What autocast surrounds without being asked to lower it: the same numbers inside as outside, bit
for bit.
"""

import tempfile
from pathlib import Path

import pytest
import torch

from cfm_lite import guidance, metrics, objective
from cfm_lite._internal.checks import full_precision
from cfm_lite.data import words
from cfm_lite.data.latents.codec import open_codec
from cfm_lite.data.pca import PCA
from cfm_lite.data.teachers import SmallTeacher, Tokens
from cfm_lite.evaluate.clip import ClipScore
from cfm_lite.evaluate.inception import StandIn
from cfm_lite.evaluate.judges import Judge
from cfm_lite.evaluate.reader import Reader
from cfm_lite.methods import PERTURBATIONS
from cfm_lite.models import SiT
from cfm_lite.models.text import ClipText
from cfm_lite.perturbations import crop_resize
from tests.networks import tiny_clip


def images(n=2, side=32):
    return torch.randint(
        256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def precision_and_recall(codec):
    x = normal(300, 64)
    return torch.stack(metrics.precision_recall(x + 5, 1.1 * x.flip(0) + 5 + 0.3 * normal(64)))


def debiased(codec):
    """What undoes VeCoR's shuffles: a matrix on the channels, where autocast would round every
    velocity.
    """
    velocity = guidance.debias_shuffle(lambda x, t: x, 0.05)
    return velocity(normal(2, 4, 4, 4), torch.rand(2, generator=torch.Generator().manual_seed(2)))


def drawn(codec):
    """All that an objective draws, the perturbed images of its negatives too."""
    built = objective.vecor(
        SiT(4, 2, 4, 16, 1, 1, num_classes=3), perturb=crop_resize, space="image", codec=codec
    )
    sample, prepared, _ = built.at(0, 0)._draw(normal(4, 4, 4, 4), torch.tensor([0, 1, 2, 0]))
    return torch.cat([sample.x_t, sample.u_t, prepared["repulsion"][0]])


def own_coupling(codec):
    """A user's coupling that multiplies matrices is no network either."""
    built = objective.fm(
        SiT(4, 2, 4, 16, 1, 1), couple=lambda x0, x1, y: (x0 @ normal(4, 4), x1, y)
    )
    return built.at(0, 0)._draw(normal(4, 4, 4, 4), None)[0].x_t


def read(codec):
    """What the reader of words says of real pictures."""
    told = _seeded(Reader, "words").eval()(words.load("seen", 4).x1)
    return torch.cat([logits.flatten() for logits in told.values()])


def clip_score(codec):
    pytest.importorskip("transformers", reason="not run: pip install 'cfm-lite[text]'")
    with tempfile.TemporaryDirectory() as place:
        score = ClipScore(tiny_clip(Path(place)))
    return score(images(4) / 255, ["a dog", "a cat", "ok", "no"])


def captions_read(codec):
    """What the encoder of captions gives: the network was trained on its features in float32."""
    pytest.importorskip("transformers", reason="not run: pip install 'cfm-lite[text]'")
    with tempfile.TemporaryDirectory() as place:
        encoder = ClipText(tiny_clip(Path(place)))
    return encoder(["a dog", "", "ok"])


def perturbed(change):
    return lambda codec: change(normal(2, 3, 8, 8), generator=torch.Generator().manual_seed(0))


SAME = {
    "decode": lambda codec: codec.decode(normal(2, 4, 4, 4)),
    "pixels": lambda codec: codec.pixels(normal(2, 4, 4, 4)),
    "encode": lambda codec: codec.encode(images() / 127.5 - 1),
    "moments": lambda codec: codec.moments(images()),
    "the digits' codec": lambda codec: PCA(normal(40, 1, 8, 8), 9).decode(normal(2, 9, 1, 1)),
    "the digits' latents": lambda codec: PCA(normal(40, 1, 8, 8), 9).encode(normal(2, 1, 8, 8)),
    **{name: perturbed(change) for name, change in PERTURBATIONS.items()},
    "precision and recall": precision_and_recall,
    "what undoes a shuffle": debiased,
    "an objective's draws": drawn,
    "a coupling of one's own": own_coupling,
    "the stand-in's features": lambda codec: torch.cat(
        [part.flatten() for part in StandIn()(images())]
    ),
    "a judge": lambda codec: _seeded(Judge, "digits")(normal(4, 1, 8, 8)),
    "the reader of words": read,
    "the CLIP score": clip_score,
    "the features of captions": captions_read,
    "a small teacher": lambda codec: Tokens(_seeded(SmallTeacher, "digits"), 4)(normal(4, 1, 8, 8)),
}


def _seeded(kind, name):
    torch.manual_seed(0)
    return kind(name).requires_grad_(False)


@pytest.fixture(scope="module")
def codec():
    return open_codec("tiny")


@pytest.mark.parametrize("name", SAME)
def test_inside_autocast_the_numbers_are_those_outside(codec, name):
    outside = SAME[name](codec)
    with torch.autocast("cpu", torch.bfloat16):
        inside = SAME[name](codec)
        assert torch.is_autocast_enabled("cpu")  # and what comes after is still in half precision
    assert inside.dtype == outside.dtype
    assert outside.any()
    assert torch.equal(inside, outside)


def test_a_latent_in_half_precision_is_decoded_in_float32(codec):
    z = normal(1, 4, 4, 4).bfloat16()
    assert torch.equal(codec.decode(z), codec.decode(z.float()))


def test_full_precision_ends_with_its_block_also_after_an_error():
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision():
            assert not torch.is_autocast_enabled("cpu")
        with pytest.raises(ZeroDivisionError), full_precision():
            _ = 1 / 0
        assert torch.is_autocast_enabled("cpu")
