"""Hydra composes a command's configuration from the YAML beside this file; `configs.schema` says which keys there are and of what type.

    command("train", TrainConfig, run)      # in training/train.py: `torchrun training/train.py steps=40 backbone=demo`

A key that the schema lacks, or a value of the wrong type, ends the command with one line before anything is started.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

_HERE = Path(__file__).resolve().parent
Config = TypeVar("Config")


class ConfigError(ValueError):
    """The configuration asks for something that cannot be done. The message names the key and the remedy."""


def load(name: str, schema: type[Config], overrides: Sequence[str]) -> Config:
    """`configs/{name}.yaml` with Hydra overrides (`key=value`, `group=choice`) as an instance of the dataclass `schema`."""
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    try:
        with initialize_config_dir(str(_HERE), version_base="1.3"):
            asked = compose(name, overrides=list(overrides))
        # `+key=value` gets past the composed schema; a fresh one refuses what it does not know.
        composed = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.to_container(asked))
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise ConfigError(f"no value for {', '.join(missing)}: give {missing[0]}=...")
        return OmegaConf.to_object(composed)  # type: ignore[return-value]
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error, name)) from error


def command(name: str, schema: type[Config], run: Callable[[Config], None]) -> None:
    """The body of an entry point: compose, run, and end with a clear line where something is wrong (2: configuration, 1: storage or
    data)."""
    from storage.location import StorageError

    arguments = sys.argv[1:]
    if arguments in (["--help"], ["-h"]):
        print(f"{sys.modules[run.__module__].__doc__}\nKeys (configs/{name}.yaml); give KEY=VALUE to change one:\n")
        print((_HERE / f"{name}.yaml").read_text())
        return
    try:
        run(load(name, schema, arguments))
    except ConfigError as error:
        sys.exit(_report(f"configuration: {error}", 2))
    except StorageError as error:
        sys.exit(_report(str(error), 1))
    except KeyboardInterrupt:
        sys.exit(_report("interrupted; the same command goes on from what is committed", 130))


def _report(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def _one_line(error: BaseException, name: str) -> str:
    chain: list[Any] = []
    current: BaseException | None = error
    while current is not None:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for link in chain:
        key = getattr(link, "full_key", None)
        if key and type(link).__name__ in ("ConfigAttributeError", "ConfigKeyError"):
            known = {line.split(":")[0].strip() for line in (_HERE / f"{name}.yaml").read_text().splitlines() if ":" in line}
            close = difflib.get_close_matches(str(key).rsplit(".", 1)[-1], sorted(known), n=1)
            return f"unknown key {key!r}{f'; did you mean {close[0]!r}?' if close else ''} (--help lists the keys)"
        if key and type(link).__name__ == "ValidationError":
            return f"{key}: {str(link.msg).splitlines()[0]}"
    return " ".join(str(error).split())
