"""Sources of masks, by name. `mesh` fills the column `masks`, every other a column of its own beside it."""

from configs.fields import Choice
from configs.schema.data import MASK_SOURCES
from pipeline.masks.base import MaskSource


def make_mask_source(choice: Choice) -> MaskSource:
    """The source that a configuration chose."""
    source: MaskSource = MASK_SOURCES.get(choice.name).make(choice.config)
    return source


def masks_column(name: str) -> str:
    """The column that a source fills."""
    return "masks" if name == "mesh" else f"masks-{name}"


__all__ = ["MaskSource", "make_mask_source", "masks_column"]
