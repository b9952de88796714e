"""The page to try weights on, in a real browser: drop, slide, read what is thought, by mouse and by keys."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bdg.commands.compose import compose
from bdg.commands.demo_server import application, example, listening, serve
from bdg.commands.restore import load_restorer

SCREENSHOT = os.environ.get("BDG_SCREENSHOT")
"""A file to which the page is photographed."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    pytest.importorskip("uvicorn", reason="needs the extra 'server'")
    config = compose("demo_server", ["device=cpu"])
    with listening("127.0.0.1", 0) as sock:
        stop = threading.Event()
        serving = threading.Thread(target=serve, args=(application(load_restorer(config), config), sock, None, stop))
        serving.start()
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        stop.set()
        serving.join()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Callable[..., Any]]:
    """page(width=..., scheme="light"); whatever the console says fails the test."""
    said: list[str] = []
    contexts = []

    def open_(width: int = 1100, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        one = context.new_page()
        one.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        one.on("pageerror", lambda error: said.append(str(error)))
        one.on("request", lambda asked: said.append(asked.url) if not asked.url.startswith((url, "data:")) else None)
        one.goto(url)
        one.set_default_timeout(60_000)
        return one

    yield open_
    for context in contexts:
        context.close()
    assert [text for text in said if "413" not in text and "415" not in text] == []  # of answers that tests ask for


def drop(page: Any, data: bytes, name: str, times: int = 1) -> None:
    page.evaluate(
        """([bytes, name, times]) => {
        const given = new DataTransfer();
        given.items.add(new File(Array(times).fill(new Uint8Array(bytes)), name));
        const event = new DragEvent("drop", {dataTransfer: given, bubbles: true, cancelable: true});
        document.getElementById("drop").dispatchEvent(event);
    }""",
        [list(data), name, times],
    )


def test_a_dropped_picture_is_restored_and_explained(page: Callable[..., Any]) -> None:
    one = page()
    drop(one, example("rain"), "rainy.png")
    one.locator(".frame img").nth(1).wait_for()

    assert one.locator("#name").inner_text() == "rainy.png"
    sizes = one.locator(".frame img").evaluate_all("all => all.map(each => [each.naturalWidth, each.naturalHeight])")
    assert sizes == [[512, 384], [512, 384]]
    assert one.locator("#mix tbody tr").count() == 6
    assert one.locator("#nearest tbody tr").count() == 5
    assert one.locator("#save").get_attribute("href").startswith("data:image/png")
    if SCREENSHOT:
        one.evaluate("scrollTo(0, 0)")
        one.screenshot(path=SCREENSHOT, type="jpeg", quality=80, full_page=True)


def test_all_can_be_done_with_keys(page: Callable[..., Any]) -> None:
    one = page()
    one.get_by_role("button", name="haze").focus()
    one.keyboard.press("Enter")
    handle = one.locator(".handle")
    handle.wait_for()
    handle.focus()
    one.keyboard.press("ArrowLeft")
    assert handle.get_attribute("aria-valuenow") == "48"

    one.locator("#strength").focus()
    one.keyboard.press("Home")
    assert one.locator("#strength_shown").inner_text() == "0"
    one.locator("#again").focus()
    one.keyboard.press("Enter")
    one.locator("#how", has_text="strength 0").wait_for()
    assert len(set(one.locator(".frame img").evaluate_all("all => all.map(each => each.src)"))) == 1


def test_what_cannot_be_restored_is_said(page: Callable[..., Any]) -> None:
    one = page()
    drop(one, b"no picture", "<img src=x onerror=console.error(1)>")
    one.locator("#error", has_text="not an image").wait_for()

    drop(one, b"x" * 1100, "large.png", times=10_000)
    one.locator("#error", has_text="larger than 10 MB").wait_for()
    assert one.locator("#shown").is_hidden()


def test_names_with_html_in_them_do_nothing(page: Callable[..., Any]) -> None:
    one = page()
    name = "<img src=x onerror=console.error(1)>.png"
    drop(one, example("noise"), name)
    one.locator(".handle").wait_for()
    assert one.locator("#name").inner_text() == name
    assert one.locator("img").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(page: Callable[..., Any], scheme: str) -> None:
    one = page(width=360, scheme=scheme)
    one.get_by_role("button", name="noise").click()
    one.locator(".handle").wait_for()

    assert one.evaluate("document.documentElement.scrollWidth <= innerWidth")
    body = one.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (body == "rgb(20, 23, 27)") is (scheme == "dark")


def test_a_page_that_outlives_its_server_says_so(page: Callable[..., Any], tmp_path: Path) -> None:
    one = page()
    one.route("**/restore*", lambda route: route.fulfill(status=200, body="not JSON"))
    drop(one, example("rain"), "rainy.png")
    one.locator("#error", has_text="the server does not answer").wait_for()
