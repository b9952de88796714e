"""Pages that open from disk without network: data, templates and a chart library in one HTML file. Computes nothing."""

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.util import find_spec
from typing import Any

from jobs.secrets import masked

INSTALL = "pip install 'bdg[report]'"


def report_page(data: Mapping[str, Any], library: str) -> str:
    """data: as `bdg.commands.report.collect` gives it; library: JavaScript that defines Plotly."""
    return _page("report", ["common", "report"], data, library)


def compare_page(data: Mapping[str, Any]) -> str:
    """data: as `bdg.commands.compare.collect` gives it."""
    return _page("compare", ["common", "slider", "compare"], data)


def sheet_page(data: Mapping[str, Any]) -> str:
    """data: as `bdg.commands.sheet.collect` gives it."""
    return _page("sheet", ["common", "slider", "sheet"], data)


def demo_page(data: Mapping[str, Any]) -> str:
    """data: as `bdg.commands.demo_server.Demo` gives it."""
    return _page("demo", ["common", "slider", "demo"], data)


def chart_library() -> str:
    """The JavaScript of the installed plotly.

    Raises ValueError if it is not installed.
    """
    if find_spec("plotly") is None or find_spec("jinja2") is None:
        raise ValueError(f"bdg report draws its charts with plotly, which is not installed: {INSTALL}")
    return resources.files("plotly").joinpath("package_data/plotly.min.js").read_text(encoding="utf-8")


def _page(name: str, parts: Sequence[str], data: Mapping[str, Any], library: str = "") -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("jobs", "pages"), autoescape=True, undefined=StrictUndefined)
    pages = resources.files("jobs").joinpath("pages")
    css, js = (
        "\n".join(pages.joinpath(f"{part}.{kind}").read_text(encoding="utf-8") for part in parts)
        for kind in ("css", "js")
    )
    facts = {key: value for key, value in data.items() if key != "images"}
    return environment.get_template(f"{name}.html").render(
        title=data["title"],
        facts=embedded(masked(_json(facts))),
        images=embedded(_json(data["images"])),  # in which nothing is hidden, and much that looks like it
        library=library,
        css=css,
        js=js,
    )


def embedded(text: str) -> str:
    """JSON that may stand inside of a script element: no character of it can end that."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _json(value: Any) -> str:
    return json.dumps(_finite(value), separators=(",", ":"))


def _finite(value: Any) -> Any:
    """The same without what JSON does not have; numbers in six digits after the point."""
    match value:
        case float():
            return round(value, 6) if abs(value) < 1e15 else None  # also of nan, which is not less than anything
        case dict():
            return {f"{key}": _finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_finite(inner) for inner in value]
    return value
