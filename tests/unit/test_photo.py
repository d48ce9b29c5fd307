"""Pictures of digits are brought to MNIST's format by MNIST's own rule (CASES, kinds E and I)."""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import helpers as h
from latent_digits.photo import place_by_mass

pytestmark = pytest.mark.cases
STROKES = [[(0, 0), (11, 0), (4, 18)], [(2, 9), (9, 9)]]  # a seven with a bar


@pytest.fixture(scope="module")
def seven():
    """A digit in MNIST's format, (28, 28) uint8."""
    return (h.prepare_digit(h.rasterize(STROKES, 3.5))[0, 0].numpy() * 255).round().astype(np.uint8)


def alike(first, second):
    """The correlation of two images, up to a pixel: a hair's breadth decides which way the centre is rounded."""
    shifts = [torch.roll(first, (down, right), (2, 3)) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    return max(torch.corrcoef(torch.stack([shifted.flatten(), second.flatten()]))[0, 1] for shifted in shifts)


def large(seven, side=20, height=90, width=110, top=11, left=37):
    """The digit, enlarged, somewhere on a larger background."""
    digit = np.array(Image.fromarray(seven).resize((side, side), Image.Resampling.BILINEAR))
    field = np.zeros((height, width), np.uint8)
    field[top : top + side, left : left + side] = digit
    return field


def centre_and_box(x):
    ink, axis = x[0, 0], torch.arange(28.0)
    rows, columns = ink.sum(1), ink.sum(0)
    sides = [(part > 0).nonzero().max() - (part > 0).nonzero().min() + 1 for part in (rows, columns)]
    return [(part @ axis / ink.sum()).item() for part in (rows, columns)], max(sides).item()


@pytest.mark.parametrize("side", [14, 20, 28, 40, 56])
def test_e3_the_rule_is_that_of_mnist(seven, side):
    """Ink bright, the longest side 20 pixels, the centre of mass within half a pixel of 14."""
    x = h.prepare_digit(255 - large(seven, side))
    assert x.shape == (1, 1, 28, 28)
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (0, 1)
    centre, box = centre_and_box(x)
    assert box == 20
    assert all(13.5 <= place <= 14.5 for place in centre)
    assert alike(x, h.prepare_digit(seven)) > 0.9


def test_e3_what_is_in_the_format_comes_back_as_it_is(seven):
    for image in (seven, seven / 255, torch.from_numpy(seven / 255).float().view(1, 1, 28, 28), Image.fromarray(seven)):
        difference = h.prepare_digit(image)[0, 0] - torch.from_numpy(seven / 255).float()
        assert difference.abs().max() < 0.03


def test_e3_dark_on_white_is_the_reverse_of_bright_on_black(seven):
    torch.testing.assert_close(h.prepare_digit(255 - seven), h.prepare_digit(seven), atol=1e-4, rtol=0)
    grey = 0.7 - 0.3 * (seven / 255)
    torch.testing.assert_close(h.prepare_digit(grey), h.prepare_digit(seven), atol=0.02, rtol=0)


@given(st.integers(0, 40), st.integers(0, 60))
def test_e3_it_does_not_matter_where_the_digit_is(top, left):
    seven = (h.rasterize(STROKES)[0, 0].numpy() * 255).astype(np.uint8)
    expected = h.prepare_digit(large(seven, 28, top=20, left=30))
    torch.testing.assert_close(h.prepare_digit(large(seven, 28, top=top, left=left)), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("height", [60, 90, 28])
@pytest.mark.parametrize("width", [2_000, 6_000])
def test_e3_the_sheet_may_be_a_narrow_strip(height, width):
    seven = (h.rasterize(STROKES)[0, 0].numpy() * 255).astype(np.uint8)
    strip = np.full((height, width), 255, np.uint8)
    strip[:28, width // 3 : width // 3 + 28] -= seven
    for sheet in (strip, strip.T):
        x, expected = h.prepare_digit(sheet)[0, 0], h.prepare_digit(255 - seven)[0, 0]
        assert ((x if sheet is strip else x.T) - expected).abs().mean() < 0.02


def test_e3_a_small_digit_is_found_on_a_large_clean_sheet():
    seven = (h.rasterize(STROKES)[0, 0].numpy() * 255).astype(np.uint8)
    sheet = np.full((3_000, 4_000), 255, np.uint8)
    sheet[1_000:1_056, 3_000:3_056] -= seven.repeat(2, 0).repeat(2, 1)
    assert (h.prepare_digit(sheet) - h.prepare_digit(255 - seven)).abs().mean() < 0.03


COLOURS = {
    "red on white": ((200, 20, 20), (255, 255, 255)),
    "yellow on blue": ((250, 240, 20), (10, 20, 120)),
    "red on green, as bright as it": ((200, 0, 0), (0, 102, 0)),
}


def coloured(seven, ink, paper):
    share = large(seven)[:, :, None] / 255
    return (share * np.array(ink) + (1 - share) * np.array(paper)).round().astype(np.uint8)


@pytest.mark.parametrize(("ink", "paper"), COLOURS.values(), ids=COLOURS)
def test_e3_colours_are_read_by_how_far_they_are_from_the_background(seven, ink, paper):
    expected, image = h.prepare_digit(large(seven)), coloured(seven, ink, paper)
    for form in (image, torch.from_numpy(image).permute(2, 0, 1), image.astype(float), image / 255):
        torch.testing.assert_close(h.prepare_digit(form), expected, atol=0.06, rtol=0)


def test_e3_uneven_light_noise_and_specks_are_left_out(seven):
    rng = np.random.default_rng(0)
    big = large(seven, 60, 120, 160, 30, 70) / 255
    light = np.linspace(0.9, 0.6, 160)[None] * np.linspace(1, 0.9, 120)[:, None]
    photo = light * (1 - 0.7 * big) + rng.normal(0, 0.015, big.shape)
    photo[10:12, 10:12] = 0.1  # a speck of dust
    x, expected = h.prepare_digit(photo.clip(0, 1)), h.prepare_digit(big)
    assert alike(x, expected) > 0.95


def test_e3_pictures_are_read_from_files_of_all_kinds(seven, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    picture, expected = Image.fromarray(255 - large(seven)), h.prepare_digit(large(seven))
    clear = Image.new("RGBA", picture.size, (0, 0, 0, 0))  # black ink on nothing
    clear.putalpha(Image.fromarray(large(seven)))
    white = Image.new("RGBA", picture.size, (255, 255, 255, 0))
    white.putalpha(Image.fromarray(large(seven)))
    deep = Image.fromarray(large(seven).astype(np.uint16) * 257)
    forms = {
        "grey.png": picture,
        "colour.png": picture.convert("RGB"),
        "palette.gif": picture.convert("P"),
        "grey.jpg": picture,
        "deep.png": deep,
        "black on nothing.png": clear,
        "white on nothing.png": white,
        "grey and alpha.png": picture.convert("LA"),
        "four colours.tif": picture.convert("RGB").convert("CMYK"),
    }
    for name, form in forms.items():
        form.save(tmp_path / name, **({"quality": 95} if name.endswith("jpg") else {}))
        for path in (tmp_path / name, str(tmp_path / name), f"~/{name}"):
            assert alike(h.prepare_digit(path), expected) > (0.9 if name == "grey.jpg" else 0.99), name
    turned, exif = picture.rotate(90, expand=True), Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 270 degrees to see it so
    turned.save(tmp_path / "turned.png", exif=exif)
    assert alike(h.prepare_digit(tmp_path / "turned.png"), expected) > 0.99


def test_e3_mass_goes_to_pixel_14_and_no_ink_beyond_the_edge():
    ink = torch.zeros(20, 20)
    ink[0, :3] = 1.0
    x = place_by_mass(ink)
    assert x.sum() == 3
    assert x[0, 0, 8, 8:11].tolist() == [1, 1, 1]  # as near as the box can be
    ink = torch.zeros(20, 20)
    ink[9, 7:10] = 1.0
    assert place_by_mass(ink)[0, 0, 14, 13:16].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((40, 40)), "image must have a digit on an even background, got a contrast of 0"),
        (np.full((40, 40, 3), 200, np.uint8), "image must have a digit"),
        (np.random.default_rng(0).normal(0.5, 0.1, (50, 50)).clip(0, 1), "image must have a digit"),
        (np.zeros((2, 3, 28, 28)), r"image must be \(h, w\) or \(h, w, channels\), got shape \(2, 3, 28, 28\)"),
        (np.zeros((28, 28, 7)), "image must be .*got shape"),
        (np.zeros(784), "image must be .*got shape"),
        (np.zeros((0, 0)), "image must be .*got shape"),
        (np.full((28, 28), math.nan), "image must be finite numbers"),
        (np.full((28, 28), "x"), "image must be finite numbers"),
        (np.full((28, 28), -1.0), "image must have no negative pixels, got -1"),
    ],
    ids=["black", "grey", "noise", "batch", "channels", "flat", "empty", "nan", "text", "negative"],
)
def test_e3_what_is_no_picture_of_a_digit_is_refused_by_name(image, said):
    with pytest.raises(ValueError, match=said):
        h.prepare_digit(image)


def test_e3_files_that_are_no_pictures_are_refused_by_name(tmp_path):
    path = tmp_path / "notes.png"
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=rf"image must be a picture, got {re.escape(str(path))}"):
        h.prepare_digit(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        h.prepare_digit(tmp_path / "nowhere.png")


def enlarge(seven, side):
    return F.interpolate(torch.as_tensor(seven).float().view(1, 1, *seven.shape) / 255, side, mode="bicubic")[0, 0]


def sheet(seven, height, width, top, left, side, ink=30, paper=235):
    """A digit of so many pixels, dark on a sheet, as a picture."""
    digit = enlarge(seven, side).clamp(0, 1).numpy()
    pixels = np.full((height, width), paper, np.uint8)
    pixels[top : top + side, left : left + side] = (paper + (ink - paper) * digit).astype(np.uint8)
    return Image.fromarray(pixels)


def test_e8_a_small_digit_on_a_large_sheet_is_read_as_on_a_small_one(seven):
    small = h.prepare_digit(sheet(seven, 240, 240, 60, 50, 100))
    large = h.prepare_digit(sheet(seven, 3000, 4000, 1500, 2500, 100))
    assert (small - large).abs().mean() < 0.005


def test_e8_an_open_picture_is_read_as_its_file_is(seven, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # the phone was held upright
    path = tmp_path / "photo.jpg"
    sheet(seven, 200, 300, 40, 90, 100).save(path, exif=turned, quality=95)
    torch.testing.assert_close(h.prepare_digit(Image.open(path)), h.prepare_digit(path))
    grey = sheet(seven, 200, 300, 40, 90, 100)
    inks = grey.convert("RGB").convert("CMYK")
    assert (h.prepare_digit(inks) - h.prepare_digit(grey)).abs().mean() < 0.01


def test_e8_masks_and_what_interpolation_leaves_beyond_one_are_taken(seven):
    mask = seven > 127
    torch.testing.assert_close(h.prepare_digit(mask.astype(np.uint8)), h.prepare_digit(mask.astype(np.float32)))
    enlarged = enlarge(seven, 100)
    assert enlarged.max() > 1
    assert enlarged.min() < 0
    torch.testing.assert_close(h.prepare_digit(enlarged), h.prepare_digit(enlarged.clamp(0, 1)))


def test_e8_a_file_that_breaks_off_is_refused_by_name(seven, tmp_path):
    path = tmp_path / "photo.jpg"
    sheet(seven, 200, 300, 40, 90, 100).save(path)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:30]):
        with pytest.raises(ValueError, match="image must be a picture, got bytes"):
            h.prepare_digit(broken)
    with pytest.raises(FileNotFoundError):
        h.prepare_digit(tmp_path / "absent.png")
