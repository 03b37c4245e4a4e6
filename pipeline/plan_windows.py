"""Plans a windows table over the `frames` of a dataset: another gap, stride, baseline rule or number of context views is another index.

    python pipeline/plan_windows.py dataset=s3://bucket/rooms name=wide windows.gap=16 windows.views=3

No image is read or written. `cache_gaussians.py windows=wide ...` and `train.py windows=wide ...` take it by its name. Given again after
the dataset grew, it plans the new scenes; windows that are there keep their shards.
"""

from __future__ import annotations

from configs import command
from configs.schema import PlanWindowsConfig
from pipeline.build_shards import passed_over_text
from pipeline.plan.windows import build_windows
from storage.index import Index
from storage.location import StorageError


def run(config: PlanWindowsConfig) -> None:
    """Writes the index, unless it is current."""
    frames = Index.open(config.dataset, "frames")
    windows, passed_over = build_windows(config.dataset, config.name, config.windows, frames)
    print(f"{windows.url}: {len(windows)} windows over {len(frames)} frames{passed_over_text(passed_over)}", flush=True)
    if not len(windows):
        raise StorageError(f"{config.dataset}: this rule gives no window at all{passed_over_text(passed_over)}")


if __name__ == "__main__":
    command(PlanWindowsConfig, run)
