"""Class lists of the dataset: the vocabulary of labels, what has instances, and how the benchmark merges names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

SEMANTIC_CLASSES = (
    "wall",
    "ceiling",
    "floor",
    "table",
    "door",
    "ceiling lamp",
    "cabinet",
    "curtain",
    "chair",
    "shelf",
    "office chair",
    "desk",
    "window",
    "box",
    "monitor",
    "bed",
    "picture",
    "carpet",
    "books",
    "lamp",
    "bin",
    "plant",
    "plant pot",
    "pillow",
    "sofa",
    "keyboard",
    "cup",
    "bowl",
    "vase",
    "wardrobe",
    "nightstand",
    "blanket",
    "pelmet",
    "skirting board",
)
"""Every label that a room can hold. The row is the label of the semantic mesh."""

INSTANCE_CLASSES = tuple(name for name in SEMANTIC_CLASSES if name not in ("wall", "ceiling", "floor"))

UNLABELLED = -100

# class -> (semantic_map_to, instance_map_to); "None" drops the class from the benchmark.
_MERGED = {
    "office chair": ("chair", "chair"),
    "pelmet": ("curtain", "None"),
    "skirting board": ("None", "None"),
    "wardrobe": ("cabinet", ""),
}


def metadata(scene_labels: Sequence[Sequence[str]]) -> dict[str, str]:
    """The text files below `metadata/` by relative path, except the scene types. `scene_labels`: the object labels of each scene."""
    count = Counter(label for labels in scene_labels for label in labels)
    scenes = Counter(label for labels in scene_labels for label in set(labels))
    rows = ["class,count,scene_count,semantic_map_to,instance_map_to"]
    rows += [f"{name},{count[name]},{scenes[name]},{','.join(_MERGED.get(name, ('', '')))}" for name in SEMANTIC_CLASSES]
    top = [name for name in SEMANTIC_CLASSES if not _MERGED.get(name, ("", ""))[0]]
    top_instance = [name for name in INSTANCE_CLASSES if not _MERGED.get(name, ("", ""))[1]]
    lists = {
        "semantic_classes.txt": SEMANTIC_CLASSES,
        "instance_classes.txt": INSTANCE_CLASSES,
        "semantic_benchmark/top100.txt": top,
        "semantic_benchmark/top100_instance.txt": top_instance,
        "semantic_benchmark/map_benchmark.csv": rows,
    }
    return {path: "\n".join(lines) + "\n" for path, lines in lists.items()}
