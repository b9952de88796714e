"""A headless Chromium, pages made of made-up runs, and a tab that fails the test if anything goes to its console."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report import made_up_pictures, made_up_sweep

from bdg.cli import main
from datamodules.images import write_image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Callable[..., Any]]:
    """tab(page, fragment="", width=..., scheme="light") opens a file."""
    said: list[str] = []
    opened = []

    def open_(page: Path, fragment: str = "", width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        opened.append(context)
        one = context.new_page()
        one.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        one.on("pageerror", lambda error: said.append(str(error)))
        one.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
        one.goto(page.as_uri() + fragment, timeout=120_000)
        one.set_default_timeout(60_000)
        return one

    yield open_
    for context in opened:
        context.close()
    assert said == []


def made(folder: Path, *words: str) -> None:
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main([*words]) == 0
    finally:
        os.chdir(before)


@pytest.fixture(scope="session")
def report_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("plotly", reason="needs the extra 'report'")
    folder = tmp_path_factory.mktemp("report")
    made_up_sweep(folder / "runs", "grid", [0.05, 0.1, 0.2], [[1, 2], [1, 2, 4]], [0, 1], steps=300)
    made(folder, "report", "grid", f"output={folder}/report.html")
    return folder / "report.html"


@pytest.fixture(scope="session")
def evil_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report in which every name of a cell, key and value is HTML that would do something."""
    pytest.importorskip("plotly", reason="needs the extra 'report'")
    folder = tmp_path_factory.mktemp("evil")
    sweep = made_up_sweep(folder / "runs", "evil", [0.1], [[1]], [0, 1], steps=50)
    evil = "</script><img src=x onerror=console.error(1)>"
    plan = json.loads((sweep / "plan.json").read_text())
    for number, cell in enumerate(plan["cells"]):
        cell |= {"changes": {f"a{evil}": f"{evil}{number}", "b": number}, "name": f"{evil}{number}"}
    (sweep / "plan.json").write_text(json.dumps(plan))
    made(folder, "report", "evil", f"output={folder}/report.html")
    return folder / "report.html"


@pytest.fixture(scope="session")
def compare_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    names = ["a" * 12, "b" * 12]
    for seed, name in enumerate(names):
        made_up_pictures(folder / "runs" / "demo" / "restoration" / name, 0.5 + 0.2 * seed, seed=seed)
    made(folder, "compare", *names, "evaluation=shown", "images=10")
    return folder / "compare.html"


@pytest.fixture(scope="session")
def sheet_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sheet")
    for i, size in enumerate([(60, 90), (120, 70)]):
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        write_image(folder / "in" / f"<b>{i}.png", pixels)
    made(folder, "restore", "in", "out", "sheet=sheet.html", "sample_steps=1")
    return folder / "sheet.html"
