"""The door: what the notebooks use, in the order in which one meets it. Nothing is defined here.

Whoever comes in by it has shapes and types of the course checked: an argument that does not fit
is refused by its name, with what it is and what it must be.
"""

# ruff: noqa: I001
from jaxtyping import install_import_hook

with install_import_hook(
    [  # not the mixture, which has scikit-learn's checks, and whose steps are short
        "latent_digits.batches",
        "latent_digits.data",
        "latent_digits.densities",
        "latent_digits.networks",
        "latent_digits.training",
        "latent_digits.optimizers",
        "latent_digits.latents",
        "latent_digits.noise",
        "latent_digits.log_prob",
        "latent_digits.prior",
        "latent_digits.clusters",
        "latent_digits.metrics",
        "latent_digits.figures",
        "latent_digits.photo",
        "study.widgets",
    ],
    "beartype.beartype",
):
    # how a notebook runs, and what it leaves
    from study.settings import (
        Settings as Settings,
    )
    from study.recipes import (
        load_data as load_data,
        begin as begin,
        fit_classifier as fit_classifier,
        fit_conv_vae as fit_conv_vae,
        fit_mlp_vae as fit_mlp_vae,
        fit_vae as fit_vae,
        fit_conv_latents as fit_conv_latents,
        as_written_config as as_written_config,
        draw_start as draw_start,
        fit_as_written as fit_as_written,
    )
    from study.cache import (
        recall as recall,
    )
    from study.report import (
        Report as Report,
    )
    from study.seeds import (
        over_seeds as over_seeds,
        compare_over_seeds as compare_over_seeds,
    )

    from study.drawings import (
        draw_vae as draw_vae,
        draw_latent_optimization as draw_latent_optimization,
        draw_importance_sampling as draw_importance_sampling,
        draw_annealing as draw_annealing,
        draw_em as draw_em,
    )

    # the course
    from latent_digits.random import (
        make_generator as make_generator,
    )
    from latent_digits.batches import (
        in_batches as in_batches,
    )
    from latent_digits.data import (
        Data as Data,
        balanced_subset as balanced_subset,
        one_per_class as one_per_class,
    )
    from latent_digits.densities import (
        Posterior as Posterior,
        GaussianLikelihood as GaussianLikelihood,
        gaussian_log_likelihood as gaussian_log_likelihood,
        gaussian_log_density as gaussian_log_density,
        bernoulli_log_likelihood as bernoulli_log_likelihood,
        kl_divergence as kl_divergence,
        kl_per_dimension as kl_per_dimension,
        reparameterize as reparameterize,
    )
    from latent_digits.networks import (
        Classifier as Classifier,
        conv_vae as conv_vae,
        mlp_vae as mlp_vae,
        without_encoder as without_encoder,
        build as build,
    )
    from latent_digits.training import (
        TrainConfig as TrainConfig,
        VAEConfig as VAEConfig,
        classification_objective as classification_objective,
        vae_objective as vae_objective,
        fit as fit,
        Trainer as Trainer,
        evaluate_splits as evaluate_splits,
        evaluate as evaluate,
    )
    from latent_digits.optimizers import (
        NaturalGradient as NaturalGradient,
        RowAdam as RowAdam,
    )
    from latent_digits.latents import (
        latent_terms as latent_terms,
        latent_elbo as latent_elbo,
        pca_posterior as pca_posterior,
        infer_latents as infer_latents,
        LatentConfig as LatentConfig,
        fit_latents as fit_latents,
        LatentTrainer as LatentTrainer,
    )
    from latent_digits.log_prob import (
        importance_log_prob as importance_log_prob,
        estimate_log_prob as estimate_log_prob,
        draw_log_weights as draw_log_weights,
        log_weight as log_weight,
        log_mean_weight as log_mean_weight,
        Annealing as Annealing,
        annealed_log_prob as annealed_log_prob,
        anneal as anneal,
        hamiltonian_move as hamiltonian_move,
    )
    from latent_digits.noise import (
        optimal_sigma as optimal_sigma,
        sigma_vae_objective as sigma_vae_objective,
        fitted_sigma as fitted_sigma,
        dequantize as dequantize,
    )
    from latent_digits.em import (
        quadratic_features as quadratic_features,
        expectation_step as expectation_step,
        maximization_step as maximization_step,
    )
    from latent_digits.mixture import (
        GaussianMixture as GaussianMixture,
    )
    from latent_digits.clusters import (
        fewest_components as fewest_components,
        component_overlap as component_overlap,
        cut_components as cut_components,
        group_shares as group_shares,
        matched_accuracy as matched_accuracy,
    )
    from latent_digits.prior import (
        FittedPrior as FittedPrior,
        informative_latents as informative_latents,
        fit_prior as fit_prior,
        WithPrior as WithPrior,
        prior_gap as prior_gap,
        index_information as index_information,
    )
    from latent_digits.metrics import (
        features_and_probabilities as features_and_probabilities,
        class_probabilities as class_probabilities,
        class_consistency as class_consistency,
        class_share as class_share,
        sharpness as sharpness,
        active_dimensions as active_dimensions,
        frechet_distance as frechet_distance,
        precision_recall as precision_recall,
        nearest as nearest,
        image_quality as image_quality,
    )
    from latent_digits.figures import (
        plot_history as plot_history,
        show_images as show_images,
        image_rows as image_rows,
    )

    from latent_digits.photo import (
        prepare_digit as prepare_digit,
    )

    # to play with
    from study.widgets import (
        explore as explore,
        describe_prediction as describe_prediction,
        latent_map as latent_map,
        rasterize as rasterize,
        DrawingPad as DrawingPad,
    )
