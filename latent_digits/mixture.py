"""The mixture of Gaussians as a scikit-learn estimator."""

import math
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import sklearn.mixture
import torch
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from latent_digits.checks import require_between, require_choice, require_whole
from latent_digits.em import (
    Coordinates,
    Gaussians,
    JointDensity,
    Sums,
    cholesky,
    gram,
    identity_like,
    in_parts,
    maximization_step,
    maximize_likelihood,
    multiply,
    standardize,
    whitener,
)
from latent_digits.precision import to_float64


class GaussianMixture(sklearn.mixture.GaussianMixture):
    """A mixture of Gaussians, fitted by EM: a scikit-learn estimator.

    p(x) = sum_k weights_[k] N(x; means_[k], covariances_[k]). The steps, the stopping rule and the
    start by "kmeans" are those of scikit-learn's GaussianMixture, and so are the results, with one
    exception: a component that holds less than a tenth of a sample keeps its shape, and where EM
    settles with such a dead one, it takes half of the widest, if that turns out likelier.
    Columns are centred and scaled, so that units and distance from zero cost no digits. Not here:
    tied covariances, warm starts, verbose, precisions_, other arrays than numpy's (tensors are
    copied to such).

    Speed beside scikit-learn's, on one thread of an AMD EPYC: 15 columns of 20,000 samples 3 times
    with K = 10, 7 to 9 times with 100 and more; K = 10 and 1,000 samples of 50 to 784 columns,
    constant ones among them, 1.1 to 1.5 times; spherical covariances 1 to 1.4 times. It is slower
    where a step or a fit takes a few milliseconds (1,000 samples and diagonal covariances 0.85 to
    1, fits that settle at once 0.7).

    n_components: K. covariance_type: "full" (K, d, d), "diag" (K, d) or "spherical" (K,). tol: of
    the mean log-likelihood in nats, at which EM stops. reg_covar: added to every variance.
    max_iter, n_init: iterations of a run, and runs, of which the best is kept. init_params: the
    first clustering, by "kmeans" (which itself starts from k-means++), or by the nearest of K
    samples drawn by "k-means++" or uniformly, "random_from_data". weights_init (K,), means_init
    (K, d), precisions_init (as covariance_type): a start of your own, in whole or in part.
    random_state: seed.

    After fit: weights_, means_, covariances_, converged_, n_iter_, lower_bounds_ (mean
    log-likelihood by iteration) and lower_bound_, the last of them.
    """

    def __sklearn_tags__(self):
        """scikit-learn's, but for its arrays of other libraries."""
        tags = super().__sklearn_tags__()
        tags.array_api_support = False
        return tags

    def fit(self, X, y=None) -> "GaussianMixture":
        """Fit to X (n, d); y is not used. Raises ValueError for what cannot be fitted."""
        self._check_settings()
        X = self._validated(X, ensure_min_samples=2)
        if len(X) < self.n_components:
            raise ValueError(
                f"X must have at least n_components = {self.n_components} rows, "
                f"got n_samples = {len(X)}"
            )
        x = self._blocks(X)
        coordinates = self._coordinates(x)
        runs = self._runs(X, coordinates.apply(x), coordinates)
        best, bounds, self.converged_ = max(runs, key=lambda run: run[1][-1])
        log_volume = float(coordinates.log_volume())
        self.lower_bounds_ = [bound - log_volume for bound in bounds]
        self.lower_bound_, self.n_iter_ = self.lower_bounds_[-1], len(bounds)
        if not self.converged_:
            warnings.warn(
                f"the log-likelihood has not settled to tol={self.tol:g} in "
                f"max_iter={self.max_iter} iterations: raise one of them, or lower n_components",
                ConvergenceWarning,
                stacklevel=2,
            )
        self._keep(coordinates.invert(best))
        # rounded to the numbers of x they must still be fit for use, in samples as in densities
        cholesky(self._mixture().covariances)
        self._density()
        return self

    def _runs(
        self, X: np.ndarray, u: Tensor, coordinates: Coordinates
    ) -> Iterator[tuple[Gaussians, list[float], bool]]:
        """What maximize_likelihood returns, over u, from n_init starts, or the given one."""
        rng, given = check_random_state(self.random_state), self._given()
        added = coordinates.shrink(self.reg_covar * identity_like(u))
        alike = self.covariance_type == "spherical"

        def regularize(covariances: Tensor) -> Tensor:
            if alike:
                covariances = covariances.mean(1, keepdim=True).expand_as(covariances)
            return covariances + added

        for _ in range(1 if len(given) == 3 else self.n_init):
            found = {}
            if len(given) < 3:
                start = self._start(self._labels(X, rng), u, regularize)
                found = coordinates.invert(start)._asdict()
            start = coordinates.transform(Gaussians(**found | given))
            yield maximize_likelihood(u, start, regularize, self.tol, self.max_iter, alike)

    def _check_settings(self) -> None:
        """Raise ValueError for a setting that makes no sense."""
        require_whole(n_components=self.n_components, max_iter=self.max_iter, n_init=self.n_init)
        require_between(0, tol=self.tol, reg_covar=self.reg_covar)
        require_choice(("full", "diag", "spherical"), covariance_type=self.covariance_type)
        require_choice(("kmeans", "k-means++", "random_from_data"), init_params=self.init_params)
        require_choice((False,), warm_start=self.warm_start, verbose=self.verbose)

    def _validated(self, X, **options) -> np.ndarray:
        """X (n, d) in float64, of whatever a user gives."""
        X = to_float64(X) if isinstance(X, Tensor) else X
        return validate_data(self, X, dtype=np.float64, order="C", **options)

    def _blocks(self, X: np.ndarray) -> Tensor:
        """(n, d) -> (g, n, b)."""
        # a copy in C order: torch takes no negative strides, which one flipped column may keep
        x = torch.from_numpy(np.array(X, order="C"))
        return x[None] if self.covariance_type == "full" else x.T[:, :, None]

    def _coordinates(self, x: Tensor) -> Coordinates:
        """Those of x (g, n, b) in which EM is done."""
        variances = x.var(1, correction=0, keepdim=True)
        if not variances.isfinite().all():
            raise ValueError(
                f"X must not overflow when squared, got entries up to {x.abs().max():.3g}: scale it"
            )
        if self.covariance_type == "spherical":
            variances = variances.mean(0, keepdim=True).expand_as(variances)
        # a usual value of each column becomes zero: where nearly all samples are near to it, their
        # squares are exact
        usual = x[:, :: max(1, x.shape[1] // 100)].median(1, keepdim=True).values
        return standardize(usual, variances)

    def _labels(self, X: np.ndarray, rng: np.random.RandomState) -> Tensor:
        """A first clustering of X (n, d): (n,), in 0 .. K - 1."""
        if self.init_params == "kmeans":
            kmeans = KMeans(self.n_components, random_state=rng).fit(X)
            return torch.from_numpy(kmeans.labels_).long()
        centred = X - X.mean(0)
        if self.init_params == "k-means++":
            _, chosen = kmeans_plusplus(centred, self.n_components, random_state=rng)
        else:
            chosen = rng.choice(len(X), self.n_components, replace=False)
        x = torch.from_numpy(centred)
        return torch.cdist(x, x[chosen]).argmin(1)

    def _start(self, labels: Tensor, u: Tensor, regularize: Callable) -> Gaussians:
        """The M step for samples u (g, n, b) of one component each.

        An empty component is as wide as all samples.
        """
        groups, block = u.shape[0], u.shape[2]
        points = u.transpose(0, 1)  # (n, g, b)
        counts = labels.bincount(minlength=self.n_components)  # (K,)
        origins = points.new_zeros(len(counts), groups, block).index_add(0, labels, points)
        origins /= counts.clamp(min=1)[:, None, None]
        # (g, n, b), one component after another
        offsets = (points - origins[labels])[labels.argsort()].transpose(0, 1)
        second = torch.stack([gram(own.numpy()) for own in offsets.split(counts.tolist(), dim=1)])
        identity = identity_like(u).expand(len(counts), groups, -1, -1)
        sums = Sums(counts.to(u.dtype), torch.zeros_like(origins), second, origins)
        start = Gaussians(counts / counts.sum(), origins, identity)
        return maximization_step(sums, start, regularize)

    def _given(self) -> dict[str, Tensor]:
        """What weights_init, means_init and precisions_init give of a mixture over x."""
        count, size = self.n_components, self.n_features_in_
        precisions = {"full": (count, size, size), "diag": (count, size), "spherical": (count,)}
        shapes = {"weights": (count,), "means": (count, size)}
        shapes["precisions"] = precisions[self.covariance_type]
        arrays, given = {}, {}
        for name, shape in shapes.items():
            if (value := getattr(self, f"{name}_init")) is not None:
                value = arrays[name] = np.array(value, dtype=np.float64)
                if value.shape != shape or not np.isfinite(value).all():
                    raise ValueError(
                        f"{name}_init must be finite, of shape {shape}, got shape {value.shape}"
                    )
        if "weights" in arrays:
            given["weights"] = weights = torch.from_numpy(arrays["weights"])
            if weights.min() <= 0 or not math.isclose(weights.sum(), 1, abs_tol=1e-6):
                raise ValueError(
                    f"weights_init must be positive numbers whose sum is 1, got {arrays['weights']}"
                )
        if "means" in arrays:
            given["means"] = self._blocks(arrays["means"]).transpose(0, 1)
        if "precisions" in arrays:
            blocks = self._covariance_blocks(arrays["precisions"])
            unfit = (
                "precisions_init must be symmetric and positive definite, as inverses of "
                "covariances are, got a matrix that is not"
            )
            if (blocks - blocks.mT).abs().max() > 1e-6 * blocks.abs().max():
                raise ValueError(unfit)
            roots = whitener(cholesky((blocks + blocks.mT) / 2, unfit))
            given["covariances"] = multiply(roots, roots.mT)
        return given

    def _covariance_blocks(self, covariances: np.ndarray) -> Tensor:
        """As covariance_type has them -> (K, g, b, b)."""
        values, size = torch.from_numpy(np.array(covariances)), self.n_features_in_
        if self.covariance_type == "full":
            return values[:, None]
        return values.view(len(values), -1, 1, 1).expand(-1, size, -1, -1)

    def _keep(self, mixture: Gaussians) -> None:
        """Set the fitted attributes from a mixture over x."""
        self.weights_, self.means_ = mixture.weights.numpy(), mixture.means.flatten(1).numpy()
        covariances = mixture.covariances.numpy()
        full = self.covariance_type == "full"
        # (K, d, d) or (K, d)
        self.covariances_ = covariances[:, 0] if full else covariances[:, :, 0, 0]
        if self.covariance_type == "spherical":
            self.covariances_ = self.covariances_.mean(1)

    def _mixture(self) -> Gaussians:
        """The fitted mixture over x."""
        means = self._blocks(self.means_).transpose(0, 1)
        weights = torch.from_numpy(np.array(self.weights_))
        return Gaussians(weights, means, self._covariance_blocks(self.covariances_))

    def _log_joint(self, X) -> Tensor:
        """log weights_k N(x; k) for what a user gives as X (n, d): (n, K)."""
        check_is_fitted(self)
        X = self._validated(X, reset=False)
        x = self._blocks(X)
        coordinates, log_joint = self._density()
        parts = in_parts(coordinates.apply(x), len(self.means_))
        found = torch.cat([log_joint(*part) for part in parts]) - coordinates.log_volume()
        # so far away that the squares overflow
        return torch.where(found.isnan(), -math.inf, found)

    def _density(self) -> tuple[Coordinates, JointDensity]:
        """The mixture's density, and the coordinates that it is computed in."""
        mixture = self._mixture()
        centre = mixture.means[mixture.weights.argmax()]  # (g, b)
        spread = mixture.covariances.diagonal(dim1=2, dim2=3) + (mixture.means - centre).square()
        variances = torch.einsum("k,kgi->gi", mixture.weights, spread)
        coordinates = standardize(centre[:, None], variances[:, None])
        return coordinates, JointDensity(coordinates.transform(mixture))

    def score_samples(self, X) -> np.ndarray:
        """log p(x) in nats. (n, d) -> (n,)."""
        return self._log_joint(X).logsumexp(1).numpy()

    def predict_proba(self, X) -> np.ndarray:
        """Responsibilities p(k|x). (n, d) -> (n, K)."""
        return self._log_joint(X).softmax(1).numpy()

    def predict(self, X) -> np.ndarray:
        """The component of the largest responsibility. (n, d) -> (n,)."""
        return self._log_joint(X).argmax(1).numpy()

    def fit_predict(self, X, y=None) -> np.ndarray:
        """fit(X).predict(X)."""
        return self.fit(X).predict(X)

    def sample(self, n_samples=1) -> tuple[np.ndarray, np.ndarray]:
        """n samples (n, d) and the components they are of (n,), in the order of the components.

        From random_state: the same at each call where that is a seed, new ones where it is a
        RandomState.
        """
        check_is_fitted(self)
        require_whole(n_samples=n_samples)
        rng, mixture = check_random_state(self.random_state), self._mixture()
        counts = rng.multinomial(n_samples, self.weights_)
        eps = torch.from_numpy(rng.standard_normal((n_samples, self.n_features_in_)))
        eps = eps.unflatten(1, mixture.means.shape[1:]).transpose(0, 1)  # (g, n, b)
        own = eps.split(counts.tolist(), 1)  # K x (g, count, b)
        parts = zip(mixture.means, own, cholesky(mixture.covariances), strict=True)
        x = torch.cat([mean[:, None] + e @ factor.mT for mean, e, factor in parts], 1)
        return x.transpose(0, 1).flatten(1).numpy(), np.arange(len(counts)).repeat(counts)
