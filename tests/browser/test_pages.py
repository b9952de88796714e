"""The pages in a real browser: what they draw, and what answers to mouse and keys. Any word on the console fails a test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Tab = Callable[..., Any]


def column(tab: Any, number: int) -> list[str]:
    return tab.locator(f"#table tbody tr td:nth-child({number})").all_inner_texts()


def contrast(tab: Any, selector: str) -> float:
    """Of a text and the page behind it, as WCAG reckons."""
    return tab.evaluate(
        """selector => {
        const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
        const light = text => text.match(/[\\d.]+/g).slice(0, 3).map(v => linear(v / 255))
            .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
        const one = document.querySelector(selector);
        let back = one;
        while (back && getComputedStyle(back).backgroundColor.replace(/ /g, "") === "rgba(0,0,0,0)") back = back.parentElement;
        const colors = [getComputedStyle(one).color, getComputedStyle(back ?? document.body).backgroundColor];
        const [a, b] = colors.map(light).sort((x, y) => y - x);
        return (a + .05) / (b + .05);
    }""",
        selector,
    )


def fits(tab: Any) -> bool:
    return tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


# --- report ---


def test_every_chart_is_drawn_when_it_comes_into_sight(report_page: Path, tab: Tab) -> None:
    page = tab(report_page)
    assert "restores best" in page.locator("h1").inner_text()
    assert "lambda=0.1" in page.locator("#answer").inner_text()
    charts = page.locator(".chart")
    for i in range(charts.count()):
        charts.nth(i).scroll_into_view_if_needed()
        charts.nth(i).locator(".main-svg").first.wait_for()
    kinds = page.locator("[data-kind]").evaluate_all("all => all.map(one => one.dataset.kind)")
    assert kinds == ["curve", "importance", "heat", "bars", "parallel"]
    assert page.locator("[data-kind=heat] .chart").count() == 6  # all, and each degradation
    assert page.locator("#lines path.js-line").count() >= 12


def test_the_table_sorts_and_filters(report_page: Path, tab: Tab) -> None:
    page = tab(report_page)
    scores = [float(text) for text in column(page, 4)]
    assert scores == sorted(scores, reverse=True)
    page.get_by_role("button", name="lambda").click()
    assert column(page, 1) == ["0.05", "0.05", "0.1", "0.1", "0.2", "0.2"]
    page.get_by_role("button", name="lambda").press("Enter")
    assert column(page, 1)[0] == "0.2"
    page.locator("#filter").fill("lambda=0.1 done")
    assert column(page, 1) == ["0.1", "0.1"]
    page.get_by_role("button", name="single runs").click()
    assert len(column(page, 1)) == 4
    assert "filter=lambda" in page.url


def test_metric_and_degradation_change_table_and_charts(report_page: Path, tab: Tab) -> None:
    page = tab(report_page)
    before = column(page, 4)
    page.locator("#metric").select_option("ssim")
    page.locator("#part").select_option("rain")
    assert all(0 < float(text) < 1 for text in column(page, 4))
    assert column(page, 4) != before
    assert "SSIM, rain, over lambda" in page.locator("[data-kind=curve] h2").inner_text()


def test_smoothing_smooths(report_page: Path, tab: Tab) -> None:
    page = tab(report_page)
    page.locator("#lines").scroll_into_view_if_needed()
    page.locator("#lines .main-svg").first.wait_for()
    rough = """() => {
        const y = document.getElementById("lines").data.at(-1).y;
        return y.slice(1).reduce((sum, v, i) => sum + Math.abs(v - y[i]), 0);
    }"""
    page.locator("#smooth").fill("0")
    before = page.evaluate(rough)
    page.locator("#smooth").fill("0.9")
    assert page.evaluate(rough) < before


def test_names_with_html_in_them_do_nothing(evil_page: Path, tab: Tab) -> None:
    page = tab(evil_page)
    charts = page.locator(".chart")
    for i in range(charts.count()):
        charts.nth(i).scroll_into_view_if_needed()
        charts.nth(i).locator(".main-svg").first.wait_for()
    assert "<img src=x" in page.locator("h1").inner_text()
    assert page.locator("img").count() == 0


# --- compare ---


def transforms(tab: Any) -> list[str]:
    return tab.locator(".frame img").evaluate_all("all => all.map(one => one.style.transform)")


def test_images_stand_side_by_side_and_zoom_together(compare_page: Path, tab: Tab) -> None:
    page = tab(compare_page)
    assert page.locator(".pane b").all_inner_texts() == ["degraded", "a" * 12, "b" * 12, "clean"]
    assert page.locator(".frame img").evaluate_all("all => all.every(one => one.complete && one.naturalWidth === 128)")
    page.locator(".frame").nth(1).hover()
    page.mouse.wheel(0, -400)
    page.wait_for_function("document.getElementById('scale').textContent !== '100 %'")
    found = transforms(page)
    assert (len(set(found)), len(found)) == (1, 4)
    box = page.locator(".frame").nth(2).bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 20, box["y"] + 30)
    page.mouse.up()
    moved = transforms(page)
    assert (len(set(moved)), moved == found) == (1, False)


def test_the_slider_follows_mouse_and_keys(compare_page: Path, tab: Tab) -> None:
    page = tab(compare_page, "#mode=slider")
    handle = page.get_by_role("slider", name="border between the images")
    assert handle.get_attribute("aria-valuenow") == "50"
    box = page.locator(".frame").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 40)
    page.mouse.up()
    assert handle.get_attribute("aria-valuenow") == "80"
    handle.press("ArrowLeft")
    assert handle.get_attribute("aria-valuenow") == "78"
    assert page.locator(".right").evaluate("one => one.style.getPropertyValue('--cut')").startswith("78.")


def test_keys_choose_image_mode_and_zoom(compare_page: Path, tab: Tab) -> None:
    page = tab(compare_page)
    first = page.locator("#image").inner_text()
    page.keyboard.press("ArrowRight")
    second = page.locator("#image").inner_text()
    assert second != first
    page.keyboard.press("ArrowLeft")
    assert page.locator("#image").inner_text() == first
    for key, name in (("2", "slider"), ("3", "flicker"), ("4", "errors"), ("1", "side by side")):
        page.keyboard.press(key)
        assert page.locator("[data-mode][aria-pressed=true]").inner_text() == name
    page.keyboard.press("+")
    assert page.locator("#scale").inner_text() == "150 %"
    page.keyboard.press("Shift+ArrowRight")
    assert "translate(-35%, -25%)" in transforms(page)[0]
    page.keyboard.press("0")
    assert page.locator("#scale").inner_text() == "100 %"


def test_the_flicker_turns_until_it_is_held(compare_page: Path, tab: Tab) -> None:
    page = tab(compare_page, "#mode=flicker")
    over = page.locator(".frame img").nth(1)
    over.wait_for(state="visible")
    over.wait_for(state="hidden")
    page.keyboard.press(" ")
    was = over.is_visible()
    page.wait_for_timeout(1500)
    assert over.is_visible() == was


def test_the_list_is_filtered_and_an_address_names_one_image(compare_page: Path, tab: Tab) -> None:
    page = tab(compare_page)
    page.locator("#degradation").select_option("haze")
    page.locator("#severity").select_option("3")
    assert set(column(page, 2)) == {"haze"}
    assert page.locator("#image").inner_text().startswith("haze 3")
    page.locator("#table tbody tr").nth(1).click()
    again = tab(compare_page, "#image=" + page.url.partition("image=")[2].partition("&")[0])
    assert again.locator("#image").inner_text() == page.locator("#image").inner_text()


def test_errors_and_pictures_that_are_not_there_are_shown_as_such(compare_page: Path, tab: Tab) -> None:
    page = tab(compare_page)
    page.get_by_role("button", name="errors").click()
    assert page.locator("img[alt$=', error']").count() == 2
    page.get_by_role("button", name="(not shown)").first.click()
    assert "not in the page" in page.locator("#panes").inner_text()


# --- sheet ---


def test_each_picture_of_a_sheet_has_sliders_of_its_own(sheet_page: Path, tab: Tab) -> None:
    page = tab(sheet_page)
    assert page.locator("h2").all_inner_texts() == ["<b>0.png", "<b>1.png"]
    assert page.locator("img").evaluate_all("all => all.every(one => one.complete && one.naturalWidth)")
    handles = page.get_by_role("slider", name="border between the images")
    assert handles.count() == 4
    box = page.locator(".frame").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 20)
    page.mouse.up()
    handles.first.press("ArrowRight")
    assert [handles.nth(i).get_attribute("aria-valuenow") for i in range(4)] == ["27", "50", "50", "50"]
    shown = page.locator(".right").first.evaluate("one => getComputedStyle(one).clipPath")
    assert shown.startswith("inset(0px 0px 0px 27")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_sheets_are_readable(sheet_page: Path, width: int, scheme: str, tab: Tab) -> None:
    page = tab(sheet_page, width=width, scheme=scheme)
    assert fits(page)
    for text in ("h1", "h2", ".pane p", "footer p"):
        assert contrast(page, text) >= 4.5, text
    for frame in page.locator(".frame").all():  # pictures keep their shape
        box = frame.bounding_box()
        asked = frame.evaluate("one => one.style.aspectRatio.split('/').map(Number)")
        assert abs(box["width"] / box["height"] - asked[0] / asked[1]) < 0.02 * asked[0] / asked[1]


# --- both ---


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_are_readable(report_page: Path, compare_page: Path, width: int, scheme: str, tab: Tab) -> None:
    for path, texts in (
        (report_page, ["#answer", "#source", "#table td"]),
        (compare_page, ["#sentences li", "#legend"]),
    ):
        page = tab(path, width=width, scheme=scheme)
        page.locator("#table tbody tr").first.wait_for()
        assert fits(page)
        for text in (*texts, "h1", "th button", "footer"):
            assert contrast(page, text) >= 4.5, text
