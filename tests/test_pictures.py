"""Pictures of networks beside real ones, as `python -m tools.pictures` measures and draws them."""

import json

import pytest

from cfm_lite import runs, viz
from cfm_lite.data.datasets import dataset
from cfm_lite.runs.recipe import recipe
from tools import pictures

TINY = {"hidden_size": 8, "num_heads": 2, "batch": 16, "shard": 16, "steps": 2, "warmup": 0}


def test_a_run_is_measured_and_drawn_under_its_own_method_data_set_and_classes(
    tmp_path, monkeypatch, capsys
):
    drawn = []
    monkeypatch.setattr(viz, "image_grid", lambda rows, names, **how: drawn.append((rows, names)))
    monkeypatch.setattr(viz, "save", lambda figure, path: path.touch())
    monkeypatch.setattr(pictures, "STEPS", 2)
    chosen = recipe("digits_sit", method="delta_fm", **TINY)
    runs.train(chosen, dataset("digits"), out=tmp_path / "run")
    other = recipe("digits_sit", **TINY)
    runs.train(other, dataset("digits"), out=tmp_path / "other")
    pictures.main(
        [
            "--run",
            str(tmp_path / "run"),
            str(tmp_path / "other"),
            "--samples",
            "20",
            "--guidance",
            "3",
            "--out",
            str(tmp_path),
        ]
    )
    rows = json.loads((tmp_path / "pictures_digits.json").read_text())
    assert list(dict.fromkeys(row["title"] for row in rows)) == ["ΔFM", "ΔFM, guidance 3", "FM"]
    assert {(row["title"], row["guidance"]) for row in rows if row["metric"] == "frechet"} == {
        ("ΔFM", 1.0),
        ("ΔFM, guidance 3", 3.0),
        ("FM", 1.0),
    }
    assert {(row["method"], row["dataset"], row["network"]) for row in rows} == {
        ("delta_fm", "digits", "run"),
        ("fm", "digits", "other"),
    }
    ((images, names),) = drawn
    assert names == [c for c in range(10) for _ in range(2)]
    assert [len(x) for x in images.values()] == [20, 20, 20, 20]
    assert list(images)[1].startswith("ΔFM, 2 NFE, Fréchet ")
    assert (tmp_path / "pictures_digits.png").exists()
    stored = pictures.stored_tiles(tmp_path / "pictures_digits.tiles.png", 4, 20)
    for x, tiles in zip(images.values(), stored):  # to half a level of 255
        assert (x.clamp(-1, 1) - tiles).abs().max() <= 0.5 / 127.5 + 1e-6

    before = (tmp_path / "pictures_digits.json").read_bytes()
    monkeypatch.setattr(pictures, "measured", None)
    folders = [str(tmp_path / name) for name in ("run", "other")]
    pictures.main(["--redraw", "--run", *folders, "--guidance", "3", "--out", str(tmp_path)])
    assert (tmp_path / "pictures_digits.json").read_bytes() == before
    for x, again in zip(images.values(), drawn[1][0].values()):
        assert x.equal(again)
    for wrong, said in (
        (["--guidance", "4"], "no row tells of ΔFM, guidance 4"),
        (["--samples", "9"], "measures nothing; leave --samples out"),
    ):
        with pytest.raises(SystemExit):
            pictures.main(["--redraw", "--run", *folders, "--out", str(tmp_path), *wrong])
        assert said in capsys.readouterr().err


def test_runs_of_two_data_sets_are_refused(tmp_path, capsys):
    for name in ("two_classes", "moons"):
        chosen = recipe("toy", dataset=name, steps=1, batch=8, shard=8, hidden_size=8)
        runs.train(chosen, dataset(name, points=20), out=tmp_path / name, progress=False)
    with pytest.raises(SystemExit):
        pictures.main(["--run", *(str(tmp_path / name) for name in ("two_classes", "moons"))])
    twice = [tmp_path / "moons", tmp_path / "two_classes"]
    assert list(pictures.networks(twice, 2.0)) == [
        "FM (moons)",
        "FM (moons), guidance 2",
        "FM (two_classes)",
    ]
    assert "the runs are of two_classes and moons; give runs of one" in capsys.readouterr().err
