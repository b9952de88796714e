"""Images, shards and data modules that the tests of this room share."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from datamodules.degradations.haze import Haze
from datamodules.degradations.noise import GaussianNoise
from datamodules.images import decode
from datamodules.pack import pack
from datamodules.restoration import RestorationData

PHOTOGRAPHS = Path(__file__).parents[2] / "datamodules" / "photographs"


@pytest.fixture(scope="session")
def photographs() -> list[NDArray[np.float32]]:
    """The photographs in the package, h w 3 in [0, 1]."""
    return [decode(p.read_bytes()).astype(np.float32) / np.float32(255) for p in sorted(PHOTOGRAPHS.glob("*.jpg"))]


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    """Writes an image of noise, different for each seed, in the format of the suffix."""

    def write_noise(path: Path, seed: int = 0, shape: tuple[int, ...] = (40, 48, 3), dtype: Any = np.uint8) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype))
        return path

    return write_noise


@pytest.fixture
def clean(tmp_path: Path, write: Callable[..., Path]) -> Path:
    """A folder of seven clean images."""
    for i in range(7):
        write(tmp_path / "clean" / f"photo{i}.png", i)
    return tmp_path / "clean"


@pytest.fixture
def packed(clean: Path, tmp_path: Path) -> Path:
    """The seven images in three shards."""
    pack(clean, tmp_path / "packed", {"train": "rest"}, shard_size=3)
    return tmp_path / "packed"


@pytest.fixture
def paired(tmp_path: Path, write: Callable[..., Path]) -> Path:
    """Three pairs labelled "haze", in one shard."""
    for i in range(3):
        write(tmp_path / "haze" / "gt" / f"{i}.png", i)
        write(tmp_path / "haze" / "lq" / f"{i}.png", 10 + i)
    pack(tmp_path / "haze", tmp_path / "pairs", {"train": "rest"})
    return tmp_path / "pairs"


@pytest.fixture(scope="session")
def tar() -> Callable[..., Path]:
    """Writes a tar file of these members, name -> bytes or pairs of them."""

    def write_tar(path: Path, members: Any) -> Path:
        with tarfile.open(path, "w") as file:
            for name, content in members.items() if isinstance(members, dict) else members:
                header = tarfile.TarInfo(name)
                header.size = len(content)
                file.addfile(header, io.BytesIO(content))
        return path

    return write_tar


@pytest.fixture
def data() -> Callable[..., RestorationData]:
    """A data module with two degradations and small crops, unless said otherwise."""

    def make(shards: Any, **changes: Any) -> RestorationData:
        defaults: dict[str, Any] = {
            "degradations": {"noise": GaussianNoise(), "haze": Haze()},
            "crop": 16,
            "flip": True,
            "batch_size": 4,
            "num_workers": 0,
            "val_crop": 16,
            "val_severities": [1, 5],
            "seed": 3,
        }
        return RestorationData(shards=f"{shards}/*.tar", val_shards=f"{shards}/*.tar", **{**defaults, **changes})

    return make
