"""Optional packages: imported late, missed clearly, and torchvision's Python part without its
compiled one.
"""

import contextlib
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cfm_lite._internal.lazy import optional
from cfm_lite.errors import ConfigError

# a package that, like torchvision, describes a compiled operator which is not there
HALF_BUILT = """
import torch
import half_built.part
torch.library.register_fake("torchvision::{operator}")(lambda *_: None)
tries = half_built.part.tries  # missing if the second attempt finds the first one's `part`, which belongs to another package object
"""


@pytest.fixture(autouse=True, scope="module")
def _torchvision_first() -> None:
    """Its compiled library ends the process if its operators are declared before it is loaded."""
    with contextlib.suppress(ConfigError):
        optional("torchvision", "imagenet")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder from which packages can be imported for the length of one test: `packages(name,
    file=text)`.
    """
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name: str, **files: str) -> None:
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / f"{file}.py").write_text(text)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_package_that_is_there_is_returned():
    assert optional("json", "any") is sys.modules["json"]
    assert optional("xml.dom", "any").__name__ == "xml.dom"


def test_an_import_does_not_move_the_random_numbers_of_python(packages):
    packages("restless", __init__="import random\nrandom.seed(1)")
    random.seed(0)
    wanted = random.random()
    random.seed(0)
    optional("restless", "any")
    assert random.random() == wanted


def test_a_missing_package_names_the_extra():
    with pytest.raises(
        ConfigError, match=r"no_such_package is not installed: pip install 'cfm-lite\[imagenet\]'"
    ):
        optional("no_such_package.part", "imagenet")


def test_a_package_that_misses_another_names_that_one(packages):
    packages("needy", __init__="import no_such_package")
    with pytest.raises(ConfigError, match="no_such_package is not installed"):
        optional("needy", "ode")


@pytest.mark.parametrize("error", ["ImportError('libfoo.so')", "RuntimeError('wrong build')"])
def test_a_package_that_cannot_be_imported_says_why(packages, error):
    packages("broken", __init__=f"raise {error}")
    with pytest.raises(
        ConfigError, match=r"broken is installed but cannot be imported .*(libfoo|wrong build)"
    ):
        optional("broken", "ode")


def test_an_operator_that_only_has_a_description_does_not_stop_the_import(packages):
    packages(
        "half_built", __init__=HALF_BUILT.format(operator="cfm_lite_test_one"), part="tries = []"
    )
    module = optional("half_built", "imagenet")
    assert module.tries == []
    with pytest.raises(NotImplementedError):  # declared, not defined
        torch.ops.torchvision.cfm_lite_test_one(torch.zeros(1, 4), torch.zeros(1), 0.5)


def test_the_reason_is_found_behind_the_errors_of_packages_between(packages):
    wrapped = "try:\n    import half_built\nexcept RuntimeError as e:\n    raise ImportError('cannot') from e"
    packages(
        "half_built", __init__=HALF_BUILT.format(operator="cfm_lite_test_three"), part="tries = []"
    )
    packages("above", __init__=wrapped)
    assert optional("above", "imagenet").half_built.tries == []


def test_a_second_failure_is_reported(packages):
    packages(
        "half_built",
        __init__=HALF_BUILT.format(operator="cfm_lite_test_two") + "import no_such_package",
        part="tries = []",
    )
    with pytest.raises(ConfigError, match="no_such_package is not installed"):
        optional("half_built", "imagenet")


def test_importing_the_library_imports_no_optional_package():
    code = "import sys, cfm_lite.models; print([m for m in ('timm', 'torchvision', 'torchdiffeq', 'matplotlib') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.strip() == "[]"


def test_timm_can_be_imported_beside_any_build_of_torchvision():
    timm = optional("timm", "imagenet")
    assert timm.is_model("vit_base_patch14_dinov2")
    assert optional("timm", "imagenet") is timm


WITHOUT_EXTRAS = """
import importlib, importlib.abc, pkgutil, sys
ABSENT = {absent!r}

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import cfm_lite
from cfm_lite.errors import ConfigError
for info in pkgutil.walk_packages(cfm_lite.__path__, "cfm_lite.", onerror=lambda name: None):
    try:
        importlib.import_module(info.name)
    except ConfigError as error:
        print(info.name, "|", error)
"""
EXTRAS = {  # the modules of what only an extra installs
    "ipywidgets", "anywidget", "traitlets", "IPython", "seaborn", "jupyterlab", "torchdiffeq", "diffusers", "tensorboard", "timm",
    "torchvision", "torch_fidelity", "nbformat", "nbclient", "torchcfm", "transformers",
}  # fmt: skip


def test_without_any_extra_every_module_loads_or_says_in_one_line_what_to_install():
    code = WITHOUT_EXTRAS.format(absent=EXTRAS)
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    said = dict(line.split(" | ") for line in done.stdout.splitlines())
    assert set(said) == {"cfm_lite.widgets"}  # its submodules are never reached
    assert (
        said["cfm_lite.widgets"] == "ipywidgets is not installed: pip install 'cfm-lite[notebooks]'"
    )


def test_what_a_notebook_shows_needs_ipython_and_says_so(monkeypatch):
    from cfm_lite import course

    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.raises(
        ConfigError,
        match=r"IPython(\.display)? is not installed: pip install 'cfm-lite\[notebooks\]'",
    ):
        course.say("Nothing is shown.")
