"""Checks that gradients of a shrinkage block reach x and the parameters, and are those of what it computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .mistakes import CUT, OTHER_GRADIENT, Wrong
from .probes import FLOAT64, SCALES, Block, Rows, apart


class Slope(NamedTuple):
    """The slope of a number along a direction of x, by the gradient and by steps of x."""

    gradient: float
    moved: float
    error: float  # of ``moved``
    far: float  # by longer steps, where the block computes in float32

    def __sub__(self, other: Slope) -> Slope:
        return Slope(
            self.gradient - other.gradient,
            self.moved - other.moved,
            self.error + other.error,
            self.far - other.far,
        )

    @property
    def agrees(self) -> bool:
        """Whether the gradient is the slope."""
        excess = min(abs(self.moved - self.gradient) - self.error, abs(self.far - self.gradient) - 1e-4)
        return excess <= 0

    @property
    def differs(self) -> bool:
        """Whether the gradient differs by more than the rounding of a gate in bfloat16 explains."""
        return abs(self.far - self.gradient) > 0.1 * (abs(self.far) + abs(self.gradient)) + 0.05


def _slope(value: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor, direction: Tensor) -> Slope:
    unit, along = x.mean().item(), (gradient * direction).sum().item()
    middle = value(x).item()

    def step(size: float) -> tuple[float, bool]:
        """The slope from one step back to one step ahead, and whether the value is nearly straight between them."""
        ahead, back = (value(x + sign * size * unit * direction).item() for sign in (1, -1))
        bend = abs(ahead + back - 2 * middle) / unit
        return (ahead - back) / (2 * size * unit), bend <= 1e-11 + 10 * size**2

    moved, straight = step(1e-6)
    slope = Slope(along, moved, 1e-5 * (abs(moved) + abs(along)) + 1e-7, moved)
    if slope.agrees:
        return slope
    # float32 anywhere in the block rounds short steps away; long ones may cross a kink of the gate
    slopes, lines = zip(*map(step, (1e-5, 1e-4, 1e-2)), strict=True)
    far = min(slopes[1:], key=lambda candidate: abs(candidate - along))
    if straight and lines[0]:
        return slope._replace(far=far)
    return Slope(along, far, 1e-2 * (abs(far) + abs(along)) + 1e-4, far)


def _cut_from_x(block: Block, x: Tensor, weights: Tensor) -> tuple[list[str], list[str]]:
    """What is cut off from x, and where x gets another gradient.

    The small values of x change y at the large ones through the threshold alone: by alpha through the mean that alpha
    multiplies, the rest through the gate.
    """
    length, mean = x.shape[-1], x.mean(-1, keepdim=True)
    large = (x > 1.2 * mean).double()
    # the same in all channels; another one in every other sample, since a gate's BatchNorm removes a common one
    rise = 1 - 0.5 * (torch.arange(len(x), device=x.device) % 2).double()[:, None, None]
    by_small, by_large = (rise * length * part / part.sum(-1, keepdim=True) for part in (1 - large, large))
    weights = weights / (weights * rise).sum()

    def value(x: Tensor) -> Tensor:
        return -(weights * (block(x) * large).sum(-1, keepdim=True) / large.sum(-1, keepdim=True)).sum()

    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(leaf), leaf, allow_unused=True, materialize_grads=True)
    through = _slope(value, x, gradient, by_small)
    beside = _slope(value, x, gradient, by_large) - through
    cut: list[str] = []
    other: list[str] = []
    if not through.agrees:
        multiplied = (weights * rise * block.measure(x).tau[..., None] / mean).sum().item()
        left = {
            "the threshold": 0.0 if through.gradient == 0 else math.inf,
            "the mean that alpha multiplies": through.moved - multiplied,
            "the gate's input": multiplied,
        }
        part = min(left, key=lambda name: abs(through.gradient - left[name]))
        words = f"tau moves by {through.far:.3g} with mean|x|, and by {through.gradient:.3g} as the gradient has it"
        if abs(through.gradient - left[part]) <= through.error:
            cut.append(f"{words}: {part} is cut off from x")
        elif through.differs:
            other.append(words)
    if not beside.agrees:
        words = (
            f"with tau as it is, the gradient has y move by {beside.gradient / beside.far:.3g} of what x does"
        )
        if abs(beside.gradient) <= beside.error:
            cut.append(f"{words}: x is cut off beside the threshold")
        elif beside.differs:
            other.append(words)
    return cut, other


def _cut_parameters(block: Block, rows: Rows, y: Tensor) -> list[str]:
    """The names of the parameters that change y and get no gradient from it."""
    if not isinstance(block.call, nn.Module):
        return []
    named = {name: p for name, p in block.call.named_parameters() if p.requires_grad}
    inputs = [*named.values()]
    gradients = torch.autograd.grad(y, inputs, torch.ones_like(y), allow_unused=True) if named else ()
    cut: list[str] = []
    for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
        if gradient is None:
            before = parameter.clone()
            parameter.add_(torch.randn(parameter.shape, generator=rows.generator, **FLOAT64).to(parameter))
            if apart(block(rows.base), y) > block.tolerance:
                cut.append(name)
            parameter.copy_(before)
    return cut


def check_gradients(block: Block, rows: Rows) -> tuple[str, ...]:
    """Raises `Wrong` where x or a parameter cannot learn. Returns a remark on a function without gradients."""
    is_module = isinstance(block.call, nn.Module)
    with torch.enable_grad():
        try:
            y = block(rows.base.clone().requires_grad_())
        # x.numpy() raises then, for example
        except Exception as error:
            if is_module:
                raise
            return (
                f"raises {type(error).__name__} where x requires gradients: whether it learns does not show",
            )
    if not y.requires_grad:
        if is_module:
            raise Wrong(CUT, "y has no gradient at all")
        return ("y has no gradient at all: whether it learns does not show",)
    names = _cut_parameters(block, rows, y)
    evidence = [f"y moves with {', '.join(names)}, which no gradient reaches"] if names else []
    weights = 0.5 + torch.rand((*rows.shape[:2], 1), generator=rows.generator, **FLOAT64).to(rows.device)
    differing = []
    for scale in SCALES[1:]:
        cut, other = _cut_from_x(block, rows.base * scale, weights)
        if cut:
            evidence += cut
            break
        differing += other[:1]
    if evidence:
        raise Wrong(CUT, *evidence)
    # at one scale alone a gate in bfloat16 may look so
    if len(differing) > 1:
        raise Wrong(OTHER_GRADIENT, *differing)
    return ()
