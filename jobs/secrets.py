"""Passwords, keys and tokens, which stay out of every file that we write and of every message."""

import logging
import os
import re

_NAME = r"[\w.-]*(?:api_?key|token|secret|password|passwd|credential)s?"
_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_SHORTEST = 8
"""Characters of a variable's value that is taken for a secret; one that is shorter would be found in half of all words."""
_PLAIN = re.compile(r"""["']?(null|none|true|false|\*\*\*|[-+\d.e]+|\$\{.*)["']?""", re.IGNORECASE)
_SECRETS = (
    re.compile(r"(\w://)[^\s/?#@'\"]+(?=@)"),  # user:password@ of a URL
    re.compile(
        r"(\w://[^\s?#'\"]*\?)(?=[^\s'\"]*=)[^\s'\"]+"
    ),  # all that is asked of a server: names of tokens are many
    re.compile(rf"(?i)(\b{_NAME}=)([\"'][^\"'\n]*[\"']|[^\s,&\]\}}\"']+)"),  # a word of a command
    re.compile(rf"(?im)(^\s*(?:- )?{_NAME}: +)(\S.*)$"),  # YAML
    re.compile(rf"(?i)(\"{_NAME}\": *)(\"(?:[^\"\\]|\\.)+\")"),  # JSON
)


def masked(text: str) -> str:
    """The text with *** in place of passwords and tokens in URLs, of values whose name says that they are secret, and of
    what environment variables hold whose name says so (WANDB_API_KEY).
    """
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _VARIABLE.search(name) and not os.path.exists(value):
            text = text.replace(value, "***")
    for pattern in _SECRETS:
        text = pattern.sub(_hide, text)
    return text


def hide_secrets(record: logging.LogRecord) -> bool:
    """A filter of log handlers."""
    record.msg, record.args = masked(record.getMessage()), ()
    return True


def _hide(found: re.Match[str]) -> str:
    name, *value = found.groups()
    if value and _PLAIN.fullmatch(value[0]):
        return found[0]
    quote = value[0][0] if value and value[0][0] in "\"'" else ""
    if not quote and name.rstrip().endswith(":"):  # in YAML, * begins an alias
        quote = "'"
    return f"{name}{quote}***{quote}"
