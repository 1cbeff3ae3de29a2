"""A TOML file into msgspec structs, with every fault told at once: where, what was got, what was expected."""

from __future__ import annotations

import math
import re
import sys
import types
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import msgspec

from rdedge.sources.uri import masked

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 1 << 20
_SHOWN = 60


class Problems(Exception):
    """All faults of a file, a line each; never empty."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises Problems."""
    try:
        if path.exists() and not path.is_file():  # a pipe would make us wait
            raise Problems([f"{path}: is not a file"])
        with path.open("rb") as f:
            data = f.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise Problems([f"{path}: larger than 1 MiB, not a line's description"])
        return tomllib.loads(data.decode())
    except OSError as exc:
        raise Problems([f"{path}: cannot be read ({exc.strerror})"]) from exc
    except UnicodeDecodeError as exc:
        raise Problems([f"{path}: byte {exc.start} is not UTF-8"]) from exc
    except RecursionError as exc:
        raise Problems([f"{path}: is nested too deeply"]) from exc
    except ValueError as exc:  # TOMLDecodeError is one; an impossible date or number is another
        raise Problems([f"{path}: not TOML: {exc}"]) from exc


def faults(raw: object, expected: Any, place: str = "") -> Iterator[str]:
    """Every fault of plain values against a type, each with the path of its key."""
    struct = _struct_in(expected)
    if struct is not None and isinstance(raw, dict):
        yield from _faults_of_table(raw, struct, place)
    elif (
        (item := _item_of_structs(expected)) is not None
        and isinstance(raw, list)
        and all(isinstance(entry, dict) for entry in raw)
    ):
        below = [fault for i, entry in enumerate(raw) for fault in faults(entry, item, f"{place}[{i}]")]
        yield from below or _faults_of_value(raw, expected, place)  # then of their number
    else:
        yield from _faults_of_value(raw, expected, place)


def _faults_of_table(raw: dict[str, object], struct: type[msgspec.Struct], place: str) -> Iterator[str]:
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    prefix = f"{place}." if place else ""
    for key in raw:
        if key not in fields:
            close = get_close_matches(key, fields, 1)
            hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(fields)}"
            yield f"{prefix}{_shown_key(key)}: unknown key; {hint}"
    for name, field in fields.items():
        if name in raw:
            yield from faults(raw[name], field.type, f"{prefix}{name}")
        elif field.required:
            yield f"{prefix}{name}: is missing"


def _faults_of_value(raw: object, expected: Any, place: str) -> Iterator[str]:
    infinite = next((value for value in _floats(raw) if not math.isfinite(value)), None)
    if infinite is not None:
        yield f"{place}: got {infinite}, expected a finite number"
        return
    try:
        msgspec.convert(raw, expected)
    except (msgspec.ValidationError, ValueError) as exc:
        reason = str(exc)
        if below := re.search(r" - at `\$(.*)`$", reason):
            reason, place = reason[: below.start()], place + below[1]
        choices = f", expected one of {', '.join(map(str, _choices(expected)))}" if "enum value" in reason else ""
        yield f"{place}: got {_shown(raw)}: {reason[:1].lower()}{reason[1:]}{choices}"


def _floats(raw: object) -> Iterator[float]:
    if isinstance(raw, float):
        yield raw
    elif isinstance(raw, list):
        for value in raw:
            yield from _floats(value)


def _alternatives(expected: Any) -> tuple[Any, ...]:
    return get_args(expected) if get_origin(expected) in (Union, types.UnionType) else (expected,)


def _struct_in(expected: Any) -> type[msgspec.Struct] | None:
    for kind in _alternatives(expected):
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return kind
    return None


def _item_of_structs(expected: Any) -> Any:
    """The struct of ``tuple[Struct, ...]``."""
    bare = get_args(expected)[0] if hasattr(expected, "__metadata__") else expected
    if get_origin(bare) is tuple and _struct_in(get_args(bare)[0]) is not None:
        return get_args(bare)[0]
    return None


def _choices(expected: Any) -> tuple[Any, ...]:
    return tuple(value for kind in _alternatives(expected) for value in get_args(kind) if isinstance(value, str))


def _shown(raw: object) -> str:
    text = masked(repr(raw))  # an address may hold a password
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _shown_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]{1,40}", key) else _shown(key)
