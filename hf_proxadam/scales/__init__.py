"""The scales of gradients, updates and weights, per parameter, while a model trains.

`GradientScaleCallback` records under the Trainer, `GradientScaleRecorder` in any other loop, `load` reads the records.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_proxadam.scales.callback import GradientScaleCallback as GradientScaleCallback
    from hf_proxadam.scales.derived import by_module as by_module
    from hf_proxadam.scales.derived import quantile as quantile
    from hf_proxadam.scales.derived import spread_between as spread_between
    from hf_proxadam.scales.derived import spread_within as spread_within
    from hf_proxadam.scales.derived import update_to_weight as update_to_weight
    from hf_proxadam.scales.derived import whole_model as whole_model
    from hf_proxadam.scales.recorder import GradientScaleRecorder as GradientScaleRecorder
    from hf_proxadam.scales.store import BINS as BINS
    from hf_proxadam.scales.store import MIN_EXPONENT as MIN_EXPONENT
    from hf_proxadam.scales.store import load as load

_HOMES = {
    "BINS": "store",
    "MIN_EXPONENT": "store",
    "GradientScaleCallback": "callback",
    "GradientScaleRecorder": "recorder",
    "by_module": "derived",
    "load": "store",
    "quantile": "derived",
    "spread_between": "derived",
    "spread_within": "derived",
    "update_to_weight": "derived",
    "whole_model": "derived",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    # Loaded when asked for: whoever only reads records needs neither torch nor transformers.
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
