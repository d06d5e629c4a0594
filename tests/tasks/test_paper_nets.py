import pytest
import torch
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, set_seed

from hf_proxadam.tasks.paper_nets import (
    PAPER_NETS,
    CifarDenseNetConfig,
    CifarResNetConfig,
    NormFreeViTConfig,
    NormFreeViTForImageClassification,
)

TINY_VIT = {
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def make(config):
    set_seed(0)
    return AutoModelForImageClassification.from_config(config)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


# Weights of the 3x3 convolutions and the linear layer of a ResNet by hand: 16 first channels; n blocks of two layers.
def resnet_weights(depth):
    n = (depth - 2) // 6
    convolutions = 3 * 16 + 2 * n * 16 * 16 + 16 * 32 + (2 * n - 1) * 32 * 32 + 32 * 64 + (2 * n - 1) * 64 * 64
    return 9 * convolutions + 64 * 10 + 10


@pytest.mark.parametrize(
    ("name", "published"),
    [("resnet20", 0.27e6), ("resnet44", 0.66e6), ("resnet56", 0.85e6), ("resnet110", 1.7e6), ("resnet218", 3.5e6)],
)
def test_resnets_have_the_published_number_of_parameters(name, published):
    depth = int(name.removeprefix("resnet"))
    with_norm = count(make(PAPER_NETS[name](num_labels=10)))
    assert with_norm == pytest.approx(published, rel=0.02)
    without = make(PAPER_NETS[name](num_labels=10, normalization="none"))
    assert count(without) == resnet_weights(depth)
    # A scale and a shift per channel and layer.
    assert with_norm - count(without) == 2 * (16 + (depth - 2) // 3 * (16 + 32 + 64))
    layers = [module for module in without.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == depth
    assert not [module for module in without.modules() if "Norm" in type(module).__name__]


def test_densenet_has_the_published_number_of_parameters():
    model = make(PAPER_NETS["densenet_bc_100"](num_labels=10))
    assert count(model) == pytest.approx(0.77e6, rel=0.005)
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == 100
    without = make(PAPER_NETS["densenet_bc_100"](num_labels=10, normalization="none"))
    assert not [module for module in without.modules() if "Norm" in type(module).__name__]


SMALL = [
    CifarResNetConfig(depth=8, num_labels=5, num_channels=1),
    CifarResNetConfig(depth=8, num_labels=5, normalization="none"),
    CifarDenseNetConfig(depth=10, num_labels=5),
    CifarDenseNetConfig(depth=10, num_labels=5, num_channels=1, normalization="none"),
    NormFreeViTConfig(num_labels=5, **TINY_VIT),
]


@pytest.mark.parametrize("config", SMALL, ids=lambda config: f"{config.model_type}")
def test_saved_and_loaded_a_net_is_the_same_bit_for_bit(config, tmp_path):
    model = make(config)
    pixels = torch.randn(3, config.num_channels, 8, 8)
    model.train()(pixels)  # so that running means have values of their own
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    with torch.no_grad():
        assert torch.equal(loaded(pixels).logits, model(pixels).logits)
    labels = torch.tensor([0, 4, 2])
    output = loaded(pixels, labels=labels)
    assert output.loss.item() == pytest.approx(torch.nn.functional.cross_entropy(output.logits, labels).item())


@pytest.mark.parametrize("config", SMALL[:4], ids=lambda config: f"{config.model_type}")
def test_a_new_head_on_loaded_weights_is_drawn_like_the_first_one(config, tmp_path):
    make(config).save_pretrained(tmp_path)
    set_seed(1)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    head = loaded.classifier
    assert head.weight.shape[0] == 7
    assert 0 < head.bias.abs().max() <= head.in_features**-0.5
    assert torch.equal(loaded.conv.weight, make(config).conv.weight)


def test_weights_have_hes_variance():
    model = make(CifarResNetConfig(depth=20, normalization="none"))
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 5000:
            assert module.weight.var().item() == pytest.approx(2 / module.weight[0].numel(), rel=0.1)
    model = make(CifarDenseNetConfig(depth=40, normalization="none"))
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 5000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.var().item() == pytest.approx(2 / fan_out, rel=0.1)


def test_the_shortcut_takes_every_second_pixel_and_pads_channels_with_zeros():
    model = make(CifarResNetConfig(depth=8, normalization="none"))
    block = model.stages[1][0]
    with torch.no_grad():
        block.conv2.weight.zero_()
        pixels = torch.rand(2, 16, 6, 6)
        out = block(pixels)
    assert out.shape == (2, 32, 3, 3)
    assert torch.equal(out[:, 8:24], pixels[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_the_vit_without_normalisation_is_the_vit_but_for_that():
    set_seed(0)
    without = NormFreeViTForImageClassification(NormFreeViTConfig(**TINY_VIT))
    set_seed(0)
    usual = ViTForImageClassification(ViTConfig(**TINY_VIT))
    kept = {name: value for name, value in usual.state_dict().items() if "layernorm" not in name}
    assert kept.keys() == without.state_dict().keys()
    assert all(torch.equal(kept[name], value) for name, value in without.state_dict().items())
    assert not [module for module in without.modules() if isinstance(module, torch.nn.LayerNorm)]


@pytest.mark.parametrize(
    ("make_config", "sentence"),
    [
        (lambda: CifarResNetConfig(depth=34), "depth is 34; a CIFAR ResNet has 6n \\+ 2 layers"),
        (lambda: CifarDenseNetConfig(depth=121), "depth is 121; a DenseNet-BC has 6n \\+ 4 layers"),
        (
            lambda: CifarResNetConfig(normalization="layer"),
            "normalization is 'layer'; a CIFAR ResNet takes batch or none",
        ),
        (lambda: CifarDenseNetConfig(growth_rate=0), "growth_rate is 0; it must be at least 1"),
    ],
)
def test_wrong_configurations_are_refused(make_config, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_config()
