"""What the Hub expects of a card's metadata, checked before anything is sent and without asking it."""

import fnmatch
import math
import re
from collections.abc import Iterator
from typing import Any

from huggingface_hub import DatasetCard, ModelCard

from hf_proxadam.report.model_card import HUB_NAME
from hf_proxadam.report.publication import Publication

_LICENSE = re.compile(r"^[a-z0-9][a-z0-9.+-]*$")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_NEEDED = {
    "study": ("license", "pretty_name", "tags", "configs"),
    "model": ("license", "library_name", "pipeline_tag", "tags", "model-index"),
}


def check(publication: Publication) -> list[tuple[bool, str]]:
    """Check the card's metadata and links.

    Returns:
        Per check, whether it passed and one line that says what was looked at.
    """
    card_type = DatasetCard if publication.kind == "study" else ModelCard
    try:
        card = card_type(publication.card)
        metadata: dict[str, Any] = card.data.to_dict()
    except Exception as error:  # PyYAML's errors and huggingface_hub's have no common root
        return [(False, f"the metadata can't be read: {' '.join(str(error).split())}")]
    return list(_checks(publication, metadata, card.text))


def _checks(publication: Publication, metadata: dict[str, Any], body: str) -> Iterator[tuple[bool, str]]:
    missing = [key for key in _NEEDED[publication.kind] if key not in metadata]
    yield not missing, f"all that is needed is there{_but('without', missing)}"
    license = str(metadata.get("license"))
    yield _LICENSE.match(license) is not None, f"license: {license}"
    tags = metadata.get("tags") or []
    yield "arxiv:2202.00089" in tags, f"tags: {', '.join(map(str, tags))}"
    for key in ("base_model", "datasets"):
        values = metadata.get(key)
        if values is not None:
            named = [values] if isinstance(values, str) else values
            yield all(HUB_NAME.match(str(name)) for name in named), f"{key}: {', '.join(map(str, named))}"
    paths = [file.path for file in publication.files]
    for config in metadata.get("configs") or []:
        there = any(fnmatch.fnmatchcase(path, config["data_files"]) for path in paths)
        yield there, f"configs: {config['config_name']} is {config['data_files']}"
    for entry in metadata.get("model-index") or []:
        for result in entry["results"]:
            scores = ", ".join(f"{metric['type']} {metric['value']}" for metric in result["metrics"])
            finite = all(math.isfinite(metric["value"]) for metric in result["metrics"])
            yield finite, f"model-index: {result['dataset']['name']}, {result['dataset'].get('split')}: {scores}"
    local = [link for link in _LINK.findall(body) if "://" not in link and not link.startswith("#")]
    lost = [link for link in local if link not in paths]
    yield not lost, f"all {len(local)} links to files lead to files{_but('but', lost)}"


def _but(word: str, names: list[str]) -> str:
    return f", {word} {', '.join(names)}" if names else ""
