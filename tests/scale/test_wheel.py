"""The wheel alone, in an empty folder: it runs the demo, an explorer and the course's checks.

The wheel is built from a copy of the package and installed in an environment of its own, which finds
torch and the other dependencies where this interpreter has them. No network is used.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)  # 40 s on two quiet cores
ROOT = Path(__file__).resolve().parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CFM_LITE_DATA")}
    done = subprocess.run(
        command, cwd=cwd, env=kept | env, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "cfm_lite", source / "cfm_lite", ignore=ignored)
    local = ["--no-deps", "--no-index", "--no-build-isolation"]
    run(*PIP, "wheel", *local, "--wheel-dir", out, source, cwd=source)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory) -> Path:
    """The folder of python and cfm-lite in an environment that holds the wheel."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    place = home / ("Scripts" if os.name == "nt" else "bin")
    install = ["install", "--no-deps", "--no-index", wheel]
    run(*PIP, "--python", place / "python", *install, cwd=home)
    paths = {"base": str(home), "platbase": str(home)}
    own = Path(sysconfig.get_path("purelib", "venv", paths))
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return place


def test_the_wheel_holds_the_networks_the_course_and_nothing_of_the_checkout(wheel):
    files = zipfile.ZipFile(wheel).infolist()
    names = [file.filename for file in files]
    networks = [path.name for path in (ROOT / "cfm_lite/checkpoints").iterdir()]
    assert networks
    assert {f"cfm_lite/checkpoints/{name}" for name in networks} <= set(names)
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "cfm_lite").rglob("*.py")}
    assert sources <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"cfm_lite"}
    # the networks have a limit of their own: 10 MB, tests/test_pretrained.py
    rest = [file for file in files if not file.filename.startswith("cfm_lite/checkpoints/")]
    assert sum(file.compress_size for file in rest) < 1_000_000


def test_the_demo_runs_from_the_wheel(scripts, tmp_path):
    said = run(scripts / "cfm-lite", "demo", "--quick", "--out", "here", cwd=tmp_path)
    assert "Fréchet" in said
    made = {path.name for path in (tmp_path / "here").iterdir()}
    pictures = {"samples.png", "fields.png", "quality_vs_steps.png", "pictures.png"}
    assert {*pictures, "metrics.json"} <= made


CODE = """
import cfm_lite
from cfm_lite import course, widgets
assert cfm_lite.__file__.startswith({home!r}), cfm_lite.__file__
explorer = widgets.features()
assert bytes(explorer.png).startswith(b"\\x89PNG")
assert len(course.exercises()) > 33
assert course.check("6.1", 0.5 * 256 * 768)
assert not course.check("6.1", 1.0)
course.check("8.3", (2, 50))
"""


def test_an_explorer_and_the_checks_run_from_the_wheel(scripts, tmp_path):
    said = run(scripts / "python", "-c", CODE.format(home=str(scripts.parent)), cwd=tmp_path)
    right, wrong, missing = said.splitlines()
    assert right == "✓ Exercise 6.1: correct."
    assert wrong.startswith("✗ Exercise 6.1: 1 is not it.")
    assert missing.startswith("✗ Exercise 8.3: not checked: data/results/digits.json")
    assert "clone" in missing.lower()
