"""YAML into frozen dataclasses, strictly by field type, with every mistake and its line told at once."""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import yaml

T = TypeVar("T")
Path = tuple[str | int, ...]


class Problems:
    """The mistakes found so far, each with its place in the file."""

    def __init__(self, source: str, lines: Mapping[Path, int] | None = None) -> None:
        self.source = source
        self.lines = lines or {}
        self.found: list[tuple[int, str]] = []

    def add(self, path: Path, message: str) -> None:
        """Note a mistake at `path` (keys and list indices from the top)."""
        known = next((path[:n] for n in range(len(path), -1, -1) if path[:n] in self.lines), None)
        line = self.lines[known] if known is not None else 0
        where = f"line {line}: " if line else ""
        problem = (line, f"{where}{name_of(path)}{message}")
        if problem not in self.found:
            self.found.append(problem)

    def raise_if_any(self) -> None:
        """Raise one ValueError that tells them all, in the order of the file."""
        if not self.found:
            return
        messages = [message for _, message in sorted(self.found, key=lambda item: item[0])]
        if len(messages) == 1:
            raise ValueError(f"{self.source}: {messages[0]}")
        raise ValueError(f"{self.source} has {len(messages)} mistakes:\n" + "\n".join(f"  {m}" for m in messages))


def name_of(path: Path) -> str:
    """Write a path as a person would: `optimizers[1].name: `."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    return f"{text}: " if text else ""


def one_of(given: object, known: Iterable[str]) -> str:
    """Say what is allowed, the nearest first where something is near."""
    names = list(known)
    near = difflib.get_close_matches(str(given), names, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"{meant}known are: {', '.join(names)}."


def read_yaml(text: str, source: str) -> tuple[Any, dict[Path, int]]:
    """Read YAML text.

    Returns:
        Its content as plain Python values, and the line of every key and list item by its path.

    Raises:
        ValueError: it is no YAML, or a key stands twice in one mapping.
    """
    lines: dict[Path, int] = {(): 0}
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            raise ValueError(f"{source} is empty.")
        _note_lines(node, (), lines, source)
        return yaml.load(text, Loader=_Loader), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise ValueError(f"{source} is not valid YAML{where}: {getattr(error, 'problem', None) or error}.") from error


def parse(cls: type[T], data: Any, path: Path, problems: Problems) -> T | None:
    """Make a `cls` (a dataclass) of a mapping; None if that is not possible, with the reasons in `problems`.

    Keys that are no field are refused with the list of fields. Values are converted by the field's type and by nothing
    else: a float may be written as an int; a bool is `true` or `false`, never a string; a list becomes a tuple. What
    `cls` checks itself in `__post_init__` (ValueError) is noted too.
    """
    before = len(problems.found)
    values = parse_fields(cls, data, path, problems)
    if len(problems.found) > before:
        return None
    try:
        return cls(**values)
    except ValueError as error:
        problems.add(path, str(error))
        return None


def parse_fields(cls: type, data: Any, path: Path, problems: Problems) -> dict[str, Any]:
    """Convert a mapping to the fields of `cls`; what could not be converted is in `problems` and not in the result."""
    fields, hints, values = _fields(cls), typing.get_type_hints(cls), {}
    if not isinstance(data, Mapping):
        problems.add(path, f"is {_show(data)}; it must be a mapping with the keys {', '.join(fields)}.")
        return {}
    for key, value in data.items():
        if key not in fields:
            problems.add((*path, key), f"there is no such key; {one_of(key, fields)}")
            continue
        before = len(problems.found)
        converted = convert(hints[key], value, (*path, key), problems)
        if len(problems.found) == before:
            values[key] = converted
    for key, field in fields.items():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if key not in data and not optional:
            problems.add(path, f"{key} is missing.")
    return values


def convert(hint: Any, value: Any, path: Path, problems: Problems) -> Any:
    """Convert one value to the type `hint`; mistakes go to `problems` (the result is then None)."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (hint,) = (argument for argument in arguments if argument is not type(None))
        return convert(hint, value, path, problems)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            problems.add(path, f"is {_show(value)}; it must be a list.")
            return None
        return tuple(convert(arguments[0], item, (*path, i), problems) for i, item in enumerate(value))
    if origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            problems.add(path, f"is {_show(value)}; it must be a mapping.")
            return None
        if len(arguments) < 2 or arguments[1] is Any:
            return dict(value)
        return {key: convert(arguments[1], item, (*path, key), problems) for key, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return parse(hint, value, path, problems)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint or (hint is float and not math.isfinite(value)):
        problems.add(path, f"is {_show(value)}; it must be {_ARTICLES[hint]}.")
        return None
    return value


_ARTICLES = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}


def _fields(cls: Any) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls) if field.init}


def _show(value: Any) -> str:
    return "empty" if value is None else repr(value)


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, as everybody but YAML 1.1 does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _note_lines(node: yaml.Node, path: Path, lines: dict[Path, int], source: str) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*path, str(key.value))
            if place in lines:
                line = key.start_mark.line + 1
                raise ValueError(f"{source}: line {line}: {name_of(place)}this key stands here twice.")
            lines[place] = key.start_mark.line + 1
            _note_lines(value, place, lines, source)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines[(*path, i)] = item.start_mark.line + 1
            _note_lines(item, (*path, i), lines, source)
