"""Configurations that a run of an older release stored: completed before they are compared or used.

A key that did not exist then gets the value that it stands for (`before`, see `configs.fields`), never today's default. A key that was
renamed keeps its value. A key that is gone is dropped where its value asked for what is done today, else the run is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from configs.compose import build, convert
from configs.errors import ConfigError
from configs.fields import Key, keys, plain

Config = TypeVar("Config")

RENAMED: dict[str, str] = {"supervision.shuffle": "supervision.control", "supervision.context_as_target": "supervision.targets"}
"""Dotted key of an older release -> today's."""

REWRITTEN: dict[str, dict[Any, Any]] = {
    "supervision.shuffle": {False: "none", True: "shuffle"},
    "supervision.context_as_target": {False: "between", True: "all"},
}
"""Dotted key of an older release -> today's value for each of its values, where the values changed too."""

REMOVED: dict[str, Any] = {}
"""Dotted key of an older release -> the value that asked for what is done today."""


def restore(schema: type[Config], stored: Mapping[str, Any], where: str) -> Config:
    """The configuration that an older or the same release stored.

    Args:
        schema: the dataclass that it was of.
        stored: plain JSON values.
        where: the run, for messages.

    Raises:
        ConfigError: it holds a key that nobody knows (a newer release's), lacks one that always was, or asks for what is gone.
    """
    flat = {
        RENAMED.get(path, path): REWRITTEN[path][value] if path in REWRITTEN else value for path, value in _flat(schema, stored).items()
    }
    for path, value in [item for item in flat.items() if item[0] in REMOVED]:
        if value != REMOVED[path]:
            raise ConfigError(
                f"{where}: was made with {path}={value}, which this release no longer does; go on with the release that made it"
            )
        del flat[path]
    try:
        config = build(schema, _completed(schema, flat, where))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}".replace(f"{where}: {where}", where)) from error
    if flat:
        raise ConfigError(f"{where}: its configuration has keys of another release: {', '.join(sorted(flat))}; use that release")
    return config


def complete(schema: type, stored: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`restore`, as plain values: what two configurations are compared by."""
    found: dict[str, Any] = plain(restore(schema, stored, where))
    return found


def _flat(schema: type, stored: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """By dotted key. What is no mapping, or a key of today that holds a mapping as its value, stays whole."""
    whole = {one.path for one in _all(schema) if not one.nested}
    flat: dict[str, Any] = {}
    for name, value in stored.items():
        path = f"{prefix}{name}"
        flat |= _flat(schema, value, f"{path}.") if isinstance(value, Mapping) and path not in whole else {path: value}
    return flat


def _all(schema: type, prefix: str = "") -> list[Key]:
    return [found for one in keys(schema, prefix) for found in ([one, *_all(one.type, f"{one.path}.")] if one.nested else [one])]


def _completed(schema: type, flat: dict[str, Any], where: str, prefix: str = "") -> dict[str, Any]:
    """Nested values for `build`; takes what it uses out of `flat`."""
    values: dict[str, Any] = {}
    for one in keys(schema, prefix):
        if one.nested:
            values[one.name] = _completed(one.type, flat, where, f"{one.path}.")
        elif one.path in flat:
            values[one.name] = flat.pop(one.path) if one.registry else convert(one, flat.pop(one.path))
        elif one.before:
            values[one.name] = one.before[0]
        else:
            raise ConfigError(f"{where}: its configuration lacks {one.path}; it is damaged, or no run of this program")
    return values
