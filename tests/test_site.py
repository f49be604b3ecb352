"""How the site is put together: its crawl in a browser is tests/browser/test_site.py."""

import ast
import base64
import doctest
import importlib
import importlib.util
import inspect
import sys

import pytest

from tests.test_examples import IDEAS
from tools import address, tables
from tools.rooms import PACKAGE
from tools.site import api, notebooks

PINNED = {
    "paths": "Path LINEAR COSINE VP FlowSample",
    "draws": "uniform_time logit_normal_time lognormal_time independent minibatch_ot drop_labels",
    "perturbations": "channel_shuffle crop_resize cutmix gaussian_blur color_jitter additive_noise",
    "negatives": "in_batch other_class perturbed",
    "losses": "squared_error flow_matching repulsion contrastive_flow_matching vecor dispersive contrastive align",
    "theory": "GaussianMixture optimal_velocity",
    "objective": "Objective FlowMatching Repulsion Dispersive Contrastive Alignment fm delta_fm vecor dispersive repa",
    "methods": "Method METHODS",
    "models": "MLP UNet SiT MMDiT SIT_CONFIGS load_official export_official",
    "guidance": "conditional guide cfg rescale retarget retarget_shuffle debias debias_shuffle",
    "samplers": "euler midpoint heun rk4 trajectory sample sample_adaptive sample_sde log_prob",
    "metrics": "frechet_distance frechet precision_recall inception_score sliced_wasserstein mmd straightness drift",
    "training": "Trainer",
    "widgets": "exact_field trajectories divergence wrong_velocities guidance features words",
    "course": "check say pick",
    "evaluate.judges": "judge_for assess",
    "pretrained": "load",
    "runs.recipe": "recipe",
    "data.batches": "batches",
    "data.images": "find read load",
    "errors": "CFMError",
}  # fmt: skip
DOT = base64.b64encode(b"a picture").decode()


def test_public_names_are_assigned_one_by_one():
    """The site's reader of the code does not see `A, B = 1, 2`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            several = {
                n.id
                for t in targets
                if isinstance(t, ast.Tuple)
                for n in ast.walk(t)
                if isinstance(n, ast.Name)
            }
            assert not several or not several & set(api.names_of(path)), path


def code(source, *outputs, tags=()):
    return {
        "cell_type": "code",
        "source": source,
        "metadata": {"tags": [*tags]},
        "outputs": [*outputs],
    }


def shown(**data):
    kinds = {"png": "image/png", "html": "text/html", "md": "text/markdown", "plain": "text/plain"}
    return {"output_type": "execute_result", "data": {kinds[k]: v for k, v in data.items()}}


@pytest.mark.parametrize("module", PINNED)
def test_every_pinned_name_has_its_place_on_a_page(module):
    shown = api.modules_of(module.partition(".")[0])
    assert set(PINNED[module].split()) <= set(shown[f"cfm_lite.{module}"])


@pytest.mark.parametrize("module", PINNED)
def test_every_pinned_function_has_an_example_that_gives_what_it_shows(module):
    """Those of the ideas and the networks are tried in tests/test_examples.py."""
    pytest.importorskip("anywidget")
    loaded = importlib.import_module(f"cfm_lite.{module}")
    runner = doctest.DocTestRunner()
    for name in PINNED[module].split():
        value = getattr(loaded, name)
        if inspect.isfunction(value):
            names = {**vars(sys.modules[value.__module__])}
            found = [
                t for t in doctest.DocTestFinder().find(value, name, globs=names) if t.examples
            ]
            assert found, f"{module}.{name} has no example"
            for test in found if module not in IDEAS else []:
                runner.run(test)
    assert runner.failures == 0


def test_a_notebook_becomes_a_page_with_folded_solutions_and_pictures_as_files(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": "# Title\n\n[next](01_paths.ipynb)", "metadata": {}},
        code("1 + 1", shown(plain="2")),
        code("plot()", shown(png=DOT, plain="<Figure>")),
        code("film()", shown(png=DOT) | {"metadata": {"image/png": {"width": 560}}}),
        code("say()", shown(md="It is **2**.", plain="<Markdown>")),
        code("print(2)", {"output_type": "stream", "name": "stdout", "text": "two\n"}),
        code("...", tags=["exercise"]),
        code("the_answer()", tags=["solution"]),
    ]
    notebooks.written("a", {"cells": cells, "metadata": {}}, tmp_path)
    page = (tmp_path / "a.md").read_text(encoding="utf-8")
    assert "# Title" in page
    assert "[next](01_paths.md)" in page
    assert "[Download this notebook](a.ipynb)" in page
    assert (tmp_path / "a_files" / "01.png").read_bytes() == b"a picture"
    assert "![Figure of the section: Title](a_files/01.png)" in page
    assert "(a_files/02.png){ .output loading=lazy width=560 }" in page
    assert "It is **2**." in page
    assert page.count("<Figure>") == page.count("<Markdown>") == 0
    folded = page.split("<summary>Solution</summary>")[1].split("</details>")[0]
    assert "the_answer()" in folded
    assert page.count("the_answer()") == 1


def test_a_page_has_a_link_to_colab_only_with_an_address(tmp_path, monkeypatch):
    notebook = {
        "cells": [{"cell_type": "markdown", "source": "# T", "metadata": {}}],
        "metadata": {},
    }
    for urls, there in (({}, False), ({"Repository": "https://github.com/o/n"}, True)):
        monkeypatch.setattr(address, "urls", lambda urls=urls: urls)
        notebooks.written("a", notebook, tmp_path)
        assert ("colab" in (tmp_path / "a.md").read_text(encoding="utf-8")) is there


def test_links_to_notebooks_and_decks_open_on_the_site():
    assert doctest.testmod(notebooks).failed == 0
    assert notebooks.for_the_site("[a](1_a.pdf)") == "[a](1_a.html) ([PDF](1_a.pdf))"
    assert notebooks.for_the_site('<a href="../a.ipynb">') == '<a href="../a.html">'


def test_marks_of_tables_do_not_stand_on_the_site():
    for document, marks in tables.DOCUMENTS.items():
        text = (address.ROOT / document).read_text(encoding="utf-8")
        found = notebooks.for_the_site(text)
        assert all(f"<!-- {mark} -->" in text and f"<!-- {mark} -->" not in found for mark in marks)


@pytest.mark.skipif(not importlib.util.find_spec("griffe"), reason="not run: needs the extra site")
def test_signatures_say_shapes_and_doctests_are_blocks():
    import griffe

    from tools.site import docstrings

    plain = "Of rows (B, *dims).\n\n>>> 1 + 1\n2\n\n>>> 2 + 2\n4"
    fence = "```pycon\n>>> 1 + 1\n2\n\n>>> 2 + 2\n4\n```"
    assert docstrings.readable(plain) == f"Of rows (B, \\*dims).\n\n{fence}"

    loaded = griffe.load(
        "cfm_lite",
        extensions=griffe.load_extensions(docstrings.Docstrings),
        search_paths=[address.ROOT],
    )
    vecor, vectors = loaded["losses.vecor"], 'Float[Tensor, "batch *dims"]'
    assert str(vecor.parameters["v"].annotation).replace("'", '"') == vectors
    assert vectors in str(vecor.parameters["u_neg"].annotation).replace("'", '"')
    assert "```pycon\n>>> vecor(" in vecor.docstring.value
