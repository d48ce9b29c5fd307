"""Pictures that follow a slider, the mouse, a drawing."""

import html
import io
from collections.abc import Callable, Iterable, Mapping
from numbers import Real

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
import torch
from ipycanvas import Canvas
from jaxtyping import Float, Float64, Shaped
from torch import Tensor, nn

from latent_digits.checks import require_whole
from latent_digits.figures import tile
from latent_digits.metrics import class_probabilities
from latent_digits.photo import place_by_mass, prepare_digit
from latent_digits.precision import to_float64


def blank() -> Float[Tensor, "1 1 28 28"]:
    """A picture of nothing."""
    return torch.zeros(1, 1, 28, 28, device="cpu")


class Screen(widgets.HBox):
    """A picture, and text beside it."""

    def __init__(self, columns: int = 1, zoom: int = 8):
        require_whole(columns=columns, zoom=zoom)
        self.columns, self.zoom = columns, zoom
        rigid = {"flex": "0 0 auto"}  # else the picture is stretched, and the text squeezed
        self.picture = widgets.Image(format="png", layout=rigid)
        self.caption = widgets.HTML(layout=rigid | {"min_width": "13em", "margin": "0 0 0 1em"})
        super().__init__(
            [self.picture, self.caption], layout={"align_items": "flex-start", "flex": "0 0 auto"}
        )

    def show(self, images: Tensor, text: str = "") -> None:
        """Images (n, 1, h, w) in rows of `columns`, and HTML text."""
        large = tile(images, self.columns).repeat(self.zoom, 0).repeat(self.zoom, 1)
        buffer = io.BytesIO()
        plt.imsave(buffer, large, cmap="gray", vmin=0, vmax=1, format="png")
        self.picture.value, self.caption.value = buffer.getvalue(), text


def explore(
    answer: Callable[..., tuple[Tensor, str]],
    *controls: widgets.ValueWidget,
    columns: int = 1,
    zoom: int = 8,
):
    """Controls, and a screen that follows them: answer(*their values) -> images, text."""
    screen = Screen(columns, zoom)

    def follow(_=None) -> None:
        screen.show(*answer(*(control.value for control in controls)))

    for control in controls:
        control.observe(follow, "value")
    follow()
    return widgets.HBox([widgets.VBox(controls), screen])


def describe_prediction(classifier: nn.Module, x: Float[Tensor, "1 1 28 28"]) -> str:
    """What the classifier reads in an image, and how sure it is, as HTML."""
    confidence, digit = class_probabilities(classifier, x)[0].max(0)
    return f"read as a {digit}<br>{confidence:.0%} sure"


class WholeFigure(go.FigureWidget):
    """A plotly figure that the browser first hears of when it is whole.

    A FigureWidget is announced empty and filled by messages, which a browser that takes more than
    two seconds to read plotly never gets: in a box such a figure stays empty (plotly.py, issue
    4998).
    """

    def __init__(self, data: list, layout: dict):
        super().__init__(data, layout)
        super().open()

    def open(self) -> None:
        """Not yet: this is called before data and layout are in."""


def latent_map(
    position: Shaped[np.ndarray, "n 2"],
    images: Float[Tensor, "n 1 h w"],
    labels: Shaped[np.ndarray, " n"],
    values: Shaped[np.ndarray, " n"],
) -> widgets.HBox:
    """A map of images by position, coloured by label; the one under the mouse is shown.

    values: log p(x) in nats, which is shown with the image and its label.
    """
    screen = Screen()
    layout = {
        "width": 640,
        "height": 560,
        "hovermode": "closest",
        "margin": dict.fromkeys("lrb", 10) | {"t": 40},
    }
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    clouds = [
        go.Scatter(
            x=position[rows, 0],
            y=position[rows, 1],
            customdata=rows,
            text=[f"log p(x) = {value:.1f} nats" for value in values[rows]],
            name=str(labels[rows[0]]),
            mode="markers",
            marker_size=5,
            hoverinfo="name+text",
        )
        for rows in groups
    ]
    layout |= {"xaxis_visible": False, "yaxis_visible": False, "yaxis_scaleanchor": "x"}
    figure = WholeFigure(clouds, layout | {"template": "plotly_white", "legend_title": "digit"})

    def hover(trace, points, _) -> None:
        for row in trace.customdata[points.point_inds]:
            screen.show(
                images[row : row + 1], f"digit {labels[row]}<br>log p(x) = {values[row]:.1f} nats"
            )

    for cloud in figure.data:
        cloud.on_hover(hover)
    screen.show(images[:1], "hover over a point")
    return widgets.HBox([figure, screen])


def rasterize(strokes: Iterable, thickness: Real = 2.2) -> Tensor:
    """Strokes of a pen as an image made like MNIST's, in a box of 20 pixels, its mass at pixel 14.

    (1, 1, 28, 28). A stroke is a list of points (x, y), with y downwards and in any unit; a lone
    point is a dot. thickness: in pixels. The rule is that of `prepare_digit`, but as strokes can be
    drawn anywhere, their mass is not moved by whole pixels only. Raises ValueError without points,
    for points that are not finite, and for a thickness that does not fit the box.
    """
    if not 0 < thickness < 20:
        raise ValueError(f"thickness must be more than 0 and less than 20 pixels, got {thickness}")
    # so that a dot is a line, too
    lines = [torch.cat([line[:1], line]) for line in read_strokes(strokes)]
    points = torch.cat(lines)
    low, high = points.amin(0), points.amax(0)
    scale = (20 - thickness) / (high - low).max().clamp(min=1e-9)
    starts, ends = (
        torch.cat([(line[part] - (low + high) / 2) * scale for line in lines])
        for part in (slice(0, -1), slice(1, None))
    )
    side = 22  # the box, and a pixel around it
    axis = torch.arange(side, dtype=points.dtype, device=points.device) - (side - 1) / 2
    pixels = torch.cartesian_prod(axis, axis).flip(1)  # (484, 2): x and y of each, row by row

    def ink(origin: Tensor) -> Tensor:
        """How much of each pixel is covered (484,), by its distance from the nearest line."""
        # (lines, 2), (484, lines, 2)
        along, beyond = ends - starts, (pixels + origin)[:, None] - starts
        length = along.square().sum(1).clamp(min=1e-12)
        nearest = starts + ((beyond * along).sum(2) / length).clamp(0, 1)[..., None] * along
        distance = ((pixels + origin)[:, None] - nearest).norm(dim=2).amin(1)
        return (thickness / 2 + 0.5 - distance).clamp(0, 1)

    drawn = ink(points.new_zeros(2))
    centre = drawn @ pixels / drawn.sum() + (side - 1) / 2  # as a place among the pixels
    return place_by_mass(ink(centre - centre.round()).float().view(side, side))


def read_strokes(strokes: Iterable) -> list[Float64[Tensor, "points 2"]]:
    """Those that have points. Raises ValueError for none, and for what are no points."""
    try:
        arrays = [to_float64(stroke) for stroke in strokes]
    except (TypeError, ValueError, RuntimeError):
        arrays = []
    arrays = [array for array in arrays if len(array)]
    if not arrays or not all(
        array.shape[1:] == (2,) and np.isfinite(array).all() for array in arrays
    ):
        raise ValueError(f"strokes must be lists of finite points (x, y), got {strokes!r}")
    return [torch.from_numpy(array) for array in arrays]


class DrawingPad(widgets.HBox):
    """A canvas to draw on with mouse or finger, and a button that reads a picture file.

    After each stroke or file answer(x (1, 1, 28, 28)) -> images, text is shown.
    """

    def __init__(
        self, answer: Callable[[Tensor], tuple[Tensor, str]], columns: int = 2, size: int = 280
    ):
        require_whole(size=size)
        self.answer, self.size, self.strokes, self.down = answer, size, [], False
        self.canvas, self.screen = Canvas(width=size, height=size), Screen(columns, zoom=6)
        clear = widgets.Button(description="clear")
        clear.on_click(lambda _: self.clear())
        self.upload = widgets.FileUpload(accept="image/*", description="picture file")
        self.upload.observe(self.read, "value")
        self.canvas.on_mouse_down(self.press)
        self.canvas.on_mouse_move(self.move)
        self.canvas.on_mouse_up(self.lift)
        self.canvas.on_mouse_out(self.lift)
        self.canvas.on_touch_start(lambda touches: self.press(*touches[0]))
        self.canvas.on_touch_move(lambda touches: self.move(*touches[0]))
        self.canvas.on_touch_end(lambda touches: self.lift())
        self.clear()
        buttons = widgets.HBox([clear, self.upload])
        super().__init__([widgets.VBox([self.canvas, buttons]), self.screen])

    def press(self, x: Real, y: Real) -> None:
        """Begin a stroke."""
        self.down = True
        self.strokes.append([(x, y)])

    def move(self, x: Real, y: Real) -> None:
        """Draw on, if a stroke has begun."""
        if self.down:
            self.canvas.stroke_line(*self.strokes[-1][-1], x, y)
            self.strokes[-1].append((x, y))

    def lift(self, *_) -> None:
        """End the stroke, and answer."""
        if self.down:
            self.down = False
            self.screen.show(*self.answer(rasterize(self.strokes)))

    def read(self, change: Mapping) -> None:
        """Answer for the picture file that was chosen, or say why it cannot be read."""
        if change["new"]:
            self.clear()
            try:
                x = prepare_digit(bytes(change["new"][0]["content"]))
            except ValueError as error:
                self.screen.show(blank(), html.escape(str(error)))
            else:
                self.screen.show(*self.answer(x))
            self.upload.value = ()  # so that the same file can be chosen again

    def clear(self) -> None:
        """Start again."""
        self.strokes.clear()
        self.canvas.fill_style, self.canvas.stroke_style = "black", "white"
        self.canvas.line_width, self.canvas.line_cap = self.size / 13, "round"
        self.canvas.fill_rect(0, 0, self.size, self.size)
        self.screen.show(blank(), "draw a digit, or choose a picture of one")
