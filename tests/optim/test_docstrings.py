"""The examples in the docstrings run and print what they say."""

import doctest

import pytest

from hf_proxadam.optim import adam_family, adam_l2, adamw, proxadam, proximal


@pytest.mark.parametrize("module", [adam_family, adam_l2, adamw, proxadam, proximal], ids=lambda m: m.__name__)
def test_examples(module: object) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
