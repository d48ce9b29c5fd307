"""Steps of codes: mu and logvar of every image, side by side in one table (n, 2 d)."""

from numbers import Real

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from latent_digits.checks import require_between, require_finite, require_finite_result


class NaturalGradient:
    """Natural-gradient steps on the rows of a table of codes; no state but the codes themselves.

    For a Gaussian q the natural gradient preconditions with q's own covariance: mu moves by
    covariance times gradient, and the precision towards 1 + E[curvature] (Khan and Rue 2023, "The
    Bayesian learning rule"). The precision moves at a third of the rate, its gradient being the
    noisier, and by a second-order step that cannot make it negative (Lin, Schmidt and Khan 2020,
    "Handling the positive-definite constraint in the Bayesian learning rule"). No bad estimate
    throws a code far: in one step a mean moves by at most one standard deviation, and the precision
    grows to at most 2.5 times what it was.
    """

    def __init__(self, codes: Float[Tensor, "n codes"]):
        require_codes(codes)
        self.codes = codes

    def step(
        self,
        rows: Int64[Tensor, " rows"],
        gradient: Float[Tensor, "rows {self.codes.shape[1]}"],
        rate: Real,
    ) -> None:
        """Move codes[rows] against `gradient`, that of the loss."""
        require_step(gradient, rate)
        mu, logvar = self.codes[rows].chunk(2, dim=1)  # 2 x (batch, d)
        grad_mu, grad_logvar = gradient.chunk(2, dim=1)
        change = (2 / 3 * rate * grad_logvar).clamp(max=1.0)
        precision = (1 + change + change.square() / 2) / logvar.exp()
        std = (0.5 * logvar).exp()
        step = (rate * grad_mu / precision).clamp(-std, std)
        self.codes[rows] = torch.cat([mu - step, -precision.log()], 1)


class RowAdam:
    """Adam (Kingma and Ba 2015) on the rows of a table, each with its own moments and step count.

    A step reads and writes only the rows it is given: its cost does not grow with the table.
    """

    def __init__(
        self,
        codes: Float[Tensor, "n codes"],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: Real = 1e-8,
    ):
        require_codes(codes)
        self.codes, self.betas, self.eps = codes, betas, eps
        self.moments = torch.zeros_like(codes), torch.zeros_like(codes)
        self.steps = codes.new_zeros(len(codes), 1)

    def step(
        self,
        rows: Int64[Tensor, " rows"],
        gradient: Float[Tensor, "rows {self.codes.shape[1]}"],
        rate: Real,
    ) -> None:
        """Move codes[rows] against `gradient`, that of the loss."""
        require_step(gradient, rate)
        self.steps[rows] += 1
        corrected = []
        values = zip(self.moments, self.betas, (gradient, gradient.square()), strict=True)
        for moment, beta, value in values:
            moment[rows] = torch.lerp(value, moment[rows], beta)
            corrected.append(moment[rows] / (1 - beta ** self.steps[rows]))
        self.codes[rows] -= rate * corrected[0] / (corrected[1].sqrt() + self.eps)


def require_codes(codes: Float[Tensor, "n codes"]) -> None:
    """Raise ValueError for what is not mu and logvar side by side, not finite, or too coarse."""
    require_finite(codes=codes)
    if codes.element_size() < 4:
        raise ValueError(
            f"codes must be float32 or float64, got {codes.dtype}, in which small steps are lost: "
            "call .float() on the start, or on x where there is none"
        )
    if codes.shape[1] % 2:
        raise ValueError(
            f"codes must have mu and logvar side by side, got {codes.shape[1]} columns"
        )


def require_step(gradient: Tensor, rate: Real) -> None:
    """Raise ValueError for a negative rate, FloatingPointError for a gradient not finite."""
    require_between(0, rate=rate)
    require_finite_result(gradient.sum(1), gradient=gradient)
