"""Operators that write where tensors share memory: the right result, or an error like PyTorch's and nothing written."""

import copy
import math

import pytest
import torch
from checks import leaf, make_gate
from torch import nn

import drsn_ops

ops = torch.ops.drsn_ops
OVERLAP = (
    "unsupported operation: some elements of the input tensor and the written-to tensor refer to a single"
)
N, C, L = 4, 4, 6
SIZE = N * C * L


def part(buffer, offset, shape, step=1):
    """Elements of the buffer from ``offset`` on, each ``step`` behind the last."""
    strides = [step * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return buffer.as_strided(shape, strides, offset)


def around(buffer, shape):
    """Elements before x and behind it, and none within."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return buffer.as_strided(shape, [2 * SIZE, *strides[1:]] if shape else [], 1)


# Where a second tensor may lie in a buffer in which x is the elements from SIZE to 2 * SIZE.
APART = {
    "before": lambda buffer, shape: part(buffer, SIZE - math.prod(shape), shape),
    "behind": lambda buffer, shape: part(buffer, 2 * SIZE, shape),
    "around": around,
}
SHARED = {
    "from its start": lambda buffer, shape: part(buffer, SIZE, shape),
    "shifted": lambda buffer, shape: part(buffer, SIZE + 1, shape),
    "to its start": lambda buffer, shape: part(buffer, SIZE + 1 - math.prod(shape), shape),
    "strided": lambda buffer, shape: part(buffer, SIZE, shape, 2),
    "expanded": lambda buffer, shape: part(buffer, SIZE + 2, shape, 0),
}


def gate_with(name=None, value=None):
    torch.manual_seed(1)
    gate = make_gate(C, C, C).float().requires_grad_(False)
    if name is not None:
        layer, kind = name.split(".")
        tensors = gate[int(layer)]._buffers if "running" in kind else gate[int(layer)]._parameters
        tensors[kind] = value
    return gate


def gated(name):
    return lambda x, t: drsn_ops.gated_shrink(x, gate_with(name, t), inplace=True)


IN_PLACE = {
    **{
        f"tau of {shape}": (lambda x, t: drsn_ops.soft_threshold(x, t, inplace=True), shape)
        for shape in ((), (L,), (C, 1), (N, C, 1), (N, C, L))
    },
    **{
        f"alpha of {shape}": (lambda x, t: drsn_ops.shrink(x, t, inplace=True), shape)
        for shape in ((C,), (N, 1), (N, C))
    },
    "residual": (lambda x, t: drsn_ops.shrink(x, 0.5, residual=t, inplace=True), (N, C, L)),
    "residual of a gate": (
        lambda x, t: drsn_ops.gated_shrink(x, gate_with(), residual=t, inplace=True),
        (N, C, L),
    ),
    **{f"gate {name}": (gated(name), (C, C)) for name in ("0.weight", "3.weight")},
    **{
        f"gate {name}": (gated(name), (C,))
        for name in ("0.bias", "1.weight", "1.bias", "3.bias", "1.running_mean", "1.running_var")
    },
}


@pytest.mark.parametrize("place", {**APART, **SHARED})
@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place(device, name, place):
    call, shape = IN_PLACE[name]
    buffer = torch.rand(12 * SIZE, device=device) + 0.1
    x = part(buffer, SIZE, (N, C, L))
    second = {**APART, **SHARED}[place](buffer, shape)
    before, other = buffer.clone(), second.clone()
    wanted = call(x.clone(), other)
    try:
        found = call(x, second)
    except RuntimeError as error:
        assert place in SHARED
        assert "unsupported operation" in str(error) and "memory location" in str(error)
        assert name.split()[-1 if "gate " in name else 0] in str(error).replace("].", ".")
        assert torch.equal(buffer, before)
        return
    torch.testing.assert_close(found, wanted)
    if place in APART:
        assert torch.equal(second, other)
    else:  # the same tensor, or one that is copied before anything is written
        assert "residual" in name or (name, place) == (f"tau of {(N, C, L)}", "from its start")


def test_the_words_are_those_of_pytorch(device):
    x = torch.rand(6, 5000, device=device)
    with pytest.raises(RuntimeError) as ours:
        drsn_ops.soft_threshold(x, x[2], inplace=True)
    with pytest.raises(RuntimeError) as theirs:
        x.sub_(x[0])
    assert str(theirs.value) in str(ours.value)
    assert str(ours.value).startswith("tau: ")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_same_tensor_in_the_same_place(device, layout, dtype):
    start = torch.randn(2, 3, 4, 5, device=device).to(dtype).contiguous(memory_format=layout)
    for function in (
        lambda x, t: drsn_ops.shrink(x, 0.5, residual=t, inplace=True),
        lambda x, t: drsn_ops.soft_threshold(x, t, inplace=True),
    ):
        x = start.clone(memory_format=torch.preserve_format)
        found = function(x, x)
        assert found is x
        assert torch.equal(x, function(start.clone(memory_format=torch.preserve_format), start))


def test_a_residual_of_another_type_in_the_memory_of_x(device):
    buffer = torch.rand(SIZE, device=device)
    residual = buffer[: SIZE // 2].view(1, 2, -1)
    x = buffer.view(torch.bfloat16)[: SIZE // 2].view(1, 2, -1)
    gate = make_gate(2, 3, 2, "layer").float().to(device).requires_grad_(False)
    for function in (
        lambda x, r: drsn_ops.shrink(x, 0.5, residual=r, inplace=True),
        lambda x, r: drsn_ops.gated_shrink(x, gate, residual=r, inplace=True),
    ):
        buffer.copy_(torch.rand(SIZE))
        wanted = function(x.clone(), residual.clone())
        torch.testing.assert_close(function(x, residual), wanted)


@pytest.mark.parametrize("module", [drsn_ops, drsn_ops.reference])
@pytest.mark.parametrize("step", [1, 2])
def test_the_threshold_is_that_of_the_alpha_that_came(device, module, step):
    """Also where alpha has been overwritten with x: a strided x is copied into, so that nothing is refused."""
    x = (torch.rand(N, C, step * L, device=device) + 0.1)[..., ::step]
    wanted = module.shrink(x.clone(), x[..., 0].clone(), return_threshold=True)
    found = module.shrink(x, x[..., 0], inplace=True, return_threshold=True)
    torch.testing.assert_close(found, wanted)


def test_a_gradient_through_memory_that_was_shared(device):
    """What a backward pass keeps is not what came to lie there."""
    start = leaf(torch.rand(N, C, L, device=device))
    x = start * 1
    with pytest.raises(RuntimeError, match=OVERLAP):
        drsn_ops.shrink(x, x[..., 0], inplace=True)
    x.retain_grad()
    drsn_ops.shrink(x, x[..., 0]).sum().backward()
    assert x.grad is not None


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_that_are_written_share_no_memory(device, name):
    """With one another, with x or with what is read; statistics that lie strided beside each other share none."""
    x = torch.rand(N, C, L, device=device)
    gate = make_gate(C, C, C).float().to(device).requires_grad_(False)
    norm = nn.BatchNorm1d(C, device=device).requires_grad_(False)
    read = gate[0].weight, gate[3].bias
    calls = (
        (gate[1], read, lambda: drsn_ops.gated_shrink(x, gate)),
        (norm, read, lambda: drsn_ops.batch_norm_shrink(x, norm, gate)),
        (gate[1], read, lambda: drsn_ops.batch_norm_shrink(x, norm, gate)),
        (norm, tuple(norm.parameters()), lambda: drsn_ops.batch_norm_relu(x, norm)),
    )
    for module, read, call in calls:
        kept = dict(module._buffers)
        others = [x, *read, *(kept[other] for other in STATISTICS if other != name)]
        for other in others:
            if name == "num_batches_tracked":
                if other.numel() * other.element_size() < 8:
                    continue
                module._buffers[name] = other.flatten()[:2].view(torch.int64)[0]
            else:
                memory = other.flatten() if other.dim() else other.view(1).view(torch.float32)
                if memory.numel() < C:
                    continue
                module._buffers[name] = memory[:C]
            before = [t.clone() for t in (x, *gate.state_dict().values(), *norm.state_dict().values())]
            with pytest.raises(RuntimeError, match=f"^[a-z_]+.*: {OVERLAP}"):
                call()
            after = [x, *gate.state_dict().values(), *norm.state_dict().values()]
            assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
            module._buffers[name] = kept[name]
        module._buffers.update(kept)

    if name != "num_batches_tracked":
        columns = torch.rand(C, 2, device=device)
        twin = copy.deepcopy(gate)
        for column, buffer in enumerate(("running_mean", "running_var")):
            twin[1]._buffers[buffer] = columns[:, column].clone()
            gate[1]._buffers[buffer] = columns[:, column]
        torch.testing.assert_close(drsn_ops.gated_shrink(x, gate), drsn_ops.gated_shrink(x, twin))
        torch.testing.assert_close(columns[:, 0], twin[1].running_mean)
        torch.testing.assert_close(columns[:, 1], twin[1].running_var)


def test_statistics_whose_elements_share_memory_are_refused(device):
    x = torch.rand(N, C, L, device=device)
    gate = make_gate(C, C, C).float().to(device).requires_grad_(False)
    gate[1]._buffers["running_var"] = torch.ones(1, device=device).expand(C)
    before = gate[1].running_mean.clone()
    with pytest.raises(RuntimeError, match="running_var.*more than one element of the written-to tensor"):
        drsn_ops.gated_shrink(x, gate, inplace=True)
    assert torch.equal(gate[1].running_mean, before)
