import dataclasses
import json

from hf_proxadam.study.cells import Cell, grid

HASHES = ["751e0eb06619dc7f", "1e431f50df19be33", "4bef43abd41b28b9", "973657f447e6781e"]


def test_grid_is_the_whole_product_with_seeds_outermost(tiny, make_study):
    tiny |= {"learning_rates": [1e-3, 2e-3], "weight_decays": [0, 0.1, 1]}
    cells = grid(make_study(tiny))
    assert len({cell.hash for cell in cells}) == len(cells) == 2 * 2 * 3 * 2
    assert [cell.seed for cell in cells] == [0] * 12 + [1] * 12


def test_hash_is_the_same_in_every_process_and_version(tiny, make_study):
    # Written down once: a change of it throws away every finished cell of every study in the world.
    assert [cell.hash for cell in grid(make_study(tiny))] == HASHES


def test_hash_does_not_depend_on_how_the_study_is_written(tiny, make_study):
    written_out = {**tiny, "weight_decays": [1e-1], "learning_rates": [0.003]}
    written_out["model"] = {**tiny["model"], "hidden_dropout_prob": 0}
    assert [cell.hash for cell in grid(make_study(written_out))] == HASHES


def test_hash_changes_with_everything_that_decides_the_result(tiny, make_study):
    (cell, *_) = grid(make_study(tiny))
    changed = [
        dataclasses.replace(cell, optim="adamw_torch"),
        dataclasses.replace(cell, optim_args="eps=0"),
        dataclasses.replace(cell, learning_rate=0.0030001),
        dataclasses.replace(cell, weight_decay=0.0),
        dataclasses.replace(cell, seed=7),
        dataclasses.replace(cell, task="glue"),
        dataclasses.replace(cell, model={**cell.model, "hidden_size": 32}),
        dataclasses.replace(cell, training=dataclasses.replace(cell.training, threads=2)),
        dataclasses.replace(cell, training=dataclasses.replace(cell.training, processes_per_cell=2)),
        dataclasses.replace(cell, training=dataclasses.replace(cell.training, bf16=True)),
        dataclasses.replace(cell, record_scales_every=5),
        dataclasses.replace(cell, variant="deep"),
        dataclasses.replace(cell, loss_multiplier=10.0),
    ]
    assert len({cell.hash, *(other.hash for other in changed)}) == len(changed) + 1


def test_new_axes_multiply_the_grid_and_keep_the_cells_at_their_defaults(tiny, make_study):
    tiny["loss_multipliers"] = [1, 10]
    cells = grid(make_study(tiny))
    assert [cell.hash for cell in cells if cell.loss_multiplier == 1] == HASHES
    tiny["model_variants"] = {"deep": {"num_hidden_layers": 3}, "as it is": {}}
    cells = grid(make_study(tiny))
    assert len({cell.hash for cell in cells}) == len(cells) == 16
    assert {(cell.variant, cell.model["num_hidden_layers"]) for cell in cells} == {("deep", 3), ("as it is", 1)}
    assert cells[2].title == "adam_l2, deep, loss x 10, lr 0.003, decay 0.1, seed 0"


def test_changing_a_study_keeps_the_cells_that_are_still_in_it(tiny, make_study):
    before = {cell.hash for cell in grid(make_study(tiny))}
    tiny |= {"name": "another", "selection_metric": "loss", "greater_is_better": False, "retries": 5}
    tiny["seeds"] = [1, 2]
    tiny["optimizers"].append({"name": "adamw_torch"})
    after = {cell.hash for cell in grid(make_study(tiny))}
    assert len(before & after) == 2


def test_a_cell_survives_the_way_to_a_worker(tiny, make_study):
    for cell in grid(make_study(tiny)):
        copy = Cell.from_dict(json.loads(json.dumps(dataclasses.asdict(cell))))
        assert copy == cell
        assert copy.hash == cell.hash
