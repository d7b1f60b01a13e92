"""The networks: the paper's, the two programs that DRSN was published with, RSNet-18 and RSNet-34, and WDCNN."""

import sys

from . import conversion, rsnet
from .paper import ConvolutionalUnit, ShrinkageNetwork, convnet, drsn
from .programs import drsn_cifar10, drsn_mnist
from .rsnet import RSNet, RSNetBlock, rsnet18, rsnet34
from .wdcnn import WDCNN, wdcnn

# Pickles of whole networks name the modules that these were before this folder.
sys.modules.update({"drsn_ops.conversion": conversion, "drsn_ops.rsnet": rsnet})

__all__ = [
    "WDCNN",
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
    "wdcnn",
]


def __dir__() -> list[str]:
    return __all__
