"""How the update is carried over a group's tensors: whole, in cache-sized pieces, or compiled.

All paths call the one body, `update.adam_update`, and differ only in what they hand it:

- one tensor at a time (`foreach=False`, `capturable`, `differentiable`);
- pieces (the default): large tensors are walked in slices that stay in the processor's cache through all the passes of
  the body; small ones go to torch's kernel as lists where it serves, or else are gathered into one such piece and
  scattered again, so that the cost of a call to torch is paid per piece and not per tensor. Scratch memory is a few
  pieces, whatever the size of the model;
- compiled (`compile=True`): the body becomes one loop over a tensor; small tensors are taken together as above.
  Row-wise proximal maps and tensors with gaps in memory take the uncompiled body.
"""

import functools
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from .compiled import update_compiled
from .pieces import Bucket, Row, pieces, scatter
from .rounding import moment_dtype, noise_for
from .update import Betas, Form, Scalars, adam_update, decay_factor, ratio_bound, rounded_betas, step_scalars

_PLAIN = {torch.nn.Parameter, Tensor}


def second_key(form: Form) -> str:
    """The state's name of the second moment."""
    return "exp_avg_sq_root" if form.scale_free else "exp_avg_sq"


def state_keys(form: Form) -> list[str]:
    """What the state of a parameter must hold: "step", and what a [`Row`] has beside parameter and gradient."""
    keys = ["step", "exp_avg", second_key(form)]
    if form.amsgrad:
        keys.append(f"max_{second_key(form)}")
    if form.proximal is not None and form.proximal.needs_start:
        keys.append("start")
    return keys


def like_param(param: Tensor, values: Tensor | None) -> Tensor:
    """`values` (None: the parameter's own) as a new tensor laid out, sharded and typed like the parameter's moments."""
    new: Any = torch.empty_like(
        param, dtype=moment_dtype(param), memory_format=torch.preserve_format, requires_grad=False
    )
    if values is not None and _is_dtensor(new):
        from torch.distributed.tensor import distribute_tensor

        values = distribute_tensor(values.to(new.device), new.device_mesh, new.placements)
    return new.copy_(param if values is None else values)


def step_group(
    params: list[Tensor],
    grads: list[Tensor],
    state: dict[str, list[Tensor]],
    group: dict[str, Any],
    form: Form,
    generators: dict[torch.device, torch.Generator] | None,
) -> None:
    """Do one step of the parameters of one group, all of which have gradients.

    Args:
        params: the parameters.
        grads: their gradients.
        state: the state of each, a list for each of [`state_keys`].
        group: the group's options.
        form: which equations.
        generators: random bits for stochastic rounding, by device; None rounds to nearest.

    Raises:
        ValueError: a gradient or a state of another size than its parameter; nothing of the group was changed then.
    """
    _check_sizes(params, {"grad": grads, **state})
    if any(map(Tensor.is_neg, grads)):  # from behind a complex conjugate; torch's kernel refuses them
        grads = [g.resolve_neg() for g in grads]
    nothing: list[Any] = [None] * len(params)
    second = second_key(form)
    bucket = Bucket(
        params,
        grads,
        state["exp_avg"],
        state[second],
        state.get(f"max_{second}", nothing),
        state.get("start", nothing),
    )
    if not _PLAIN.issuperset(map(type, params)) or any(d.is_complex for d in set(map(attrgetter("dtype"), params))):
        bucket = Bucket(*map(list, zip(*(_plain_row(row, form) for row in bucket.rows()), strict=True)))

    lr = group["lr"]
    if isinstance(lr, Tensor):
        lr = lr.reshape(()) if group["capturable"] or group["differentiable"] else lr.item()
    numbers = functools.partial(_scalars, group=group, form=form, lr=lr)
    steps = state["step"]
    if group["capturable"]:
        torch._foreach_add_(steps, 1)
        for row, step in zip(bucket.rows(), steps, strict=True):
            adam_update(*row, None, numbers(step.to(row.param.device, torch.float64), row.exp_avg.dtype), form)
        return

    counts = [count + 1 for count in map(Tensor.item, steps)]
    one_by_one = group["differentiable"] or group["foreach"] is False or _row_wise(form)
    for count, part in bucket.by_kind(counts):
        scalars = numbers(count, part.exp_avgs[0].dtype)
        if one_by_one:
            for row in part.rows():
                adam_update(*row, noise_for(row.param, generators), scalars, form)
        elif group["compile"] and lr != 0:  # the identity at lr = 0 is a branch of the body on a number
            update_compiled(part, generators, scalars, form)
        else:
            for piece, flat in pieces(part, scalars, form, whole=False):
                adam_update(*piece, noise_for(piece.param, generators), scalars, form)
                scatter(piece, flat)
    # A number would be wrapped into a tensor for each of them; with alpha, this one is not taken for a number.
    torch._foreach_add_(steps, torch.tensor(1.0), alpha=1)


def _check_sizes(params: list[Tensor], beside: dict[str, list[Tensor]]) -> None:
    """Refuse what torch's kernel would read and write past the end of."""
    sizes = list(map(Tensor.numel, params))
    for name, column in beside.items():
        if name != "step" and sizes != list(map(Tensor.numel, column)):
            at = next(i for i, t in enumerate(column) if t.numel() != sizes[i])
            raise ValueError(
                f"{name} has shape {tuple(column[at].shape)} for a parameter of shape {tuple(params[at].shape)}: load "
                "the state of this model, or make a new optimizer where its parameters were replaced"
            )


def _row_wise(form: Form) -> bool:
    return form.proximal is not None and not form.proximal.elementwise


def _scalars(step: float | Tensor, dtype: torch.dtype, *, group: dict[str, Any], form: Form, lr: Any) -> Scalars:
    beta1, beta2 = group["betas"]
    if isinstance(beta1, Tensor):
        betas = Betas(beta1, beta2, beta2**0.5, ratio_bound(beta1.item(), beta2.item()))
    else:
        betas = rounded_betas(beta1, beta2, dtype, form.scale_free)
    decay = decay_factor(group["decay_schedule"] if form.rule != "coupled" else "lr", lr, float(group["initial_lr"]))
    return step_scalars(betas, step, lr, group["eps"], group["weight_decay"] * decay, form)


# --- DTensors and complex numbers -----------------------------------------------------------------------------------


def _is_dtensor(tensor: Any) -> bool:
    return hasattr(tensor, "_local_tensor") and hasattr(tensor, "placements")


def _plain_row(row: Row, form: Form) -> Row:
    """Local shards of DTensors, and complex numbers as pairs of real ones."""
    if _is_dtensor(row.param):
        spread = row.param.placements  # type: ignore[attr-defined]
        if _row_wise(form) and any(p.is_shard() and p.dim != 0 for p in spread):
            assert form.proximal is not None
            raise ValueError(
                f"proximal={form.proximal.name!r} works on whole rows, and a parameter is sharded by {spread}: shard "
                "along dimension 0, or use an elementwise proximal map"
            )
        row = row.map(lambda t: _local(t, spread))
    if not row.param.is_complex():
        return row
    return row._replace(grad=row.grad.resolve_conj()).map(torch.view_as_real)


def _local(tensor: Any, placements: Any) -> Tensor:
    if not _is_dtensor(tensor):
        return tensor
    if tensor.placements != placements:  # a gradient that is still to be reduced
        tensor = tensor.redistribute(placements=placements)
    return tensor.to_local()
