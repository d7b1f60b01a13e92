"""A network on its way to deployment: torch.export with a batch of any size, without drsn_ops, and as ONNX.

Three files are written into a folder, a temporary one unless its path is given on the command line:

- ``fused.pt2`` holds the operators of drsn_ops, and runs after ``import drsn_ops``;
- ``plain.pt2`` is decomposed into PyTorch's own operators, and runs where drsn_ops is not installed;
- ``network.onnx`` runs in ONNX Runtime; it is made where onnx, onnxscript and onnxruntime are installed.

Prints, for each, the largest difference from the network's own logits, relative to the largest of them, on a batch of
another size than the exported one.

Source of the network: M. Zhao et al., "Deep Residual Shrinkage Networks for Fault Diagnosis", IEEE Transactions on
Industrial Informatics, 2020, DOI 10.1109/TII.2019.2943898.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

import drsn_ops

POINTS = 1024


def save(program: ExportedProgram, path: Path, signals: Tensor) -> Tensor:
    """Save the program, load it again, and run it."""
    torch.export.save(program, path)
    logits: Tensor = torch.export.load(path).module()(signals)
    return logits


def save_onnx(program: ExportedProgram, path: Path, signals: Tensor) -> Tensor:
    """Translate the program to ONNX, and run it in ONNX Runtime."""
    import onnxruntime  # type: ignore[import-untyped]

    torch.onnx.export(program, (), path, external_data=False, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: signals.numpy()})
    return torch.from_numpy(logits)


def main(folder: Path, seed: int = 0) -> dict[str, float]:
    """Export, load and run. Returns the difference from the network's logits, relative to the largest, by file."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    network = drsn_ops.models.drsn(in_channels=1, num_classes=8, blocks=3).eval()
    example, batch = torch.randn(2, 1, POINTS), Dim("batch")
    fused = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
    plain = fused.run_decompositions(drsn_ops.decompositions())

    signals = torch.randn(5, 1, POINTS)
    with torch.inference_mode():
        expected = network(signals)
        found = {
            "fused.pt2": save(fused, folder / "fused.pt2", signals),
            "plain.pt2": save(plain, folder / "plain.pt2", signals),
        }
        if all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
            found["network.onnx"] = save_onnx(plain, folder / "network.onnx", signals)
    results = {name: ((y - expected).abs().max() / expected.abs().max()).item() for name, y in found.items()}
    for name, difference in results.items():
        print(f"{name:12} differs by {difference:.1e}")
    return results


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
