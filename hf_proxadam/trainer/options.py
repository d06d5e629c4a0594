"""`optim_args`: a comma-separated string of options, parsed by the types in the optimizer's signature."""

import inspect
import types
import typing
from typing import Any

from .catalog import OptimizerEntry

# What TrainingArguments has fields of its own for, and what can't be written as a string.
_ELSEWHERE = {
    "lr": "learning_rate",
    "weight_decay": "weight_decay",
    "betas": "adam_beta1 and adam_beta2",
}
_WORDS: dict[str, Any] = {"true": True, "false": False, "none": None}


def known_options(entry: OptimizerEntry) -> dict[str, Any]:
    """The options that `optim_args` may set for this name, with their annotations."""
    parameters = inspect.signature(entry.cls.__init__).parameters
    return {k: p.annotation for k, p in parameters.items() if k not in {"self", "params", *_ELSEWHERE}}


def default_of(entry: OptimizerEntry, option: str) -> Any:
    """What an option is where nobody sets it: the name's default, or else the class's."""
    return entry.defaults.get(option, inspect.signature(entry.cls.__init__).parameters[option].default)


def check_targets(entry: OptimizerEntry, options: dict[str, Any], argument: str, modules: Any) -> None:
    """Check that selecting modules for the proximal map has an effect.

    Args:
        entry: the row of the catalog.
        options: what the optimizer will be made with.
        argument: what the caller's argument is called.
        modules: its value.

    Raises:
        ValueError: the class has no proximal maps, or the map is l2, which is what the rest gets.
    """
    if "proximal" not in known_options(entry):
        raise ValueError(
            f"{argument}={modules!r} selects the modules that get a proximal map, and {entry.name!r} has none: leave "
            "it out, or choose proxadam"
        )
    if options.get("proximal", "l2") == "l2":
        raise ValueError(
            f"{argument}={modules!r} has no effect on {entry.name!r} with proximal='l2', which all modules get: leave "
            "it out, or give another map (proximal=l1, elastic_net, group_lasso or l2_start)"
        )


def parse(entry: OptimizerEntry, text: str | None) -> dict[str, Any]:
    """Parse `key=value,key=value` into options of `entry.cls`.

    Args:
        entry: the row of the catalog.
        text: as given to `--optim_args`; None or "" for none. Spaces around keys and values don't count.

    Raises:
        ValueError: a part without "=", an unknown or repeated key, or a value of the wrong type; the sentence names the
            known ones.
    """
    known = known_options(entry)
    found: dict[str, Any] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ValueError(f"optim_args for {entry.name!r} must be key=value pairs joined by commas, got {part!r}")
        if key in _ELSEWHERE:
            raise ValueError(f"optim_args can't set {key!r} for {entry.name!r}: use {_ELSEWHERE[key]}")
        if key not in known:
            raise ValueError(f"optim_args has no {key!r} for {entry.name!r}; it knows {', '.join(sorted(known))}")
        if key in found:
            raise ValueError(f"optim_args for {entry.name!r} gives {key!r} twice")
        found[key] = _value(entry, key, value, known[key])
    return found


def _value(entry: OptimizerEntry, key: str, text: str, annotation: Any) -> Any:
    union = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
    allowed = set(typing.get_args(annotation)) if union else {annotation}
    word = _WORDS.get(text.lower(), text)
    if (isinstance(word, bool) and bool in allowed) or (word is None and type(None) in allowed):
        return word
    for kind in (int, float):
        if kind in allowed:
            try:
                return kind(text)
            except ValueError:
                continue
    if str in allowed and not isinstance(word, bool) and text:
        return text
    names = {bool: "True or False", int: "an integer", float: "a number", str: "a name", type(None): "None"}
    wanted = " or ".join(names[kind] for kind in names if kind in allowed)
    raise ValueError(f"optim_args: {key}={text!r} for {entry.name!r} is not {wanted}")
