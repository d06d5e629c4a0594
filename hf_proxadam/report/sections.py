"""Parts that the cards of studies and of models have in common."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import yaml
from huggingface_hub import CardData

from hf_proxadam.report import scales, text
from hf_proxadam.report.text import escape, number

_BREAKS = set("\r\x85\u2028\u2029")

PAPER = "[Understanding AdamW through Proximal Methods and Scale-Freeness](https://arxiv.org/abs/2202.00089)"
TAGS = ("optimizer", "adamw", "weight-decay", "scale-free", "hf_proxadam", "arxiv:2202.00089")

SCALES_HEADER = (
    *("steps recorded", "gradients: between modules", "updates: between modules", "updates: over coordinates"),
    *("update / weight", "zero gradients (%)", "zero updates (%)", "not finite"),
)
SCALES_EXPLAINED = (
    "The three columns after the steps are spreads: inter-quartile ranges of log2 of magnitudes, in octaves "
    "(factors of two). Between modules: of the modules' root mean squares, the median over the recorded steps. "
    "Over coordinates: of all updates that are not zero. “Update / weight” is the ratio of their root mean "
    "squares, the median over modules and steps."
)


class _Dumper(yaml.SafeDumper):
    """YAML that loads back: PyYAML's own writes some line breaks in quotes that read them as a space."""

    def represent_text(self, value: str) -> yaml.Node:
        """Put strings with one of YAML's rarer line breaks into double quotes, in which they are escaped."""
        return self.represent_scalar("tag:yaml.org,2002:str", value, style='"' if _BREAKS & set(value) else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def card(metadata: CardData, body: Sequence[str]) -> str:
    """The text of README.md: the metadata between `---` lines, then the paragraphs; empty ones are left out."""
    told = yaml.dump(metadata.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return "\n\n".join([f"---\n{told}---", *(paragraph for paragraph in body if paragraph)]) + "\n"


def scales_row(modules: pd.DataFrame) -> list[str]:
    """One run's cells under `SCALES_HEADER`.

    Args:
        modules: one run's records per module.
    """
    updates, zero_updates = scales.distribution(modules, "update")
    _, zero_gradients = scales.distribution(modules, "gradient")
    return [
        f"{modules['step'].nunique()}",
        *(number(scales.spread_between_modules(modules, name), ".1f") for name in ("gradient", "update")),
        number(scales.spread_over_coordinates(updates), ".1f"),
        number(scales.update_to_weight(modules), ".2g"),
        *(number(100 * share) for share in (zero_gradients, zero_updates)),
        f"{modules['nonfinite'].sum():.0f}",
    ]


def figure(name: str, caption: str) -> str:
    """A figure of the folder `figures/` with its caption."""
    return f"![{caption}](figures/{name})\n\n*{caption}*"


def command(arguments: Sequence[str]) -> list[str]:
    """The command as paragraphs; none where it is not on record."""
    return ["The command:", text.code_block(shlex.join(arguments), "console")] if arguments else []


def versions(environment: Mapping[str, Any]) -> list[str]:
    """Versions and hardware as paragraphs."""
    rows = [[escape(key), escape(flat(value))] for key, value in environment.items()]
    return ["Versions and hardware, as recorded:", text.table(["what", "recorded"], rows, "ll")]


def live_optimizer(live: Mapping[str, Any]) -> list[str]:
    """Class and group defaults of an optimizer that ran; learning rate, weight decay and what is off are left out."""
    defaults = {
        key: value
        for key, value in sorted(live.get("defaults", {}).items())
        if key not in ("lr", "weight_decay") and value is not None and value is not False
    }
    return [escape(live.get("class", text.NONE)), escape(flat(defaults) or text.NONE)]


def flat(value: Any) -> str:
    """A value of a record as one line: `key = value, ...` for a mapping, `(a, b)` for a list."""
    if isinstance(value, dict):
        return ", ".join(f"{key} = {flat(item)}" for key, item in value.items())
    if isinstance(value, list):
        return f"({', '.join(map(flat, value))})"
    return value if isinstance(value, str) else json.dumps(value)
