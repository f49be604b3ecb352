"""Downloads from a server that lies: no half file is ever seen as whole, nothing temporary stays,
and the way by hand is named.

The server is on this machine's loopback; torchvision, torch and the Hugging Face hub are pointed at
it.
"""

import contextlib
import gc
import gzip
import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import safetensors.torch

from cfm_lite._internal.files import fingerprint
from cfm_lite._internal.lazy import optional
from cfm_lite.data import cifar10, mnist, root
from cfm_lite.data.latents import codec
from cfm_lite.errors import DataError
from cfm_lite.evaluate import inception as features
from cfm_lite.models import teacher
from cfm_lite.models.text import ClipText
from tests.faults.damage import keep
from tests.networks import tiny_clip
from tests.processes import reserved_port

BEHAVIOURS = (
    "truncated",
    "longer than said",
    "shorter than said",
    "page",
    "not found",
    "error",
    "hangs",
    "resets",
    "empty",
)
BEHAVIOURS += ("other file", "loops")
# what torchvision and torch leave of a broken connection is closed by Python, which remarks on it
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Liar(BaseHTTPRequestHandler):
    """Serves the `files` of its server in the way that its server's `behaviour` says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        content = server.files.get(self.path.rsplit("/", 1)[-1], b"")
        kind = server.behaviour
        if kind == "hangs":
            server.stop.wait(20)
            self.close_connection = True
        elif kind == "resets":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._head(200, len(content))
            self.wfile.write(content[: len(content) // 2])
            self.connection.close()
            self.close_connection = True
        elif kind in ("not found", "error"):
            self.send_error(404 if kind == "not found" else 500)
        elif kind == "loops":
            self.send_response(302)
            self.send_header("Location", self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._lie(kind, content)

    do_HEAD = do_GET

    def _lie(self, kind, content):
        page = b"<!DOCTYPE html><html><body>please log in</body></html>" * 50
        half = content[: len(content) // 2]
        bodies = {
            "page": page,
            "truncated": half,
            "shorter than said": half,
            "empty": b"",
            "other file": gzip.compress(page),
        }
        body = bodies.get(kind, content)
        self._head(
            200,
            {"shorter than said": len(content), "longer than said": len(half)}.get(kind, len(body)),
        )
        with contextlib.suppress(OSError):
            self.wfile.write(body)
        self.close_connection = True

    def _head(self, code, length):
        self.send_response(code)
        self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in (
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Liar)
    server.daemon_threads, server.block_on_close = True, False
    server.files, server.behaviour, server.asked, server.stop = {}, "honest", [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def hurried(monkeypatch):
    """Patience of 0.3 s in place of 30."""
    monkeypatch.setattr(root.impatient.__wrapped__, "__defaults__", (0.3,))


def idx(name):
    shape = (50, 28, 28) if "images" in name else (50,)
    content = bytes(i % 10 for i in range(50)) * (784 if len(shape) > 1 else 1)
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content


def serve_mnist(server, monkeypatch):
    kind = optional("torchvision.datasets", "imagenet").MNIST
    server.files = {name: gzip.compress(idx(name), mtime=0) for name in mnist.MD5}
    monkeypatch.setattr(kind, "mirrors", [server.url])
    monkeypatch.setattr(
        kind,
        "resources",
        [(name, hashlib.md5(content).hexdigest()) for name, content in server.files.items()],
    )
    monkeypatch.setattr(
        mnist, "MD5", {name: hashlib.md5(idx(name)).hexdigest() for name in mnist.MD5}
    )
    return mnist.download, lambda data: mnist.available(data), "train-images-idx3-ubyte.gz"


def serve_cifar10(server, monkeypatch):
    server.files = {cifar10.ARCHIVES["cifar10"]: os.urandom(20_000)}
    monkeypatch.setattr(cifar10, "URL", server.url + cifar10.ARCHIVES["cifar10"])
    monkeypatch.setattr(
        cifar10, "MD5", hashlib.md5(server.files[cifar10.ARCHIVES["cifar10"]]).hexdigest()
    )
    return cifar10.download, lambda data: cifar10.available(root=data), cifar10.ARCHIVES["cifar10"]


def serve_inception(server, monkeypatch):
    server.files = {features.WEIGHTS: os.urandom(200_000)}
    monkeypatch.setattr(features, "URL", server.url + features.WEIGHTS)
    monkeypatch.setattr(
        features, "SHA256_HEAD", hashlib.sha256(server.files[features.WEIGHTS]).hexdigest()[:8]
    )

    def fetch(data):
        monkeypatch.setattr(features, "cache_root", lambda: data)
        return features._fetched()

    return fetch, lambda data: (data / "inception" / features.WEIGHTS).is_file(), "--inception FILE"


SOURCES = {"mnist": serve_mnist, "cifar10": serve_cifar10, "inception": serve_inception}
LATER = pytest.mark.faults  # torchvision takes seconds to import
sources = pytest.mark.parametrize(
    "source",
    [pytest.param("mnist", marks=LATER), pytest.param("cifar10", marks=LATER), "inception"],
)


@pytest.fixture(scope="module", autouse=True)
def _closed():
    yield
    gc.collect()


@sources
def test_an_honest_server_is_believed_and_asked_once(source, server, monkeypatch, tmp_path):
    fetch, there, _ = SOURCES[source](server, monkeypatch)
    fetch(tmp_path / "data")
    assert there(tmp_path / "data")
    asked = len(server.asked)
    fetch(tmp_path / "data")
    assert len(server.asked) == asked > 0


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@sources
def test_a_server_that_lies_leaves_nothing_behind_and_the_message_says_what_to_do(
    source, behaviour, server, hurried, monkeypatch, tmp_path
):
    fetch, there, by_hand = SOURCES[source](server, monkeypatch)
    server.behaviour = behaviour
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        fetch(tmp_path / "data")
    keep(
        "downloads",
        {
            f"{source}: {behaviour}": {
                "seen as whole": there(tmp_path / "data"),
                "error": str(caught.value),
            }
        },
    )
    assert time.monotonic() - began < 15
    assert by_hand in str(caught.value)
    assert not there(tmp_path / "data")
    assert not (tmp_path / "data").exists()
    assert socket.getdefaulttimeout() is None
    server.behaviour = "honest"
    fetch(tmp_path / "data")
    assert there(tmp_path / "data")


@sources
def test_a_server_that_is_not_there_is_an_error_at_once(source, server, monkeypatch, tmp_path):
    fetch, there, by_hand = SOURCES[source](server, monkeypatch)
    nobody = f"http://127.0.0.1:{reserved_port()}/"
    for module in (cifar10, features):
        monkeypatch.setattr(module, "URL", nobody + "file")
    monkeypatch.setattr(optional("torchvision.datasets", "imagenet").MNIST, "mirrors", [nobody])
    with pytest.raises(DataError) as caught:
        fetch(tmp_path / "data")
    assert by_hand in str(caught.value)
    assert not there(tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("source", [pytest.param("cifar10", marks=LATER), "inception"])
def test_a_damaged_older_file_is_fetched_again_and_kept_while_that_fails(
    source, server, monkeypatch, tmp_path
):
    fetch, _, _ = SOURCES[source](server, monkeypatch)
    path = fetch(tmp_path / "data")
    path.write_bytes(path.read_bytes()[:-1])
    server.behaviour = "not found"
    with pytest.raises(DataError):
        fetch(tmp_path / "data")
    server.behaviour = "honest"
    assert fetch(tmp_path / "data").read_bytes() == server.files[path.name]


def test_an_interrupted_download_leaves_no_part(server, monkeypatch, tmp_path):
    fetch, there, _ = serve_inception(server, monkeypatch)
    monkeypatch.setattr("shutil.move", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path / "data")
    assert not there(tmp_path / "data")
    assert not (tmp_path / "data" / "inception").exists()


def test_the_time_out_ends_with_the_block_even_after_an_error():
    def fail():
        with root.impatient(0.5):
            assert socket.getdefaulttimeout() == 0.5
            raise OSError

    with pytest.raises(OSError):
        fail()
    assert socket.getdefaulttimeout() is None


HUB = """
import sys
from cfm_lite._internal.files import fingerprint
from cfm_lite.errors import CFMError
try:
    if sys.argv[1] == "vae":
        from cfm_lite.data.latents.codec import open_codec
        print(open_codec(sys.argv[2]).fingerprint)
    elif sys.argv[1] == "teacher":
        from cfm_lite.models import teacher
        print(fingerprint(teacher(sys.argv[2], grid=2).state_dict()))
    else:
        from cfm_lite.models.text import ClipText
        print(ClipText(sys.argv[2]).fingerprint)
except CFMError as error:
    print(type(error).__name__, error)
    sys.exit(error.exit_code)
"""


def asked_of_hub(what, name, url, home, timeout=280):
    """The ended process of `HUB`, for which `url` is the hub and `home` its cache."""
    local = {"HF_ENDPOINT": url.rstrip("/"), "HF_HOME": str(home)}
    local |= {"HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    environment = {
        name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")
    } | local
    return subprocess.run(
        [sys.executable, "-c", HUB, what, name],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


TEACHER = "vit_tiny_patch16_224"
NAMES = {  # a name on the hub, and its error
    "vae": ("me/none", 3, "DataError the VAE 'me/none' is not available"),
    "text": ("me/none", 4, "CheckpointError there is no CLIP 'me/none' on this machine"),
    "teacher": (TEACHER, 4, f"CheckpointError no weights for the teacher '{TEACHER}'"),
}


@pytest.mark.faults
@pytest.mark.parametrize("behaviour", ["page", "resets", "error", "hangs"])
@pytest.mark.parametrize("what", NAMES)
def test_weights_from_the_hub_that_cannot_be_had_are_one_line(what, behaviour, server, tmp_path):
    server.behaviour = behaviour
    server.files = {"config.json": json.dumps({"architecture": "x"}).encode() * 50}
    name, code, words = NAMES[what]
    done = asked_of_hub(what, name, server.url, tmp_path / "hub")
    assert done.returncode == code, done.stderr[-2000:]
    (line,) = done.stdout.splitlines()
    assert line.startswith(words)
    assert server.asked
    assert not [path for path in (tmp_path / "hub").rglob("*.safetensors")]


class Hub(Liar):
    """A hub of one model, `there`: its files as the hub gives them, and 404 for all else."""

    def do_HEAD(self):
        place = f"/{self.server.there}/"
        name = self.path.removeprefix(f"{place}resolve/").partition("/")[2]  # of any revision
        content = self.server.files.get(name)
        self.server.asked.append(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header("X-Error-Code", "EntryNotFound" if place in self.path else "RepoNotFound")
        if content is not None:
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        return content

    def do_GET(self):
        self.wfile.write(self.do_HEAD() or b"")


@pytest.fixture
def hub(server):
    server.RequestHandlerClass, server.there = Hub, ""
    return server


def closed(server):
    server.shutdown()
    server.server_close()


@pytest.mark.faults
@pytest.mark.parametrize("what", NAMES)
def test_a_name_that_the_hub_does_not_give_is_asked_for_once_and_is_one_line(what, hub, tmp_path):
    """Others would ask for minutes."""
    name, code, words = NAMES[what]
    there = asked_of_hub(what, name, hub.url, tmp_path / "hub")
    closed(hub)
    gone = asked_of_hub(what, name, hub.url, tmp_path / "hub")
    files = [path for path in hub.asked if "/resolve/" in path]
    assert [path.endswith("/resolve/main/config.json") for path in files] == [True]
    for done, reason in ((there, "404"), (gone, "onnect")):
        assert done.returncode == code, done.stderr[-2000:]
        (line,) = done.stdout.splitlines()
        assert line.startswith(words)
        assert reason in line
        assert not done.stderr


def made_vae(folder):
    codec.open_codec("tiny").vae.save_pretrained(folder)
    return "me/vae", "me/vae", codec.open_codec(str(folder)).fingerprint


def made_clip(folder):
    tiny_clip(folder)
    return "me/clip", "me/clip", ClipText(folder).fingerprint


def made_teacher(folder):
    weights = teacher(TEACHER, grid=2, pretrained=False).vit.state_dict()
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    found = teacher(TEACHER, grid=2, checkpoint=folder / "model.safetensors")
    place = optional("timm", "imagenet").get_pretrained_cfg(TEACHER).hf_hub_id
    return TEACHER, place, fingerprint(found.state_dict())


MADE = {"vae": made_vae, "text": made_clip, "teacher": made_teacher}


@pytest.mark.faults
@pytest.mark.parametrize("what", MADE)
def test_what_the_hub_gives_is_downloaded_and_later_found_without_it(what, hub, tmp_path):
    (tmp_path / "made").mkdir()
    name, hub.there, expected = MADE[what](tmp_path / "made")
    hub.files = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    there = asked_of_hub(what, name, hub.url, tmp_path / "hub")
    closed(hub)
    gone = asked_of_hub(what, name, hub.url, tmp_path / "hub")
    assert there.stdout.split() == [expected], there.stderr[-2000:]
    assert gone.stdout == there.stdout, gone.stderr[-2000:]  # from the cache
