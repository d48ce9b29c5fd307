"""The noise of the pixels: sigma of the Gaussian likelihood, learned, and the steps of grey values.

Rybkin et al. 2021, "Simple and effective VAE training with calibrated decoders".
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from latent_digits.batches import in_batches
from latent_digits.checks import require_finite_result, require_unit
from latent_digits.densities import (
    elbo_terms,
    gaussian_log_density,
    kl_per_dimension,
    sample_posterior,
)
from latent_digits.training import TrainConfig

GREY_LEVELS = 256  # of an image that was stored in 8 bits


def optimal_sigma(
    x: Float[Tensor, "batch size *event"], x_hat: Float[Tensor, "batch size *event"]
) -> float:
    """The sigma under which N(x; x_hat, sigma^2 I) is largest: sigma^2 is the mean squared error.

    With D pixels in all, -D log sigma - |x - x_hat|^2 / (2 sigma^2) has derivative zero by sigma
    where sigma^2 = |x - x_hat|^2 / D (Rybkin et al. 2021). Raises FloatingPointError where the
    error is not finite, or zero: the likelihood has no maximum there.
    """
    error = (x - x_hat).square().mean()
    require_finite_result(error, x=x, x_hat=x_hat)
    if error == 0:
        raise FloatingPointError("x_hat must differ from x, got a mean squared error of 0")
    return error.sqrt().item()


def sigma_vae_objective(
    model: nn.Module,
    x: Float[Tensor, "batch 1 28 28"],
    y: Int64[Tensor, " batch"] | None,
    config: TrainConfig,
    generator: torch.Generator | None,
) -> dict[str, Float[Tensor, " batch"]]:
    """-(log_likelihood - kl_divergence), with the sigma that fits the batch best.

    Sigma is a number here, without a gradient. None is missing: where the likelihood is largest its
    derivative by sigma is zero (the envelope theorem), so the gradient is that of
    -D/2 log(mean squared error). One sample of q(z|x) for each image, as in `vae_objective`;
    config.sigma and config.beta are not used.
    """
    mu, logvar = model.encode(x)
    x_hat = model.decode(sample_posterior(mu, logvar, generator))
    sigma = optimal_sigma(x, x_hat)
    log_likelihood = gaussian_log_density(x, x_hat, sigma)
    return elbo_terms(log_likelihood, kl_per_dimension(mu, logvar).sum(1))


def fitted_sigma(
    model: nn.Module, x: Float[Tensor, "n 1 28 28"], generator: torch.Generator | None = None
) -> float:
    """The one sigma that maximises the mean elbo of these images under a trained VAE.

    The root of the mean squared error of what is decoded from one sample of each q(z|x): a little
    more than that of reconstructions from its mean.
    """
    x_hat = in_batches(lambda x: model.decode(sample_posterior(*model.encode(x), generator)), x)
    return optimal_sigma(x, x_hat)


def dequantize(
    x: Float[Tensor, " batch *event"], generator: torch.Generator | None = None
) -> Float[Tensor, " batch *event"]:
    """(255 x + u) / 256 with u uniform in [0, 1): 8-bit grey values as real numbers.

    Grey values themselves lie on a grid, where a density may be as high as one likes. Its mean over
    the width of a step is the probability of the grey value, times 256 (Theis et al. 2016, "A note
    on the evaluation of generative models"). Raises ValueError for what is not in [0, 1].
    """
    require_unit(x=x)
    u = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return ((GREY_LEVELS - 1) * x + u) / GREY_LEVELS
