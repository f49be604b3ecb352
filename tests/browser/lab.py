"""JupyterLab or Notebook 7 on a free loopback port with a token, over a copy of the notebooks, and
pages of it in headless Chromium.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.processes import reserved_port

ROOT = Path(__file__).parents[2]
_BUSY = "[...document.querySelectorAll('.jp-InputPrompt')].some(p => p.textContent.includes('*'))"
SETTLED = 240_000  # milliseconds that a notebook may take in fast mode


def chromium() -> str | None:
    """The browser: CFM_LITE_CHROMIUM, else chromium or google-chrome on the PATH; None where there
    is none.
    """
    named = os.environ.get("CFM_LITE_CHROMIUM")
    return named or next(
        (
            path
            for name in ("chromium", "chromium-browser", "google-chrome")
            if (path := shutil.which(name))
        ),
        None,
    )


@dataclass
class Lab:
    """A running server: its address, its token, and the folder that it shows."""

    url: str
    token: str
    folder: Path
    environment: dict[str, str]
    page: str = "lab/tree"

    def address(self, notebook: str) -> str:
        return f"{self.url}/{self.page}/{notebook}?reset&token={self.token}"


@contextlib.contextmanager
def running_lab(folder: Path, root: Path = ROOT, program: str = "jupyterlab") -> Iterator[Lab]:
    """JupyterLab, or Notebook 7 with `program` "notebook", over `folder`, with the package of the
    checkout `root`, in fast mode, with its own settings and kernels folder; it ends with the block.
    """
    port = reserved_port()
    token, home = secrets.token_hex(16), tempfile.mkdtemp(prefix="lab-")
    command = [
        sys.executable,
        "-m",
        program,
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        f"--ServerApp.root_dir={folder}",
    ]
    command += [f"--IdentityProvider.token={token}", "--allow-root", "--ServerApp.port_retries=0"]
    own = {f"JUPYTER_{name}_DIR": f"{home}/{name}" for name in ("CONFIG", "RUNTIME", "DATA")}
    own |= {f"JUPYTERLAB_{name}_DIR": f"{home}/{name}" for name in ("SETTINGS", "WORKSPACES")}
    quiet = (
        Path(home)
        / "SETTINGS"
        / "@jupyterlab"
        / "apputils-extension"
        / "notification.jupyterlab-settings"
    )
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}', encoding="utf-8")
    environment = (
        os.environ
        | own
        | {
            "CFM_LITE_FAST": "1",
            "PYTHONPATH": str(root),
            "OMP_NUM_THREADS": "1",
            "JUPYTER_CONFIG_PATH": str(ROOT / "notebooks"),
        }
    )
    with open(Path(home) / "log.txt", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _wait(f"http://127.0.0.1:{port}/api/status?token={token}", process, Path(log.name))
            page = "lab/tree" if program == "jupyterlab" else "notebooks"
            yield Lab(f"http://127.0.0.1:{port}", token, folder, environment, page)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            shutil.rmtree(home, ignore_errors=True)


def _wait(url: str, process: subprocess.Popen, log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        if process.poll() is not None:
            break
        time.sleep(0.3)
    raise RuntimeError(f"the server did not start: {log.read_text(encoding='utf-8')[-2000:]}")


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Headless Chromium that asks nothing of the network; yields a Playwright browser."""
    from playwright.sync_api import sync_playwright

    quiet = [
        "--no-sandbox",
        "--no-first-run",
        *(f"--disable-{x}" for x in ("gpu", "sync", "background-networking", "component-update")),
    ]
    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=chromium(), args=quiet)
        try:
            yield opened
        finally:
            opened.close()


def open_notebook(page: Any, lab: Lab, notebook: str) -> None:
    """Show a notebook, alone on the page, and wait until its kernel is ready."""
    page.goto(lab.address(notebook))
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    page.wait_for_selector(".jp-Toolbar:visible", timeout=60_000)  # Notebook 7 hides some
    page.wait_for_timeout(1500)
    if page.locator(".jp-Dialog").count():
        page.locator(".jp-Dialog .jp-mod-accept").first.click()


def run_all(page: Any) -> None:
    """Run > Run All Cells, and wait until no cell is busy or waiting."""
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    page.locator(".lm-Menu-itemLabel", has_text="Run All Cells").first.click()
    with contextlib.suppress(Exception):  # a quick notebook is over before one looks
        page.wait_for_function(f"() => {_BUSY}", timeout=8_000)
    for _ in range(3):  # between two cells none is busy for a moment
        page.wait_for_function(f"() => !({_BUSY})", timeout=SETTLED)
        page.wait_for_timeout(500)
