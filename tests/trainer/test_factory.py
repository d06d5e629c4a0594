"""get_optimizer: the catalog for loops without the Trainer."""

import re
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers.training_args import OptimizerNames

from hf_proxadam import get_optimizer
from hf_proxadam.trainer.catalog import CATALOG
from tests.trainer.small import Layers


@pytest.mark.parametrize("name", CATALOG)
def test_every_name_makes_its_class_with_its_defaults(name: str) -> None:
    optimizer = get_optimizer(name, Layers(), lr=0.125, betas=(0.5, 0.75))
    assert type(optimizer) is CATALOG[name].cls
    assert {key: optimizer.defaults[key] for key in CATALOG[name].defaults} == CATALOG[name].defaults
    assert (optimizer.defaults["lr"], optimizer.defaults["betas"]) == (0.125, (0.5, 0.75))
    class_default = type(optimizer)([torch.nn.Parameter(torch.zeros(1))], eps=optimizer.defaults["eps"]).defaults
    assert optimizer.param_groups[0]["weight_decay"] == class_default["weight_decay"]
    assert optimizer.param_groups[1]["weight_decay"] == 0


def test_a_member_of_the_enum_is_a_name() -> None:
    assert get_optimizer(OptimizerNames("proxadam_scale_free"), Layers()).defaults["eps"] == 0


def test_parameters_and_groups_are_taken_as_they_are() -> None:
    model = Layers()
    (group,) = get_optimizer("proxadam", model.parameters(), weight_decay=0.5).param_groups
    assert (len(group["params"]), group["weight_decay"]) == (6, 0.5)
    (group,) = get_optimizer("proxadam", model.named_parameters()).param_groups
    assert group["param_names"][0] == "first.weight"
    given = [{"params": model.first.parameters(), "lr": 0.5}, {"params": model.last.parameters(), "proximal": "l1"}]
    first, last = get_optimizer("proxadam", given, lr=0.25).param_groups
    assert (first["lr"], first["proximal"], last["lr"], last["proximal"]) == (0.5, "l2", 0.25, "l1")


def test_target_modules_get_the_map_and_the_rest_l2() -> None:
    model = Layers()
    optimizer = get_optimizer("proxadam", model, proximal="elastic_net", l1_ratio=0.25, target_modules=["last"])
    groups = [(len(g["params"]), g["proximal"], g["l1_ratio"], g["weight_decay"]) for g in optimizer.param_groups]
    assert groups == [(1, "elastic_net", 0.25, 0.01), (1, "l2", None, 0.01), (4, "elastic_net", 0.25, 0.0)]
    assert optimizer.param_groups[0]["params"][0] is model.last.weight


def test_a_raw_loop_with_accelerate_learns() -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model = Layers()
    model, optimizer = accelerator.prepare(model, get_optimizer("proxadam", model, lr=0.05))
    x = torch.randn(32, 3)
    losses = []
    for _ in range(30):
        loss = model(x, x.sum(-1))["loss"]
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        (
            "proxadamm",
            {},
            "There is no optimizer 'proxadamm'; known are proxadam, proxadam_scale_free,",
        ),
        ("proxadam", {"epsilon": 1}, "'proxadam' has no option 'epsilon'; it knows amsgrad, betas,"),
        ("adam_l2", {"proximal": "l1"}, "'adam_l2' has no option 'proximal'"),
        ("proxadam", {"weight_decay": -1}, "Invalid weight_decay value: -1"),
        ("adam_l2", {"target_modules": ["first"]}, "target_modules=['first'] selects the modules that get a proximal"),
        ("proxadam", {"target_modules": ["first"]}, "has no effect on 'proxadam' with proximal='l2'"),
    ],
)
def test_wrong_input_gets_one_sentence(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        get_optimizer(name, Layers(), **options)
    assert "\n" not in str(error.value)


def test_what_has_nothing_to_train_or_to_select_from_is_refused() -> None:
    with pytest.raises(ValueError, match="The Layers has no trainable parameter for 'proxadam'"):
        get_optimizer("proxadam", Layers().requires_grad_(False))
    with pytest.raises(ValueError, match="needs a model to select them from"):
        get_optimizer("proxadam", Layers().parameters(), proximal="l1", target_modules="all-linear")
