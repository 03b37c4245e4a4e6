"""The configuration of every command: one dataclass field a key (`configs.schema`), presets in the folders beside, and `key=value` words.

    command(TrainConfig, run)      # in training/train.py: `torchrun training/train.py steps=40 backbone=demo`

A key that there is not, or a value of the wrong type, ends the command with one line before anything is started.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from configs.compose import load
from configs.errors import ConfigError

Config = TypeVar("Config")

_GRACE_S = 5.0

__all__ = ["ConfigError", "command", "load"]


def command(schema: type[Config], run: Callable[[Config], None]) -> None:
    """The body of an entry point: compose, run, and end with a clear line where something is wrong (2: configuration, 1: storage or
    data). `--help` lists the keys, `--cfg job` prints the configuration; both start nothing."""
    from configs.help import as_yaml, help_text
    from storage.location import StorageError

    words = sys.argv[1:]
    show = words[:2] == ["--cfg", "job"] or words[-2:] == ["--cfg", "job"]
    words = [word for word in words if word not in ("--cfg", "job")] if show else words
    try:
        if {"--help", "-h"} & set(words):
            print(f"{sys.modules[run.__module__].__doc__}\n{help_text(schema)}")
            return
        config = load(schema, words)
    except ConfigError as error:
        sys.exit(_refuse_on_all_ranks(error))
    if show:
        print(as_yaml(config), end="")
        return
    try:
        run(config)
    except ConfigError as error:
        sys.exit(_report(f"configuration: {error}", 2))
    except StorageError as error:
        sys.exit(_report(str(error), 1))
    except KeyboardInterrupt:
        sys.exit(_report("interrupted; the same command goes on from what is committed", 130))


def _refuse_on_all_ranks(error: ConfigError) -> int:
    """All ranks of a torchrun come here alike: rank 0 says it, and the others leave it the time to, for the first to end ends all."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(_GRACE_S)
        return 2
    return _report(f"configuration: {error}", 2)


def _report(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code
