"""CLIP as an encoder of captions and as a score, through transformers: a tiny random one takes the
same path as the real one.
"""

import pytest
import torch

from cfm_lite._internal import lazy
from cfm_lite.errors import CheckpointError, ConfigError
from cfm_lite.models import MMDiT
from cfm_lite.models.text import ClipText
from tests.networks import tiny_clip, without_hub

needs_transformers = pytest.mark.skipif(
    not __import__("importlib.util").util.find_spec("transformers"),
    reason="transformers is not installed: pip install 'cfm-lite[text]'",
)
LENGTH, DIM = 7, 12


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny random CLIP and a tokenizer of single letters."""
    return tiny_clip(tmp_path_factory.mktemp("clip"), LENGTH, DIM)


@needs_transformers
def test_captions_become_features_that_the_network_takes(place):
    encoder = ClipText(place)
    assert (encoder.length, encoder.dim) == (LENGTH, DIM)
    y = encoder(["a dog", "a cat on a mat that is long"])
    assert y.shape == (2, LENGTH, DIM)
    assert torch.equal(encoder(["a dog"])[0], y[0])
    assert not y.requires_grad
    assert not torch.equal(y[0], y[1])
    model = MMDiT(4, 2, 3, 16, 1, 2, context_dim=DIM, context_length=LENGTH)
    model.null_context.copy_(encoder.null())
    v = model(torch.zeros(2, 3, 4, 4), torch.zeros(2), y)
    assert v.shape == (2, 3, 4, 4)
    assert torch.equal(model.null_condition(y)[0], encoder([""])[0])


@needs_transformers
def test_opening_a_tower_prints_nothing(place, capfd, caplog):
    ClipText(place)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@needs_transformers
def test_a_tower_is_frozen_and_known_by_its_fingerprint(place):
    encoder = ClipText(place).train()
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    assert encoder.fingerprint == ClipText(place).fingerprint
    other = ClipText(place)
    next(other.tower.parameters()).data.add_(1)
    assert other.fingerprint != encoder.fingerprint


@needs_transformers
def test_the_score_is_the_cosine_of_image_and_caption(place):
    from cfm_lite.evaluate.clip import ClipScore

    judge, images = ClipScore(place), torch.rand(2, 3, 20, 24)
    said = ["a dog", "a cat"]
    score = judge(images, said)
    assert score.shape == (2,)
    assert bool(((score >= 0) & (score <= 100)).all())
    text = judge.clip.text_projection(
        judge.clip.text_model(
            **judge.tokenizer(said, padding=True, return_tensors="pt")
        ).pooler_output
    )
    x = torch.nn.functional.interpolate(images, (16, 19), mode="bicubic", antialias=True).clamp(
        0, 1
    )[:, :, :, 1:17]
    x = (x - judge.mean[:, None, None]) / judge.std[:, None, None]
    seen = judge.clip.visual_projection(judge.clip.vision_model(x).pooler_output)
    expected = 100 * torch.nn.functional.cosine_similarity(seen, text).clamp(min=0)
    torch.testing.assert_close(score, expected)
    with pytest.raises(ConfigError, match="2 captions; give"):
        judge(images[:1], said)


@needs_transformers
def test_what_is_no_list_of_texts_or_no_encoder_is_refused_in_one_line(place, tmp_path):
    with pytest.raises(ConfigError, match="a list of texts"):
        ClipText(place)("a dog")
    with pytest.raises(CheckpointError, match="no CLIP") as error:
        ClipText(tmp_path)
    assert "\n" not in str(error.value)


@needs_transformers
@pytest.mark.parametrize("name", ["me/none", "./none", "no name"])
def test_a_name_that_is_no_encoder_is_asked_for_once_and_refused_in_one_line(
    monkeypatch, capfd, name
):
    asked = without_hub(monkeypatch)
    with pytest.raises(CheckpointError, match=r"there is no CLIP .* the hub does not give it") as e:
        ClipText(name)
    assert "\n" not in str(e.value)
    assert len(asked) == (name == "me/none")
    assert ("no route to the hub" in str(e.value)) == bool(asked)
    assert capfd.readouterr() == ("", "")


def test_without_transformers_the_extra_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'transformers'", name="transformers")

    monkeypatch.setattr(lazy.importlib, "import_module", missing)
    with pytest.raises(
        ConfigError, match=r"transformers is not installed: pip install 'cfm-lite\[text\]'"
    ):
        ClipText("anywhere")
