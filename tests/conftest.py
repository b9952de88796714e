"""Fixtures that every test room uses."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the checkout; the test is skipped where it is absent."""
    path = Path(__file__).parents[2] / "shared"
    if not path.is_dir():
        pytest.skip(f"reference material {path.name}/ is not beside this checkout")
    return path


@pytest.fixture(scope="session")
def profiles() -> dict[str, bytes]:
    """ICC profiles by name, with the primaries (XYZ under D50) and curves of their standards."""
    p3 = [(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)]
    adobe = [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)]
    prophoto = [(0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03134, 0.00009, 0.82491)]
    of_srgb = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    return {
        "Display P3": profile("Display P3", p3, b"para" + bytes(4) + struct.pack(">HH", 3, 0) + fixed(of_srgb)),
        "Adobe RGB": profile("Adobe RGB", adobe, gamma(2.19921875)),
        "ProPhoto RGB": profile("ProPhoto RGB", prophoto, gamma(1.8)),
    }


def fixed(values: Sequence[float]) -> bytes:
    """s15Fixed16Number"""
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def gamma(exponent: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(exponent * 256)) + bytes(2)


def profile(name: str, primaries: Sequence[Sequence[float]], curve: bytes) -> bytes:
    """An ICC profile of version 4 for a display."""
    text = name.encode("utf-16-be")
    d50 = (0.9642, 1.0, 0.8249)
    tags: Mapping[bytes, bytes] = {
        b"desc": b"mluc" + bytes(4) + struct.pack(">II4sII", 1, 12, b"enUS", len(text), 28) + text,
        b"wtpt": b"XYZ " + bytes(4) + fixed(d50),
        **{
            c + b"XYZ": b"XYZ " + bytes(4) + fixed(xyz)
            for c, xyz in zip((b"r", b"g", b"b"), primaries, strict=bool(primaries))
        },
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC") if primaries else (b"kTRC",), curve),
    }
    table, body = struct.pack(">I", len(tags)), b""
    for tag, data in tags.items():
        table += struct.pack(">4sII", tag, 132 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    space = b"RGB " if primaries else b"GRAY"
    head = struct.pack(
        ">I4sI4s4s4s12s4s", 132 + len(table) - 4 + len(body), b"", 0x04300000, b"mntr", space, b"XYZ ", b"", b"acsp"
    )
    return (head + bytes(28) + fixed(d50)).ljust(128, b"\0") + table + body


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
