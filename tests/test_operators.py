"""Every operator of the registry with one wrong argument at a time: an error that names it, or the right result."""

import math
import re
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from checks import make_gate
from plain import plain
from torch import Tensor

from drsn_ops.ops.gate import BATCH, RUNNING
from drsn_ops.ops.plain_gate import plain_batch_norm, plain_gate

ops = torch.ops.drsn_ops
SCHEMAS = [s for s in torch._C._jit_get_all_schemas() if s.name.startswith("drsn_ops::") and s.arguments]
OPERATORS = sorted(s.name.removeprefix("drsn_ops::") for s in SCHEMAS)


def right_calls():
    """For each operator the arguments of right calls; every optional tensor is there."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 20)
    grad, residual = torch.randn_like(x), torch.randn_like(x)
    tau, alpha = torch.rand(3, 1), torch.rand(2, 3)
    z, complex_tau = torch.randn(2, 3, 20, dtype=torch.complex64), torch.rand(3, 1)
    gate = plain_gate(make_gate(3, 5, 3).float().requires_grad_(False), x)
    norm = plain_batch_norm(torch.nn.BatchNorm1d(3).requires_grad_(False), x)
    assert gate.kind == norm.kind == BATCH
    _, mask = ops.soft_threshold_with_mask(x, tau, 0.0)
    mean, mean_mask = ops.abs_mean_with_mask(x, False)
    _, _, shrink_mask = ops.shrink_with_mask(x, alpha, None, False)
    _, _, state, gated_mask = ops.gated_shrink_with_mask(x, None, *gate.functional, False)
    _, norm_mean, norm_state, input_state = ops.batch_norm_shrink(
        x, None, *norm.functional, *gate.functional, False
    )
    _, shortcut, relu_state = ops.batch_norm_relu(x, *norm.functional, 2, 5)
    conv = torch.randn(4, 3, 3), torch.randn(4)
    more_conv = torch.randn(4, 4, 3), torch.randn(4)
    running, more_running = ([torch.rand(c) + 0.5 for _ in range(4)] for c in (3, 4))
    more_gate = plain_gate(make_gate(4, 5, 4).float().eval().requires_grad_(False), more_conv[0])
    after_gate = (gate.kind, gate.eps, False)
    return {
        "soft_threshold": [(x, tau, 0.0), (z, complex_tau, 0.0)],
        "soft_threshold_with_mask": [(x, tau, 0.0)],
        "soft_threshold_": [(x, tau, 0.0, True), (z, complex_tau, 0.0, False)],
        "soft_threshold_backward": [(grad, mask, [3, 1], torch.float32, False, True)],
        "complex_soft_threshold_backward": [(z.flip(0), z, complex_tau, 0.0, True, True)],
        "abs_mean": [(x, False)],
        "abs_mean_with_mask": [(x, False)],
        "abs_mean_backward": [(alpha, mean_mask, [2, 3, 20], torch.float32, False)],
        "shrink": [(x, alpha, residual, False)],
        "shrink_with_mask": [(x, alpha, residual, False)],
        "shrink_": [(x, alpha, residual, False, True)],
        "shrink_backward": [(grad, alpha, shrink_mask, alpha, mean, False, False, True, True)],
        "gated_shrink": [(x, residual, *gate.functional, False)],
        "gated_shrink_with_mask": [(x, residual, *gate.functional, False)],
        "gated_shrink_": [(x, residual, *gate, False, True, True)],
        "gated_shrink_backward": [
            (grad, mean, gated_mask, mean, state, *gate.parameters, *after_gate, False, True, True)
        ],
        "batch_norm_shrink": [(x, residual, *norm.functional, *gate.functional, False)],
        "batch_norm_shrink_": [(x, residual, *norm, *gate, False)],
        "batch_norm_shrink_backward": [
            (grad, x, *norm[:2], norm.kind, norm_mean, norm_state, input_state)
            + (*gate.parameters, *after_gate, True, True)
        ],
        "batch_norm_relu": [(x, *norm.functional, 2, 5)],
        "batch_norm_relu_": [(x, *norm, 2, 5)],
        # one length alone has a result of this size where stride is 1, and no sums where statistics are running ones
        "batch_norm_relu_backward": [
            (grad, F.pad(grad, (0, 0, 1, 1)), x, *norm[:2], norm.kind, relu_state, 1, True, True),
            (F.pad(grad, (0, 1)), shortcut, x, *norm[:2], RUNNING, relu_state, 2, True, True),
        ],
        "residual_unit": [
            (x, *running, 1e-5, *conv, *more_running, 1e-5, *more_conv, 2, *more_gate.functional, False)
        ],
        "batch_norm_relu_conv": [(x, *norm.functional, *conv, 2, 5)],
        "batch_norm_relu_conv_": [(x, *norm, *conv, 2, 5)],
        "batch_norm_relu_conv_backward": [
            (torch.randn(2, 4, 20), F.pad(grad, (0, 0, 1, 1)), x, *norm[:2], norm.kind, relu_state)
            + (conv[0], 1, True, True, True),
            (
                torch.randn(2, 4, 10),
                shortcut,
                x,
                *norm[:2],
                RUNNING,
                relu_state,
                conv[0],
                2,
                True,
                True,
                True,
            ),
        ],
    }


def changed(value):
    """The argument as it should not be, or might be."""
    if isinstance(value, Tensor):
        for shape in {(), (1,), (17,), (2, 17), (1, *value.shape), value.shape[1:], value.shape[:-1]}:
            yield value.new_ones(shape)
        for axis, size in enumerate(value.shape):
            for other in (0, 1, size - 1, size + 1, 8 * size):
                yield value.new_ones([*value.shape[:axis], other, *value.shape[axis + 1 :]])
        for dtype in (torch.float16, torch.float64, torch.int8, torch.int64, torch.uint8, torch.complex64):
            yield value.real.to(dtype)
        yield value.new_ones(()).expand(value.shape)
        yield torch.stack([value, torch.ones_like(value)], -1)[..., 0]
        yield value.to("meta")
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (-1, 0, 1, 2, 3, 4, 5, 2**40)
    elif isinstance(value, float):
        yield from (math.nan, math.inf, -1.0)
    elif isinstance(value, torch.dtype):
        yield from (torch.float16, torch.float64, torch.int64, torch.complex64)
    elif isinstance(value, list):
        yield from ([], [1], value[1:], [1, *value], [-size for size in value], [8 * size for size in value])
        yield [2**40 for _ in value]


def copied(arguments):
    """New memory of the same values and strides."""

    def copy(t):
        if any(stride == 0 for stride in t.stride()):
            return t.flatten()[:1].clone().expand(t.shape)
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device).copy_(t)

    return [copy(a) if isinstance(a, Tensor) else a for a in arguments]


def tensors_of(result, arguments):
    """What came out, and what may have been written."""
    results = result if isinstance(result, (tuple, list)) else [result]
    return [*results, *(a for a in arguments if isinstance(a, Tensor))]


def fault(operator, arguments, position):
    """What is wrong with a call whose argument at this position was changed; None if nothing is."""
    names = [argument.name for argument in operator._schema.arguments]
    given, others = copied(arguments), copied(arguments)
    try:
        found = tensors_of(operator(*given), given)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        named = re.match(r"(\w+)( \([^)]*\))?: (got|unsupported operation|drsn_ops asked)", str(error))
        memory = re.match("(out of memory|no tensor): drsn_ops asked", str(error))
        # where it says how large others have to be, one of them may be named
        leads = (
            position == 0 or names[position] in ("x", "w1", "w2") or names[position].startswith("conv_weight")
        )
        sizes_others = leads or not isinstance(arguments[position], Tensor)
        if memory or (named and named[1] in (names if sizes_others else [names[position]])):
            return None
        return f"the error names no argument: {error}"
    if isinstance(arguments[position], float):
        return None  # it came back: no number leads to other memory
    value = others[position]
    repeats = isinstance(value, Tensor) and 0 in value.stride()
    try:
        if (
            repeats
        ):  # its numbers may contradict others that a forward pass made, and the plain formula makes again
            others[position] = value.contiguous()
        wanted = tensors_of((operator if repeats else partial(plain, operator))(*others), others)
        for mine, t in zip(found, wanted, strict=True):
            if t is None:
                assert mine.numel() == 0
            else:
                torch.testing.assert_close(mine, t, equal_nan=True, rtol=1e-2, atol=1e-3)
    except Exception as error:
        return f"no error, and not what the plain formula says: {type(error).__name__}: {error}"
    return None


def walk(name):
    """Prints a line before each call, so that the last one tells where the process ended, and what is wrong."""
    operator = getattr(ops, name).default
    for arguments in right_calls()[name]:
        print(f"right: {name}", flush=True)
        wrong = fault(operator, arguments, 0)
        assert wrong is None, wrong
        operator(*copied(arguments))  # does not raise
        for position, argument in enumerate(operator._schema.arguments):
            for value in changed(arguments[position]):
                alone = sum(isinstance(a, Tensor) for a in arguments) == 1
                if isinstance(value, Tensor) and value.is_meta and alone:
                    continue  # a right call
                call = [*arguments[:position], value, *arguments[position + 1 :]]
                text = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else value
                print(f"{name}, {argument.name}: {text}", flush=True)
                wrong = fault(operator, call, position)
                if wrong is not None:
                    print(f"FAULT {name}, {argument.name}: {text}: {wrong}".replace("\n", " "), flush=True)


def test_there_is_a_right_call_of_every_operator():
    assert sorted(right_calls()) == OPERATORS


@pytest.fixture(scope="module")
def walked():
    """What each operator printed, and how the one process after another ended in which they ran."""
    program = "import sys; sys.path[:0] = sys.argv[2:]; import test_operators\n"
    program += "for name in sys.argv[1].split(): test_operators.walk(name)"
    printed, left = {}, list(OPERATORS)
    while left:
        run = subprocess.run(
            [sys.executable, "-c", program, " ".join(left), *sys.path],
            capture_output=True,
            text=True,
            timeout=600,
        )
        for line in run.stdout.splitlines():
            name = re.search(r"(?:FAULT |right: |^)(\w+)", line)[1]
            printed.setdefault(name, []).append(line)
        done = [name for name in left if name in printed]
        if run.returncode == 0:
            break
        printed[done[-1]].append(f"FAULT ended by {run.returncode}: {run.stderr[-2000:]}")
        left = left[left.index(done[-1]) + 1 :]
    return printed


@pytest.mark.parametrize("name", OPERATORS)
def test_a_wrong_argument_is_refused_or_served(walked, name):
    """An operator that ends its process is the last one of it."""
    lines = walked[name]
    last = lines[-2] if lines[-1].startswith("FAULT ended") else ""
    assert [last, *(line for line in lines if line.startswith("FAULT"))] == [""]


@pytest.mark.parametrize("name", OPERATORS)
def test_every_result_lies_in_memory_that_was_filled(name):
    """With NaN, and 255 in masks, by DRSN_OPS_FILL: an element that a kernel left unwritten would be seen."""
    for arguments in right_calls()[name]:
        given = copied(arguments)
        with torch.profiler.profile(record_shapes=True) as profile:
            result = getattr(ops, name)(*given)
        filled = [event.input_shapes[0] for event in profile.events() if event.name == "aten::fill_"]
        memory = {t.untyped_storage().data_ptr() for t in given if isinstance(t, Tensor)}
        for t in tensors_of(result, ()):
            if isinstance(t, Tensor) and t.numel() and t.untyped_storage().data_ptr() not in memory:
                assert list(t.shape) in filled, t.shape
