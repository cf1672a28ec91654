"""JupyterLab in headless Chromium: open train_fixed, Run All, and look at the page while it trains and when it is done."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest


@pytest.fixture
def page():
    """A page of a browser: the one that KDNB_CHROMIUM names, of the PATH, or playwright's own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: python -m pip install playwright")
    with sync_api.sync_playwright() as playwright:
        names = os.environ.get("KDNB_CHROMIUM", "chromium"), "google-chrome", playwright.chromium.executable_path
        found = next(filter(None, map(shutil.which, names)), None)
        if found is None:
            pytest.skip("no browser: install chromium, run python -m playwright install chromium, or set KDNB_CHROMIUM")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.set_default_timeout(180_000)  # milliseconds
        yield page
        browser.close()


@pytest.fixture
def address(project, digits_teacher, tmp_path):
    """Where JupyterLab shows the project's notebooks."""
    shutil.copytree(digits_teacher, project / "outputs/teacher_digits")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--ServerApp.port={port}", "--IdentityProvider.token=walk", f"--ServerApp.root_dir={project}", "--allow-root"]
    folders = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "RUNTIME")}  # nobody's settings
    environment = os.environ | folders | {"PYTHONPATH": str(project)}
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyter", "lab", "--no-browser", *options], env=environment, stderr=(tmp_path / "log").open("w")
    )
    while socket.socket().connect_ex(("127.0.0.1", port)):  # nobody listens yet
        assert server.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/lab/tree/notebooks/train_fixed.ipynb?token=walk"
    server.terminate()
    server.wait()


def sections(page) -> dict[str, str]:
    """What JupyterLab's table of contents says of each: "1" runs, "0" waits, "-1" neither."""
    entries = page.locator(".jp-tocItem-content").all()
    return {entry.inner_text(): entry.get_attribute("data-running") for entry in entries}


def test_run_all(page, address, project, tmp_path, walk):
    page.goto(address)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    for name in ("Run", "Run All Cells"):
        page.get_by_role("menuitem", name=name, exact=True).click()
    walk.count()
    page.get_by_text("While the cell below shows [*], one above still runs").wait_for()  # where Run All leads
    page.keyboard.press("Control+Shift+K")
    page.locator(".jp-tocItem-content[data-running='1']", has_text="Training").wait_for()
    page.screenshot(path=tmp_path / "training.png")
    state = sections(page)
    assert (state["Data"], state["Training"], state["Results"], state["Record"]) == ("-1", "1", "0", "0")

    page.locator(".jp-tocItem-content", has_text="Training").click()
    page.wait_for_function("""!document.querySelector(".jp-tocItem-content:not([data-running='-1'])")""")
    page.screenshot(path=tmp_path / "end.png")
    last_line = page.locator(".kdnb-progress.kdnb-done").last.inner_text().strip()
    assert re.match(r"train_fixed_\w+: step (\d+)/\1 \| ", last_line)
    assert page.get_by_text("best_model, checkpoints, config.json").count() == 1 and page.get_by_text("[*]:").count() == 0

    page.keyboard.press("Control+S")
    page.locator(".jp-mod-dirty").wait_for(state="detached")
    saved = (project / "notebooks/train_fixed.ipynb").read_text()
    assert last_line in saved and "application/vnd.jupyter.widget" not in saved
    print(f"screenshots: {tmp_path}/*.png")
