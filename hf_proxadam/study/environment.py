"""What decides a result beside its study: versions, the code's revision, the hardware. Torch is not imported for it."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

_PACKAGES = ("hf_proxadam", "torch", "transformers", "accelerate", "datasets", "scikit-learn", "numpy")
_GPUS = Path("/proc/driver/nvidia/gpus")
_CPUS = Path("/proc/cpuinfo")


def environment() -> dict[str, str]:
    """Versions, the git revision of this package (where it runs from a clone) and the hardware; no machine's name."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return {**found, "git revision": _revision(Path(__file__).parents[1]), "hardware": _hardware()}


def _revision(package: Path) -> str:
    """The commit that the package's files are of, and whether they differ from it."""
    try:
        # Not every repository around us is ours: a virtual environment may lie in that of somebody's own project.
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        revision = _git(package, "rev-parse", "HEAD").strip()
        changed = _git(package, "status", "--porcelain", "--untracked-files=no", ".")
    except (OSError, subprocess.SubprocessError):
        return "none (not run from a git clone)"
    return f"{revision} (with uncommitted changes)" if changed.strip() else revision


def _git(folder: Path, *command: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *command], capture_output=True, text=True, errors="replace", timeout=10, check=True
    )
    return done.stdout


def _hardware() -> str:
    gpus = [_entry(path, "Model") for path in sorted(_GPUS.glob("*/information"))]
    counted = [f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ", ".join([f"{cores} CPU core{'' if cores == 1 else 's'} ({_entry(_CPUS, 'model name')})", *counted])


def _entry(path: Path, key: str) -> str:
    """The first `key: value` of one of the kernel's files."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    entries = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in entries if name.strip() == key), "unknown model")
