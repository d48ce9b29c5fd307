"""The report in a browser, on a desk and on a phone: every explorer follows mouse and keyboard; axe finds nothing."""

import json

import pytest
from axe_playwright_python.sync_playwright import Axe

from study.settings import PROJECT
from test_browser import browser as browser  # a fixture

WIDTHS = {"desk": 1280, "phone": 375}


@pytest.fixture(params=WIDTHS.values(), ids=WIDTHS.keys())
def page(request, browser):
    context = browser.new_context(viewport={"width": request.param, "height": 800}, offline=True)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    assert complaints == []
    context.close()


def pixels(place):
    return place.locator("canvas:last-of-type").evaluate("canvas => canvas.toDataURL()")


def shown(place):
    """The picture and the words beside it."""
    return pixels(place), place.locator("output").inner_text()


def follows(place, act):
    """Whether both the picture and the words change with `act`."""
    before = shown(place)
    act()
    return all(now != then for now, then in zip(shown(place), before, strict=True))


def test_every_page_is_as_wide_as_the_window_and_axe_finds_nothing(page, report):
    paths = sorted(report.rglob("*.html"))
    assert len(paths) >= 10
    for path in paths:
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path.name
        found = Axe().run(page)
        assert found.violations_count == 0, f"{path.name}: {found.generate_report()}"


def test_the_first_screen_shows_pictures(page, report):
    page.goto((report / "index.html").as_uri())
    inside = "image => image.getBoundingClientRect().bottom < innerHeight && image.naturalWidth > 0"
    page.wait_for_function("[...document.images].slice(0, 2).every(image => image.complete)")
    assert sum(image.evaluate(inside) for image in page.locator(".cards img").all()) >= 2


@pytest.mark.parametrize("kind", ["latents", "walk", "components"])
def test_a_picture_follows_a_slider_and_the_menus(page, report, kind):
    page.goto((report / "index.html").as_uri())
    place = page.locator(f"#explore-{kind}")
    place.scroll_into_view_if_needed()
    slider = place.locator("input[type=range]")
    assert follows(place, lambda: slider.press("ArrowRight"))
    assert follows(place, lambda: slider.press("End"))
    box = slider.bounding_box()
    assert follows(place, lambda: page.mouse.click(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2))
    for menu in place.locator("select").all():
        assert follows(place, lambda menu=menu: menu.select_option(index=5))


def test_a_walk_back_is_the_walk_in_reverse(page, report):
    page.goto((report / "index.html").as_uri())
    place = page.locator("#explore-walk")
    source, target = place.locator("select").all()
    slider = place.locator("input[type=range]")

    def picture(i, j, key):
        source.select_option(index=i)
        target.select_option(index=j)
        slider.press(key)
        return pixels(place)

    assert picture(2, 7, "Home") == picture(7, 2, "End")
    assert picture(2, 7, "End") == picture(7, 2, "Home") != picture(2, 7, "Home")
    # from a digit to itself there is nowhere to go
    assert picture(2, 2, "Home") == picture(2, 2, "End") == picture(0, 2, "End")
    assert picture(0, 0, "Home") == picture(0, 0, "End") == picture(0, 1, "Home")


def test_the_map_follows_the_mouse_and_the_arrow_keys(page, report):
    page.goto((report / "index.html").as_uri())
    place = page.locator("#explore-map")
    place.scroll_into_view_if_needed()
    box = place.locator("canvas.map").bounding_box()
    points = json.loads((PROJECT / "figures" / "explore_map.json").read_text(encoding="utf-8"))

    def point_at(i, j):
        page.mouse.move(box["x"] + i * box["width"], box["y"] + j * box["height"])

    for i, j in ((0.3, 0.4), (0.7, 0.6)):
        assert follows(place, lambda i=i, j=j: point_at(i, j))
    # onto the rightmost point: its own image, label and log p(x)
    right = max(range(len(points["x"])), key=lambda one: points["x"][one])
    height = (max(points["y"]) - points["y"][right]) / (max(points["y"]) - min(points["y"]))
    point_at(860 / 880, (20 + 600 * height) / 640)
    said = place.locator("output").inner_text()
    assert said == f"a {points['label'][right]}, log p(x) = {points['log_prob'][right]:.1f} nats".replace("-", "−")
    place.locator("canvas.map").focus()
    assert follows(place, lambda: [page.keyboard.press("ArrowLeft") for _ in range(9)])
