"""Synthetic furnished rooms in the on-disk layout of ScanNet++, for demonstrations and tests: whatever reads the real dataset reads these.

A room is a closed shell with textured analytic solids, photographed through a fisheye on a hand-held walk; the same spec gives the same
bytes.

    specs = room_specs(count=2, seed=0, frames=16, scale=0.25)
    for spec in specs:
        write_room("rooms", spec)
    write_root("rooms", specs, train=[specs[0].scene_id], val=[specs[1].scene_id])
"""

from pipeline.synthetic.render.capture import render_truth
from pipeline.synthetic.spec import DEFECTS, RoomSpec, room_specs
from pipeline.synthetic.write.layout import write_room, write_root

__all__ = ["DEFECTS", "RoomSpec", "render_truth", "room_specs", "write_room", "write_root"]
