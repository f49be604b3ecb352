"""What every test shares: one thread, a fixed global seed, and a summary line for what could not
run.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import shapes

if TYPE_CHECKING:
    import torch

SCALE = Path(__file__).parent / "scale"

# torch is imported where it is needed: the process that only hands tests out to workers, which wait
# for it, needs none.


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # it runs no test itself
    gc.disable()  # until all tests are known: there is no garbage, only millions of objects
    # pytest imports it where a socket that nobody closed is collected. Inside another import that
    # is a KeyError in Python 3.11's import lock, and a test of a broken download fails by chance.
    import tracemalloc  # noqa: F401

    import torch

    # tests are small; two workers of two threads on two cores would only wait for each other
    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What was imported stays: the collector looks for garbage among what tests make, and seldom."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    """Each test starts from one global seed, with every once-only warning unsaid, and with torch's
    own way to print: a notebook's cells may have changed it.
    """
    import torch

    from cfm_lite._internal import checks

    torch.manual_seed(0)
    torch.set_printoptions(profile="default")
    checks._warned.clear()


@pytest.fixture
def generator() -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(1234)


@pytest.fixture(scope="module")
def few_evaluations() -> Iterator[None]:
    """The suite of points samples with 2 and 4 evaluations, not with five counts up to 50."""
    from cfm_lite.lab import suites

    groups = suites.SUITES["toy"].groups
    with pytest.MonkeyPatch.context() as patch:
        for name, group in groups.items():
            small = dataclasses.replace(group, samplings=suites.euler(2, 4))
            patch.setitem(groups, name, small)
        yield


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where no test of tests/scale is wanted, its files and what they need are not even imported."""
    unwanted = config.option.markexpr == "not scale" and collection_path == SCALE
    return unwanted or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    if shapes.ON:
        config.hook.pytest_deselected(items=[i for i in items if not shapes.can_check(i)])
        items[:] = [item for item in items if shapes.can_check(item)]
    if order := os.environ.get("CFM_LITE_ORDER"):
        shuffle_within_files(items, int(order))
    has_data = bool(os.environ.get("CFM_LITE_DATA"))
    in_browser = bool(os.environ.get("CFM_LITE_BROWSER"))
    long = bool(os.environ.get("CFM_LITE_FAULTS"))
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="not run: needs a CUDA device"))
        if item.get_closest_marker("browser") and not in_browser:
            item.add_marker(pytest.mark.skip(reason="not run: needs Chromium, make test-browser"))
        if item.get_closest_marker("faults") and not long:
            item.add_marker(pytest.mark.skip(reason="not run: the long tier, make test-faults"))
        if item.get_closest_marker("real_data") and not has_data:
            item.add_marker(pytest.mark.skip(reason="not run: needs real files, set CFM_LITE_DATA"))


def shuffle_within_files(items: list[pytest.Item], seed: int) -> None:
    """Reorder the tests of every file by `seed`; files stay together, for what they cache."""
    place = {path: i for i, path in enumerate(dict.fromkeys(item.path for item in items))}
    random.Random(seed).shuffle(items)
    items.sort(key=lambda item: place[item.path])


def pytest_terminal_summary(terminalreporter) -> None:
    reasons = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    for cause, what in (
        ("CUDA device", "GPU tests did not run: no CUDA device"),
        ("Chromium", "browser tests did not run: make test-browser runs them"),
        ("long tier", "long fault tests did not run: make test-faults runs them"),
        ("torchcfm", "test of torchcfm's U-Net did not run: pip install 'cfm-lite[bench]'"),
        ("CFM_LITE_DATA", "real-data tests did not run: set CFM_LITE_DATA"),
    ):
        missed = sum(cause in reason for reason in reasons)
        if missed:
            terminalreporter.write_line(f"{missed} {what}")
