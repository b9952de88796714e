"""What a user asked for, kept so that a verb can compose it again with some values replaced."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from omegaconf import DictConfig

from bdg.commands.compose import compose, escaped


def key_of(word: str) -> str:
    """The key that an override speaks of."""
    return word.lstrip("+~").partition("=")[0]


def quote(text: str) -> str:
    """`text` as a value of Hydra's grammar that means exactly these characters."""
    literal = re.sub(r"(\\*)'", r"\1\1\\'", escaped(text))  # backslashes count only in front of a quote
    return "'" + re.sub(r"(\\+)$", r"\1\1", literal) + "'"


@dataclass(frozen=True)
class Request:
    """The config's name and the overrides of one command line (or of one cell of a sweep)."""

    config_name: str
    overrides: tuple[str, ...]
    config_dir: str | None = None

    def without(self, *keys: str) -> "Request":
        """The same request with its overrides of these keys taken back."""
        kept = tuple(o for o in self.overrides if o.lstrip("+").partition("=")[0] not in keys)
        return Request(self.config_name, kept, self.config_dir)

    def compose(self, replaced: Mapping[str, str] | None = None) -> DictConfig:
        """The config, with the overrides of the keys in `replaced` exchanged for these."""
        replaced = replaced or {}
        kept = self.without(*replaced).overrides
        return compose(self.config_name, [*kept, *(f"{k}={v}" for k, v in replaced.items())], self.config_dir)
