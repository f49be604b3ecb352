"""Features and metrics of image files: the published network's shapes, the stand-in's name, the cache and its hash."""

import json

import numpy as np
import pytest
import torch

from cfm_lite import metrics
from cfm_lite.errors import CheckpointError, ConfigError, DataError, UntrustedFileError
from cfm_lite.lazy import optional
from cfm_lite.scale import evaluate, features
from cfm_lite.scale.evaluate import evaluate_samples, features_of, image_batches
from cfm_lite.scale.features import StandIn, inception, open_extractor


def noise(n=40, size=32, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (n, size, size, 3), dtype=np.uint8)


def saved(path, images):
    np.savez(path, arr_0=images)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "cache_root", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def some(tmp_path):
    return saved(tmp_path / "some.npz", noise())


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Random weights of the published network's shapes."""
    module = optional("torch_fidelity.feature_extractor_inceptionv3", "eval")
    kind, keep = module.FeatureExtractorInceptionV3, torch.nn.Module.load_state_dict
    path = tmp_path_factory.mktemp("inception") / "w.pth"
    with pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(module, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(kind, "load_state_dict", lambda self, state: None)
        torch.save(kind("x", ["2048"]).state_dict(), path)
    assert torch.nn.Module.load_state_dict is keep
    return path


def measured(samples, reference, **how):
    rows, _ = evaluate_samples(samples, reference, how.pop("extractor", StandIn()), progress=False, **how)
    return {row["metric"]: row["value"] for row in rows}


@pytest.mark.filterwarnings("ignore:.*biased upwards")
def test_a_set_against_itself_is_at_distance_zero(some):
    values = measured(some, some)
    assert abs(values["standin_fid"]) < 1e-6
    assert abs(values["standin_sfid"]) < 1e-6
    assert values["standin_precision"] == values["standin_recall"] == 1


@pytest.mark.filterwarnings("ignore:.*biased upwards")
def test_darker_images_are_farther_away_and_the_metrics_are_those_of_the_library(some, tmp_path):
    dark, darker = (saved(tmp_path / f"{high}.npz", noise(seed=1, high=high)) for high in (200, 100))
    near, far = measured(dark, some), measured(darker, some)
    assert 0 < near["standin_fid"] < far["standin_fid"]
    a, b = (StandIn()(torch.from_numpy(np.load(path)["arr_0"]).permute(0, 3, 1, 2)) for path in (dark, some))
    assert near["standin_fid"] == pytest.approx(float(metrics.frechet(a.pool, b.pool)), rel=1e-6)
    assert near["standin_sfid"] == pytest.approx(float(metrics.frechet(a.spatial, b.spatial)), rel=1e-6)
    assert near["standin_inception_score"] == pytest.approx(float(metrics.inception_score(a.logits)[0]), rel=1e-6)
    assert near["standin_recall"] == float(metrics.precision_recall(b.pool, a.pool)[1])


def test_few_rows_have_the_distance_that_covariances_give():
    a, b = torch.randn(20, 50).double(), 1.4 * torch.randn(30, 50).double() + 0.1
    pairs = [(rows.mean(0), torch.cov(rows.T)) for rows in (a, b)]
    torch.testing.assert_close(
        metrics.frechet(a, b), metrics.frechet_distance(*pairs[0], *pairs[1]), rtol=1e-6, atol=0
    )  # roots of rounding


def test_the_stand_in_says_what_it_is_and_has_sfid_s_width():
    one, two = StandIn(), StandIn()
    x = torch.from_numpy(noise(3)).permute(0, 3, 1, 2)
    got = one(x)
    assert got.pool.shape == (3, 64)
    assert got.spatial.shape == (3, 2023)
    assert all(torch.equal(a, b) for a, b in zip(got, two(x)))
    assert one.fingerprint == two.fingerprint != StandIn(seed=1).fingerprint
    assert one.prefix == "standin_"


def test_inception_has_the_published_shapes_and_unbiased_logits(inception_file):
    network = inception(inception_file)
    x = torch.from_numpy(noise(2, 64)).permute(0, 3, 1, 2)
    got = network(x)
    assert got.pool.shape == (2, 2048)
    assert got.spatial.shape == (2, 2023)
    assert got.logits.shape == (2, 1008)
    assert got.spatial.min() >= 0  # after the ReLU
    torch.testing.assert_close(got.logits, got.pool @ network.network.fc.weight.T, rtol=1e-4, atol=1e-4)
    assert network.prefix == ""


def test_sfid_reads_the_first_branch_of_mixed_6d(inception_file):
    network = inception(inception_file)
    seen = {}
    network.network.Mixed_6d.register_forward_hook(lambda module, inputs, output: seen.update(whole=output))
    got = network(torch.from_numpy(noise(1, 64)).permute(0, 3, 1, 2))
    expected = seen["whole"][:, :7].permute(0, 2, 3, 1).reshape(1, -1)  # the block's output begins with its first branch
    torch.testing.assert_close(got.spatial, expected)


def test_weights_that_do_not_fit_or_would_run_code_are_refused(tmp_path):
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "small.pth")
    with pytest.raises(CheckpointError, match=r"small\.pth holds no weights of Inception"):
        inception(tmp_path / "small.pth")
    torch.save({"fc.weight": StandIn}, tmp_path / "code.pth")
    with pytest.raises(UntrustedFileError, match=r"code\.pth was not loaded"):
        inception(tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="there is no file"):
        open_extractor(str(tmp_path / "none.pth"))


def test_the_weights_that_cannot_be_fetched_name_the_file_to_get(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "cache_root", lambda: tmp_path)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(DataError, match=r"--inception FILE"):
        inception()
    assert not list((tmp_path / "inception").iterdir())


class Counting(StandIn):
    def __init__(self):
        super().__init__()
        self.seen = 0

    def __call__(self, images):
        self.seen += len(images)
        return super().__call__(images)


@pytest.mark.filterwarnings("ignore:.*biased upwards")
def test_the_reference_s_features_are_cached_by_content(some, tmp_path, cache):
    reference = saved(tmp_path / "reference.npz", noise(30, seed=5))
    first, second, third = Counting(), Counting(), Counting()
    a = measured(some, reference, extractor=first)
    b = measured(some, reference, extractor=second)
    assert (first.seen, second.seen) == (70, 40)
    assert a == b
    saved(reference, noise(30, seed=6))
    c = measured(some, reference, extractor=third)
    assert third.seen == 70
    assert c != a
    for file in (cache / "reference").iterdir():
        file.write_bytes(b"damaged")
    again = Counting()
    assert measured(some, reference, extractor=again) == c
    assert again.seen == 70


@pytest.mark.filterwarnings("ignore:.*biased upwards")
def test_a_folder_of_images_is_a_reference_and_is_cropped_to_the_samples(some, pictures):
    rows, path = evaluate_samples(some, pictures, StandIn(), progress=False)
    assert rows[0]["reference_images"] == 24
    assert rows[0]["features"] == "stand-in"
    assert json.loads(path.read_text()) == rows
    assert next(image_batches(pictures, 5, 32)).shape == (5, 3, 32, 32)


def test_an_npz_is_read_in_pieces_as_it_is(some):
    whole = torch.from_numpy(np.load(some)["arr_0"]).permute(0, 3, 1, 2)
    assert torch.equal(torch.cat(list(image_batches(some, 7))), whole)
    assert features_of(some, StandIn(), batch=7, progress=False).pool.shape == (40, 64)


@pytest.mark.parametrize("kind", ["gone", "page", "half", "float", "grey", "none", "other"])
def test_files_that_hold_no_images_are_one_error(tmp_path, some, kind):
    path = tmp_path / "odd.npz"
    content = {"float": noise().astype(np.float32), "grey": noise()[..., 0], "none": noise()[:0]}
    if kind in content:
        saved(path, content[kind])
    elif kind == "other":
        np.savez(path, x=noise())
    elif kind == "page":
        path.write_text("<html>")
    elif kind == "half":
        path.write_bytes(some.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"odd\.npz"):
        list(image_batches(path, 8))


def test_too_few_images_are_refused_and_few_are_warned_of(tmp_path, some):
    with pytest.raises(DataError, match="at least 4"):
        measured(saved(tmp_path / "three.npz", noise(3)), some)
    with pytest.warns(UserWarning, match="50,000"):
        measured(some, some)


def test_images_that_are_not_bytes_are_refused():
    with pytest.raises(ConfigError, match="uint8"):
        StandIn()(torch.zeros(1, 3, 8, 8))
