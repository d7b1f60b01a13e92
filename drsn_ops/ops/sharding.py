"""The operators on DTensors: every process computes on its own shard of x, which does not move.

`functional` calls these functions if x is a DTensor, and else those of `autograd` with the same arguments. Only small
tensors move between processes: tau and alpha, to the shards of x that need them, and the means of rows or samples that
are spread over several shards. A residual that is placed otherwise is placed as x is. A pending reduction of x
(Partial) is done first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from ..reference import per_row
from . import autograd
from .masks import Layout, is_channels_last


def fuses(x: Tensor, *others: Tensor | None) -> bool:
    """Never: the modules of a gate are called, and PyTorch shards what they compute."""
    return False


def check_companion(name: str, t: Tensor, x: Tensor, of: str) -> None:
    """Refuses a mix of DTensors and plain tensors, and of meshes; every process has a plain tensor of one number."""
    if isinstance(x, DTensor) and not isinstance(t, DTensor) and t.numel() == 1:
        return
    if not isinstance(t, DTensor) or not isinstance(x, DTensor):
        kinds = ("a DTensor", "a plain tensor") if isinstance(t, DTensor) else ("a plain tensor", "a DTensor")
        raise TypeError(f"{name}: got {kinds[0]}, expected {kinds[1]}, as {of} is one")
    if t.device_mesh != x.device_mesh:
        raise ValueError(f"{name}: got a DTensor on {t.device_mesh}, expected {x.device_mesh}, that of {of}")


# The second derivatives of DTensor's own to_local, from_local and redistribute silently lose terms, in older versions
# of PyTorch more of them. The Functions below call the three and have derivatives of any order.


class Spec(NamedTuple):
    """How shards make a DTensor; ``gradient`` is the placement of the shards' gradient."""

    mesh: DeviceMesh
    placements: Sequence[Placement]
    gradient: Sequence[Placement]
    shape: Sequence[int]
    stride: tuple[int, ...]

    @property
    def of_gradient(self) -> Spec:
        """The same for the gradient, whose own gradient is placed as the values are."""
        return self._replace(placements=self.gradient, gradient=self.placements)


class ToLocal(Function):
    """This process's shard."""

    @staticmethod
    def forward(ctx: Any, t: DTensor, gradient: Sequence[Placement]) -> Tensor:
        ctx.spec = Spec(t.device_mesh, t.placements, gradient, t.shape, _stride(t))
        shard = t.to_local()
        # to a process outside the mesh PyTorch gives the shape (0,)
        outside = t.device_mesh.get_coordinate() is None
        return shard.new_empty([0] * t.dim()) if outside else shard.view_as(shard)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dense = grad.is_contiguous() or is_channels_last(grad)
        return _global(grad if dense else grad.contiguous(), ctx.spec.of_gradient), None


class ToGlobal(Function):
    """The DTensor made of these shards, which may differ in size."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, spec: Spec) -> DTensor:
        ctx.spec = spec
        return _from_local(local, spec)

    @staticmethod
    def backward(ctx: Any, grad: DTensor) -> tuple[Tensor | None, ...]:
        return _shard(_place(grad, ctx.spec.gradient), ctx.spec.placements), None


class Place(Function):
    """``redistribute``; the gradient of a pending reduction is a whole one."""

    @staticmethod
    def forward(ctx: Any, t: DTensor, placements: Sequence[Placement]) -> DTensor:
        ctx.gradient = _done(t.placements)
        return t.redistribute(placements=placements)

    @staticmethod
    def backward(ctx: Any, grad: DTensor) -> tuple[Tensor | None, ...]:
        return _place(grad, ctx.gradient), None


def _done(placements: Sequence[Placement]) -> list[Placement]:
    """The placements after all pending reductions."""
    return [Replicate() if p.is_partial() else p for p in placements]


def _shard(t: DTensor, gradient: Sequence[Placement] | None = None) -> Tensor:
    """This process's shard of t; its gradient is placed as ``gradient``, or as t."""
    gradient = t.placements if gradient is None else gradient
    if torch.compiler.is_compiling():
        return t.to_local(grad_placements=gradient)
    shard: Tensor = ToLocal.apply(t, gradient)
    return shard


def _from_local(local: Tensor, spec: Spec) -> DTensor:
    return DTensor.from_local(
        local, spec.mesh, spec.placements, run_check=False, shape=torch.Size(spec.shape), stride=spec.stride
    )


def _global(local: Tensor, spec: Spec) -> DTensor:
    """The DTensor made of these shards."""
    t: DTensor = _from_local(local, spec) if torch.compiler.is_compiling() else ToGlobal.apply(local, spec)
    return t


def _place(t: DTensor, placements: Sequence[Placement]) -> DTensor:
    if tuple(placements) == tuple(t.placements):
        return t
    if torch.compiler.is_compiling():
        return t.redistribute(placements=placements)
    placed: DTensor = Place.apply(t, placements)
    return placed


def place_like(t: Tensor, y: Tensor) -> Tensor:
    """t, placed as y is, so that t is added to y without moving y."""
    assert isinstance(y, DTensor)
    return _place(_shared(t, y), y.placements)


def _source(x: DTensor, inplace: bool = False) -> DTensor:
    """x after pending reductions; a copy, if x is to be overwritten and a backward pass keeps it."""
    for p in x.placements:
        if not (isinstance(p, Shard) or p.is_replicate() or p.is_partial()):
            raise ValueError(f"x: got a placement {p}, expected Shard, Replicate or Partial")
    kept = torch.is_grad_enabled() and (x.is_complex() or not autograd.fuses(x))
    source: Any = x.clone() if inplace and kept else x
    return _place(source, _done(x.placements))


def _shared(t: Tensor, x: DTensor) -> DTensor:
    """t as a DTensor; a plain t is the same on every process."""
    if isinstance(t, DTensor):
        return t
    everywhere = [Replicate()] * x.device_mesh.ndim
    return _global(t, Spec(x.device_mesh, everywhere, everywhere, t.shape, t.stride()))


def _local(t: Tensor, x: DTensor, first: int = 0) -> Tensor:
    """The part of t for this process's shard of x; the axes of t broadcast to those of x from axis ``first`` on.

    Where several shards of x need the same part, each makes a term of its gradient.
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
    return _shard(_place(_shared(t, x), placements), gradient)


def _stride(x: DTensor) -> tuple[int, ...]:
    """The strides that the kernels give a result for x."""
    memory = torch.empty_strided(x.shape, x.stride(), device="meta")
    return Layout.of(memory).empty(memory).stride()


def _result(local: Tensor, x: DTensor) -> DTensor:
    """The DTensor made of the results for the shards of x."""
    return _global(local, Spec(x.device_mesh, x.placements, x.placements, x.shape, _stride(x)))


def _overwrite(x: DTensor, y: Tensor) -> Tensor:
    """``x.copy_``, which knows autograd's rules for writing into a tensor; pending sums it would not refuse."""
    if any(p.is_partial() for p in x.placements):
        raise ValueError(
            f"inplace: got True, expected False for an x with a pending reduction, {x.placements}"
        )
    return x.copy_(y)


def soft_threshold(x: DTensor, tau: Tensor | None, value: float, inplace: bool) -> Tensor:
    """``sign(x) * max(|x| - tau, 0)``; ``value`` is tau where ``tau`` is None."""
    source = _source(x, inplace)
    threshold = None if tau is None else _local(tau, source, x.dim() - tau.dim())
    y = _result(autograd.soft_threshold(_shard(source), threshold, value, False), source)
    return _overwrite(x, y) if inplace else y


def _spread(x: DTensor, per_sample: bool) -> list[bool]:
    """For each dimension of the mesh, True if a row, or a sample, is spread over it."""
    return [isinstance(p, Shard) and p.dim >= (1 if per_sample else 2) for p in x.placements]


def _mean(local: Tensor, x: DTensor, per_sample: bool) -> DTensor:
    """The DTensor made of these means; each shard has a term of the mean of a row or sample that is spread."""
    spread = _spread(x, per_sample)
    terms = [Partial() if over else p for p, over in zip(x.placements, spread, strict=True)]
    columns = 1 if per_sample else x.shape[1]
    spec = Spec(x.device_mesh, terms, _done(terms), (x.shape[0], columns), (columns, 1))
    return _place(_global(local, spec), _done(terms))


def abs_mean(x: DTensor, per_sample: bool) -> DTensor:
    """Mean of ``|x|`` over each row, (N, C), or each sample, (N, 1)."""
    x = _source(x)
    shard = _shard(x)
    mean = autograd.abs_mean(shard, per_sample)
    if any(_spread(x, per_sample)):
        first = 1 if per_sample else 2
        mean = mean * (math.prod(shard.shape[first:]) / max(math.prod(x.shape[first:]), 1))
    return _mean(mean, x, per_sample)


def shrink(
    x: DTensor,
    alpha: Tensor,
    residual: Tensor | None,
    per_sample: bool,
    inplace: bool,
    with_mean: bool,
) -> tuple[Tensor, Tensor | None]:
    """``(soft_threshold(x, alpha * mean) + residual, mean)``; alpha, (N or 1, C or 1), is plain if it was a number."""
    source = _source(x, inplace)
    y: Tensor
    mean: Tensor | None
    if any(_spread(source, per_sample)):
        mean = abs_mean(source, per_sample)
        y = soft_threshold(source, per_row(_shared(alpha, x) * mean, x), 0.0, False)
        y = y if residual is None else y + place_like(residual, y)
    else:
        addend = None if residual is None else _local(residual, source)
        y, means = autograd.shrink(
            _shard(source), _local(alpha, source), addend, per_sample, False, with_mean
        )
        y, mean = _result(y, source), None if means is None else _mean(means, source, per_sample)
    return (_overwrite(x, y) if inplace else y), mean
