"""Choices by name: ours are the files of a package, other packages bring theirs as entry points.

    RECONSTRUCTORS = Registry("reconstructor", "pipeline.reconstruct", "splat_and_distill.reconstructors")
    RECONSTRUCTORS.get("depth").make(config)

A choice is a module (or any object) with a dataclass `Config`, its keys, and a function `make(config)`, which gives the thing itself.
Nothing but a registered name can be chosen: a configuration never says what to import.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass, is_dataclass
from importlib.metadata import entry_points
from typing import Any

from configs.errors import ConfigError


@dataclass(frozen=True)
class Registry:
    """The choices for one key.

    what: the key; package: whose files are ours; group: of the entry points of others; shared: modules of the package that are no choices.
    """

    what: str
    package: str
    group: str
    shared: tuple[str, ...] = ("base",)

    def names(self) -> list[str]:
        """All choices, ascending. Nothing is imported but the package itself."""
        return sorted({*self._ours(), *entry_points(group=self.group).names})

    def get(self, name: str, presets: Iterable[str] = ()) -> Any:
        """The module of a choice. Ours come first: no installed package can put itself in their place.

        Args:
            name: of the choice.
            presets: what else the user may give for the key; the message lists it too.

        Raises:
            ConfigError: there is no choice of that name, or it lacks what a choice must have.
        """
        if name in self._ours():
            return self._whole(name, importlib.import_module(f"{self.package}.{name}"))
        for entry in entry_points(group=self.group):
            if entry.name == name:
                return self._whole(name, entry.load())
        known = sorted({*self.names(), *presets})
        raise ConfigError(f"{self.what}={name}: choose one of {', '.join(known)}, or install a package with an entry point in {self.group}")

    def _whole(self, name: str, choice: Any) -> Any:
        where = getattr(choice, "__name__", choice)
        if not is_dataclass(getattr(choice, "Config", None)):
            raise ConfigError(f"{self.what}={name}: {where} has no dataclass `Config`; write one, if need be without fields")
        if not callable(getattr(choice, "make", None)):
            raise ConfigError(f"{self.what}={name}: {where} has no function `make(config)`; write one that gives the thing")
        return choice

    def _ours(self) -> set[str]:
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.submodule_search_locations is None:
            raise ModuleNotFoundError(f"no package {self.package}")
        names = {module.name for module in pkgutil.iter_modules(spec.submodule_search_locations)}
        return {name for name in names if name not in self.shared and not name.startswith("_")}
