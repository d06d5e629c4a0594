import numpy as np
import pytest
import torch

from hf_proxadam.tasks.augmentation import DRAWS, Augmentation

IMAGE = np.arange(1, 2 * 5 * 5 + 1, dtype=np.uint8).reshape(2, 5, 5)


def draws(flip=0.9, top=0.5, left=0.5, area=0.5, aspect=0.5, mixup=0.5):
    numbers = np.array([flip, top, left, area, aspect, mixup], dtype=np.float32)
    assert len(numbers) == DRAWS
    return numbers


def crop(augmentation, numbers):
    out = np.full_like(IMAGE, 255)
    augmentation.crop_and_flip(IMAGE, numbers, out)
    return out


def test_a_padded_crop_is_a_window_of_the_padded_image():
    augmentation = Augmentation(random_crop="padded", padding=2)
    padded = np.pad(IMAGE, ((0, 0), (2, 2), (2, 2)))
    windows = {padded[:, y : y + 5, x : x + 5].tobytes() for y in range(5) for x in range(5)}
    shifts = [(i + 0.5) / 5 for i in range(5)] + [0.0, np.float32(1 - 2**-24)]
    seen = {crop(augmentation, draws(top=top, left=left)).tobytes() for top in shifts for left in shifts}
    assert seen == windows
    assert np.array_equal(crop(augmentation, draws()), IMAGE), "the middle draw is the image itself"


def test_a_flip_mirrors_after_the_crop():
    flipping = Augmentation(random_crop="padded", padding=1, random_flip=True)
    numbers = draws(flip=0.49, top=0.0, left=0.0)
    shifted = crop(Augmentation(random_crop="padded", padding=1), numbers)
    assert np.array_equal(crop(flipping, numbers), shifted[..., ::-1])
    assert np.array_equal(crop(flipping, draws(flip=0.5, top=0.0, left=0.0)), shifted)
    assert np.array_equal(crop(Augmentation(random_flip=True), draws(flip=0.1)), IMAGE[..., ::-1])


def test_a_resized_crop_lies_inside_and_has_the_area_and_aspect_drawn():
    augmentation = Augmentation(random_crop="resized")
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(300):
        left, top, right, bottom = augmentation.box((40, 30), rng.random(DRAWS, dtype=np.float32))
        assert 0 <= left < right <= 40
        assert 0 <= top < bottom <= 30
        areas.append((right - left) * (bottom - top) / 1200)
    assert min(areas) < 0.15
    assert max(areas) > 0.85
    left, top, right, bottom = augmentation.box((40, 30), draws(area=0.1, aspect=0.0, left=1.0, top=1.0))
    assert (right - left) * (bottom - top) == pytest.approx(0.172 * 1200)
    assert (right - left) / (bottom - top) == pytest.approx(0.75)
    assert (right, bottom) == (40, 30)


def test_mixup_mixes_images_and_labels_by_the_same_shares():
    augmentation = Augmentation(mixup_alpha=0.5)
    rng = np.random.default_rng(0)
    numbers = rng.random((2000, DRAWS), dtype=np.float32)
    labels = torch.arange(2000) % 2
    images, shares = augmentation.mix(labels.float().view(-1, 1, 1, 1), labels, 2, numbers)
    assert torch.allclose(shares.sum(1), torch.ones(2000))
    # An image whose pixels are its label keeps as much of it as the label does.
    assert torch.allclose(images.flatten(), shares[:, 1])
    own = shares[torch.arange(2000), labels]
    assert own.mean().item() == pytest.approx(0.5, abs=0.03)
    assert own.var().item() == pytest.approx(1 / 8, abs=0.01)  # Beta(a, a) has the variance 1 / (4 (2 a + 1))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"random_crop": "centre"}, "random_crop is 'centre'; known are: none, padded, resized"),
        ({"padding": 0}, "random_crop_padding is 0; it must be at least 1"),
        ({"mixup_alpha": -0.1}, "mixup_alpha is -0.1; it must be a number from 0"),
        ({"mixup_alpha": float("nan")}, "mixup_alpha is nan"),
    ],
)
def test_options_out_of_range_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Augmentation(**options)
