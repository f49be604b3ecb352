"""Files that attack: each is refused by one error of ours, nothing in it runs, and nothing is
written outside its folder.

Uncompressed tars and safetensors of others carry no checksum; these tests ask for no more than that
they cannot do harm. There is no reader of YAML, and nothing unpacks a zip: an npz is read member by
member.
"""

import ast
import io
import json
import os
import re
import resource
import shutil
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from cfm_lite import pretrained, runs
from cfm_lite._internal import files
from cfm_lite.cli import main
from cfm_lite.data import archive, cifar10
from cfm_lite.data.latents import Latents, shards
from cfm_lite.engine import checkpoint
from cfm_lite.errors import CFMError, CheckpointError, UntrustedFileError
from cfm_lite.evaluate import images as evaluate
from cfm_lite.evaluate import judges
from cfm_lite.evaluate.samples import load_samples
from cfm_lite.models import load_official
from cfm_lite.models.official import read_weights
from cfm_lite.runs.folder import MEAN
from cfm_lite.scale import sample
from tests.faults.damage import keep
from tests.faults.sets import build
from tests.pictures import made_folder
from tests.processes import forked

REPOSITORY = Path(__file__).parents[2]


# the source: no way to run what a file says


FORBIDDEN = {
    "eval", "exec", "compile", "os.system", "os.popen", "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "yaml.load",
    "yaml.unsafe_load", "marshal.loads", "shelve.open", "runpy.run_path",
}  # fmt: skip
POISON = "with shell, allow_pickle or without weights_only"
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
ALLOWED = {  # file and call: why it harms nobody
    ("tests/test_contributing.py", "exec"): "the guide's own example",
    ("tests/test_contributing.py", "eval"): "the guide's own example",
    ("tests/fakegpu.py", "eval"): "text of its own",
    ("tests/test_own_network.py", "eval"): "the advice of an error, as it stands",
    ("tests/test_documents.py", "exec"): "the README's own example",
    ("tests/test_exercises.py", "eval"): "the answers that the test holds",
    ("tests/slices.py", "compile"): "the notebooks' own cells",
    ("tests/slices.py", "exec"): "the notebooks' own cells",
    ("tests/test_samplers.py", "compile"): "torchdiffeq's own loop, without its asserts",
    ("tests/test_samplers.py", "exec"): "torchdiffeq's own loop, without its asserts",
    ("tests/test_own_network_guide.py", "exec"): "the guide's own examples",
    ("tests/test_rooms.py", "exec"): "the step that the page of the architecture prints",
    ("tests/test_pickling.py", "pickle.dumps"): "pickles that the test makes itself, in memory",
    ("tests/test_pickling.py", "pickle.loads"): "pickles that the test made itself, in memory",
    (
        "tests/test_pickling.py",
        "torch.load without weights_only=True",
    ): "what the test saved itself, in memory",
    ("tests/test_pickling.py", f"torch.load {POISON}"): "what the test saved itself, in memory",
}


def dangers(code: str) -> list[str]:
    """What in a source text could run what a file holds."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLERS:
            found.append(f"from {node.module}")
        if isinstance(node, ast.Import):
            found += [
                f"import {alias.name}"
                for alias in node.names
                if alias.name.split(".")[0] in PICKLERS - {"pickle"}
            ]
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "pickle"
        ):
            found += [f"pickle.{node.attr}"] * (node.attr != "UnpicklingError")
        if isinstance(node, ast.Call):
            found += _in_call(node)
        if isinstance(node, ast.ImportFrom) and node.module in (
            "torch",
            "numpy",
            "torch.hub",
            "torch.jit",
        ):
            found += [
                f"from {node.module} import load" for alias in node.names if alias.name == "load"
            ]
    return found


def _in_call(node: ast.Call) -> list[str]:
    name, words = (
        ast.unparse(node.func),
        {word.arg: ast.unparse(word.value) for word in node.keywords},
    )
    found = [name] if name in FORBIDDEN else []
    if name == "torch.load" and words.get("weights_only") != "True":
        found.append("torch.load without weights_only=True")
    if name.endswith("from_pretrained") and words.get("use_safetensors") != "True":
        found.append("from_pretrained without use_safetensors=True")
    if any(
        words.get(word, safe) != safe
        for word, safe in (("shell", "False"), ("allow_pickle", "False"), ("weights_only", "True"))
    ):
        found.append(f"{name} {POISON}")
    return [
        *found,
        *(
            f"{name} with {word}"
            for word in ("trust_remote_code",)
            if words.get(word, "False") != "False"
        ),
    ]


def sources():
    for folder in ("cfm_lite", "data", "slides", "notebooks", "tests"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            if "node_modules" not in path.parts and "cache" not in path.parts:
                yield path.relative_to(REPOSITORY).as_posix(), path.read_text(encoding="utf-8")
    for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        yield (
            path.relative_to(REPOSITORY).as_posix(),
            re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", "\n".join(code)),
        )


def test_no_source_file_can_run_what_a_file_holds():
    """This folder is looked at too, apart from the poison that this file makes with allow_pickle
    and never reads so.
    """
    files = dict(sources())
    own = Path(__file__).relative_to(REPOSITORY).as_posix()
    found = {
        (name, danger) for name, code in files.items() for danger in dangers(code)
    } - ALLOWED.keys()
    assert {pair for pair in found if pair[0] != own} == set()
    assert {danger for name, danger in found if name == own} == {
        f"np.{call} {POISON}" for call in ("save", "savez")
    }
    assert len(files) > 150


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p, allow_pickle=True)", "pickle.loads(b)",
        "from pickle import loads",
        "import dill", "import joblib", "eval(text)", "exec(text)", "yaml.load(f)", "subprocess.run(c, shell=True)", "os.system(c)",
        "torch.hub.load('a', 'b')", "from torch import load", "torch.jit.load(p)", "M.from_pretrained(p)", "f(trust_remote_code=True)",
        "np.load(p, allow_pickle=flag)",
    ],
)  # fmt: skip
def test_the_look_at_the_source_sees_each_of_them(code):
    assert dangers(code)


# files that attack


class Payload:
    """Would make the folder `marker` when unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def objects(marker):
    array = np.empty(1, object)
    array[0] = Payload(marker)
    return array


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=array.dtype == object)
    return buffer.getvalue()


def pickled(path, marker, *, zipped=True, whole=False):
    torch.save(
        torch.nn.Linear(2, 2) if whole else {"ema": Payload(marker)},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    return path


def bare(path, marker):
    torch.save({"x": Payload(marker)}, path)
    with zipfile.ZipFile(path) as file:
        content = file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))
    path.write_bytes(content)
    return path


def tarred(path, *members, kind="w"):
    with tarfile.open(path, kind) as tar:
        for name, typeflag, content in members:
            info = tarfile.TarInfo(name)
            info.type = typeflag
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content or ""
                tar.addfile(info)
    return path


def long_links(path):
    """Links whose real path grows beyond what the system resolves, which led `filter="data"` of
    older Pythons out of the folder.
    """
    part, deep, members = "d" * 247, "", []
    for letter in "abcdefghijklmnop":
        members += [
            (f"{deep}{part}", tarfile.DIRTYPE, None),
            (f"{deep}{letter}", tarfile.SYMTYPE, part),
        ]
        deep += f"{part}/"
    link = "a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/" + "l" * 254
    members += [
        (link, tarfile.SYMTYPE, "../" * 16),
        ("escape", tarfile.SYMTYPE, f"{link}/../../outside"),
        ("escape/x", tarfile.REGTYPE, b"x"),
    ]
    return tarred(path, *members)


def negative_size(path):
    tarred(path, ("a.png", tarfile.REGTYPE, b"x"))
    content = bytearray(path.read_bytes())
    content[124:136] = b"\xff" * 4 + struct.pack(">q", -512)
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)
    return path


def null_name(path):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.png")
        info.pax_headers = {"path": "a\0b.png"}
        tar.addfile(info)
    return path


def bomb(path):
    with tarfile.open(path, "w:gz", compresslevel=9) as tar:
        info = tarfile.TarInfo("zeros.png")
        info.size = 10**8
        tar.addfile(info, _Zeros())
    return path


class _Zeros:
    def read(self, n):
        return bytes(n)


def st(header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(shape, start, end):
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


TWICE = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
SAFETENSORS = {
    "a header of 2^62 bytes": st({}, length=2**62),
    "a header longer than the file": st({"a": entry([1], 0, 4)}, b"0000", length=5000),
    "tensors that overlap": st({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
    "negative offsets": st({"a": entry([1], -4, 0)}, bytes(4)),
    "an offset beyond the end": st(
        {"a": entry([1], 0, 4), "b": entry([1], 10**9, 10**9 + 4)}, bytes(8)
    ),
    "a shape of 10^9 numbers": st({"a": entry([10**9], 0, 8)}, bytes(8)),
    "a shape that overflows": st({"a": entry([2**62, 2**62], 0, 8)}, bytes(8)),
    "a name twice": st(TWICE, bytes(8)),
    "a header of brackets": st(b"[" * 100_000),
    "a dtype that is none": st(
        {"a": {"dtype": "OBJECT", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)
    ),
}


def forged(folder, name, content):
    """A checkpoint whose manifest agrees with a file of the attacker's."""
    path = checkpoint.save(folder, 1, {"a": torch.zeros(2)}, {}, {})
    (path / name).write_bytes(content)
    return resigned(path)


def resigned(path, extra=()):
    manifest = json.loads((path / "MANIFEST.json").read_text())
    files = {
        name: checkpoint._digest((path / name).read_bytes()) for name in manifest["files"]
    } | dict(extra)
    body = {"format": manifest["format"], "files": files}
    (path / "MANIFEST.json").write_text(
        json.dumps({**body, "self": checkpoint._digest(checkpoint._canonical(body))})
    )
    return path


def pointing(folder, name):
    """A checkpoint whose manifest names a file elsewhere, with its right hash."""
    (folder / "secret").write_bytes(b"secret")
    return resigned(
        checkpoint.save(folder / "run", 1, {"a": torch.zeros(2)}, {}, {}),
        {name: checkpoint._digest(b"secret")},
    )


def linked(folder):
    path = checkpoint.save(folder / "run", 1, {"a": torch.zeros(2)}, {}, {})
    os.replace(path / "weights.safetensors", folder / "elsewhere")
    (path / "weights.safetensors").symlink_to(folder / "elsewhere")
    return path


def latents_with(folder, name, content):
    """A set of latents whose index agrees with a file of the attacker's."""
    out = folder / "L"
    build(made_folder(folder / "set", 2, 4), out)
    (out / name).write_bytes(content)
    index = json.loads((out / "index.json").read_text())
    index.pop("self")
    digest = files.hash_of_file(out / name)
    if name in index["files"]:
        index["files"][name] = digest
    for shard in index["shards"]:
        if shard["file"] == name:
            shard["sha256"] = digest
    return signed(out, index)


def signed(out, index):
    (out / "index.json").write_text(json.dumps({**index, "self": files.hash_of_json(index)}))
    return out


def latents_pointing(folder, file):
    out = latents_with(folder, "keys.txt", b"x")
    index = {k: v for k, v in json.loads((out / "index.json").read_text()).items() if k != "self"}
    shutil.copy(out / "shard-00000.npy", folder / "elsewhere.npy")
    index["shards"][0]["file"] = file
    return signed(out, index)


def samples(folder, marker, **poison):
    arrays = {
        "x": np.zeros((2, 1, 8, 8), np.float32),
        "y": np.zeros(2, np.int64),
        "settings": np.array("{}"),
    } | poison
    np.savez(folder / "s.npz", allow_pickle=True, **arrays)
    return folder / "s.npz"


def zipped_bomb(folder):
    """Small, and it says that it holds 10^10 numbers."""
    with zipfile.ZipFile(folder / "s.npz", "w", zipfile.ZIP_DEFLATED) as file:
        with file.open("x.npy", "w") as member:
            np.lib.format.write_array_header_1_0(
                member, {"descr": "<f4", "fortran_order": False, "shape": (10**10,)}
            )
            member.write(bytes(10**7))
        file.writestr("y.npy", npy(np.zeros(10**10 // 10**8, np.int64)))
        file.writestr("settings.npy", npy(np.array("{}")))
    return folder / "s.npz"


def image_npz(folder, name="arr_0.npy", content=None, shape=None):
    with zipfile.ZipFile(folder / "i.npz", "w", zipfile.ZIP_DEFLATED) as file:
        if shape is None:
            file.writestr(name, content)
            return folder / "i.npz"
        with file.open(name, "w") as member:
            np.lib.format.write_array_header_1_0(
                member, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            member.write(bytes(10**6))
    return folder / "i.npz"


def json_run(folder, text):
    (folder / "config.json").write_text(text)
    return folder


DEEP = "[" * 100_000


def unpack(path, **limits):
    return archive.unpack(path, path.parent / "out" / "folder", **limits)


def cifar(path):
    (path.parent / "cifar10").mkdir()
    shutil.move(path, path.parent / "cifar10" / cifar10.ARCHIVES["cifar10"])
    return cifar10.load(root=path.parent)


def mean_of(folder, marker):
    (folder / MEAN).write_bytes(npy(objects(marker)))
    return runs.read_mean(folder / MEAN, files.hash_of_file(folder / MEAN))


ATTACKS = {
    # pickles
    "a .pt that runs code": lambda f, m: load_official(pickled(f / "w.pt", m), format="sit"),
    "an old .pt that runs code": lambda f, m: load_official(pickled(f / "w.pt", m, zipped=False), format="sit"),
    "a .pth that is a bare pickle": lambda f, m: load_official(bare(f / "w.pth", m), format="repa"),
    "a .pt with a whole model": lambda f, m: read_weights(pickled(f / "w.pt", m, whole=True)),
    "a pickle called .safetensors": lambda f, m: read_weights(pickled(f / "w.pt", m).rename(f / "w.safetensors")),
    "a pickle called judge": lambda f, m: judges.load_judge(pickled(f / "w.pt", m).rename(f / "judge.safetensors")),
    "a pickle as weights of a checkpoint": lambda f, m: checkpoint.load(
        forged(f, "weights.safetensors", pickled(f / "w.pt", m).read_bytes())
    ),
    "a pickle as state of a checkpoint": lambda f, m: checkpoint.load(forged(f, "state.json", bare(f / "w.pt", m).read_bytes())),
    # arrays of objects
    "samples of objects": lambda f, m: load_samples(samples(f, m, x=objects(m))),
    "settings that are objects": lambda f, m: load_samples(samples(f, m, settings=objects(m))),
    "images of objects": lambda f, m: list(evaluate.image_batches(image_npz(f, content=npy(objects(m))), 4)),
    "a shard of objects": lambda f, m: Latents(latents_with(f, "shard-00000.npy", npy(objects(m)))),
    "labels of objects": lambda f, m: Latents(latents_with(f, "labels.npy", npy(objects(m)))),
    "a mean of objects": lambda f, m: Latents(latents_with(f, "mean.npy", npy(objects(m)))),
    "a run's mean of objects": mean_of,
    # tars
    "a tar that climbs": lambda f, m: unpack(tarred(f / "a.tar", ("../../outside.png", tarfile.REGTYPE, b"x"))),
    "a tar that climbs late": lambda f, m: unpack(tarred(f / "a.tar", ("a/../../../outside.png", tarfile.REGTYPE, b"x"))),
    "a tar with a link out": lambda f, m: unpack(tarred(f / "a.tar", ("a", tarfile.SYMTYPE, "../.."), ("a/x", tarfile.REGTYPE, b"x"))),
    "a tar with an absolute link": lambda f, m: unpack(tarred(f / "a.tar", ("a", tarfile.SYMTYPE, "/tmp"), ("a/x", tarfile.REGTYPE, b"x"))),
    "a tar with a link inside": lambda f, m: unpack(tarred(f / "a.tar", ("a", tarfile.SYMTYPE, "b"), ("b", tarfile.REGTYPE, b"x"))),
    "a tar with a hard link": lambda f, m: unpack(tarred(f / "a.tar", ("a", tarfile.LNKTYPE, "/etc/passwd"))),
    "a tar with a device": lambda f, m: unpack(tarred(f / "a.tar", ("a", tarfile.CHRTYPE, None))),
    "a tar with a pipe": lambda f, m: unpack(tarred(f / "a.tar", ("a", tarfile.FIFOTYPE, None))),
    "a tar with long links": lambda f, m: unpack(long_links(f / "a.tar")),
    "a tar with a negative size": lambda f, m: unpack(negative_size(f / "a.tar")),
    "a tar with a null byte in a name": lambda f, m: unpack(null_name(f / "a.tar")),
    "a tar with a name of 300 letters": lambda f, m: unpack(tarred(f / "a.tar", ("n" * 300, tarfile.REGTYPE, b"x"))),
    "a tar of too many": lambda f, m: unpack(tarred(f / "a.tar", *[(f"{i}", tarfile.REGTYPE, b"") for i in range(200)]), members=100),
    "a tar that is a bomb": lambda f, m: unpack(bomb(f / "a.tar.gz"), limit=10**7),
    "CIFAR-10 that climbs": lambda f, m: cifar(tarred(f / "a.tgz", ("../../outside.bin", tarfile.REGTYPE, b"x"), kind="w:gz")),
    "CIFAR-10 with a link": lambda f, m: cifar(tarred(f / "a.tgz", ("data_batch_1.bin", tarfile.SYMTYPE, "/etc/passwd"), kind="w:gz")),
    # zips
    "samples that are a bomb": lambda f, m: load_samples(zipped_bomb(f)),
    "images of 10^9 pixels": lambda f, m: list(evaluate.image_batches(image_npz(f, shape=(1, 40_000, 40_000, 3)), 4)),
    "images without end": lambda f, m: list(evaluate.image_batches(image_npz(f, shape=(10**9, 32, 32, 3)), 4)),
    "a zip with an absolute name": lambda f, m: list(evaluate.image_batches(image_npz(f, name="/tmp/arr_0.npy", content=b"x"), 4)),
    "a zip that climbs": lambda f, m: load_samples(image_npz(f, name="../x.npy", content=b"x")),
    # safetensors, wherever they are read
    **{f"official weights: {what}": lambda f, m, c=c: read_weights(put(f / "w.safetensors", c)) for what, c in SAFETENSORS.items()},
    **{f"judge: {what}": lambda f, m, c=c: judges.load_judge(put(f / "judge.safetensors", c)) for what, c in SAFETENSORS.items()},
    **{f"checkpoint: {what}": lambda f, m, c=c: checkpoint.load(forged(f, "weights.safetensors", c)) for what, c in SAFETENSORS.items()},
    # what points elsewhere, and what is deeper than a parser's stack
    "a manifest that climbs": lambda f, m: checkpoint.load(pointing(f, "../../secret")),
    "a manifest with an absolute name": lambda f, m: checkpoint.load(pointing(f, str(f / "secret"))),
    "a manifest with a null byte": lambda f, m: checkpoint.load(pointing(f, "a\0b")),
    "a manifest that climbs, looked for": lambda f, m: checkpoint.latest(pointing(f, "../../secret").parent),
    "a checkpoint with a link": lambda f, m: checkpoint.load(linked(f)),
    "a manifest of brackets": lambda f, m: checkpoint.load(put(f / "step-1" / "MANIFEST.json", DEEP.encode()).parent),
    "a state of brackets": lambda f, m: checkpoint.load(forged(f, "state.json", DEEP.encode())),
    "a state without a step": lambda f, m: checkpoint.load(forged(f, "state.json", b"{}")),
    "latents that climb": lambda f, m: Latents(latents_pointing(f, "../elsewhere.npy")),
    "latents with an absolute name": lambda f, m: Latents(latents_pointing(f, str(f / "elsewhere.npy"))),
    "keys that climb": lambda f, m: Latents(latents_with(f, "keys.txt", b"\n".join([b"../../etc/passwd"] * 8))).keys,
    "keys with absolute names": lambda f, m: Latents(latents_with(f, "keys.txt", b"\n".join([b"/etc/passwd"] * 8))).keys,
    "an index of brackets": lambda f, m: Latents(put(f / "L" / "index.json", DEEP.encode()).parent),
    "an index that says nothing": lambda f, m: Latents(signed((f / "L").mkdir() or f / "L", {"format": shards.FORMAT})),
    "a run's config of brackets": lambda f, m: runs.read_config(json_run(f, DEEP)),
    "a run's config that is a list": lambda f, m: runs.read_config(json_run(f, '{"data": 3}')),
    "a run's config that is a folder": lambda f, m: runs.saved_recipe((f / "config.json").mkdir() or f),
    "a network's name that climbs": lambda f, m: pretrained.load("../../x"),
    "a network's name with a null byte": lambda f, m: pretrained.load("toy_fm\0"),
}  # fmt: skip
# taken, because they can do nothing: names that look absolute land inside, and damaged caches are
# made anew
HARMLESS = {
    "a tar with an absolute name": lambda f, m: unpack(
        tarred(f / "a.tar", (f"{f.parent}/outside.png", tarfile.REGTYPE, b"x"))
    ),
    "a cached reference of objects": lambda f, m: evaluate._cached(samples(f, m, pool=objects(m))),
    "a part of objects": lambda f, m: sample._is_done(put(f / "part.npy", npy(objects(m))), 1),
}


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def around(folder):
    """Everything beside `folder`, with its size."""
    return {
        path: path.stat().st_size
        for path in folder.parent.rglob("*")
        if folder not in (path, *path.parents) and path.name != "said"
    }


@pytest.mark.parametrize("attack", [*ATTACKS, *HARMLESS])
def test_an_attack_is_one_error_and_nothing_runs_and_nothing_is_written_outside(attack, tmp_path):
    inside, marker = tmp_path / "around" / "in" / "side", tmp_path / "around" / "ran"
    inside.mkdir(parents=True)

    def work():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            (ATTACKS | HARMLESS)[attack](inside, marker)
            code = 0 if attack in HARMLESS else 3
        except CFMError as error:
            print(f"{type(error).__name__}: {error}")
            code = 4 if "\n" in str(error) else 0
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        return code if grown < 200_000 else 5  # kB

    before = around(inside)
    child = forked(work, tmp_path / "said")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = (tmp_path / "said").read_text()
    keep(
        "attacks",
        {
            attack: {
                "answer": said.partition(":")[0],
                "code": code,
                "ran": marker.exists(),
                "wrote": around(inside) != before,
            }
        },
    )
    assert code == 0, said
    assert not marker.exists()
    assert around(inside) == before


def test_the_payload_would_have_run(tmp_path):
    os.mkdir(tmp_path / "a")
    call, arguments = Payload(tmp_path / "ran").__reduce__()
    call(*arguments)
    assert (tmp_path / "ran").exists()


def test_pickles_are_called_untrusted_and_not_merely_damaged(tmp_path):
    for path in (
        pickled(tmp_path / "a.pt", tmp_path / "ran"),
        bare(tmp_path / "b.pt", tmp_path / "ran"),
    ):
        with pytest.raises(UntrustedFileError, match="which could run code"):
            read_weights(path)


# names, temporary files, secrets, pages


def test_a_temporary_name_that_somebody_took_first_is_never_written_through(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 2 * n)
    (tmp_path / f".file.tmp-{'0' * 16}").symlink_to(victim)
    with pytest.raises(FileExistsError):
        files.publish(b"theirs", tmp_path / "file")
    with pytest.raises(CheckpointError):
        checkpoint.write_bytes(tmp_path / "file", b"theirs")
    assert victim.read_bytes() == b"mine"


def test_temporary_names_cannot_be_guessed_and_half_made_checkpoints_are_the_user_s_alone(
    tmp_path, monkeypatch
):
    seen, modes, replace, write = [], set(), os.replace, checkpoint._write
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(Path(a).name), replace(a, b))[1])
    monkeypatch.setattr(
        checkpoint,
        "_write",
        lambda path, data: (modes.add(path.parent.stat().st_mode & 0o777), write(path, data))[1],
    )
    (tmp_path / "run").mkdir(mode=0o750)
    for _ in range(2):
        files.publish(b"x", tmp_path / "a")
        checkpoint.write_bytes(tmp_path / "run" / "b", b"x")
        saved = checkpoint.save(tmp_path / "run", 1, {"a": torch.zeros(2)}, {}, {})
        assert saved.stat().st_mode & 0o777 == 0o750  # once whole, as open as the folder around it
    names = [re.search(r"[0-9a-f]{16,}$", name) for name in seen]
    assert all(names)
    assert len({name[0] for name in names if name}) == len(seen) == 6
    assert modes == {0o700}


def test_links_in_the_place_of_temporaries_lead_nobody_to_delete_what_they_point_to(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".tmp-x").symlink_to(outside, target_is_directory=True)
    (tmp_path / "run" / "step-00000000").symlink_to(outside, target_is_directory=True)
    for step in (1, 2, 3):
        with pytest.warns(UserWarning, match="cannot remove the old checkpoint"):
            checkpoint.save(tmp_path / "run", step, {"a": torch.zeros(2)}, {}, {}, keep=1)
    assert (outside / "file").read_bytes() == b"mine"


def test_secrets_of_the_environment_and_the_command_line_stay_out_of_the_run(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "PASSWORD"):
        monkeypatch.setenv(name, f"hush-{name}")
    monkeypatch.setattr(sys, "argv", ["cfm-lite", "--token=hush-argv"])
    assert (
        main(
            [
                "train",
                "toy",
                "--steps",
                "2",
                "--out",
                str(tmp_path / "run"),
                "--set",
                "hidden_size=8",
            ]
        )
        == 0
    )
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"config.json", "log.jsonl", "state.json"} <= {path.name for path in files}
    assert [path.name for path in files if b"hush" in path.read_bytes()] == []


def test_a_page_shows_names_and_errors_as_text():
    """The explorers' page builds elements and sets their text; markup is read nowhere."""
    for name in ("explorers.js", "notebook.js"):
        static = Path(pretrained.__file__).parent / "widgets" / "static"
        code = (static / name).read_text(encoding="utf-8")
        found = re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", code)
        assert not found, name


def test_nothing_here_reads_yaml():
    for name, code in sources():
        if name.startswith("cfm_lite/"):
            assert not re.search(r"^\s*(import|from) yaml", code, re.MULTILINE), name
