"""A case of the benchmark: what every provider is asked to do, and the bytes that this moves at least."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..arguments import require_choice
from ..reference import accumulator

OPERATORS = ("soft_threshold", "abs_mean", "shrink", "shrink+residual", "batch_norm_relu")
# "forward" records what gradients need; "inference" has inputs that need none.
DIRECTIONS = ("inference", "inference in place", "forward", "backward", "forward+backward")


@dataclass(frozen=True)
class Case:
    operator: str
    direction: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    device: str = "cpu"
    # On the CPU "cold", every contender's own inputs from outside the cache, or "host", the same ones, hot.
    # On CUDA "graph", the device's time alone, or "events", with the wait for the host.
    timer: str = "host"

    def __post_init__(self) -> None:
        require_choice("operator", self.operator, OPERATORS)
        require_choice("direction", self.direction, DIRECTIONS)

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.operator}, {self.direction}, {shape} {dtype} {self.layout}, {self.timer}"

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:2])

    @property
    def inplace(self) -> bool:
        return self.direction == "inference in place"

    @property
    def trains(self) -> bool:
        return not self.direction.startswith("inference")


def bytes_moved(case: Case) -> int:
    """The least an operator can move: each tensor and number of a row once, and the mask where it is needed.

    The gradient of the residual is g itself, and moves nothing. A number of a row has the accumulator's size.
    """
    forward, forward_rows, backward, backward_rows, planes = {
        "soft_threshold": (2, 1, 2, 1, 2),  # x, y; tau | g, dx; dtau
        "abs_mean": (1, 1, 1, 1, 2),  # x; m | dx; g
        "shrink": (2, 2, 2, 3, 3),  # x, y; alpha, m | g, dx; alpha, m, dalpha
        "shrink+residual": (3, 2, 2, 3, 3),  # x, residual, y; alpha, m | g, dx; alpha, m, dalpha
        "batch_norm_relu": (2, 0, 3, 0, 0),  # x, y | x, g, dx; a channel has a few numbers more
    }[case.operator]
    segments = 1 if case.operator == "soft_threshold" else case.rows
    mask = planes * segments * math.ceil(case.numel / max(segments, 1) / 8) if case.trains else 0

    def one_way(tensors: int, numbers: int) -> int:
        wide = accumulator(case.dtype).itemsize
        return tensors * case.numel * case.dtype.itemsize + numbers * case.rows * wide + mask

    there, back = one_way(forward, forward_rows), one_way(backward, backward_rows)
    return {"backward": back, "forward+backward": there + back}.get(case.direction, there)
