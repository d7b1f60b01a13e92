"""The operators on DTensors: every process computes on its own shard of x, which stays where it is.

`functional` calls these functions where x is a DTensor, and those of `autograd` with the same arguments elsewhere. Only
what is small moves between processes: tau and alpha, to the shards of x that need them, and the means of rows or
samples that several shards hold parts of. A reduction of x that is pending (Partial) is done first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from . import autograd
from .reference import per_row


def fuses(x: Tensor) -> bool:
    """Never: the modules of a gate are called, and PyTorch shards what they compute."""
    return False


def check_companion(name: str, t: Tensor, x: Tensor, of: str) -> None:
    """Refuses a mix of DTensors and plain tensors, and of meshes."""
    if not isinstance(t, DTensor) or not isinstance(x, DTensor):
        kinds = ("a DTensor", "a plain tensor") if isinstance(t, DTensor) else ("a plain tensor", "a DTensor")
        raise TypeError(f"{name}: got {kinds[0]}, expected {kinds[1]}, as {of} is one")
    if t.device_mesh != x.device_mesh:
        raise ValueError(f"{name}: got a DTensor on {t.device_mesh}, expected {x.device_mesh}, that of {of}")


def _place(t: DTensor, placements: Sequence[Placement]) -> DTensor:
    return t if tuple(placements) == t.placements else t.redistribute(placements=placements)


def _reduce(x: DTensor) -> DTensor:
    """x without pending reductions."""
    for p in x.placements:
        if not (type(p) is Shard or p.is_replicate() or p.is_partial()):
            raise ValueError(f"x: got a placement {p}, expected Shard, Replicate or Partial")
    return _place(x, [Replicate() if p.is_partial() else p for p in x.placements])


def _local(t: Tensor, x: DTensor, first: int = 0) -> Tensor:
    """What this process's shard of x needs of t, whose axes broadcast to those of x from axis ``first`` on.

    What several shards of x need the same part of t for, each makes a term of its gradient.
    """
    placements: list[Placement] = []
    gradient: list[Placement] = []
    for p in x.placements:
        needed: Placement = Replicate()
        axis = p.dim - first if isinstance(p, Shard) else -1
        if 0 <= axis < t.dim() and t.shape[axis] == x.shape[first + axis]:
            needed = Shard(axis)
        placements.append(needed)
        gradient.append(Partial() if p.is_shard() and not needed.is_shard() else needed)
    assert isinstance(t, DTensor)
    return _place(t, placements).to_local(grad_placements=gradient)


def _global(local: Tensor, x: DTensor, placements: Sequence[Placement], like: Tensor) -> DTensor:
    """The DTensor of these parts with the shape and strides of ``like``; the parts may differ in size."""
    return DTensor.from_local(
        local, x.device_mesh, placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def _global_result(local: Tensor, x: DTensor) -> DTensor:
    """The DTensor of what was computed from x, shard by shard."""
    memory = torch.empty_strided(x.shape, x.stride(), device="meta")
    return _global(local, x, x.placements, autograd.Layout.of(memory).empty(memory))


def _global_mean(local: Tensor, x: DTensor, placements: Sequence[Placement], per_sample: bool) -> DTensor:
    """The DTensor of means of x, (N, C) or (N, 1)."""
    shape = x.shape[0], 1 if per_sample else x.shape[1]
    return _global(local, x, placements, torch.empty(shape, device="meta"))


def _overwrite(x: DTensor, y: Tensor) -> Tensor:
    """``x.copy_``, which knows autograd's rules for writing into a tensor, but nothing of pending sums."""
    if any(p.is_partial() for p in x.placements):
        raise ValueError(
            f"inplace: got True, expected False for an x with a pending reduction, {x.placements}"
        )
    return x.copy_(y)


def soft_threshold(x: DTensor, tau: Tensor | None, value: float, inplace: bool) -> Tensor:
    """``sign(x) * max(|x| - tau, 0)``; ``value`` is tau where ``tau`` is None."""
    source = _reduce(x)
    threshold = None if tau is None else _local(tau, source, x.dim() - tau.dim())
    y = _global_result(autograd.soft_threshold(source.to_local(), threshold, value, False), source)
    return _overwrite(x, y) if inplace else y


def _spread(x: DTensor, per_sample: bool) -> list[bool]:
    """For each dimension of the mesh, whether a row, or a sample, is spread over it."""
    return [isinstance(p, Shard) and p.dim >= (1 if per_sample else 2) for p in x.placements]


def abs_mean(x: DTensor, per_sample: bool) -> DTensor:
    """Mean of ``|x|`` over each row, (N, C), or each sample, (N, 1)."""
    x = _reduce(x)
    shard = x.to_local()
    mean = autograd.abs_mean(shard, per_sample)
    spread = _spread(x, per_sample)
    if not any(spread):
        return _global_mean(mean, x, x.placements, per_sample)
    first = 1 if per_sample else 2
    share = math.prod(shard.shape[first:]) / max(math.prod(x.shape[first:]), 1)
    terms = [Partial() if over else p for p, over in zip(x.placements, spread, strict=True)]
    whole = _reduce(_global_mean(mean * share, x, terms, per_sample))
    # To what was made of parts the gradient comes back whole; to what was summed up it need not.
    return _global_mean(whole.to_local(), x, whole.placements, per_sample)


def shrink(
    x: DTensor, alpha: Tensor, residual: Tensor | None, per_sample: bool, inplace: bool
) -> tuple[Tensor, Tensor]:
    """``(soft_threshold(x, alpha * mean) + residual, mean)``; alpha, (N or 1, C or 1), is plain if it was a number."""
    source = _reduce(x)
    if not isinstance(alpha, DTensor):
        alpha = DTensor.from_local(alpha, x.device_mesh, [Replicate()] * x.device_mesh.ndim, run_check=False)
    y: Tensor
    if any(_spread(source, per_sample)):
        mean = abs_mean(source, per_sample)
        y = soft_threshold(source, per_row(alpha * mean, x), 0.0, False)
        y = y if residual is None else y + residual
    else:
        shards = (
            source.to_local(),
            _local(alpha, source),
            residual if residual is None else _local(residual, source),
        )
        y, means = autograd.shrink(*shards, per_sample, False)
        y, mean = _global_result(y, source), _global_mean(means, source, source.placements, per_sample)
    return (_overwrite(x, y) if inplace else y), mean
