"""`bdg push`: an exported folder on the Hugging Face Hub; the token comes from environment or login, never from here."""

import json
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from bdg.commands.export import CARD, LINEAGE, MODEL, PARTS
from bdg.commands.request import Request
from bdg.weights import load_weights
from jobs.run import write_text
from jobs.secrets import masked

REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SUFFIXES = (".safetensors", ".json", ".md", ".png", ".jpg", ".onnx", ".py")
"""Of files that an export may hold."""
TEXTS = (".json", ".md", ".py")


def run(config: DictConfig, request: Request) -> None:
    folder, repo = Path(f"{config.folder}"), f"{config.repo}"
    if not REPO.fullmatch(repo):
        raise ValueError(f"repo={repo}: give OWNER/NAME, such as me/mymodel")
    if find_spec("huggingface_hub") is None:
        raise ValueError("bdg push needs a package that is not installed: pip install 'bdg[hub]'")
    files = to_upload(folder)
    check_texts(folder, files)
    load_weights(folder / MODEL)
    sizes = {name: (folder / name).stat().st_size for name in files}
    seen = "private" if config.private else "public"
    done = "would upload" if config.dry else "uploaded"
    address = None if config.dry else upload(hub(), folder, files, repo, config.private, f"{config.message}")
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(f"{done} {len(files)} files, {sum(sizes.values()) / 1e6:.2f} MB, to {repo} ({seen}):")
    console.print(*(f"  {name}  {size / 1e3:,.0f} kB" for name, size in sizes.items()), sep="\n")
    if address:
        console.print(address)
    if config.json:
        told = {
            "repo": repo,
            "private": bool(config.private),
            "dry": bool(config.dry),
            "files": sizes,
            "address": address,
        }
        write_text(Path(config.json), json.dumps(told, indent=1) + "\n")


def to_upload(folder: Path) -> list[str]:
    """The files of an export, by their names in it.

    Raises FileNotFoundError for a folder that is none, and ValueError for one that holds anything else: it would be published.
    """
    for needed in (MODEL, CARD, LINEAGE):
        if not (folder / needed).is_file():
            raise FileNotFoundError(f"folder={folder} has no {needed}: make it with bdg export RUN {folder}")
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    names = [path.relative_to(folder).as_posix() for path in paths]
    strange = [
        name
        for name, path in zip(names, paths, strict=True)
        if path.is_symlink() or name.partition("/")[0] not in PARTS or path.suffix not in SUFFIXES
    ]
    if strange:
        raise ValueError(
            f"folder={folder} holds {strange[0]}, which bdg export did not write and which would be published: "
            f"take away {', '.join(strange[:5])}"
        )
    return names


def check_texts(folder: Path, files: Sequence[str]) -> None:
    """Raises ValueError for a text with what looks like a password or a token."""
    for name in files:
        if name.endswith(TEXTS):
            text = (folder / name).read_text(encoding="utf-8")
            if masked(text) != text:
                raise ValueError(f"{folder / name} holds what looks like a password or a token: take it out, then push")


def hub() -> Any:
    """The Hub, as one who is logged in (hf auth login) or has $HF_TOKEN sees it; the one place that knows the network."""
    from huggingface_hub import HfApi

    return HfApi(library_name="bdg")


def upload(api: Any, folder: Path, files: Sequence[str], repo: str, private: bool, message: str) -> str:
    """All files as one commit; returns the address of the repository.

    api: as `hub` gives it. Raises OSError if the Hub does not take it, and ValueError if it is to be private and the
    repository is public.
    """
    from huggingface_hub import CommitOperationAdd

    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        is_private = api.repo_info(repo).private
        if not private or is_private:
            operations = [CommitOperationAdd(name, folder / name) for name in files]
            api.create_commit(repo, operations, commit_message=message)
    except Exception as error:  # of huggingface_hub, of the library it speaks HTTP with, or of the server
        reason = str(error).strip().partition("\n")[0]
        raise OSError(
            f"the Hub did not take it ({reason or type(error).__name__}): log in with hf auth login or set HF_TOKEN, check "
            f"that you may write to {repo}, and that there is internet; dry=true only shows what would be sent"
        ) from None
    if private and not is_private:
        raise ValueError(
            f"repo={repo} is there and is public: add private=false to publish there, or name another repository"
        )
    return f"{address}"
