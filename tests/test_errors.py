"""Every wrong argument: the message names it, what came and what is allowed, and nothing is written."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import drsn_ops
from drsn_ops import models, reference

x = torch.randn(2, 3, 4)
CASES = [
    (
        drsn_ops.soft_threshold,
        (x.to_sparse(), x),
        {},
        TypeError,
        r"x: got a tensor of torch.sparse_coo, expected",
    ),
    (drsn_ops.soft_threshold, (x, x.to_sparse()), {}, TypeError, r"tau: got a tensor of torch.sparse_coo"),
    (drsn_ops.abs_mean, (x.to_sparse(),), {}, TypeError, r"x: got a tensor of torch.sparse_coo"),
    (drsn_ops.abs_mean, (x.to_mkldnn(),), {}, TypeError, r"x: got a tensor of torch._mkldnn"),
    (drsn_ops.shrink, (x.to_sparse(), x[..., 0]), {}, TypeError, r"x: got a tensor of torch.sparse_coo"),
    (drsn_ops.shrink, (x, x[..., 0].to_sparse()), {}, TypeError, r"alpha: got a tensor of torch.sparse_coo"),
    (
        drsn_ops.shrink,
        (x, 0.5),
        {"residual": x.to_sparse()},
        TypeError,
        r"residual: got a tensor of torch.sp",
    ),
    (drsn_ops.soft_threshold, ([1.0], 1.0), {}, TypeError, r"x: got list, expected a tensor"),
    (
        drsn_ops.soft_threshold,
        (torch.arange(3), 1.0),
        {},
        TypeError,
        r"x: got a tensor of torch.int64, expected .*float16.*complex64",
    ),
    (drsn_ops.soft_threshold, (x > 0, 1.0), {}, TypeError, r"x: got a tensor of torch.bool"),
    (drsn_ops.soft_threshold, (x, -0.5), {}, ValueError, r"tau: got -0.5, expected a number >= 0"),
    (drsn_ops.soft_threshold, (x, "1"), {}, TypeError, r"tau: got str, expected a number or a tensor"),
    (drsn_ops.soft_threshold, (x, True), {}, TypeError, r"tau: got bool, expected a number or a tensor"),
    (drsn_ops.soft_threshold, (x, 1j), {}, TypeError, r"tau: got complex, expected a number or a tensor"),
    (
        drsn_ops.soft_threshold,
        (x, torch.ones(4, dtype=torch.int32)),
        {},
        TypeError,
        r"tau: got a tensor of torch.int32, expected a real",
    ),
    (
        drsn_ops.soft_threshold,
        (x, torch.ones(4, dtype=torch.complex64)),
        {},
        TypeError,
        r"tau: got a tensor of torch.complex64",
    ),
    (
        drsn_ops.soft_threshold,
        (x, torch.ones(3)),
        {},
        ValueError,
        r"tau: got shape \(3,\), expected one that broadcasts to x, \(2, 3, 4\)",
    ),
    (drsn_ops.soft_threshold, (x, torch.ones(1, 2, 3, 4)), {}, ValueError, r"tau: got shape \(1, 2, 3, 4\)"),
    (
        drsn_ops.soft_threshold,
        (x, torch.ones(4, device="meta")),
        {},
        ValueError,
        r"tau: got a tensor on meta, expected cpu, the device of x",
    ),
    (
        drsn_ops.abs_mean,
        (torch.randn(3),),
        {},
        ValueError,
        r"x: got shape \(3,\), expected \(N, C, \*spatial\)",
    ),
    (
        drsn_ops.abs_mean,
        (torch.randn(1, 1, 1, 1, 1, 1),),
        {},
        ValueError,
        r"x: got shape .* up to three spatial axes",
    ),
    (
        drsn_ops.abs_mean,
        (x.to(torch.complex64),),
        {},
        TypeError,
        r"x: got a tensor of torch.complex64, expected one of float16",
    ),
    (
        drsn_ops.abs_mean,
        (x,),
        {"statistic": "row"},
        ValueError,
        r"statistic: got 'row', expected 'channel' or 'sample'",
    ),
    (
        drsn_ops.shrink,
        (torch.ones(2, 3, dtype=torch.int8), 0.5),
        {},
        TypeError,
        r"x: got a tensor of torch.int8",
    ),
    (drsn_ops.shrink, (x, None), {}, TypeError, r"alpha: got NoneType, expected a number or a tensor"),
    (
        drsn_ops.shrink,
        (x, torch.ones(2)),
        {},
        ValueError,
        r"alpha: got shape \(2,\), expected \(2, 3\), \(2, 1\) or \(3,\)",
    ),
    (drsn_ops.shrink, (x, torch.ones(1, 3)), {}, ValueError, r"alpha: got shape \(1, 3\)"),
    (drsn_ops.shrink, (x, torch.ones(2, 3, 1)), {}, ValueError, r"alpha: got shape \(2, 3, 1\)"),
    (drsn_ops.shrink, (x, torch.ones(2, 4)), {}, ValueError, r"alpha: got shape \(2, 4\), expected \(2, 3\)"),
    (drsn_ops.shrink, (torch.ones(()), torch.ones(2, 3)), {}, ValueError, r"x: got shape \(\), expected"),
    (
        drsn_ops.shrink,
        (torch.ones(2, 3, 1, 1, 1, 1), torch.ones(2, 3)),
        {},
        ValueError,
        r"x: got shape \(2, 3, 1, 1, 1, 1\), expected \(N, C, \*spatial\) with up to three",
    ),
    (drsn_ops.shrink, (x.int(), torch.ones(2, 3)), {}, TypeError, r"x: got a tensor of torch.int32"),
    (
        drsn_ops.soft_threshold,
        (x.int(), torch.ones(4).int()),
        {},
        TypeError,
        r"x: got a tensor of torch.int32",
    ),
    (drsn_ops.shrink, (x, torch.ones(2, 3).int()), {}, TypeError, r"alpha: got a tensor of torch.int32"),
    (drsn_ops.shrink, (x, torch.ones(2, 3, device="meta")), {}, ValueError, r"alpha: got a tensor on meta"),
    (
        drsn_ops.shrink,
        (x, 0.5),
        {"statistic": 1},
        ValueError,
        r"statistic: got 1, expected 'channel' or 'sample'",
    ),
    (drsn_ops.shrink, (x, 0.5), {"residual": 1.0}, TypeError, r"residual: got float, expected a tensor"),
    (drsn_ops.shrink, (x, 0.5), {"residual": x.long()}, TypeError, r"residual: got a tensor of torch.int64"),
    (
        drsn_ops.shrink,
        (x, 0.5),
        {"residual": x[:1]},
        ValueError,
        r"residual: got shape \(1, 3, 4\), expected \(2, 3, 4\), that of x",
    ),
    (drsn_ops.shrink, (x, 0.5), {"residual": x.to("meta")}, ValueError, r"residual: got a tensor on meta"),
]


IN_PLACE = [
    (function, args, {**options, "inplace": True}, *rest)
    for function, args, options, *rest in CASES
    if function is not drsn_ops.abs_mean
]


@pytest.mark.parametrize("function, args, options, error, message", CASES + IN_PLACE)
def test_message(function, args, options, error, message):
    before = x.clone()
    with pytest.raises(error, match=message):
        function(*args, **options)
    assert torch.equal(x, before)


def of_numpy():
    """Every function and module of x, and each second tensor of a function, with an array of numpy."""
    numpy = pytest.importorskip("numpy")
    array = numpy.ones((2, 3, 4), numpy.float32)
    gate, batch_norm = drsn_ops.Shrinkage(3, norm="none").fc, torch.nn.BatchNorm1d(3).eval()
    modules = {
        "SoftThreshold": drsn_ops.SoftThreshold(),
        "SoftThreshold of channels": drsn_ops.SoftThreshold(3),
        "Shrinkage": drsn_ops.Shrinkage(3),
        "RSBU": drsn_ops.RSBU(3, 3),
        **{
            name: getattr(models, name)()
            for name in ("drsn", "convnet", "drsn_mnist", "drsn_cifar10", "rsnet18", "rsnet34", "wdcnn")
        },
    }
    plain = drsn_ops.Shrinkage(3, norm="none")
    plain.use_reference = True
    cases = {name: ("x", lambda module=module: module(array)) for name, module in modules.items()}
    cases["Shrinkage in plain PyTorch"] = ("x", lambda: plain(array))
    cases["the residual of Shrinkage"] = ("residual", lambda: modules["Shrinkage"](x, array))
    cases["the residual of Shrinkage in plain PyTorch"] = ("residual", lambda: plain(x, array))
    cases["inspect"] = ("x", lambda: drsn_ops.inspect(modules["Shrinkage"], array))
    for where, f in (("", drsn_ops), ("reference.", reference)):
        calls = {
            "soft_threshold": ("x", lambda f=f: f.soft_threshold(array, 0.5)),
            "tau of soft_threshold": ("tau", lambda f=f: f.soft_threshold(x, array)),
            "tau of soft_threshold, one number": ("tau", lambda f=f: f.soft_threshold(x, numpy.array(0.5))),
            "abs_mean": ("x", lambda f=f: f.abs_mean(array)),
            "shrink": ("x", lambda f=f: f.shrink(array, 0.5)),
            "alpha of shrink": ("alpha", lambda f=f: f.shrink(x, array[..., 0])),
            "residual of shrink": ("residual", lambda f=f: f.shrink(x, 0.5, residual=array)),
            "gated_shrink": ("x", lambda f=f: f.gated_shrink(array, gate)),
            "residual of gated_shrink": ("residual", lambda f=f: f.gated_shrink(x, gate, residual=array)),
            "batch_norm_relu": ("x", lambda f=f: f.batch_norm_relu(array, batch_norm)),
            "batch_norm_shrink": ("z", lambda f=f: f.batch_norm_shrink(array, batch_norm, gate)),
            "residual of batch_norm_shrink": (
                "residual",
                lambda f=f: f.batch_norm_shrink(x, batch_norm, gate, residual=array),
            ),
        }
        cases.update({where + name: case for name, case in calls.items()})
    return cases


def test_arrays_of_numpy_are_refused_by_name():
    for what, (name, call) in of_numpy().items():
        with pytest.raises(TypeError) as error:
            call()
        assert str(error.value).startswith(f"{name}: got numpy.ndarray, expected a "), what
        assert str(error.value).endswith(f"; torch.from_numpy({name}) is a tensor"), what


def test_numbers_of_numpy_are_numbers():
    numpy = pytest.importorskip("numpy")
    for kind in (numpy.float16, numpy.float32, numpy.float64, numpy.int64):
        number = kind(2) if kind is numpy.int64 else kind(0.5)
        assert torch.equal(drsn_ops.soft_threshold(x, number), drsn_ops.soft_threshold(x, float(number)))
        found = drsn_ops.shrink(x, number, return_threshold=True)
        for ours, expected in zip(
            found, drsn_ops.shrink(x, float(number), return_threshold=True), strict=True
        ):
            assert type(ours) is torch.Tensor and torch.equal(ours, expected)
    with pytest.raises(ValueError, match="tau: got"):
        drsn_ops.soft_threshold(x, numpy.float32(-1))


OPERATORS = torch.ops.drsn_ops
RAW = [
    (
        lambda: OPERATORS.soft_threshold(x, torch.ones(5), 0.0),
        r"tau: got shape \(5,\), expected one that broadcasts to x, \(2, 3, 4\)",
    ),
    (lambda: OPERATORS.soft_threshold(x, torch.ones(4).double(), 0.0), "tau: got float64, expected float32"),
    (lambda: OPERATORS.soft_threshold(x.int(), None, 0.5), "x: got int32, expected float16"),
    (
        lambda: OPERATORS.soft_threshold_(x.transpose(0, 1), None, 0.5, False),
        "x: got strided memory, expected contiguous",
    ),
    (
        lambda: OPERATORS.soft_threshold_backward(
            x, torch.zeros(2, 1, dtype=torch.uint8), [], None, False, True
        ),
        r"mask: got uint8 of shape \(2, 1\) on the CPU, expected uint8 of shape \(2, 3\)",
    ),
    (lambda: OPERATORS.abs_mean(x[0, 0], False), r"x: got shape \(4,\), expected"),
    (lambda: OPERATORS.abs_mean(x[None, None, None], False), r"x: got shape \(1, 1, 1, 2, 3, 4\), expected"),
    (
        lambda: OPERATORS.shrink(x, torch.ones(3, 3), None, False),
        r"alpha: got float32 of shape \(3, 3\) .*expected float32 of shape \(2 or 1, 3 or 1\)",
    ),
    (
        lambda: OPERATORS.shrink(x, torch.ones(2, 3), x[:1], False),
        r"residual: got float32 of shape \(1, 3, 4\)",
    ),
]


@pytest.mark.parametrize("call, message", RAW, ids=[message for _, message in RAW])
def test_the_registered_operators_check_what_would_crash_them(call, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        call()


TOO_MUCH = torch.ones(1).expand(2**46)
NO_MEMORY = {
    "forward": lambda: drsn_ops.soft_threshold(TOO_MUCH, 0.5),
    "with a mask": lambda: drsn_ops.soft_threshold(TOO_MUCH, torch.ones(1, requires_grad=True)),
    "in a copy": lambda: drsn_ops.abs_mean(TOO_MUCH.view(2, 2, -1)),
    "backward": lambda: OPERATORS.soft_threshold_backward.default(
        TOO_MUCH, torch.ones(1, dtype=torch.uint8).expand(2**44), [], None, False, True
    ),
    "compiled": lambda: torch.compile(drsn_ops.soft_threshold, backend="aot_eager")(TOO_MUCH, 0.5),
}


@pytest.mark.parametrize("call", NO_MEMORY.values(), ids=NO_MEMORY.keys())
def test_no_memory_says_so(call):
    with pytest.raises(
        torch.OutOfMemoryError, match="out of memory: drsn_ops asked PyTorch for a tensor of shape"
    ):
        call()


def test_no_memory_for_a_kernel_says_so():
    def fails(*arguments):
        raise RuntimeError(words)

    operator = copy.copy(OPERATORS.soft_threshold.default)
    operator._op = fails
    words = "drsn_ops: out of memory"  # what CUDA says
    with pytest.raises(torch.OutOfMemoryError, match=words):
        operator(x, None, 0.5)
    words = "drsn_ops: invalid argument"
    with pytest.raises(RuntimeError, match=words) as raised:
        operator(x, None, 0.5)
    assert raised.type is RuntimeError


class OwnError(RuntimeError):
    pass


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("the quota: out of memory"),
        OwnError("out of memory: drsn_ops is over its quota"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_a_dispatch_mode_stays_what_it_is(error):
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            raise error

    with pytest.raises(RuntimeError) as raised, Mode():
        OPERATORS.soft_threshold.default(x, None, 0.5)
    assert raised.value is error
