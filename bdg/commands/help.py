"""The help of one verb: its config groups with their choices, its top-level keys, its examples."""

from collections.abc import Sequence

from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from bdg.commands.verbs import Verb


def help_text(verb: Verb, hydra: Hydra, config_name: str, overrides: Sequence[str]) -> str:
    """What `bdg <verb> --help` prints; choices come from the whole search path, the chosen one is in brackets."""
    # MULTIRUN lets a choice that only the user can make stay open
    config = hydra.compose_config(config_name, list(overrides), run_mode=RunMode.MULTIRUN)
    chosen = config.hydra.runtime.choices
    loader = hydra.config_loader
    groups = {
        group: [f"[{choice}]" if choice == chosen.get(group) else choice for choice in loader.get_group_options(group)]
        for group in hydra.list_all_config_groups()
        if not group.startswith("hydra")
    }
    sections = {
        "Choices, group=choice": {group: " ".join(names) for group, names in groups.items() if group in chosen},
        "Further choices, +group=choice": {
            group: " ".join(names) for group, names in groups.items() if group not in chosen
        },
        "Keys, key=value (--cfg job prints all of them)": _keys(hydra.get_sanitized_cfg(config, "job")),
    }
    lines = [verb.usage, "", verb.summary]
    for title, table in sections.items():
        lines += ["", title, *_rows(table)] if table else []
    return "\n".join([*lines, "", "Examples", *(f"  {example}" for example in verb.examples)])


def _keys(config: DictConfig) -> dict[str, str]:
    values = OmegaConf.to_container(config, resolve=False)
    assert isinstance(values, dict)
    return {
        str(key): " ".join(f".{name}" for name in value)
        if isinstance(value, dict)
        else "(you choose)"
        if value == "???"
        else f"{value}"
        for key, value in values.items()
    }


def _rows(table: dict[str, str]) -> list[str]:
    width = max(map(len, table), default=0)
    return [f"  {name:<{width}}  {text}".rstrip() for name, text in sorted(table.items())]
