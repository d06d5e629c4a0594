import io
import pickle

import datasets
import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import ViTConfig, ViTForImageClassification, ViTModel, set_seed

from hf_proxadam.tasks.base import Task
from hf_proxadam.tasks.image_reading import UnreadableImageError
from hf_proxadam.tasks.images import ImageTask
from tests.tasks.glue_data import write_bert
from tests.tasks.image_files import write_digits, write_squares

TINY = "patch_size=4,hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def digits(tmp_path):
    return write_digits(tmp_path / "digits", train=60, test=30)


@pytest.fixture
def squares(tmp_path):
    return write_squares(tmp_path / "squares")


def vit(folder, **options):
    return ImageTask(**{"dataset_path": str(folder), "model_type": "vit", "config_overrides": TINY, **options})


def table(folder, split="train"):
    return datasets.load_dataset("parquet", data_files=str(folder / f"{split}-*.parquet"), split="train")


def test_parquet_in_the_hubs_layout_at_the_images_own_size(digits):
    task = vit(digits, validation_fraction=0.0)
    assert (len(task.train), len(task.validation), task.has_test) == (60, 30, False)
    original = table(digits, "test")
    row = task.validation[3]
    assert np.array_equal(row.pixels, np.asarray(original[3]["image"])[np.newaxis])
    assert row.label == original[3]["label"]
    model = task.make_model()
    assert (model.config.image_size, model.config.num_channels) == (8, 1)
    assert model.config.id2label[3] == "digit 3"
    assert model.config.label2id["digit 9"] == 9
    batch = task.collate([task.train[i] for i in range(60)])
    assert batch["pixel_values"].shape == (60, 1, 8, 8)
    assert batch["pixel_values"].mean().abs() < 1e-5
    assert batch["pixel_values"].std().item() == pytest.approx(1, abs=0.01)
    assert torch.isfinite(model(**batch).loss)
    with pytest.raises(ValueError, match="there is no split to report on"):
        _ = task.test


def test_a_part_of_the_training_data_is_held_out_stratified(digits):
    task = vit(digits, validation_fraction=0.25)
    assert isinstance(task, Task)
    assert task.has_test
    assert len(task.test) == 30
    splits = (task.train, task.validation)
    parts = [{row.pixels.tobytes() for row in split.__getitems__(range(len(split)))} for split in splits]
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 60
    labels = [task.validation[i].label for i in range(len(task.validation))]
    assert set(labels) == set(range(10))


def test_an_image_folder_keeps_its_classes_and_colours(squares):
    task = vit(squares, validation_fraction=0.0)
    assert list(task.make_model().config.id2label.values()) == ["blue", "green", "red"]
    assert task.make_model().config.num_channels == 3
    for i in range(len(task.validation)):
        row = task.validation[i]
        assert row.pixels.shape == (3, 12, 12)
        # blue, green, red are the classes 0, 1, 2 and the channels 2, 1, 0.
        assert row.pixels.mean(axis=(1, 2)).argmax() == 2 - row.label


def test_numbers_and_words_are_labels_too(tmp_path):
    assert vit(write_digits(tmp_path / "numbers", names=False)).make_model().config.id2label[9] == "9"
    folder = write_digits(tmp_path / "words", 30, 30)
    for split in ("train", "test"):
        rows = table(folder, split)
        words = [f"class {label}" for label in rows["label"]]
        rows = rows.remove_columns("label").add_column("label", words).rename_column("image", "picture")
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    task = vit(folder, validation_fraction=0.0)
    assert task.make_model().config.id2label[4] == "class 4"
    assert task.validation[0].label == int(table(folder, "test")[0]["label"][-1])


def test_images_are_resized_and_cut_to_the_square_in_their_middle(tmp_path):
    folder = write_squares(tmp_path / "wide", size=(20, 10))
    with pytest.raises(ValueError, match="has images of 20 x 10 pixels; give image_size"):
        vit(folder).make_model()
    task = vit(folder, image_size=8, validation_fraction=0.0)
    path = sorted((folder / "test" / "blue").iterdir())[0]
    image = Image.open(path).crop((5, 0, 15, 10)).resize((8, 8), Image.Resampling.BILINEAR)
    difference = task.validation[0].pixels.astype(int) - np.asarray(image).transpose(2, 0, 1)
    # At the sides of the square the filter looks at the pixels beside it, which `crop` has cut off.
    assert np.abs(difference[..., 1:-1]).max() <= 1
    assert np.abs(difference).max() < 8
    assert task.make_model().config.image_size == 8


def test_augmentation_is_a_function_of_seed_epoch_and_image(digits):
    options = {"random_crop": "padded", "random_crop_padding": 2, "random_flip": True, "validation_fraction": 0.0}
    task = vit(digits, **options)

    def batch(seed, epoch, rows=(5, 7, 11)):
        split = task.train
        split.begin_epoch(seed, epoch)
        return task.collate(split.__getitems__(rows))["pixel_values"]

    assert torch.equal(batch(0, 1), batch(0, 1))
    assert torch.equal(batch(0, 1, (11, 5))[[1, 0]], batch(0, 1)[[0, 2]])
    assert not torch.equal(batch(0, 1), batch(0, 2))
    assert not torch.equal(batch(0, 1), batch(1, 1))
    plain = vit(digits, validation_fraction=0.0)
    evaluated = [each.collate(each.validation.__getitems__([0, 1]))["pixel_values"] for each in (task, plain)]
    assert torch.equal(*evaluated), "what is evaluated is not augmented"


def test_worker_processes_see_the_next_epoch_even_if_they_stay(digits):
    task = vit(digits, random_crop="padded", validation_fraction=0.0)
    split = task.train
    loader = DataLoader(split, batch_size=60, num_workers=1, persistent_workers=True, collate_fn=task.collate)
    batches = []
    for epoch in (0, 1):
        split.begin_epoch(3, epoch)
        (batch,) = loader
        expected = task.collate(split.__getitems__(range(60)))
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])
        batches.append(batch["pixel_values"])
    assert not torch.equal(*batches)


def test_without_an_epoch_augmentation_comes_from_torchs_generator(digits):
    split = vit(digits, random_flip=True).train
    seen = []
    for seed in (0, 0, 1):
        set_seed(seed)
        seen.append(split[0].draws)
    assert np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], seen[2])


def test_mixup_makes_shares_of_training_labels_only(digits):
    task = vit(digits, mixup_alpha=0.4, validation_fraction=0.0)
    labels = task.collate(task.train.__getitems__(range(8)))["labels"]
    assert labels.shape == (8, 10)
    assert torch.allclose(labels.sum(1), torch.ones(8))
    assert task.collate(task.validation.__getitems__(range(8)))["labels"].dtype == torch.int64


def write_vit(folder, classes=4, **config):
    set_seed(0)
    shape = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(**{**shape, "intermediate_size": 16, "num_labels": classes, **config})
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


def test_a_pretrained_model_gets_a_new_head_and_its_own_size(digits, tmp_path):
    folder = write_vit(tmp_path / "vit")
    task = ImageTask(dataset_path=str(digits), model_name_or_path=str(folder))
    set_seed(0)
    model = task.make_model()
    assert model.classifier.weight.shape == (10, 16)
    assert model.config.id2label[0] == "digit 0"
    stored = ViTForImageClassification.from_pretrained(folder)
    assert torch.equal(model.vit.embeddings.cls_token, stored.vit.embeddings.cls_token)
    batch = task.collate(task.train.__getitems__([0, 1]))
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert model(**batch).logits.shape == (2, 10)


def test_a_pretrained_model_takes_another_size_by_interpolation(digits, tmp_path):
    folder = write_vit(tmp_path / "vit")
    task = ImageTask(dataset_path=str(digits), model_name_or_path=str(folder), image_size=8)
    model = task.make_model()
    batch = task.collate(task.train.__getitems__([0, 1]))
    assert batch["pixel_values"].shape == (2, 3, 8, 8)
    assert model(**batch).logits.shape == (2, 10)


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("deit", TINY),
        ("swin", "embed_dim=8,depths=[1,1],num_heads=[1,2],window_size=2,patch_size=2"),
        ("convnext", "depths=[1,1],hidden_sizes=[4,8],num_stages=2,patch_size=2"),
        ("resnet", "embedding_size=4,hidden_sizes=[4,8],depths=[1,1],layer_type=basic"),
    ],
)
def test_other_architectures_train_from_a_configuration_and_from_weights(digits, tmp_path, model_type, overrides):
    fresh = vit(digits, model_type=model_type, config_overrides=overrides, validation_fraction=0.0)
    model = fresh.make_model()
    assert model.config.model_type == model_type
    model(**fresh.collate(fresh.train.__getitems__([0, 1, 2]))).loss.backward()
    model.save_pretrained(tmp_path / "saved")
    loaded = ImageTask(dataset_path=str(digits), model_name_or_path=str(tmp_path / "saved"), image_size=16)
    model = loaded.make_model()
    assert torch.isfinite(model(**loaded.collate(loaded.train.__getitems__([0, 1]))).loss)


def test_a_model_that_does_not_take_the_images_says_so(digits):
    task = vit(digits, model_type="clip", config_overrides=None)
    with pytest.raises(ValueError, match="This clip does not take images of 8 pixels: "):
        task.make_model()


def test_the_saved_image_processor_does_what_training_did(digits, tmp_path):
    task = vit(digits, validation_fraction=0.0)
    task.image_processor.save_pretrained(tmp_path / "out")
    rows = table(digits, "test")
    image = np.asarray(rows[0]["image"])[..., np.newaxis]
    processed = task.image_processor(image, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    expected = task.collate([task.validation[0]])["pixel_values"]
    assert torch.allclose(processed, expected, atol=1e-5)


def damage(folder, row=7, split="train", data=b"no image"):
    path = folder / f"{split}-00000-of-00001.parquet"
    rows = table(folder, split)
    images = [dict(image) for image in rows.cast_column("image", datasets.Image(decode=False))["image"]]
    images[row]["bytes"] = data
    fixed = datasets.Dataset.from_dict({"image": images, "label": rows["label"][:]}, features=rows.features)
    fixed.to_parquet(path)


def test_an_unreadable_image_is_named_by_row_and_file_wherever_it_is_read(digits):
    damage(digits, row=7)
    with pytest.raises(UnreadableImageError, match=r"split train, row 7 \(7.png\) can't be read as an image") as caught:
        vit(digits, validation_fraction=0.0).make_model()
    # So it is from a worker process, whose error torch makes anew.
    task = vit(digits, validation_fraction=0.5, config_overrides=f"{TINY},image_size=8,num_channels=1")
    split = task.train if 7 in task.train.rows["row"] else task.validation
    with pytest.raises(UnreadableImageError) as again:
        list(DataLoader(split, batch_size=8, num_workers=1))
    assert str(again.value) == str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_unreadable_images_are_skipped_if_asked_and_named(digits, caplog):
    damage(digits, row=7)
    task = vit(digits, validation_fraction=0.0, skip_unreadable_images=True)
    assert len(task.train) == 59
    assert 7 not in task.train.rows["row"]
    assert "split train: 1 of 60 images are skipped" in caplog.text
    assert "row 7 (7.png)" in caplog.text


def test_sixteen_bit_images_are_refused_not_cut(digits):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), 1000, dtype=np.uint16)).save(buffer, "PNG")
    damage(digits, row=0, data=buffer.getvalue())
    with pytest.raises(UnreadableImageError, match="row 0 .* has the mode I;16; convert it to 8 bits"):
        _ = vit(digits, validation_fraction=0.0).make_model()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dataset_name": "a/b"}, "Give one of dataset_name .* and dataset_path"),
        ({"dataset_path": None}, "Give one of dataset_name .* and dataset_path"),
        ({"dataset_path": "nowhere"}, "dataset_path is 'nowhere', but there is no such folder"),
        ({"dataset_path": __file__}, "dataset_path is .*, but that is a file; give its folder"),
        ({"model_name_or_path": "resnet20"}, "Give one of model_name_or_path .* and model_type"),
        ({"model_type": "vti"}, "transformers has no model_type 'vti'"),
        ({"model_type": "bert", "config_overrides": None}, "is a bert, which has no image-classification head"),
        ({"model_type": "swin", "normalization": "none"}, "normalization is 'none'; a swin takes default"),
        ({"config_overrides": "patch_size"}, "config_overrides has the part 'patch_size'"),
        ({"config_overrides": "patch=4"}, "config_overrides has 'patch', which a vit has no setting for"),
        ({"config_overrides": "patch_size=3"}, "Images of 8 pixels can't be cut into patches of 3"),
        (
            {"image_size": 12, "config_overrides": f"{TINY},image_size=8"},
            "image_size is 12, but config_overrides has 8",
        ),
        ({"image_column": "img"}, "has no column 'img' .image_column.; it has: image, label"),
        ({"label_column": "class"}, "has no column 'class'; name one in label_column, of: image, label"),
        ({"image_column": "label"}, "column label, holds no images"),
        ({"validation_fraction": 1.0}, r"validation_fraction is 1.0; it must be in \[0, 1\)"),
        ({"max_train_samples": 0}, "max_train_samples is 0; it must be at least 1"),
        ({"mixup_alpha": -1}, "mixup_alpha is -1"),
    ],
)
def test_wrong_options_get_one_sentence(digits, options, sentence):
    def make():
        task = vit(**{"folder": digits, **options})
        task.make_model()
        return task.train[0]

    with pytest.raises(ValueError, match=sentence) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_labels_outside_the_classes_and_empty_splits_get_one_sentence(digits):
    path = digits / "test-00000-of-00001.parquet"
    rows = table(digits, "test")
    labels = [-1, *rows["label"][1:]]
    rows.remove_columns("label").add_column("label", labels).to_parquet(path)
    with pytest.raises(ValueError, match=r"split test, row 0, has the label -1; it must be") as caught:
        _ = vit(digits, validation_fraction=0.0).validation
    assert "\n" not in str(caught.value)
    pandas.read_parquet(path).head(0).to_parquet(path)
    with pytest.raises(ValueError, match=r"(split test, is empty|can't be read: )") as caught:
        _ = vit(digits, validation_fraction=0.0).validation
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(ValueError, match="has a train split only: hold a part of it out with validation_fraction"):
        _ = vit(digits, validation_fraction=0.0).validation
    task = vit(digits, validation_fraction=0.2)
    assert not task.has_test
    assert len(task.train) + len(task.validation) == 60


def test_models_without_a_head_and_folders_without_a_model_get_one_sentence(digits, tmp_path):
    bert = write_bert(tmp_path / "bert")
    with pytest.raises(ValueError, match="is a bert, which has no image-classification head"):
        ImageTask(dataset_path=str(digits), model_name_or_path=str(bert)).make_model()
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="The model .*nothing' can't be loaded") as caught:
        ImageTask(dataset_path=str(digits), model_name_or_path=str(tmp_path / "nothing")).make_model()
    assert "\n" not in str(caught.value)
    folder = write_vit(tmp_path / "vit")
    with pytest.raises(ValueError, match="was pretrained with its own"):
        ImageTask(dataset_path=str(digits), model_name_or_path=str(folder), normalization="none")
    task = ImageTask(dataset_path=str(digits), model_name_or_path=str(folder), config_overrides="hidden_size=32")
    with pytest.raises(ValueError, match="don't fit the configuration") as caught:
        task.make_model()
    assert "\n" not in str(caught.value)


def test_a_backbone_gets_a_head(digits, tmp_path):
    config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ViTModel(config).save_pretrained(tmp_path / "backbone")
    task = ImageTask(dataset_path=str(digits), model_name_or_path=str(tmp_path / "backbone"))
    assert task.make_model().classifier.weight.shape == (10, 16)
