"""Runs a script's `main` in this process, as the command line would."""

import importlib.util
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "scripts"


def run_script(monkeypatch, name, arguments):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    spec.loader.exec_module(module)
    module.main()


def as_arguments(options):
    """Write options as a command line; None leaves one out."""
    return [f"--{key}={value}" for key, value in options.items() if value is not None]
