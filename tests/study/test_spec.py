import dataclasses
import pathlib
import re

import pytest

from hf_proxadam.study.parsing import Problems, parse
from hf_proxadam.study.spec import Training, load_study_file, parse_study
from tests.tasks.image_files import write_digits

GOOD = """
name: tiny
task: digits
model: {hidden_size: 16, num_attention_heads: 2}
optimizers:
  - name: adam_l2
  - {name: proxadam, optim_args: "decay_schedule=relative", label: relative}
learning_rates: [1e-3, 1]
weight_decays: [0]
seeds: [0, 1]
training: {num_train_epochs: 2, warmup_steps: 0.1}
"""


def write(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return path


def test_reads_numbers_lists_and_nested_classes_by_field_type(tmp_path):
    study = load_study_file(write(tmp_path, GOOD))
    assert study.learning_rates == (0.001, 1.0)
    assert all(type(rate) is float for rate in (*study.learning_rates, *study.weight_decays))
    assert type(study.training.num_train_epochs) is float
    assert [spec.label for spec in study.optimizers] == ["adam_l2", "relative"]
    assert study.model["patch_size"] == 2, "options that were left out are filled in"
    assert study.as_dict()["max_grad_norm"] == 0


def test_tells_every_mistake_with_its_line(tmp_path):
    text = """
name: bad
task: digitz
optimizers:
  - name: proxadm
  - {name: adam_l2, optim_arg: x}
learning_rates: [1e-3, -1, "0.1", .nan]
weight_decays: []
seeds: [3, 3]
training: {use_cpu: "False", num_train_epoch: 3, threads: 1.5}
retries: -1
extra: 1
"""
    with pytest.raises(ValueError, match="has 13 mistakes") as caught:
        load_study_file(write(tmp_path, text))
    message = str(caught.value)
    for sentence in (
        "line 3: task: there is no task 'digitz'; did you mean 'digits'?",
        "line 5: optimizers[0].name: there is no optimizer 'proxadm'; did you mean 'proxadam'?",
        "line 6: optimizers[1].optim_arg: there is no such key; did you mean 'optim_args'?",
        "line 7: learning_rates[1]: is -1.0; a learning rate must be positive.",
        "line 7: learning_rates[2]: is '0.1'; it must be a finite number.",
        "line 7: learning_rates[3]: is nan; it must be a finite number.",
        "line 8: weight_decays: is an empty list",
        "line 9: seeds[1]: the value 3 stands here twice",
        "line 10: training.use_cpu: is 'False'; it must be true or false.",
        "line 10: training.num_train_epoch: there is no such key; did you mean 'num_train_epochs'?",
        "line 10: training.threads: is 1.5; it must be a whole number.",
        "line 11: retries: is -1; it must not be negative.",
        "line 12: extra: there is no such key; known are: name, task, model,",
    ):
        assert sentence in message


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("hidden_size: 16", "hidden_size: 17", "hidden_size is 17; it must be a multiple"),
        ("hidden_size: 16", "hidden: 16", "model.hidden: there is no such key"),
        ("decay_schedule=relative", "decay=1", "optim_args has no 'decay' for 'proxadam'"),
        ("decay_schedule=relative", "decay_schedule", "must be written key=value"),
        ("name: adam_l2", "{name: adamw_torch, optim_args: 'foo=1'}", "foo=1 has no effect on adamw_torch"),
        ("name: adam_l2", "name: galore_adamw", "galore_adamw can't be used"),
        ("label: relative", "label: adam_l2", "the label 'adam_l2' stands here twice"),
        ("seeds: [0, 1]", "seeds: [0, true]", "seeds[1]: is True; it must be a whole number"),
        ("seeds: [0, 1]", "seeds: 0", "seeds: is 0; it must be a list"),
        ("seeds: [0, 1]", "", "seeds is missing"),
        ("name: tiny", "name: a/b", "usable as a folder's name"),
        ("name: tiny", "name: tiny\nname: again", "this key stands here twice"),
        ("name: tiny", "name: tiny\nselection_metric: acuracy", "did you mean 'accuracy'"),
        ("name: tiny", "name: tiny\nselection_metric: loss", "must be false for the metric loss"),
        ("warmup_steps: 0.1", "eval_steps: 1.5", "eval_steps is 1.5; it must be a whole number from 1 or a share"),
        ("warmup_steps: 0.1", "max_grad_norm: 1", "training.max_grad_norm: there is no such key"),
        ("training: {", "training: {{", "is not valid YAML at line"),
    ],
)
def test_refuses_with_one_sentence(tmp_path, old, new, sentence):
    assert old in GOOD
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load_study_file(write(tmp_path, GOOD.replace(old, new)))


def test_says_that_the_file_is_not_there_or_empty(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.yaml can't be read: No such file"):
        load_study_file(tmp_path / "nothing.yaml")
    with pytest.raises(ValueError, match="is empty"):
        load_study_file(write(tmp_path, "# nothing\n"))


def test_a_list_is_no_study(tmp_path):
    with pytest.raises(ValueError, match="it must be a mapping with the keys name"):
        load_study_file(write(tmp_path, "[1, 2]"))


@pytest.mark.parametrize(
    "field", [field.name for field in dataclasses.fields(Training) if field.type not in (bool, str)]
)
def test_no_training_field_takes_a_negative_number_or_a_bool(field):
    for value in (-3, True):
        problems = Problems("test")
        assert parse(Training, {field: value}, (), problems) is None
        assert problems.found


def test_a_study_of_glue_must_hold_out_validation_data(tiny, tmp_path):
    tiny |= {"task": "glue", "model": {"task_name": "rte", "model_name_or_path": "x", "validation_fraction": 0}}
    problems = Problems("test")
    assert parse_study(tiny, problems) is None
    assert "leave no test split" in problems.found[0][1]


VARIED = """
loss_multipliers: [1, 10.5]
model_variants:
  deep: {num_hidden_layers: 8}
  wide: {hidden_size: 32, num_attention_heads: 4}
"""


def test_variants_and_multipliers_are_read(tmp_path):
    study = load_study_file(write(tmp_path, GOOD + VARIED))
    assert study.loss_multipliers == (1.0, 10.5)
    assert study.model_variants == {
        "deep": {"num_hidden_layers": 8},
        "wide": {"hidden_size": 32, "num_attention_heads": 4},
    }
    assert [variant["label"] for variant in study.as_dict()["model_variants"]] == ["deep", "wide"]


def test_what_came_later_is_not_in_the_record_of_a_study_that_makes_no_use_of_it(tmp_path):
    spec = load_study_file(write(tmp_path, GOOD)).as_dict()
    assert not {"loss_multipliers", "model_variants"} & set(spec)
    assert "processes_per_cell" not in spec["training"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("[1, 10.5]", "[1, 0]", "line 13: loss_multipliers[1]: is 0.0; a loss multiplier must be positive."),
        ("[1, 10.5]", "[]", "loss_multipliers: is an empty list"),
        ("[1, 10.5]", "[1, 1.0]", "loss_multipliers[1]: the value 1.0 stands here twice"),
        ("num_hidden_layers: 8", "layers: 8", "line 15: model_variants.deep.layers: there is no such key; known are:"),
        ("num_hidden_layers: 8", "hidden_size: 9", "line 15: model_variants.deep: digits: hidden_size is 9; it must"),
        ("num_hidden_layers: 8", "hidden_size: big", "model_variants.deep.hidden_size: is 'big'; it must be a whole"),
        ("{num_hidden_layers: 8}", "8", "model_variants.deep: is 8; it must be a mapping."),
        ("deep:", "8:", "line 15: model_variants.8: the label 8 must be a text"),
        ("{num_hidden_layers: 8}", "{hidden_size: 32, num_attention_heads: 4}", "model_variants.wide: the model"),
    ],
)
def test_refuses_variants_and_multipliers_with_one_sentence(tmp_path, old, new, sentence):
    assert old in VARIED
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        load_study_file(write(tmp_path, GOOD + VARIED.replace(old, new)))
    assert len(str(caught.value).splitlines()) == 1, "one mistake is told once"


def test_a_metric_that_one_variant_lacks_is_refused(tiny):
    tiny |= {"task": "glue", "selection_metric": "f1", "model": {"task_name": "mrpc", "model_name_or_path": "x"}}
    tiny["model_variants"] = {"mrpc": {}, "cola": {"task_name": "cola"}}
    problems = Problems("test")
    parse_study(tiny, problems)
    assert [message for _, message in problems.found] == [
        "selection_metric: is 'f1'; known are: matthews_correlation, accuracy, loss."
    ]


def test_options_stand_in_the_place_of_the_files_own(tmp_path):
    path = write(tmp_path, GOOD)
    study = load_study_file(
        path, {"model": {"hidden_size": 8, "num_attention_heads": None}, "training": {"threads": 2}}
    )
    assert study.model["hidden_size"] == 8
    assert study.model["num_attention_heads"] == 4, "the file's own is gone, and the default back"
    assert study.training.threads == 2
    with pytest.raises(ValueError, match="training.processes_per_cell: is 'two'; it must be a whole number"):
        load_study_file(path, {"training": {"processes_per_cell": "two"}})


def test_shipped_studies_are_valid(tmp_path):
    folder = pathlib.Path(__file__).parents[2] / "scripts" / "studies"
    files = sorted(folder.glob("*.yaml"))
    assert files
    images = {"dataset_path": str(write_digits(tmp_path / "images")), "dataset_name": None}
    for path in files:
        options = {"model": images} if "task: images" in path.read_text() else {}
        assert load_study_file(path, options).name == path.stem
