"""Strings from outside, made harmless; numbers and tables, made readable.

Names of studies, optimizers, tasks and modules come from files that anybody may have written. `escape` is the only way
for them into the card's Markdown, `code_block` for whole commands, `visible` into figures. (Into the card's metadata
they go as they are: YAML has quotes of its own, and huggingface_hub writes them.)
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

# What means nothing in Markdown or HTML where it stands: letters, a few signs between letters, "=" between words.
# All other ASCII signs are written as character references, which CommonMark never takes for structure.
_PLAIN = re.compile(
    r"[0-9A-Za-z ,]|[^\x00-\x7f]|(?<=[0-9A-Za-z])[_.+/-](?=[0-9A-Za-z])|(?<=[0-9A-Za-z] )=(?= )|(?<= )-(?=[0-9])"
)
# Hidden or ambiguous: controls, bidi and other format characters, surrogates, separators, private, unassigned.
_HIDDEN = {"Cc", "Cf", "Cs", "Zs", "Zl", "Zp", "Cn", "Co"}
_LINK = re.compile(r"www\.|://|@", re.IGNORECASE)

NONE = "–"  # noqa: RUF001


def visible(text: object) -> str:
    r"""Write every character that has no glyph of its own, line breaks and unusual spaces among them, as `\uXXXX`."""
    return "".join(f"\\u{ord(c):04x}" if unicodedata.category(c) in _HIDDEN and c != " " else c for c in str(text))


def encodable(text: str) -> str:
    """Replace lone surrogates, which JSON can carry and UTF-8 can't, by U+FFFD; all else stays as it is."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def escape(text: object) -> str:
    """Make `text` inert in Markdown and HTML: it is shown letter by letter, in one line, in a table cell too.

    Whatever Markdown or HTML could take for markup, and what renderers like to turn into links, is written as
    character references (`&#60;`). Runs of spaces become one, as a browser shows them.
    """
    shown = re.sub(r" +", " ", visible(text)).strip()
    linked = {i for match in _LINK.finditer(shown) for i in range(*match.span())}
    plain = {match.start() for match in _PLAIN.finditer(shown)} - linked
    if "(" in shown:  # a bracket that closes nothing could end the number of a list
        plain |= {i for i, c in enumerate(shown) if c in "()" and i >= shown.index("(")}
    return "".join(c if i in plain else f"&#{ord(c)};" for i, c in enumerate(shown))


def code_block(text: str, language: str = "") -> str:
    """A fenced code block that `text` can't end: the fence is longer than any run of back-ticks in it."""
    shown = "\n".join(visible(line) for line in text.split("\n"))
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", shown)), default=0))
    return f"{fence}{language}\n{shown}\n{fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """A Markdown table of cells that are escaped already.

    Args:
        header: the columns' names.
        rows: as many cells each as the header has.
        align: per column `l` or `r`; columns beyond its end are right-aligned.
    """
    rule = ["---" if side == "l" else "---:" for side in align.ljust(len(header), "r")]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def number(value: Any, pattern: str = ".2f", sign: bool = False) -> str:
    """Format `value`, with a real minus sign; a dash stands for a missing one.

    >>> number(-0.5), number(0.25, ".1f", sign=True), number(float("nan"))
    ('−0.50', '+0.2', '–')
    """
    if value is None or math.isnan(value):
        return NONE
    formatted = format(value, ("+" if sign else "") + pattern)
    if float(formatted) == 0:  # "-0.00" and "+0.00" would claim a direction that isn't there
        formatted = formatted.lstrip("+-")
    return formatted.replace("-", "−")  # noqa: RUF001


def interval(low: float, high: float, pattern: str = ".2f", sign: bool = False) -> str:
    """Format an interval as `low to high`; a dash where none is claimed."""
    return (
        NONE
        if math.isnan(low) or math.isnan(high)
        else f"{number(low, pattern, sign)} to {number(high, pattern, sign)}"
    )


def enumerate_words(words: Sequence[str]) -> str:
    """Join words as a sentence does: `a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def plural(count: int, noun: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def shorten(text: str, length: int, separator: str = "") -> str:
    """Cut `text` at its start (after a `separator`, if one is near): the end of a name tells it from its neighbours.

    >>> shorten("vit.encoder.layer.0.attention", 20), shorten("vit.encoder.layer.0.attention", 20, ".")
    ('…r.layer.0.attention', '…layer.0.attention')
    """
    if len(text) <= length:
        return text
    end = text[len(text) - length + 1 :]
    return "…" + (end.split(separator, 1)[1] if separator and separator in end[: length // 2] else end)


def duration(seconds: float) -> str:
    """A length of time for people: `42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
