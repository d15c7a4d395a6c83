"""Scaling laws: fits of how the loss falls with parameters N and training tokens D, and how sure they are.

`L(N) = E + A N^-alpha`, `L(D) = E + B D^-beta` and `L(N, D) = E + A N^-alpha + B D^-beta`, as in approach 3 of
Chinchilla (Hoffmann et al., arXiv 2203.15556), by least squares in the loss. For given exponents the rest is linear, so
only the exponents are searched (variable projection, Golub & Pereyra 1973): on a grid, then on ever finer ones around
the best point, with E, A and B from the normal equations of whichever terms make none of them negative. N and D are
divided by their geometric means, which keeps the columns of one size.

Intervals are those of a parametric bootstrap: the law is fitted again to losses drawn around it, with the residuals'
standard deviation drawn, too, as its own uncertainty says: `s sqrt(k / chi2_k)` at k degrees of freedom. The spread of
the refits thus widens as Student's t does. It was chosen by how often 90 % intervals held the truth on synthetic curves
L(N) of 4 to 24 points (E, alpha, the law and a run at twice the largest size; 6 laws and noises in 5 designs, 120 times
each; means by design): 0.87 to 0.91. A fixed standard deviation or resampled residuals gave 0.62 to 0.76 at 4 and 5
points and 0.83 to 0.91 beyond, a wild bootstrap 0.54 to 0.89, resampled runs 0.84 to 0.92 and nothing at 4 points. For
L(N, D) at 9 to 40 points, with the frontier, the mean was 0.89. This holds where the law is right and all runs are
equally noisy; intervals know nothing of a law that does not hold beyond the runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from app.output.intervals import Interval

Array = NDArray[np.float64]

LOW, HIGH = 0.01, 3.0  # exponents are searched between these
COARSE, ROUNDS = 20, 14  # grid points an exponent, and halvings of the grid's spacing after that
MIN_SPAN = 4.0  # largest over smallest size
MIN_SIZES = {1: 4, 2: 3}  # different sizes of each variable, by the number of variables
MIN_POINTS = {1: 4, 2: 7}
MAX_CORRELATION = 0.98  # of log N and log D: beyond, their terms cannot be told apart
# Exponents within this factor of a limit of the search count as being there: far more than the search's last spacing, a
# factor of 1.00002, and far less than what tells two laws apart.
EDGE = 1.01
# Added to the diagonal of the normal equations, as a part of its largest possible value: some 50 roundings of a float64
# (2.2e-16), so that no system is exactly singular and no coefficient changes visibly.
RIDGE = 1e-14
SAME = 1.1  # sizes within this factor count as one: the tokens of a step vary in some tasks
NAMES = {"N": ("A", "alpha"), "D": ("B", "beta")}  # of a variable's coefficient and exponent
UNDETERMINED = "not determined by these points"


@dataclass(frozen=True)
class Law:
    """`L = E + sum of coefficient * size^-exponent` over the variables.

    Attributes:
        variables: Their names, "N" or "D" or both.
        irreducible: E.
        coefficients: A and B, one a variable.
        exponents: alpha and beta, one a variable.
        points: Number of losses it was fitted to.
        least: The lowest of the losses.
        rms: Root mean square of the residuals, in units of the loss.
        r2: Share of the losses' variance that it explains.
    """

    variables: tuple[str, ...]
    irreducible: float
    coefficients: tuple[float, ...]
    exponents: tuple[float, ...]
    points: int
    least: float
    rms: float
    r2: float

    def predict(self, *sizes: ArrayLike) -> Array:
        """The loss at sizes, one argument a variable, which are broadcast."""
        terms = zip(self.coefficients, self.exponents, sizes, strict=True)
        return self.irreducible + sum(a * np.asarray(size, float) ** -x for a, x, size in terms)

    @property
    def undetermined(self) -> tuple[str, ...]:
        """Names of the exponents at an edge of the search, or whose term vanished: the points say nothing of them."""
        terms = zip(self.variables, self.coefficients, self.exponents, strict=True)
        return tuple(NAMES[name][1] for name, a, exponent in terms if a == 0 or at_edge(exponent))

    @property
    def at_bound(self) -> bool:
        """Whether E ended at its least or its greatest value, 0 or the lowest loss: the bound then made the others."""
        return not 0 < self.irreducible < self.least

    def parameters(self) -> dict[str, float]:
        """E, then each variable's coefficient and exponent, by name."""
        named = {"E": self.irreducible}
        for name, *values in zip(self.variables, self.coefficients, self.exponents, strict=True):
            named |= dict(zip(NAMES[name], values, strict=True))
        return named


@dataclass(frozen=True)
class Fit:
    """A law with its bootstrap: R refits, whose middle `level` is an interval.

    Attributes:
        law: The law fitted to the losses.
        level: Share of the refits in an interval, such as 0.9.
        irreducible_R: E of each refit.
        coefficients_RK: A and B of each refit.
        exponents_RK: alpha and beta of each refit.
        noise_R: Residuals' standard deviation of each refit's losses.
        normal_R: A standard normal number for each refit, for the noise of a run that is predicted.
    """

    law: Law
    level: float
    irreducible_R: Array
    coefficients_RK: Array
    exponents_RK: Array
    noise_R: Array
    normal_R: Array

    def around(self, value: float, values_R: Array) -> Interval:
        """A value with the interval of the same quantity in the refits."""
        low, high = self.ends(values_R)
        return Interval(float(value), float(low), float(high))

    def ends(self, values_R: Array) -> tuple[Array, Array]:
        """The ends of the middle `level` of refits, along the first axis."""
        low, high = np.quantile(values_R, [(1 - self.level) / 2, (1 + self.level) / 2], axis=0)
        return low, high

    @property
    def undetermined(self) -> tuple[str, ...]:
        """Names of the exponents that the points do not determine: the law's own, or all of the range is likely."""
        names = [NAMES[name][1] for name in self.law.variables]
        ends = [self.ends(refits) for refits in self.exponents_RK.T]
        vague = [at_edge(float(low)) and at_edge(float(high)) for low, high in ends]
        return tuple(n for n, is_vague in zip(names, vague, strict=True) if is_vague or n in self.law.undetermined)

    def intervals(self) -> dict[str, Interval]:
        """Those of `Law.parameters`."""
        columns = zip(self.coefficients_RK.T, self.exponents_RK.T, strict=True)
        refits = [self.irreducible_R, *(column for pair in columns for column in pair)]
        values = self.law.parameters().items()
        return {name: self.around(value, refit) for (name, value), refit in zip(values, refits, strict=True)}

    def refits(self, *sizes: ArrayLike) -> Array:
        """Losses at sizes by each refit, (R, ...)."""
        logs = np.broadcast_arrays(*(np.log(np.asarray(size, float)) for size in sizes))
        losses = np.add.outer(self.irreducible_R, np.zeros(logs[0].shape))
        for a_R, x_R, log in zip(self.coefficients_RK.T, self.exponents_RK.T, logs, strict=True):
            losses += np.einsum("r,r...->r...", a_R, np.exp(-np.multiply.outer(x_R, log)))
        return losses

    def band(self, *sizes: ArrayLike) -> tuple[Array, Array]:
        """Between which losses the law itself lies, at each of several sizes."""
        return self.ends(self.refits(*sizes))

    def predict(self, *sizes: float, runs: int = 1) -> Interval:
        """The mean loss of so many new runs of one size; its interval is wider than the band by their noise."""
        noise_R = self.noise_R * self.normal_R / runs**0.5
        return self.around(float(self.law.predict(*sizes)), self.refits(*sizes) + noise_R)


# The search -----------------------------------------------------------------------------------------------------------


def at_edge(exponent: float) -> bool:
    """Whether the search ended at a limit of its range."""
    return bool(exponent <= EDGE * LOW or exponent >= HIGH / EDGE)


def solve(X: Array, y: Array) -> tuple[Array, Array]:
    """Least squares without negative coefficients: designs (..., G, n, P), losses (R, n) -> (R, G, P), squares (R, G).

    Designs are (G, n, P), shared by all rows of losses, or (R, G, n, P). Of the solutions of all subsets of columns,
    the best that has no negative coefficient is that of the constrained problem.
    """
    largest = X.max(-2, keepdims=True)  # columns of one size
    X, P = X / largest, X.shape[-1]
    gram = X.swapaxes(-1, -2) @ X + RIDGE * len(X) * np.eye(P)
    moments = np.einsum("gnp,rn->rgp" if X.ndim == 3 else "rgnp,rn->rgp", X, y, optimize=True)
    total = np.broadcast_to((y**2).sum(-1)[:, None], moments.shape[:-1])
    best, least = np.zeros_like(moments), total.copy()
    for columns in (list(subset) for size in range(1, P + 1) for subset in combinations(range(P), size)):
        inverse = np.linalg.inv(gram[..., columns, :][..., columns])
        theta = (inverse @ moments[..., columns, None])[..., 0]
        squares = total - (theta * moments[..., columns]).sum(-1)
        better = (theta >= 0).all(-1) & (squares < least)
        least[better] = squares[better]
        best[better] = theta[better] @ np.eye(P)[columns]
    return best / largest[..., 0, :], least


def design(log_x_nK: Array, log_exponents: Array) -> Array:
    """Columns 1 and `x^-exponent` of each variable: (..., K) -> (..., n, 1 + K)."""
    terms = np.exp(-np.exp(log_exponents)[..., None, :] * log_x_nK)
    return np.concatenate([np.ones((*terms.shape[:-1], 1)), terms], -1)


def lattice(points: Array, K: int) -> Array:
    """All K-tuples of points, (len(points)^K, K)."""
    return np.stack(np.meshgrid(*[points] * K, indexing="ij"), -1).reshape(-1, K)


def search(log_x_nK: Array, y_Rn: Array) -> tuple[Array, Array]:
    """Coefficients (R, 1 + K), E first, and exponents (R, K) of least squares for each row of losses."""
    rows, (low, high) = np.arange(len(y_Rn)), np.log([LOW, HIGH])
    K, spacing = log_x_nK.shape[1], (high - low) / (COARSE - 1)
    grid_GK = lattice(np.linspace(low, high, COARSE), K)
    _, squares = solve(design(log_x_nK, grid_GK), y_Rn)
    best_RK = grid_GK[squares.argmin(-1)]
    around_GK = lattice(np.array([-1, -0.5, 0, 0.5, 1]), K)
    for _ in range(ROUNDS):
        near_RGK = np.clip(best_RK[:, None] + spacing * around_GK, low, high)
        theta, squares = solve(design(log_x_nK, near_RGK), y_Rn)
        place = squares.argmin(-1)
        best_RK, spacing = near_RGK[rows, place], spacing / 2
    return theta[rows, place], np.exp(best_RK)


# The fit --------------------------------------------------------------------------------------------------------------


def size_classes(sizes: ArrayLike) -> NDArray[np.int64]:
    """A number for each size, from 0 for the least: that of its group, all within `SAME` of the group's least."""
    sizes = np.asarray(sizes, float)
    starts: list[float] = []
    for size in np.sort(sizes):
        if not starts or size > SAME * starts[-1]:
            starts.append(float(size))
    return np.searchsorted(starts, sizes, side="right") - 1


def check(sizes: Mapping[str, Array], losses: Array) -> None:
    """Raise ValueError for points from which nothing can be fitted."""
    law = f"L({', '.join(sizes)})"
    for what, values in {**sizes, "losses": losses}.items():
        if values.shape != losses.shape or not np.isfinite(values).all():
            raise ValueError(f"{law}: {what} must be finite numbers, one for each point")
    for name, values in sizes.items():
        if (values <= 0).any():
            raise ValueError(f"{law}: {name} must be above 0")
        different, needed = len(set(size_classes(values))), MIN_SIZES[len(sizes)]
        if different < needed:
            raise ValueError(f"{law} needs at least {needed} different {name}; there are {different}")
        if (span := values.max() / values.min()) < MIN_SPAN:
            raise ValueError(f"{law} needs {name} over a factor of {MIN_SPAN:g} or more; they span {span:.2g}")
    if len(losses) < MIN_POINTS[len(sizes)]:
        raise ValueError(f"{law} needs at least {MIN_POINTS[len(sizes)]} points; there are {len(losses)}")
    if np.ptp(losses) == 0:
        raise ValueError(f"{law}: all losses are equal, so nothing falls with {' or '.join(sizes)}")
    if len(sizes) > 1 and abs(np.corrcoef(np.log(list(sizes.values())))[0, 1]) > MAX_CORRELATION:
        raise ValueError(f"{law}: N and D rise together, so their effects cannot be told apart; vary one alone, too")


def fit(
    sizes: Mapping[str, ArrayLike], losses: ArrayLike, *, level: float = 0.9, resamples: int = 500, seed: int = 1
) -> Fit:
    """The law of one or two variables, with its bootstrap; ValueError says what the points lack.

    Args:
        sizes: "N" or "D" or both, in this order, with a size for each point.
        losses: A loss for each point; several of one size, such as those of seeds, stay separate.
        level: Share of the refits inside an interval.
        resamples: Number of refits.
        seed: Seed of the bootstrap's generator, which is its own.
    """
    sizes, y = {name: np.asarray(values, float) for name, values in sizes.items()}, np.asarray(losses, float)
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level {level} must be between 0 and 1, and resamples {resamples} at least 1")
    check(sizes, y)
    log_nK = np.log(np.stack(list(sizes.values()), -1))
    middle_K, draws = log_nK.mean(0), np.random.default_rng(seed)
    theta, exponents = search(log_nK - middle_K, y[None])
    fitted = design(log_nK - middle_K, np.log(exponents))[0] @ theta[0]
    squares, free = float(((y - fitted) ** 2).sum()), max(len(y) - theta.size - exponents.size, 1)
    noise_R = np.sqrt(squares / draws.chisquare(free, resamples))
    y_Rn = fitted + noise_R[:, None] * draws.normal(size=(resamples, len(y)))
    refit_theta, refit_exponents = search(log_nK - middle_K, y_Rn)
    raw, refit_raw = (t[:, 1:] * np.exp(middle_K * x) for t, x in ((theta, exponents), (refit_theta, refit_exponents)))
    law = Law(
        tuple(sizes),
        float(theta[0, 0]),
        tuple(raw[0].tolist()),
        tuple(exponents[0].tolist()),
        len(y),
        float(y.min()),
        (squares / len(y)) ** 0.5,
        1 - squares / float(((y - y.mean()) ** 2).sum()),
    )
    return Fit(law, level, refit_theta[:, 0], refit_raw, refit_exponents, noise_R, draws.normal(size=resamples))
