"""The cases that are measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch

from drsn_ops.benchmark.cases import DIRECTIONS, Case

# Of x; as float32 1.0, 4.2 and 16.8 MB, the sizes between which most layers of these networks lie.
SIZES = ((64, 4, 1024), (64, 16, 1024), (128, 16, 2048))
LARGE = ((256, 32, 784), (128, 64, 1024), (256, 64, 1024), (512, 64, 2048), (512, 256, 4096))
ODD = ((128, 16, 32, 32), (256, 32, 28, 28), (256, 2048, 7, 7), (64, 256, 56, 56), (64, 16, 1001))
# Rows whose length no vector divides, and beside each rows of about the same length that vectors do divide.
TWINS = (
    ((512, 512, 7, 7), (512, 512, 6, 8)),
    ((512, 64, 28, 29), (512, 64, 28, 28)),
    ((512, 64, 1001), (512, 64, 1000)),
)
TABLE = (*SIZES, LARGE[1], LARGE[3])  # on CUDA what the first table shows
WIDE = ((64, 8, 224, 224), (128, 64, 112, 112), (64, 256, 56, 56))  # contiguous and channels_last
PASSES = ("inference", "forward", "backward")
TRAINING = ("forward", "backward", "forward+backward")
BOTH_ENDS = ("inference in place", "forward+backward")
SHOWN = ("inference", *BOTH_ENDS)
SMALL = {"soft_threshold": (4, 4), "shrink": (1, 4, 4)}  # hot: a call, not the elements, takes the time
SHORT = (64, 256, 7, 7)  # rows of 49 elements
NORMALISED = ((128, 4, 1, 512), (64, 64, 1, 256), (128, 16, 32, 32))  # contiguous and channels_last


def cpu_cases(quick: bool) -> list[Case]:
    """The cases of the tables come first."""

    def cases(
        operator: str,
        directions: Iterable[str],
        shapes: Iterable[tuple[int, ...]],
        dtypes: Iterable[torch.dtype] = (torch.float32,),
        layouts: Iterable[str] = ("contiguous",),
        timer: str = "cold",
    ) -> list[Case]:
        made = itertools.product(shapes, dtypes, layouts, directions)
        return [Case(operator, way, shape, dtype, layout, timer=timer) for shape, dtype, layout, way in made]

    both = ("contiguous", "channels_last")
    found = cases("shrink", DIRECTIONS, SIZES)
    found += cases("shrink", BOTH_ENDS, [SHORT])
    found += cases("shrink", BOTH_ENDS, SIZES, [torch.bfloat16])
    found += cases("batch_norm_relu", ("inference", "forward+backward"), NORMALISED, layouts=both)
    for operator, shape in SMALL.items():
        found += cases(operator, TRAINING, [shape], timer="host")
    if quick:
        return found
    found += cases("soft_threshold", BOTH_ENDS, SIZES)
    found += cases("shrink+residual", DIRECTIONS, SIZES[2:])
    found += cases("abs_mean", ("inference", *TRAINING), SIZES[2:])
    found += cases("shrink", BOTH_ENDS, SIZES[1:2], (torch.float16, torch.float64))
    found += cases("shrink", BOTH_ENDS, ODD[:1], layouts=both)
    found += cases("shrink", BOTH_ENDS, (ODD[4], (64, 64, 28, 28), (256, 64, 1024)))
    return found


# On CUDA torch.compile takes part at these sizes, from launches that decide to 6.4 GB moved.
COMPARED = {
    torch.float32: (*SIZES, *LARGE, *ODD[:4]),
    torch.bfloat16: (SIZES[1], LARGE[1], (512, 64, 32, 32), LARGE[3]),
}


def cuda_cases(quick: bool) -> list[Case]:
    """The cases of the first table come first."""

    def cases(
        operator: str,
        directions: Iterable[str],
        shapes: Iterable[tuple[int, ...]],
        dtypes: Iterable[torch.dtype] = (torch.float32,),
        layout: str = "contiguous",
        timer: str = "graph",
    ) -> list[Case]:
        made = itertools.product(shapes, dtypes, directions)
        return [Case(operator, way, shape, dtype, layout, "cuda", timer) for shape, dtype, way in made]

    forwards = ("inference", *TRAINING)
    found = cases("shrink+residual", forwards, TABLE)
    # Where launches decide, the time that includes waiting for the host is what a user meets.
    found += cases("shrink+residual", forwards, SIZES[:1], timer="events")
    if quick:
        return found
    for dtype, shapes in COMPARED.items():
        found += cases("shrink+residual", forwards, shapes, [dtype])
    found += cases("soft_threshold", forwards, (SIZES[1], LARGE[3]))
    found += cases("soft_threshold", ("inference", "backward"), COMPARED[torch.float32])
    found += cases("shrink", ("inference in place", *TRAINING), (SIZES[1], LARGE[1], LARGE[3]))
    for operator in ("soft_threshold", "shrink+residual"):
        found += cases(
            operator, ("inference", "backward"), (LARGE[1], LARGE[3]), (torch.float16, torch.float64)
        )
    for operator in ("abs_mean", "batch_norm_relu"):
        found += cases(operator, PASSES, (SIZES[1], LARGE[3]))
    odd_rows = [shape for pair in TWINS for shape in pair]
    found += cases("shrink+residual", PASSES, odd_rows)
    for layout in ("contiguous", "channels_last"):
        found += cases("shrink+residual", PASSES, WIDE, layout=layout)
    return list(dict.fromkeys(found))


def modes_of(case: Case, modes: tuple[str, ...]) -> tuple[str, ...]:
    """Of the modes of torch.compile those that a case is compared with."""
    compared = case.device == "cpu" or (
        case.operator == "shrink+residual"
        and case.layout == "contiguous"
        and case.shape in COMPARED.get(case.dtype, ())
    )
    return modes if compared else ()
