"""What a run reports: metrics files beside its checkpoints, TensorBoard's event files, a progress bar."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from storage import location
from storage.location import join

_BAR = ("excess_loss", "cosine", "lr", "data_wait_s")
_BOARD = (
    "excess_loss", "cosine", "lr", "grad_norm", "target_entropy", "head_entropy", "kept_tokens", "data_wait_s", "rows_per_s",
    "requests_per_row", "cache_hits",
)  # fmt: skip


class Metrics:
    """The metrics of a run that goes on at `step`: printed as they come, written at each checkpoint. Rank 0's."""

    def __init__(self, output: str, step: int, last: int) -> None:
        self.output = output
        self._pending: list[dict[str, Any]] = []
        self._found: dict[str, Any] = {}
        self._board = _Board(output, step)
        self._bar = tqdm(initial=step, total=last, unit="step", mininterval=1.0, file=sys.stderr)

    def add(self, metrics: dict[str, Any]) -> None:
        """Takes one step's metrics."""
        self._pending.append(metrics)
        self._bar.update()
        self._show({name: metrics[name] for name in _BAR})
        self._board.write(metrics["step"], {name: metrics[name] for name in _BOARD if name in metrics})

    def judged(self, found: dict[str, Any]) -> None:
        """Takes what the monitor found at a step; it stays on the progress bar until the next."""
        self._found = {name: value for name, value in found.items() if isinstance(value, float)}
        self._show({})
        self._board.write(found["step"], {f"monitor/{name}": value for name, value in self._found.items()})

    def _show(self, metrics: dict[str, Any]) -> None:
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in {**metrics, **self._found}.items()})

    def write(self, step: int) -> None:
        """Writes the metrics since the last time, as those up to the checkpoint of `step`."""
        lines = "".join(json.dumps(metrics, sort_keys=True) + "\n" for metrics in self._pending)
        location.write_bytes(join(self.output, "metrics", f"step-{step:09d}.jsonl"), lines.encode())
        self._pending = []
        self._board.upload()

    def close(self) -> None:
        self._bar.close()
        self._board.close()


def read_metrics(output: str) -> list[dict[str, Any]]:
    """All metrics of a run, one a step, in order."""
    names = sorted(location.list_sizes(join(output, "metrics")))
    lines = [line for name in names for line in location.read_bytes(join(output, "metrics", name)).decode().splitlines()]
    by_step = {metrics["step"]: metrics for metrics in map(json.loads, lines)}  # where two runs wrote a step, they wrote the same
    return [by_step[step] for step in sorted(by_step)]


class _Board:
    """TensorBoard's event files: written to a local folder, which is the run's own where that is local, else copied there at each
    checkpoint."""

    def __init__(self, output: str, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        fs, path = location.filesystem(output)
        self.remote = None if "file" in fs.protocol else join(output, "tensorboard")
        self.folder = Path(tempfile.mkdtemp(prefix="tensorboard-") if self.remote else Path(path) / "tensorboard")
        self.writer = SummaryWriter(str(self.folder), purge_step=step)

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def upload(self) -> None:
        self.writer.flush()
        if self.remote:
            for file in sorted(self.folder.iterdir()):
                location.write_bytes(join(self.remote, file.name), file.read_bytes())

    def close(self) -> None:
        self.upload()
        self.writer.close()
        if self.remote:
            shutil.rmtree(self.folder)
