"""The cases that are measured."""

from __future__ import annotations

import torch

from drsn_ops.benchmark import DIRECTIONS, Case

# Of x; as float32 1.0, 4.2 and 16.8 MB, the sizes between which most layers of these networks lie.
SIZES = ((64, 4, 1024), (64, 16, 1024), (128, 16, 2048))
LARGE = ((256, 32, 784), (128, 64, 1024), (256, 64, 1024), (512, 64, 2048), (512, 256, 4096))
ODD = ((128, 16, 32, 32), (256, 32, 28, 28), (256, 2048, 7, 7), (64, 256, 56, 56), (64, 16, 1001))
TRAINING = ("forward", "backward", "forward+backward")
BOTH_ENDS = ("inference in place", "forward+backward")


def cpu_cases(quick: bool) -> list[Case]:
    cases = [Case("shrink", direction, shape) for shape in SIZES for direction in BOTH_ENDS]
    cases += [Case("shrink", direction, shape, torch.bfloat16) for shape in SIZES for direction in BOTH_ENDS]
    cases += [Case("soft_threshold", direction, (4, 4)) for direction in TRAINING]
    cases += [Case("shrink", direction, (1, 4, 4)) for direction in TRAINING]
    if quick:
        return cases
    rest = [direction for direction in DIRECTIONS if direction not in BOTH_ENDS]
    cases += [Case("shrink", direction, shape) for shape in SIZES for direction in rest]
    cases += [Case("soft_threshold", direction, shape) for shape in SIZES for direction in BOTH_ENDS]
    cases += [Case("shrink+residual", direction, SIZES[2]) for direction in DIRECTIONS]
    cases += [Case("abs_mean", direction, SIZES[2]) for direction in ("inference", *TRAINING)]
    for direction in BOTH_ENDS:
        cases += [Case("shrink", direction, SIZES[1], dtype) for dtype in (torch.float16, torch.float64)]
        cases += [
            Case("shrink", direction, ODD[0], layout=layout) for layout in ("contiguous", "channels_last")
        ]
        cases += [Case("shrink", direction, shape) for shape in (ODD[4], (64, 64, 28, 28), (64, 256, 7, 7))]
        cases += [Case("shrink", direction, (256, 64, 1024))]
    return cases


def cuda_cases(quick: bool) -> list[Case]:
    def case(
        operator: str,
        direction: str,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        layout: str = "contiguous",
        timer: str = "graph",
    ) -> Case:
        return Case(operator, direction, shape, dtype, layout, "cuda", timer)

    cases = [case("shrink", direction, shape) for shape in SIZES for direction in DIRECTIONS]
    # Where launches decide, the time that includes waiting for the host is what a user meets.
    cases += [case("shrink", direction, SIZES[0], timer="events") for direction in DIRECTIONS]
    if quick:
        return cases
    operators = ("soft_threshold", "shrink", "shrink+residual")
    for shape in (*SIZES, *LARGE, *ODD):
        cases += [case(operator, direction, shape) for operator in operators for direction in DIRECTIONS]
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        cases += [
            case(operator, direction, shape, dtype)
            for operator in operators
            for shape in (SIZES[1], LARGE[1], LARGE[3])
            for direction in DIRECTIONS
        ]
    cases += [case("abs_mean", d, shape) for shape in (SIZES[1], LARGE[3]) for d in ("inference", *TRAINING)]
    # The rows of odd lengths and the twins whose rows are aligned.
    for shape in ((256, 2048, 8, 8), (256, 32, 32, 32), (512, 64, 1001), (512, 64, 1000)):
        cases += [case("shrink", direction, shape) for direction in DIRECTIONS]
    cases += [
        case("shrink", direction, shape, layout="channels_last")
        for shape in (ODD[0], ODD[3])
        for direction in DIRECTIONS
    ]
    return list(dict.fromkeys(cases))
