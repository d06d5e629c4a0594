"""Makes the model of an image task: a pretrained one, one of the paper's, or any from its configuration alone."""

import dataclasses
import inspect
import json
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from hf_proxadam.tasks.data import first_line, loaded
from hf_proxadam.tasks.paper_nets import PAPER_NETS, NormFreeViTConfig

NORMALIZATIONS = ("default", "batch", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which model is trained.

    Args:
        model_name_or_path: a name in `hf_proxadam.tasks.paper_nets.PAPER_NETS` (random weights), or pretrained weights
            on the Hub or in a local folder, or
        model_type: an architecture of transformers, such as `vit`, with random weights.
        config_overrides: `key=value,key=value` for the configuration; values are written as in JSON, or bare words.
        normalization: `none` takes the normalisation layers out of a paper's net or a `vit`; `batch` is what the
            paper's nets have by `default`.

    Raises:
        ValueError: the choice is none, or no single one; when the model is made, that it can't be.
    """

    model_name_or_path: str | None = None
    model_type: str | None = None
    config_overrides: str | None = None
    normalization: str = "default"

    def __post_init__(self) -> None:
        if (self.model_name_or_path is None) == (self.model_type is None):
            raise ValueError(
                "Give one of model_name_or_path (pretrained, or one of "
                f"{', '.join(PAPER_NETS)}) and model_type (such as vit, with random weights)."
            )
        if self.normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization is {self.normalization!r}; known are: {', '.join(NORMALIZATIONS)}.")
        if self.model_type is not None and self.model_type not in CONFIG_MAPPING:
            raise ValueError(f"transformers has no model_type {self.model_type!r}; one for images is vit, for example.")
        if self.normalization != "default" and not self.is_paper_net:
            if self.pretrained:
                raise ValueError(
                    f"normalization is {self.normalization!r}, but {self.model_name_or_path!r} was pretrained with its "
                    "own: leave it out, or take a model_type or a net of the paper."
                )
            if (self.model_type, self.normalization) != ("vit", "none"):
                raise ValueError(
                    f"normalization is {self.normalization!r}; a {self.model_type} takes default"
                    f"{' or none' if self.model_type == 'vit' else ''}."
                )
        _ = self.overrides

    @property
    def is_paper_net(self) -> bool:
        """Whether it is one of the paper's networks."""
        return self.model_name_or_path in PAPER_NETS

    @property
    def pretrained(self) -> bool:
        """Whether there are weights to load."""
        return self.model_type is None and not self.is_paper_net

    @property
    def overrides(self) -> dict[str, Any]:
        """`config_overrides`, parsed."""
        found: dict[str, Any] = {}
        for part in _split(self.config_overrides or ""):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not (name and equals and value):
                raise ValueError(f"config_overrides has the part {part!r}; it must be written key=value,key=value.")
            if name in found:
                raise ValueError(f"config_overrides gives {name!r} twice.")
            found[name] = _value(value)
        return found

    def make_config(self, classes: list[str], defaults: dict[str, Any]) -> PretrainedConfig:
        """Make or load the configuration.

        Args:
            classes: names of the classes.
            defaults: what a configuration with random weights gets where `config_overrides` leaves it open.

        Raises:
            ValueError: an override is no field of the configuration, or the configuration refuses a value.
        """
        labels = {
            "id2label": dict(enumerate(classes)),
            "label2id": {name: i for i, name in enumerate(classes)},
            "problem_type": "single_label_classification",
        }
        overrides = self.overrides
        if self.pretrained:
            config = loaded(AutoConfig, str(self.model_name_or_path), "model", **labels)
            _check_known(overrides, config)
            for name, value in overrides.items():
                setattr(config, name, value)
        else:
            config = self._fresh(overrides, defaults, labels)
        if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
            raise ValueError(
                f"The model {self.model_name_or_path or self.model_type!r} is a {config.model_type}, which has no "
                "image-classification head; one that has is a vit, for example."
            )
        side, patch = side_of(config), getattr(config, "patch_size", None)
        if not self.pretrained and side and isinstance(patch, int) and side % patch:
            raise ValueError(
                f"Images of {side} pixels can't be cut into patches of {patch}: config_overrides sets patch_size, and "
                "image_size where images are to be resized."
            )
        return config

    def _fresh(self, overrides: dict[str, Any], defaults: dict[str, Any], labels: dict[str, Any]) -> PretrainedConfig:
        if self.is_paper_net:
            if self.normalization != "default":
                overrides = {"normalization": self.normalization, **overrides}
            make = PAPER_NETS[str(self.model_name_or_path)]
        elif self.normalization == "none":
            make = NormFreeViTConfig
        else:
            make = CONFIG_MAPPING[self.model_type]
        usual = make()
        _check_known(overrides, usual)
        wanted = {name: value for name, value in defaults.items() if hasattr(usual, name)}
        try:
            return make(**{**wanted, **overrides, **labels})
        except (TypeError, ValueError) as error:
            raise ValueError(f"A {usual.model_type} can't be configured so: {first_line(error)}") from error

    def make_model(self, config: PretrainedConfig, *, trained: bool = False) -> PreTrainedModel:
        """Make or load the model; random weights come from torch's global generator.

        Args:
            config: as `make_config` made it.
            trained: refuse a model that has random weights.

        Raises:
            ValueError: the weights don't fit the configuration, or are random where they must not be.
        """
        if trained and not self.pretrained:
            raise ValueError(
                f"A {config.model_type} with random weights can't be evaluated: train it, or give the output folder of "
                "a training as model_name_or_path."
            )
        if not self.pretrained:
            try:
                model: PreTrainedModel = model_class(config)(config)
            except (AssertionError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
                raise ValueError(f"A {config.model_type} can't be made so: {first_line(error)}") from error
            return model
        model, report = loaded(
            model_class(config),
            str(self.model_name_or_path),
            "model",
            config=config,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        # A head for other classes is made anew; nothing else may be. Before transformers 5 only the names are told.
        wrong = []
        for key in report["mismatched_keys"]:
            name = key if isinstance(key, str) else key[0]
            here = tuple(model.get_parameter(name).shape)
            there = None if isinstance(key, str) else tuple(key[1])
            if here[0] != config.num_labels or (there is not None and there[1:] != here[1:]):
                wrong.append(f"{name} ({there or 'another shape'} there, {here} here)")
        if wrong:
            raise ValueError(f"The weights of {self.model_name_or_path!r} don't fit the configuration: {wrong[0]}.")
        if trained and (report["missing_keys"] or report["mismatched_keys"]):
            raise ValueError(
                f"The model {self.model_name_or_path!r} has no head for {config.num_labels} classes: train it first, "
                "or give the output folder of a training."
            )
        return model


def _check_known(overrides: dict[str, Any], config: PretrainedConfig) -> None:
    # A configuration takes any name whatever, and keeps it.
    for name in overrides:
        if not hasattr(config, name):
            raise ValueError(f"config_overrides has {name!r}, which a {config.model_type} has no setting for.")


def model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class of a configuration's model; of several (DeiT has one that is for inference only) the first."""
    found = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    return found[0] if isinstance(found, list | tuple) else found


def interpolates_positions(config: PretrainedConfig) -> bool:
    """Whether the model's forward can be asked to interpolate its positions, for images of another size."""
    return "interpolate_pos_encoding" in inspect.signature(model_class(config).forward).parameters


def side_of(config: PretrainedConfig) -> int | None:
    """The side of the images that a configuration is made for, or None where it doesn't say."""
    size = getattr(config, "image_size", None)
    return size[0] if isinstance(size, list | tuple) else size


def _split(text: str) -> list[str]:
    """At the commas that are not inside brackets, such as those of `depths=[2,2]`."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]


def _value(text: str) -> Any:
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        return text
