import io

from hf_proxadam.study.cells import grid
from hf_proxadam.study.progress import Progress, show_seconds
from hf_proxadam.study.runner import Event


class Terminal(io.StringIO):
    def isatty(self):
        return True


def result(cell, accuracy):
    scores = None if accuracy is None else {"accuracy": accuracy, "loss": 1.0}
    status = "diverged" if accuracy is None else "finished"
    return {"cell": cell.point, "status": status, "validation": scores, "timing": {"train_seconds": 10.0}}


def play(study, stream, clock):
    """Four cells on two workers: one done before, one good, one diverged, one failed; ten seconds each."""
    cells = grid(study)
    progress = Progress(study, {cells[0].hash: result(cells[0], 0.25)}, cells, 2, stream, clock=lambda: clock[0])
    for cell in cells[1:3]:
        progress.event(Event(kind="started", cell=cell))
    clock[0] += 10
    progress.event(Event(kind="done", cell=cells[1]), result(cells[1], 0.75))
    clock[0] += 2
    left = progress.seconds_left()
    clock[0] += 20
    progress.event(Event(kind="done", cell=cells[2]), result(cells[2], None))
    progress.event(Event(kind="started", cell=cells[3]))
    progress.event(Event(kind="retry", cell=cells[3], error="Traceback\nValueError: no"))
    progress.event(Event(kind="failed", cell=cells[3], error="Traceback\nValueError: no"))
    progress.close()
    return left


def test_plain_lines_without_a_terminal(tiny, make_study):
    stream = io.StringIO()
    left = play(make_study(tiny), stream, [0.0])
    # Two left of ten seconds each, one of them run in full already, on two workers.
    assert left == 5.0
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "tiny: 4 cells, 1 finished before, 2 at a time."
    assert lines[1] == "[2/4] proxadam, lr 0.003, decay 0.1, seed 0: validation accuracy 0.7500 in 10.0 s"
    assert lines[2] == "[3/4] adam_l2, lr 0.003, decay 0.1, seed 1: diverged in 10.0 s"
    assert "proxadam, lr 0.003, decay 0.1, seed 1: failed; trying again. ValueError: no" in lines
    assert lines[-1] == (
        "3 of 4 cells done; 0 running; 1 failed; 1 diverged; best validation accuracy: adam_l2 0.2500, proxadam 0.7500"
    )


def test_a_status_line_that_is_rewritten_on_a_terminal(tiny, make_study, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    play(make_study(tiny), stream, [0.0])
    text = stream.getvalue()
    assert text.count("\r\x1b[2K") > 8
    assert all(len(part) < 40 for part in text.split("\r\x1b[2K") if "\n" not in part)


def test_smaller_is_better_for_a_loss(tiny, make_study):
    tiny |= {"selection_metric": "loss", "greater_is_better": False}
    study = make_study(tiny)
    cells = grid(study)
    results = {}
    for cell, loss in zip(cells, (3.0, 1.0, 2.0, 4.0), strict=True):
        results[cell.hash] = result(cell, 0.5)
        results[cell.hash]["validation"]["loss"] = loss
    assert Progress(study, results, cells, 1, io.StringIO()).best == {"adam_l2": 2.0, "proxadam": 1.0}


def test_durations():
    assert [show_seconds(s) for s in (-1, 59.4, 61, 3700)] == ["0 s", "59 s", "1 min 1 s", "1 h 1 min"]
