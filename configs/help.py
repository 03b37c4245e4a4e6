"""What `--help` and `--cfg job` print."""

from __future__ import annotations

import textwrap
from enum import Enum
from typing import Any

import yaml

from configs.compose import EXPERIMENT, presets
from configs.fields import REQUIRED, Key, keys, plain

_WIDTH = 120


def help_text(schema: type) -> str:
    """The keys of a command, with type, default and meaning; of a group the presets, of a choice the names and the keys of each."""
    lines = ["Keys; give KEY=VALUE to change one:", ""]
    for one in keys(schema):
        lines += _of_key(one)
    lines += ["", f"{EXPERIMENT}=NAME or {EXPERIMENT}=PATH.yaml sets several keys at once; ours: {', '.join(presets(EXPERIMENT))}"]
    lines += ["--cfg job prints the configuration that these words make, and starts nothing"]
    return "\n".join(lines)


def as_yaml(config: Any) -> str:
    """A configuration as YAML, its keys in their order."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True, width=1000)


def _of_key(one: Key) -> list[str]:
    if one.nested:
        found = presets(one.field.metadata["presets"]) if "presets" in one.field.metadata else []
        lines = ["", f"{one.path}={'|'.join([*found, 'PATH.yaml'])}"] if found else [""]
        lines += _indented(one.doc) if found and one.doc else []
        for below in keys(one.type, f"{one.path}."):
            lines += _of_key(below)
        return lines
    if one.registry:
        names = one.registry.names()
        lines = [f"{one.path}={'|'.join(sorted({*names, *presets(one.name)}))}  ({one.field.metadata['default']})", *_indented(one.doc)]
        for name in names:
            for below in keys(one.registry.get(name).Config, f"{one.path}."):
                lines += [f"    with {one.path}={name}: {line}" if i == 0 else line for i, line in enumerate(_of_key(below))]
        return lines
    return [f"{one.path}: {_type(one)} = {_value(one.default)}" if one.default is not REQUIRED else f"{one.path}: {_type(one)}",
            *_indented(one.doc)]  # fmt: skip


def _type(one: Key) -> str:
    if isinstance(one.type, type) and issubclass(one.type, Enum):
        name = "|".join(member.name for member in one.type)
    else:
        name = one.type.__name__ if isinstance(one.type, type) and not hasattr(one.type, "__args__") else str(one.type)
    return f"{name}|null" if one.optional else name


def _value(value: Any) -> str:
    text = yaml.safe_dump(plain(value), default_flow_style=True, width=1000).removesuffix("\n")
    return text.removesuffix("\n...").removesuffix("...").strip()


def _indented(doc: str) -> list[str]:
    return textwrap.wrap(" ".join(doc.split()), _WIDTH, initial_indent="        ", subsequent_indent="        ")
