"""`hf-proxadam`: the command line."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_proxadam.report.persistence import HubError
from hf_proxadam.study import RUNNERS, RunnerError

_FOLDER = "what `compare` or a fine-tuning script left as its output folder"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: what stands after the program's name; default: `sys.argv`.

    Returns:
        The exit code: 0 done, 1 cells failed for good or can't be run, the Hub refused, or a card is wrong, 2 bad input
        (with one sentence on standard error), 130 Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        return code
    except ValueError as error:
        print(f"hf-proxadam: {error}", file=sys.stderr)
        return 2
    except (RunnerError, HubError) as error:
        print(f"hf-proxadam: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"hf-proxadam: {error.filename}: {error.strerror}. Finished cells are kept.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; finished cells are kept. The same command goes on from here.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-proxadam", description="Proximal and scale-free AdamW for transformers: names, comparisons, cards."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="the optimizers that this package registers with transformers")
    listing.set_defaults(run=_list)

    compare = commands.add_parser("compare", help="run a study (or the rest of it) and make its report")
    add_compare_arguments(compare)
    compare.set_defaults(run=_compare)

    report = commands.add_parser("report", help="make the card of a study or a model again, from its files alone")
    report.add_argument("folder", type=Path, metavar="FOLDER", help=_FOLDER)
    report.set_defaults(run=_report)

    publish = commands.add_parser("publish", help="publish a study (as a dataset) or a model on the Hub")
    publish.add_argument("folder", type=Path, metavar="FOLDER", help=_FOLDER)
    publish.add_argument("--repo-id", metavar="ORG/NAME", help="the repository; made where it is missing")
    publish.add_argument("--private", action="store_true", help="make it a private repository")
    publish.add_argument(
        "--dry-run", action="store_true", help="list and check what would be published; no token needed"
    )
    publish.set_defaults(run=_publish)

    verify = commands.add_parser("verify", help="compute a card's numbers and figures once more, and compare")
    verify.add_argument("place", metavar="FOLDER|ORG/NAME", help="a folder, or a repository on the Hub")
    verify.set_defaults(run=_verify)
    return parser


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `hf-proxadam compare` takes."""
    parser.add_argument("study", type=Path, metavar="STUDY.yaml", help="the study file")
    parser.add_argument(
        "--output_dir",
        metavar="DIR|URL",
        help="the study folder (default: runs/NAME), or the URL of an object store to keep runs/NAME in step with",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="cells side by side (default: one per GPU, or core)")
    parser.add_argument(
        "--processes_per_cell",
        type=int,
        metavar="N",
        help="train each cell on so many devices, by `accelerate launch`; batches are per device (default: 1)",
    )
    parser.add_argument(
        "--runner", default="local", choices=RUNNERS, help="run on this machine (default), or on a Ray cluster"
    )
    parser.add_argument("--address", help="of the Ray cluster: auto, or HOST:PORT (default: one on this machine)")
    parser.add_argument("--dataset_path", metavar="DIR", help="the study's data, in place of what the file says")
    parser.add_argument("--model_name_or_path", metavar="NAME", help="its model, in place of what the file says")
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
    from hf_proxadam.study.mirror import Mirror, is_url
    from hf_proxadam.study.spec import load_study_file

    given: dict[str, dict[str, Any]] = {"model": {}, "training": {}}
    if options.dataset_path is not None:
        given["model"] |= {"dataset_path": options.dataset_path, "dataset_name": None}
    if options.model_name_or_path is not None:
        given["model"]["model_name_or_path"] = options.model_name_or_path
    if options.processes_per_cell is not None:
        given["training"]["processes_per_cell"] = options.processes_per_cell
    study = load_study_file(options.study, given)
    place: str = options.output_dir or str(Path("runs") / study.name)
    folder = Path("runs") / study.name if is_url(place) else Path(place)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"The output folder {folder} is a file; give --output_dir a folder.")
    mirror = Mirror(place, folder) if is_url(place) else None
    if options.dry_run:
        print(describe(study, folder, options.workers, mirror))
        return 0
    outcome = run_study(
        study,
        folder,
        options.workers,
        command=_command(),
        runner=options.runner,
        address=options.address,
        mirror=mirror,
    )
    if outcome.failed:
        print(
            f"{len(outcome.failed)} of {outcome.total} cells failed for good; their errors are in "
            f"{folder / 'cells'}/*/error.txt. The same command tries them again.",
            file=sys.stderr,
        )
        if len(outcome.failed) == outcome.total:
            return 1
    _make_report(folder)
    if mirror:
        mirror.send_report()
        print(f"Its copy: {mirror.url}/report/README.md")
    return 1 if outcome.failed else 0


def _report(options: argparse.Namespace) -> int:
    _make_report(options.folder)
    return 0


def _publish(options: argparse.Namespace) -> int:
    from hf_proxadam.report import hub, publish

    if options.repo_id is not None:
        hub.check_name(options.repo_id)
    elif not options.dry_run:
        raise ValueError("There is no --repo-id ORG/NAME to publish to; --dry-run shows what would be published.")
    contents, open_questions = publish.prepare(options.folder)
    told, is_fine = publish.describe(contents, open_questions)
    if options.dry_run or not is_fine:
        print(told)
        print("Nothing was sent." if is_fine else "Nothing was sent: the card's metadata is not what the Hub expects.")
        return 0 if is_fine else 1
    done = hub.publish(contents, options.repo_id, private=options.private)
    print(done.told)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from hf_proxadam.report import hub
    from hf_proxadam.report.verify import verify

    with tempfile.TemporaryDirectory(prefix="hf-proxadam-") as scratch:
        is_local = Path(options.place).exists()
        wrong, open_questions = verify(Path(options.place) if is_local else hub.fetch(options.place, Path(scratch)))
    for sentence in open_questions:
        print(f"Not compared: {sentence}")
    for sentence in wrong:
        print(f"hf-proxadam: {sentence}", file=sys.stderr)
    if not wrong:
        print(f"{options.place}: the card says what the data beside it give.")
    return 1 if wrong else 0


def _make_report(folder: Path) -> None:
    from hf_proxadam import report

    print(f"The card: {report.make(folder)}")


def _command() -> list[str]:
    """The command line, argument by argument, without where this machine keeps its programs."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


if __name__ == "__main__":
    sys.exit(main())
