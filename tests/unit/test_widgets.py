"""Pictures that follow a slider, the mouse, a drawing: without a browser (for one, see system/test_browser.py)."""

import io
import math
from datetime import UTC, datetime

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ipywidgets.widgets import widget
from plotly.callbacks import InputDeviceState, Points

import helpers as h
from latent_digits.figures import GAP
from study.widgets import Screen


def pixels(image_widget):
    """What an image widget shows: (height, width), from 0 to 1."""
    return plt.imread(io.BytesIO(image_widget.value))[..., 0]


def grey(level):
    return torch.full((1, 1, 28, 28), float(level))


def test_a_screen_shows_images_in_rows_and_text():
    screen = Screen(columns=2, zoom=3)
    screen.show(torch.stack([grey(level)[0] for level in (0.2, 0.4, 0.6)]), "three")
    picture = pixels(screen.picture)
    assert picture.shape == (3 * (28 + GAP + 28),) * 2
    np.testing.assert_allclose([picture[40, 40], picture[40, 130], picture[130, 40]], [0.2, 0.4, 0.6], atol=0.003)
    assert picture[130, 130] == 1  # the place of a fourth
    assert screen.caption.value == "three"


def test_a_picture_follows_its_controls():
    first, second = widgets.FloatSlider(value=0.5, max=1), widgets.Dropdown(options=[("a", 0.0), ("b", 0.25)])
    panel = h.explore(lambda a, b: (grey(a + b), f"{a} {b}"), first, second)
    screen = panel.children[1]
    assert pixels(screen.picture).mean() == pytest.approx(0.5, abs=0.003)
    first.value = 0.1
    assert (pixels(screen.picture).mean(), screen.caption.value) == (pytest.approx(0.1, abs=0.003), "0.1 0.0")
    second.value = 0.25
    assert (pixels(screen.picture).mean(), screen.caption.value) == (pytest.approx(0.35, abs=0.003), "0.1 0.25")


def test_the_map_shows_the_image_under_the_mouse():
    labels, values = np.array([3, 7, 3, 7]), np.array([-10.0, -20.0, -30.0, -40.0])
    images = torch.cat([grey(level) for level in (0.1, 0.2, 0.3, 0.4)])
    figure, screen = h.latent_map(np.arange(8.0).reshape(4, 2), images, labels, values).children
    assert [trace.name for trace in figure.data] == ["3", "7"]
    sevens = figure.data[1]
    np.testing.assert_array_equal(np.stack([sevens.x, sevens.y], 1), [[2, 3], [6, 7]])
    assert sevens.text == ("log p(x) = -20.0 nats", "log p(x) = -40.0 nats")
    sevens._dispatch_on_hover(Points([1]), InputDeviceState())
    assert screen.caption.value == "digit 7<br>log p(x) = -40.0 nats"
    assert pixels(screen.picture).mean() == pytest.approx(0.4, abs=0.003)


def test_the_browser_first_hears_of_a_map_that_is_whole(monkeypatch):
    told, create = [], widget.comm.create_comm
    monkeypatch.setattr(widget.comm, "create_comm", lambda **news: told.append(news["data"]["state"]) or create(**news))
    h.latent_map(np.zeros((2, 2)), torch.cat([grey(0.1), grey(0.2)]), np.array([3, 7]), np.zeros(2))
    (figure,) = (state for state in told if "_widget_data" in state)
    assert [trace["name"] for trace in figure["_widget_data"]] == ["3", "7"]
    assert figure["_widget_layout"]["legend"]["title"]["text"] == "digit"


def test_a_drawing_is_answered_after_each_stroke_and_cleared():
    drawings = []

    def answer(x):
        drawings.append(x)
        return torch.cat([x, 1 - x]), f"{len(drawings)} drawn"

    pad = h.DrawingPad(answer)
    pad.move(5, 5)  # no button is down
    pad.lift()
    assert drawings == []
    for start in (100, 200):
        pad.press(start, 40)
        pad.move(start, 240)
        pad.lift()
        pad.move(5, 5)  # between two strokes
    assert pad.screen.caption.value == "2 drawn"
    torch.testing.assert_close(drawings[0], h.rasterize([[(0, 0), (0, 1)]]))
    torch.testing.assert_close(drawings[1], h.rasterize([[(100, 40), (100, 240)], [(200, 40), (200, 240)]]))
    pad.children[0].children[1].children[0].click()
    assert pad.strokes == []
    assert pad.screen.caption.value == "draw a digit, or choose a picture of one"


def choose(pad, content):
    """What a browser sends when a file is chosen."""
    about = {"name": "digit.png", "type": "image/png", "size": len(content), "last_modified": datetime.now(UTC)}
    pad.upload.value = (about | {"content": memoryview(content)},)


@pytest.mark.cases
def test_e7_a_picture_file_is_answered_as_a_drawing_is():
    seen, pad = [], None

    def answer(x):
        seen.append(x)
        return x, f"{len(seen)} read"

    pad, file = h.DrawingPad(answer), io.BytesIO()
    paper = np.full((90, 60), 230, np.uint8)
    paper[20:70, 28:34] = 20  # a one, dark on white
    PIL.Image.fromarray(paper).save(file, "PNG")
    pad.press(100, 40)
    pad.move(100, 240)
    pad.lift()
    for count in (2, 3):  # the same file may be chosen again
        choose(pad, file.getvalue())
        assert pad.screen.caption.value == f"{count} read"
        torch.testing.assert_close(seen[-1], h.prepare_digit(paper))
    assert pad.strokes == []  # the drawing has made room
    choose(pad, b"<no picture>")
    assert "image must be a picture" in pad.screen.caption.value
    assert "<no picture>" not in pad.screen.caption.value
    assert len(seen) == 3


points = st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=1, max_size=8)


def centre_of_mass(x):
    axis = torch.arange(28.0)
    mass = x[0, 0] / x.sum()
    return (mass.sum(0) @ axis).item(), (mass.sum(1) @ axis).item()


@pytest.mark.cases
@given(st.lists(points, min_size=1, max_size=3))
def test_i1_a_drawing_is_centred_where_mnists_images_are(strokes):
    """At pixel 14: over MNIST's 70,000 images the mean is 14.00 and 14.01 (tests/system/test_digits_in_photos.py)."""
    x = h.rasterize(strokes)
    places = (x[0, 0] > 0).nonzero()
    lopsided = places.min() <= 1 or places.max() >= 26  # its box would leave the image
    assert lopsided or centre_of_mass(x) == pytest.approx((14, 14), abs=0.15)


@given(st.lists(points, min_size=1, max_size=3), st.floats(0.1, 10), st.floats(-20, 20))
def test_a_drawing_does_not_depend_on_where_and_how_large(strokes, factor, offset):
    x = h.rasterize(strokes)
    assert x.shape == (1, 1, 28, 28)
    assert x.dtype == torch.float32
    assert x.min() >= 0
    assert x.max() <= 1
    extent = np.ptp(np.concatenate(strokes), axis=0).max()
    if extent > 1e-3:
        moved = [[(factor * a + offset, factor * b - offset) for a, b in stroke] for stroke in strokes]
        torch.testing.assert_close(h.rasterize(moved), x, atol=1e-3, rtol=0)


def test_the_ink_is_where_the_pen_was_in_a_box_of_twenty_centred_by_its_mass():
    x = h.rasterize([[(0, 0), (0, 1)]])  # a vertical line
    rows, columns = (x[0, 0] > 0.5).nonzero().T
    assert (rows.min(), rows.max()) in ((4, 23), (4, 24), (5, 23))  # half a pixel at each end
    assert set(columns.tolist()) == {13, 14, 15}
    torch.testing.assert_close(x[..., 13], x[..., 15])
    flat = h.rasterize([[(0, 0), (1, 0)]])
    torch.testing.assert_close(flat[0, 0], x[0, 0].T)
    seven = h.rasterize([[(0, 0), (11, 0), (4, 18)]])
    assert centre_of_mass(seven) == pytest.approx((14, 14), abs=0.1)
    assert seven[0, 0, :14].sum() > seven[0, 0, 15:].sum()  # y goes downwards: its bar is above


def test_thickness_is_in_pixels_and_a_point_is_a_dot():
    assert h.rasterize([[(3, 4)]], thickness=4).sum() == pytest.approx(math.pi * 2**2, rel=0.05)
    line = h.rasterize([[(0, 0), (0, 1)]], thickness=3)
    assert line.sum() == pytest.approx(17 * 3 + math.pi * 1.5**2, rel=0.05)


@pytest.mark.parametrize(
    "strokes",
    [
        *([], [[]], [[(0, math.nan), (1, 1)]], [[(0, 0)], [(math.inf, 1)]], [[(0, 0, 1, 1)]], [[3.0]]),
        *([1, 2, 3], [[(1, 2), (3,)]], [[{"x": 1, "y": 2}]], ["ab"]),
    ],
)
def test_strokes_that_cannot_be_drawn(strokes):
    with pytest.raises(ValueError, match=r"strokes must be lists of finite points \(x, y\), got"):
        h.rasterize(strokes)


@pytest.mark.cases
def test_e2_strokes_may_be_tensors_of_any_kind():
    strokes = [[(0, 0), (5, 9), (2, 3)], [(1, 1), (4, 4), (0, 2)]]
    expected = h.rasterize(strokes)
    for made in (torch.tensor(strokes).float().requires_grad_(), torch.tensor(strokes).bfloat16(), np.array(strokes)):
        torch.testing.assert_close(h.rasterize(made), expected)
        torch.testing.assert_close(h.rasterize(list(made)), expected)


@pytest.mark.parametrize("thickness", [0, -1, 20, math.nan])
def test_a_pen_that_does_not_fit(thickness):
    with pytest.raises(ValueError, match=rf"thickness must be more than 0 and less than 20 pixels, got {thickness}"):
        h.rasterize([[(0, 0), (1, 1)]], thickness)


def test_a_reading_is_the_likeliest_digit():
    class Sure(torch.nn.Module):
        features = torch.nn.Flatten()

        def head(self, features):
            return torch.log(torch.full((len(features), 10), 0.2 / 9).index_fill(1, torch.tensor(4), 0.8))

    assert h.describe_prediction(Sure(), grey(0.5)) == "read as a 4<br>80% sure"
