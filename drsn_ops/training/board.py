"""The curve of a run for TensorBoard, where that is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .run import Row, Run


class Board(NamedTuple):
    """Writes each epoch's results under ``loss`` and ``accuracy``, and its learning rate."""

    writer: Any

    def add(self, row: Row) -> None:
        """Write an epoch."""
        self.writer.add_scalar("lr", row.lr, row.epoch)
        for split, result in row.results.items():
            for name, value in result._asdict().items():
                self.writer.add_scalar(f"{name}/{split}", value, row.epoch)
        self.writer.flush()


@contextmanager
def board_in(folder: Path, run: Run) -> Iterator[Board]:
    """A board in the run's folder. What an earlier process wrote of epochs that are made anew is dropped."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=len(run.rows) + 1)
    try:
        yield Board(writer)
    finally:
        writer.close()
