"""How an error reaches the user: one message for what the user can mend, a traceback for a bug."""

import logging
import os
import re
import sys
import traceback
from unicodedata import category

from jobs.secrets import masked


def report(command: str, error: Exception) -> None:
    """Print `error` to stderr as `command: error: message`, or with its traceback if it is not the user's to mend.

    The user's are ValueError, OSError and what Hydra, OmegaConf and YAML raise. BDG_TRACEBACK=1 shows every traceback.
    """
    mendable = (
        _from_config(error) or isinstance(error, ValueError | OSError) or "DataLoader worker" in str(error)
    )  # torch's
    if os.environ.get("BDG_TRACEBACK") == "1" or not mendable:
        print(printable(masked("".join(traceback.format_exception(error)))), end="", file=sys.stderr)
    else:
        print(printable(f"{command}: error: {masked(message(error))}"), file=sys.stderr)


def printable(text: str) -> str:
    """The text with a mark for each character by which a name in a foreign file could command the terminal, or hide in it."""
    return "".join(each if _is_shown(each) else "\N{REPLACEMENT CHARACTER}" for each in text)


def _is_shown(character: str) -> bool:
    return character.isprintable() or character in "\n\t" or category(character) == "Zs"


def make_printable(record: logging.LogRecord) -> bool:
    """A filter of log handlers."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True


def message(error: Exception) -> str:
    """The text of an error with the reasons that others have noted on it."""
    from_config = _from_config(error)
    texts = [str(error), *getattr(error, "__notes__", [])]
    if from_config and type(error.__cause__).__module__.startswith("omegaconf"):
        texts.append(str(error.__cause__))  # Hydra leaves the reason to the exception that it was raised from
    if override := getattr(error, "override", None):
        texts.insert(0, f"in '{override}':")
    text = "\n".join(filter(None, texts)) or type(error).__name__
    if from_config and (missing := re.search(r"[Mm]issing mandatory value: (\S+)", text)):
        return f"{missing[1]} has no value: add {missing[1]}=VALUE to the command"
    return text


def _from_config(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in ("hydra", "omegaconf", "yaml")
