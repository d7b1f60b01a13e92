"""A `Shrinkage` of another rule, pooling or axis of channels: its modules are called between fused operators."""

# Annotations are evaluated: torch.fx keeps those of a forward that it traces, and pickles no strings.

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.fx.node import has_side_effect

from .. import functional, reference, rules
from ..layers import require_channels
from ..ops.checks import check_alpha, check_gate_batch, check_residual, check_rows
from ..reference import accumulator, per_row, wrong_type
from .gates import call_gate

Rule = Literal[
    "soft", "hard", "garrote", "firm", "smooth", "slope", "learned-slope", "asymmetric", "nonnegative"
]
RuleFunction = Callable[[Tensor, Tensor], Tensor]
Pooling = Literal["avg", "max", "avg+max"]
RULES: tuple[Rule, ...] = get_args(Rule)
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
FIRST_SLOPE = 0.1  # of what is learned; `rules.slope` has it too

for _name in ("per_row", "require_channels"):
    torch.fx.wrap(_name)  # see `layers`


class Thresholds(NamedTuple):
    """What the gates make out of x."""

    alpha: Tensor  # (N, C) or (N, 1)
    tau: Tensor  # (N, C) or (N, 1), in units of x
    tau_negative: Tensor | None  # the same for the negative values of x, if they have their own


def require_rule(rule: object) -> None:
    """Raise ValueError unless ``rule`` is one of `RULES` or a callable."""
    if not callable(rule) and rule not in RULES:
        names = ", ".join(map(repr, RULES))
        raise ValueError(f"rule: got {rule!r}, expected {names} or a callable of (x, tau)")


@torch.fx.wrap
def abs_max(x: Tensor) -> Tensor:
    """The largest ``|x|`` of each row, (N, C), in float32 or wider; 0 where there is nothing."""
    magnitude = x.to(accumulator(x.dtype)).abs()
    if x.dim() == 2:
        return magnitude
    if math.prod(x.shape[2:]) == 0:
        return magnitude.sum(tuple(range(2, x.dim())))
    return magnitude.amax(tuple(range(2, x.dim())))


@torch.fx.wrap
@has_side_effect
def _require_last(x: Tensor, residual: Tensor | None, channels: int) -> None:
    if not isinstance(x, Tensor):
        raise wrong_type("x", x)
    if x.dim() < 2 or x.shape[-1] != channels:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected {channels} channels on the last axis")
    if isinstance(residual, Tensor) and residual.shape != x.shape:
        raise ValueError(f"residual: got shape {tuple(residual.shape)}, expected {tuple(x.shape)}, that of x")


@torch.fx.wrap
def channels_first(x: Tensor | None) -> Tensor | None:
    """A view of x, (N, \\*spatial, C), as (N, C, \\*spatial)."""
    return x.movedim(-1, 1) if isinstance(x, Tensor) else x


@torch.fx.wrap
def _checked_alpha(alpha: Tensor, x: Tensor) -> Tensor:
    check_alpha(alpha, *x.shape[:2])
    return alpha


@torch.fx.wrap
def _checked_result(y: Tensor, x: Tensor) -> Tensor:
    """What a rule made of x, in the type of x."""
    if not isinstance(y, Tensor):
        raise wrong_type("rule", y, "a function that returns a tensor")
    if y.shape != x.shape:
        raise ValueError(f"rule: returned shape {tuple(y.shape)}, expected {tuple(x.shape)}, that of x")
    # the rule may keep what it returned, and what comes behind a `Shrinkage` may overwrite it
    return y.to(x.dtype, copy=True)


@torch.fx.wrap
def _added(y: Tensor, residual: Tensor | None) -> Tensor:
    return y if residual is None else y + residual


def gates_of(shrinkage: Any) -> tuple[nn.Module, ...]:
    """The gate, and that of the negative values where there is one."""
    return (shrinkage.fc, shrinkage.fc_negative) if shrinkage.rule == "asymmetric" else (shrinkage.fc,)


def thresholds_of(shrinkage: Any, x: Tensor) -> Thresholds:
    """The gates' outputs for x, with its channels on axis 1, and the thresholds that they make."""
    formulas: Any = reference if shrinkage.use_reference else functional
    pooling: Pooling = shrinkage.pooling
    means = () if pooling == "max" else (formulas.abs_mean(x),)
    maxima = () if pooling == "avg" else (abs_max(x),)
    statistics: tuple[Tensor, ...] = means + maxima
    multiplied = statistics[0]
    if shrinkage.statistic == "sample":
        multiplied = multiplied.mean(1, keepdim=True) if means else multiplied.amax(1, keepdim=True)
    alpha, *more = (_checked_alpha(call_gate(gate, x, *statistics), x) for gate in gates_of(shrinkage))
    return Thresholds(alpha, alpha * multiplied, more[0] * multiplied if more else None)


def apply_rule(shrinkage: Any, x: Tensor, thresholds: Thresholds) -> Tensor:
    """What the shrinkage's rule makes of x, by these thresholds."""
    rule = shrinkage.rule
    tau = per_row(thresholds.tau, x)
    if thresholds.tau_negative is not None:
        tau = torch.where(x < 0, per_row(thresholds.tau_negative, x), tau)
    if rule in ("soft", "asymmetric"):
        formulas: Any = reference if shrinkage.use_reference else functional
        y: Tensor = formulas.soft_threshold(x, tau)
        return y
    if rule == "learned-slope":
        return rules.slope(x, tau, slope=per_row(shrinkage.slope[None], x))
    if isinstance(rule, str):
        named: RuleFunction = getattr(rules, rule)
        return named(x, tau)
    return _checked_result(rule(x, tau), x)


def varied_shrink(shrinkage: Any, x: Tensor, residual: Tensor | None) -> Tensor:
    """The result of a `Shrinkage` that is not the paper's."""
    if shrinkage.channel_dim == 1:
        require_channels(x, shrinkage.channels, "channels")
        return _shrunk(shrinkage, x, residual)
    _require_last(x, residual, shrinkage.channels)
    first: Any = channels_first(x), channels_first(residual)
    return _shrunk(shrinkage, *first).movedim(1, -1)


def _shrunk(shrinkage: Any, x: Tensor, residual: Tensor | None) -> Tensor:
    """The result for an x with its channels on axis 1."""
    if shrinkage.rule == "soft" and shrinkage.pooling == "avg":
        options = {"statistic": shrinkage.statistic, "residual": residual}
        if shrinkage.use_reference:
            return reference.gated_shrink(x, shrinkage.fc, **options)
        return functional.gated_shrink(x, shrinkage.fc, inplace=shrinkage.inplace, **options)
    if not isinstance(x, Proxy):
        check_rows(x)
        check_residual(residual, x)
        for gate in gates_of(shrinkage):
            check_gate_batch(gate, x, "x")
    return _added(apply_rule(shrinkage, x, thresholds_of(shrinkage, x)), residual)
