"""The report is a function of the JSON files alone, and its sentences, written by hand, say what the
statistics allow.
"""

import doctest
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from cfm_lite import cli, viz
from cfm_lite import lab as experiments
from cfm_lite.errors import DataError
from cfm_lite.evaluate.reader import Score
from cfm_lite.lab import SUITES, Store, statistics
from cfm_lite.lab.measures import row_base
from cfm_lite.lab.store import write_rows
from tools.costs import path_of
from tools.report import pages, results
from tools.report.figures import differences_table
from tools.report.results import Place, Results, said_of

METRICS = {
    "sliced_wasserstein": 0.2,
    "frechet": 1.0,
    "frechet_real": 0.6,
    "accuracy": 0.9,
    "recall": 0.8,
    "feature_norm": 12.0,
}
OF_WORDS = {f"{part}_{at}": 0.9 for part in Score._fields for at in ("seen", "held_out")}
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
            for metric, value in (OF_WORDS if suite == "words" else METRICS).items():
                planted = gains.get(trial.arm, 0.0) + PLANTED.get((trial.arm, trial.variant), 0.0)
                shift = planted if metric in ("frechet", "sliced_wasserstein") else 0.0
                shift -= planted if metric == "colours_held_out" else 0.0
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
            path_of(folder, suite),
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
    return folder, pages.write_report(folder)


def test_the_examples_of_the_report_are_right():
    found = doctest.testmod(results)
    assert found.attempted >= 5
    assert not found.failed


@pytest.fixture
def text_alone(monkeypatch):
    """A report whose figures are made and not written: drawing them takes most of its time."""
    monkeypatch.setattr(pages.viz, "save", lambda figure, path: path)


def bytes_of(paths):
    return {path.name: path.read_bytes() for path in paths}


def report_of(folder):
    """Both pages of the report in a folder, as one text."""
    return "".join((folder / name).read_text(encoding="utf-8") for name in PAGES)


PAGES = ("README.md", "tables.md")
COMMITTED = Results(Path(__file__).parent.parent / "data" / "results")
SENTENCES = pages.TEMPLATE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def filled(few_resamples):
    """The sentences of the template with the committed rows, by the intervals of a real report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "RESAMPLES", 10_000)
        return pages.fill_in(COMMITTED, SENTENCES.split(pages.TABLES)[0])


def test_every_verdict_of_the_template_is_that_of_the_committed_rows(filled):
    assert not filled.contradicted  # these sentences say other than the rows
    assert "ot measured yet" not in filled.text  # no sentence was left out
    assert "{{" not in filled.text


def test_the_committed_report_is_that_of_the_committed_rows(filled):
    report = (COMMITTED.folder / "README.md").read_text(encoding="utf-8")
    assert report == filled.text
    assert "](tables.md)" in report
    assert len(report.splitlines()) <= 150


def test_no_verdict_stands_outside_a_mark():
    bare = pages.MARK.sub("", SENTENCES.replace("*gains* or *loses*", ""))
    bare = bare.replace("*no clear difference*", "")
    assert not re.findall(r"\b(?:gain|lose)s?\b|no clear difference", bare)


@pytest.mark.parametrize("suite", ["digits", "mnist_short", "cifar10"])
def test_what_is_said_of_all_others_is_held_against_every_method(suite):
    """A sentence about recall that names a remainder must mark each method of the core."""
    named = {
        cell.place.method
        for word, text in pages.MARK.findall(SENTENCES)
        if word in pages.VERDICTS and "metric=recall" in text
        for cell in pages.cells(COMMITTED, text)
        if cell.suite == suite
    }
    assert named == set(COMMITTED.methods(suite)) - {"fm"}


def test_a_sentence_that_the_rows_contradict_is_named_and_says_what_they_say(whole):
    said = "VeCoR {{gains: toy,digits vecor}}, ΔFM {{gains: digits delta_fm}}."
    filled = pages.fill_in(Results(whole[0]), said)
    assert filled.text == "VeCoR gains, ΔFM ~~gains~~ (ΔFM: no clear difference).\n"
    assert filled.contradicted == [filled.text.strip()]


def test_a_mark_names_places_by_lists_and_alternatives():
    text = "toy,digits vecor,delta_fm size/hidden_size=64 nfe=8,50; digits vecor base=core k/k=4"
    found = list(pages.cells(COMMITTED, text))
    assert len(found) == 9
    assert found[0].place == Place("vecor", "size", "hidden_size=64", 8)
    assert found[-1][1:3] == (Place("vecor", "k", "k=4"), Place("vecor"))
    (control,) = pages.cells(COMMITTED, "digits delta_fm sit base=control")
    assert control.base == Place("fm_retargeted", "sit")


def test_numbers_of_a_mark_are_those_of_the_rows(whole):
    results = Results(whole[0])
    d = results.difference("digits", Place("vecor"))
    told = pages.fill_in(results, "{{change: digits vecor}} {{mean: digits fm}}").text.split()
    assert told == [f"−{-d.mean:.3g}", f"{results.mean('digits', Place(), 'frechet'):.3g}"]
    told = pages.fill_in(results, "{{ratio: digits dispersive metric=feature_norm}}").text
    assert float(told) == pytest.approx(2.0, abs=0.01)
    assert pages.fill_in(results, "{{percent: digits vecor}}").text == "−5 %\n"


def test_the_report_is_a_function_of_the_json_files_alone(whole, tmp_path, monkeypatch, capsys):
    folder, paths = whole
    first = bytes_of(paths)
    for path in folder.glob("*.json"):
        shutil.copy(path, tmp_path / path.name)
    monkeypatch.setattr("sys.argv", ["tools.report", str(tmp_path)])
    runpy.run_module("tools.report", run_name="__main__")
    assert str(tmp_path / "README.md") in capsys.readouterr().out
    assert bytes_of(tmp_path / path.name for path in paths) == first
    drawn = {*pages.FIGURES} - {"question_10.png"}  # which needs the suite words
    assert {*drawn, *PAGES, "toy.png", "digits.png"} == set(first)


def test_a_section_says_what_was_not_measured_and_leaves_out_its_sentences(whole, tmp_path):
    part = make(tmp_path, suites=("digits",), groups=("core",))
    pages.write_report(part)
    sections = (part / "README.md").read_text(encoding="utf-8").split("\n## ")
    asked = {section[0]: section for section in sections if section[1:2] == "."}
    assert set(asked) == set("123456789")
    assert "*Not measured yet: `cfm-lite compare digits --group guidance`" in asked["8"]
    assert "question_8.png" not in asked["8"]
    assert "{{" not in "".join(sections)
    assert "| REPA | 20.01 → 11.14 (−44 %) |" in asked["1"]  # a row of a table stays
    assert not (part / "question_5.png").exists()


def test_every_picture_that_the_report_names_is_there(whole):
    text = report_of(whole[0])
    named = set(re.findall(r"\]\((.*?\.png)\)", text))
    assert named == {path.name for path in whole[1]} - set(PAGES)


def test_a_picture_that_lies_beside_the_rows_stays_with_its_caption(tmp_path):
    line = "![drawn](drawn.png)<br>*What you see*: it."
    folder = make(tmp_path, ("toy",), ("core",))
    assert "drawn" not in pages.fill_in(Results(folder), f"{line}\n").text
    (folder / "drawn.png").touch()
    assert line in pages.fill_in(Results(folder), f"{line}\n").text
    committed = "".join(pages.pages(COMMITTED).values())
    pictures = re.findall(r"^!\[.*?\]\((pictures.*?)\)", SENTENCES, re.MULTILINE)
    assert pictures
    assert all(f"]({name})<br>*What you see*" in committed for name in pictures)


def test_a_figure_has_at_most_four_panels_and_four_entries_and_fits_a_page(whole, guided):
    for name, draw in pages.FIGURES.items():
        figure = draw(guided if name == "question_10.png" else Results(whole[0]))
        entries = [entry for legend in figure.legends for entry in legend.get_texts()]
        assert max(len(figure.axes), len(entries)) <= 4, name
        assert figure.get_figwidth() <= viz.PAGE, name


def test_verdicts_are_those_of_the_planted_gains(whole):
    results = Results(whole[0])
    found = {
        method: said_of(results.difference("digits", Place(method)))
        for method in results.methods("digits")[1:]
    }
    assert all(found[method] == "gains" for method in GAINS)
    idle = [word for method, word in found.items() if method not in GAINS]
    assert sum(word != "no clear difference" for word in idle) <= 1  # of 13 that do nothing
    turned = results.difference("digits", Place("fm"), base=Place("vecor"))
    assert said_of(turned) == "loses"


def test_a_table_of_a_setting_has_the_core_s_value_in_its_place_and_clear_differences_bold(whole):
    lines = [*differences_table(Results(whole[0]), "digits", "weight")]
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[0] for row in table] == ["λ", "---", "0.01", "0.05", "0.1", "0.2", "0.35", "0.5"]
    bold = {row[0] for row in table if "**" in row[table[0].index("VeCoR (latent)")]}
    assert bold == {"0.35", "0.5"}  # where a loss was planted


def test_the_words_turn_where_higher_is_better(whole):
    results = Results(whole[0])
    d = results.difference("digits", Place("vecor"), "recall")
    assert said_of(d) == "no clear difference"
    for metric, word in (("recall", "gains"), ("frechet", "loses")):
        d = experiments.paired_difference(
            "x", metric, 50, dict.fromkeys(range(3), 1), dict.fromkeys(range(3), 0.5)
        )
        assert said_of(d) == word


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


@pytest.fixture(scope="module")
def guided(tmp_path_factory):
    """Rows of the two suites whose samples are guided."""
    return Results(make(tmp_path_factory.mktemp("guided"), ("words", "mnist_guidance")))


def test_pictures_of_words_are_reported_by_their_scores(guided):
    assert results.quality("words") == "right_seen"
    assert guided.core("words", "vecor") == Place("vecor", nfe=20, guidance=2.0)
    text = pages.fill_in(guided, "{{suite: words}}\n\n{{scores: words}}").text
    assert "| 20 evaluations | right, seen | kinds, seen |" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| VeCoR |") and "**" in line]
    cells = [cell.strip() for cell in line.split("|")[2:-1]]
    assert [i for i, cell in enumerate(cells) if "**" in cell] == [7]  # colours, held out
    assert 0.04 < float(cells[7].strip("*")) < 0.06
    (cell,) = pages.cells(guided, "words contrast_by_condition base=guided")
    assert cell.base == Place("fm", "guidance", nfe=20, guidance=2.105)
    assert cell.difference(guided).seeds == 5
    said = "{{gains: words vecor metric=colours_held_out}} {{percent: words vecor}}"
    assert pages.fill_in(guided, said).text.startswith("gains ")
    figure = pages.FIGURES["question_10.png"](guided)
    assert [axis.get_title("left") for axis in figure.axes] == [
        "Seen prompts",
        *["Held-out prompts"] * 3,
    ]


def test_suites_that_are_guided_have_panels_of_their_own(guided):
    drawn = {name: draw(guided) for name, draw in pages.FIGURES.items()}
    assert {name for name, figure in drawn.items() if figure} == {
        "question_8.png",
        "question_10.png",
    }
    (axis,) = drawn["question_8.png"].axes
    assert axis.get_title("left") == "MNIST, guided"
    assert {1.5, 2.0, 3.0} in [set(line.get_xdata()) for line in axis.lines]


def test_the_command_that_ran_a_suite_ends_with_its_report_and_figure(guided, tmp_path):
    """Also where nothing has a Fréchet distance: it must not fail after hours of training."""
    for suite in SUITES:
        make(tmp_path, (suite,), ("core",), seeds=2)
        text = cli.compare.report_suite(suite, tmp_path)
        assert f"{results.quality(suite)} at" in text
        assert text.endswith(f"{suite}.png")


def test_the_facts_of_a_suite_are_told(whole):
    text = report_of(whole[0])
    for words in (
        "`cfm-lite compare digits --group all`",
        "2 cores (a processor)",
        "`0123456789`",
        "hours: 4.0",
        "98.8%",
        "10.0 ms on cpu (a processor)",
        "| Dispersive |\n|---|\n| 1.50 [1.40, 1.70] |",
    ):
        assert words in text
    assert "vecor" not in text  # methods have their names


def test_diverged_jobs_and_miniatures_are_named(text_alone, tmp_path):
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
    pages.write_report(tmp_path)
    text = report_of(tmp_path)
    assert "**diverged**: ΔFM, seed 1 (core): the loss is inf in step 7" in text
    assert "its numbers mean nothing" in text
    assert "| FM |" not in text  # no table, and no answer
    # the short answers, ten questions, the cores, the other six suites, and the threads
    assert text.count("*Not measured yet: ") == 19


def test_rows_of_other_settings_are_said_to_be_such(text_alone, tmp_path):
    store = Store(make(tmp_path, suites=("digits",), groups=("core",), seeds=2), "digits")
    recipe = SUITES["digits"].base("core", {"hidden_size": 32}).as_dict()
    store.write_info({**store.info(), "groups": {"core": {"recipe": recipe}}})
    pages.write_report(tmp_path)
    text = report_of(tmp_path)
    assert "other settings than the suite's: hidden_size 32 (not 256)" in text
    assert "Not measured yet: `sit`, `image`, `perturbation`" in text


def test_rows_of_older_files_can_still_be_reported(text_alone, tmp_path):
    make(tmp_path, suites=("digits",), groups=("core",))
    store = Store(tmp_path, "digits")
    write_rows(
        store.path("core"),
        [{k: v for k, v in row.items() if k != "key"} for row in store.rows("core")],
    )
    store.write_info({"suite": "digits", "judge": "abc", "facts": {}})
    path_of(tmp_path, "digits").unlink()
    pages.write_report(tmp_path)
    assert "machine: not recorded" in report_of(tmp_path)


def test_the_effect_of_threads_is_told_where_it_was_measured(text_alone, tmp_path):
    make(tmp_path, suites=("digits",), groups=("core",))
    rows = [
        {"threads": n, "seed": s, "metric": "frechet", "value": 1 + 0.01 * n * s}
        for n in (1, 2)
        for s in (0, 1)
    ]
    write_rows(tmp_path / "threads.json", rows)
    pages.write_report(tmp_path)
    assert "moves the Fréchet distance of FM by up to 0.01 " in report_of(tmp_path)


def test_an_empty_folder_is_a_clear_error(tmp_path, capsys):
    with pytest.raises(DataError, match="holds no rows"):
        pages.write_report(tmp_path)
    assert cli.main(["compare", "digits", "--report", "--out", str(tmp_path)]) == 3
