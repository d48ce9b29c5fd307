"""Networks that are quick to fit, for the tests that fit some."""

import helpers as h


def small_vae():
    """4 latents, one hidden layer."""
    return h.mlp_vae(latent_size=4, hidden=(32,))


def small_decoder(seed=0):
    """Its decoder alone."""
    return h.without_encoder(h.build(small_vae, seed=seed))
