"""`inspect`: what the shrinkage blocks of a network do to an input, as numbers, a table and a plot."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import functional, reference
from ..arguments import require_packages
from ..files import replacing
from ..modules import Shrinkage, SoftThreshold
from ..reference import wrong_type
from ..variants.shrinkage import apply_rule, thresholds_of

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure


@dataclass(frozen=True)
class Block:
    """One call of a `Shrinkage` or `SoftThreshold`. Tensors are copies on the device of its input.

    Attributes:
        name: of the module in the network.
        kind: ``"Shrinkage"`` or ``"SoftThreshold"``.
        x: the input, (N, C, \\*spatial), of ``channel_dim=-1`` too.
        passed: ``sign(x) * max(|x| - tau, 0)``, or what another rule makes of x, before a residual is added; of x's
            shape.
        tau: the thresholds in the units of x, (N, C) or, where the channels share one, (N, 1); of a `SoftThreshold`
            (1, C) or (1, 1).
        alpha: the gate's output, (N, C) or (N, 1); None of a `SoftThreshold`.
        zeroed: the share of each channel's values that are 0 afterwards, (N, C), float64.
        tau_negative: the thresholds of the values below 0, of the shape of ``tau``, where the rule is asymmetric.
    """

    name: str
    kind: str
    x: Tensor
    passed: Tensor
    tau: Tensor
    alpha: Tensor | None
    zeroed: Tensor
    tau_negative: Tensor | None = None

    @property
    def zeroed_share(self) -> float:
        """The share of all values that are 0 after the block."""
        return self.zeroed.mean().item()


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found; printed, it is a table with a line for each block.

    Attributes:
        x: the network's input.
        output: the network's output.
        blocks: the blocks in the order of their calls.
    """

    x: Tensor
    output: Any
    blocks: tuple[Block, ...]

    def __str__(self) -> str:
        head = ("block", "x", "tau: least", "mean", "most", "alpha: mean", "zeroed")
        rows = [head, *(_row(block) for block in self.blocks)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )

    def plot(
        self,
        path: str | os.PathLike[str],
        *,
        clean: Tensor | None = None,
        sample: int = 0,
        channel: int | None = None,
    ) -> Path:
        """Draw one sample of the input, and what each block got and let through, as a PNG file.

        A signal is drawn as lines with the thresholds, an image as two maps side by side, a volume as its middle slice
        along the first axis, and a block without spatial axes as a line over its channels.

        Args:
            path: of the file. An old file is replaced once the new one is whole.
            clean: the input before noise was added to it, of the shape of x or of one sample of it.
            sample: which sample of the batch.
            channel: which channel of every block; None takes the one with the largest mean magnitude. The input is
                always drawn so.

        Returns:
            The path.

        Raises:
            TypeError: ``clean`` is not a tensor.
            ValueError: ``sample``, ``channel`` or the shape of ``clean`` does not fit; a block has another batch than
                x, as where a network cuts its input into windows; the folder of ``path`` does not exist.
            ImportError: matplotlib is missing, which the extra ``train`` brings.
        """
        path = Path(path)
        if clean is not None and not isinstance(clean, Tensor):
            raise wrong_type("clean", clean, "a tensor or None")
        noisy = self._sample(sample)
        if clean is not None and tuple(clean.shape) not in (tuple(self.x.shape), tuple(noisy.shape)):
            raise ValueError(
                f"clean: got shape {tuple(clean.shape)}, expected {tuple(self.x.shape)}, that of x, or "
                f"{tuple(noisy.shape)}, that of one sample"
            )
        for block in self.blocks:
            if channel is not None and not 0 <= channel < block.x.shape[1]:
                raise ValueError(
                    f"channel: got {channel}, expected 0 to {block.x.shape[1] - 1}, the channels of {block.name!r}"
                )
        if not path.absolute().parent.is_dir():
            raise ValueError(f"path: got {str(path)!r}, expected one in a folder that exists")
        if clean is not None and clean.dim() == self.x.dim():
            clean = clean[sample]

        require_packages("a plot", "train", "matplotlib")
        from matplotlib.figure import Figure

        pictures = [_input_picture(noisy, clean), *(_block_picture(b, sample, channel) for b in self.blocks)]
        figure = Figure(figsize=(8, 2.2 * len(pictures)), layout="constrained")
        for part, picture in zip(figure.subfigures(len(pictures), squeeze=False).flat, pictures, strict=True):
            picture.draw(part)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
        return path

    def _sample(self, sample: int) -> Tensor:
        count = len(self.x) if self.x.dim() else 0
        for block in self.blocks:
            # its samples are not those of x
            if len(block.x) != count:
                raise ValueError(
                    f"model: gives {block.name!r} a batch of {len(block.x)}, expected {count}, that of x, "
                    "for one sample to be drawn"
                )
        if not 0 <= sample < count:
            raise ValueError(f"sample: got {sample}, expected 0 to {count - 1}, the samples of x")
        return self.x[sample]


@dataclass
class _Picture:
    """Curves or maps that belong together, with the thresholds of the curves, the upper one first."""

    title: str
    values: dict[str, Tensor]
    edges: tuple[Tensor, ...] = ()

    def draw(self, figure: SubFigure) -> None:
        figure.suptitle(self.title, fontsize="medium")
        if next(iter(self.values.values())).dim() == 1:
            self._draw_lines(figure)
        else:
            self._draw_maps(figure)

    def _draw_lines(self, figure: SubFigure) -> None:
        axes = figure.subplots()
        # the first is drawn below: the noisy signal below the clean one, the input below what was let through
        for (label, values), color in zip(self.values.items(), ("0.7", "C0"), strict=False):
            axes.plot(values.numpy(), color=color, linewidth=0.9, label=label)
        for edge, label in zip(self.edges, ("± threshold", "_other"), strict=False):
            line = edge.expand(len(next(iter(self.values.values()))))
            axes.plot(line.numpy(), color="C3", linewidth=0.8, linestyle="--", label=label)
        axes.margins(x=0)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")

    def _draw_maps(self, figure: SubFigure) -> None:
        # 0 is white, so that zeroed values show
        limit = max(v.abs().max().item() for v in self.values.values())
        columns = figure.subplots(1, 2)
        for axes in columns:
            axes.set_axis_off()
        for axes, (label, values) in zip(columns, self.values.items(), strict=False):
            image = axes.imshow(values.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
            axes.set_title(label, fontsize="small")
        figure.colorbar(image, ax=columns)


def _drawable(values: Tensor) -> Tensor:
    """Real numbers of at most two axes: the magnitude of complex ones, the middle slice of a volume."""
    values = (values.abs() if values.is_complex() else values).double().cpu()
    while values.dim() > 2:
        values = values[len(values) // 2]
    return values


def _strongest(values: Tensor) -> int:
    """The channel of (C, \\*spatial) values with the largest mean magnitude."""
    return int(values.abs().double().flatten(1).mean(-1).argmax())


def _input_picture(noisy: Tensor, clean: Tensor | None) -> _Picture:
    channel = _strongest(noisy) if noisy.dim() > 1 else None
    values = {"noisy" if clean is not None else "x": noisy}
    if clean is not None:
        values["clean"] = clean.to(noisy)
    shown = {label: _drawable(v if channel is None else v[channel]) for label, v in values.items()}
    return _Picture("input" if channel is None else f"input, channel {channel}", shown)


def _block_picture(block: Block, sample: int, channel: int | None) -> _Picture:
    x, passed, zeroed = block.x[sample], block.passed[sample], block.zeroed[sample]
    below = block.tau if block.tau_negative is None else block.tau_negative
    tau, lower = (t[min(sample, len(t) - 1)].double().cpu() for t in (block.tau, below))
    if x.dim() == 1:  # no spatial axes: the channels side by side
        title, share = f"{block.name}, all channels", zeroed.mean()
    else:
        chosen = _strongest(x) if channel is None else channel
        x, passed, share = x[chosen], passed[chosen], zeroed[chosen]
        tau, lower = (t[min(chosen, len(t) - 1)] for t in (tau, lower))
        title = f"{block.name}, channel {chosen}, threshold {tau:.3g}"
    values = {"in": _drawable(x), "let through": _drawable(passed)}
    return _Picture(f"{title}, {share:.0%} zeroed", values, (tau, -lower))


def _row(block: Block) -> tuple[str, ...]:
    tau = block.tau
    alpha = "-" if block.alpha is None else f"{block.alpha.mean().item():.3f}"
    numbers = (f"{t.item():.4g}" for t in (tau.min(), tau.mean(), tau.max()))
    return (block.name, "x".join(map(str, block.x.shape)), *numbers, alpha, f"{block.zeroed_share:.1%}")


def _look(name: str, module: Shrinkage | SoftThreshold, x: Tensor) -> Block:
    """What this module does to x, which is not changed."""
    alpha = negative = None
    if isinstance(module, Shrinkage) and module.varied:
        x = x if module.channel_dim == 1 else x.movedim(-1, 1)
        found = thresholds_of(module, x)
        passed = apply_rule(module, x, found)
        alpha, tau, negative = found
    elif isinstance(module, Shrinkage):
        mean = functional.abs_mean(x)
        # the gate that the operators compute does not follow autocast
        with torch.autocast(x.device.type, enabled=False):
            alpha = module.fc(mean.to(reference.gate_dtype(module.fc, mean.dtype))).to(mean.dtype)
        passed, tau = functional.shrink(x, alpha, statistic=module.statistic, return_threshold=True)
    else:
        tau = module.weight.detach().clamp(min=0).reshape(1, -1)
        passed = functional.soft_threshold(x, reference.per_row(tau, x))
    zeroed = (passed == 0).double().unsqueeze(-1).flatten(2).mean(-1)
    return Block(name, type(module).__name__, x, passed, tau, alpha, zeroed, negative)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each module has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def _recorder(name: str, blocks: list[Block]) -> Callable[..., None]:
    """A hook that copies the input before the module can overwrite it."""

    def record(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x: Tensor = args[0] if args else kwargs["x"]
        if x.dim() < 2:
            raise ValueError(
                f"model: gives {name!r} an x of shape {tuple(x.shape)}, expected (N, C, *spatial)"
            )
        blocks.append(_look(name, module, x.detach().clone()))

    return record


def inspect(model: nn.Module, x: Tensor) -> Inspection:
    r"""The thresholds, gates and zeroed values of every `Shrinkage` and `SoftThreshold` of a network, for one input.

    The network runs once, in evaluation mode, without gradients and uncompiled; each gate is called once more. Modes,
    statistics, hooks and the state of random numbers are left as they were, also when the network raises.

    Args:
        model: a network with a `Shrinkage` or `SoftThreshold` in it, or one of the two.
        x: its input, as a batch.

    Returns:
        An `Inspection` with a block for each call of such a module; it prints as a table and has a ``plot``.

    Raises:
        TypeError: ``model`` is not a module, or ``x`` is not a tensor.
        ValueError: ``model`` has no such module, or calls none of those it has.

    >>> inspection = drsn_ops.inspect(drsn_ops.models.drsn(), torch.randn(2, 1, 256))
    >>> len(inspection.blocks), inspection.blocks[0].tau.shape
    (12, torch.Size([2, 4]))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    if not isinstance(x, Tensor):
        raise wrong_type("x", x)
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, (Shrinkage, SoftThreshold))]
    if not found:
        raise ValueError(
            f"model: got {type(model).__name__}, expected one with a Shrinkage or SoftThreshold in it"
        )
    given = x.detach().clone()  # a first block with inplace=True would overwrite x
    blocks: list[Block] = []
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng([x.device] if x.is_cuda else []))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_evaluating(model))
        for name, module in found:
            hook = _recorder(name or type(module).__name__, blocks)
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        output = model(given)
    if not blocks:
        raise ValueError(
            f"model: {type(model).__name__} called none of its {len(found)} blocks, expected it to call one"
        )
    return Inspection(x.detach().clone(), output, tuple(blocks))
