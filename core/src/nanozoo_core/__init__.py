"""The shared core of nanozoo, and its face for Python.

    import nanozoo_core

    run = nanozoo_core.load_run("runs/mine")
    run.generate("def ")
    run.evaluate(["a text of mine"])
    nanozoo_core.train(model="hnet", train={"max_steps": 20})
    nanozoo_core.compare(["gpt2", "hnet"], budget="bytes:2e6")

Importing it loads neither torch nor Hydra; what is used is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanozoo_core.comparing.compare.command import Comparison
    from nanozoo_core.comparing.scale.command import Scaling
    from nanozoo_core.comparing.tune.command import Tuning
    from nanozoo_core.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        NanozooError,
        NonFiniteError,
        OutOfMemoryError,
        WriteError,
    )
    from nanozoo_core.probing.command import Probe
    from nanozoo_core.python.comparison import compare, scale
    from nanozoo_core.python.generation import Generated
    from nanozoo_core.python.probing import probe
    from nanozoo_core.python.run import Run, load_run
    from nanozoo_core.python.text_bits import TextBits
    from nanozoo_core.python.training import train
    from nanozoo_core.python.tuning import tune
    from nanozoo_core.registry import model_summaries as models
    from nanozoo_core.training.runs import Evaluation
    from nanozoo_core.training.trainer import Result

__version__ = "0.1.0"

_PLACES = {
    "load_run": "python.run:load_run",
    "train": "python.training:train",
    "compare": "python.comparison:compare",
    "probe": "python.probing:probe",
    "scale": "python.comparison:scale",
    "tune": "python.tuning:tune",
    "models": "registry:model_summaries",
    "Run": "python.run:Run",
    "Generated": "python.generation:Generated",
    "TextBits": "python.text_bits:TextBits",
    "Evaluation": "training.runs:Evaluation",
    "Result": "training.trainer:Result",
    "Comparison": "comparing.compare.command:Comparison",
    "Probe": "probing.command:Probe",
    "Scaling": "comparing.scale.command:Scaling",
    "Tuning": "comparing.tune.command:Tuning",
    **{
        name: f"errors:{name}"
        for name in (
            *("NanozooError", "ConfigError", "DataError", "CheckpointError"),
            *("NonFiniteError", "OutOfMemoryError", "WriteError"),
        )
    },
}
"""Where each public name is defined."""

__all__ = [
    "CheckpointError",
    "Comparison",
    "ConfigError",
    "DataError",
    "Evaluation",
    "Generated",
    "NanozooError",
    "NonFiniteError",
    "OutOfMemoryError",
    "Probe",
    "Result",
    "Run",
    "Scaling",
    "TextBits",
    "Tuning",
    "WriteError",
    "__version__",
    "compare",
    "load_run",
    "models",
    "probe",
    "scale",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    """A public name on its first use; it then stays."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    found = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
