"""What foreign files may not do: run code, leave their folder, fill the memory, show secrets. One test per attack."""

import ast
import io
import json
import logging
import os
import pickle
import re
import shlex
import stat
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import EpsImagePlugin, Image

from bdg.cli import main
from bdg.commands.compose import build, compose, written_config
from bdg.commands.degrade import read_records
from bdg.commands.errors import make_printable
from bdg.commands.tables import validation
from bdg.restoration import Restorer
from bdg.weights import load_weights, save_weights
from callbacks.checkpoint import AtomicCheckpointIO
from callbacks.inherit import read_parent
from datamodules import shards
from datamodules.degradations.composition import replay
from datamodules.degradations.noise import GaussianNoise
from datamodules.images import MAX_PIXELS, read_image, upright_size, write_image
from datamodules.index import dump, row_type
from datamodules.remote import Cache
from jobs.run import Run, write_text
from jobs.secrets import hide_secrets, masked
from jobs.states import is_locked

ROOT = Path(__file__).parents[1]
PACKAGES = ("bdg", "callbacks", "datamodules", "jobs")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What an attack makes if it succeeds."""
    return tmp_path / "owned"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Attacks name `owned` without a folder; and the command line's umask is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = os.umask(0o022)
    yield
    os.umask(before)
    assert not (tmp_path / "owned").exists()


class Evil:
    """Pickled, it makes a folder as soon as it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def picture(path: Path, size: tuple[int, int] = (24, 16)) -> Path:
    write_image(path, np.full((*size, 3), 100, np.uint8))
    return path


def encoded(suffix: str = ".png") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (90, 100, 110)).save(buffer, {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[suffix])
    return buffer.getvalue()


def tar(path: Path, members: Mapping[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            header = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            header.name = name
            if isinstance(content, bytes):
                header.size = len(content)
            file.addfile(header, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which the command line refuses."""
    assert main([*words]) == 1
    text = capsys.readouterr().err.strip()
    assert "Traceback" not in text
    return text


# --- classes that a config names ---

CODE = [
    "os.system",
    "posix.system",
    "subprocess.run",
    "builtins.eval",
    "builtins.exec",
    "importlib.import_module",
    "pickle.loads",
    "torch.load",
    "torch.serialization.load",
    "torch.hub.load",
    "torch.jit.load",
    "hydra.utils.instantiate",
    "omegaconf.OmegaConf.load",
    "lightning.pytorch.cli.LightningCLI",
    "lightning.pytorch.LightningModule.load_from_checkpoint",
    "lightning.fabric.utilities.cloud_io._load",
    "lightning.pytorch.loggers.csv_logs.os.system",
    "torch.nn.Module.load_state_dict",
    "torchmetrics.functional.image.lpips.torch.load",
    "bdg.commands.train.run",
    "bdg.commands.compose.os.system",
    "bdg.commands.compose.functools.partial",
    "bdg.restoration.Restorer.load",
    "bdg.weights.save_weights",
    "callbacks.inherit.read_parent",
    "datamodules.images.write_image",
    "datamodules.remote.load",
    "jobs.run.write_text",
]


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("target", CODE)
def test_a_config_names_no_code_but_classes_of_a_few_packages(target: str, partial: bool) -> None:
    tree = {"part": {"deep": [{"_target_": target, "_partial_": partial, "_args_": ["mkdir owned"]}]}}
    with pytest.raises(ValueError, match=r"^part\.deep\[0\]\._target_ is '" + target):
        build(OmegaConf.create(tree).part)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.load",
        "torch.hub.load",
        "torch.jit.load",
        "torchmetrics.multimodal.CLIPScore",
    ],
)
def test_trust_opens_neither_commands_nor_loaders(target: str) -> None:
    everything = [*sys.stdlib_module_names, "torch"]
    with pytest.raises(ValueError, match=f"'{target}', which no config may call"):
        build({"_target_": target, "_args_": ["mkdir owned"]}, trust=everything)


@pytest.mark.parametrize(
    "target",
    [
        "lightning.Trainer",
        "lightning.pytorch.plugins.TorchCheckpointIO",
        "torch.nn.Linear",
        "torch.optim.Adam",
        "lightning.pytorch.loggers.CSVLogger",
        "torchmetrics.MeanMetric",
        "bdg.samplers.ddim",
        "bdg.glcm.MasGlcm",
    ],
)
def test_what_a_config_needs_it_may_name(target: str) -> None:
    assert build({"_target_": target, "_partial_": True})


@pytest.mark.parametrize(
    "text",
    [
        "evil: {_target_: os.system, command: mkdir owned}",
        "evil: {_target_: datamodules.degradations.noise.GaussianNoise, severity: {_target_: os.mkdir, path: owned}}",
        *(
            f"evil: {{_target_: datamodules.degradations.noise.GaussianNoise, {late}}}"
            for late in (
                r"""severity: '\${oc.create:"{_target_: torch.utils.collect_env.run, command: mkdir owned}"}'""",
                r"""severity: '\\\${oc.create:"{_target_: torch.utils.collect_env.run, command: mkdir owned}"}'""",
                r"""severity: ['\${hidden}'], hidden: {_target_: torch.utils.collect_env.run, command: mkdir owned}""",
                r"""severity: '\${degradation.hidden}'""",
            )
        ),
    ],
)
def test_a_downloaded_config_calls_nothing(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "theirs" / "degradation").mkdir(parents=True)
    (tmp_path / "theirs" / "degradation" / "evil.yaml").write_text(text)
    picture(tmp_path / "a.png")
    words = ("degrade", "a.png", "b.png", "degradation=evil", "--config-dir", "theirs")
    assert "degradation.evil" in refused(capsys, *words)


def test_a_node_is_looked_up_once() -> None:
    """What a resolver says the first time is what is checked and what is built."""
    said = iter(
        [{"_target_": "torch.nn.Identity"}, {"_target_": "torch.utils.collect_env.run", "command": "mkdir owned"}]
    )
    OmegaConf.register_new_resolver("fickle", lambda: next(said))
    try:
        assert isinstance(build(OmegaConf.create({"part": "${fickle:}"}).part), torch.nn.Identity)
    finally:
        OmegaConf.clear_resolver("fickle")


def test_a_run_does_not_say_whom_to_trust(tmp_path: Path) -> None:
    evil = {"_target_": "torch.utils.collect_env.run", "command": "mkdir owned"}
    config = OmegaConf.create({"trust": ["torch.utils"], "data": evil})
    with pytest.raises(ValueError, match="code of the package 'torch'"):
        build(config.data, trust=[])
    with pytest.raises(ValueError, match="code of the package 'torch'"):
        build(written_config(OmegaConf.to_yaml(config)).data)
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.json").write_text('{"val/rain/psnr": 20}')
    (run / "config.yaml").write_text(
        json.dumps({"protocol": {**evil, "trust": ["torch.utils"]}, "trust": ["torch.utils"]})
    )
    with pytest.raises(ValueError, match="code of the package 'torch'"):
        list(validation(run, []))


def test_a_written_config_looks_nothing_up() -> None:
    text = json.dumps({"a": ["${oc.env:HOME}", r"\${b}", r"\\${b}", "${", "x${y", "${a b}", "${X:=a}"], "b": 1})
    assert OmegaConf.to_container(written_config(text), resolve=True) == json.loads(text)


def test_a_config_cannot_speak_to_hydra(tmp_path: Path) -> None:
    evil = {"_target_": "os.mkdir", "path": "owned"}
    handler = {"()": "os.mkdir", "path": "owned"}
    logger = {"version": 1, "root": {"handlers": ["evil"]}, "handlers": {"evil": handler}}
    hydra = {"callbacks": {"evil": evil}, "hydra_logging": logger, "job_logging": logger}
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "train.yaml").write_text(json.dumps({"hydra": hydra, "seed": 1}))
    assert compose("train", [], "theirs").seed == 1


# --- what a file of weights says of itself ---

METADATA: dict[str, Any] = {
    "network": {"_target_": "bdg.networks.unet.UNet", "dim": 8, "mults": [1, 2]},
    "diffusion": {"_target_": "bdg.diffusion.Diffusion", "schedule": {"_target_": "bdg.schedule.Schedule"}},
}


@pytest.mark.parametrize(
    "said",
    [
        {"network": {"_target_": "os.mkdir", "path": "owned"}},
        {"network": {"_target_": "os.mkdir", "path": "owned"}, "trust": ["os"], "allow": ["os"]},
        {"network": {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}},
        {"network": {"_target_": "bdg.networks.unet.os.mkdir", "path": "owned"}},
        {"network": {"_target_": "bdg.commands.train.run"}},
        {"diffusion": {"_target_": "bdg.diffusion.Diffusion", "schedule": {"_target_": "os.mkdir", "path": "owned"}}},
        {"diffusion": {"_target_": "evil.Network"}},
    ],
)
def test_weights_name_no_code_but_our_networks(said: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("import os\nos.mkdir('owned')\n")
    save_weights(tmp_path / "w.safetensors", {}, METADATA | said)
    with pytest.raises(ValueError, match=r"_target_ is '"):
        Restorer.load(tmp_path / "w.safetensors")


def test_weights_name_no_sampler_but_ours(tmp_path: Path) -> None:
    from bdg.networks.unet import UNet

    tensors = {f"network.{name}": value for name, value in UNet(dim=8, mults=(1, 2)).state_dict().items()}
    save_weights(tmp_path / "w.safetensors", tensors, METADATA | {"sampler": {"_target_": "os.mkdir", "path": "owned"}})
    with pytest.raises(ValueError, match=r"sampler\._target_ is 'os\.mkdir'"):
        Restorer.load(tmp_path / "w.safetensors")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"network": NaN}', "[1]", "{", "1e999"])
def test_metadata_that_are_no_object_are_refused(text: str, tmp_path: Path) -> None:
    import safetensors.torch

    (tmp_path / "w.safetensors").write_bytes(safetensors.torch.save({}, {"bdg": text}))
    with pytest.raises(ValueError, match="its metadata are"):
        load_weights(tmp_path / "w.safetensors")


# --- pickles ---


@pytest.fixture(params=["pickle", "torch"])
def evil_checkpoint(request: pytest.FixtureRequest, tmp_path: Path, mark: Path) -> Path:
    path = tmp_path / "evil.ckpt"
    content = {"state_dict": {}, "global_step": 1, "evil": Evil(mark)}
    path.write_bytes(pickle.dumps(content, protocol=2)) if request.param == "pickle" else torch.save(content, path)
    return path


def test_a_pickled_checkpoint_is_not_inherited(evil_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="could run code and is not read"):
        read_parent(str(evil_checkpoint))


def test_a_pickled_checkpoint_is_not_resumed(evil_checkpoint: Path) -> None:
    from bdg.commands.train import _header

    with pytest.raises(ValueError, match="could run code and is not read"):
        _header(evil_checkpoint)
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        AtomicCheckpointIO().load_checkpoint(evil_checkpoint)


@pytest.mark.parametrize("verb", ["restore", "evaluate"])
def test_pickled_weights_are_not_read(
    verb: str, evil_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "a.png")
    words = {"restore": ("a.png", "b.png", "weights=evil.ckpt"), "evaluate": (".", "evil.ckpt")}[verb]
    assert "not a safetensors file" in refused(capsys, verb, *words)


def test_a_pickled_checkpoint_is_not_imported(evil_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "import", "diffuir", "evil.ckpt", "w.safetensors")
    assert "could run code and is not read" in message or "is not what torch.save writes" in message
    assert not Path("w.safetensors").exists()


def test_a_pickled_step_is_not_replayed(evil_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no replay file" in refused(capsys, "replay", "evil.ckpt")


def test_a_checkpoint_that_is_an_archive_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, size = tmp_path / "bomb.ckpt", 2 * 10**7
    torch.save({"state_dict": {"w": torch.zeros(size, dtype=torch.uint8)}, "global_step": 1}, tmp_path / "whole.ckpt")
    with zipfile.ZipFile(tmp_path / "whole.ckpt") as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for each in whole.infolist():
            bomb.writestr(each.filename, whole.read(each), compresslevel=1)
    why = rf"is no checkpoint, or cut off \({size // 10**5}\d+ bytes in a file of \d+\)"
    for read in (read_parent, AtomicCheckpointIO().load_checkpoint):
        with pytest.raises(ValueError, match=why):
            read(f"{path}")
    assert re.search(r"is no replay file, or cut off \(\d+ bytes in", refused(capsys, "replay", "bomb.ckpt"))
    assert re.search(r"\d+ bytes in a file of", refused(capsys, "import", "diffuir", "bomb.ckpt", "w.safetensors"))


@pytest.mark.parametrize("suffix", ["pkl", "pickle", "pth", "pt", "joblib", "lq.PKL"])
def test_a_pickle_in_a_shard_stops_it(suffix: str, tmp_path: Path, mark: Path) -> None:
    path = tar(tmp_path / "x.tar", {"a.png": encoded(), f"a.{suffix}": pickle.dumps(Evil(mark))})
    with pytest.raises(ValueError, match="unpickling runs whatever code"):
        shards.index([str(path)])


# --- shells ---

PIPES = ["pipe:mkdir owned", "{pipe:mkdir owned,x}.tar", "pipe:mkdir owned; cat http://x", "file://pipe:mkdir owned"]


@pytest.mark.parametrize(
    "words",
    [
        ("restore", "{}", "out.png"),
        ("restore", "a.png", "out.png", "weights={}"),
        ("evaluate", "{}"),
        ("pack", "{}", "packed"),
        ("doctor", "{}"),
        ("probe", "{}"),
        ("degrade", "{}", "out.png"),
        ("degrade", "a.png", "out.png", "recipe={}"),
        ("replay", "{}"),
        ("verify-order", "data.shards={}"),
        ("train", "data.shards={}", "inherit.from=none"),
    ],
    ids=" ".join,
)
def test_no_verb_runs_a_pipe(words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "a.png")
    refused(capsys, *(word.replace("{}", f"'{PIPES[0]}'" if "=" in word else PIPES[0]) for word in words))


@pytest.mark.parametrize("pattern", [*PIPES, "{a,pipe:mkdir owned}"])
def test_shards_are_no_pipes(pattern: str) -> None:
    with pytest.raises((ValueError, OSError)):
        shards.index(shards.expand(pattern))


@pytest.mark.parametrize(
    "address",
    [
        "reference::file:///r.json",
        "simplecache::pipe://x/a.tar",
        "zip://a.tar::http://x/y.zip",
        "github://a:b@c/x.tar",
        "jar://x.tar",
        "dask://x.tar",
        "local://x.tar::reference://",
        "pipe:cat http://x/a.tar",
    ],
)
def test_addresses_are_of_servers_only(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not an address of http, https"):
        Cache(tmp_path).open(address)


NAMES = [
    "$(mkdir owned)",
    "`mkdir owned`",
    "a; mkdir owned ;",
    "a|mkdir owned",
    "a&&mkdir owned",
    "-rf",
    "a'b\"c",
    "[x]",
]


def test_a_name_is_never_read_by_a_shell(tmp_path: Path) -> None:
    for name in NAMES:
        picture(tmp_path / "theirs; mkdir owned" / f"{name}.png")
    assert main(["degrade", "./theirs; mkdir owned", "worse", "degradation=noise"]) == 0
    assert main(["pack", "./theirs; mkdir owned", "packed"]) == 0
    assert {path.stem for path in (tmp_path / "worse" / "noise" / "lq").iterdir()} == set(NAMES)
    assert len(shards.index(shards.expand(str(tmp_path / "packed" / "*.tar")))) == len(NAMES)


# --- names that lead out of their folder ---


def linked(kind: bytes, target: str) -> tarfile.TarInfo:
    header = tarfile.TarInfo()
    header.type, header.linkname = kind, target
    return header


@pytest.mark.parametrize("name", ["../../owned", "/owned", "a/../../owned"])
def test_a_member_that_leads_out_of_its_folder_is_no_sample(name: str, tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {f"{name}.png": encoded(), "b.png": encoded()})
    with pytest.raises(ValueError, match="leads out of its folder"):
        shards.index([str(path)])
    assert [sample.key for sample in shards.index([str(path)], on_error="skip")] == ["b"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_member_that_is_no_file_is_no_sample(kind: bytes, tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {"a.png": linked(kind, "/etc/passwd"), "b.png": encoded()})
    assert [sample.key for sample in shards.index([str(path)])] == ["b"]


def index_of(path: Path, row: tuple[Any, ...], **head: Any) -> None:
    """An index beside a shard that somebody has made by hand."""
    table = np.array([row], row_type(32))
    said: dict[str, Any] = {"size": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns, "sha256": None}
    said |= {"labels": [], "counts": [0, 1], "problems": [], "smallest": 16, "decoded_bytes": 768, "key_bytes": 32}
    Path(f"{path}.index").write_bytes(dump(said | head, np.array([7], np.uint64), table))


@pytest.mark.parametrize(
    "row",
    [
        (b"../../owned", 1, 512, 9, 0, 0, 0, 0, 16, 16, 1),
        (b"/owned", 1, 512, 9, 0, 0, 0, 0, 16, 16, 1),
        (b"a", 7, 512, 9, 0, 0, 0, 0, 16, 16, 1),
        (b"a", 1, 512, 2**62, 0, 0, 0, 0, 16, 16, 1),
        (b"a", 1, -512, 9, 0, 0, 0, 0, 16, 16, 1),
        (b"a", 1, 512, -9, 0, 0, 0, 0, 16, 16, 1),
        (b"a", 1, 512, 9, 0, 0, 0, 0, -16, 16, 1),
    ],
)
def test_a_foreign_index_is_not_believed(row: tuple[Any, ...], tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {"a.png": encoded()})
    index_of(path, row)
    with pytest.raises(ValueError, match="is damaged: remove it"):
        shards.index([str(path)])[0]


@pytest.mark.parametrize(
    "head",
    [
        {"counts": [0, 10**18]},
        {"counts": [0, -1]},
        {"counts": [0]},
        {"counts": "x"},
        {"key_bytes": 10**12},
        {"size": "9"},
        {"size": float("nan")},
        {"labels": [1]},
        {"more": 1},
        {"key_bytes": 0},
        {"smallest": float("inf")},
    ],
)
def test_an_index_of_impossible_numbers_is_refused(head: dict[str, Any], tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {"a.png": encoded()})
    index_of(path, (b"a", 1, 512, 9, 0, 0, 0, 0, 16, 16, 1), **head)
    with pytest.raises(ValueError, match="remove it"):
        shards.index([str(path)])


@pytest.mark.parametrize("entry", ["..", "../owned", "/owned", "", ".", 5, None, ["a"]])
def test_a_recipe_names_no_folder_above_its_own(entry: Any, tmp_path: Path) -> None:
    recipe = {"degradation": "noise", "severity": 1.0, "sigma": 1.0, "seed": 1}
    (tmp_path / "r.json").write_text(json.dumps({"entry": entry, "image": "a.png", "recipe": recipe}))
    with pytest.raises(ValueError, match=r"which is no (plain )?name: correct it"):
        read_records(tmp_path / "r.json")


# --- sizes ---


def png(width: int, height: int) -> bytes:
    data = bytearray(encoded(".png"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def jpeg(width: int, height: int) -> bytes:
    data = bytearray(encoded(".jpg"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def webp(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "WEBP", lossless=True)
    data = bytearray(buffer.getvalue())
    start = data.index(b"VP8L") + 9
    bits = int.from_bytes(data[start : start + 4], "little") & ~(2**28 - 1)
    data[start : start + 4] = (bits | (width - 1) | (height - 1) << 14).to_bytes(4, "little")
    return bytes(data)


def tiff(width: int, height: int) -> bytes:
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    tags += [(277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, width * height % 2**32)]
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(4)


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHI IiiHHIIiiII", 100, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def gif(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("P", (16, 16)).save(buffer, "GIF")
    data = bytearray(buffer.getvalue())
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


BOMBS: dict[str, bytes] = {
    "png": png(60_000, 60_000),
    "largest png": png(2**31 - 1, 2**31 - 1),
    "jpeg": jpeg(65_500, 65_500),
    "webp": webp(16_383, 16_383),
    "tiff": tiff(100_000, 100_000),
    "bmp": bmp(100_000, 100_000),
    "gif": gif(65_000, 65_000),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_an_image_bomb_is_refused_before_it_is_decoded(kind: str, tmp_path: Path) -> None:
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"^theirs: .* pixels, more than 180000000: cut it into parts, or set BDG_MAX"):
        read_image(BOMBS[kind], "theirs")
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()
    assert upright_size(io.BytesIO(BOMBS[kind])) is None


@pytest.mark.parametrize("kind", BOMBS)
def test_an_image_bomb_in_a_shard_has_no_size(kind: str, tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {"a.png": BOMBS[kind]})
    assert shards.index([str(path)])[0].size is None


@pytest.mark.parametrize(("limit", "fits"), [("255", False), ("256", True)])
def test_the_bound_of_images_is_the_users(limit: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDG_MAX_PIXELS", limit)
    if fits:
        assert read_image(encoded()).array.shape == (16, 16, 3)
    else:
        with pytest.raises(ValueError, match="16 x 16 pixels, more than 255"):
            read_image(encoded())
    monkeypatch.setenv("BDG_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match=f"BDG_MAX_PIXELS=many: give a number of pixels, such as {MAX_PIXELS}"):
        read_image(encoded())


def test_an_image_starts_no_other_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def ghostscript(*_: Any, **__: Any) -> None:
        (Path.cwd() / "owned").mkdir()

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n(owned) (w) file\n%%EOF\n"
    with Image.open(io.BytesIO(eps)) as image:
        assert image.format == "EPS"  # which Pillow takes it for, whatever its name
    with pytest.raises(ValueError, match="not an image"):
        read_image(eps, "photo.png")


DEEP = "[" * 100_000 + "]" * 100_000
BAD_NUMBERS = ["NaN", "Infinity", "-1", "1e999", "true", '"9"', "1" + "0" * 400, "1" + "0" * 5000, "null", "[]"]


@pytest.mark.parametrize("number", BAD_NUMBERS)
def test_a_manifest_of_impossible_numbers_is_refused(number: str, tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {"a.png": encoded()})
    text = '{"format": "bdg-shards-1", "shards": {"x.tar": {"bytes": %s, "sha256": null}}}'
    (tmp_path / "manifest.json").write_text(text % number)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        shards.index(shards.expand(str(path)))


@pytest.mark.parametrize(
    "text", ["{}", "[]", "7", '{"format": 3}', '{"format": "bdg-shards-1", "shards": []}', DEEP, "{"]
)
def test_a_manifest_of_another_shape_is_nobodys_or_refused(text: str, tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {"a.png": encoded()})
    (tmp_path / "manifest.json").write_text(text)
    if text in ("{}", "[]", "7", '{"format": 3}'):
        assert len(shards.index(shards.expand(str(path)))) == 1
        return
    with pytest.raises(ValueError, match=r"manifest\.json"):
        shards.expand(str(path))


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("text", [DEEP, '{"a": ' * 50_000, '{"degradation": NaN}', "\xff", "1e999", "null"])
def test_a_recipe_that_is_none_is_refused(text: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"r{suffix}"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="recipe="):
        read_records(path)


@pytest.mark.parametrize(
    "recipe",
    [
        {"degradation": "noise", "sigma": float("nan"), "seed": 1},
        {"degradation": "noise", "sigma": 1e300, "seed": 1},
        {"degradation": "noise", "sigma": [1] * 10_000, "seed": 1},
        {"degradation": "noise", "sigma": 1.0, "seed": -1},
        {"degradation": "noise", "sigma": "1", "seed": 1},
        {"degradation": ["noise"]},
        {"degradation": "noise", "parts": 5},
        {"degradation": "noise", "parts": [5]},
        {"parts": []},
    ],
)
def test_a_recipe_of_impossible_numbers_is_refused(recipe: dict[str, Any]) -> None:
    x_hq = np.zeros((8, 8, 3), np.float32)
    if recipe == {"parts": []}:
        assert (replay(x_hq, recipe, [GaussianNoise()]) == x_hq).all()
        return
    with pytest.raises(ValueError, match="recipe"):
        replay(x_hq, recipe, [GaussianNoise()])


def test_json_in_a_shard_that_is_nested_deeply_is_a_sample_that_cannot_be_used(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {"a.png": encoded(), "a.json": DEEP.encode()})
    with pytest.raises(ValueError, match=r"sample 'a' has a \.json member that is nested too deeply"):
        shards.index([str(path)])


def test_yaml_that_is_nested_deeply_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "theirs" / "degradation").mkdir(parents=True)
    (tmp_path / "theirs" / "degradation" / "deep.yaml").write_text("a: " + "[" * 500 + "]" * 500)
    words = ("degrade", "a.png", "b.png", "degradation=deep", "--config-dir", "theirs")
    assert "nested too deeply" in refused(capsys, *words)


def test_yaml_makes_no_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "theirs" / "degradation").mkdir(parents=True)
    (tmp_path / "theirs" / "degradation" / "evil.yaml").write_text("a: !!python/object/apply:os.mkdir [owned]\n")
    refused(capsys, "degrade", "a.png", "b.png", "degradation=evil", "--config-dir", "theirs")


def extended(kind: bytes, content: bytes, size: int | None = None) -> bytes:
    """A header of a tar file that speaks of the next one, with the size that it claims to have."""
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, len(content) if size is None else size
    return header.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def pax(key: str, value: str) -> bytes:
    record = f" {key}={value}\n"
    length = len(record) + len(str(len(record) + 2))
    return extended(tarfile.XHDTYPE, f"{length}{record}".encode())


def sparse(name: str = "x.png") -> bytes:
    """The header of a sparse file that says that a block with more of its parts follows."""
    header = tarfile.TarInfo(name)
    header.type = tarfile.GNUTYPE_SPARSE
    data = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    data[482] = 1
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + sum(data[156:]) + 8 * ord(" "))
    return bytes(data)


def sparse_parts(num_blocks: int) -> bytes:
    parts = b"%011o\0" % 1 * 42
    return (parts + b"\1" + bytes(7)) * (num_blocks - 1) + parts + bytes(8)


def sparse_map(num_parts: int) -> bytes:
    """The same in the newer form, whose parts stand at the begin of the file's bytes."""
    said = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1"}
    text = f"{num_parts}\n" + "0\n" * 2 * num_parts
    records = b"".join(f"{len(line) + 4} {line}\n".encode() for line in (f"{k}={v}" for k, v in said.items()))
    return extended(tarfile.XHDTYPE, records) + member("y.png", text.encode())


def member(name: str, data: bytes) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    return header.tobuf() + data + bytes(-len(data) % 512)


@pytest.mark.parametrize(
    "head",
    [
        pax("size", "-1024"),
        pax("size", "-512"),
        pax("size", str(2**80)),
        pax("path", "a\0.png"),
        extended(tarfile.XHDTYPE, b"", 2**60),
        extended(tarfile.GNUTYPE_LONGNAME, b"", 2**60),
        extended(tarfile.XHDTYPE, b"1" * 2**20),
        pax("comment", "x") * 2000,
        extended(tarfile.GNUTYPE_LONGNAME, b"a/" * 2**20),
        sparse() + sparse_parts(20_000),
        sparse_map(500_000),
        pax("GNU.sparse.map", "0,0"),
    ],
    ids=[
        "back",
        "round",
        "huge",
        "nul",
        "promise",
        "long promise",
        "digits",
        "chain",
        "long name",
        "parts",
        "map",
        "map beside",
    ],
)
def test_a_tar_file_made_to_hang_or_to_fill_the_memory_is_refused(head: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(member("0.png", encoded()) + head + member("a.png", encoded()) + bytes(1024))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"x\.tar"):
        shards.index([str(path)])
    assert tracemalloc.get_traced_memory()[1] < 5e7
    tracemalloc.stop()


def test_a_sparse_file_that_is_cut_off_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.tar").write_bytes(sparse())
    assert "x.tar: not a tar file, or a compressed one" in refused(capsys, "verify-order", "data.shards=x.tar")


def test_one_long_name_does_not_widen_the_rows_of_all(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    long = extended(tarfile.GNUTYPE_LONGNAME, b"k" * 60_000 + b".png\0") + member("k.png", b"")
    path.write_bytes(long + b"".join(member(f"{i}.png", b"") for i in range(1000)) + bytes(1024))
    with pytest.raises(ValueError, match=r"sample 'k{100}' has a name of 60000 bytes, more than 1024"):
        shards.index([str(path)])
    assert len(shards.index([str(path)], on_error="skip")) == 1000
    assert Path(f"{path}.index").stat().st_size < 2e6


def test_json_in_a_shard_that_is_large_is_not_read(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {"a.png": encoded(), "a.json": b'{"a": [' + b"[]," * 10**6 + b"0]}"})
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"sample 'a' has a \.json member of 3000010 bytes, more than 1000000"):
        shards.index([str(path)])
    index_of(path, (b"a", 1, 512, 9, 0, 0, 1536, 3_000_010, 16, 16, 1))
    with pytest.raises(ValueError, match="is damaged: remove it"):
        shards.index([str(path)])[0]
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()


# --- secrets ---

SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    "text",
    [
        "https://user:{}@host/a.tar",
        "https://host/a.tar?X-Amz-Signature={}&x=1",
        "s3://{}@bucket/a-{{000..009}}.tar",
        "wandb.api_key={}",
        "logger.wandb.api_key='{}' seed=1",
        "  api_key: {}",
        "hf_token: '{}'",
        '{{"password": "{}"}}',
        '{{"AWS_SECRET": "a\\"{}"}}',
        "anything with {} inside",
        "https://user:p@{}@host/a.tar",
        "https://user:p/{}@host/a.tar",
        "https://user:p?{}@host/a.tar",
        "api-key={}",
        "X-Api-Key: {}",
        "password: |\n  first\n\n  {}",
        "password: 'first\n\n  {}'",
        "my_tokens:\n- first\n- {}",
        '{{"tokens": ["a", ["{}"]]}}',
        "got {{'api_key': 'a', 'tokens': ['a', '{}']}}",
        "in '+server={{user: me, password: {}}}'",
        "bdg train '+my_tokens=[a, {}]' seed=1",
        "password=a,{} seed=1",
        "password='a {}' seed=1",
        'bdg train hf_token=\\"{}\\"',
    ],
)
def test_a_secret_is_not_written(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET if text.startswith("anything") else "another-one")
    write_text(tmp_path / "x", text.format(SECRET))
    assert SECRET not in (tmp_path / "x").read_text()
    assert "***" in (tmp_path / "x").read_text()


def test_a_config_without_its_secrets_can_be_read() -> None:
    assert OmegaConf.create(masked(f"seed: 0\nmy_token: {SECRET}\n")) == {"seed": 0, "my_token": "***"}


@pytest.mark.parametrize(
    "text",
    [
        "num_tokens: 16",
        "token: null",
        '{"tokens": 12}',
        "check the token: install",
        "https://host/a?b",
        "x-?.tar",
        "token: ${oc.env:TOKEN}",
        "tokenizer: gpt",
        "monkey=3",
        "memory://set/a.tar",
        "host/a.tar?b=1",
        "http://host:8080/a@2.tar",
        "train max_tokens=100 tokens=[16,32]",
        "tokens:\n- 16\n- 32",
        "{max_tokens: 16, token: ???}",
        "f(token=None, n=1)",
        "api_key: ${oc.env:KEY, null}",
        "password: null",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text


def test_a_secret_is_neither_printed_nor_logged(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datamodules.remote.RETRIES_S", ())
    for traceback in ("0", "1"):
        monkeypatch.setenv("BDG_TRACEBACK", traceback)
        assert main(["verify-order", f"data.shards='http://u:{SECRET}@127.0.0.1:9/a.tar?token={SECRET}'"]) == 1
        shown = capsys.readouterr()
        assert SECRET not in shown.err + shown.out
    record = logging.LogRecord("bdg", logging.INFO, "", 1, "from %s", (f"https://u:{SECRET}@host",), None)
    hide_secrets(record)
    assert record.getMessage() == "from https://***@host"


# --- terminals ---


def test_a_name_commands_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "a\x1b]0;owned\x07\x1b[2J\x9b\u202e\rx"
    tar(tmp_path / "x.tar", {f"{name}.lq.png": encoded()})
    for traceback in ("0", "1"):
        monkeypatch.setenv("BDG_TRACEBACK", traceback)
        assert main(["verify-order", "data.shards=x.tar"]) == 1
        said = capsys.readouterr().err
        assert "sample 'a\ufffd]0;owned\ufffd\ufffd[2J\ufffd\ufffd\ufffdx'" in said
        assert [each for each in said if not each.isprintable() and each not in "\n\t\ufffd"] == []
    record = logging.LogRecord("bdg", logging.INFO, "", 1, "from\t%s\n", (name,), None)
    make_printable(record)
    assert record.getMessage() == "from\ta\ufffd]0;owned\ufffd\ufffd[2J\ufffd\ufffd\ufffdx\n"


# --- folders ---


def world_writable(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if not path.is_symlink() and path.stat().st_mode & stat.S_IWOTH]


def test_what_we_write_nobody_else_can_change(tmp_path: Path) -> None:
    picture(tmp_path / "clean" / "a.png")
    os.umask(0)
    assert main(["degrade", "clean", "made/worse", "degradation=noise", "json=made/r.json"]) == 0
    assert main(["pack", "clean", "made/packed", "json=made/p.json"]) == 0
    assert len([*(tmp_path / "made").rglob("*")]) > 8
    assert world_writable(tmp_path / "made") == []


@pytest.mark.slow
def test_a_run_is_not_world_writable_and_holds_no_secret(tmp_path: Path) -> None:
    assert main(["pack", "pkg://datamodules/photographs", "photographs", "parts=photographs"]) == 0
    words = ["experiment=demo_smoke", "stage=generation", "max_steps.generation=2", "data.num_workers=0"]
    words += [
        f'+hf_token="{SECRET}"',
        f"+server={{password: {SECRET}}}",
        f"+my_tokens=[{SECRET},{SECRET}]",
        "+who=${oc.env:WANDB_API_KEY}",
        f"+from='https://u:{SECRET}@host/x?sig={SECRET}'",
    ]
    command = "umask 000; " + shlex.join([sys.executable, "-m", "bdg", "train", "data.root=photographs", *words])
    environment = os.environ | {"WANDB_API_KEY": SECRET, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in done.stdout + done.stderr
    assert world_writable(tmp_path / "runs") == []


@pytest.mark.parametrize("there", [True, False])
def test_a_lock_that_is_a_link_touches_no_file_elsewhere(there: bool, tmp_path: Path) -> None:
    run, theirs = Run(tmp_path, "demo", "bridging", "abc"), tmp_path / "theirs"
    run.folder.mkdir(parents=True)
    (run.folder / "lock").symlink_to(theirs)
    if there:
        theirs.write_text("a letter")
    with pytest.raises(OSError, match="lock"), run.locked():
        pass
    assert theirs.exists() is there
    assert not there or theirs.read_text() == "a letter"


def test_a_lock_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    assert not is_locked(tmp_path)


# --- our own code ---

MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
NEVER_CALLED = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler",
    "marshal.loads", "marshal.load", "shelve.open", "joblib.load", "dill.load", "dill.loads", "cloudpickle.loads",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter",
    "pd.read_pickle", "subprocess.getoutput", "subprocess.getstatusoutput", "os.execv",
    "tempfile.mktemp", "shutil.unpack_archive", "fsspec.open", "wds.WebDataset", "webdataset.WebDataset", "wds.gopen",
}  # fmt: skip
NEVER_METHODS = {"extract", "extractall", "load_from_checkpoint"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_our_code_calls_nothing_that_runs_what_it_reads(path: Path) -> None:
    for name, call in calls(path):
        options = {option.arg: ast.unparse(option.value) for option in call.keywords}
        place = f"{path}:{call.lineno}: {name}"
        assert name not in NEVER_CALLED, place
        assert name.rpartition(".")[2] not in NEVER_METHODS, place
        assert options.get("shell", "False") == "False", place
        if name == "torch.load":
            assert options.get("weights_only") == "True", place
        if name in ("np.load", "numpy.load"):
            assert options.get("allow_pickle") == "False", place
        if "ckpt_path" in options:
            assert options.get("weights_only") == "True", place
        if name.startswith("subprocess."):
            assert isinstance(call.args[0], ast.List | ast.Name), f"{place}: give a list, which no shell reads"


def test_the_rule_above_sees_what_it_forbids(tmp_path: Path) -> None:
    found: Callable[[str], Any] = test_our_code_calls_nothing_that_runs_what_it_reads
    for line in ["torch.load(x)", "torch.load(x, weights_only=False)", "eval(x)", "subprocess.run(x, shell=True)"]:
        (tmp_path / "x.py").write_text(line)
        with pytest.raises(AssertionError):
            found(tmp_path / "x.py")


def test_every_promise_of_the_document_has_its_test() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py|test_\w+)`", row.split("|")[-2])
        assert named, row
        for name in named:
            assert (ROOT / name).is_file() if "/" in name else callable(globals().get(name)), name
