"""A `Shrinkage` of another rule: its gate and its rule are called between fused operators."""

# Annotations are evaluated: torch.fx keeps those of a forward that it traces, and pickles no strings.

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from .. import functional, reference, rules
from ..functional import into_gate
from ..ops.checks import check_alpha, check_batch, check_residual, check_rows
from ..reference import Statistic, per_row, wrong_type

Rule = Literal[
    "soft", "hard", "garrote", "firm", "smooth", "slope", "learned-slope", "asymmetric", "nonnegative"
]
RuleFunction = Callable[[Tensor, Tensor], Tensor]
RULES: tuple[Rule, ...] = get_args(Rule)
FIRST_SLOPE = 0.1  # of what is learned; `rules.slope` has it too

for _name in ("into_gate", "per_row"):
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
    return y.to(x.dtype)


@torch.fx.wrap
def _added(y: Tensor, residual: Tensor | None) -> Tensor:
    return y if residual is None else y + residual


def _alpha(gate: nn.Module, x: Tensor, statistics: Tensor) -> Tensor:
    weights: Any = [w for w in reference.gate_weights(gate) if isinstance(w, (Tensor, Proxy))]
    # as the fused gate, which does not follow autocast
    with nullcontext() if isinstance(x, Proxy) else reference.no_autocast(x):
        return _checked_alpha(gate(into_gate(statistics, weights)), x)


def thresholds_of(shrinkage: Any, x: Tensor) -> Thresholds:
    """The gates' outputs for x, and the thresholds that they make."""
    formulas: Any = reference if shrinkage.use_reference else functional
    means = formulas.abs_mean(x)
    scope: Statistic = shrinkage.statistic
    multiplied = means if scope == "channel" else means.mean(1, keepdim=True)
    alpha = _alpha(shrinkage.fc, x, means)
    negative = None
    if shrinkage.rule == "asymmetric":
        negative = _alpha(shrinkage.fc_negative, x, means) * multiplied
    return Thresholds(alpha, alpha * multiplied, negative)


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
    if not isinstance(x, Proxy):
        check_rows(x)
        check_residual(residual, x)
        check_batch(shrinkage.fc, x, "x")
    return _added(apply_rule(shrinkage, x, thresholds_of(shrinkage, x)), residual)
