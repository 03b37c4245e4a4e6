"""The prepared probe folders of ScanNet and ScanNet++: depth list files, and image and label folders for segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from configs.fields import REQUIRED, check_one_of
from training.probes.data import files
from training.probes.data.frames import Decoder, FrameFiles, ListedData, Listing, depth_list, label_folders


@dataclass
class PreparedConfig:
    """The keys of both."""

    root: str = REQUIRED
    """The folder of the prepared data."""

    part: str = "depth"
    """`depth`: the frames of the two lists; `segmentation`: the images that have labels."""

    train_list: str | None = None
    """A list of `image depth` lines, below the root or a URL; null: the published name."""

    test_list: str | None = None
    """The same for the test split."""

    def __post_init__(self) -> None:
        check_one_of(self, "part", ("depth", "segmentation"))


@dataclass(frozen=True)
class Prepared:
    """What differs between the two.

    lists: names under which the train and the test list were published; folders: of images and labels, both with `{}` for a split; splits:
    names of the train and the test split in these folders; scene: pattern of a scene's name.
    """

    name: str
    lists: tuple[Sequence[str], Sequence[str]]
    folders: Sequence[tuple[str, str, tuple[str, str]]]
    suffix: str
    scene: str
    classes: tuple[str, ...]
    depth_range: tuple[float, float]
    depth_crop: str | None = None
    size: tuple[int, int] | None = None

    def make(self, config: Any) -> ListedData:
        """`ListedData` of the part that `config` chooses."""
        if config.part == "depth":
            depth = Decoder(depth_range=self.depth_range, size=self.size)
            return ListedData(
                self.name, config, lambda: self._depth(config), depth, frozenset({"depth"}),
                depth_range=self.depth_range, depth_crop=self.depth_crop, scene=self.scene,
            )  # fmt: skip
        decode = Decoder(classes=len(self.classes))
        tasks = frozenset({"segmentation"})
        return ListedData(self.name, config, lambda: self._labels(config), decode, tasks, classes=self.classes, scene=self.scene)

    def _depth(self, config: Any) -> Listing:
        remedy = "its lists name an image and a depth file a line; see part=segmentation for labels"

        def split(given: str | None, published: Sequence[str]) -> list[FrameFiles]:
            name = given or files.first_present(config.root, published, remedy)
            return depth_list(config.root, files.at(config.root, name), scene=self.scene)

        return Listing(split(config.train_list, self.lists[0]), split(config.test_list, self.lists[1]))

    def _labels(self, config: Any) -> Listing:
        tops = {images.split("/")[0].format(splits[0]): (images, labels, splits) for images, labels, splits in self.folders}
        images, labels, splits = tops[files.first_present(config.root, list(tops), "see part=depth for list files")]
        train, test = (
            label_folders(config.root, images.format(split), labels.format(split), self.suffix, self.scene) for split in splits
        )  # fmt: skip
        return Listing(train, test)
