"""One spelling for configured things: `name{key=value key=value}`, from a frozen dataclass and back.

Passes, modules and provenance all use it, so a pipeline's text, `repr` and record are the same string.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

from mattecompress.errors import UserError

T = TypeVar("T")


class OptionError(UserError):
    """An option is unknown, or its value does not fit its type."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A `; did you mean ...` ending for an error message, or a list of what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(known) or 'none'}"


def format_options(name: str, instance: Any) -> str:
    """`name{...}` with the fields of dataclass `instance` that differ from their defaults, in order."""
    changed = [
        f"{field.name.replace('_', '-')}={format_value(getattr(instance, field.name))}"
        for field in dataclasses.fields(instance)
        if field.init and getattr(instance, field.name) != _default(field)
    ]
    return f"{name}{{{' '.join(changed)}}}" if changed else name


def parse_options(cls: type[T], text: str, where: str) -> T:
    """The dataclass `cls` from `key=value key=value`.

    Raises:
        OptionError: an unknown key, a value of the wrong type, a key given twice or a required key left out.
    """
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for item in split_options(text):
        key, equals, value = item.partition("=")
        name = key.replace("-", "_")
        if name not in fields or not equals:
            spelled = [field.replace("_", "-") for field in fields]
            raise OptionError(f"{where}: unknown option '{key}'{nearest(key, spelled)}")
        if name in values:
            raise OptionError(f"{where}: option '{key}' is given twice")
        values[name] = parse_value(hints[name], value, f"{where}: option '{key}'")
    missing = [
        name
        for name, field in fields.items()
        if name not in values and _default(field) is dataclasses.MISSING
    ]
    if missing:
        raise OptionError(f"{where}: option '{missing[0]}' is required")
    return cls(**values)


def require_finite(instance: Any, where: str) -> None:
    """Check the numbers among the fields of a dataclass, which the text of options cannot get wrong but Python can.

    Raises:
        OptionError: one is not finite.
    """
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        _finite(value, str(value), f"{where}: option '{field.name.replace('_', '-')}'")


def split_options(text: str) -> list[str]:
    """Split on spaces that stand outside brackets and quotes."""
    return re.findall(r"(?:\[[^\]]*\]|'[^']*'|[^\s\['])+", text)


def format_value(value: Any) -> str:
    """A value's only spelling: `true`, `none`, `[1,2]`, `0.5`, a bare word, or 'quoted text'."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{','.join(format_value(item) for item in value)}]"
    if isinstance(value, str) and not re.fullmatch(r"[\w.+*/:@-]+", value):
        return f"'{value}'"
    return str(value)


def parse_value(hint: Any, text: str, where: str) -> Any:
    """A value of type `hint` (int, float, bool, str, Literal, tuple[X, ...], X | None) from its spelling."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        inner = [arm for arm in typing.get_args(hint) if arm is not type(None)]
        return None if text == "none" else parse_value(inner[0], text, where)
    if origin is Literal:
        choices = typing.get_args(hint)
        matches = [choice for choice in choices if str(choice) == text]
        if not matches:
            raise OptionError(f"{where}: '{text}' is not one of {', '.join(map(str, choices))}")
        return matches[0]
    if origin is tuple:
        items = [item for item in text.strip("[]").split(",") if item]
        return tuple(parse_value(typing.get_args(hint)[0], item, where) for item in items)
    return _parse_scalar(hint, text, where)


def _parse_scalar(hint: Any, text: str, where: str) -> Any:
    if hint is bool:
        if text not in ("true", "false"):
            raise OptionError(f"{where}: expected true or false, got '{text}'")
        return text == "true"
    if hint is str:
        return text.strip("'")
    try:
        value = hint(text)
    except ValueError:
        raise OptionError(f"{where}: expected {hint.__name__}, got '{text}'") from None
    return _finite(value, text, where)


def _finite(value: Any, given: str, where: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise OptionError(f"{where}: expected a finite number, got '{given}'")
    return value


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
