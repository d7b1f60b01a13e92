"""Every function in what PyTorch puts around a call: checkpoints, hooks, modes, tracers, the compiler, the profiler."""

import pytest
import torch
from checks import CALLS, make_calls, operators_of
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.parametrize("call", CALLS)


def function_and_leaves(call, device):
    """The function and the tensors that it is called with and differentiated by."""
    function, tensors = make_calls(device)[call]
    return function, tuple(t.clone().requires_grad_() for t in tensors)


def gradients(y, leaves):
    return torch.autograd.grad(y.sin().sum(), leaves)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(call, device, use_reentrant):
    function, leaves = function_and_leaves(call, device)
    wanted = gradients(function(*leaves), leaves)
    checkpoint(function, *leaves, use_reentrant=use_reentrant).sin().sum().backward()
    torch.testing.assert_close(tuple(t.grad for t in leaves), wanted, rtol=0, atol=0)


def test_saved_tensor_hooks(call, device):
    function, leaves = function_and_leaves(call, device)
    wanted = gradients(function(*leaves), leaves)
    packed = []

    def pack(t):
        packed.append(t.device)
        return t.cpu().clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t.to(device)):
        y = function(*leaves)
    assert packed
    torch.testing.assert_close(gradients(y, leaves), wanted, rtol=0, atol=0)
    with torch.autograd.graph.save_on_cpu():
        y = function(*leaves)
    torch.testing.assert_close(gradients(y, leaves), wanted, rtol=0, atol=0)


def test_inference_mode_and_no_grad(call, device):
    function, leaves = function_and_leaves(call, device)
    expected = function(*leaves).detach()
    with torch.no_grad():
        y = function(*leaves)
    assert not y.requires_grad
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    with torch.inference_mode():
        torch.testing.assert_close(function(*leaves), expected, rtol=0, atol=0)


def test_deterministic_algorithms(call, device):
    function, leaves = function_and_leaves(call, device)
    expected = function(*leaves)
    wanted = gradients(expected, leaves)
    torch.use_deterministic_algorithms(True)
    try:
        y = function(*leaves)
        torch.testing.assert_close(y, expected, rtol=0, atol=0)
        torch.testing.assert_close(gradients(y, leaves), wanted, rtol=0, atol=0)
    finally:
        torch.use_deterministic_algorithms(False)


def test_fake_tensors_have_the_real_ones_strides(call, device):
    function, tensors = make_calls(device)[call]
    real = function(*tensors)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = function(*(mode.from_tensor(t) for t in tensors))
    assert (fake.shape, fake.stride(), fake.dtype, fake.device) == (
        real.shape,
        real.stride(),
        real.dtype,
        real.device,
    )


def test_modes_and_profiler_see_the_operators_by_name(call, device):
    function, leaves = function_and_leaves(call, device)
    ours = {f"drsn_ops::{name}" for name in operators_of(lambda: gradients(function(*leaves), leaves))}
    assert len(ours) >= 2
    with torch.profiler.profile() as profile:
        gradients(function(*leaves), leaves)
    assert ours <= {event.key for event in profile.key_averages()}


def test_make_fx_of_a_training_step(call, device):
    function, leaves = function_and_leaves(call, device)

    def step(*tensors):
        tensors = tuple(t.detach().requires_grad_() for t in tensors)
        y = function(*tensors)
        return y.detach(), *gradients(y, tensors)

    tensors = tuple(t.detach() for t in leaves)
    for mode in ("real", "fake", "symbolic"):
        graph = make_fx(step, tracing_mode=mode, _allow_non_fake_inputs=True)(*tensors)
        names = {str(node.target) for node in graph.graph.nodes}
        assert any(name.startswith("drsn_ops.") for name in names)
        torch.testing.assert_close(graph(*tensors), step(*tensors))


def of_batch(call, samples, device):
    function, leaves = function_and_leaves(call, device)
    repeated = [t.detach().repeat(samples, *[1] * (t.dim() - 1)) if t.shape[0] == 3 else t for t in leaves]
    return function, tuple(t.detach().requires_grad_() for t in repeated)


def test_compile_without_break_or_recompilation(call, device, no_caches):
    counter = CompileCounterWithBackend("aot_eager")
    function, _ = function_and_leaves(call, device)
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for samples in (1, 2, 3, 5):
        _, leaves = of_batch(call, samples, device)
        expected, y = function(*leaves), compiled(*leaves)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(gradients(y, leaves), gradients(expected, leaves))
    # the first batch is compiled as it is, the second with a batch of any size
    assert counter.frame_count <= 2
