"""Runs a study file and makes its report: `python scripts/compare.py STUDY.yaml`, as `hf-proxadam compare` does."""

import sys

from hf_proxadam.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
