"""What all tests share."""

import os
from collections.abc import Iterator

import pytest

# Before torch is imported: tests run side by side, and two threads for each of them would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def environment_as_before() -> Iterator[None]:
    """Undo what a test leaves in the environment: TrainingArguments, for one, puts its precision and sharding there."""
    before = dict(os.environ)
    yield
    for key in os.environ.keys() - before.keys():
        del os.environ[key]
    os.environ.update(before)
