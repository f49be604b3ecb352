"""JupyterLab, as `make lab` starts it, keeps its token and is reachable from this machine alone."""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.faults.damage import keep
from tests.processes import reserved_port

ROOT = Path(__file__).parents[2]
OPENING = (
    "token",
    "password",
    "disable_check_xsrf",
    "allow_origin",
    "allow_remote",
    "0.0.0.0",
    "--ip=*",
    "allow_unauthenticated",
)


def lab_command() -> str:
    """The line of `make lab` that starts JupyterLab; the one before it trusts the notebooks."""
    (recipe,) = re.findall(
        r"^lab:[^\n]*\n((?:\t[^\n]*\n)+)",
        (ROOT / "Makefile").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return " ".join(recipe.replace("\\\n", " ").splitlines()[-1].split())


def test_make_lab_binds_to_this_machine_and_opens_nothing():
    command = lab_command()
    assert "--ip=127.0.0.1" in command
    assert not [word for word in OPENING if word in command]
    settings = (ROOT / "notebooks" / "jupyter_config.py").read_text(encoding="utf-8")
    assert not [word for word in OPENING if word in settings.lower()]


def answer(url: str, token: str = "") -> tuple[int, str]:
    """(status, where it leads to) of a request that follows no redirection."""
    request = urllib.request.Request(
        url, headers={"Authorization": f"token {token}"} if token else {}
    )

    class Still(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *args):
            return None

    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({}), Still).open(
            request, timeout=10
        ) as reply:
            return reply.status, ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers.get("Location", "")


def listening(port: int) -> set[str]:
    """The addresses, in the kernel's hexadecimal, on which somebody listens at a port."""
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {
        row[1].split(":")[0]
        for row in rows
        if row[3] == "0A" and int(row[1].split(":")[1], 16) == port
    }


@contextlib.contextmanager
def started(folder: Path, port: int):
    """JupyterLab by the command of `make lab`, without a browser; yields the process."""
    jupyter = Path(sys.executable).with_name("jupyter")
    words = shlex.split(
        lab_command().replace("$(BIN)/jupyter", str(jupyter)).replace("$(AS_ROOT)", "--allow-root")
    )
    while "=" in words[0]:
        words.pop(0)
    own = {f"JUPYTER_{name}_DIR": str(folder / name) for name in ("RUNTIME", "DATA", "CONFIG")} | {
        "JUPYTER_CONFIG_PATH": "notebooks"
    }
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [*words, "--no-browser", f"--port={port}"],
            cwd=ROOT,
            env=os.environ | own,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="not run: this system has no /proc")
def test_a_request_without_the_token_is_refused_and_nobody_listens_elsewhere(tmp_path):
    if shutil.which(str(Path(sys.executable).with_name("jupyter"))) is None:
        pytest.skip("not run: JupyterLab is not installed")
    port = reserved_port()
    with started(tmp_path, port) as process:
        end = time.monotonic() + 90
        while not list((tmp_path / "RUNTIME").glob("jpserver-*.json")) or not listening(port):
            assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
            assert time.monotonic() < end
            time.sleep(0.2)
        token = json.loads(next((tmp_path / "RUNTIME").glob("jpserver-*.json")).read_text())[
            "token"
        ]
        url = f"http://127.0.0.1:{port}"
        pages = {
            page: answer(url + page)
            for page in (
                "/api/contents",
                "/api/kernels",
                "/api/terminals",
                "/lab",
                "/files/README.md",
            )
        }
        assert len(token) >= 32
        assert all(code in (302, 403) for code, _ in pages.values()), pages
        assert all("/login" in where for code, where in pages.values() if code == 302), pages
        assert answer(url + "/api/contents", "wrong")[0] == 403
        assert answer(url + "/api/contents", token)[0] == 200
        assert listening(port) == {"0100007F"}  # 127.0.0.1
    keep(
        "security",
        {
            "JupyterLab": {
                "requests without the token": len(pages) + 1,
                "answered": 0,
                "addresses": ["127.0.0.1"],
            }
        },
    )
