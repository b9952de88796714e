"""JSON and YAML that somebody else wrote: whatever the bytes are, they give a value or a ValueError, and soon."""

import json
import math
from typing import Any, NoReturn

import yaml


def parse(data: bytes | str) -> Any:
    """The value of a JSON text.

    Raises ValueError for what is no JSON, is nested too deeply, or has numbers that are not finite, which Python's own reader
    takes.
    """
    try:
        return _DECODER.decode(data if isinstance(data, str) else data.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None


def parse_object(data: bytes | str) -> dict[str, Any]:
    """The object of a JSON text; see `parse`."""
    value = parse(data)
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def parse_yaml(text: str) -> dict[str, Any]:
    """The mapping of a YAML text, made of plain containers.

    Raises ValueError for what is no YAML or no mapping.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        value = loader.get_single_data()
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"not YAML ({error})") from None
    finally:
        loader.dispose()
    if not isinstance(value, dict):
        raise ValueError("no mapping")
    return value


def is_count(value: Any) -> bool:
    """Whether a value is a whole number from 0 on that fits into 64 bits: a size, a place, a number of things."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        _refuse(text)
    return value


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"'{text}' is no number")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse)
