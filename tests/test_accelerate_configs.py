from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

FOLDER = Path(__file__).parents[1] / "scripts" / "accelerate"
WANTED = {
    "cpu.yaml": {"distributed_type": "MULTI_GPU", "num_machines": 1, "mixed_precision": "no"},
    "deepspeed_zero2.yaml": {"distributed_type": "DEEPSPEED", "num_machines": 1},
    "fsdp2.yaml": {"distributed_type": "FSDP", "num_machines": 1},
    "several_gpus.yaml": {"distributed_type": "MULTI_GPU", "num_machines": 1},
    "several_machines.yaml": {"distributed_type": "MULTI_GPU", "num_machines": 2},
}


def test_the_folder_holds_these():
    assert {path.name for path in FOLDER.iterdir()} == WANTED.keys()


@pytest.mark.parametrize("name", WANTED)
def test_accelerate_reads_the_configuration_and_knows_its_keys(name):
    # It refuses keys that it does not know.
    config = load_config_from_file(str(FOLDER / name))
    assert isinstance(config, ClusterConfig)
    found = {key: getattr(getattr(config, key), "value", getattr(config, key)) for key in WANTED[name]}
    assert found == WANTED[name]
    assert config.num_processes > 1


@pytest.mark.parametrize("name", WANTED)
def test_its_comment_has_the_command_that_uses_it(name):
    text = (FOLDER / name).read_text()
    assert f"accelerate launch --config_file scripts/accelerate/{name}" in text
    (script,) = {word for word in text.split() if word.endswith(".py")}
    assert (FOLDER.parents[1] / script).is_file()


def test_sharding_is_what_the_names_say():
    assert load_config_from_file(str(FOLDER / "fsdp2.yaml")).fsdp_config["fsdp_version"] == 2
    zero = load_config_from_file(str(FOLDER / "deepspeed_zero2.yaml")).deepspeed_config
    assert zero["zero_stage"] == 2
    assert zero["offload_optimizer_device"] == "none", "DeepSpeed would put an optimizer of its own in place of ours"
