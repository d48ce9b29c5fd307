"""Bad input: every function that the notebooks call refuses it, naming the argument, the value and the remedy."""

import ast
import json
import math
import re
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import helpers as h
from latent_digits.data import random_affine
from latent_digits.figures import tile
from study.settings import PROJECT
from study.widgets import Screen

CONTRACT = {"load_data", "gaussian_log_likelihood", "bernoulli_log_likelihood", "kl_divergence", "reparameterize"}
CONTRACT |= {"importance_log_prob", "infer_latents", "GaussianMixture", "frechet_distance"}

# called by notebooks, and why there is nothing in the table below for them
NOTHING_TO_REFUSE = {
    **{
        f"draw_{name}": "takes nothing"
        for name in ("vae", "latent_optimization", "importance_sampling", "annealing", "em")
    },
    "as_written_config": "takes nothing",
    "begin": "takes what Settings, load_data and Report refuse",
    "Posterior": "is a named tuple, of which functions check both parts",
    "GaussianLikelihood": "is a named tuple, of which functions check sigma",
    "Annealing": "is in the table under annealed_log_prob",
    "Data": "is a dataclass, which `fit` checks",
    "FittedPrior": "is a dataclass of what has been checked",
    "WithPrior": "is a named tuple, of which estimate_log_prob checks sigma",
    "quadratic_features": "takes what scikit-learn's checks have passed",
    "explore": "what its function answers is refused by Screen.show, in the table",
    "DrawingPad": "its strokes are refused by rasterize, its size in the table under Screen",
    "evaluate_splits": "is evaluate, twice",
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


def estimate(x, mu, logvar, sigma=0.4, num_samples=2):
    return h.estimate_log_prob(x, h.Posterior(mu, logvar), h.GaussianLikelihood(decode, sigma), num_samples, None)


def draw(x, mu, logvar, sigma=0.4, draws=2):
    likelihood = h.GaussianLikelihood(decode, sigma)
    return h.draw_log_weights(x, h.Posterior(mu, logvar), likelihood, draws, None)


def annealed(x, mu, logvar, sigma=0.4, exact=None, **settings):
    q, likelihood = h.Posterior(mu, logvar), h.GaussianLikelihood(decode, sigma)
    return h.annealed_log_prob(x, q, likelihood, h.Annealing(**settings), exact=exact)


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
        ("parameter 'x'|x must", lambda: call(images()[:0], rows()[:0], rows()[:0])),
        ("x must be finite, got 1 entries", lambda: call(poisoned(images()), rows(), rows())),
        ("parameter 'x'", lambda: call(images().byte(), rows(), rows())),
        ("mu must be finite, got 1 entries", lambda: call(images(), poisoned(rows(), -math.inf), rows())),
        ("logvar must be finite, got 1 entries", lambda: call(images(), rows(), poisoned(rows(), math.inf))),
        ("parameter '(mu|start)'", lambda: call(images(), rows().long(), rows())),
        ("parameter '(logvar|start)'", lambda: call(images(), rows(), rows(D + 1))),
        ("parameter '(mu|start)'", lambda: call(images(), rows()[1:], rows()[1:])),
        ("sigma must be .* got 0", lambda: call(images(), rows(), rows(), sigma=0)),
        ("sigma must be .* got nan", lambda: call(images(), rows(), rows(), sigma=math.nan)),
    ]


CASES = {
    "Settings": [("DATA must be .* got 'cifar'", lambda: h.Settings.from_environment({"DATA": "cifar"}))]
    + [("QUICK must be .* got 'perhaps'", lambda: h.Settings.from_environment({"QUICK": "perhaps"}))]
    + [("SEED must be .* got 'one'", lambda: h.Settings.from_environment({"SEED": "one"}))]
    + [("DEVICE must be .* got 'tpu'", lambda: h.Settings.from_environment({"DEVICE": "tpu"}))]
    + [("DTYPE must be .* got 'float16'", lambda: h.Settings.from_environment({"DTYPE": "float16"}))],
    "make_generator": [
        ("seed must be .* got -1", lambda: h.make_generator(-1)),
        ("parameter 'seed'|seed must be .* got 0.5", lambda: h.make_generator(0.5)),
    ],
    "load_data": [
        ("source must be .* got 'cifar'", lambda: h.load_data("cifar")),
        ("per_class must be .* got 0", lambda: h.load_data("digits", per_class=0)),
        ("per_class must be .* got 2001", lambda: h.load_data("digits", per_class=2001)),
        ("parameter 'per_class'|per_class must be .* got 2.5", lambda: h.load_data("digits", per_class=2.5)),
        ("test_size must be .* got 0", lambda: h.load_data("digits", test_size=0)),
        ("test_size must be .* got -3", lambda: h.load_data("digits", test_size=-3)),
        ("seed must be .* got -1", lambda: h.load_data("digits", seed=-1)),
    ],
    "balanced_subset": [
        ("parameter 'labels'", lambda: h.balanced_subset(digits(10).float(), 1, h.make_generator(0))),
        ("labels must be digits from 0 to 9, got", lambda: h.balanced_subset(torch.arange(11), 1, h.make_generator(0))),
        ("labels must be digits from 0 to 9, got", lambda: h.balanced_subset(torch.arange(10) - 1, 1, h.make_generator(0))),
        ("parameter 'labels'|labels must", lambda: h.balanced_subset(digits(0), 1, h.make_generator(0))),
        ("per_class must be .* got 2", lambda: h.balanced_subset(digits(10), 2, h.make_generator(0))),
    ],
    "one_per_class": [
        (r"labels must have every digit, got none of \[8, 9\]", lambda: h.one_per_class(torch.arange(8))),
        ("labels must be digits from 0 to 9, got", lambda: h.one_per_class(torch.arange(11))),
        ("parameter 'labels'", lambda: h.one_per_class([0, 1, 2])),
        ("parameter 'labels'|labels must", lambda: h.one_per_class(torch.zeros(2, 5).long())),
    ],
    "random_affine": [
        ("parameter 'x'|x must", lambda: random_affine(images()[0], h.make_generator(0))),
        ("parameter 'x'", lambda: random_affine(images().long(), h.make_generator(0))),
        ("degrees must be .* got -1", lambda: random_affine(images(), h.make_generator(0), degrees=-1)),
        ("shift must be .* got 2", lambda: random_affine(images(), h.make_generator(0), shift=2)),
    ],
    "gaussian_log_likelihood": [
        ("sigma must be .* got 0", lambda: h.gaussian_log_likelihood(images(), images(), 0)),
        ("sigma must be .* got inf", lambda: h.gaussian_log_likelihood(images(), images(), math.inf)),
        ("parameter 'sigma'|sigma must be .* got 'wide'", lambda: h.gaussian_log_likelihood(images(), images(), "wide")),
        ("parameter 'x_hat'|x_hat must", lambda: h.gaussian_log_likelihood(images(), images(4), 0.4)),
        ("parameter 'x'", lambda: h.gaussian_log_likelihood(images().byte(), images(), 0.4)),
        ("parameter 'x_hat'", lambda: h.gaussian_log_likelihood(images(), images().numpy(), 0.4)),
        ("x must be finite, got 1 entries", lambda: h.gaussian_log_likelihood(poisoned(images()), images(), 0.4)),
        ("x_hat must be finite, got 1 entries", lambda: h.gaussian_log_likelihood(images(), poisoned(images(), math.inf), 0.4)),
        ("overflow from .*x_hat up to 1e.30", lambda: h.gaussian_log_likelihood(images(), images() + 1e30, 0.4)),
    ],
    "bernoulli_log_likelihood": [
        (r"x must be in \[0, 1\], got", lambda: h.bernoulli_log_likelihood(torch.tensor([[0.0, 255.0]]), torch.zeros(1, 2))),
        (r"x must be in \[0, 1\], got", lambda: h.bernoulli_log_likelihood(torch.tensor([[-1.0, 0.0]]), torch.zeros(1, 2))),
        ("parameter 'logits'|logits must", lambda: h.bernoulli_log_likelihood(images(), rows())),
        ("parameter 'x'|x must", lambda: h.bernoulli_log_likelihood(torch.ones(3), torch.ones(3))),
        ("parameter 'logits'", lambda: h.bernoulli_log_likelihood(images(), images().long())),
        ("x must be finite, got 1 entries", lambda: h.bernoulli_log_likelihood(poisoned(images()), images())),
        ("logits must be finite, got 1 entries", lambda: h.bernoulli_log_likelihood(images(), poisoned(images(), -math.inf))),
        ("parameter 'x'", lambda: h.bernoulli_log_likelihood(images() > 0.5, images())),
    ],
    "kl_divergence": [
        ("parameter 'logvar'|logvar must", lambda: h.kl_divergence(rows(), rows(D + 1))),
        ("parameter 'mu'", lambda: h.kl_divergence(rows().long(), rows())),
        ("mu must be finite, got 1 entries", lambda: h.kl_divergence(poisoned(rows()), rows())),
        ("logvar must be finite, got 1 entries", lambda: h.kl_divergence(rows(), poisoned(rows(), -math.inf))),
        ("overflow from .*logvar up to 200", lambda: h.kl_divergence(rows(), torch.full((N, D), 200.0))),
    ],
    "kl_per_dimension": [
        ("parameter 'logvar'|logvar must", lambda: h.kl_per_dimension(rows(), rows(D + 1))),
        ("parameter 'mu'", lambda: h.kl_per_dimension([1.0], rows())),
        ("parameter 'logvar'", lambda: h.kl_per_dimension(rows(), rows().long())),
    ],
    "reparameterize": [
        ("parameter 'logvar'|logvar must", lambda: h.reparameterize(rows(), rows(D + 1))),
        ("mu must be finite, got 1 entries", lambda: h.reparameterize(poisoned(rows()), rows())),
        ("logvar must be finite, got 1 entries", lambda: h.reparameterize(rows(), poisoned(rows(), math.inf))),
    ],
    "Classifier": [
        ("width must be .* got 0", lambda: h.Classifier(width=0)),
        ("dropout must be .* got 1.5", lambda: h.Classifier(dropout=1.5)),
        ("parameter 'x'|x must", lambda: classifier()(images()[:, :, 1:])),
        ("x must be finite, got 1 entries", lambda: classifier()(poisoned(images()))),
    ],
    "conv_vae": [
        ("latent_size must be .* got 0", lambda: h.conv_vae(0)),
        ("parameter 'hidden'|hidden must be .* got 2.5", lambda: h.conv_vae(hidden=2.5)),
        ("dropout must be .* got nan", lambda: h.conv_vae(dropout=math.nan)),
    ],
    "mlp_vae": [
        ("latent_size must be .* got True", lambda: h.mlp_vae(True)),
        (r"len\(hidden\) must be .* got 0", lambda: h.mlp_vae(hidden=())),
        (r"hidden\[1\] must be .* got 0", lambda: h.mlp_vae(hidden=(4, 0))),
        ("parameter 'x'", lambda: model().encode(images().byte())),
        ("parameter 'x'|x must", lambda: model().encode(images()[:0])),
        ("x must be finite, got 1 entries", lambda: model().encode(poisoned(images()))),
        ("parameter 'z'|z must", lambda: model().decode(rows(4))),
    ],
    "without_encoder": [("this model has no encoder: find", lambda: h.without_encoder(model()).encode(images()))],
    "build": [
        ("parameter 'seed'|seed must be .* got None", lambda: h.build(h.mlp_vae, seed=None)),
        ("dtype must be .* got 'half'", lambda: h.build(h.mlp_vae, seed=0, dtype="half")),
    ],
    "TrainConfig": [
        ("epochs must be .* got 0", lambda: h.TrainConfig(epochs=0)),
        ("batch_size must be .* got 0", lambda: h.TrainConfig(batch_size=0)),
        ("learning_rate must be .* got 0", lambda: h.TrainConfig(learning_rate=0)),
        ("warm_up must be .* got 2", lambda: h.TrainConfig(warm_up=2)),
        ("weight_decay must be .* got -1", lambda: h.TrainConfig(weight_decay=-1)),
        (r"snapshots\[1\] must be .* got 0", lambda: h.TrainConfig(snapshots=(1, 0))),
    ],
    "VAEConfig": [
        ("likelihood must be .* got 'laplace'", lambda: h.VAEConfig(likelihood="laplace")),
        ("sigma must be .* got -0.4", lambda: h.VAEConfig(sigma=-0.4)),
        ("beta must be .* got nan", lambda: h.VAEConfig(beta=math.nan)),
        ("parameter 'epochs'|epochs must be .* got 1.5", lambda: h.VAEConfig(epochs=1.5)),
    ],
    "LatentConfig": [
        ("epochs must be .* got 1", lambda: h.LatentConfig(epochs=1)),
        ("code_learning_rate must be .* got inf", lambda: h.LatentConfig(code_learning_rate=math.inf)),
        ("sigma must be .* got 0", lambda: h.LatentConfig(sigma=0)),
    ],
    "classification_objective": [
        ("parameter 'y'", lambda: h.classification_objective(classifier(), images(), rows(1)[:, 0], None, None)),
        ("y must be digits from 0 to 9, got", lambda: h.classification_objective(classifier(), images(), digits() + 6, None, None)),
        ("parameter 'y'", lambda: h.classification_objective(classifier(), images(), digits(4), None, None)),
        ("parameter 'x'|x must", lambda: h.classification_objective(classifier(), images()[0], digits(1), None, None)),
    ],
    "vae_objective": [
        ("parameter 'x'|x must", lambda: h.vae_objective(model(), images()[:0], digits(0), h.VAEConfig(), None)),
        ("x must be finite, got 1 entries", lambda: h.vae_objective(model(), poisoned(images()), digits(), h.VAEConfig(), None)),
    ],
    "fit": [
        ("parameter 'train_y'", lambda: fit(small_data(train_x=images(0)))),
        ("train_x must be finite, got 1 entries", lambda: fit(small_data(train_x=poisoned(images(20))))),
        (r"train_x must be in \[0, 1\], got", lambda: fit(small_data(train_x=poisoned(images(20), 255.0)))),
        ("parameter 'test_x'", lambda: fit(small_data(test_x=images(10).byte()))),
        ("parameter 'train_y'", lambda: fit(small_data(train_y=digits(19)))),
        ("test_y must be digits from 0 to 9, got", lambda: fit(small_data(test_y=torch.arange(10) + (torch.arange(10) == 9)))),
        ("seed must be .* got -1", lambda: h.fit(model(), h.vae_objective, small_data(), h.VAEConfig(), seed=-1)),
    ],
    "fit_vae": [
        (r"test_x must be (in \[0, 1\]|digits)", lambda: h.fit_vae(model(), small_data(test_x=-images(10)), h.VAEConfig(), settings())),
    ],
    "fit_classifier": [
        ("parameter 'train_y'", lambda: h.fit_classifier(small_data(train_y=digits(20).int()), settings())),
    ],
    "fit_conv_vae": [(r"train_y must be (in \[0, 1\]|digits)", lambda: h.fit_conv_vae(small_data(train_y=digits(20) - 1), settings()))],
    "fit_mlp_vae": [
        ("beta must be .* got -1", lambda: h.fit_mlp_vae(small_data(), settings(), beta=-1)),
        ("epochs must be .* got 0", lambda: h.fit_mlp_vae(small_data(), settings(), epochs=0)),
    ],
    "Trainer": [("size must be .* got 0", lambda: small_data().subsample(0))],
    "evaluate": [
        ("parameter 'x'|x must", lambda: h.evaluate(model(), h.vae_objective, images(0), digits(0), h.VAEConfig())),
        ("parameter 'y'", lambda: h.evaluate(model(), h.vae_objective, images(), digits(4), h.VAEConfig())),
        ("batch_size must be .* got 0", lambda: h.evaluate(model(), h.vae_objective, images(), digits(), h.VAEConfig(), 0)),
        (r"x must be (in \[0, 1\]|digits)", lambda: h.evaluate(model(), h.vae_objective, 255 * images(), digits(), h.VAEConfig())),
    ],
    "in_batches": [
        (r"tensors must have the same number of rows, got \[2, 5\]", lambda: h.in_batches(torch.add, rows(), rows(count=2))),
        ("number of rows must be .* got 0", lambda: h.in_batches(torch.sin, rows()[:0])),
        ("batch_size must be .* got 0", lambda: h.in_batches(torch.sin, rows(), batch_size=0)),
        ("batch_size must be .* got -2", lambda: h.in_batches(torch.sin, rows(), batch_size=-2)),
    ],
    "NaturalGradient": [
        ("parameter 'codes'|codes must", lambda: h.NaturalGradient(rows(3))),
        ("codes must be finite, got 1 entries", lambda: h.NaturalGradient(poisoned(rows(4)))),
        ("parameter 'gradient'|gradient must", lambda: h.NaturalGradient(rows(4)).step(torch.tensor([0, 1]), rows(4)[:1], 0.1)),
        ("parameter 'gradient'", lambda: h.NaturalGradient(rows(4)).step(torch.tensor([0, 1]), rows(2)[:2], 0.1)),
        ("gradient must be finite, got 1 entries", lambda: h.NaturalGradient(rows(4)).step(digits(), poisoned(rows(4)), 0.1)),
        ("rate must be .* got -1", lambda: h.NaturalGradient(rows(4)).step(digits(), rows(4), -1)),
    ],
    "RowAdam": [
        ("parameter 'codes'", lambda: h.RowAdam(rows(4).long())),
        ("parameter 'codes'|codes must", lambda: h.RowAdam(rows(4)[0])),
        ("parameter 'gradient'|gradient must", lambda: h.RowAdam(rows(4)).step(torch.tensor([0, 1]), rows(4), 0.1)),
        ("parameter 'gradient'", lambda: h.RowAdam(rows(4)).step(torch.tensor([0, 1]), rows(1)[:2], 0.1)),
        ("gradient must be finite, got 1 entries", lambda: h.RowAdam(rows(4)).step(digits(), poisoned(rows(4)), 0.1)),
        ("rate must be .* got nan", lambda: h.RowAdam(rows(4)).step(digits(), rows(4), math.nan)),
    ],
    "LatentTrainer": [
        ("parameter 'mu'|mu must", lambda: fit_latents((rows(0, 20), rows(0, 20)))),
    ],
    "latent_terms": [
        ("parameter 'codes'", lambda: h.latent_terms(h.GaussianLikelihood(decode, 0.4), images(4), rows(6), None)),
        ("sigma must be .* got 0", lambda: h.latent_terms(h.GaussianLikelihood(decode, 0), images(), rows(6), None)),
        ("logvar must be finite, got 1 entries", lambda: h.latent_terms(h.GaussianLikelihood(decode, 0.4), images(), poisoned(rows(6)), None)),
    ],
    "latent_elbo": posterior_cases(lambda x, mu, logvar, sigma=0.4: h.latent_elbo(decode, x, mu, logvar, sigma)),
    "pca_posterior": [
        ("parameter 'x'|x must", lambda: h.pca_posterior(images(0), 2)),
        (r"len\(x\) must be .* got 1", lambda: h.pca_posterior(images(1), 2)),
        ("x must be finite, got 1 entries", lambda: h.pca_posterior(poisoned(images()), 2)),
        ("latent_size must be .* got 0", lambda: h.pca_posterior(images(), 0)),
        ("sigma must be .* got 0", lambda: h.pca_posterior(images(), 2, sigma=0)),
        ("parameter 'images'|images must", lambda: h.pca_posterior(images(), 2)(images()[:, :, 1:])),
    ],
    "infer_latents": posterior_cases(
        lambda x, mu, logvar, sigma=0.4: h.infer_latents(decode, x, (mu, logvar), sigma=sigma)
    )
    + [
        ("latent_size must be a whole number of at least 1, got None", lambda: h.infer_latents(decode, images())),
        ("latent_size must be .* got 0", lambda: h.infer_latents(decode, images(), latent_size=0)),
        ("latent_size must be that of start, 3, got 4", lambda: h.infer_latents(decode, images(), (rows(), rows()), latent_size=4)),
        ("steps must be .* got 0", lambda: h.infer_latents(decode, images(), latent_size=D, steps=0)),
        ("rate must be .* got 0", lambda: h.infer_latents(decode, images(), latent_size=D, rate=0)),
        ("batch_size must be .* got 0", lambda: h.infer_latents(decode, images(), latent_size=D, batch_size=0)),
        ("x_hat must be finite", lambda: h.infer_latents(lambda z: decode(z) / 0, images(), latent_size=D)),
    ],
    "fit_latents": [
        ("parameter 'mu'|mu must", lambda: fit_latents((rows(4, 20), rows(4, 20)))),
        ("mu must have shape", lambda: fit_latents((rows(D, 19), rows(D, 19)))),
        ("parameter 'start'", lambda: fit_latents((rows(D, 20), rows(D, 19)))),
        ("logvar must be finite, got 1 entries", lambda: fit_latents((rows(D, 20), poisoned(rows(D, 20))))),
        (r"train_x must be (in \[0, 1\]|digits)", lambda: fit_latents((rows(D, 20),) * 2, data=small_data(train_x=-images(20)))),
    ],
    "fit_conv_latents": [
        ("x must be finite, got 1 entries", lambda: h.fit_conv_latents(small_data(train_x=poisoned(images(20))), settings())),
        (r"train_y must be (in \[0, 1\]|digits)", lambda: h.fit_conv_latents(small_data(train_y=digits(20) - 1), settings())),
    ],
    "sharpness": [("parameter 'x'", lambda: h.sharpness(images()[0]))],
    "over_seeds": [
        ("result must be one of 01_supervised_cnn .* got 'none'", lambda: h.over_seeds("01_supervised_cnn", "none")),
        ("result must be one of 07_none .* got 'test accuracy'", lambda: h.over_seeds("07_none", "test accuracy")),
    ],
    "compare_over_seeds": [
        ("must be .* got 'none'", lambda: h.compare_over_seeds("01_supervised_cnn", {"a": ("test accuracy", "none")})),
    ],
    "draw_start": [
        ("n must be a whole number of at least 1, got 0", lambda: h.draw_start(0, settings())),
        ("latent_size must be .* got 1.5", lambda: h.draw_start(2, settings(), 1.5)),
    ],
    "fit_as_written": [
        ("train_x must be finite, got 1 entries", lambda: h.fit_as_written(small_data(train_x=poisoned(images(20))), settings())),
        (r"train_y must be (in \[0, 1\]|digits)", lambda: h.fit_as_written(small_data(train_y=digits(20) - 1), settings())),
    ],
    "importance_log_prob": posterior_cases(
        lambda x, mu, logvar, sigma=0.4: h.importance_log_prob(x, mu, logvar, decode, sigma, 3)
    )
    + [
        ("num_samples must be .* got 0", lambda: h.importance_log_prob(images(), rows(), rows(), decode, num_samples=0)),
        ("parameter 'num_samples'|num_samples must be .* got 1.5", lambda: h.importance_log_prob(images(), rows(), rows(), decode, num_samples=1.5)),
        ("parameter 'x_hat'|x_hat must", lambda: h.importance_log_prob(images(), rows(), rows(), lambda z: z)),
        ("got others for 5 images", lambda: h.importance_log_prob(images(), rows(), rows(), lambda z: decode(z) / 0)),
    ],
    "estimate_log_prob": posterior_cases(lambda x, mu, logvar, sigma=0.4: estimate(x, mu, logvar, sigma))
    + [
        ("num_samples must be .* got 0", lambda: estimate(images(), rows(), rows(), num_samples=0)),
        ("parameter 'likelihood'", lambda: h.estimate_log_prob(images(), h.Posterior(rows(), rows()), decode, 2, None)),
    ],
    "prior_gap": [
        ("logvar must be finite, got 1 entries|logvar must", lambda: h.prior_gap(rows(), poisoned(rows()), h.fit_prior(rows(), rows(), 1))),
        ("parameter 'logvar'|logvar must", lambda: h.prior_gap(rows(), rows(4), h.fit_prior(rows(), rows(), 1))),
        ("parameter 'z'|z must", lambda: h.prior_gap(rows(4), rows(4), h.fit_prior(rows(), rows(), 1))),
    ],
    "index_information": [
        ("logvar must be finite|logvar", lambda: h.index_information(rows(), poisoned(rows()))),
        ("parameter 'logvar'|logvar must", lambda: h.index_information(rows(), rows(4))),
    ],
    "draw_log_weights": posterior_cases(
        lambda x, mu, logvar, sigma=0.4: draw(x, mu, logvar, sigma)
    )
    + [("draws must be .* got 0", lambda: draw(images(), rows(), rows(), draws=0))],
    "recall": posterior_cases(
        lambda x, mu, logvar, sigma=0.4: h.recall(
            h.importance_log_prob, x, mu, logvar, model().decode, sigma, num_samples=2, cache=None
        )
    ),
    "annealed_log_prob": posterior_cases(
        lambda x, mu, logvar, sigma=0.4: annealed(x, mu, logvar, sigma, temperatures=2)
    )
    + [
        ("chains must be .* got 0", lambda: h.Annealing(chains=0)),
        ("temperatures must be .* got 0", lambda: h.Annealing(temperatures=0)),
        ("leapfrogs must be .* got 0", lambda: h.Annealing(leapfrogs=0)),
        ("step_size must be .* got inf", lambda: h.Annealing(step_size=math.inf)),
        (r"exact must have mu's shape \(5, 3\), got \(5, 4\)", lambda: annealed(images(), rows(), rows(), exact=rows(4))),
        (
            "parameter 'exact'|exact must",
            lambda: annealed(images(), rows(), rows(), exact=rows()[0]),
        ),
        ("exact must be finite, got 1 entries", lambda: annealed(images(), rows(), rows(), exact=poisoned(rows()))),
    ],
    "optimal_sigma": [
        ("parameter 'x_hat'|x_hat must", lambda: h.optimal_sigma(images(), images(4))),
        ("x_hat must be finite, got 1 entries", lambda: h.optimal_sigma(images(), poisoned(images()))),
        ("x_hat must differ from x, got a mean squared error of 0", lambda: h.optimal_sigma(images(), images())),
    ],
    "sigma_vae_objective": [
        ("parameter 'x'|x must", lambda: h.sigma_vae_objective(model(), images()[:0], digits(0), h.VAEConfig(), None)),
        ("x must be finite, got 1 entries", lambda: h.sigma_vae_objective(model(), poisoned(images()), digits(), h.VAEConfig(), None)),
    ],
    "fitted_sigma": [
        ("parameter 'x'|x must|number of rows", lambda: h.fitted_sigma(model(), images(0))),
        ("x must be finite, got 1 entries", lambda: h.fitted_sigma(model(), poisoned(images()))),
    ],
    "dequantize": [
        ("parameter 'x'", lambda: h.dequantize(images().byte())),
        (r"x must be in \[0, 1\], got", lambda: h.dequantize(255 * images())),
    ],
    "fewest_components": [
        ("number of points must be .* got 1", lambda: h.fewest_components({10: np.zeros(1)})),
        ("parameter 'held_out'", lambda: h.fewest_components({10: np.zeros((2, 2))})),
    ],
    "component_overlap": [
        (r"responsibilities must be at least 0 and sum to 1, got rows with sum 1.2", lambda: h.component_overlap(np.full((3, 2), 0.6))),
        ("parameter 'responsibilities'", lambda: h.component_overlap(np.full(3, 0.5))),
    ],
    "cut_components": [
        ("number of components must be a whole number of at least 3, got 2", lambda: h.cut_components(np.full((3, 2), 0.5), 3)),
        ("responsibilities must be at least 0", lambda: h.cut_components(np.full((3, 2), math.nan), 2)),
    ],
    "group_shares": [("parameter 'group'", lambda: h.group_shares(np.full((3, 2), 0.5), np.array([0, 1, 1])))],
    "matched_accuracy": [("parameter 'groups'", lambda: h.matched_accuracy(np.arange(3), np.arange(4)))],
    "GaussianMixture": [
        ("X must have at least n_components = 6 rows, got n_samples = 5", lambda: h.GaussianMixture(6).fit(rows().numpy())),
        ("n_components must be .* got 0", lambda: h.GaussianMixture(0).fit(rows().numpy())),
        ("covariance_type must be .* got 'tied'", lambda: h.GaussianMixture(covariance_type="tied").fit(rows().numpy())),
        ("reg_covar must be .* got -1", lambda: h.GaussianMixture(reg_covar=-1).fit(rows().numpy())),
        ("Input X contains NaN", lambda: h.GaussianMixture().fit(poisoned(rows()).numpy())),
        ("n_samples must be .* got 0", lambda: h.GaussianMixture().fit(rows().numpy()).sample(0)),
    ],
    "informative_latents": [
        ("parameter 'mu'|mu must", lambda: h.informative_latents(rows()[0], rows()[0])),
        ("parameter 'logvar'|logvar must", lambda: h.informative_latents(rows(), rows(4))),
        ("mu must be finite, got 1 entries", lambda: h.informative_latents(poisoned(rows()), rows())),
    ],
    "fit_prior": [
        ("draws must be .* got 0", lambda: h.fit_prior(rows(), rows(), 1, draws=0)),
        ("parameter 'seed'|seed must be .* got 0.5", lambda: h.fit_prior(rows(), rows(), 1, seed=0.5)),
        ("X must have at least n_components = 6 rows, got n_samples = 5", lambda: h.fit_prior(rows(), rows(), 6)),
        ("logvar must be finite, got 1 entries", lambda: h.fit_prior(rows(), poisoned(rows()), 1)),
        ("n must be .* got 0", lambda: h.fit_prior(rows(), rows(), 1).sample(0)),
        (r"components must be .* got \[1\]", lambda: h.fit_prior(rows(), rows(), 1).sample(2, [1])),
        ("parameter 'z'|z must", lambda: h.fit_prior(rows(), rows(), 1).informative_part(rows(4))),
        ("parameter 'part'|part must", lambda: h.fit_prior(rows(), rows(), 1).complete(np.ones((2, 9)), rows())),
    ],
    "features_and_probabilities": [
        ("parameter 'x'|x must", lambda: h.features_and_probabilities(classifier(), images(0))),
        ("parameter 'x'", lambda: h.features_and_probabilities(classifier(), images().byte())),
        (r"x must be in \[0, 1\], got", lambda: h.features_and_probabilities(classifier(), poisoned(images(), 255.0))),
        ("x must be finite, got 1 entries", lambda: h.features_and_probabilities(classifier(), poisoned(images()))),
    ],
    "class_probabilities": [("parameter 'x'|x must", lambda: h.class_probabilities(classifier(), images()[0]))],
    "class_consistency": [
        ("parameter 'labels'", lambda: h.class_consistency(classifier(), images(), digits().float())),
        ("parameter 'labels'", lambda: h.class_consistency(classifier(), images(), digits(4))),
        ("labels must be digits from 0 to 9, got", lambda: h.class_consistency(classifier(), images(), digits() + 6)),
        (r"x must be (in \[0, 1\]|digits)", lambda: h.class_consistency(classifier(), 2 * images(), digits())),
    ],
    "class_share": [
        ("parameter 'probabilities'|probabilities must", lambda: h.class_share(rows(9))),
        ("probabilities must be at least 0 and sum to 1", lambda: h.class_share(rows(10))),
        ("parameter 'probabilities'|probabilities must", lambda: h.class_share(rows(10)[:0])),
    ],
    "active_dimensions": [
        (r"len\(mu\) must be .* at least 2, got 1", lambda: h.active_dimensions(rows(count=1))),
        ("mu must be finite, got 1 entries", lambda: h.active_dimensions(poisoned(rows()))),
        ("threshold must be .* got -1", lambda: h.active_dimensions(rows(), -1)),
    ],
    "frechet_distance": [
        ("parameter 'features_b'|features_b must", lambda: h.frechet_distance(rows(), rows(4))),
        ("parameter 'features_a'|features_a\)? must", lambda: h.frechet_distance(rows()[:1], rows())),
        ("parameter 'features_a'|features_a\)? must", lambda: h.frechet_distance(rows()[0], rows())),
        ("features_a must be finite, got 1 entries", lambda: h.frechet_distance(poisoned(rows()), rows())),
        ("parameter 'features_b'", lambda: h.frechet_distance(rows(), rows().numpy())),
    ],
    "precision_recall": [
        ("parameter 'real_features'", lambda: h.precision_recall(rows(), rows(4))),
        ("parameter 'features'", lambda: h.precision_recall(rows().long(), rows())),
        ("real_features must be finite, got 1 entries", lambda: h.precision_recall(rows(), poisoned(rows()))),
        (r"len\(features\) must be .* at least 4, got 3", lambda: h.precision_recall(rows()[:3], rows())),
        (r"len\(real_features\) must be .* at least 6, got 5", lambda: h.precision_recall(rows(count=6), rows(), k=5)),
        ("k must be .* got 0", lambda: h.precision_recall(rows(), rows(), 0)),
    ],
    "nearest": [
        ("parameter 'others'", lambda: h.nearest(rows(), rows(4))),
        ("parameter 'others'|others must not be empty", lambda: h.nearest(rows(), rows()[:0])),
        ("x must be finite, got 1 entries", lambda: h.nearest(poisoned(rows()), rows())),
        ("parameter 'x'", lambda: h.nearest(rows().numpy(), rows())),
    ],
    "image_quality": [
        ("parameter 'probabilities'", lambda: h.image_quality(rows(), rows(10)[1:].softmax(1), rows())),
        ("probabilities must be at least 0 and sum to 1", lambda: h.image_quality(rows(), rows(10), rows())),
        ("parameter 'real_features'", lambda: h.image_quality(rows(), rows(10).softmax(1), rows(4))),
    ],
    "Report": [
        ("passed must be .* got nan", lambda: report().check("holds", math.nan)),
        ("passed must be True or False, got tensor", lambda: report().check("holds", torch.tensor([1.0]))),
        ("passed must be .* got None", lambda: report().check("holds", None)),
        ("the dataset must be one of 'mnist', got 'digits'", lambda: report().by_data(mnist=1)),
        ("elbo must be .* got nan", lambda: report().result("elbo", math.nan)),
        ("elbo must be .* got inf", lambda: report().result("elbo", torch.tensor(math.inf))),
        ("digits must be .* got -1", lambda: report().result("elbo", 1.0, digits=-1)),
        ("name must be .* got '../curves'", lambda: report().figure(plt.figure(), "../curves")),
        ("kind must be .* got 'sliders'", lambda: report().explorer("sliders", images())),
    ],
    "plot_history": [
        ("term must be .* got 'x'", lambda: h.plot_history(axes(), pd.DataFrame({"train_a": [1]}), "x", "")),
    ],
    "show_images": [
        ("columns must be .* got 0", lambda: h.show_images(axes(), images(), 0)),
        ("parameter 'images'|images must", lambda: h.show_images(axes(), images()[0], 2)),
        ("parameter 'images'", lambda: h.show_images(axes(), images().numpy(), 2)),
    ],
    "image_rows": [
        (r"len\(rows\) must be .* got 0", lambda: h.image_rows({})),
        ("parameter 'images'|images must", lambda: h.image_rows({"a": images(0), "b": images(2)})),
    ],
    "describe_prediction": [("parameter 'x'|x must", lambda: h.describe_prediction(classifier(), images()))],
    "latent_map": [
        ("parameter 'labels'", lambda: h.latent_map(rows(2).numpy(), images(), digits(4).numpy(), rows(1)[:, 0].numpy())),
        ("parameter 'images'|images must", lambda: h.latent_map(rows(2).numpy(), images()[:, 0], digits().numpy(), rows(1)[:, 0].numpy())),
    ],
    "prepare_digit": [
        ("image must have a digit .* got a contrast of 0", lambda: h.prepare_digit(np.zeros((28, 28)))),
        ("image must be .* got shape", lambda: h.prepare_digit(np.zeros(784))),
        ("image must have no negative pixels", lambda: h.prepare_digit(torch.full((28, 28), -1.0))),
        ("parameter 'image'", lambda: h.prepare_digit(None)),
    ],
    "rasterize": [
        ("thickness must be .* got 0", lambda: h.rasterize([[(0, 0), (1, 1)]], 0)),
        ("strokes must be", lambda: h.rasterize([])),
        ("strokes must be", lambda: h.rasterize([[(0, math.nan)]])),
    ],
    "Screen": [
        ("images must be finite, got 1 entries", lambda: Screen().show(poisoned(images()))),
        ("zoom must be .* got 0", lambda: Screen(zoom=0)),
        ("size must be .* got 0", lambda: h.DrawingPad(decode, size=0)),
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
    # or scikit-learn's own words
    assert re.search(r"\bmust\b.+, got |parameter '\w+'|has no encoder|^Input X", text, re.S), text


def called_by_notebooks():
    """The functions and classes of helpers that the notebooks use."""
    names = set()
    for path in (PROJECT / "notebooks").glob("*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        for node in ast.walk(ast.parse("\n".join("".join(cell["source"]) for cell in cells))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "h":
                names.add(node.attr)
    return names


def test_everything_that_a_notebook_calls_is_in_the_table():
    missing = (called_by_notebooks() | CONTRACT) - set(CASES) - set(NOTHING_TO_REFUSE)
    assert missing == set()


def test_there_is_no_assert_in_place_of_an_error():
    for path in [*PROJECT.glob("latent_digits/*.py"), *PROJECT.glob("study/*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
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
    "annealed_log_prob": (lambda x, mu, logvar: annealed(x, mu, logvar, temperatures=1), X_AND_Q),
    "infer_latents": (lambda x, mu, logvar: h.infer_latents(decode, x, (mu, logvar), steps=1), X_AND_Q),
    "latent_elbo": (lambda x, mu, logvar: h.latent_elbo(decode, x, mu, logvar), X_AND_Q),
    "informative_latents": (h.informative_latents, {"mu": rows(), "logvar": rows()}),
    "frechet_distance": (h.frechet_distance, {"features_a": rows(), "features_b": rows()}),
    "precision_recall": (h.precision_recall, {"features": rows(), "real_features": rows()}),
    "nearest": (h.nearest, {"x": rows(), "others": rows()}),
    "features_and_probabilities": (lambda x: h.features_and_probabilities(classifier(), x), {"x": images()}),
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
    with pytest.raises(
        (ValueError, FloatingPointError), match=rf"\b{name} must be (finite, got 1 entries|in \[0, 1\])"
    ):
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
    with pytest.raises((ValueError, TypeError), match=r"parameter '\w+'|must not be empty"):
        call(**arguments | {name: wrong[how]})


@given(no_deviation)
def test_no_sigma_that_is_not_a_deviation_is_taken(sigma):
    for call in (
        lambda: h.gaussian_log_likelihood(images(), images(), sigma),
        lambda: h.importance_log_prob(images(), rows(), rows(), decode, sigma),
        lambda: annealed(images(), rows(), rows(), sigma),
        lambda: h.infer_latents(decode, images(), latent_size=D, sigma=sigma),
        lambda: h.latent_elbo(decode, images(), rows(), rows(), sigma),
        lambda: h.pca_posterior(images(), 2, sigma),
        lambda: h.VAEConfig(sigma=sigma),
        lambda: h.LatentConfig(sigma=sigma),
    ):
        with pytest.raises(
            (ValueError, TypeError),
            match=rf"parameter 'sigma'|sigma must be a positive, finite number, got {re.escape(repr(sigma))}",
        ):
            call()


@given(no_count)
def test_no_count_that_is_not_one_is_taken(count):
    for name, call in {
        "num_samples": lambda: h.importance_log_prob(images(), rows(), rows(), decode, num_samples=count),
        "chains": lambda: h.Annealing(chains=count),
        "steps": lambda: h.infer_latents(decode, images(), latent_size=D, steps=count),
        "per_class": lambda: h.balanced_subset(digits(20), count, h.make_generator(0)),
        "draws": lambda: h.fit_prior(rows(), rows(), 1, draws=count),
        "n_components": lambda: h.GaussianMixture(count).fit(rows().numpy()),
        "columns": lambda: tile(images(), count),
        "epochs": lambda: h.TrainConfig(epochs=count),
        "batch_size": lambda: h.in_batches(torch.sin, rows(), batch_size=count),
    }.items():
        with pytest.raises(
            (ValueError, TypeError),
            match=rf"parameter '{name}'|{name} must be a whole number of at least 1, got {re.escape(repr(count))}",
        ):
            call()


@given(st.one_of(st.floats(-1e30, -1e-3), st.floats(1.001, 1e30)), st.integers(0, 5 * 784 - 1))
def test_no_pixel_outside_the_unit_interval_is_taken(value, position):
    x = images()
    x.view(-1)[position] = value
    for call in (
        lambda: h.features_and_probabilities(classifier(), x),
        lambda: h.bernoulli_log_likelihood(x, images()),
        lambda: h.evaluate(model(), h.vae_objective, x, digits(), h.VAEConfig()),
        lambda: fit(small_data(train_x=torch.cat([images(15), x]))),
    ):
        with pytest.raises(ValueError, match=r"x must be (in \[0, 1\]|finite)"):
            call()
