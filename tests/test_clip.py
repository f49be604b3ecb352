"""CLIP as an encoder of captions and as a score, through transformers: a tiny random one takes the
same path as the real one.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from cfm_lite._internal import checks, lazy
from cfm_lite.errors import CheckpointError, ConfigError
from cfm_lite.models import MMDiT
from cfm_lite.models.text import ClipText, note_cut
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
@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            ["a dog on it"],
            "the caption is longer than the 5 tokens .* 'a dog on it' has 8. Shorter",
        ),
        (["a dog", "a horse", "birds"], "1 of 3 captions is longer .* cut: 'a horse' has 6"),
        (["abcdef"] * 5, "5 of 5 captions are longer .*'abcdef' has 6 and 2 more"),
    ],
)
def test_captions_whose_end_is_not_read_are_counted(place, monkeypatch, said, words):
    monkeypatch.setattr(checks, "_warned", set())
    with pytest.warns(UserWarning, match=words):
        note_cut(ClipText(place), said)


@needs_transformers
def test_captions_that_are_read_whole_need_no_word(place, recwarn, caplog):
    note_cut(ClipText(place), ["a dog", "dogs  \n", "", "\u00e9" * 2])
    assert not recwarn.list
    assert not caplog.records


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


def without_encoder(weights):
    return {name: value for name, value in weights.items() if "text_model.encoder" not in name}


def as_bytes(weights):
    return {name: value.to(torch.int8) for name, value in weights.items()}


def with_nan(weights):
    return {
        name: value * float("nan") if "0.mlp.fc1" in name else value
        for name, value in weights.items()
    }


def wider(config):
    return {**config, "text_config": {**config["text_config"], "hidden_size": 16}}


WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
DAMAGED = [
    (WEIGHTS, without_encoder, r"lacks 32 weights, such as \S*encoder\.layers\.0"),
    (WEIGHTS, as_bytes, r"holds integers, which are no weights: .*torch\.int8"),
    (WEIGHTS, with_nan, r"holds weights that are not finite: \S*fc1\.weight"),
    (WEIGHTS, lambda content: content[: len(content) // 2], "is damaged"),
    (WEIGHTS, lambda content: b"", "is damaged"),
    (CONFIG, wider, r"another shape than its config\.json tells, such as .*\(7, 12\), not \(7, 16"),
    (CONFIG, lambda config: {}, "lacks"),
    (CONFIG, lambda config: [], "is damaged"),
    (TOKENIZER, None, "has no tokenizer"),
]


@needs_transformers
@pytest.mark.parametrize("opened", ["text", "score"])
@pytest.mark.parametrize(("file", "change", "words"), DAMAGED)
def test_a_clip_that_is_not_whole_is_refused_in_one_line(
    place, tmp_path, capfd, opened, file, change, words
):
    from cfm_lite.evaluate.clip import ClipScore

    copy = tmp_path / "clip"
    shutil.copytree(place, copy)
    if change is None:
        (copy / file).unlink()
    elif file == CONFIG:
        (copy / file).write_text(json.dumps(change(json.loads((copy / file).read_text()))))
    elif change in (without_encoder, as_bytes, with_nan):
        save_file(change(load_file(copy / file)), copy / file, {"format": "pt"})
    else:
        (copy / file).write_bytes(change((copy / file).read_bytes()))
    flag, kind = ("--text", ClipText) if opened == "text" else ("--clip", ClipScore)
    with pytest.raises(CheckpointError, match=f"{words}.*Give with {flag} a folder") as error:
        kind(copy)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


@needs_transformers
def test_a_clip_in_several_parts_is_read_and_integers_in_one_of_them_are_refused(place, tmp_path):
    from transformers import CLIPModel

    from cfm_lite.evaluate.clip import ClipScore

    copy = shutil.copytree(place, tmp_path / "clip")
    whole = CLIPModel.from_pretrained(place, use_safetensors=True)
    (copy / WEIGHTS).unlink()
    whole.save_pretrained(copy, max_shard_size="8KB")
    parts = sorted(copy.glob("model-*.safetensors"))
    assert len(parts) > 2
    assert ClipText(copy).fingerprint == ClipText(place).fingerprint
    save_file(as_bytes(load_file(parts[-1])), parts[-1], {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"holds integers, which are no weights: .*int8"):
        ClipScore(copy)


@needs_transformers
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_clip_in_another_precision_is_read_as_float32(place, tmp_path, dtype):
    copy = shutil.copytree(place, tmp_path / "clip")
    weights = load_file(copy / WEIGHTS)
    rounded = {name: value.to(dtype) for name, value in weights.items()}
    save_file(rounded, copy / WEIGHTS, {"format": "pt"})
    encoder = ClipText(copy)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    name = "embeddings.token_embedding.weight"
    assert torch.equal(encoder.tower.get_parameter(name), rounded[f"text_model.{name}"].float())


@needs_transformers
def test_the_place_of_a_folder_is_its_whole_path(place, monkeypatch):
    monkeypatch.chdir(place.parent)
    assert ClipText(place.name).place == str(place)
    monkeypatch.setenv("HOME", str(place.parent))
    assert ClipText(f"~/{place.name}").place == str(place)


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
