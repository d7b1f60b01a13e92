"""What _C, the compiled module, offers to type checkers."""

from typing import TypedDict

class BuildInfo(TypedDict):
    version: str
    compiler: str  # name and version
    cuda: str | None  # nvcc's version
    cuda_arch: list[str]  # as TORCH_CUDA_ARCH_LIST has them
    cuda_reason: str | None  # why CUDA was left out
    simd: list[str]  # levels compiled in; the best one that the processor has is chosen at run time

def build_info() -> BuildInfo: ...
