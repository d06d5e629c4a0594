"""What a card and the data beside it must not carry out of the machine: where its folders are."""

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from hf_proxadam.report.text import encodable

_ABSOLUTE = re.compile(r"^(file:)?(/|~|\\\\|[A-Za-z]:[\\/])")
# The same inside a longer text. What stands before it tells a path from a fraction, a web address or a repository.
_INSIDE = re.compile(r"(?<![\w./:~\\<-])(?:file:/*)?(?:~?/|\\\\|[A-Za-z]:[\\/])[^\s\"'`,;=|<>()\[\]{}]+")


def without_paths(value: Any) -> Any:
    r"""Reduce absolute paths, wherever in `value` they stand, to their last part, so that no home folder is published.

    >>> without_paths(["/home/ada/bin/hf-proxadam", "--output_dir=/data/x", "teacher=/m/a,eps=1"])
    ['hf-proxadam', '--output_dir=x', 'teacher=a,eps=1']
    >>> without_paths("see '/home/ada/x y', C:\\Users\\ada\\z and https://arxiv.org/abs/2202.00089")
    "see 'x y', z and https://arxiv.org/abs/2202.00089"
    """
    if isinstance(value, dict):
        return {without_paths(key): without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    parts = ",".join("=".join(_last_part(part) for part in item.split("=")) for item in encodable(value).split(","))
    return _INSIDE.sub(lambda match: _last_part(match[0]), parts)


def _last_part(text: str) -> str:
    if not _ABSOLUTE.match(text):
        return text
    return PurePosixPath(PureWindowsPath(text).as_posix()).name or "."
