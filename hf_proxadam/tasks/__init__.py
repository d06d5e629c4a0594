"""The tasks, by name. A new one is a file beside this one and a row in the table."""

import dataclasses
import importlib


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """Where a task's class is found; its module is imported when it is asked for."""

    module: str
    cls: str
    description: str


TASKS: dict[str, TaskEntry] = {
    "digits": TaskEntry(
        module="hf_proxadam.tasks.digits",
        cls="DigitsTask",
        description="scikit-learn's 8x8 handwritten digits, a small ViT from a config",
    ),
    "glue": TaskEntry(
        module="hf_proxadam.tasks.glue",
        cls="GlueTask",
        description="a task of the GLUE benchmark, a pretrained text encoder",
    ),
    "images": TaskEntry(
        module="hf_proxadam.tasks.images",
        cls="ImageTask",
        description="any image-classification dataset; a pretrained model, the paper's networks or a ViT from a config",
    ),
}


def task_class(name: str) -> type:
    """The class (see `hf_proxadam.tasks.base.Task`) of the task `name`.

    Raises:
        ValueError: there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"There is no task {name!r}; known are: {', '.join(TASKS)}.")
    entry = TASKS[name]
    found: type = getattr(importlib.import_module(entry.module), entry.cls)
    return found
