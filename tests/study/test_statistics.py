import math

import numpy as np
import pandas as pd
import pytest

from hf_proxadam.study.statistics import bootstrap_interval, choose_cells, grid_means, rank_correlation, summarise


def table(rows):
    """Rows of optimizer, learning rate, weight decay, seed, validation and test; None for these two: diverged."""
    runs = pd.DataFrame(
        rows,
        columns=["optimizer", "learning_rate", "weight_decay", "seed", "validation_accuracy", "test_accuracy"],
    )
    runs["status"] = np.where(runs["validation_accuracy"].isna(), "diverged", "finished")
    return runs.astype({"validation_accuracy": float, "test_accuracy": float})


RUNS = table(
    [
        # adam_l2: the mean over seeds decides (0.80 against 0.79), not the best single run (0.90).
        ("adam_l2", 0.1, 0.0, 0, 0.90, 0.10),
        ("adam_l2", 0.1, 0.0, 1, 0.68, 0.20),
        ("adam_l2", 0.1, 0.0, 2, 0.79, 0.30),
        ("adam_l2", 0.2, 0.0, 0, 0.80, 0.50),
        ("adam_l2", 0.2, 0.0, 1, 0.81, 0.60),
        ("adam_l2", 0.2, 0.0, 2, 0.79, 0.70),
        # proxadam: the better mean of the two has a diverged run; test accuracy, which is not looked at, is best there.
        ("proxadam", 0.1, 0.0, 0, 0.70, 0.60),
        ("proxadam", 0.1, 0.0, 1, 0.72, 0.80),
        ("proxadam", 0.1, 0.0, 2, 0.71, 0.70),
        ("proxadam", 0.2, 0.0, 0, 0.99, 0.99),
        ("proxadam", 0.2, 0.0, 1, None, None),
        ("proxadam", 0.2, 0.0, 2, 0.99, 0.99),
    ]
)


def test_cells_are_chosen_by_the_mean_on_validation_and_diverged_runs_are_worst():
    chosen = choose_cells(RUNS, "accuracy", greater_is_better=True)
    assert chosen["optimizer"].tolist() == ["adam_l2", "proxadam"]
    assert chosen["learning_rate"].tolist() == [0.2, 0.1]
    assert chosen["validation_accuracy"].tolist() == pytest.approx([0.80, 0.71])


def test_smaller_can_be_better():
    chosen = choose_cells(RUNS, "accuracy", greater_is_better=False)
    assert chosen["learning_rate"].tolist() == [0.1, 0.1]


def test_of_equals_the_smaller_learning_rate_then_the_smaller_decay_wins_in_any_order_of_rows():
    rows = [("a", lr, wd, 0, 0.5, 0.5) for lr in (0.1, 0.2) for wd in (0.0, 1.0)]
    for order in (rows, rows[::-1]):
        chosen = choose_cells(table(order), "accuracy")
        assert chosen[["learning_rate", "weight_decay"]].to_numpy().tolist() == [[0.1, 0.0]]


def test_an_optimizer_that_always_diverges_is_still_reported():
    runs = table([("a", 0.1, 0.0, 0, None, None), ("b", 0.1, 0.0, 0, 0.5, 0.5)])
    chosen = choose_cells(runs, "accuracy")
    summary = summarise(runs, chosen, baseline="b").set_index("optimizer")
    assert chosen["optimizer"].tolist() == ["a", "b"]
    assert summary.loc["a", "n_seeds"] == 0
    assert summary.loc["a", "diverged"] == 1
    assert math.isnan(summary.loc["a", "mean"])
    assert summary.loc["a", "share_within_point"] == 0


def test_summary_against_hand_computed_values():
    summary = summarise(RUNS, choose_cells(RUNS, "accuracy")).set_index("optimizer")
    adam, prox = summary.loc["adam_l2"], summary.loc["proxadam"]
    assert adam["mean"] == pytest.approx(0.6)
    assert adam["sd"] == pytest.approx(0.1)  # n - 1
    assert prox["mean"] == pytest.approx(0.7)
    # Paired by seed: 0.6 - 0.5, 0.8 - 0.6, 0.7 - 0.7.
    assert prox["difference"] == pytest.approx(0.1)
    # The bootstrap of three values: 1 of 27 resamples is all the smallest, more than 2.5 %: the interval is the range.
    assert prox["difference_low"] == pytest.approx(0.0)
    assert prox["difference_high"] == pytest.approx(0.2)
    assert (adam["low"], adam["high"]) == pytest.approx((0.5, 0.7))
    assert prox["n_pairs"] == 3
    assert math.isnan(adam["difference"])
    assert adam["n_pairs"] == 0
    assert prox["diverged"] == 1
    assert prox["grid_runs"] == 6
    # adam_l2: 0.79 is within a point of 0.80. proxadam: the other cell has a diverged run.
    assert adam["share_within_point"] == 1.0
    assert prox["share_within_point"] == 0.5


def test_differences_pair_up_by_seed_and_only_common_seeds_count():
    runs = table(
        [("adam_l2", 0.1, 0.0, seed, 0.5, 0.1 * seed) for seed in (0, 1, 2)]
        + [("b", 0.1, 0.0, seed, 0.5, 0.1 * seed + 0.05) for seed in (4, 2, 1)]
    )
    row = summarise(runs, choose_cells(runs, "accuracy")).set_index("optimizer").loc["b"]
    assert row["n_pairs"] == 2
    assert row["difference"] == pytest.approx(0.05)
    assert math.isnan(row["difference_low"]), "two pairs claim no interval"
    assert not math.isnan(row["low"])


def test_interval_needs_three_seeds_is_fixed_and_covers():
    assert all(math.isnan(bound) for bound in bootstrap_interval(np.array([0.1, 0.2])))
    assert bootstrap_interval(np.array([0.3, 0.3, 0.3])) == (0.3, 0.3)
    values = np.random.default_rng(1).normal(size=40)
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    half_width = 1.96 * values.std(ddof=1) / math.sqrt(40)
    assert low == pytest.approx(values.mean() - half_width, abs=0.05)
    assert high == pytest.approx(values.mean() + half_width, abs=0.05)


def spread_points(optimizer, advantages, variants="abcd", spreads=(1.0, 2.0, 3.0, 4.0)):
    rows = zip(variants, spreads, advantages, strict=False)
    return [{"optimizer": optimizer, "variant": v, "spread": s, "advantage": a} for v, s, a in rows]


def test_rank_correlation_of_known_orders_with_the_number_of_points_beside_it():
    rows = [
        *spread_points("up", (-0.1, 0.0, 0.5, 9.0)),
        *spread_points("down", (3.0, 2.0, 1.0)),
        # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15).
        *spread_points("mixed", (0.2, 0.1, 0.4, 0.3)),
        *spread_points("open", (0.1, 0.2, float("nan"), 0.3)),
    ]
    found = rank_correlation(pd.DataFrame(rows)).set_index("optimizer")
    assert found["correlation"].tolist() == pytest.approx([1.0, -1.0, 0.6, 1.0])
    assert found["n_points"].tolist() == [4, 3, 4, 3]


@pytest.mark.parametrize(
    ("advantages", "variants", "spreads"),
    [
        ((0.1, 0.2), "ab", (1, 2)),
        ((0.1, 0.2, 0.3, 0.4), "aabb", (1, 2, 3, 4)),  # two variants, each with two loss multipliers
        ((0.1, 0.1, 0.1), "abc", (1, 2, 3)),
        ((0.1, 0.2, 0.3), "abc", (2, 2, 2)),
    ],
)
def test_no_rank_correlation_is_claimed_from_too_little(advantages, variants, spreads):
    (row,) = rank_correlation(pd.DataFrame(spread_points("a", advantages, variants, spreads))).to_dict("records")
    assert math.isnan(row["correlation"])
    assert row["n_points"] == len(advantages)


def test_grid_means_leave_diverged_runs_out_and_count_them():
    means = grid_means(RUNS, "test_accuracy").set_index(["optimizer", "learning_rate"])
    assert means.loc[("proxadam", 0.2), "test_accuracy"] == pytest.approx(0.99)
    assert means.loc[("proxadam", 0.2), "n_diverged"] == 1
    assert means.loc[("proxadam", 0.2), "n_seeds"] == 3


def test_an_unknown_metric_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="no metric 'f1' on the validation split; they have: accuracy"):
        choose_cells(RUNS, "f1")
