"""The drawings: no text covers another, and what they compute is right."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats
from sklearn.mixture import GaussianMixture

from study import drawings


@pytest.fixture(params=[name for name in vars(drawings) if name.startswith("draw_")])
def figure(request):
    with plt.style.context(drawings.__file__.replace("drawings.py", "latent_digits.mplstyle")):
        figure = getattr(drawings, request.param)()
        figure.canvas.draw()
        yield figure
    plt.close(figure)


def test_no_text_covers_another_or_is_cut_off(figure):
    ticks = {label for ax in figure.axes for label in (*ax.get_xticklabels(), *ax.get_yticklabels())}
    texts = [text for text in figure.findobj(plt.Text) if text.get_text().strip() and text not in ticks]
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) >= 6
    for (one, a), (other, b) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        overlap = min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
        assert not overlap, (one.get_text(), other.get_text())
    for text, box in zip(texts, boxes, strict=True):
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
        assert inside, text.get_text()


def test_the_effective_sample_size():
    assert drawings.ess_of(np.full(5, 0.3)) == pytest.approx(5)
    assert drawings.ess_of(np.array([1.0, 0, 0, 0])) == pytest.approx(1)


@pytest.mark.parametrize("beta", [0, 0.3, 1])
def test_an_annealed_normal_is_the_product_of_powers(beta):
    z = np.array([-2.0, 0.0, 1.0, 3.0])
    wanted = (1 - beta) * stats.norm(-1, 1).logpdf(z) + beta * stats.norm(2, 0.5).logpdf(z)
    difference = stats.norm(*drawings.anneal_normal(beta)).logpdf(z) - wanted
    assert np.ptp(difference) < 1e-12  # equal but for the constant


def test_the_drawn_steps_are_those_of_em():
    points = np.random.default_rng(0).normal(size=(20, 2))
    start = np.array([0.3, 0.7]), np.array([[0.0, 1], [1, 0]]), np.stack([np.eye(2), 2 * np.eye(2)])
    peer = GaussianMixture(2, reg_covar=0.02)
    peer.weights_, peer.means_, peer.covariances_ = start
    peer.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(start[2]))
    responsibilities = drawings.expectation(points, *start)
    np.testing.assert_allclose(responsibilities, peer.predict_proba(points))
    peer._m_step(points, np.log(responsibilities))
    for ours, theirs in zip(
        drawings.maximization(points, responsibilities), (peer.weights_, peer.means_, peer.covariances_), strict=True
    ):
        np.testing.assert_allclose(ours, theirs)
