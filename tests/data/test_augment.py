"""Image operations: the numbers of torchvision, sample by sample, and a few worked out by hand."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from kdnb.data import augment
from kdnb.data.augment import Resampler, change_colours, gaussian_blur, normalise
from kdnb.data.cache import IMAGENET_MEAN, IMAGENET_STD

CPU = torch.device("cpu")


def resized(images, boxes, mirror, size):
    return Resampler(np.array(boxes), np.array(mirror), size, CPU)(images, slice(0, len(images)))


def row(*values):
    """A one-channel-like image [1, 3, n, n] whose rows are all `values`."""
    return torch.tensor(values, dtype=torch.float32).expand(1, 3, len(values), len(values)).contiguous()


@pytest.mark.parametrize("shape, size", [((32, 32), 32), ((40, 23), 16), ((37, 50), 64), ((60, 60), 7), ((5, 9), 1)])
def test_crop_and_resize_as_torchvision_does(shape, size):
    rng, n = np.random.default_rng(0), 40
    images = torch.rand(n, 3, *shape)
    sides = rng.integers(1, shape, (n, 2), endpoint=True)
    boxes = np.concatenate([rng.integers(0, shape - sides, endpoint=True), sides], 1)
    mirror = rng.random(n) < 0.5
    views = resized(images, boxes, mirror, size)
    for image, box, mirrored, view in zip(images, boxes.tolist(), mirror, views, strict=True):
        expected = tv.resized_crop(image, *box, [size, size], antialias=True)
        torch.testing.assert_close(view, expected.flip(-1) if mirrored else expected, atol=1e-5, rtol=0)


def test_resize_by_hand():
    enlarged = resized(row(0, 1), [[0, 0, 2, 2]], [False], 4)
    assert enlarged[0, 1, 2].tolist() == [0, 0.25, 0.75, 1]
    # Half the size: a triangle of half width 2 around 3.0 weighs the pixels at 1.5, 2.5 and 3.5 with 1/4, 3/4 and 3/4.
    halved = resized(row(0, 0, 0, 7), [[0, 0, 4, 4]], [True], 2)
    torch.testing.assert_close(halved[0, 0, 0], torch.tensor([3.0, 0.0]))


def test_a_crop_sees_nothing_outside_its_box():
    images = torch.full((1, 3, 8, 8), torch.inf)
    images[..., 2:5, 3:7] = 1
    outside = torch.where(images.isinf(), 1e6, images)
    assert resized(outside, [[2, 3, 3, 4]], [False], 6).eq(1).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16])
def test_other_dtypes_are_resized_in_float32(dtype):
    images = torch.randint(0, 256, (2, 3, 9, 9)).to(dtype)
    boxes = [[1, 2, 6, 5], [0, 0, 9, 9]]
    assert torch.equal(resized(images, boxes, [False, True], 4), resized(images.float(), boxes, [False, True], 4))


def per_sample(values):
    return values.view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    "ours, theirs, low, high",
    [
        (augment.brightness_, tv.adjust_brightness, 0, 2),
        (augment.contrast_, tv.adjust_contrast, 0, 2),
        (augment.saturation_, tv.adjust_saturation, 0, 2),
        (augment.shift_hue, tv.adjust_hue, -0.5, 0.5),
    ],
)
def test_colours_as_torchvision_does(ours, theirs, low, high):
    images = torch.rand(20, 3, 9, 12)
    images[:2] = images[:2].round()  # pure colours, black and white, where hue has its corners
    images[2] = images[2, :1]  # grey, where hue is undefined
    factors = torch.linspace(low, high, 20)[torch.randperm(20)]
    expected = torch.stack([theirs(image, factor) for image, factor in zip(images, factors.tolist(), strict=True)])
    torch.testing.assert_close(ours(images, per_sample(factors)), expected, atol=3e-6, rtol=0)


def test_grey_and_solarise_as_torchvision_does():
    images = torch.rand(4, 3, 6, 6)
    images[0, 0, 0] = torch.tensor([0, 0.5, 1, 0.25, 0.75, 0.5])
    assert torch.equal(augment.solarise(images), tv.solarize(images, 0.5))
    grey = tv.rgb_to_grayscale(images, num_output_channels=3)
    torch.testing.assert_close(augment.greyscale_(images), grey, atol=1e-6, rtol=0)


def test_colours_by_hand():
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    third = augment.shift_hue(red.clone(), per_sample(torch.tensor([1 / 3])))
    torch.testing.assert_close(third.flatten(), torch.tensor([0.0, 1.0, 0.0]))
    # Grey of red is 0.2989; half of red and half of that.
    half = augment.saturation_(red.clone(), per_sample(torch.tensor([0.5])))
    torch.testing.assert_close(half.flatten(), torch.tensor([0.64945, 0.14945, 0.14945]))
    # Mean grey of a white and a black pixel is 0.5 (0.9999 times it: the weights of grey add up to 0.9999).
    pair = torch.tensor([1.0, 0.0]).expand(1, 3, 1, 2).clone()
    flat = augment.contrast_(pair, per_sample(torch.tensor([0.0])))
    torch.testing.assert_close(flat, torch.full((1, 3, 1, 2), 0.49995))


def test_blur_as_torchvision_does():
    images, sigma = torch.rand(12, 3, 20, 31), np.linspace(0.1, 2, 12)
    blurred = gaussian_blur(images, sigma)
    for image, s, view in zip(images, sigma, blurred, strict=True):
        torch.testing.assert_close(view, tv.gaussian_blur(image, [29, 29], [float(s)] * 2), atol=1e-4, rtol=0)


def test_blur_by_hand():
    # Sigma at which a neighbour weighs half as much as the centre, and the next one 1/16, then 1/512, 1/65536, ...
    sigma = np.array([1 / np.sqrt(2 * np.log(2))])
    line = torch.zeros(1, 3, 15, 15)
    line[..., 7] = 1
    total = 1 + 2 * (1 / 2 + 1 / 16 + 1 / 512 + 1 / 65536)
    expected = torch.tensor([1 / 16, 1 / 2, 1, 1 / 2, 1 / 16]) / total
    torch.testing.assert_close(gaussian_blur(line, sigma)[0, 0, 3, 5:10], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", [1, 2, 5])
def test_blur_of_images_smaller_than_its_reach(side):
    flat = torch.full((2, 3, side, side), 0.3)
    torch.testing.assert_close(gaussian_blur(flat, np.array([2.0, 0.1])), flat)


def test_dice_choose_what_happens_to_each_sample():
    images = torch.rand(5, 3, 8, 8)
    u = np.full((5, 9), 0.99)
    u[:, 1:5] = 0.8  # factors 1.24, 1.24, 1.12, hue +0.06
    u[1, 0], u[2, 5], u[3, 6], u[4, 8] = 0.79, 0.19, 0.49, 0.19
    u[3, 7] = 0.5  # sigma 1.05
    out = change_colours(images.clone(), u, p_blur=0.5, p_solarise=0.2)
    jittered = tv.adjust_contrast(tv.adjust_brightness(images[1], 1.24), 1.24)
    jittered = tv.adjust_hue(tv.adjust_saturation(jittered, 1.12), 0.06)
    assert torch.equal(out[0], images[0])
    torch.testing.assert_close(out[1], jittered, atol=5e-6, rtol=0)
    torch.testing.assert_close(out[2], tv.rgb_to_grayscale(images[2], 3))
    torch.testing.assert_close(out[3], tv.gaussian_blur(images[3], [9, 9], [1.05, 1.05]), atol=1e-4, rtol=0)
    assert torch.equal(out[4], tv.solarize(images[4], 0.5))
    assert torch.equal(change_colours(images.clone(), u, p_blur=0.49, p_solarise=0.19)[3:], images[3:])


@pytest.mark.parametrize("mean, std", [(IMAGENET_MEAN, IMAGENET_STD), ((0.5, 0.1, 0.9), (0.25, 1.0, 0.3))])
def test_normalise_is_bitwise_what_torchvision_does(mean, std):
    images = torch.arange(256, dtype=torch.uint8).repeat(9).view(3, 3, 16, 16)
    pipeline = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    assert torch.equal(normalise(images, mean, std), pipeline(images))


def test_normalise_cuts_large_batches_without_a_seam():
    images = torch.randint(0, 256, (5, 3, 200, 200), dtype=torch.uint8)  # two images in a part, the last part is short
    single = torch.cat([normalise(image[None], IMAGENET_MEAN, IMAGENET_STD) for image in images])
    assert torch.equal(normalise(images, IMAGENET_MEAN, IMAGENET_STD), single)


def test_normalise_by_hand_and_of_floats():
    pixel = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    assert normalise(pixel, (0.5, 0.5, 0.5), (0.25, 0.5, 0.1)).flatten().tolist() == pytest.approx([2, -1, -3])
    half = torch.tensor([1.5, -2, 0]).view(1, 3, 1, 1).half()
    assert torch.equal(normalise(half, IMAGENET_MEAN, IMAGENET_STD), half.float())
    assert normalise(torch.empty(0, 3, 4, 4, dtype=torch.uint8), IMAGENET_MEAN, IMAGENET_STD).shape == (0, 3, 4, 4)
