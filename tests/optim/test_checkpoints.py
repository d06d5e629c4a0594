"""State dicts: ours, torch's, old ones; pickle, deepcopy, weights_only, torch.distributed.checkpoint."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.distributed.checkpoint as dcp

from hf_proxadam.optim import AdamL2, ProxAdam, ScaleFreeAdamW, to_torch_state_dict

from .cases import Case, all_cases, registered_cases, set_lr


def run(optimizer: torch.optim.Optimizer, params: list[torch.Tensor], steps: range) -> None:
    for t in steps:
        generator = torch.Generator().manual_seed(t)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        set_lr(optimizer, 0.01 / (1 + t))
        optimizer.step()


def new_params(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(99)
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in [(3, 4), (5,), ()]]


def through_torch_save(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_equal(ours: list[torch.Tensor], others: list[torch.Tensor]) -> None:
    for a, b in zip(ours, others, strict=True):
        assert torch.equal(a.detach(), b.detach())


@all_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_resumed_run_is_bit_equal(case: Case, dtype: torch.dtype, rounding: str) -> None:
    whole = new_params(dtype)
    optimizer = case.make(whole, lr=0.01, rounding=rounding)
    run(optimizer, whole, range(8))

    params = new_params(dtype)
    first = case.make(params, lr=0.01, rounding=rounding)
    run(first, params, range(4))
    saved = through_torch_save(first.state_dict())
    second = case.make(params, lr=0.01, rounding=rounding)
    second.load_state_dict(saved)
    for p in params:
        for key, value in second.state[p].items():
            assert value.dtype == (torch.float32), key
    run(second, params, range(4, 8))
    assert_equal(whole, params)


@registered_cases
@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
def test_deepcopy_and_pickle(case: Case, way: Callable) -> None:
    params = new_params()
    optimizer = case.make(params, lr=0.01)
    run(optimizer, params, range(3))
    optimizer.remark = "kept by deepcopy" if way is copy.deepcopy else None
    other_params, other = way((params, optimizer))
    run(optimizer, params, range(3, 6))
    run(other, other_params, range(3, 6))
    assert_equal(params, other_params)


def test_torch_checkpoints_go_on_exactly() -> None:
    """torch's AdamW for 20 steps, then ours: what the reference does, to float32's precision; and the other way."""
    for cls, peer in ((ScaleFreeAdamW, torch.optim.AdamW), (AdamL2, torch.optim.Adam)):
        options = {"lr": 0.01, "eps": 1e-8, "weight_decay": 0.1}
        theirs, ours, back = new_params(), new_params(), new_params()
        a = peer(theirs, **options)
        run(a, theirs, range(20))
        for p, q, r in zip(theirs, ours, back, strict=True):
            q.data.copy_(p)
            r.data.copy_(p)
        b = cls(ours, **options)
        b.load_state_dict(through_torch_save(a.state_dict()))
        run(a, theirs, range(20, 40))
        run(b, ours, range(20, 30))
        for q, r in zip(ours, back, strict=True):
            r.data.copy_(q)
        c = peer(back, **options)
        c.load_state_dict(through_torch_save(b.state_dict()))
        run(c, back, range(30, 40))
        for p, r in zip(theirs, back, strict=True):
            torch.testing.assert_close(p, r, rtol=2e-6, atol=2e-7)


def test_scale_free_takes_torch_and_gives_it_back() -> None:
    theirs = new_params()
    a = torch.optim.AdamW(theirs, lr=0.01, amsgrad=True)
    run(a, theirs, range(5))
    ours = [torch.nn.Parameter(p.detach().clone()) for p in theirs]
    b = ScaleFreeAdamW(ours, lr=0.01, amsgrad=True)
    b.load_state_dict(a.state_dict())
    assert b.param_groups[0]["eps"] == 1e-8  # a group's options are the checkpoint's, as in torch
    for group in b.param_groups:
        group["eps"] = 0.0
    run(b, ours, range(5, 6))
    state = b.state[ours[0]]
    assert "exp_avg_sq" not in state
    converted = to_torch_state_dict(b.state_dict())
    torch.testing.assert_close(converted["state"][0]["exp_avg_sq"], state["exp_avg_sq_root"] ** 2)
    torch.testing.assert_close(converted["state"][0]["max_exp_avg_sq"], state["max_exp_avg_sq_root"] ** 2)
    assert b.state_dict()["state"][0].keys() >= {"exp_avg_sq_root"}, "the conversion must not change the original"
    c = torch.optim.AdamW([torch.nn.Parameter(p.detach().clone()) for p in ours], amsgrad=True)
    c.load_state_dict(converted)
    run(c, c.param_groups[0]["params"], range(6, 7))


def as_saved_by(cls: type[torch.optim.Optimizer], **options: object) -> dict:
    params = new_params()
    optimizer = cls(params, **options)
    run(optimizer, params, range(1))
    return through_torch_save(optimizer.state_dict())


@pytest.mark.parametrize(
    ("saved", "cls", "options", "told"),
    [
        ((torch.optim.AdamW, {}), ScaleFreeAdamW, {}, "eps=1e-08 replaces eps=0.0"),
        ((ProxAdam, {}), ProxAdam, {"eps": 0.0}, "eps=1e-08 replaces eps=0.0"),
        ((ProxAdam, {}), ProxAdam, {"proximal": "l1"}, "proximal='l2' replaces proximal='l1'"),
        ((ProxAdam, {"amsgrad": True}), ProxAdam, {}, "amsgrad=True replaces amsgrad=False"),
        ((ScaleFreeAdamW, {"direction": "atan2"}), ScaleFreeAdamW, {}, "direction='atan2' replaces direction='ratio'"),
        ((torch.optim.AdamW, {}), ScaleFreeAdamW, {"direction": "atan2"}, "eps=1e-08 is left out"),
    ],
)
def test_another_update_than_the_constructors_is_told(saved, cls, options, told) -> None:
    params = new_params()
    optimizer = cls(params, **options)
    with pytest.warns(UserWarning, match=f"^{cls.__name__}: of the loaded state dict, {told}"):
        optimizer.load_state_dict(as_saved_by(saved[0], **saved[1]))
    run(optimizer, params, range(1, 2))
    assert optimizer.state[params[0]]["step"] == 2
    if told.endswith("left out"):
        assert (optimizer.param_groups[0]["direction"], optimizer.param_groups[0]["eps"]) == ("atan2", 0.0)


def test_what_schedules_change_is_no_other_update(recwarn) -> None:
    state = as_saved_by(ProxAdam, lr=0.1, betas=(0.5, 0.999), weight_decay=0.3)
    optimizer = ProxAdam(new_params())
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.999)
    assert not recwarn.list


@pytest.mark.parametrize("way", ["foreach", "fused"])
def test_the_execution_is_the_optimizers_own(way: str) -> None:
    state = as_saved_by(torch.optim.AdamW, lr=0.01, **{way: True})
    params = new_params()
    optimizer = ProxAdam(params, foreach=False)
    optimizer.load_state_dict(state)
    assert (optimizer.param_groups[0]["foreach"], optimizer.param_groups[0]["fused"]) == (False, None)
    run(optimizer, params, range(1, 2))
    compiled = ProxAdam(new_params(), compile=True)
    compiled.load_state_dict(state)
    assert compiled.param_groups[0]["compile"]
    assert not compiled.param_groups[0][way]


def test_old_state_dicts_and_numbers_as_steps_load() -> None:
    params = new_params()
    optimizer = ProxAdam(params, lr=0.01, decay_schedule="relative", rounding="stochastic", seed=3)
    run(optimizer, params, range(3))
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        for key in ("rounding", "seed", "compile", "initial_lr", "decay_schedule", "proximal"):
            del group[key]
    for entry in state["state"].values():
        entry["step"] = int(entry["step"])
    other = ProxAdam(params, lr=0.02, decay_schedule="relative", rounding="stochastic", seed=3)
    other.load_state_dict(state)
    group = other.param_groups[0]
    assert (group["decay_schedule"], group["seed"], group["initial_lr"], group["proximal"]) == (
        "relative",
        3,
        0.02,
        "l2",
    )
    run(other, params, range(3, 4))
    assert other.state[params[0]]["step"] == 4

    bare = ProxAdam.__new__(ProxAdam)
    bare.__setstate__({"defaults": optimizer.defaults, "state": optimizer.state, "param_groups": state["param_groups"]})
    assert bare.param_groups[0]["rounding"] == "stochastic"


def test_initial_lr_is_per_group_and_survives() -> None:
    a, b = new_params()[:2]
    groups = [{"params": [a], "lr": 0.5}, {"params": [b]}]
    optimizer = ProxAdam(groups, lr=0.1, decay_schedule="relative")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: (t + 1) / 10)
    assert [g["initial_lr"] for g in optimizer.param_groups] == [0.5, 0.1]
    assert scheduler.base_lrs == [0.5, 0.1]
    other = ProxAdam([{"params": [a], "lr": 0.3}, {"params": [b]}], lr=0.7, decay_schedule="relative")
    other.load_state_dict(through_torch_save(optimizer.state_dict()))
    assert [g["initial_lr"] for g in other.param_groups] == [0.5, 0.1]


def test_distributed_checkpoint(tmp_path) -> None:
    params = new_params(torch.bfloat16)
    optimizer = ProxAdam(params, lr=0.01)
    run(optimizer, params, range(3))
    dcp.save({"optimizer": optimizer.state_dict()}, checkpoint_id=tmp_path, no_dist=True)
    other = ProxAdam(params, lr=0.01)
    run(other, params, range(1))
    target = {"optimizer": other.state_dict()}
    dcp.load(target, checkpoint_id=tmp_path, no_dist=True)
    other.load_state_dict(target["optimizer"])
    for p in params:
        for key, value in optimizer.state[p].items():
            assert torch.equal(other.state[p][key], value), key
            assert other.state[p][key].dtype == torch.float32


def test_a_refused_state_dict_changes_nothing() -> None:
    params = new_params()
    optimizer = ProxAdam(params, lr=0.01)
    run(optimizer, params, range(2))
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0]["weight_decay"] = -1.0
    with pytest.raises(ValueError, match="Invalid weight_decay value: -1"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["weight_decay"] == 0.01
    two = ProxAdam([{"params": params[:1]}, {"params": params[1:]}])
    with pytest.raises(ValueError, match="different number of parameter groups: 1, and this optimizer has 2"):
        two.load_state_dict(optimizer.state_dict())
    state["param_groups"][0] = {
        **state["param_groups"][0],
        "weight_decay": 0.01,
        "proximal": "l2_start",
        "start": "current",
    }
    optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match="has no start"):
        run(optimizer, params, range(1))
