"""`check_shrinkage`: whether a user's shrinkage block computes the definition, and which known mistake it makes if not.

The block is a black box: chosen inputs go in (`probes`), and what comes out is judged (`values`, `gradients`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..arguments import require_choice, require_positive
from ..modules import THRESHOLDS, Thresholds
from ..reference import STATISTICS, Statistic
from .gradients import check_gradients
from .mistakes import CONFUSED, UNKNOWN, Check, Wrong
from .probes import SAMPLES, Block, Rows
from .values import check_values, find_kind

SPATIAL = {1: (251,), 2: (15, 17), 3: (5, 7, 8)}
# The statistic that goes with each kind of thresholds in the paper.
STATISTIC_OF = {"channel-wise": "channel", "channel-shared": "sample"}
KINDS = {
    ("channel-wise", "channel"): "tau_c = alpha_c * mean|x_c|, DRSN-CW",
    ("channel-shared", "sample"): "tau = alpha * mean|x|, DRSN-CS",
    ("channel-wise", "sample"): "tau_c = alpha_c * mean|x|, the sample's mean with a channel-wide gate",
    ("channel-shared", "channel"): "tau_c = alpha * mean|x_c|, the channels' means with a gate of one output",
    (None, "channel"): "tau_c = alpha * mean|x_c| with one constant alpha, so the gate's width does not show",
    (None, "sample"): "tau = alpha * mean|x| with one constant alpha, so the gate's width does not show",
    (None, None): "tau = alpha * mean|x|; CW and CS are the same with one channel, or do not show",
}


def _examine(block: Block, rows: Rows, expected: Thresholds | None, meant: Statistic | None) -> Check:
    """The check of a block that is right. Raises `Wrong` with the finding for any other."""
    low, high = check_values(block, rows)
    thresholds, statistic, evidence = find_kind(block, rows)
    kind = KINDS[thresholds, statistic]
    if statistic is not None:
        width = expected or thresholds
        # a gate whose width does not show goes with either mean
        scope = meant or (statistic if width is None else STATISTIC_OF[width])
        if statistic != scope or thresholds not in (None, width):
            wanted = KINDS[width, scope] if expected or meant else "DRSN-CW or DRSN-CS"
            raise Wrong(CONFUSED, f"expected {wanted}", f"found {kind}", *evidence)
    learning = check_gradients(block, rows)
    exact = (
        f"y is soft thresholding up to {block.error:.1g} of mean|x|; alpha is {max(low, 0):.3g} to {high:.3g}"
    )
    return Check(True, kind, None, (exact, *evidence, *learning), None, thresholds, statistic)


def _prepared(
    module: Callable[[Tensor], object], dtype: torch.dtype, training: bool
) -> tuple[Callable[[Tensor], object], Tensor]:
    """A copy of the module in ``dtype``, and an empty tensor of the dtype and on the device that it takes."""
    if not isinstance(module, nn.Module):
        return module, torch.empty(0, dtype=dtype, device="cpu")
    try:
        own = copy.deepcopy(module)
    except Exception as error:
        raise ValueError(
            f"module: got one that cannot be copied ({error}), expected one that can, or a function that calls it"
        ) from error
    own = own.to(dtype).train(training)
    device = next((t.device for t in (*own.parameters(), *own.buffers())), torch.device("cpu"))
    return own, torch.empty(0, dtype=dtype, device=device)


def _with_hint(check: Check, module: object) -> Check:
    """The check; where a whole residual block may have been given, with what to give instead."""
    if check.statement == UNKNOWN and isinstance(module, nn.Module):
        if any(isinstance(layer, _ConvNd) for layer in module.modules()):
            hint = "the module has convolutions: give its shrinkage alone, such as block.shrinkage"
            return replace(check, evidence=(*check.evidence, hint))
    return check


def check_shrinkage(
    module: Callable[[Tensor], object],
    channels: int,
    *,
    dim: int = 1,
    spatial: Sequence[int] | None = None,
    expected: Thresholds | None = None,
    statistic: Statistic | None = None,
    training: bool = False,
    channel_dim: Literal[1, -1] = 1,
) -> Check:
    r"""Whether a shrinkage block is ``sign(x) * max(|x| - alpha * mean|x|, 0)``, and what is wrong with it if not.

    The block is judged by its outputs and gradients for chosen inputs alone. Any gate passes that turns the channels'
    means into numbers between 0 and 1. These mistakes, all met in public code, are told apart:

    - ``"mean without abs"``: the mean of x, not of ``|x|``, goes into the gate or the threshold;
    - ``"magnitude without sign"``: ``max(|x| - tau, 0)`` is returned as it is, or multiplied by x;
    - ``"mean dropped"``: the gate's output alone is the threshold;
    - ``"CS and CW confused"``: the mean of the sample with a channel-wide gate, or the channels' means with a gate of
      one output, unless ``statistic`` asks for it; or thresholds of another kind than ``expected``;
    - ``"reshape for transpose"``: axes were renamed, not moved, so that rows of memory pass for channels;
    - ``"hard threshold"`` and ``"garrote"``: x, or ``x - tau^2 / x``, is let through where ``|x| > tau``;
    - ``"alpha not between 0 and 1"``: the gate ends in a softplus, a ReLU or a linear layer, so that tau exceeds the
      mean or is negative;
    - ``"x added to the result"``: the output contains the shortcut;
    - ``"cut off from the gradient"``: a ``detach``, ``.data``, ``.item()`` or ``no_grad`` keeps gradients from x, the
      mean that alpha multiplies, the gate's input or the gate's parameters. Frozen parameters are no mistake.

    A `Shrinkage` of another rule or pooling is not the definition and so wrong here, by its rule's name if that is
    above.

    Only the first mistake of a block is reported. Some things do not show: an alpha below 1e-7 in a quiet channel
    passes for the channel's own mean, C gate outputs that are always equal pass for one, and a cut that takes less than
    a thousandth of the gradient, in float32 less than a fiftieth, passes for none. A guard of up to 1e-6 against a
    division by 0 is no mistake.

    Args:
        module: maps (N, C, \*spatial) to the same shape: the shrinkage alone, without convolutions and shortcut. A
            module is copied, in float64 where it can compute in it; it is itself neither called nor changed. Another
            callable is called as it is, with float64 tensors on the CPU, with float32 where that fails; it may compute
            without gradients, in NumPy for example.
        channels: C, their number.
        dim: the number of spatial axes: 1, 2 or 3.
        spatial: their sizes, where the block takes no others; at least 16 positions in all.
        expected: ``"channel-wise"`` (DRSN-CW), ``"channel-shared"`` (DRSN-CS), or None, which accepts both and says
            which it is.
        statistic: the abs-mean that alpha is meant to multiply, as in `Shrinkage`: ``"channel"`` or ``"sample"``, with
            either gate. None follows the paper: ``"channel"`` for a channel-wide gate, ``"sample"`` for one output.
        training: check the block in training mode, where its gate's BatchNorm uses the batch.
        channel_dim: the axis of the block's channels: 1, or -1 for a block of (N, \*spatial, C), as transformers have.

    Returns:
        A `Check`: true or false, and a report in print. A block that raises, or returns another shape, an integer or
        complex type, or NaN, is wrong, and the statement says so.

    Raises:
        TypeError: ``module`` cannot be called.
        ValueError: an argument is out of range, or ``module`` cannot be copied.

    Source of the definition: Zhao et al., DOI 10.1109/TII.2019.2943898, section III.

    >>> check = drsn_ops.check_shrinkage(lambda x: x.sign() * (x.abs() - 0.5 * x.mean(-1, True)).relu(), channels=4)
    >>> bool(check), check.mistake
    (False, 'mean without abs')
    """
    if not callable(module):
        raise TypeError(f"module: got {type(module).__name__}, expected a module or another callable")
    require_positive("channels", channels)
    require_choice("dim", dim, tuple(SPATIAL))
    require_choice("expected", expected, (*THRESHOLDS, None))
    require_choice("statistic", statistic, (*STATISTICS, None))
    require_choice("channel_dim", channel_dim, (1, -1))
    sizes = SPATIAL[dim] if spatial is None else tuple(spatial)
    if len(sizes) != dim or math.prod(sizes) < 16:
        raise ValueError(
            f"spatial: got {sizes}, expected {dim} sizes (dim) with at least 16 positions in all"
        )
    # what fails in float32 too is reported
    for dtype in (torch.float64, torch.float32):
        # a copy made in inference mode would have no gradients
        with torch.inference_mode(False):
            call, like = _prepared(module, dtype, training)
        block = Block(call, sizes, like, channel_dim)
        devices = [like.device] if like.is_cuda else []
        try:
            with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):
                rows = Rows(channels, math.prod(sizes), like.device)
                return _examine(block, rows, expected, statistic)
        except Wrong as wrong:
            return _with_hint(wrong.check, module)
        except Exception as error:
            message = str(error).partition("\n")[0]
            shape = (SAMPLES, channels, *sizes) if channel_dim == 1 else (SAMPLES, *sizes, channels)
            called = f"it was called with x of shape {shape}; dim says how many axes are spatial"
            failure = Check(False, f"raises {type(error).__name__}", None, (message, called))
    return failure
