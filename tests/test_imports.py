"""The rooms import only from rooms above them, so the file list is the lecture plan."""

import ast
import pydoc
import re
import subprocess
import sys

import pytest

import cfm_lite
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


def test_what_is_slow_or_optional_is_not_imported_before_it_is_needed():
    lazy = [
        "timm",
        "torchvision",
        "torchdiffeq",
        "ipywidgets",
        "seaborn",
        "diffusers",
        "sklearn",
        "matplotlib.pyplot",
        "torch._dynamo",  # takes as long as torch itself
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


def test_the_face_lists_every_module_and_its_classes_resolve():
    assert set(dir(cfm_lite)) == (set(ORDER) - {"_internal"}) | set(cfm_lite._CLASSES) | {
        "__version__"
    }
    for name in dir(cfm_lite):
        assert getattr(cfm_lite, name) is not None
        if name[0] != "_":
            assert re.search(rf"\b{name}\b", cfm_lite.__doc__), f"{name} is not in help(cfm_lite)"
    with pytest.raises(AttributeError, match="cfm_lite has no 'lossess'"):
        cfm_lite.lossess  # pyright: ignore[reportAttributeAccessIssue]


def test_the_face_loads_no_torch_before_a_module_is_used():
    code = (
        "import sys, cfm_lite; dir(cfm_lite); assert 'torch' not in sys.modules; "
        "from cfm_lite import losses; assert cfm_lite.losses is losses; "
        "from cfm_lite import MLP; assert MLP is cfm_lite.models.MLP"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_is_an_index_that_fits_two_screens():
    shown = pydoc.render_doc(cfm_lite, renderer=pydoc.plaintext)
    assert len(shown.splitlines()) <= 100
    assert "losses" in shown
