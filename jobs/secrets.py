"""Passwords, keys and tokens, which stay out of every file that we write and of every message.

A name is secret if it ends in one of NAMES: `server.password`, `HF_TOKEN`, `X-Api-Key`. Its value is kept where it can be none:
null, true, false, ???, ***, ${KEY}, and numbers of a token or of tokens (`max_tokens: 512`), which are counted. A password may
well be a number, and so may a key.
"""

import json
import logging
import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote

STARS = "***"
STEMS = ("token", "secret", "password", "passwd", "passphrase", "credential", "authorization")
NAMES = rf"(?:(?:api|access|secret|private)[_-]?key|{'|'.join(STEMS)})s?"
_HINT = re.compile(rf"(?i)://|{NAMES}")
_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?$", re.IGNORECASE)
_SHORTEST = 8
"""Characters of a variable's value that is taken for a secret; one that is shorter would be found in half of all words."""


def without_secrets(value: Any) -> Any:
    """The same containers with *** in place of what a secret name stands over, and each text as `masked` has it.

    A text that is a word of a command, `key=value`, has *** as its whole value if its key or one inside of the value is a
    secret name: `+server={user: me, password: x}` becomes `+server=***`.
    """
    return _without(value, "", _values())


def masked(text: str) -> str:
    """The text, JSON or not, with *** in place of passwords and tokens in URLs, of values whose name says that they are
    secret, and of what environment variables hold whose name says so (WANDB_API_KEY). JSON remains JSON.
    """
    known = _values()
    if text.lstrip().startswith(("{", "[")) and _may_hold(text, known):
        with suppress(ValueError, RecursionError):
            return _in_json(text, known)
    return _in_text(text, known)


def masked_lines(text: str) -> str:
    """As `masked`, of lines of which each is JSON."""
    return "".join(map(masked, text.splitlines(keepends=True))) if _may_hold(text, _values()) else text


def hide_secrets(record: logging.LogRecord) -> bool:
    """A filter of log handlers."""
    record.msg, record.args = masked(record.getMessage()), ()
    return True


# --- names and values ---

_NAME_ENDS = re.compile(rf"(?i){NAMES}\Z")
_COUNTED = re.compile(r"(?i)tokens?\Z")
_PART = re.compile(r"\$\{[^{}]*\}|[^\s,\[\](){}\"'\\]+")
_NONE = r"(?i)null|none|true|false|~|-|\?\?\?|\*\*\*|\$\{[^,{}]*(?:, ?null)?\}"
_PLAIN = re.compile(_NONE)
_PLAIN_OR_COUNT = re.compile(rf"{_NONE}|[-+]?[\d_]*\.?\d+(?:e[-+]?\d+)?")


def _values() -> list[str]:
    """What secret environment variables hold, as it is and as URLs and JSON write it; the longest first."""
    held = [
        value
        for name, value in os.environ.items()
        if _VARIABLE.search(name) and len(value) >= _SHORTEST and not os.path.exists(value)
    ]
    forms = {form for value in held for form in (value, quote(value, safe=""), json.dumps(value)[1:-1])}
    return sorted(forms, key=len, reverse=True)


def _may_hold(text: str, known: Collection[str]) -> bool:
    return _HINT.search(text) is not None or any(value in text for value in known)


def _is_plain(name: str, value: str) -> bool:
    """Whether the value, or each of a list, can be no secret."""
    plain = _PLAIN_OR_COUNT if _COUNTED.search(name) else _PLAIN
    return all(plain.fullmatch(part[0]) for part in _PART.finditer(value))


# --- containers ---


def _without(value: Any, name: str, known: Collection[str]) -> Any:
    """name: the secret one that the value stands under, or ""."""
    match value:
        case str():
            return STARS if name and not _is_plain(name, value) else _in_word(value, known)
        case bool() | None:
            return value
        case int() | float():
            return STARS if (name and not _COUNTED.search(name)) or (known and f"{value}" in known) else value
        case list():
            return [_without(inner, name, known) for inner in value]
        case tuple():
            return tuple(_without(inner, name, known) for inner in value)
        case Mapping():
            names = {key: f"{key}" if _NAME_ENDS.search(f"{key}") else name for key in value}
            return {_without(key, "", known): _without(inner, names[key], known) for key, inner in value.items()}
    return value


def _in_json(text: str, known: Collection[str]) -> str:
    value = json.loads(text)
    hidden = _without(value, "", known)
    if hidden == value:
        return text
    dumped = json.dumps(hidden, indent=1 if "\n" in text.strip() else None, ensure_ascii=text.isascii())
    return dumped + text[len(text.rstrip()) :]


_WORD = re.compile(r"([+~]*[\w./@-]+)=(.*)", re.DOTALL)
_INNER = re.compile(rf"(?i)({NAMES})\\?[\"']?\s*:\s*")


def _in_word(text: str, known: Collection[str]) -> str:
    if (word := _WORD.fullmatch(text)) and _may_hold(text, ()):
        key, value = word.groups()
        if _NAME_ENDS.search(key) and not _is_plain(key, value):
            return f"{key}={STARS}"
        if any(not _is_plain(at[1], value[at.end() : _end(value, at.end(), ":")]) for at in _INNER.finditer(value)):
            return f"{key}={STARS}"
    return _in_text(text, known)


# --- text ---

_ADDRESS = re.compile(r"\w://(?:[^\s'\"\\]|\\[^\s'\"]|'(?=\w))+")
_USER = re.compile(r"(\w://)[^/]*@")
_USER_WITH_SLASH = re.compile(r"(\w+://)[^/:@]*:(?!\d+/)\S*@")  # not host:80/
_LINE = re.compile(rf"(?i)([ \t]*(?:- +)*)([^\s:\"'{{}}\[\],#]*?{NAMES}):(?:\s(.*))?")
_ENTRY = re.compile(r"\s*(?:- +)*(?:[\w.-]+:(?=\s|$))?")
_NAMED = re.compile(rf"(?i)({NAMES})(?:(=)| (=) (?=[\"'])|(\\*[\"'])[ \t]*:[ \t]*|(:)[ \t]*)")
_QUOTED = re.compile(
    r"\"(?:[^\"\\\n]|\\.)*(?:\"|\\?$)|'(?:[^'\\\n]|\\.)*(?:'|\\?$)|(\\+[\"'])(?:(?!\1).)*(?:\1|$)", re.MULTILINE
)
_QUOTE = re.compile(r"\\*[\"']")
_BARE = re.compile(
    r"(?:\$\{[^{}\s]*\}|[^\s,&\]})\"'\\]|\\.|[,&\]})](?=[^\s,&\]})\"'\\=])(?![\w.-]+=)|(?<=\w)[\"'](?=\w))*"
)
_TO_COMMA = re.compile(r"(?:\$\{[^{}\n]*\}|[^\n,}\]\"'\\]|\\.|[\"'](?![\s,}\]:]|\Z))*")
_PIECE = re.compile(r"\\.|\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'|[\[\](){}\n]")


def _in_text(text: str, known: Collection[str]) -> str:
    for value in known:
        text = text.replace(value, STARS)
    if not _may_hold(text, ()):
        return text
    return _in_names(_in_yaml(_ADDRESS.sub(_in_address, text)))


def _in_address(found: re.Match[str]) -> str:
    """Without user:password@, and without all that is asked of a server: names of tokens are many."""
    head, mark, asked = _USER.sub(rf"\1{STARS}@", found[0]).partition("?")
    if with_slash := _USER_WITH_SLASH.match(head):
        head = f"{with_slash[1]}{STARS}@{head[with_slash.end() :]}"
    return f"{head}{mark}{STARS if '=' in asked else asked}"


def _in_yaml(text: str) -> str:
    """Lines that are a key and its value, with those below that go on with it."""
    lines, parts, at = text.split("\n"), list[str](), 0
    while at < len(lines):
        line, at = lines[at], at + 1
        if not (entry := _LINE.fullmatch(line)):
            parts.append(line)
            continue
        begin, name, value = entry.groups("")
        end = at
        while end < len(lines) and _goes_on(lines[end], len(begin), bool(value.strip())):
            end += 1
        while not lines[end - 1].strip():
            end -= 1
        if _is_plain(name, " ".join([value, *(_ENTRY.sub("", each, 1) for each in lines[at:end])])):
            parts.append(line)
        else:
            comma = "," if value.rstrip().endswith(",") else ""  # between braces
            parts.append(f"{begin}{name}: '{STARS}'{comma}")
            at = end
    return "\n".join(parts)


def _goes_on(line: str, column: int, has_value: bool) -> bool:
    """Whether a line belongs to the key in this column."""
    inner = line.lstrip()
    indent = len(line) - len(inner)
    return not inner or indent > column or (indent == column and not has_value and inner.startswith("- "))


def _in_names(text: str) -> str:
    """Words of a command and of Python, JSON, YAML between braces. The time is that of reading the text a few times."""
    parts, done, at = list[str](), 0, 0
    while found := _NAMED.search(text, at):
        name, equal, spaced, key_quote, colon = found.groups()
        at = begin = found.end()
        if colon and not _in_braces(text, found.start()):
            continue
        at = _end(text, begin, equal or spaced or key_quote or colon)
        value = text[begin:at]
        if _is_plain(name, value):
            at = begin
            continue
        own_quote = _QUOTE.match(value)
        mark = own_quote[0] if own_quote else key_quote or ("'" if colon else "")  # in YAML, * begins an alias
        parts += [text[done:begin], mark, STARS, mark]
        done = at
    return "".join([*parts, text[done:]])


def _in_braces(text: str, at: int) -> bool:
    """Whether the name around this place is a key of {a: 1, b: 2}."""
    while at and (text[at - 1].isalnum() or text[at - 1] in "_.-/"):
        at -= 1
    while at and text[at - 1] in " \t":
        at -= 1
    return at > 0 and text[at - 1] in "{,"


def _end(text: str, begin: int, between: str) -> int:
    """Where the value that begins there ends; between: what stands between it and its name, "=", ":" or a quote."""
    if quoted := _QUOTED.match(text, begin):
        end = quoted.end()
        return _matched(_BARE, text, end) if between == "=" and text[end : end + 1].isalnum() else end
    if not text.startswith(("[", "{", "("), begin):
        return _matched(_BARE if between == "=" else _TO_COMMA, text, begin)
    depth = 0
    for piece in _PIECE.finditer(text, begin):
        if piece[0] == "\n" and between in "=:":
            return piece.start()
        depth += (piece[0] in "[{(") - (piece[0] in ")}]")
        if not depth:
            return piece.end()
    return len(text)


def _matched(pattern: re.Pattern[str], text: str, begin: int) -> int:
    found = pattern.match(text, begin)
    return found.end() if found else begin
