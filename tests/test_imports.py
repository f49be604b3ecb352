"""The rooms import only from rooms above them, so the file list is the lecture plan."""

import ast
import subprocess
import sys

import pytest

from tools.rooms import ORDER, PACKAGE, imported, room_of

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_from_rooms_above_it(path):
    place = ORDER.index(room_of(path))
    below = [room for room in imported(path) if ORDER.index(room) > place]
    assert not below, f"{path.name} imports {below}, which come later"


def test_every_room_stands_in_the_order():
    rooms = {room_of(path) for path in FILES} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert rooms == set(ORDER)


def test_optional_packages_are_not_imported_before_they_are_needed():
    lazy = [
        "timm",
        "torchvision",
        "torchdiffeq",
        "ipywidgets",
        "seaborn",
        "diffusers",
        "sklearn",
        "matplotlib.pyplot",
    ]
    code = f"import sys, cfm_lite.cli, cfm_lite.lab, cfm_lite.demo; print([m for m in {lazy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_no_user_input_is_checked_by_assert_and_nothing_is_unpickled():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            assert not isinstance(node, ast.Assert), f"{where}: python -O would remove this check"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name = ast.unparse(node.func)
                assert name not in (
                    "pickle.load",
                    "pickle.loads",
                    "torch.hub.load",
                    "yaml.load",
                    "os.system",
                ), where
                words = {word.arg: word.value for word in node.keywords}
                if name == "torch.load":
                    assert isinstance(words.get("weights_only"), ast.Constant), where
                    assert words["weights_only"].value is True, where
                if "allow_pickle" in words:
                    assert words["allow_pickle"].value is False, where
