"""Bad input: every function that the notebooks call refuses it, naming the argument, the value and the remedy."""

import ast
import json
import math
import re
from dataclasses import replace

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import helpers as h

CONTRACT = {"load_data", "gaussian_log_likelihood", "bernoulli_log_likelihood", "kl_divergence", "reparameterize"}
CONTRACT |= {"importance_log_prob", "infer_latents", "GaussianMixture", "frechet_distance"}

# called by notebooks, and why there is nothing in the table below for them
NOTHING_TO_REFUSE = {
    "LogProb": "is a named tuple",
    "FittedPrior": "is a dataclass of what has been checked",
    "explore": "what its function answers is refused by Screen.show, in the table",
    "DrawingPad": "its strokes are refused by rasterize, its size in the table under Screen",
    "both_sides": "is evaluate, twice",
}

N, D = 5, 3


def images(count=N):
    return torch.rand(count, 1, 28, 28, generator=h.make_generator(1))


def rows(width=D, count=N):
    return torch.randn(count, width, generator=h.make_generator(2))


def digits(count=N):
    return torch.arange(count) % 10


def decode(z):
    return torch.sigmoid(z.sum(1).view(-1, 1, 1, 1).expand(-1, 1, 28, 28))


def model():
    return h.build(h.mlp_vae, latent_size=D, hidden=(8,), seed=0)


def small_data(**changes):
    data = h.Data("digits", images(20), digits(20), images(10), digits(10))
    return replace(data, **changes)


def classifier():
    return h.build(h.Classifier, 2, 4, seed=0).eval()


def settings():
    return h.Settings(quick=True, cache=None)


def fit(data):
    return h.fit(model(), h.vae_objective, data, h.VAEConfig(epochs=1))


def fit_latents(start, config=None, data=None):
    config = config or h.LatentConfig(epochs=2, snapshots=())
    return h.fit_latents(h.without_encoder(model()), start, data or small_data(), config)


def report(tmp=None):
    return h.Report("07_test", replace(settings(), quick=False), small_data())


def axes():
    return plt.figure().add_subplot()


def poisoned(tensor, value=math.nan):
    """The same with one entry that is not finite."""
    tensor = tensor.clone()
    tensor.view(-1)[-1] = value
    return tensor


def posterior_cases(call):
    """What every function of x, mu, logvar and sigma must refuse."""
    return [
        ("x has shape", lambda: call(images()[:0], rows()[:0], rows()[:0])),
        ("x has 1 entries that are not finite", lambda: call(poisoned(images()), rows(), rows())),
        ("x is torch.uint8", lambda: call(images().byte(), rows(), rows())),
        ("mu has 1 entries that are not finite", lambda: call(images(), poisoned(rows(), -math.inf), rows())),
        ("logvar has 1 entries that are not finite", lambda: call(images(), rows(), poisoned(rows(), math.inf))),
        ("mu is torch.float64|mu is torch.int64", lambda: call(images(), rows().long(), rows())),
        ("logvar has shape", lambda: call(images(), rows(), rows(D + 1))),
        ("mu has 4 rows", lambda: call(images(), rows()[1:], rows()[1:])),
        ("sigma is 0", lambda: call(images(), rows(), rows(), sigma=0)),
        ("sigma is nan", lambda: call(images(), rows(), rows(), sigma=math.nan)),
    ]


CASES = {
    "Settings": [("DATA is 'cifar'", lambda: h.Settings.from_environment({"DATA": "cifar"}))]
    + [("SEED is 'one'", lambda: h.Settings.from_environment({"SEED": "one"}))]
    + [("DEVICE is 'tpu'", lambda: h.Settings.from_environment({"DEVICE": "tpu"}))]
    + [("DTYPE is 'float16': choose one of 'float32', 'b", lambda: h.Settings.from_environment({"DTYPE": "float16"}))],
    "make_generator": [
        ("seed is -1", lambda: h.make_generator(-1)),
        ("seed is 0.5", lambda: h.make_generator(0.5)),
    ],
    "load_data": [
        ("source is 'cifar'", lambda: h.load_data("cifar")),
        ("per_class is 0", lambda: h.load_data("digits", per_class=0)),
        ("per_class is 2001", lambda: h.load_data("digits", per_class=2001)),
        ("per_class is 2.5", lambda: h.load_data("digits", per_class=2.5)),
        ("test_size is 0", lambda: h.load_data("digits", test_size=0)),
        ("test_size is -3", lambda: h.load_data("digits", test_size=-3)),
        ("seed is -1", lambda: h.load_data("digits", seed=-1)),
    ],
    "balanced_subset": [
        ("labels is torch.float32", lambda: h.balanced_subset(digits(10).float(), 1, h.make_generator(0))),
        ("labels spans 0 to 10", lambda: h.balanced_subset(torch.arange(11), 1, h.make_generator(0))),
        ("labels spans -1 to 8", lambda: h.balanced_subset(torch.arange(10) - 1, 1, h.make_generator(0))),
        ("labels has shape", lambda: h.balanced_subset(digits(0), 1, h.make_generator(0))),
        ("per_class is 2: choose 1 to 1", lambda: h.balanced_subset(digits(10), 2, h.make_generator(0))),
    ],
    "one_per_class": [
        (r"labels has no image of \[8, 9\]", lambda: h.one_per_class(torch.arange(8))),
        ("labels spans 0 to 10", lambda: h.one_per_class(torch.arange(11))),
        ("labels is list", lambda: h.one_per_class([0, 1, 2])),
        ("labels has shape", lambda: h.one_per_class(torch.zeros(2, 5).long())),
    ],
    "random_affine": [
        ("x has shape", lambda: h.random_affine(images()[0], h.make_generator(0))),
        ("x is torch.int64", lambda: h.random_affine(images().long(), h.make_generator(0))),
        ("degrees is -1", lambda: h.random_affine(images(), h.make_generator(0), degrees=-1)),
        ("shift is 2", lambda: h.random_affine(images(), h.make_generator(0), shift=2)),
    ],
    "gaussian_log_likelihood": [
        ("sigma is 0", lambda: h.gaussian_log_likelihood(images(), images(), 0)),
        ("sigma is inf", lambda: h.gaussian_log_likelihood(images(), images(), math.inf)),
        ("sigma is 'wide'", lambda: h.gaussian_log_likelihood(images(), images(), "wide")),
        ("x_hat has shape", lambda: h.gaussian_log_likelihood(images(), images(4), 0.4)),
        ("x has shape", lambda: h.gaussian_log_likelihood(images(0), images(0), 0.4)),
        (
            r"x has shape \(3,\): give it \(n, ...\)",
            lambda: h.gaussian_log_likelihood(torch.ones(3), torch.ones(3), 0.4),
        ),
        ("x is torch.uint8", lambda: h.gaussian_log_likelihood(images().byte(), images(), 0.4)),
        ("x_hat is ndarray", lambda: h.gaussian_log_likelihood(images(), images().numpy(), 0.4)),
        ("x has 1 entries that are not finite", lambda: h.gaussian_log_likelihood(poisoned(images()), images(), 0.4)),
        ("x_hat has 1 entries", lambda: h.gaussian_log_likelihood(images(), poisoned(images(), math.inf), 0.4)),
        ("x_hat reaches 1e.30: .* overflows", lambda: h.gaussian_log_likelihood(images(), images() + 1e30, 0.4)),
    ],
    "bernoulli_log_likelihood": [
        (r"x spans \[0, 255\]", lambda: h.bernoulli_log_likelihood(torch.tensor([[0.0, 255.0]]), torch.zeros(1, 2))),
        (r"x spans \[-1, 0\]", lambda: h.bernoulli_log_likelihood(torch.tensor([[-1.0, 0.0]]), torch.zeros(1, 2))),
        ("logits has shape", lambda: h.bernoulli_log_likelihood(images(), rows())),
        (r"x has shape \(3,\): give it \(n, ...\)", lambda: h.bernoulli_log_likelihood(torch.ones(3), torch.ones(3))),
        ("logits is torch.int64", lambda: h.bernoulli_log_likelihood(images(), images().long())),
        ("x has 1 entries that are not finite", lambda: h.bernoulli_log_likelihood(poisoned(images()), images())),
        ("logits has 1 entries", lambda: h.bernoulli_log_likelihood(images(), poisoned(images(), -math.inf))),
        ("x is torch.bool", lambda: h.bernoulli_log_likelihood(images() > 0.5, images())),
    ],
    "kl_divergence": [
        ("logvar has shape", lambda: h.kl_divergence(rows(), rows(D + 1))),
        (r"mu has shape \(0, 3\): give it \(n, ...\)", lambda: h.kl_divergence(rows()[:0], rows()[:0])),
        ("mu is torch.int64", lambda: h.kl_divergence(rows().long(), rows())),
        ("mu has 1 entries that are not finite", lambda: h.kl_divergence(poisoned(rows()), rows())),
        ("logvar has 1 entries", lambda: h.kl_divergence(rows(), poisoned(rows(), -math.inf))),
        ("logvar reaches 200: .* overflows", lambda: h.kl_divergence(rows(), torch.full((N, D), 200.0))),
    ],
    "kl_per_dimension": [
        ("logvar has shape", lambda: h.kl_per_dimension(rows(), rows(D + 1))),
        ("mu is list", lambda: h.kl_per_dimension([1.0], rows())),
        ("logvar is torch.int64", lambda: h.kl_per_dimension(rows(), rows().long())),
    ],
    "reparameterize": [
        ("logvar has shape", lambda: h.reparameterize(rows(), rows(D + 1))),
        (r"mu has shape \(0, 3\): give it \(n, ...\)", lambda: h.reparameterize(rows()[:0], rows()[:0])),
        ("mu has 1 entries that are not finite", lambda: h.reparameterize(poisoned(rows()), rows())),
        ("logvar has 1 entries", lambda: h.reparameterize(rows(), poisoned(rows(), math.inf))),
    ],
    "Classifier": [
        ("width is 0", lambda: h.Classifier(width=0)),
        ("dropout is 1.5", lambda: h.Classifier(dropout=1.5)),
        ("x has shape", lambda: classifier()(images()[:, :, 1:])),
        ("x has 1 entries", lambda: classifier()(poisoned(images()))),
    ],
    "conv_vae": [
        ("latent_size is 0", lambda: h.conv_vae(0)),
        ("hidden is 2.5", lambda: h.conv_vae(hidden=2.5)),
        ("dropout is nan", lambda: h.conv_vae(dropout=math.nan)),
    ],
    "mlp_vae": [
        ("latent_size is True", lambda: h.mlp_vae(True)),
        (r"len\(hidden\) is 0", lambda: h.mlp_vae(hidden=())),
        (r"hidden\[1\] is 0", lambda: h.mlp_vae(hidden=(4, 0))),
        ("x is torch.uint8", lambda: model().encode(images().byte())),
        ("x has shape", lambda: model().encode(images()[:0])),
        ("x has 1 entries that are not finite", lambda: model().encode(poisoned(images()))),
        (r"z has shape \(5, 4\): give it \(n, 3\)", lambda: model().decode(rows(4))),
    ],
    "without_encoder": [("this model has no encoder: find", lambda: h.without_encoder(model()).encode(images()))],
    "build": [("seed is None", lambda: h.build(h.mlp_vae, seed=None))],
    "TrainConfig": [
        ("epochs is 0", lambda: h.TrainConfig(epochs=0)),
        ("batch_size is 0", lambda: h.TrainConfig(batch_size=0)),
        ("learning_rate is 0", lambda: h.TrainConfig(learning_rate=0)),
        ("warm_up is 2", lambda: h.TrainConfig(warm_up=2)),
        ("weight_decay is -1", lambda: h.TrainConfig(weight_decay=-1)),
        (r"snapshots\[1\] is 0", lambda: h.TrainConfig(snapshots=(1, 0))),
    ],
    "VAEConfig": [
        ("likelihood is 'laplace'", lambda: h.VAEConfig(likelihood="laplace")),
        ("sigma is -0.4", lambda: h.VAEConfig(sigma=-0.4)),
        ("beta is nan", lambda: h.VAEConfig(beta=math.nan)),
        ("epochs is 1.5", lambda: h.VAEConfig(epochs=1.5)),
    ],
    "LatentConfig": [
        ("epochs is 1: give a whole number of at least 2", lambda: h.LatentConfig(epochs=1)),
        ("code_rate is inf", lambda: h.LatentConfig(code_rate=math.inf)),
        ("sigma is 0", lambda: h.LatentConfig(sigma=0)),
    ],
    "classification_objective": [
        ("y is torch.float32", lambda: h.classification_objective(classifier(), images(), rows(1)[:, 0], None, None)),
        ("y spans 6 to 10", lambda: h.classification_objective(classifier(), images(), digits() + 6, None, None)),
        ("y has 4 rows", lambda: h.classification_objective(classifier(), images(), digits(4), None, None)),
        ("x has shape", lambda: h.classification_objective(classifier(), images()[0], digits(1), None, None)),
    ],
    "vae_objective": [
        ("x has shape", lambda: h.vae_objective(model(), images()[:0], digits(0), h.VAEConfig(), None)),
        ("x has 1 entries", lambda: h.vae_objective(model(), poisoned(images()), digits(), h.VAEConfig(), None)),
    ],
    "fit": [
        ("dtype is 'half'", lambda: h.fit(model(), h.vae_objective, small_data(), h.VAEConfig(), dtype="half")),
        ("train_x has shape", lambda: fit(small_data(train_x=images(0)))),
        ("train_x has 1 entries", lambda: fit(small_data(train_x=poisoned(images(20))))),
        (r"train_x spans \[.*, 255\]", lambda: fit(small_data(train_x=poisoned(images(20), 255.0)))),
        ("test_x is torch.uint8", lambda: fit(small_data(test_x=images(10).byte()))),
        ("train_y has 19 rows", lambda: fit(small_data(train_y=digits(19)))),
        ("test_y spans 0 to 10", lambda: fit(small_data(test_y=torch.arange(10) + (torch.arange(10) == 9)))),
        ("seed is -1", lambda: h.fit(model(), h.vae_objective, small_data(), h.VAEConfig(), seed=-1)),
    ],
    "fit_vae": [
        ("test_x spans", lambda: h.fit_vae(model(), small_data(test_x=-images(10)), h.VAEConfig(), settings())),
    ],
    "fit_classifier": [
        ("train_y is torch.int32", lambda: h.fit_classifier(small_data(train_y=digits(20).int()), settings())),
    ],
    "fit_conv_vae": [("train_y spans", lambda: h.fit_conv_vae(small_data(train_y=digits(20) - 1), settings()))],
    "fit_mlp_vae": [
        ("beta is -1", lambda: h.fit_mlp_vae(small_data(), settings(), beta=-1)),
        ("epochs is 0", lambda: h.fit_mlp_vae(small_data(), settings(), epochs=0)),
    ],
    "Trainer": [("size is 0", lambda: small_data().thinned(0))],
    "evaluate": [
        ("x has shape", lambda: h.evaluate(model(), h.vae_objective, images(0), digits(0), h.VAEConfig())),
        ("y has 4 rows", lambda: h.evaluate(model(), h.vae_objective, images(), digits(4), h.VAEConfig())),
        ("batch_size is 0", lambda: h.evaluate(model(), h.vae_objective, images(), digits(), h.VAEConfig(), 0)),
        ("x spans", lambda: h.evaluate(model(), h.vae_objective, 255 * images(), digits(), h.VAEConfig())),
    ],
    "in_batches": [
        (r"len\(x\) is 0", lambda: h.in_batches(torch.sin, rows()[:0])),
        ("batch_size is 0", lambda: h.in_batches(torch.sin, rows(), 0)),
        ("batch_size is -2", lambda: h.in_batches(torch.sin, rows(), -2)),
    ],
    "NaturalGradient": [
        ("codes has shape", lambda: h.NaturalGradient(rows(3))),
        ("codes has 1 entries", lambda: h.NaturalGradient(poisoned(rows(4)))),
        ("gradient has shape", lambda: h.NaturalGradient(rows(4)).step(torch.tensor([0, 1]), rows(4)[:1], 0.1)),
        ("gradient has 1 entries", lambda: h.NaturalGradient(rows(4)).step(digits(), poisoned(rows(4)), 0.1)),
        ("rate is -1", lambda: h.NaturalGradient(rows(4)).step(digits(), rows(4), -1)),
    ],
    "RowAdam": [
        ("codes is torch.int64", lambda: h.RowAdam(rows(4).long())),
        ("codes has shape", lambda: h.RowAdam(rows(4)[0])),
        ("gradient has shape", lambda: h.RowAdam(rows(4)).step(torch.tensor([0, 1]), rows(4), 0.1)),
        ("gradient has 1 entries", lambda: h.RowAdam(rows(4)).step(digits(), poisoned(rows(4)), 0.1)),
        ("rate is nan", lambda: h.RowAdam(rows(4)).step(digits(), rows(4), math.nan)),
    ],
    "LatentTrainer": [
        ("mu has shape", lambda: fit_latents((rows(0, 20), rows(0, 20)))),
    ],
    "latent_terms": [
        ("x_hat has shape", lambda: h.latent_terms(decode, images(4), rows(6), 0.4, None)),
        ("sigma is 0", lambda: h.latent_terms(decode, images(), rows(6), 0, None)),
        ("logvar has 1 entries", lambda: h.latent_terms(decode, images(), poisoned(rows(6)), 0.4, None)),
    ],
    "latent_elbo": posterior_cases(lambda x, mu, logvar, sigma=0.4: h.latent_elbo(decode, x, mu, logvar, sigma)),
    "pca_posterior": [
        ("x has shape", lambda: h.pca_posterior(images(0), 2)),
        (r"len\(x\) is 1", lambda: h.pca_posterior(images(1), 2)),
        ("x has 1 entries", lambda: h.pca_posterior(poisoned(images()), 2)),
        ("latent_size is 0", lambda: h.pca_posterior(images(), 0)),
        ("sigma is 0", lambda: h.pca_posterior(images(), 2, sigma=0)),
        ("images has shape", lambda: h.pca_posterior(images(), 2)(images()[:, :, 1:])),
    ],
    "infer_latents": posterior_cases(
        lambda x, mu, logvar, sigma=0.4: h.infer_latents(decode, x, (mu, logvar), sigma=sigma)
    )
    + [
        ("start and latent_size are both None", lambda: h.infer_latents(decode, images())),
        ("latent_size is 0", lambda: h.infer_latents(decode, images(), latent_size=0)),
        ("latent_size is 4, but", lambda: h.infer_latents(decode, images(), (rows(), rows()), latent_size=4)),
        ("steps is 0", lambda: h.infer_latents(decode, images(), latent_size=D, steps=0)),
        ("rate is 0", lambda: h.infer_latents(decode, images(), latent_size=D, rate=0)),
        ("batch_size is 0", lambda: h.infer_latents(decode, images(), latent_size=D, batch_size=0)),
        ("x_hat has .*not finite", lambda: h.infer_latents(lambda z: decode(z) / 0, images(), latent_size=D)),
    ],
    "fit_latents": [
        ("mu has shape", lambda: fit_latents((rows(4, 20), rows(4, 20)))),
        ("mu has 19 rows", lambda: fit_latents((rows(D, 19), rows(D, 19)))),
        ("logvar has shape", lambda: fit_latents((rows(D, 20), rows(D, 19)))),
        ("logvar has 1 entries", lambda: fit_latents((rows(D, 20), poisoned(rows(D, 20))))),
        ("train_x spans", lambda: fit_latents((rows(D, 20),) * 2, data=small_data(train_x=-images(20)))),
    ],
    "fit_conv_latents": [
        ("x has 1 entries", lambda: h.fit_conv_latents(small_data(train_x=poisoned(images(20))), settings())),
        ("train_y spans", lambda: h.fit_conv_latents(small_data(train_y=digits(20) - 1), settings())),
    ],
    "importance_log_prob": posterior_cases(
        lambda x, mu, logvar, sigma=0.4: h.importance_log_prob(x, mu, logvar, decode, sigma, 3)
    )
    + [
        ("num_samples is 0", lambda: h.importance_log_prob(images(), rows(), rows(), decode, num_samples=0)),
        ("num_samples is 1.5", lambda: h.importance_log_prob(images(), rows(), rows(), decode, num_samples=1.5)),
        ("x_hat has shape", lambda: h.importance_log_prob(images(), rows(), rows(), lambda z: z)),
        ("5 images have a weight", lambda: h.importance_log_prob(images(), rows(), rows(), lambda z: decode(z) / 0)),
    ],
    "draw_log_weights": posterior_cases(
        lambda x, mu, logvar, sigma=0.4: h.draw_log_weights(x, mu, logvar, decode, sigma, 2, None)
    )
    + [("draws is 0", lambda: h.draw_log_weights(images(), rows(), rows(), decode, 0.4, 0, None))],
    "recall": posterior_cases(
        lambda x, mu, logvar, sigma=0.4: h.recall(
            h.importance_log_prob, model(), x=x, mu=mu, logvar=logvar, sigma=sigma, num_samples=2
        )
    )
    + [("seed is -1", lambda: h.recall(h.infer_latents, model(), x=images(), start=(rows(), rows()), seed=-1))],
    "annealed_log_prob": posterior_cases(
        lambda x, mu, logvar, sigma=0.4: h.annealed_log_prob(x, mu, logvar, decode, sigma, temperatures=2)
    )
    + [
        ("chains is 0", lambda: h.annealed_log_prob(images(), rows(), rows(), decode, chains=0)),
        ("temperatures is 0", lambda: h.annealed_log_prob(images(), rows(), rows(), decode, temperatures=0)),
        ("leapfrogs is 0", lambda: h.annealed_log_prob(images(), rows(), rows(), decode, leapfrogs=0)),
        ("step_size is inf", lambda: h.annealed_log_prob(images(), rows(), rows(), decode, step_size=math.inf)),
        ("exact has shape", lambda: h.annealed_log_prob(images(), rows(), rows(), decode, exact=rows(4))),
        (
            r"exact has shape \(3,\): give it \(n, d\)",
            lambda: h.annealed_log_prob(images(), rows(), rows(), decode, exact=rows()[0]),
        ),
        ("exact has 1 entries", lambda: h.annealed_log_prob(images(), rows(), rows(), decode, exact=poisoned(rows()))),
    ],
    "GaussianMixture": [
        ("n_components is 6, but X has n_samples = 5", lambda: h.GaussianMixture(6).fit(rows().numpy())),
        ("n_components is 0", lambda: h.GaussianMixture(0).fit(rows().numpy())),
        ("covariance_type is 'tied'", lambda: h.GaussianMixture(covariance_type="tied").fit(rows().numpy())),
        ("reg_covar is -1", lambda: h.GaussianMixture(reg_covar=-1).fit(rows().numpy())),
        ("Input X contains NaN", lambda: h.GaussianMixture().fit(poisoned(rows()).numpy())),
        ("n_samples is 0", lambda: h.GaussianMixture().fit(rows().numpy()).sample(0)),
    ],
    "monomials": [
        (r"u has shape \(5, 3\): give it \(g, n, b\)", lambda: h.monomials(rows())),
        ("u is torch.int64", lambda: h.monomials(rows()[None].long())),
    ],
    "informative_latents": [
        ("mu has shape", lambda: h.informative_latents(rows()[0], rows()[0])),
        ("logvar has shape", lambda: h.informative_latents(rows(), rows(4))),
        ("mu has 1 entries", lambda: h.informative_latents(poisoned(rows()), rows())),
    ],
    "fit_prior": [
        ("draws is 0", lambda: h.fit_prior(rows(), rows(), 1, draws=0)),
        ("seed is 0.5", lambda: h.fit_prior(rows(), rows(), 1, seed=0.5)),
        ("n_components is 6", lambda: h.fit_prior(rows(), rows(), 6)),
        ("logvar has 1 entries", lambda: h.fit_prior(rows(), poisoned(rows()), 1)),
        ("n is 0", lambda: h.fit_prior(rows(), rows(), 1).sample(0)),
        (r"components is \[1\]", lambda: h.fit_prior(rows(), rows(), 1).sample(2, [1])),
        ("z has shape", lambda: h.fit_prior(rows(), rows(), 1).informative_part(rows(4))),
        ("part has shape", lambda: h.fit_prior(rows(), rows(), 1).complete(np.ones((2, 9)), rows())),
    ],
    "judge": [
        ("x has shape", lambda: h.judge(classifier(), images(0))),
        ("x is torch.uint8", lambda: h.judge(classifier(), images().byte())),
        (r"x spans \[.*, 255\]", lambda: h.judge(classifier(), poisoned(images(), 255.0))),
        ("x has 1 entries", lambda: h.judge(classifier(), poisoned(images()))),
    ],
    "class_probabilities": [("x has shape", lambda: h.class_probabilities(classifier(), images()[0]))],
    "class_consistency": [
        ("labels is torch.float32", lambda: h.class_consistency(classifier(), images(), digits().float())),
        ("labels has 4 rows", lambda: h.class_consistency(classifier(), images(), digits(4))),
        ("labels spans 6 to 10", lambda: h.class_consistency(classifier(), images(), digits() + 6)),
        ("x spans", lambda: h.class_consistency(classifier(), 2 * images(), digits())),
    ],
    "class_share": [
        ("probabilities has shape", lambda: h.class_share(rows(9))),
        ("probabilities has rows that sum to", lambda: h.class_share(rows(10))),
        ("probabilities has shape", lambda: h.class_share(rows(10)[:0])),
    ],
    "active_dimensions": [
        (r"len\(mu\) is 1", lambda: h.active_dimensions(rows(count=1))),
        ("mu has 1 entries", lambda: h.active_dimensions(poisoned(rows()))),
        ("threshold is -1", lambda: h.active_dimensions(rows(), -1)),
    ],
    "frechet_distance": [
        ("features_b has shape", lambda: h.frechet_distance(rows(), rows(4))),
        ("features_a has shape", lambda: h.frechet_distance(rows()[:1], rows())),
        ("features_a has shape", lambda: h.frechet_distance(rows()[0], rows())),
        ("features_a has 1 entries", lambda: h.frechet_distance(poisoned(rows()), rows())),
        ("features_b is ndarray", lambda: h.frechet_distance(rows(), rows().numpy())),
    ],
    "picture_quality": [
        ("probabilities has 4 rows", lambda: h.picture_quality(rows(), rows(10)[1:].softmax(1), rows())),
        ("probabilities has rows that sum", lambda: h.picture_quality(rows(), rows(10), rows())),
        ("features_b has shape", lambda: h.picture_quality(rows(), rows(10).softmax(1), rows(4))),
    ],
    "Report": [
        ("passed is nan", lambda: report().check("holds", math.nan)),
        ("passed is tensor", lambda: report().check("holds", torch.tensor([1.0]))),
        ("passed is None", lambda: report().check("holds", None)),
        ("the dataset is 'digits': choose one of 'mnist'", lambda: report().by_data(mnist=1)),
        ("elbo is nan", lambda: report().result("elbo", math.nan)),
        ("elbo is inf", lambda: report().result("elbo", torch.tensor(math.inf))),
        ("digits is -1", lambda: report().result("elbo", 1.0, digits=-1)),
        ("name is '../curves'", lambda: report().figure(plt.figure(), "../curves")),
    ],
    "show_source": [("function is 'sin'", lambda: h.show_source(torch.sin))],
    "plot_history": [
        ("term is 'x': choose one of 'a'", lambda: h.plot_history(axes(), pd.DataFrame({"train_a": [1]}), "x", "")),
    ],
    "show_images": [
        ("columns is 0", lambda: h.show_images(axes(), images(), 0)),
        ("images has shape", lambda: h.show_images(axes(), images()[0], 2)),
        ("images is ndarray", lambda: h.show_images(axes(), images().numpy(), 2)),
    ],
    "image_rows": [
        (r"len\(rows\) is 0", lambda: h.image_rows({})),
        ("images has shape", lambda: h.image_rows({"a": images(0), "b": images(2)})),
    ],
    "read_aloud": [("x has shape", lambda: h.read_aloud(classifier(), images()))],
    "answer_time": [(r"len\(values\) is 0", lambda: h.answer_time(widgets.FloatSlider(), []))],
    "latent_map": [
        ("labels has 4 rows", lambda: h.latent_map(rows(2), images(), digits(4), rows(1))),
        ("images has shape", lambda: h.latent_map(rows(2), images()[:, 0], digits(), rows(1))),
    ],
    "rasterize": [
        ("thickness is 0", lambda: h.rasterize([[(0, 0), (1, 1)]], 0)),
        ("strokes is", lambda: h.rasterize([])),
        ("strokes is", lambda: h.rasterize([[(0, math.nan)]])),
    ],
    "Screen": [
        ("images has 1 entries", lambda: h.Screen().show(poisoned(images()))),
        ("zoom is 0", lambda: h.Screen(zoom=0)),
        ("size is 0", lambda: h.DrawingPad(decode, size=0)),
    ],
}  # fmt: skip

FLAT = [(name, message, call) for name, cases in CASES.items() for message, call in cases]
NAMES = [f"{name}-{message}".replace("\\", "") for name, message, _ in FLAT]  # as pytest escapes it anew each time


@pytest.mark.parametrize(("name", "message", "call"), FLAT, ids=NAMES)
def test_bad_input_is_refused_with_argument_value_and_remedy(name, message, call):
    with pytest.raises((ValueError, TypeError, FloatingPointError)) as caught:
        call()
    plt.close("all")
    text = str(caught.value)
    assert re.search(message, text), text
    ours = not text.startswith("Input X contains NaN")  # that one is scikit-learn's
    assert not ours or re.search(r"\b(is|are|has|have|spans|reaches)\b.+: \w+ \w+", text, re.S), text


def called_by_notebooks():
    """The functions and classes of helpers that the notebooks call."""
    names = set()
    for path in (h.PROJECT / "notebooks").glob("*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        for node in ast.walk(ast.parse("\n".join("".join(cell["source"]) for cell in cells))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "h":
                names.add((node.attr, "called"))
            for argument in node.args if isinstance(node, ast.Call) else ():
                shown = isinstance(node.func, ast.Attribute) and node.func.attr == "show_source"
                if shown and isinstance(argument, ast.Attribute):
                    names.add((argument.attr, "shown"))
    shown = {name for name, how in names if how == "shown"}
    text = "".join(path.read_text() for path in (h.PROJECT / "notebooks").glob("*.ipynb"))
    return {name for name, _ in names if name not in shown or f"h.{name}(" in text}


def test_everything_that_a_notebook_calls_is_in_the_table():
    missing = (called_by_notebooks() | CONTRACT) - set(CASES) - set(NOTHING_TO_REFUSE)
    assert missing == set()


def test_there_is_no_assert_in_place_of_an_error():
    for path in [*h.PROJECT.glob("latent_digits/*.py"), *h.PROJECT.glob("study/*.py")]:
        tree = ast.parse(path.read_text())
        assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)], path


# properties

not_finite = st.sampled_from([math.nan, math.inf, -math.inf])
no_deviation = st.one_of(st.floats(max_value=0), st.sampled_from([math.nan, math.inf, None, "0.4", 1j]))
no_count = st.one_of(st.integers(max_value=0), st.floats(), st.sampled_from([True, None, "3"]))

X_AND_Q = {"x": images(), "mu": rows(), "logvar": rows()}
# functions of tensors, each with arguments that it takes
OF_TENSORS = {
    "gaussian_log_likelihood": (
        lambda x, x_hat: h.gaussian_log_likelihood(x, x_hat, 0.4),
        {"x": images(), "x_hat": images()},
    ),
    "bernoulli_log_likelihood": (h.bernoulli_log_likelihood, {"x": images(), "logits": images()}),
    "kl_divergence": (h.kl_divergence, {"mu": rows(), "logvar": rows()}),
    "reparameterize": (h.reparameterize, {"mu": rows(), "logvar": rows()}),
    "importance_log_prob": (lambda x, mu, logvar: h.importance_log_prob(x, mu, logvar, decode, 0.4, 2), X_AND_Q),
    "annealed_log_prob": (lambda x, mu, logvar: h.annealed_log_prob(x, mu, logvar, decode, temperatures=1), X_AND_Q),
    "infer_latents": (lambda x, mu, logvar: h.infer_latents(decode, x, (mu, logvar), steps=1), X_AND_Q),
    "latent_elbo": (lambda x, mu, logvar: h.latent_elbo(decode, x, mu, logvar), X_AND_Q),
    "informative_latents": (h.informative_latents, {"mu": rows(), "logvar": rows()}),
    "frechet_distance": (h.frechet_distance, {"features_a": rows(), "features_b": rows()}),
    "judge": (lambda x: h.judge(classifier(), x), {"x": images()}),
    "class_share": (h.class_share, {"probabilities": rows(10).softmax(1)}),
    "active_dimensions": (h.active_dimensions, {"mu": rows()}),
}


@given(st.data(), st.sampled_from(sorted(OF_TENSORS)), not_finite)
def test_whatever_entry_is_not_finite_its_argument_is_named(draw, function, value):
    call, arguments = OF_TENSORS[function]
    call(**arguments)
    name = draw.draw(st.sampled_from(sorted(arguments)))
    broken = arguments[name].clone()
    broken.view(-1)[draw.draw(st.integers(0, broken.numel() - 1))] = value
    with pytest.raises((ValueError, FloatingPointError), match=rf"\b{name} (has 1 entries that are not|spans \[)"):
        call(**arguments | {name: broken})


@given(st.data(), st.sampled_from(sorted(OF_TENSORS)))
def test_whatever_shape_or_type_does_not_fit_an_argument_is_named(draw, function):
    call, arguments = OF_TENSORS[function]
    name = draw.draw(st.sampled_from(sorted(arguments)))
    value = arguments[name]
    wrong = {
        "empty": value[:0],
        "flat": value.flatten(),
        "one more dimension": value[..., None].expand(*value.shape, 2),
        "integers": value.long(),
        "an array": value.numpy(),
        "nothing": None,
    }
    how = draw.draw(st.sampled_from(sorted(wrong)))
    with pytest.raises((ValueError, TypeError), match=r"\b(has (shape|\d+ rows)|is) .*: give"):
        call(**arguments | {name: wrong[how]})


@given(no_deviation)
def test_no_sigma_that_is_not_a_deviation_is_taken(sigma):
    for call in (
        lambda: h.gaussian_log_likelihood(images(), images(), sigma),
        lambda: h.importance_log_prob(images(), rows(), rows(), decode, sigma),
        lambda: h.annealed_log_prob(images(), rows(), rows(), decode, sigma),
        lambda: h.infer_latents(decode, images(), latent_size=D, sigma=sigma),
        lambda: h.latent_elbo(decode, images(), rows(), rows(), sigma),
        lambda: h.pca_posterior(images(), 2, sigma),
        lambda: h.VAEConfig(sigma=sigma),
        lambda: h.LatentConfig(sigma=sigma),
    ):
        with pytest.raises(ValueError, match=rf"sigma is {re.escape(repr(sigma))}: give a positive, finite number"):
            call()


@given(no_count)
def test_no_count_that_is_not_one_is_taken(count):
    for name, call in {
        "num_samples": lambda: h.importance_log_prob(images(), rows(), rows(), decode, num_samples=count),
        "chains": lambda: h.annealed_log_prob(images(), rows(), rows(), decode, chains=count),
        "steps": lambda: h.infer_latents(decode, images(), latent_size=D, steps=count),
        "per_class": lambda: h.balanced_subset(digits(20), count, h.make_generator(0)),
        "draws": lambda: h.fit_prior(rows(), rows(), 1, draws=count),
        "n_components": lambda: h.GaussianMixture(count).fit(rows().numpy()),
        "columns": lambda: h.tile(images(), count),
        "epochs": lambda: h.TrainConfig(epochs=count),
        "batch_size": lambda: h.in_batches(torch.sin, rows(), count),
    }.items():
        with pytest.raises(ValueError, match=rf"{name} is {re.escape(repr(count))}: give a whole number of at least 1"):
            call()


@given(st.one_of(st.floats(-1e30, -1e-3), st.floats(1.001, 1e30)), st.integers(0, 5 * 784 - 1))
def test_no_pixel_outside_the_unit_interval_is_taken(value, position):
    x = images()
    x.view(-1)[position] = value
    for call in (
        lambda: h.judge(classifier(), x),
        lambda: h.bernoulli_log_likelihood(x, images()),
        lambda: h.evaluate(model(), h.vae_objective, x, digits(), h.VAEConfig()),
        lambda: fit(small_data(train_x=torch.cat([images(15), x]))),
    ):
        with pytest.raises(ValueError, match=r"x (spans \[.*\]: scale it into \[0, 1\]|has 1 entries)"):
            call()
