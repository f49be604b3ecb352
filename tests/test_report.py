"""The report is a function of the JSON files alone, answers every question, and chooses its words
by the statistics.
"""

import json
import shutil

import numpy as np
import pytest

from cfm_lite import cli
from cfm_lite import lab as experiments
from cfm_lite.errors import DataError
from cfm_lite.lab import SUITES, Store, answers, readme, statistics
from cfm_lite.lab.measures import row_base
from cfm_lite.lab.results import Place, Results, said_of
from cfm_lite.lab.store import write_rows

METRICS = {
    "sliced_wasserstein": 0.2,
    "frechet": 1.0,
    "frechet_real": 0.6,
    "accuracy": 0.9,
    "recall": 0.8,
    "feature_norm": 12.0,
}
GAINS = {"vecor": -0.05}  # planted, far above the spread of 0.002
GROWS = {"dispersive": 2.0}
PLANTED = {  # in one variant
    **{("vecor_latent", variant): 0.05 for variant in ("k=4", "weight=0.35", "weight=0.5")},
    **{(arm, "hidden_size=64"): -0.2 for arm in ("delta_fm", "fm_scaled", "fm_retargeted")},
}


def made_rows(suite, group, seeds, gains=GAINS):
    """Rows as a sweep leaves them, drawn from a seeded law: all methods are FM but for the planted
    ones.
    """
    rng = np.random.default_rng(sum(map(ord, suite + group)))
    for trial in experiments.trials(suite, group, seeds=range(seeds), changes={}):
        for way in trial.samplings:
            base = row_base(
                trial.arm,
                trial.recipe.changed(guidance=way.guidance),
                way.samples,
                way.steps,
                way.solver,
            )
            tag = {"variant": trial.variant} if group != "core" else {}
            for metric, value in METRICS.items():
                planted = gains.get(trial.arm, 0.0) + PLANTED.get((trial.arm, trial.variant), 0.0)
                shift = planted if metric in ("frechet", "sliced_wasserstein") else 0.0
                number = (value + shift) * GROWS.get(trial.arm, 1.0) ** (
                    metric == "feature_norm"
                ) + 0.002 * rng.normal()
                yield {**base, "metric": metric, "value": number, "key": trial.key, **tag}


def make(folder, suites=("toy", "digits"), groups=None, seeds=5):
    for suite in suites:
        store = Store(folder, suite)
        for group in groups or SUITES[suite].groups:
            write_rows(store.path(group), list(made_rows(suite, group, seeds)))
        facts = {
            "cores": 2,
            "processor": "a processor",
            "device": "cpu",
            "torch": "2",
            "commit": "0123456789abcdef",
        }
        sitting = {
            "command": f"cfm-lite compare {suite} --group all",
            "seconds": 7200.0,
            "facts": facts,
        }
        judge = {"dataset": suite, "accuracy": 0.9876, "fingerprint": "ab" * 32}
        store.write_info({"suite": suite, "judge": judge, "sittings": [sitting, sitting]})
        cost = {
            "batch": 256,
            "device": "cpu",
            "processor": "a processor",
            "metric": "step_seconds",
            "rounds": 40,
        }
        fm = {**cost, "method": "fm", "value": 0.01, "relative": 1.0, "low": 1.0, "high": 1.0}
        write_rows(
            store.costs_path,
            [
                fm,
                {
                    **cost,
                    "method": "dispersive",
                    "value": 0.016,
                    "relative": 1.5,
                    "low": 1.4,
                    "high": 1.7,
                },
            ],
        )
    return folder


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    """Intervals of 300 resamples: as good for these tests, and far cheaper."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "RESAMPLES", 300)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = make(tmp_path_factory.mktemp("whole"))
    return folder, readme.write_report(folder)


def bytes_of(paths):
    return {path.name: path.read_bytes() for path in paths}


def test_the_report_is_a_function_of_the_json_files_alone(whole, tmp_path):
    folder, paths = whole
    first = bytes_of(paths)
    for path in folder.glob("*.json"):
        shutil.copy(path, tmp_path / path.name)
    assert cli.main(["compare", "--report", "--out", str(tmp_path)]) == 0
    assert bytes_of(tmp_path / path.name for path in paths) == first
    assert bytes_of(readme.write_report(folder)) == first
    assert {f"question_{n}.png" for n in range(1, 10)} | {
        "README.md",
        "toy.png",
        "digits.png",
    } == set(first)


def test_every_question_is_answered_and_says_not_measured_yet_where_rows_are_missing(
    whole, tmp_path
):
    text = (whole[0] / "README.md").read_text()
    assert "ot measured" not in text
    assert [f"## {n}. " in text for n in range(1, 10)] == [True] * 9
    part = make(tmp_path, suites=("digits",), groups=("core",))
    readme.write_report(part)
    sections = (part / "README.md").read_text().split("\n## ")
    asked = {section[0]: section for section in sections if section[1:2] == "."}
    assert [n for n, section in asked.items() if "Not measured yet." in section] == ["5", "8", "9"]
    (short,) = [section for section in sections if section.startswith("In short")]
    assert short.count("Not measured yet.") == 3
    assert not (part / "question_5.png").exists()


def test_verdicts_are_those_of_the_planted_gains(whole):
    results = Results(whole[0])
    found = {
        method: said_of(results.difference("digits", Place(method)))
        for method in results.methods("digits")[1:]
    }
    assert all(found[method] == "gains" for method in GAINS)
    assert (
        sum(word != "no clear difference" for method, word in found.items() if method not in GAINS)
        <= 1
    )  # of 13 that do nothing
    turned = results.difference("digits", Place("fm"), base=Place("vecor"))
    assert said_of(turned) == "loses"
    text = (whole[0] / "README.md").read_text()
    short = next(line for line in text.splitlines() if line.startswith("**With 50 evaluations, "))
    assert short.startswith(
        "**With 50 evaluations, VeCoR gains in the plane and on the digits; no clear difference "
        "anywhere for ΔFM, "
    )
    assert "null" not in short


def test_a_paper_s_number_stands_beside_ours_with_the_verdict(whole):
    text = (whole[0] / "README.md").read_text()
    vecor, repa = (
        text[text.index(paper) :].split("\n- ")[0]
        for paper in ("20.01 → 15.56 (−22 %)", "20.01 → 11.14 (−44 %)")
    )
    assert "\n  - On the digits for VeCoR Fréchet distance 1 → 0.9" in vecor
    places = "in the plane for VeCoR, in the plane with width 32 for VeCoR, "
    places += "in the plane with 500 steps for VeCoR and on the digits for VeCoR"
    assert f"The gain is there {places}. Here:" in vecor
    assert "**The gain is not reproduced**" in repa
    delta = text[text.index("20.01 → 16.32 (−18 %)") :].split("\n- ")[
        0
    ]  # planted in the small network alone
    assert "The gain is there on the digits with width 64." in delta
    small = next(line for line in delta.splitlines() if "width 64 Fréchet distance 1 → " in line)
    assert small.endswith("(−20 %, n = 5), gains")
    assert "no clear difference" in repa


def test_what_the_controls_reach_in_a_small_network_is_told(whole):
    text = (whole[0] / "README.md").read_text()
    section = text[text.index("\n## 2. ") :].split("\n## ")[1]
    short = next(line for line in section.splitlines() if line.startswith("**"))
    assert short.startswith("**Against FM that is only re-targeted, in the plane VeCoR gains")
    assert "In other networks and trainings, in the plane VeCoR with width 32 (" in short
    small = short.split("For example, ")[1]
    assert small.endswith(
        "; on the digits with width 64 ΔFM −20 %, scaled FM −20 %, re-targeted FM −20 %.**"
    )
    assert (
        "  - Width 64, ΔFM −20 %, scaled FM −20 %, re-targeted FM −20 %: gains; what is left: "
        in section
    )
    first = next(line for line in text.splitlines() if line.startswith("**With 50 evaluations, "))
    less = first.split(
        "With less (the fewest evaluations, the smallest network, the shortest training), "
    )[1]
    assert "ΔFM gains on the digits (width 64)" in less


def test_settings_are_held_against_the_core_s_and_those_that_spoil_are_named(whole):
    text = (whole[0] / "README.md").read_text()
    section = text[text.index("\n## 9. ") :].split("\n## ")[1]
    short = next(line for line in section.splitlines() if line.startswith("**"))
    assert (
        "VeCoR (latent) with λ = 0.35 and 0.5 and VeCoR (latent) with K = 4 lose, no clear "
        "difference for " in short
    )
    assert "  - VeCoR (latent): loses at 4 (" in section
    assert ", no clear difference at 1 and 2\n" in section


def test_where_nothing_is_clear_the_answer_says_that_it_is_a_null_result():
    values = {seed: 1 + 0.01 * (-1) ** seed for seed in range(6)}
    idle = experiments.paired_difference("x", "frechet", 50, values, dict.fromkeys(values, 1.0))
    better = experiments.paired_difference(
        "y", "frechet", 50, dict.fromkeys(values, 0.5), dict.fromkeys(values, 1.0)
    )
    assert (
        answers.by_suite({"digits": [("x", idle)]})
        == "On the digits no clear difference for x (a null result)."
    )
    assert (
        answers.by_suite({"digits": [("x", idle), ("y", better)], "toy": []})
        == "On the digits y gains, no clear difference for x."
    )
    assert answers.by_suite({"digits": [("z", None)]}) == "Not measured yet."
    assert (
        answers.by_method({"digits": [("x", "", idle)]}, "here ")
        == "Here no clear difference anywhere for x (a null result)."
    )
    assert answers.by_method({"digits": [("z", "", None)]}) == "Not measured yet."


def test_places_and_settings_are_gathered_by_method():
    ones = dict.fromkeys(range(6), 1.0)
    better, worse = (
        experiments.paired_difference("y", "frechet", 50, dict.fromkeys(ones, v), ones)
        for v in (0.5, 1.5)
    )
    idle = experiments.paired_difference(
        "x", "frechet", 50, {seed: 1 + 0.01 * (-1) ** seed for seed in ones}, ones
    )
    told = {
        "digits": [("y", "width 64", better), ("y", "325 steps", better), ("x", "", idle)],
        "mnist": [("y", "", worse), ("x", "", worse)],
    }
    said = "Y gains on the digits (width 64, 325 steps), loses on MNIST; x loses on MNIST."
    assert answers.by_method(told) == said
    del told["mnist"][1]
    assert (
        answers.by_method(told)
        == "Y gains on the digits (width 64, 325 steps), loses on MNIST; no clear difference anywhere for x."
    )


def test_higher_is_better_turns_the_words(whole):
    results = Results(whole[0])
    d = results.difference("digits", Place("vecor"), "recall")
    assert said_of(d) == "no clear difference"
    assert (
        said_of(
            experiments.paired_difference(
                "x", "recall", 50, {0: 1, 1: 1, 2: 1}, {0: 0.5, 1: 0.5, 2: 0.5}
            )
        )
        == "gains"
    )
    assert (
        said_of(
            experiments.paired_difference(
                "x", "frechet", 50, {0: 1, 1: 1, 2: 1}, {0: 0.5, 1: 0.5, 2: 0.5}
            )
        )
        == "loses"
    )


def test_a_variant_is_compared_with_plain_fm_of_its_own_or_of_the_core(whole):
    results = Results(whole[0])
    own, core = (
        Place("delta_fm", "size", "hidden_size=64"),
        Place("delta_fm", "weight", "weight=0.2"),
    )
    assert results.base("digits", own) == Place("fm", "size", "hidden_size=64")
    assert results.base("digits", core) == Place("fm")
    values = {
        seed: results.values("digits", own, "frechet")[seed]
        - results.values("digits", results.base("digits", own), "frechet")[seed]
        for seed in range(5)
    }
    assert results.difference("digits", own).mean == pytest.approx(np.mean(list(values.values())))


def test_the_facts_of_a_suite_are_told(whole):
    text = (whole[0] / "README.md").read_text()
    for words in (
        "`cfm-lite compare digits --group all`",
        "2 cores (a processor)",
        "`0123456789`",
        "4.0 hours",
        "98.8%",
        "takes FM 10.0 ms on cpu (a processor)",
        "Dispersive 1.50 [1.40, 1.70]",
    ):
        assert words in text
    assert "vecor" not in text.replace("-vecor-", "").replace(
        "fm_retargeted_vecor", ""
    )  # methods have their names, outside links


def test_diverged_jobs_and_miniatures_are_named(tmp_path):
    store = Store(make(tmp_path, suites=("toy",), groups=("core",), seeds=2), "toy")
    rows = store.rows("core")
    bad = {
        **rows[0],
        "method": "delta_fm",
        "seed": 1,
        "metric": "diverged",
        "value": None,
        "reason": "the loss is inf in step 7",
    }
    write_rows(store.path("core"), [*rows, bad])
    store.write_info({**store.info(), "quick": True})
    readme.write_report(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "**diverged**: ΔFM, seed 1 (core): the loss is inf in step 7" in text
    assert "its numbers mean nothing" in text
    assert "| FM |" not in text  # no table, and no answer
    assert text.count("**Not measured yet.**") == 9


def test_rows_of_other_settings_are_said_to_be_such(tmp_path):
    store = Store(make(tmp_path, suites=("digits",), groups=("core",), seeds=2), "digits")
    recipe = SUITES["digits"].base("core", {"hidden_size": 32}).as_dict()
    store.write_info({**store.info(), "groups": {"core": {"recipe": recipe}}})
    readme.write_report(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "not with the suite's own settings: hidden_size 32 (not 256)" in text
    assert "Not measured yet: `sit`, `image`, `perturbation`" in text


def test_rows_of_older_files_can_still_be_reported(tmp_path):
    make(tmp_path, suites=("digits",), groups=("core",))
    store = Store(tmp_path, "digits")
    write_rows(
        store.path("core"),
        [{k: v for k, v in row.items() if k != "key"} for row in store.rows("core")],
    )
    store.write_info({"suite": "digits", "judge": "abc", "facts": {}})
    store.costs_path.unlink()
    readme.write_report(tmp_path)
    assert "a machine that is not recorded" in (tmp_path / "README.md").read_text()


def test_the_effect_of_threads_is_told_where_it_was_measured(tmp_path):
    make(tmp_path, suites=("digits",), groups=("core",))
    rows = [
        {"threads": n, "seed": s, "metric": "frechet", "value": 1 + 0.01 * n * s}
        for n in (1, 2)
        for s in (0, 1)
    ]
    write_rows(tmp_path / "threads.json", rows)
    readme.write_report(tmp_path)
    assert (
        "1 and 2 threads move the Fréchet distance of FM on the digits by up to 0.01 "
        in (tmp_path / "README.md").read_text()
    )


def test_an_empty_folder_is_a_clear_error(tmp_path, capsys):
    with pytest.raises(DataError, match="holds no rows"):
        readme.write_report(tmp_path)
    assert cli.main(["compare", "--report", "--out", str(tmp_path)]) == 3


def test_committed_rows_can_be_read():
    results = Results(readme.Path(__file__).parent.parent / "data" / "results")
    assert "digits" in results.suites
    json.dumps([results.seeds(suite) for suite in results.suites])
    assert results.difference("digits", Place("delta_fm")).seeds >= 5
