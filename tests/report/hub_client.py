"""Runs commands in a process of its own, for HF_ENDPOINT is read when huggingface_hub is imported.

    python hub_client.py [[TOKEN, ["publish", ...]], ...]

TOKEN is an access token, or empty. Prints a list of {"code", "out", "err"} as JSON; `load` stands for what a user of
the Hub does with what was published.
"""

import contextlib
import functools
import io
import json
import os
import sys
from typing import Any


def main(calls: list[tuple[str, list[str]]]) -> list[dict[str, Any]]:
    from hf_proxadam import cli
    from hf_proxadam.report import persistence, publish

    publish.prepare = functools.cache(publish.prepare)  # one folder is published many times
    persistence.FIRST_WAIT = 0.05
    persistence.TIMEOUT = 3.0
    results = []
    for token, arguments in calls:
        os.environ["HF_TOKEN"] = token
        out, err = io.StringIO(), io.StringIO()
        if arguments[0] == "load":
            results.append(load(*arguments[1:]))
            continue
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(arguments)
        results.append({"code": code, "out": out.getvalue(), "err": err.getvalue()})
    return results


def load(study: str, model: str) -> dict[str, Any]:
    """Open both cards by the Hub's library, and the study's tables by `load_dataset`."""
    import datasets
    from huggingface_hub import DatasetCard, ModelCard

    datasets.disable_progress_bars()
    runs = datasets.load_dataset(study, split="train")
    scales = datasets.load_dataset(study, "scales", split="train")
    return {
        "study": DatasetCard.load(study).data.to_dict(),
        "model": ModelCard.load(model).data.to_dict(),
        "runs": runs.to_pandas().drop(columns=["optim_args"]).to_dict("records"),
        "scales": [scales.num_rows, len(scales[0]["histogram"])],
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
