"""Checks a dataset to its last byte, and moves away what is broken so that the next build makes exactly that again.

    python storage/verify.py dataset=s3://bucket/rooms
    python storage/verify.py dataset=s3://bucket/rooms decode=false set_aside=true

Every object carries a checksum, or is named by one: all are read and held to it, rows of the indexes to their commit records, keys of each
column to those that they belong to; with `decode=true` every member is decoded too. A finding is one line, with the object's URL. It ends
with 0 where all is sound, with 1 where it is not.

`set_aside=true` moves what is broken to DATASET/set-aside: a shard's tar and commit record together, an index with the `current.json` that
names it, a note, plan, report or `current.json` alone. Do not run it beside a builder.
"""

from __future__ import annotations

from configs import command
from configs.schema import VerifyConfig
from storage import location
from storage.dataset import SET_ASIDE
from storage.location import StorageError, join
from storage.verification import Verification


def run(config: VerifyConfig) -> None:
    """Prints every finding; raises StorageError where there is one."""
    verification = Verification(config.dataset, config.decode)
    findings = verification.run()
    for finding in findings:
        print(f"{join(config.dataset, finding.name)}: {finding.problem}")
    for name, remark in verification.remarks:
        print(f"remark: {join(config.dataset, name)}: {remark}")
    print(f"{config.dataset}: {verification.summary()}", flush=True)
    if not findings:
        return
    moves = sorted({name for finding in findings for name in finding.moves} & verification.sizes.keys())
    remedy = "run again with set_aside=true, then the builds" if moves else "run the builds again"
    if config.set_aside:
        for name in sorted(moves, key=lambda name: name.endswith(".tar")):  # what says that a shard is whole goes first
            location.move(join(config.dataset, name), join(config.dataset, SET_ASIDE, name))
        remedy = f"{len(moves)} objects were moved to {join(config.dataset, SET_ASIDE)}; run the builds again: they make what is missing"
    raise StorageError(f"{config.dataset}: {len(findings)} findings; {remedy}")


if __name__ == "__main__":
    command(VerifyConfig, run)
