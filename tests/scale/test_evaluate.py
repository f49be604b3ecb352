"""Features and metrics of image files: the published network's shapes, the stand-in's name, the
cache and its hash.
"""

import itertools
import json
import os
import warnings
from types import MappingProxyType

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from cfm_lite import metrics
from cfm_lite._internal.lazy import optional
from cfm_lite.data import root
from cfm_lite.errors import CheckpointError, ConfigError, DataError, UntrustedFileError
from cfm_lite.evaluate import card
from cfm_lite.evaluate import images as evaluate
from cfm_lite.evaluate import inception as features
from cfm_lite.evaluate.images import evaluate_samples, features_of, image_batches
from cfm_lite.evaluate.inception import Features, StandIn, inception, open_extractor
from tests.reference import case

QUIET = pytest.mark.filterwarnings("ignore:.*biased upwards")


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
    rows, _ = evaluate_samples(
        samples, reference, how.pop("extractor", StandIn()), progress=False, **how
    )
    return {row["metric"]: row["value"] for row in rows}


@QUIET
def test_a_set_against_itself_is_at_distance_zero(some):
    values = measured(some, some)
    assert abs(values["standin_fid_to_40_images"]) < 1e-6
    assert abs(values["standin_sfid_to_40_images"]) < 1e-6
    assert values["standin_precision"] == values["standin_recall"] == 1


@QUIET
def test_darker_images_are_farther_away_and_the_metrics_are_those_of_the_library(some, tmp_path):
    dark, darker = (
        saved(tmp_path / f"{high}.npz", noise(seed=1, high=high)) for high in (200, 100)
    )
    near, far = measured(dark, some), measured(darker, some)
    assert 0 < near["standin_fid_to_40_images"] < far["standin_fid_to_40_images"]
    a, b = (
        StandIn()(torch.from_numpy(np.load(path)["arr_0"]).permute(0, 3, 1, 2))
        for path in (dark, some)
    )
    assert near["standin_fid_to_40_images"] == pytest.approx(
        float(metrics.frechet(a.pool, b.pool)), rel=1e-6
    )
    assert near["standin_sfid_to_40_images"] == pytest.approx(
        float(metrics.frechet(a.spatial, b.spatial)), rel=1e-6
    )
    assert near["standin_inception_score"] == pytest.approx(
        float(metrics.inception_score(a.logits)[0]), rel=1e-6
    )
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
    torch.testing.assert_close(
        got.logits, got.pool @ network.network.fc.weight.T, rtol=1e-4, atol=1e-4
    )
    assert network.prefix == ""


def test_inception_of_integers_or_nan_is_refused(inception_file, tmp_path):
    state = torch.load(inception_file, weights_only=True)
    name = next(name for name, x in state.items() if x.is_floating_point())
    torch.save(state | {name: state[name].to(torch.int8)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="holds integers where Inception-v3 has weights"):
        inception(tmp_path / "weights.pth")
    torch.save(state | {name: state[name] * float("nan")}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=rf"holds NaN or infinities where .*\({name}\)"):
        inception(tmp_path / "weights.pth")


def test_sfid_reads_the_first_branch_of_mixed_6d(inception_file):
    network = inception(inception_file)
    seen = {}
    network.network.Mixed_6d.register_forward_hook(
        lambda module, inputs, output: seen.update(whole=output)
    )
    got = network(torch.from_numpy(noise(1, 64)).permute(0, 3, 1, 2))
    expected = (
        seen["whole"][:, :7].permute(0, 2, 3, 1).reshape(1, -1)
    )  # the block's output begins with its first branch
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
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda *a, **k: (_ for _ in ()).throw(OSError("offline"))
    )
    with pytest.raises(DataError, match=r"--inception FILE"):
        inception()
    assert not list(tmp_path.iterdir())


class Counting(StandIn):
    def __init__(self):
        super().__init__()
        self.seen = 0

    def __call__(self, images):
        self.seen += len(images)
        return super().__call__(images)


@QUIET
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


@QUIET
def test_a_folder_of_images_is_a_reference_and_is_cropped_to_the_samples(some, pictures):
    rows, path = evaluate_samples(some, pictures, StandIn(), progress=False)
    assert rows[0]["reference_images"] == 24
    assert rows[0]["features"] == "stand-in"
    assert json.loads(path.read_text()) == rows
    assert next(image_batches(pictures, 5, 32)).shape == (5, 3, 32, 32)


@QUIET
def test_other_images_of_the_same_names_sizes_and_times_are_not_taken_from_the_cache(
    some, tmp_path, cache
):
    distances = []
    for seed in (5, 6):  # BMP: a file's size does not tell its content
        folder = tmp_path / str(seed)
        folder.mkdir()
        for i, image in enumerate(noise(30, seed=seed)):
            Image.fromarray(image).save(folder / f"{i}.bmp")
            os.utime(folder / f"{i}.bmp", (0, 0))
        distances.append(measured(some, folder))
    assert distances[0] != distances[1]
    assert len(list((cache / "reference").iterdir())) == 2


@QUIET
def test_a_reference_of_another_size_is_cropped_as_a_folder_of_it_would_be(some, tmp_path):
    large = drawn(tmp_path / "large", 30, (48, 40))
    whole = next(image_batches(large, 30, 40))
    packed = np.stack([np.array(Image.open(file)) for file in sorted(large.iterdir())])
    packed = saved(tmp_path / "packed.npz", packed)
    assert measured(some, packed) == measured(some, large)
    assert next(image_batches(packed, 30)).shape == (30, 3, 40, 48)
    assert torch.equal(next(image_batches(packed, 30, 40)), whole)
    with pytest.warns(UserWarning, match="48 x 40; they are cropped to 40 x 40"):
        measured(packed, some)


@QUIET
def test_the_cache_keeps_what_a_reference_is_cropped_to_apart(some, tmp_path, cache):
    reference = drawn(tmp_path / "large", 30, (48, 40))
    packed = np.stack([np.array(Image.open(file)) for file in sorted(reference.iterdir())])
    packed = saved(tmp_path / "packed.npz", packed)
    small = saved(tmp_path / "small.npz", np.load(some)["arr_0"][:, :16, :16])
    alone = measured(small, packed)
    for file in (cache / "reference").iterdir():
        file.unlink()
    measured(some, packed)
    assert measured(small, packed) == alone


def test_an_npz_is_read_in_pieces_as_it_is(some):
    whole = torch.from_numpy(np.load(some)["arr_0"]).permute(0, 3, 1, 2)
    assert torch.equal(torch.cat(list(image_batches(some, 7))), whole)
    assert features_of(some, StandIn(), batch=7, progress=False).pool.shape == (40, 64)


def test_no_other_decoder_is_asked_for_the_size_of_a_folder(tmp_path):
    for name, side, kind in (("a.png", 8, "PNG"), ("b.jpg", 16, "ICO"), ("c.jpg", 16, "ICO")):
        Image.fromarray(noise(1, side)[0]).save(tmp_path / name, kind)
    assert evaluate._size_of(tmp_path) == 8


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


def test_images_in_fortran_s_order_are_refused_with_a_remedy_that_works(tmp_path, some):
    """Arrays of Matlab have that order. Their shape and type are the wanted ones."""
    images = np.asfortranarray(noise())
    path = saved(tmp_path / "odd.npz", images)
    with pytest.raises(DataError, match=r"Fortran's order.*np\.ascontiguousarray\(arr_0\)"):
        list(image_batches(path, 8))
    saved(path, np.ascontiguousarray(images))
    assert torch.equal(torch.cat([*image_batches(path, 8)]), torch.cat([*image_batches(some, 8)]))


@pytest.mark.parametrize("batch", [0, -1, 2.5, None, "8"])
@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_a_batch_that_is_no_count_is_an_argument_and_no_damaged_file(batch, kind, some, pictures):
    source = some if kind == "npz" else pictures
    with pytest.raises(ConfigError, match="batch is"):
        features_of(source, StandIn(), batch=batch, progress=False)


def test_too_few_images_are_refused_and_few_are_warned_of(tmp_path, some):
    with pytest.raises(DataError, match="at least 4"):
        measured(saved(tmp_path / "three.npz", noise(3)), some)
    with pytest.warns(UserWarning, match="50,000"):
        measured(some, some)


def test_images_that_are_not_bytes_are_refused():
    with pytest.raises(ConfigError, match="uint8"):
        StandIn()(torch.zeros(1, 3, 8, 8))


# statistics that another program computed of a whole set


class Narrow(StandIn):
    """The stand-in with few spatial features, whose covariance is soon taken apart."""

    widths = MappingProxyType({"fid": 64, "sfid": 20})

    def __init__(self):
        super().__init__()
        self.seen = 0

    def __call__(self, images):
        self.seen += len(images)
        found = super().__call__(images)
        return found._replace(spatial=found.spatial[:, :20])


def whole(n=400, seed=9):
    """What ADM and pytorch-fid keep of a set: {name: array} for the stand-in's features."""
    parts = Narrow()(torch.from_numpy(noise(n, seed=seed)).permute(0, 3, 1, 2))
    kept = {}
    for rows, (mean, covariance) in zip(parts, (("mu", "sigma"), ("mu_s", "sigma_s"))):
        kept |= {
            mean: rows.double().mean(0).numpy(),
            covariance: np.cov(rows.double().numpy(), rowvar=False),
        }
    return kept


def by_sqrtm(mean1, cov1, mean2, cov2):
    """Heusel's formula as pytorch-fid and torch-fidelity write it: the matrix root of a product,
    its real part.
    """
    root = scipy.linalg.sqrtm(cov1 @ cov2)
    return float(
        ((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root.real)
    )


@pytest.fixture(scope="module")
def statistics():
    return whole()


PICKLED = b"\x80\x04}\x94."  # an empty mapping


@QUIET
def test_adm_s_file_gives_the_distance_to_the_whole_set_and_its_images_precision_and_recall_alone(
    tmp_path, statistics
):
    images, some = noise(30, seed=5), saved(tmp_path / "some.npz", noise(200))
    np.savez(tmp_path / "adm.npz", arr_0=images, **statistics)
    saved(tmp_path / "images.npz", images)
    values, plain = (
        measured(some, tmp_path / name, extractor=Narrow()) for name in ("adm.npz", "images.npz")
    )
    own = Narrow()(torch.from_numpy(np.load(some)["arr_0"]).permute(0, 3, 1, 2))
    for name, rows, pair in (
        ("fid", own.pool, ("mu", "sigma")),
        ("sfid", own.spatial, ("mu_s", "sigma_s")),
    ):
        right = metrics.frechet_distance(
            *metrics.moments(rows), *(torch.from_numpy(statistics[name]) for name in pair)
        )
        assert values[f"standin_{name}"] == pytest.approx(float(right), rel=1e-8)
    assert not set(values) & {"standin_fid_to_30_images", "standin_sfid_to_30_images"}
    assert not set(plain) & {
        "standin_fid",
        "standin_sfid",
    }  # a distance to images never has the name of one to the whole set
    assert plain["standin_fid_to_30_images"] > values["standin_fid"]
    assert {
        name: values[name]
        for name in ("standin_precision", "standin_recall", "standin_inception_score")
    } == {
        name: plain[name]
        for name in ("standin_precision", "standin_recall", "standin_inception_score")
    }


@QUIET
def test_a_shifted_mean_is_seen_and_the_images_beside_it_do_not_hide_it(some, tmp_path, statistics):
    np.savez(tmp_path / "adm.npz", arr_0=noise(30, seed=5), **statistics)
    np.savez(
        tmp_path / "moved.npz",
        arr_0=noise(30, seed=5),
        **{**statistics, "mu": statistics["mu"] + 5},
    )
    before, after = (
        measured(some, tmp_path / name, extractor=Narrow())["standin_fid"]
        for name in ("adm.npz", "moved.npz")
    )
    assert after - before == pytest.approx(64 * 25, rel=0.1)


@QUIET
@pytest.mark.parametrize(
    "kept", [("mu", "sigma"), ("mu_s", "sigma_s"), ("mu", "sigma", "mu_s", "sigma_s")]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f8"])
def test_statistics_without_images_are_a_reference_of_the_metrics_that_they_suffice_for(
    some, tmp_path, statistics, kept, dtype
):
    np.savez_compressed(
        tmp_path / "stats.npz",
        **{name: np.asfortranarray(statistics[name].astype(dtype)) for name in kept},
    )
    rows, _ = evaluate_samples(some, tmp_path / "stats.npz", Narrow(), progress=False)
    expected = {"standin_inception_score", "standin_inception_score_std"} | {
        f"standin_{name}" for name, mean in (("fid", "mu"), ("sfid", "mu_s")) if mean in kept
    }
    assert {row["metric"] for row in rows} == expected
    assert all(
        row["reference_images"] is None
        and "no images: no precision and recall" in row["reference_holds"]
        for row in rows
    )
    assert {row["metric"]: row["reference_kind"] for row in rows if "fid" in row["metric"]} == {
        name: "statistics" for name in expected if "fid" in name
    }


@pytest.mark.parametrize("name", ["frechet_main", "frechet_shifted"])
def test_the_distance_to_statistics_is_that_of_pytorch_fid_and_torch_fidelity(name):
    f = case("metrics", name)
    theirs = optional("torch_fidelity.metric_fid", "eval").fid_statistics_to_metric
    own, kept = (
        [x.numpy() for x in metrics.moments(f["fake"])],
        [f[name].numpy() for name in ("mu_real", "cov_real")],
    )
    ours = float(metrics.frechet_to(f["fake"], f["mu_real"], f["cov_real"]))
    assert ours == pytest.approx(by_sqrtm(*own, *kept), rel=1e-8)
    told = theirs({"mu": own[0], "sigma": own[1]}, {"mu": kept[0], "sigma": kept[1]}, False)[
        "frechet_inception_distance"
    ]
    assert ours == pytest.approx(float(told), rel=1e-8)


@pytest.mark.parametrize("n", [2, 9, 30, 31])
def test_the_distance_of_few_rows_to_statistics_is_that_of_their_covariance(n):
    f = case("metrics", "frechet_main")
    rows, kept = f["fake"][:n], (f["mu_real"], f["cov_real"])
    torch.testing.assert_close(
        metrics.frechet_to(rows, *kept),
        metrics.frechet_distance(*metrics.moments(rows), *kept),
        rtol=1e-6,
        atol=0,
    )  # roots of rounding


def changed(statistics, **changes):
    return {name: value for name, value in {**statistics, **changes}.items() if value is not None}


def negative(covariance):
    return covariance - 2 * np.eye(len(covariance)) * np.linalg.eigvalsh(covariance)[-1]


WRONG = {
    "half of a pair": (lambda s: changed(s, sigma=None), DataError, "mu without sigma"),
    "of another network": (
        lambda s: {"mu": np.zeros(2048), "sigma": np.eye(2048)},
        DataError,
        "2,048 features, and stand-in has 64",
    ),
    "turned": (
        lambda s: changed(s, mu=s["mu"][None]),
        DataError,
        r"mu \(1, 64\) and sigma \(64, 64\)",
    ),
    "not square": (lambda s: changed(s, sigma=s["sigma"][:, :9]), DataError, r"sigma \(64, 9\)"),
    "NaN": (lambda s: changed(s, sigma=s["sigma"] * np.nan), DataError, "sigma of .* holds NaN"),
    "infinite": (
        lambda s: changed(s, mu=s["mu"] + np.inf),
        DataError,
        "mu of .* holds NaN or infinite",
    ),
    "not symmetric": (
        lambda s: changed(s, sigma=s["sigma"] + np.triu(np.ones((64, 64)), 1)),
        DataError,
        "sigma is not symmetric",
    ),
    "not positive": (
        lambda s: changed(s, sigma=negative(s["sigma"])),
        DataError,
        "sigma has the eigenvalue",
    ),
    "not positive, of sFID": (
        lambda s: changed(s, sigma_s=-s["sigma_s"]),
        DataError,
        "sigma_s has the eigenvalue",
    ),
    "integers": (lambda s: changed(s, mu=s["mu"].astype(int)), DataError, "dtype int64"),
    "complex": (lambda s: changed(s, sigma=s["sigma"] + 0j), DataError, "dtype complex128"),
    "objects": (
        lambda s: changed(s, mu=np.array([print], dtype=object)),
        UntrustedFileError,
        "holds objects, which may run code",
    ),
    "other names": (
        lambda s: {"mean": s["mu"], "cov": s["sigma"]},
        DataError,
        "holds mean, cov; a reference holds arr_0",
    ),
    "features": (lambda s: {"pool_3": np.zeros((9, 2048))}, DataError, "holds pool_3"),
    "nothing": (lambda s: {}, DataError, "holds nothing"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_statistics_that_are_none_are_one_line_before_any_feature_is_computed(
    kind, some, tmp_path, statistics
):
    make, error, words = WRONG[kind]
    np.savez(tmp_path / "odd.npz", **make(statistics))
    extractor = Narrow()
    with pytest.raises(error, match=words) as caught:
        measured(some, tmp_path / "odd.npz", extractor=extractor)
    assert "odd.npz" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert extractor.seen == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd.npz", "some.npz"]


@pytest.mark.parametrize("kind", ["no image", "three", "three files", "grey", "half"])
def test_a_reference_that_is_none_is_refused_before_any_feature_of_the_samples_is_computed(
    kind, some, tmp_path
):
    """Features of 50,000 samples take an hour, and would be lost."""
    reference = tmp_path / "odd.npz"
    if kind in ("no image", "three files"):
        reference = tmp_path / "odd"
        reference.mkdir()
        for number in range(3 if kind == "three files" else 0):
            Image.fromarray(noise(1)[0]).save(reference / f"{number}.png")
    elif kind == "half":
        reference.write_bytes(some.read_bytes()[:5000])
    else:
        saved(reference, noise(3) if kind == "three" else noise()[..., :1])
    extractor = StandIn()
    extractor.body.register_forward_pre_hook(lambda *_: pytest.fail("a feature was computed"))
    with pytest.raises(DataError, match="each side needs" if "three" in kind else "odd"):
        measured(some, reference, extractor=extractor)
    if "three" in kind:  # too few samples are seen as early
        with pytest.raises(DataError, match="each side needs"):
            measured(reference, some, extractor=extractor)


@pytest.mark.parametrize("name", ["ref.pkl", "ref.npz", "ref.pt"])
@pytest.mark.parametrize("as_samples", [False, True])
def test_a_pickle_is_refused_by_name_whatever_it_is_called(
    name, as_samples, some, tmp_path, statistics
):
    path = tmp_path / name
    torch.save(statistics, path) if name.endswith(".pt") else path.write_bytes(PICKLED)
    with pytest.raises(
        UntrustedFileError, match=rf"{name} was not loaded: it is a pickle"
    ) as caught:
        measured(*((path, some) if as_samples else (some, path)))
    assert caught.value.exit_code == 8


# the card


@QUIET
def test_every_row_carries_the_card_and_the_card_is_printed(run, tmp_path, pictures):
    from cfm_lite.scale.sample import Settings, sample_imagenet

    drawn = Settings(
        num=6, seed=3, solver="heun", steps=2, guidance=1.5, interval=(0.2, 0.9), batch=4
    )
    npz = sample_imagenet(run, tmp_path / "S", drawn, progress=False)
    rows, _ = evaluate_samples(npz, pictures, StandIn(), progress=False)
    expected = {
        "method": "vecor", "network": "SiT-Ti/2", "dataset": "imagenet", "seed": 3, "steps": 6, "nfe": 4, "sampler": "heun",
        "guidance": 1.5,
        "interval": [0.2, 0.9], "sampler_steps": 2, "network_rows": 6, "average": "ema", "average_decay": 0.99, "codec": "tiny",
        "samples": 6, "features": "stand-in", "reference": str(pictures), "labels": "turn",
    }  # fmt: skip
    for row in rows:
        assert {name: row[name] for name in expected} == expected
        assert row["features_hash"] == StandIn().fingerprint
        assert len(row["reference_hash"]) == len(row["weights"]) == len(row["codec_hash"]) == 64
        assert {"commit", "cfm_lite"} <= set(row)
    lines = " ".join(card.told(rows[0]))
    for words in (
        "6 samples of vecor",
        "average ema 0.99",
        "guidance 1.5 in [0.2, 0.9]",
        "seed 3",
        "codec tiny",
        "24 images",
        "stand-in",
    ):
        assert words in lines


@QUIET
def test_settings_json_is_about_samples_npz_and_no_other_file_beside_it(run, tmp_path):
    from cfm_lite.scale.sample import Settings, sample_imagenet

    settings = Settings(num=6, steps=2, batch=6)
    npz = sample_imagenet(run, tmp_path / "S", settings, progress=False)
    foreign = saved(npz.with_name("adm.npz"), noise(6))
    own, other = (
        evaluate_samples(path, npz, StandIn(), progress=False)[0][0] for path in (npz, foreign)
    )
    assert own["method"] == "vecor"
    assert not {"method", "sampler", "guidance", "weights"} & set(other)
    assert "nothing else is known" in card.told(other)[0]


@QUIET
def test_names_that_are_not_utf_8_lose_no_metric(some, tmp_path):
    odd = some.rename(tmp_path / os.fsdecode(b"caf\xe9.npz"))
    rows, path = evaluate_samples(odd, odd, StandIn(), progress=False)
    kept = json.loads(path.read_bytes())
    assert [row["value"] for row in kept] == [row["value"] for row in rows]
    assert {row["file"] for row in kept} == {odd.name}
    assert {row["reference"] for row in kept} == {str(odd)}


@QUIET
def test_the_card_of_foreign_samples_says_that_nothing_is_known(some):
    rows, _ = evaluate_samples(some, some, StandIn(), progress=False)
    assert not {"method", "sampler", "guidance"} & set(rows[0])
    assert "nothing else is known" in card.told(rows[0])[0]


# a cache is a convenience


@QUIET
@pytest.mark.parametrize("trouble", ["file", "full", "read-only"])
def test_a_cache_that_cannot_be_written_costs_a_note_and_no_metric(
    trouble, some, tmp_path, cache, monkeypatch
):
    reference = saved(tmp_path / "reference.npz", noise(30, seed=5))
    right = measured(some, reference)
    if trouble == "file":
        monkeypatch.setattr(evaluate, "cache_root", lambda: some)
    else:
        monkeypatch.setattr(evaluate, "cache_root", lambda: tmp_path / "other")
        number = {
            "full": (28, "No space left on device"),
            "read-only": (30, "Read-only file system"),
        }[trouble]
        monkeypatch.setattr(root, "publish", lambda *_: (_ for _ in ()).throw(OSError(*number)))
    with pytest.warns(UserWarning, match="the reference's features cannot be kept") as noted:
        assert measured(some, reference) == right
    assert sum("kept" in str(note.message) for note in noted) == 1


@QUIET
@pytest.mark.parametrize("content", ["shorter", "other", "empty"])
def test_a_damaged_cache_is_made_again(content, some, tmp_path, cache):
    reference = saved(tmp_path / "reference.npz", noise(30, seed=5))
    right = measured(some, reference)
    (file,) = (cache / "reference").iterdir()
    parts = Features(*(torch.from_numpy(part) for part in np.load(file).values()))
    if content == "shorter":
        np.savez(
            file,
            **{
                name: value.numpy()
                for name, value in parts._replace(pool=parts.pool[:9])._asdict().items()
            },
        )
    else:
        file.write_bytes(b"" if content == "empty" else PICKLED)
    assert measured(some, reference) == right


def test_without_a_place_in_the_cache_inception_is_fetched_into_a_folder_until_exit(
    tmp_path, monkeypatch
):
    (tmp_path / "inception").write_text("no folder")
    monkeypatch.setattr(features, "cache_root", lambda: tmp_path)
    fetched = []
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda url, path, **_: fetched.append(path)
    )
    with pytest.warns(UserWarning, match="Inception's weights cannot be kept"):
        path = features._fetched()
    assert fetched == [str(path)]
    assert not path.is_relative_to(tmp_path)
    assert path.parent.is_dir()


@QUIET
def test_rows_that_could_not_be_written_are_refused_before_any_feature_is_computed(some, tmp_path):
    (tmp_path / "file").write_text("in the way")
    extractor = Counting()
    with pytest.raises(DataError, match="cannot make or write"):
        measured(some, some, extractor=extractor, out=tmp_path / "file" / "metrics.json")
    assert extractor.seen == 0


# folders of images as samples


def drawn(folder, count=8, size=(32, 32), suffix="png", seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(
        np.random.default_rng(seed).integers(0, 256, (count, size[1], size[0], 3), dtype=np.uint8)
    ):
        Image.fromarray(pixels).save(
            folder / f"{i:03d}.{suffix}", **({"lossless": True} if suffix == "webp" else {})
        )
    return folder


@QUIET
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_a_flat_folder_is_measured_as_the_npz_of_its_images_is(suffix, some, tmp_path):
    folder = drawn(tmp_path / "flat", suffix=suffix)
    pixels = np.stack(
        [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())]
    )
    npz = saved(tmp_path / "same.npz", pixels)
    assert measured(folder, some) == measured(npz, some)
    assert measured(some, folder) == measured(some, npz)


@QUIET
def test_nested_folders_are_measured_and_an_npz_in_a_folder_wins(some, tmp_path):
    folder = drawn(tmp_path / "nested" / "a", 5)
    drawn(folder.parent / "b" / "deep", 4, seed=1)
    rows, path = evaluate_samples(folder.parent, some, StandIn(), progress=False)
    assert rows[0]["samples"] == 9
    assert path == folder.parent / "metrics.json"
    saved(folder.parent / "samples.npz", noise())
    rows, _ = evaluate_samples(folder.parent, some, StandIn(), progress=False)
    assert rows[0]["samples"] == 40


@QUIET
@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (((32, 32), (48, 40)), "2 sizes: 3 of 11 are not 32 x 32"),
        (((40, 32),), "images of 40 x 32"),
    ],
)
def test_images_that_have_to_be_cropped_are_said(sizes, words, some, tmp_path):
    for i, (size, count) in enumerate(zip(sizes, (8, 3))):
        drawn(tmp_path / "mixed" / str(i), count, size)
    with pytest.warns(UserWarning, match=f"{words}.*cropped to 32 x 32"):
        measured(tmp_path / "mixed", some)
    assert next(image_batches(tmp_path / "mixed", 4, 32)).shape[-2:] == (32, 32)


@QUIET
def test_images_of_one_size_are_measured_as_they_are_whatever_that_size_is(some, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "8 samples against")
        small, large = (
            measured(drawn(tmp_path / str(side), size=(side, side)), some) for side in (16, 300)
        )
    assert all(
        small[name] != large[name]
        for name in ("standin_fid_to_40_images", "standin_sfid_to_40_images")
    )
    assert not list(itertools.chain(*((tmp_path / side).glob("*.npz") for side in ("16", "300"))))
