"""What a key is made of: a dataclass field with a default, and a docstring below it that `--help` prints.

    @dataclass
    class LoraConfig:
        rank: int = 8
        \"\"\"Of the update's two factors.\"\"\"

        alpha: int = key(8, before=16)
        \"\"\"Scale of the update, times 1/rank.\"\"\"

A key that comes after release 0.1.0 has a `before`: the value that stands for what the product did when there was no such key. A stored
configuration that lacks the key is completed with it, so a later default never changes what an old run or dataset meant.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

from configs.errors import ConfigError
from configs.registry import Registry

REQUIRED: Any = "???"  # the default of a key that a user must give


@dataclass(frozen=True)
class Choice:
    """One choice of a registry, with its keys. config: an instance of the choice's own `Config`."""

    name: str
    config: Any


def key(default: Any, **metadata: Any) -> Any:
    """A field with something to say beside its default.

    before: see above. presets: the folder in `configs/` whose files may fill this key.
    """
    if dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=default, metadata=metadata)  # type: ignore[arg-type]
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def choice(registry: Registry, default: str, **metadata: Any) -> Any:
    """A field that holds one of a registry's choices. Its keys are those of the choice's `Config`."""
    make = lambda: Choice(default, registry.get(default).Config())  # noqa: E731
    return dataclasses.field(default_factory=make, metadata={"registry": registry, "default": default, **metadata})


@dataclass(frozen=True)
class Key:
    """One key of a schema. path: dotted, from the top; type: of its value, without None; optional: whether null is a value."""

    path: str
    field: dataclasses.Field
    type: Any
    optional: bool
    doc: str

    @property
    def name(self) -> str:
        return self.field.name

    @property
    def nested(self) -> bool:
        """Whether it holds keys of its own, known beforehand."""
        return dataclasses.is_dataclass(self.type) and self.type is not Choice

    @property
    def registry(self) -> Registry | None:
        return self.field.metadata.get("registry")

    @property
    def default(self) -> Any:
        """Of a nested key or a choice: None."""
        if self.nested or self.registry:
            return None
        make = self.field.default_factory
        return self.field.default if make is dataclasses.MISSING else make()

    @property
    def before(self) -> tuple[Any] | None:
        """The value before the key existed, in a tuple; None for a key of release 0.1.0."""
        return (self.field.metadata["before"],) if "before" in self.field.metadata else None


def keys(schema: type, prefix: str = "") -> list[Key]:
    """The keys of a dataclass, in order, not those below them."""
    hints, docs = typing.get_type_hints(schema), field_docs(schema)
    found = []
    for field in dataclasses.fields(schema):
        hint, optional = hints[field.name], False
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
            optional = True
        found.append(Key(prefix + field.name, field, hint, optional, docs.get(field.name, "")))
    return found


def leaves(schema: type, prefix: str = "") -> Iterator[Key]:
    """All keys that hold a value, those below nested ones too; a choice is one value."""
    for one in keys(schema, prefix):
        if one.nested:
            yield from leaves(one.type, f"{one.path}.")
        else:
            yield one


@cache
def field_docs(schema: type) -> dict[str, str]:
    """The docstrings that stand below the fields of a dataclass, by field; those of its bases too."""
    found: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (parsed,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(parsed, ast.ClassDef)
        for statement, below in zip(parsed.body, parsed.body[1:], strict=False):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and is_text:
                found[statement.target.id] = inspect.cleandoc(below.value.value)  # type: ignore[attr-defined]
    return found


def plain(value: Any) -> Any:
    """A configuration, or a part of one, as plain JSON values."""
    if isinstance(value, Choice):
        return {"name": value.name, **plain(value.config)}
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list) else value


def binding(config: Any) -> dict[str, Any]:
    """`plain`, without keys that are as if they did not exist: what was made before they came has them neither."""
    found = {}
    for one in keys(type(config)):
        value = getattr(config, one.name)
        if one.before is None or plain(value) != plain(one.before[0]):
            found[one.name] = binding(value) if one.nested else plain(value)
    return found


def check_above(config: Any, limit: float, *names: str) -> None:
    """Raises ConfigError for values that are not numbers above `limit`."""
    for name in names:
        if not limit < getattr(config, name) < math.inf:
            raise ConfigError(f"{name}={getattr(config, name)}: must be above {limit:g}")


def check_share(config: Any, *names: str) -> None:
    """Raises ConfigError for values that are no shares."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"{name}={getattr(config, name)}: must lie between 0 and 1")


def check_one_of(config: Any, name: str, choices: tuple[str, ...]) -> None:
    """Raises ConfigError for a value that is none of `choices`."""
    if getattr(config, name) not in choices:
        raise ConfigError(f"{name}={getattr(config, name)}: choose {', '.join(choices[:-1])} or {choices[-1]}")
