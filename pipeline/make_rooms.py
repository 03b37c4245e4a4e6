"""Makes synthetic rooms in the official ScanNet++ layout, for demonstrations and tests.

    python pipeline/make_rooms.py root=outputs/rooms rooms=4 frames=32

The same keys give the same bytes. Read them with pipeline/build_shards.py, as the real scenes.
"""

from __future__ import annotations

import sys

from tqdm import tqdm

from configs import ConfigError, command
from configs.schema import MakeRoomsConfig
from pipeline.cluster import joined, map_tasks
from pipeline.synthetic import room_specs, write_room, write_root


def run(config: MakeRoomsConfig) -> None:
    """Writes every room, one Ray task each, then the lists of splits and classes."""
    try:
        specs = room_specs(config.rooms, config.seed, config.frames, config.scale, config.defects, config.walk_step)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    with joined(config.ray) as cluster:
        done = map_tasks(write_room, [(config.root, spec) for spec in specs], cluster.workers)
        for _ in tqdm(done, total=len(specs), unit="room", desc="rooms", mininterval=1.0, file=sys.stderr):
            pass
    scenes = [spec.scene_id for spec in specs]
    held_out = len(scenes) - config.val
    write_root(config.root, specs, train=scenes[:held_out], val=scenes[held_out:])
    print(f"{config.root}: {len(scenes)} synthetic rooms, {config.frames} frames each, {config.val} of them in nvs_sem_val", flush=True)


if __name__ == "__main__":
    command(MakeRoomsConfig, run)
