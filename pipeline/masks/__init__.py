"""Sources of masks, by name. `mesh` fills the column `masks`, every other a column of its own beside it."""

from configs.registry import Registry
from pipeline.masks.base import MaskSource

MASK_SOURCES = Registry("masks", "pipeline.masks", "splat_and_distill.mask_sources")


def make_mask_source(name: str) -> MaskSource:
    """The source of that name. Raises ConfigError with the choices where there is none."""
    choice = MASK_SOURCES.get(name)
    source: MaskSource = choice.make(choice.Config())
    return source


def masks_column(name: str) -> str:
    """The column that a source fills."""
    return "masks" if name == "mesh" else f"masks-{name}"


__all__ = ["MASK_SOURCES", "MaskSource", "make_mask_source", "masks_column"]
