"""`bdg push`: an export goes to the Hub as one commit, private unless asked; the Hub, the one seam, is a stand-in here."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bdg.cli import main
from bdg.commands import push
from bdg.weights import save_weights

pytest.importorskip("huggingface_hub")
PNG = b"\x89PNG"


class Hub:
    """Keeps what it was asked to do. public: the repository is there and everybody sees it."""

    def __init__(self, public: bool | None = None, error: Exception | None = None) -> None:
        self.public = public
        self.error = error
        self.commits: list[tuple[str, dict[str, bytes], str]] = []

    def create_repo(self, repo: str, private: bool, exist_ok: bool) -> str:
        if self.error:
            raise self.error
        self.public = not private if self.public is None else self.public
        return f"https://hub.example/{repo}"

    def repo_info(self, repo: str) -> Any:
        return SimpleNamespace(private=not self.public)

    def create_commit(self, repo: str, operations: list[Any], commit_message: str) -> None:
        files = {each.path_in_repo: Path(each.path_or_fileobj).read_bytes() for each in operations}
        self.commits.append((repo, files, commit_message))


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    save_weights(folder / "model.safetensors", {"network.a": torch.zeros(2)}, {"stage": "restoration"})
    (folder / "samples").mkdir()
    (folder / "samples" / "noise.png").write_bytes(PNG)
    for name in ("config.json", "lineage.json"):
        (folder / name).write_text("{}")
    (folder / "README.md").write_text("---\nlibrary_name: bdg\n---\n")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(push, "hub", lambda: made)
    return made


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["push", *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("bdg push: error: ")
    assert error.count("\n") == 1, error
    return error


def test_every_file_goes_up_in_one_private_commit(export: Path, hub: Hub, capsys: Any) -> None:
    assert main(["push", "mine", "me/mine", "message=First", "json=told.json"]) == 0

    ((repo, files, message),) = hub.commits
    assert (repo, message, hub.public) == ("me/mine", "First", False)
    assert files == {str(p.relative_to(export)): p.read_bytes() for p in export.rglob("*") if p.is_file()}
    out = capsys.readouterr().out
    assert out.startswith("uploaded 5 files")
    assert "to me/mine (private):" in out
    assert "https://hub.example/me/mine" in out
    assert set(json.loads(Path("told.json").read_text())["files"]) == set(files)


def test_dry_uploads_nothing_and_asks_nobody(export: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(push, "hub", None)
    assert main(["push", "mine", "me/mine", "dry=true"]) == 0
    assert "would upload 5 files" in capsys.readouterr().out


def test_public_only_when_asked(export: Path, hub: Hub) -> None:
    assert main(["push", "mine", "me/mine", "private=false"]) == 0
    assert hub.public


def test_a_public_repository_is_not_taken_for_a_private_one(export: Path, hub: Hub, capsys: Any) -> None:
    hub.public = True
    assert "is there and is public: add private=false" in refused(capsys, "mine", "me/mine")
    assert not hub.commits


def test_what_the_hub_does_not_take_is_said(export: Path, hub: Hub, capsys: Any) -> None:
    hub.error = RuntimeError("401 Client Error\nInvalid credentials")
    assert "the Hub did not take it (401 Client Error): log in with hf auth login" in refused(capsys, "mine", "me/mine")


def test_a_token_is_no_word_of_the_command_and_is_not_repeated(export: Path, hub: Hub, capsys: Any) -> None:
    error = refused(capsys, "mine", "me/mine", "token=hf_abcdefghijklmnop")
    assert "no key 'token'" in error
    assert "hf_abc" not in error


@pytest.mark.parametrize("name", ["optimizer.ckpt", ".env", "samples/x.pkl", "onnx/notes.txt", "link.json"])
def test_what_export_did_not_write_is_not_published(export: Path, hub: Hub, name: str, capsys: Any) -> None:
    path = export / name
    path.parent.mkdir(exist_ok=True)
    os.symlink("/etc/hosts", path) if name.startswith("link") else path.write_text("x")
    assert f"holds {name}, which bdg export did not write" in refused(capsys, "mine", "me/mine")
    assert not hub.commits


def test_a_linked_folder_is_not_published(export: Path, hub: Hub, capsys: Any) -> None:
    shutil.rmtree(export / "samples")
    (export / "samples").symlink_to("/etc")
    assert "holds samples, which bdg export did not write" in refused(capsys, "mine", "me/mine")


def test_a_text_with_a_token_is_not_published(export: Path, hub: Hub, capsys: Any) -> None:
    (export / "config.json").write_text('{"api_key": "abcdefghijk"}')
    error = refused(capsys, "mine", "me/mine")
    assert "looks like a password or a token" in error
    assert not hub.commits


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mine", "mine"], "repo=mine: give OWNER/NAME"),
        (["mine", "https://hub/me/mine"], "give OWNER/NAME"),
        (["gone", "me/mine"], "folder=gone has no model.safetensors: make it with bdg export"),
    ],
)
def test_wrong_words_are_refused(export: Path, hub: Hub, words: list[str], message: str, capsys: Any) -> None:
    assert message in refused(capsys, *words)


def test_damaged_weights_are_not_published(export: Path, hub: Hub, capsys: Any) -> None:
    (export / "model.safetensors").write_bytes(b"x")
    assert "not a safetensors file, or cut off" in refused(capsys, "mine", "me/mine")
    assert not hub.commits


def test_without_its_package_it_says_what_to_install(
    export: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(push, "find_spec", lambda name: None)
    assert "pip install 'bdg[hub]'" in refused(capsys, "mine", "me/mine")


def test_the_real_hub_has_what_we_call() -> None:
    """Signatures only: nothing here reaches the network."""
    import inspect

    for name, keys in {
        "create_repo": {"private", "exist_ok"},
        "repo_info": set(),
        "create_commit": {"commit_message"},
    }.items():
        assert keys <= inspect.signature(getattr(push.hub(), name)).parameters.keys()
