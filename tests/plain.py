"""Every operator in plain PyTorch: the decompositions, and what is not in their table by way of it or of autograd."""

from types import SimpleNamespace

import torch
from torch import Tensor

from drsn_ops.ops import autograd, batch_norm_autograd, gated_autograd
from drsn_ops.ops.decomposition import decompositions
from drsn_ops.ops.gate import BATCH, Gate, Norm, update_from_state
from drsn_ops.ops.masks import Layout, Planes
from drsn_ops.reference import per_row

ops = torch.ops.drsn_ops
forward = {operator._opname: function for operator, function in decompositions().items()}


def soft_threshold_(x, tau, value, with_mask):
    if with_mask:
        y, mask = forward["soft_threshold_with_mask"](x, tau, value)
    else:
        y, mask = forward["soft_threshold"](x, tau, value), torch.empty(0, (x.numel() + 7) // 8)
    x.copy_(y)
    return mask.to(torch.uint8)


def shrink_(x, alpha, residual, per_sample, with_mask):
    y, mean, mask = forward["shrink_with_mask"](x, alpha, residual, per_sample)
    x.copy_(y)
    return mean, mask if with_mask else mask.new_empty(0)


def gated_shrink_(x, residual, *rest):
    gate, (per_sample, inplace, with_mask) = Gate(*rest[:-3]), rest[-3:]
    y, mean, state, mask = forward["gated_shrink_with_mask"](x, residual, *gate.functional, per_sample)
    if inplace:
        x.copy_(y)
        y = y.new_empty(0)
    if gate.kind == BATCH:
        gated_autograd._update_gate(gate, state, x.shape[0])
    return y, mean, state, mask if with_mask else mask.new_empty(0)


def batch_norm_shrink_(z, residual, *rest):
    norm, gate, per_sample = Norm(*rest[:8]), Gate(*rest[8:-1]), rest[-1]
    found = forward["batch_norm_shrink"](z, residual, *norm.functional, *gate.functional, per_sample)
    _, _, state, input_state = found
    if norm.kind == BATCH:
        update_from_state(norm, input_state, z.numel() // z.shape[1])
    if gate.kind == BATCH:
        gated_autograd._update_gate(gate, state, z.shape[0])
    return found


def updating(name):
    """The operator of this name that updates running statistics."""

    def function(x, *rest):
        norm, rest = Norm(*rest[:8]), rest[8:]
        found = forward[name](x, *norm.functional, *rest)
        if norm.kind == BATCH:
            update_from_state(norm, found[2], x.numel() // x.shape[1])
        return found

    return function


batch_norm_relu_ = updating("batch_norm_relu")
batch_norm_relu_conv_ = updating("batch_norm_relu_conv")


def leaves(*tensors):
    """With gradients on, a Function's backward takes the plain formulas."""
    return [t if t is None else t.detach().requires_grad_() for t in tensors]


def soft_threshold_backward(grad, mask, tau_shape, tau_dtype, channels_last, need_x):
    context = SimpleNamespace(
        saved_tensors=(mask,),
        needs_input_grad=(need_x, tau_dtype is not None),
        channels_last=channels_last,
        tau=(tau_shape, tau_dtype),
    )
    return autograd.SoftThreshold.backward(context, *leaves(grad))[:2]


def complex_soft_threshold_backward(grad, x, tau, value, need_x, need_tau):
    context = SimpleNamespace(saved_tensors=leaves(x, tau), needs_input_grad=(need_x, need_tau), value=value)
    return autograd.ComplexSoftThreshold.backward(context, grad)[:2]


def abs_mean_backward(grad, mask, shape, dtype, channels_last):
    planes = Planes.read(mask, Layout(shape, dtype, channels_last))
    return planes.along_sign(per_row(grad, planes.nonzero)).to(dtype)


def shrink_backward(grad, grad_mean, mask, alpha, mean, per_sample, channels_last, need_x, need_alpha):
    context = SimpleNamespace(
        saved_tensors=(mask, alpha, mean),
        layout=Layout(grad.shape, grad.dtype, channels_last),
        per_sample=per_sample,
        needs_input_grad=(need_x, need_alpha, False),
    )
    return autograd.Shrink.backward(context, grad, grad_mean)[:2]


def gated_shrink_backward(grad, grad_mean, mask, mean, state, *rest):
    *parameters, kind, eps, per_sample, channels_last, need_x, need_gate = rest
    context = SimpleNamespace(
        saved_tensors=(mask, *leaves(mean), state, *leaves(*parameters)),
        layout=Layout(grad.shape, grad.dtype, channels_last),
        options=(kind, eps, per_sample, channels_last),
        needs_input_grad=(need_x, False, *[need_gate] * 6),
    )
    dx, _, *found = gated_autograd.GatedShrink.backward(context, grad, grad_mean)[:8]
    return dx, *found


def batch_norm_shrink_backward(grad, z, weight, bias, input_norm, mean, state, input_state, *rest):
    *parameters, kind, eps, per_sample, need_z, need_parameters = rest
    context = SimpleNamespace(
        saved_tensors=(*leaves(z), mean, state, input_state, *leaves(weight, bias, *parameters)),
        input_kind=input_norm,
        input_eps=1e-5,
        kind=kind,
        eps=eps,
        per_sample=per_sample,
    )
    needs = (need_z, False, *[need_parameters] * 8)
    dz, _, *found = gated_autograd.BatchNormShrink.gradients(context, grad, needs)
    return dz, *found


def batch_norm_relu_backward(
    grad, grad_shortcut, x, weight, bias, norm, state, stride, *needs, conv=()
):  # needs: of x, of BatchNorm's parameters, of the convolution's
    channels = None if grad_shortcut is None else grad_shortcut.shape[1]
    context = SimpleNamespace(
        saved_tensors=(*leaves(x, weight, bias), state, *leaves(*conv)),
        options=(norm, 1e-5, stride, channels),
    )
    need_x, need_norm, *need_conv = needs
    wanted = need_x, need_norm, need_norm, *need_conv * len(conv)
    dx, *found = batch_norm_autograd.BatchNormRelu.gradients(context, wanted, grad, grad_shortcut)
    return dx, *found


def batch_norm_relu_conv_backward(grad, grad_shortcut, x, weight, bias, norm, state, conv_weight, *rest):
    conv = conv_weight, conv_weight.new_zeros(conv_weight.shape[0])
    return batch_norm_relu_backward(grad, grad_shortcut, x, weight, bias, norm, state, *rest, conv=conv)


def plain(operator, *arguments):
    """What the operator returns; a tensor that it would leave empty may be None."""
    name = operator._schema.name.removeprefix("drsn_ops::")
    function = forward.get(name) or globals()[name]
    result = function(*arguments)
    return (
        tuple(t.detach() if isinstance(t, Tensor) else t for t in result)
        if isinstance(result, tuple)
        else result
    )
