"""The drawings: no text covers another, and what they compute is right."""

import io
import itertools
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats
from sklearn.mixture import GaussianMixture

from study import drawings

COURSE = Path(drawings.__file__).with_name("latent_digits.mplstyle")


@pytest.fixture(params=["petroff10", COURSE], ids=["petroff10", "course"])
def style(request):
    with plt.style.context(request.param):
        yield
    plt.close("all")


def drawn_texts(figure):
    """The texts that are seen: not hidden, not empty, and not the label of a tick beyond the axes."""
    beyond = set()
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = axis.get_view_interval()
        beyond |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    texts = set(figure.findobj(plt.Text)) - beyond
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


@pytest.mark.parametrize("name", [name for name in vars(drawings) if name.startswith("draw_")])
def test_no_text_covers_another_or_is_cut_off(name, style):
    figure = getattr(drawings, name)()
    assert isinstance(figure, plt.Figure)
    figure.canvas.draw()
    texts = drawn_texts(figure)
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    assert len(boxes) >= 6
    assert min(text.get_fontsize() for text in texts) >= 9
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert min(a.x1, b.x1) - max(a.x0, b.x0) <= 1 or min(a.y1, b.y1) - max(a.y0, b.y0) <= 1, (one, other)
    for text, box in boxes:
        assert min(box.x0, box.y0, figure.bbox.x1 - box.x1, figure.bbox.y1 - box.y1) >= -1, text
    figure.savefig(io.BytesIO(), dpi=110, bbox_inches="tight")


def test_the_effective_sample_size_and_the_estimate_are_those_of_the_drawn_weights(style):
    axes = drawings.draw_importance_sampling().axes
    for top, low in ((axes[0], axes[2]), (axes[1], axes[3])):
        weights = low.containers[0].markerline.get_ydata()
        ess = float(re.search(r"ess ([\d.]+) of 5", top.get_title())[1])
        assert ess == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), abs=0.051)
        found = float(re.search(r"weight: ([−\d.]+)", low.get_title())[1].replace("−", "-"))
        assert found == pytest.approx(np.log(weights.mean()), abs=0.0051)


def test_the_posterior_and_p_of_x_are_those_of_the_model():
    z = np.linspace(-8, 8, 4001)
    joint = stats.norm.pdf(z) * stats.norm.pdf(1.5, z, 0.6)
    assert joint.sum() * (z[1] - z[0]) == pytest.approx(drawings.EVIDENCE)
    np.testing.assert_allclose(stats.norm.pdf(z, *drawings.POSTERIOR), joint / drawings.EVIDENCE, atol=1e-12)


@pytest.mark.parametrize("beta", [0, 0.3, 1])
def test_an_annealed_normal_is_the_product_of_powers(beta):
    z = np.array([-2.0, 0.0, 1.0, 3.0])
    q, posterior = stats.norm(*drawings.NARROW), stats.norm(*drawings.POSTERIOR)
    wanted = (1 - beta) * q.logpdf(z) + beta * posterior.logpdf(z)
    difference = stats.norm(*drawings.anneal_normal(beta)).logpdf(z) - wanted
    assert np.ptp(difference) < 1e-12  # equal but for the constant


def test_chains_end_in_the_posterior_and_their_mean_weight_is_p_of_x():
    chains, log_weights = drawings.anneal_chains(np.linspace(0, 1, 65), seed=1, size=20_000)
    weights = np.exp(log_weights[-1])
    assert weights.mean() == pytest.approx(drawings.EVIDENCE, rel=0.05)
    assert np.average(chains[-1], weights=weights) == pytest.approx(drawings.POSTERIOR[0], abs=0.05)


def test_the_drawn_step_is_that_of_em_and_raises_the_likelihood():
    peer = GaussianMixture(2, reg_covar=0)
    peer.weights_, peer.means_, peer.covariances_ = drawings.EM_START
    peer.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(drawings.EM_START[2]))
    before, responsibilities, after = drawings.em_step(drawings.EM_POINTS, *drawings.EM_START)
    assert before == pytest.approx(peer.score_samples(drawings.EM_POINTS).sum())
    np.testing.assert_allclose(responsibilities, peer.predict_proba(drawings.EM_POINTS))
    peer._m_step(drawings.EM_POINTS, np.log(responsibilities))
    for ours, theirs in zip(after, (peer.weights_, peer.means_, peer.covariances_), strict=True):
        np.testing.assert_allclose(ours, theirs)
    assert drawings.em_step(drawings.EM_POINTS, *after)[0] > before
