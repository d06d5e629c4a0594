"""Runs an unmodified script, as Python itself would, after the optimizers were registered with transformers."""

import importlib.util
import io
import os
import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from hf_proxadam.trainer.ending import end_process_group

PROGRAM = "python -m hf_proxadam.launch"
HELP = f"""usage: {PROGRAM} SCRIPT.py [arguments of the script]
       {PROGRAM} -m MODULE [arguments of the module]

Runs an unmodified training script in which --optim (TrainingArguments(optim=...)) also knows the names of
`hf-proxadam list`. Under a launcher:

    torchrun --nproc_per_node 2 -m hf_proxadam.launch SCRIPT.py ...
    accelerate launch -m hf_proxadam.launch SCRIPT.py ..."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a script or a module as `__main__`, with its own arguments in `sys.argv`.

    Importing this package has registered the optimizers by now. The exit code is the script's.

    Args:
        arguments: the script and its arguments, or `-m`, a module and its arguments; default: `sys.argv`.

    Raises:
        SystemExit: with code 2 and one sentence on standard error, where there is nothing to run.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] in (["-h"], ["--help"]):
        print(HELP)
        return
    if given[:1] == ["-m"]:
        _run_module(given[1:])
    elif not given:
        _refuse(f"there is no script to run: {PROGRAM} SCRIPT.py [arguments of the script]")
    elif given[0].startswith("-"):
        _refuse(f"there is no option {given[0]!r}, only -m MODULE; the script comes first, its own arguments after it")
    else:
        _run_script(given)
    end_process_group()


def _run_script(given: list[str]) -> None:
    script = Path(given[0])
    if script.is_dir():
        _refuse(f"the script {given[0]!r} is a folder; give a Python file, or -m and the name of a module")
    try:
        with io.open_code(os.path.abspath(script)) as file:
            source = file.read()
    except OSError as error:
        _refuse(f"the script {given[0]!r} can't be read ({error.strerror or error}); give the path of a Python file")
    sys.argv = given
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = str(
            script.resolve().parent
        )  # as `python SCRIPT` has it; `python -m` put the working folder there
    # The real __main__ and not a module that stands in for it: DataLoader workers that are spawned or forked by a
    # server find the script by __file__, and what they are sent is unpickled as a member of __main__. __spec__ is None
    # for the same reason: with this module's own, they would import this module instead.
    module = ModuleType("__main__")
    module.__file__ = given[0]
    module.__loader__ = SourceFileLoader("__main__", given[0])
    module.__dict__["__builtins__"] = sys.modules["builtins"]
    sys.modules["__main__"] = module
    exec(compile(source, given[0], "exec"), module.__dict__)


def _run_module(given: list[str]) -> None:
    if not given:
        _refuse(f"-m needs the name of a module: {PROGRAM} -m MODULE [arguments of the module]")
    name = given[0]
    try:
        found = importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a parent that is not there; a name that is none
        found = False
    if not found:
        _refuse(f"there is no module {name!r}; a script is given by its path, without -m")
    sys.argv = given
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _refuse(sentence: str) -> NoReturn:
    print(f"{PROGRAM}: {sentence}", file=sys.stderr)
    raise SystemExit(2)
