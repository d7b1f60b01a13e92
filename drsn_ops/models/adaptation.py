"""`adapt_batch_norm`: the statistics of a network's BatchNorms, taken anew from unlabelled signals (AdaBN)."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..reference import wrong_type

Network = TypeVar("Network", bound=nn.Module)


def adapt_batch_norm(network: Network, x: Tensor, *, batch_size: int | None = None) -> Network:
    """Re-estimates the running statistics of every BatchNorm on unlabelled signals, in place: AdaBN.

    A network that was trained on one machine, load or noise is to classify signals of another. Weights stay; each
    BatchNorm, those of the gates too, gets the mean and the variance that its input has on x. Give all test signals, or
    many of them: the statistics are only as good as the sample, and x should have the classes about as often as the
    signals to come.

    Args:
        network: a trained network; its statistics are changed.
        x: unlabelled signals as a batch, (N, C, \\*spatial), N of at least 2, where the network is.
        batch_size: about how many signals go through the network together; None takes all at once, which is exact.
            Means and variances are averaged over batches, which leaves out how far the batches' means lie apart.

    Returns:
        The network itself, with each module in the mode that it had.

    Raises:
        TypeError: ``network`` is no module, or ``x`` no tensor.
        ValueError: a network without running statistics, an x of fewer than two signals, or a ``batch_size`` below 2.

    If the network raises, its statistics are what they were; so are those of a BatchNorm that it does not call.
    ``num_batches_tracked`` counts the batches of x.

    >>> network = drsn_ops.models.drsn(blocks=3)
    >>> logits = drsn_ops.adapt_batch_norm(network, torch.randn(32, 1, 256)).eval()(torch.randn(2, 1, 256))

    Sources: Li et al., Revisiting Batch Normalization for practical domain adaptation, arXiv 1603.04779; for noise on
    vibration signals Zhang et al., DOI 10.3390/s17020425, and, with a DRSN, Yang et al., DOI 10.1155/2020/8880960.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: got {type(network).__name__}, expected a torch.nn.Module")
    if not isinstance(x, Tensor):
        raise wrong_type("x", x)
    if x.dim() == 0 or len(x) < 2:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected a batch of at least 2 signals")
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 2):
        raise ValueError(f"batch_size: got {batch_size!r}, expected an integer of at least 2 or None")
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        raise ValueError(
            f"network: got {type(network).__name__}, expected one with a BatchNorm that has running statistics"
        )
    # no batch of one, which a BatchNorm may refuse
    batches = min(-(-len(x) // (batch_size or len(x))), len(x) // 2)
    modes = [(module, module.training) for module in network.modules()]
    momenta = [norm.momentum for norm in norms]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    network.eval()
    for norm in norms:
        norm.train().reset_running_stats()
        norm.momentum = None  # an average over all batches
    try:
        with torch.no_grad():
            for batch in x.tensor_split(batches):
                network(batch)
        for norm, buffers in zip(norms, before, strict=True):
            if norm.num_batches_tracked == 0:  # nothing of x went through it
                norm.load_state_dict(buffers, strict=False)
    except BaseException:
        for norm, buffers in zip(norms, before, strict=True):
            norm.load_state_dict(buffers, strict=False)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes:
            module.training = training
    return network
