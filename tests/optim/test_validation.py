"""Every wrong option is told with its value and what is allowed, before anything is changed."""

import warnings
from typing import Any

import pytest
import torch

from hf_proxadam.optim import AdamL2, ProxAdam, ScaleFreeAdamW

from .cases import REGISTERED, Case, registered_cases

NAN, INF = float("nan"), float("inf")
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"lr": -1e-3}, "Invalid learning rate: -0.001"),
    ({"lr": NAN}, "Invalid learning rate: nan"),
    ({"lr": "0.1"}, "Invalid learning rate: '0.1'"),
    ({"lr": True}, "Invalid learning rate: True"),
    ({"lr": torch.tensor([0.1, 0.2])}, "Tensor lr must be 1-element"),
    ({"lr": torch.tensor(-1.0)}, "Invalid learning rate: -1"),
    ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
    ({"betas": (0.9, -0.1)}, "Invalid beta parameter at index 1: -0.1"),
    ({"betas": 0.9}, "Invalid betas value: 0.9"),
    ({"betas": (0.9, 0.99, 0.999)}, "Invalid betas value"),
    ({"eps": -1e-8}, "Invalid epsilon value: -1e-08"),
    ({"eps": INF}, "Invalid epsilon value: inf"),
    ({"weight_decay": -1}, "Invalid weight_decay value: -1"),
    ({"weight_decay": None}, "Invalid weight_decay value: None"),
    ({"amsgrad": "False"}, "Invalid amsgrad value: 'False' .True or False"),
    ({"maximize": 1}, "Invalid maximize value: 1"),
    ({"foreach": 0}, "Invalid foreach value: 0"),
    ({"decay_schedule": "cosine"}, "Invalid decay_schedule value: 'cosine' .one of 'lr', 'relative', 'lr_squared'"),
    ({"rounding": "up"}, "Invalid rounding value: 'up'"),
    ({"seed": -1}, "Invalid seed value: -1"),
    ({"seed": 1.0}, "Invalid seed value: 1.0"),
    ({"fused": True}, "fused=True does not go with this version"),
    ({"fused": True, "differentiable": True}, "fused=True does not go with differentiable=True"),
    ({"foreach": True, "compile": True}, "foreach=True and compile=True can't go together"),
    ({"foreach": True, "differentiable": True}, "foreach=True and differentiable=True can't go together"),
    (
        {"lr": torch.tensor(0.1), "foreach": True},
        "lr as a Tensor is not supported for capturable=False and foreach=True",
    ),
    ({"betas": (torch.tensor(0.9), 0.99)}, "betas must be either both floats or both Tensors"),
    (
        {"betas": (torch.tensor(0.9), torch.tensor(0.99)), "foreach": True},
        r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True",
    ),
    ({"betas": (torch.ones(2), torch.ones(2))}, r"Tensor betas\[0\] must be 1-element"),
    ({"betas": (torch.tensor(0.9), torch.tensor(1.0))}, "Invalid beta parameter at index 1: 1.0"),
    ({"weight_decay": torch.tensor(-1.0)}, "Invalid weight_decay value: -1.0"),
    ({"capturable": True, "compile": True}, "compile=True and capturable=True can't go together"),
    ({"rounding": "stochastic", "differentiable": True}, "rounding='stochastic' does not go with"),
    ({"decay_schedule": "relative", "lr": 0.0}, "divides by the initial learning rate, which is 0"),
    ({"decay_schedule": "lr_squared", "lr": torch.tensor(0.0)}, "divides by the initial learning rate, which is 0"),
]
PROXIMAL: list[tuple[dict[str, Any], str]] = [
    ({"proximal": "l3"}, "Invalid proximal value: 'l3' .one of elastic_net, group_lasso, l1, l2, l2_start"),
    ({"proximal": 3}, "Invalid proximal value: 3"),
    ({"proximal": "l2_start"}, "'l2_start' needs a start"),
    ({"proximal": "l2_start", "start": "now"}, "Invalid start value: 'now'"),
    ({"proximal": "l2_start", "start": [torch.zeros(3)]}, "one tensor for each parameter, of its shape"),
    ({"start": "current"}, "start only goes with proximal='l2_start'"),
    ({"l1_ratio": 0.5}, "l1_ratio=0.5 only goes with proximal='elastic_net'"),
    ({"proximal": "elastic_net", "l1_ratio": 1.5}, "Invalid l1_ratio value: 1.5"),
]


@registered_cases
@pytest.mark.parametrize(("options", "sentence"), WRONG, ids=[s[:40] for _, s in WRONG])
def test_wrong_options_are_refused(case: Case, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        case.make([torch.nn.Parameter(torch.zeros(2))], **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("options", "sentence"), PROXIMAL)
def test_wrong_proximal_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ProxAdam([torch.nn.Parameter(torch.zeros(2))], **options)


def test_directions() -> None:
    param = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="direction='atan2' has no epsilon: set eps=0, got eps=0.1"):
        ScaleFreeAdamW([param], direction="atan2", eps=0.1)
    with pytest.raises(ValueError, match="Invalid direction value: 'sign'"):
        ScaleFreeAdamW([param], direction="sign")


@registered_cases
def test_groups_are_checked_too(case: Case) -> None:
    a, b = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    with pytest.raises(ValueError, match="Invalid weight_decay value: -1"):
        case.make([{"params": [a]}, {"params": [b], "weight_decay": -1}])
    optimizer = case.make([a])
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        optimizer.add_param_group({"params": [b], "lr": -1})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [b], "lr": 0.5, "foreach": False, "betas": (0.5, 0.9)})
    assert optimizer.param_groups[1]["initial_lr"] == 0.5


def test_a_lost_bound_is_told() -> None:
    param = torch.nn.Parameter(torch.zeros(2))
    for cls in (ProxAdam, ScaleFreeAdamW, AdamL2):
        with pytest.warns(UserWarning, match=r"betas=\(0.9, 0.8\).*bound .* is lost"):
            cls([param], eps=0.0, betas=(0.9, 0.8))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cls([param], eps=1e-8, betas=(0.9, 0.8))
            cls([param], eps=0.0)


def test_a_decay_schedule_that_changes_nothing_is_told() -> None:
    with pytest.warns(UserWarning, match="decay_schedule='relative' changes nothing"):
        AdamL2([torch.nn.Parameter(torch.zeros(2))], decay_schedule="relative")


def test_sparse_gradients_are_refused_before_anything_changes() -> None:
    for case in REGISTERED:
        dense = torch.nn.Parameter(torch.ones(2))
        table = torch.nn.Embedding(3, 2, sparse=True)
        optimizer = case.make([dense, *table.parameters()])
        table(torch.tensor([1])).sum().backward()
        dense.grad = torch.ones(2)
        with pytest.raises(RuntimeError, match=r"does not support sparse gradients.*\(3, 2\)"):
            optimizer.step()
        assert dense.tolist() == [1, 1]
        assert not optimizer.state


def test_torch_refuses_in_its_own_words() -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        ProxAdam([])
    with pytest.raises(TypeError):
        ProxAdam(torch.zeros(2))
    optimizer = ProxAdam([torch.nn.Parameter(torch.zeros(2))])
    with pytest.raises(TypeError):
        optimizer.add_param_group([torch.zeros(1)])
