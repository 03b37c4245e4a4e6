"""From `key=value` words to a configuration: the defaults of the dataclass, then presets, then what the user gave.

Values are taken as typed. Text is text, whatever it holds; all else is read by Hydra's grammar (`[a,b]`, `{a: 1}`, `null`, `1e-4`) and
held to the key's type. Nothing is interpolated, instantiated or looked up but a preset's file and a registered name.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_origin

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import BooleanNode, EnumNode, FloatNode, IntegerNode
from omegaconf.errors import OmegaConfBaseException

from configs.errors import ConfigError
from configs.fields import REQUIRED, Choice, Key, keys

HERE = Path(__file__).resolve().parent
EXPERIMENT = "experiment"
_SCALARS: dict[type, tuple[Any, str]] = {
    bool: (BooleanNode, "true or false"), int: (IntegerNode, "a whole number"), float: (FloatNode, "a number"),
}  # fmt: skip
Config = TypeVar("Config")
Values = dict[str, Any]


def load(schema: type[Config], words: Sequence[str]) -> Config:
    """A command's configuration.

    Args:
        schema: its dataclass.
        words: `key=value`; `group=NAME` or `group=PATH.yaml` takes a preset; `experiment=...` one over all keys. Their places in the row
            do not matter: a key of the command line wins over a group of it, and that over the experiment.

    Raises:
        ConfigError: a key that there is not, a value that is none, or one that is missing.
    """
    values: Values = {}
    given = [_split(word) for word in words]
    for name, text in given:
        if name == EXPERIMENT:
            _experiment(schema, values, text)
    for name, text in sorted(given, key=lambda item: not _is_group(schema, item[0])):
        if name != EXPERIMENT:
            _set(schema, values, name, text)
    config = build(schema, values)
    missing = [one.path for one in keys(schema) if getattr(config, one.name) is REQUIRED]
    if missing:
        raise ConfigError(f"no value for {', '.join(missing)}: give {missing[0]}=...")
    return config


def _experiment(schema: type, values: Values, text: str, under: tuple[str, ...] = ()) -> None:
    """Puts an experiment's values over those of the one that it `extends`. under: those that extend it."""
    found = _preset(EXPERIMENT, text)
    if isinstance(found, dict) and "extends" in found:
        base = str(found.pop("extends"))
        if base in (*under, text):
            raise ConfigError(f"{EXPERIMENT}={text}: extends {base}, which extends it; take one of the two lines out")
        _experiment(schema, values, base, (*under, text))
    _overlay(schema, values, found, f"{EXPERIMENT}={text}: ")


def build(schema: type[Config], values: Mapping[str, Any], prefix: str = "") -> Config:
    """The dataclass from plain values; keys without one have their defaults. Raises ConfigError, with the whole path of the key."""
    given = {}
    for one in keys(schema, prefix):
        if one.registry:
            given[one.name] = _chosen(one, values.get(one.name, {}))
        elif one.nested:
            given[one.name] = build(one.type, values.get(one.name, {}), f"{one.path}.")
        elif one.name in values:
            given[one.name] = values[one.name]
    try:
        return schema(**given)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error


def presets(group: str) -> list[str]:
    """The names of a group's presets."""
    return sorted(path.stem for path in (HERE / group).glob("*.yaml"))


def convert(one: Key, value: Any) -> Any:
    """A plain value, from a file, as the key's type has it. Raises ConfigError."""
    if value is None and one.optional:
        return None
    if one.type is str:
        if not isinstance(value, str):
            raise ConfigError(f"{one.path}: {value!r} is not text; put it into quotes")
        return value
    if one.type in _SCALARS or (isinstance(one.type, type) and issubclass(one.type, Enum)):
        return _scalar(one, value)
    kind = get_origin(one.type) or one.type
    if not isinstance(value, kind):
        raise ConfigError(f"{one.path}={value}: must be a {kind.__name__}")
    if one.type == list[str]:
        for part in value:
            if not isinstance(part, str):
                raise ConfigError(f"{one.path}: {part!r} is not text; put it into quotes")
    return value


def _scalar(one: Key, value: Any) -> Any:
    """A number, a truth value or a member of an enum, by OmegaConf's rules; `${...}`, which it would look up elsewhere, is none."""
    enum = None if one.type in _SCALARS else one.type
    with contextlib.suppress(OmegaConfBaseException):
        node = EnumNode(enum, value, is_optional=False) if enum else _SCALARS[one.type][0](value, is_optional=False)
        if isinstance(node._value(), one.type):
            return node._value()
    wanted = f"one of {', '.join(member.name for member in enum)}" if enum else _SCALARS[one.type][1]
    raise ConfigError(f"{one.path}={value}: must be {wanted}")


def _split(word: str) -> tuple[str, str]:
    name, equals, text = word.partition("=")
    if not equals:
        raise ConfigError(f"{word!r}: give KEY=VALUE (--help lists the keys)")
    return name.removeprefix("+"), text


def _set(schema: type, values: Values, path: str, text: str) -> None:
    """Puts what the user typed for one key into `values`."""
    one, inside = _find(schema, values, path)
    if one.nested or one.registry:
        inside[one.name] = _whole(one, _preset(_group(one), text, one), f"{path}={text}: ")
    else:
        inside[one.name] = convert(one, _read(one, text))


def _is_group(schema: type, name: Any) -> bool:
    return any(name == one.name and (one.nested or one.registry) for one in keys(schema))


def _group(one: Key) -> str:
    """The folder of a key's presets. Raises ConfigError where there are none, for the key has only keys of its own."""
    if one.nested and "presets" not in one.field.metadata:
        raise ConfigError(f"{one.path}: has keys of its own; give {one.path}.KEY=VALUE")
    group: str = one.field.metadata.get("presets", one.name)
    return group


def _overlay(schema: type, values: Values, given: Any, source: str, prefix: str = "") -> None:
    """Puts a preset's values over `values`. source: for messages."""
    if not isinstance(given, dict):
        raise ConfigError(f"{source}not a mapping of keys to values")
    for name, value in sorted(given.items(), key=lambda item: isinstance(item[1], dict) or not _is_group(schema, item[0])):
        path = f"{prefix}{name}"
        try:
            one, inside = _find(schema, values, path)
            if (one.nested or one.registry) and isinstance(value, dict):
                if one.registry:
                    inside[one.name] = _whole(one, {**inside.get(one.name, {}), **value}, "")
                else:
                    _overlay(schema, values, value, "", f"{path}.")
            elif one.nested or one.registry:
                inside[one.name] = _whole(one, _preset(_group(one), str(value), one), "")
            else:
                inside[one.name] = convert(one, value)
        except ConfigError as error:
            raise ConfigError(f"{source}{error}") from error


def _whole(one: Key, given: Any, source: str) -> Values:
    """The values of a nested key or a choice, from one mapping."""
    values: Values = {}
    if one.registry:
        name = given.get("name", one.field.metadata["default"]) if isinstance(given, dict) else None
        values["name"] = name
        given = {key: value for key, value in given.items() if key != "name"} if isinstance(given, dict) else given
        _overlay(one.registry.get(str(name)).Config, values, given, source)
    else:
        _overlay(one.type, values, given, source)
    return values


def _find(schema: type, values: Values, path: str) -> tuple[Key, Values]:
    """The key of a dotted path, and the mapping that its value stands in."""
    names, prefix = path.split("."), ""
    while True:
        known = {one.name: one for one in keys(schema, prefix)}
        if names[0] not in known:
            close = difflib.get_close_matches(names[0], known, n=1)
            hint = f"; did you mean {prefix + close[0]!r}?" if close else ""
            raise ConfigError(f"unknown key {path!r}{hint} (--help lists the keys)")
        one = known[names[0]]
        if len(names) == 1:
            return one, values
        if one.registry:
            values = values.setdefault(one.name, {})
            schema = one.registry.get(values.setdefault("name", one.field.metadata["default"])).Config
        elif one.nested:
            values, schema = values.setdefault(one.name, {}), one.type
        else:
            raise ConfigError(f"unknown key {path!r}: {one.path} has no keys of its own (--help lists the keys)")
        names, prefix = names[1:], f"{one.path}."


def _chosen(one: Key, values: Mapping[str, Any]) -> Choice:
    assert one.registry
    name = values.get("name", one.field.metadata["default"])
    config = build(one.registry.get(name).Config, {key: value for key, value in values.items() if key != "name"}, f"{one.path}.")
    missing = [f"{below.path}" for below in keys(type(config), f"{one.path}.") if getattr(config, below.name) is REQUIRED]
    if missing:
        raise ConfigError(f"no value for {', '.join(missing)}: give {missing[0]}=...")
    return Choice(name, config)


def _preset(group: str, text: str, one: Key | None = None) -> Any:
    """What a preset's file holds; of a choice without a file, its name."""
    is_path = text.endswith((".yaml", ".yml"))
    file = Path(text).expanduser() if is_path else HERE / group / f"{text}.yaml"
    known = presets(group)
    if not is_path and text not in known:
        if one and one.registry:
            one.registry.get(text, known)
            return {"name": text}
        raise ConfigError(f"{group}={text}: choose one of {', '.join(known)}, or give the path of a .yaml file")
    try:
        return yaml.safe_load(file.read_text()) or {}
    except FileNotFoundError as error:
        raise ConfigError(f"{group}={text}: no such file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{group}={text}: cannot be read as YAML: {' '.join(str(error).split())}") from error


def _read(one: Key, text: str) -> Any:
    """What the user typed, as a plain value."""
    if one.type is str:
        return None if one.optional and text == "null" else text
    if one.type == list[str]:
        return _texts(one, text)
    try:
        value = OverridesParser.create().parse_override(f"{one.name}={text}").value()
    except HydraException as error:
        raise ConfigError(f"{one.path}={text}: not a value ({str(error).splitlines()[0]}); quote parts that hold signs") from error
    return _unquoted(value)


def _texts(one: Key, text: str) -> list[str]:
    """`[a, 5e10]` as texts, each as typed: the id of a scene can look like a number, and Hydra's grammar would make one of it."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        node = None
    if not isinstance(node, yaml.SequenceNode) or not all(isinstance(part, yaml.ScalarNode) for part in node.value):
        raise ConfigError(f"{one.path}={text}: must be a list of texts, like [a, b]")
    return [part.value for part in node.value]


def _unquoted(value: Any) -> Any:
    """Hydra keeps the quotes of quoted text, in an object of its own."""
    if isinstance(value, list):
        return [_unquoted(part) for part in value]
    if isinstance(value, dict):
        return {str(_unquoted(name)): _unquoted(part) for name, part in value.items()}
    return value.text if hasattr(value, "text") else value
