"""The command ``python -m drsn_ops export``: a model as a file for ONNX Runtime or ``torch.export.load``.

``onnx`` is the network in standard ONNX operators. ``pt2`` has the operators of drsn_ops, and loads after
``import drsn_ops``; ``pt2-plain`` is decomposed into PyTorch's own, and loads without. All take any number of windows
of any length, or of the length that the network is made for, and return logits. What was written is loaded again and
compared with the network before it is kept.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from ..arguments import require_packages
from ..files import replacing
from ..ops.decomposition import decompositions
from .model import Model, load_model
from .outputs import require_output

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "pt2-plain": "-plain.pt2"}
METADATA = "drsn_ops.json"
# of the largest logit: float32 rounds each sum in another order
TOLERANCE = 1e-4

# takes windows, returns logits
Loaded = Callable[[Tensor], Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``export``."""
    add = parser.add_argument
    add("model", type=Path, help="model.pt of train")
    add(
        "--format",
        choices=tuple(SUFFIXES),
        default="onnx",
        help="ONNX; torch.export with drsn_ops' operators; the same with PyTorch's own alone (default: onnx)",
    )
    add("--output", type=Path, help="file to write (default: beside the model: .onnx, .pt2 or -plain.pt2)")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status: 1 where the file computes something else than the network."""
    if args.format == "onnx":
        require_packages("--format onnx", "export", "onnx", "onnxscript", "onnxruntime")
    model = load_model(args.model)
    output = args.output or args.model.with_name(args.model.stem + SUFFIXES[args.format])
    require_output(output, [args.model])
    with quiet():
        if args.format == "onnx":
            content, load = onnx_content(model), load_onnx
        else:
            content, load = pt2_content(model, fused=args.format == "pt2"), load_pt2
        difference = largest_difference(model, load(content))
    if not difference <= TOLERANCE:
        found = f"its logits differ from the network's by {difference:.1e} of the largest"
        print(
            f"drsn_ops export: {output}: not written: {found}, expected at most {TOLERANCE:.0e}",
            file=sys.stderr,
        )
        return 1
    with replacing(output) as temporary:
        temporary.write_bytes(content)
    print(f"{output}: its logits differ from the network's by at most {difference:.1e} of the largest")
    return 0


@contextmanager
def quiet() -> Iterator[None]:
    """Within, PyTorch's exporters say nothing of what they lack or will change."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def metadata(model: Model) -> dict[str, str]:
    """What a program has to know to use the network, as texts: lists and what may be missing are JSON.

    They are of ASCII: names may be any bytes, of which the formats take those of text.
    """
    reading = model.reading
    return {
        "drsn_ops": model.version,
        "network": model.name,
        "classes": json.dumps(model.classes),
        "points": str(reading.cutting.points),
        "normalise": reading.cutting.normalise,
        "sampling_rate": json.dumps(reading.sampling_rate),
        "channels": json.dumps(reading.channels),
    }


def example(model: Model) -> Tensor:
    """Windows to trace with."""
    return torch.randn(2, model.channels, model.reading.cutting.points)


def takes_any_length(model: Model) -> bool:
    """False for a network that is made for windows of one length."""
    return "points" not in model.arguments


def exported(model: Model, fused: bool) -> ExportedProgram:
    """The network as a program, for any number of windows, with drsn_ops' operators or decomposed."""
    # without gradients it makes no masks for a backward pass; a named length would allow even ones alone
    with torch.no_grad():
        axes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC} if takes_any_length(model) else {0: Dim.DYNAMIC}
        program = torch.export.export(model.network, (example(model),), dynamic_shapes=(axes,))
    return program if fused else program.run_decompositions(decompositions())


def hypot(x: Tensor, y: Tensor) -> Tensor:
    """``torch.hypot``, which ONNX does not have, without overflow: ``larger * sqrt(1 + (smaller / larger)^2)``."""
    larger, smaller = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    ratio = smaller / torch.where(larger == 0, 1, larger)
    return larger * (1 + ratio * ratio).sqrt()


def onnx_content(model: Model) -> bytes:
    """The content of an ONNX file of standard operators, weights and all."""
    program = torch.onnx.export(
        exported(model, fused=False).run_decompositions({torch.ops.aten.hypot.default: hypot}),
        (),
        input_names=["x"],
        output_names=["logits"],
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(metadata(model))
    content: bytes = program.model_proto.SerializeToString()
    return content


def load_onnx(content: bytes) -> Loaded:
    """An ONNX file in ONNX Runtime."""
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def pt2_content(model: Model, fused: bool) -> bytes:
    """The content of a file for ``torch.export.load``."""
    content = io.BytesIO()
    extra = {METADATA: json.dumps(metadata(model))}
    torch.export.save(exported(model, fused), content, extra_files=extra)
    return content.getvalue()


def load_pt2(content: bytes) -> Loaded:
    """A file of ``torch.export.save``."""
    return torch.export.load(io.BytesIO(content)).module()


def largest_difference(model: Model, loaded: Loaded) -> float:
    """The largest difference from the network's logits on random windows, relative to the largest of them.

    They are one window and several, of the model's length and, where it takes one, of another.
    """
    points, differences = model.reading.cutting.points, []
    generator = torch.Generator().manual_seed(0)
    # shorter ones may be one point in the last layer, and programs of those take no other length
    other = points + points // 2 + 1 if points >= 128 and takes_any_length(model) else points
    for samples, length in ((1, points), (5, points), (3, other)):
        x = torch.randn(samples, model.channels, length, generator=generator)
        with torch.no_grad():
            expected, found = model.network(x), loaded(x)
        differences.append(float((found - expected).abs().max() / expected.abs().max()))
    return max(differences)
