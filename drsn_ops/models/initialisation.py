"""First weights and BatchNorm constants of Keras 2.2.1 and TFLearn 0.3.2, the libraries of the published programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..modules import Shrinkage


def weighted_layers(network: nn.Module) -> Iterator[_ConvNd | nn.Linear]:
    """The convolutions and linear layers of a network, in its order."""
    return (layer for layer in network.modules() if isinstance(layer, (_ConvNd, nn.Linear)))


def as_keras(network: nn.Module) -> None:
    """Initialise and normalise as the Keras program does."""
    # he_normal; 0.8796 is the standard deviation of a normal distribution of 1 that is cut at 2
    _draw_kernels(network, lambda fan_in: math.sqrt(2 / fan_in) / 0.87962566103423978)
    for module in network.modules():
        if isinstance(module, Shrinkage):
            nn.init.xavier_uniform_(module.fc.get_parameter("3.weight"))
        elif isinstance(module, _BatchNorm):
            module.eps, module.momentum = 1e-3, 0.01


def as_tflearn(network: nn.Module) -> None:
    """Initialise and normalise as the TFLearn programs do."""
    # variance_scaling, in which TensorFlow 1 corrects for the cut with 1.3
    _draw_kernels(network, lambda fan_in: math.sqrt(1.3 * 2 / fan_in))
    first, *_, last = (layer.weight for layer in weighted_layers(network))
    bound = math.sqrt(3 / _fan_in(first))
    nn.init.uniform_(first, -bound, bound)
    _truncated_normal(last, 0.02)
    rules = _modules_of_rules(network)
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module not in rules:
            module.eps, module.momentum = 1e-5, 0.1
            nn.init.normal_(module.weight, 1.0, 0.002)


def _draw_kernels(network: nn.Module, std: Callable[[int], float]) -> None:
    """Truncated normal kernels, with ``std`` a function of fan-in, and biases of 0."""
    rules = _modules_of_rules(network)
    for layer in weighted_layers(network):
        if layer in rules:
            continue
        _truncated_normal(layer.weight, std(_fan_in(layer.weight)))
        nn.init.zeros_(layer.get_parameter("bias"))


def _modules_of_rules(network: nn.Module) -> set[nn.Module]:
    """The modules of threshold rules, which come with numbers of their own."""
    rules = (getattr(module, "rule", None) for module in network.modules() if isinstance(module, Shrinkage))
    return {module for rule in rules if isinstance(rule, nn.Module) for module in rule.modules()}


def _truncated_normal(kernel: Tensor, std: float) -> None:
    """Draw from a normal distribution, and again what lies more than two ``std`` from 0."""
    nn.init.trunc_normal_(kernel, std=std, a=-2 * std, b=2 * std)


def _fan_in(kernel: Tensor) -> int:
    """The number of inputs of one output of a convolution or linear layer."""
    return kernel[0].numel()
