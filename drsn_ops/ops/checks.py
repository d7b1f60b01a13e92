"""Checks the arguments of the functions that users call; an error names the argument, what came and what is allowed."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor, nn

from ..reference import REAL, require_number, wrong_type
from .plain_gate import PLAIN_TENSORS, uses_batch

_WORDS = "In PyTorch's words: Expected more than 1 value per channel when training, got input size"


def is_sharded(x: Tensor) -> bool:
    """True for a DTensor; before its module has been imported there is none."""
    if type(x) in PLAIN_TENSORS:
        return False
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def check_dense(name: str, t: Tensor) -> None:
    if t.layout != torch.strided:
        raise TypeError(f"{name}: got a tensor of {t.layout}, expected a dense one, of torch.strided")


def check_x(x: Tensor, dtypes: tuple[torch.dtype, ...] = REAL, name: str = "x") -> None:
    if not isinstance(x, Tensor):
        raise wrong_type(name, x)
    if x.dtype not in dtypes:
        names = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name}: got a tensor of {x.dtype}, expected one of {names}")
    check_dense(name, x)


def check_rows(x: Tensor, name: str = "x") -> None:
    check_x(x, name=name)
    if not 2 <= x.dim() <= 5:
        raise ValueError(
            f"{name}: got shape {tuple(x.shape)}, expected (N, C, *spatial) with up to three spatial axes"
        )


def is_per_row(t: Tensor, n: int, c: int) -> bool:
    """True for shape (n, c) or (n, 1). One comparison a size: the compiler makes a guard of none within a tuple."""
    return t.dim() == 2 and t.shape[0] == n and (t.shape[1] == c or t.shape[1] == 1)


def check_companion(name: str, t: Tensor, x: Tensor, of: str = "x") -> None:
    """A second tensor is real and floating-point, on the device of x; ``of`` is what the caller calls x."""
    if t.dtype not in REAL:
        raise TypeError(f"{name}: got a tensor of {t.dtype}, expected a real floating-point type")
    check_dense(name, t)
    if t.device != x.device:
        raise ValueError(f"{name}: got a tensor on {t.device}, expected {x.device}, the device of {of}")
    if is_sharded(t) or is_sharded(x):
        from . import sharding

        sharding.check_companion(name, t, x, of)


def check_broadcasts(name: str, t: Tensor, x: Tensor, of: str = "x") -> None:
    # Ranks first: every comparison of a symbolic size makes a guard.
    if t.dim() != x.dim() or t.shape != x.shape:
        pairs = zip(reversed(t.shape), reversed(x.shape), strict=False)
        if t.dim() > x.dim() or any(own != 1 and own != size for own, size in pairs):
            raise ValueError(
                f"{name}: got shape {tuple(t.shape)}, expected one that broadcasts to {of}, {tuple(x.shape)}"
            )


def check_threshold(tau: object) -> None:
    """A threshold that is no tensor is a number of at least 0."""
    require_number("tau", tau)
    if tau < 0:  # type: ignore[operator]
        raise ValueError(f"tau: got {tau}, expected a number >= 0")


def check_residual(residual: Tensor | None, x: Tensor, of: str = "x") -> None:
    if residual is None:
        return
    if not isinstance(residual, Tensor):
        raise wrong_type("residual", residual)
    check_companion("residual", residual, x, of)
    if residual.shape != x.shape:
        raise ValueError(
            f"residual: got shape {tuple(residual.shape)}, expected {tuple(x.shape)}, that of {of}"
        )


def check_module(name: str, module: nn.Module) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name}: got {type(module).__name__}, expected a torch.nn.Module")


def check_gate(gate: nn.Module) -> None:
    check_module("gate", gate)
    # a `Shrinkage` would take the means, and return some of the right shape
    if hasattr(type(gate), "use_reference"):
        raise TypeError(f"gate: got {type(gate).__name__}, expected the gate in it, its fc")


def check_alpha(alpha: object, n: int, c: int) -> None:
    """What a gate returned is a number a row or a sample."""
    if not isinstance(alpha, Tensor) or not is_per_row(alpha, n, c):
        made = f"shape {tuple(alpha.shape)}" if isinstance(alpha, Tensor) else type(alpha).__name__
        raise ValueError(f"gate: returned {made}, expected a tensor of shape ({n}, {c}) or ({n}, 1)")


def _one_sample(name: str, norm: Any) -> ValueError:
    return ValueError(
        f"{name}: got a batch of 1, expected at least 2 samples for a gate that normalises over the batch, as "
        "norm='batch' does in training; norm='layer', 'rms' or 'none' trains on one. "
        f"{_WORDS} torch.Size([1, {norm.num_features}])"
    )


def check_gate_batch(gate: nn.Module, x: Tensor, name: str) -> None:
    """Refuses a batch of one for a gate whose second module is a BatchNorm that trains, whatever its class."""
    if x.shape[0] == 1 and isinstance(gate, nn.Sequential) and len(gate) > 1 and uses_batch(gate[1]):
        raise _one_sample(name, gate[1])


def check_batch(gate: nn.Module | None, x: Tensor, name: str, batch_norm: nn.Module | None = None) -> None:
    """Refuses what a BatchNorm would refuse, before anything has written running statistics."""
    if x.shape[0] != 1:
        return
    # The BatchNorm of a `Shrinkage` sees one value a feature and sample; of another gate this is not known.
    if type(gate) is nn.Sequential and len(gate) == 5 and uses_batch(gate[1]):
        raise _one_sample(name, gate[1])
    if batch_norm is not None and uses_batch(batch_norm) and math.prod(x.shape[2:]) == 1:
        raise ValueError(
            f"{name}: got one value a channel, expected more for a batch_norm that normalises over the batch. "
            f"{_WORDS} {x.shape}"
        )
