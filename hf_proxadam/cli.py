"""`hf-proxadam`: the command line."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_proxadam.study import RunnerError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what stands after the program's name; default: `sys.argv`.

    Returns:
        The exit code: 0 done, 1 cells failed for good or can't be run, 2 bad input (with one sentence on standard
        error), 130 Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        return code
    except ValueError as error:
        print(f"hf-proxadam: {error}", file=sys.stderr)
        return 2
    except RunnerError as error:
        print(f"hf-proxadam: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; finished cells are kept. The same command goes on from here.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-proxadam", description="Proximal and scale-free AdamW for transformers: names, comparisons, reports."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="the optimizers that this package registers with transformers")
    listing.set_defaults(run=_list)

    compare = commands.add_parser("compare", help="run a study (or the rest of it) and make its report")
    add_compare_arguments(compare)
    compare.set_defaults(run=_compare)

    report = commands.add_parser("report", help="make the report of a study folder again, from its files alone")
    report.add_argument("folder", type=Path, metavar="FOLDER", help="what `compare` left as its output folder")
    report.set_defaults(run=_report)
    return parser


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `hf-proxadam compare` takes."""
    parser.add_argument("study", type=Path, metavar="STUDY.yaml", help="the study file")
    parser.add_argument("--output_dir", type=Path, metavar="DIR", help="the study folder (default: runs/NAME)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes side by side (default: cores / threads)")
    parser.add_argument("--dry-run", action="store_true", help="print the cells and how long they should take")


def _list(_: argparse.Namespace) -> int:
    from hf_proxadam.trainer.catalog import CATALOG

    rows = [("optim=", "class", "description")]
    for entry in CATALOG.values():
        extra = f" (needs hf_proxadam[{entry.extra}])" if entry.extra else ""
        rows.append((entry.name, entry.cls.__name__, entry.description + extra))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, cls, description in rows:
        print(f"{name:{widths[0]}}  {cls:{widths[1]}}  {description}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from hf_proxadam.study.driver import describe, run_study
    from hf_proxadam.study.spec import load_study_file

    study = load_study_file(options.study)
    folder: Path = options.output_dir or Path("runs") / study.name
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"The output folder {folder} is a file; give --output_dir a folder.")
    if options.dry_run:
        print(describe(study, folder, options.workers))
        return 0
    outcome = run_study(study, folder, options.workers, command=_command())
    if outcome.failed:
        print(
            f"{len(outcome.failed)} of {outcome.total} cells failed for good; their errors are in "
            f"{folder / 'cells'}/*/error.txt. The same command tries them again.",
            file=sys.stderr,
        )
        if len(outcome.failed) == outcome.total:
            return 1
    _make_report(folder)
    return 1 if outcome.failed else 0


def _report(options: argparse.Namespace) -> int:
    _make_report(options.folder)
    return 0


def _make_report(folder: Path) -> None:
    from hf_proxadam import report

    print(f"The card: {report.make(folder)}")


def _command() -> list[str]:
    """The command line as it would be typed, without where this machine keeps its programs."""
    return [Path(sys.argv[0]).name, *map(shlex.quote, sys.argv[1:])]


if __name__ == "__main__":
    sys.exit(main())
