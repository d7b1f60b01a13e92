"""The networks: the paper's, the two programs that DRSN was published with, and RSNet-18 and RSNet-34."""

from .paper import ConvolutionalUnit, ShrinkageNetwork, convnet, drsn
from .programs import drsn_cifar10, drsn_mnist
from .rsnet import RSNet, RSNetBlock, rsnet18, rsnet34

__all__ = [
    "ConvolutionalUnit",
    "RSNet",
    "RSNetBlock",
    "ShrinkageNetwork",
    "convnet",
    "drsn",
    "drsn_cifar10",
    "drsn_mnist",
    "rsnet18",
    "rsnet34",
]


def __dir__() -> list[str]:
    return __all__
