"""optim_args: parsed by type, wrong ones refused in one sentence."""

from typing import Any

import pytest

from hf_proxadam.trainer.catalog import CATALOG
from hf_proxadam.trainer.options import known_options, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, {}),
        ("", {}),
        ("amsgrad=False", {"amsgrad": False}),
        ("amsgrad=true, foreach = none", {"amsgrad": True, "foreach": None}),
        ("eps=1e-6,seed=7", {"eps": 1e-6, "seed": 7}),
        ("proximal=elastic_net,l1_ratio=0.25", {"proximal": "elastic_net", "l1_ratio": 0.25}),
        ("rounding=stochastic,", {"rounding": "stochastic"}),
        ("l1_ratio=None", {"l1_ratio": None}),
    ],
)
def test_values_have_the_signatures_types(text: str | None, expected: dict[str, Any]) -> None:
    found = parse(CATALOG["proxadam"], text)
    assert found == expected
    assert {k: type(v) for k, v in found.items()} == {k: type(v) for k, v in expected.items()}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("momentum=0.9", "optim_args has no 'momentum' for 'proxadam'; it knows amsgrad, capturable"),
        ("eps", "must be key=value pairs joined by commas, got 'eps'"),
        ("eps=1,eps=2", "gives 'eps' twice"),
        ("eps=small", "eps='small' for 'proxadam' is not a number"),
        ("seed=1.5", "seed='1.5' for 'proxadam' is not an integer"),
        ("amsgrad=1", "amsgrad='1' for 'proxadam' is not True or False"),
        ("foreach=maybe", "foreach='maybe' for 'proxadam' is not True or False or None"),
        ("proximal=", "proximal='' for 'proxadam' is not a name"),
        ("lr=0.1", "can't set 'lr' for 'proxadam': use learning_rate"),
        ("betas=0.9", "use adam_beta1 and adam_beta2"),
    ],
)
def test_wrong_ones_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        parse(CATALOG["proxadam"], text)
    assert "\n" not in str(error.value)


def test_every_option_of_every_class_can_be_given() -> None:
    for entry in CATALOG.values():
        assert "eps" in known_options(entry)
        assert "params" not in known_options(entry)
