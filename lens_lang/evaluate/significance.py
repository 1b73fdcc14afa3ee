"""How sure a measured difference is: the paired bootstrap and the paired test of every table here.

What is compared is measured on the same documents with and without an intervention, so
documents are drawn again, with replacement, in pairs; and the test asks whether the difference of
a document could as well have the other sign. Tokens of one document are not independent, which is
why documents and not tokens are drawn.
"""

import math
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

from lens_lang.errors import OptionError

_HELD = 2**18
"""Signs, sums or documents drawn that are held at once: 2 MiB, which a cache holds, too."""

_ROUNDING = 1e-9
"""Sums that differ by this share of what is summed are equal: far above float64's rounding."""


def bootstrap_weights(
    n_docs: int, *, resamples: int, generator: torch.Generator
) -> Float[Tensor, "resample doc"]:
    """Return how often each document is drawn in each resample.

    Args:
        n_docs: Number of documents.
        resamples: Number of resamples.
        generator: Source of randomness.

    Returns:
        Counts, each row summing to `n_docs`, as float64.

    Examples:
        >>> bootstrap_weights(3, resamples=2, generator=torch.Generator().manual_seed(0)).sum(1)
        tensor([3., 3.], dtype=torch.float64)
    """
    drawn = torch.randint(n_docs, (resamples, n_docs), generator=generator)
    weights = torch.zeros(resamples, n_docs, dtype=torch.float64)
    return weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


def bootstrap_ratio(
    values: Float[Tensor, "*many doc"],
    sizes: Float[Tensor, "doc"],
    *,
    resamples: int,
    generator: torch.Generator,
) -> Float[Tensor, "*many resample"]:
    """Return a ratio of sums, such as nats per token, in every resample of the documents.

    Resamples are drawn in portions, so that memory does not grow with the documents.

    Args:
        values: What is summed, for example the change in a document's NLL.
        sizes: What it is divided by, for example the document's number of tokens. Documents of
            size 0 are not drawn.
        resamples: Number of resamples.
        generator: Source of randomness.

    Returns:
        sum(values) / sum(sizes) over the documents drawn; NaN where fewer than two can be drawn:
        one document says nothing of others.

    Examples:
        >>> draw = torch.Generator().manual_seed(0)
        >>> two = torch.tensor([2.0, 6.0])
        >>> bootstrap_ratio(2 * two, two, resamples=3, generator=draw).tolist()
        [2.0, 2.0, 2.0]
    """
    drawn_from = sizes > 0
    values, sizes = values[..., drawn_from].double(), sizes[drawn_from].double()
    count = len(sizes)
    if count < 2:
        return torch.full((*values.shape[:-1], resamples), math.nan, dtype=torch.float64)
    ratios = []
    most = max(1, _HELD // count)
    for start in range(0, resamples, most):
        some = min(most, resamples - start)
        weights = bootstrap_weights(count, resamples=some, generator=generator)
        ratios.append((values @ weights.T) / (weights @ sizes))
    return torch.cat(ratios, dim=-1)


def mean_interval(
    values: Float[Tensor, "*many sample"],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Float[Tensor, "*many 2"]:
    """Return intervals of means over samples, such as prompts, by drawing the samples again.

    Args:
        values: One value per sample.
        level: Probability to cover.
        resamples: Number of resamples.
        seed: Of the resampling.

    Returns:
        Lower and upper end; NaN for a single sample, which says nothing of others. With few
        samples the intervals are somewhat too narrow.

    Examples:
        >>> mean_interval(torch.tensor([1.0, 1.0, 1.0])).tolist()
        [1.0, 1.0]
    """
    count = values.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.ones(count, dtype=torch.float64)
    resampled = bootstrap_ratio(values, sizes, resamples=resamples, generator=generator)
    return percentile_interval(resampled, level=level)


def sign_flip_test(
    differences: Float[Tensor, "*many sample"], *, resamples: int = 9999, seed: int = 0
) -> Float[Tensor, "*many"]:
    """Return how likely a mean difference so far from 0 is, if each had either sign as easily.

    The paired permutation test of Fisher (1935): the share of all 2**n ways to give n differences
    signs whose sum is as far from 0 as the observed one. Where these are more than `resamples` + 1,
    as many ways are drawn, and p is (b + 1) / (m + 1), with b of m as far (Phipson and Smyth,
    2010): never below 1 / (m + 1), and never too small on average.

    Args:
        differences: Of each sample, such as a document with and without an intervention.
        resamples: Ways to draw.
        seed: Of the drawing; the same ways serve all rows.

    Returns:
        Two-sided p-values; 1 where all differences are 0; NaN for no samples, and where a
        difference is NaN or infinite.

    Raises:
        OptionError: `resamples` is below 1.

    Examples:
        >>> sign_flip_test(torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, -2.0, 3.0, -4.0]])).tolist()
        [0.125, 0.875]
    """
    if resamples < 1:
        raise OptionError(f"resamples must be at least 1, got {resamples}")
    *many, count = differences.shape
    rows = differences.reshape(math.prod(many), count).double()
    unknown = ~rows.isfinite().all(-1)
    if count == 0:
        unknown = torch.ones_like(unknown)
    rows = torch.where(unknown[:, None], torch.zeros_like(rows), rows)
    total = rows.sum(-1, keepdim=True)
    least = total.abs() - _ROUNDING * rows.abs().sum(-1, keepdim=True)
    exact = count < 63 and 2**count <= resamples + 1
    ways = 2**count if exact else resamples
    generator = torch.Generator().manual_seed(seed)
    as_far = torch.zeros(len(rows), dtype=torch.int64)
    step = max(1, _HELD // max(count, 1))  # of the count only: a row's p is its own
    for start in range(0, ways, step):
        size = min(step, ways - start)
        if exact:
            numbers = torch.arange(start, start + size)[:, None]
            kept = numbers.bitwise_right_shift(torch.arange(count)).bitwise_and(1)
        else:
            kept = torch.randint(2, (size, count), generator=generator, dtype=torch.int8)
        weights = kept.double().T
        held = max(1, _HELD // size)
        for part in range(0, len(rows), held):
            some = slice(part, part + held)
            # Those that keep their sign, less those that do not.
            sums = (rows[some] @ weights).mul_(2).sub_(total[some]).abs_()
            as_far[some] += (sums >= least[some]).sum(-1)
    p = as_far.double() / ways if exact else (as_far.double() + 1) / (ways + 1)
    return torch.where(unknown, math.nan, p).reshape(many)


def least_p(count: int, *, resamples: int = 9999) -> float:
    """Return the smallest p that `sign_flip_test` can give for so many differences.

    Args:
        count: Number of differences, all of one sign.
        resamples: As there.

    Examples:
        >>> least_p(6), least_p(1000)
        (0.03125, 0.0001)
    """
    if count < 63 and 2**count <= resamples + 1:
        return min(1.0, 2 / 2**count)
    return 1 / (resamples + 1)


def holm(p: Float[Tensor, "test"]) -> Float[Tensor, "test"]:
    """Return p-values corrected for their number, by the method of Holm (1979).

    The smallest of m counts m times, the next m - 1 times, and so on; none counts less than a
    smaller one, nor more than 1. Calling significant what stays below a level finds anything in
    truth absent with at most that probability, however the tests depend on each other.

    Args:
        p: p-values; NaN where there was no test, which stays NaN and does not count.

    Returns:
        Corrected p-values, in the same order.

    Raises:
        OptionError: A p-value is not between 0 and 1.

    Examples:
        >>> holm(torch.tensor([0.5, 0.25, 0.125])).tolist()
        [0.5, 0.5, 0.375]
    """
    if bool(((p < 0) | (p > 1)).any()):
        raise OptionError("p-values lie between 0 and 1")
    known = p.isnan().logical_not().nonzero().flatten()
    order = known[p[known].argsort()]
    times = torch.arange(len(order), 0, -1, device=p.device)
    corrected = torch.full_like(p, math.nan, dtype=torch.float64)
    if len(order):
        corrected[order] = (p[order].double() * times).cummax(0).values.clamp(max=1)
    return corrected


def student_quantile(level: float, degrees: int) -> float:
    """Return t such that a Student variable lies between -t and t with probability `level`.

    From the finite series of its distribution for whole degrees of freedom, by bisection.

    Args:
        level: Probability of the interval.
        degrees: Degrees of freedom, at least 1.

    Returns:
        The quantile; infinity is never reached for levels below 1.

    Examples:
        >>> round(student_quantile(0.95, 4), 3)
        2.776
    """
    low, high = 0.0, 1.0
    while _student_within(high, degrees) < level:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if _student_within(middle, degrees) >= level else (middle, high)
    return high


def _student_within(t: float, degrees: int) -> float:
    """P(-t < T < t); Abramowitz and Stegun (1964), 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    series = term if degrees > 1 else 0.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        series += term
    series *= math.sin(angle)
    return 2 / math.pi * (angle + series) if odd else series


def prediction_interval(
    draws: Float[Tensor, "... draw"],
    standard_error: Float[Tensor, "..."],
    *,
    level: float = 0.95,
) -> Float[Tensor, "... 2"]:
    """Return where the effect of one more random draw is expected, on other documents.

    mean +- t * sqrt(s^2 * (1 + 1/n) + standard_error^2), with s the standard deviation of the n
    draws and t Student's quantile for n - 1 degrees of freedom. A few draws say little about
    their spread, and the interval says so by being wide; resampling them would hide it.

    Args:
        draws: The effect of each draw, such as one random set of neurons.
        standard_error: Of the mean effect, from the choice of documents.
        level: Probability that the interval is to cover.

    Returns:
        Lower and upper end; NaN for fewer than two draws, unless none of them has any effect.

    Examples:
        >>> ends = prediction_interval(torch.tensor([0.0, 0.2]), torch.tensor(0.0), level=0.5)
        >>> [round(end, 3) for end in ends.tolist()]
        [-0.073, 0.273]
    """
    _check_level(level)
    n = draws.shape[-1]
    mean, spread = draws.mean(-1), draws.std(-1) if n > 1 else draws.mean(-1) * math.nan
    spread = torch.where((draws == 0).all(-1), torch.zeros_like(mean), spread)
    t = student_quantile(level, max(n - 1, 1))
    half = t * (spread.square() * (1 + 1 / max(n, 1)) + standard_error.square()).sqrt()
    return torch.stack([mean - half, mean + half], dim=-1)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise OptionError(f"level is a probability between 0 and 1, got {level}")


def percentile_interval(
    resampled: Float[Tensor, "... resample"], *, level: float = 0.95
) -> Float[Tensor, "... 2"]:
    """Return the percentile interval of resampled values.

    Args:
        resampled: One value per resample.
        level: Probability that the interval is to cover.

    Returns:
        Lower and upper end.

    Examples:
        >>> percentile_interval(torch.arange(101.0), level=0.5).tolist()
        [25.0, 75.0]
    """
    _check_level(level)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    return torch.quantile(resampled.double(), ends, dim=-1).movedim(0, -1)


def prediction_test(
    value: float, draws: Float[Tensor, "draw"], standard_error: float | int
) -> float:
    """Return how probable it is that one more random draw lies as far from the others' mean.

    The two-sided p that belongs to `prediction_interval`: Student's t with n - 1 degrees of
    freedom. Two draws say little, and one nothing.

    Args:
        value: The effect in question.
        draws: The effect of each random draw.
        standard_error: Of the difference between the two, from the choice of items.

    Returns:
        p; NaN for fewer than two draws, or where they are all alike and the value is another.

    Examples:
        >>> round(prediction_test(1.0, torch.tensor([0.1, -0.1, 0.0]), 0.0), 3)
        0.013
    """
    n = len(draws)
    if n < 2 or not bool(torch.isfinite(draws).all()) or value != value:
        return math.nan
    distance = abs(value - float(draws.double().mean()))
    spread = math.sqrt(float(draws.double().var()) * (1 + 1 / n) + standard_error**2)
    rounding = _ROUNDING * max(abs(value), float(draws.abs().max()), 1e-300)
    if distance <= rounding:
        return 1.0
    # Draws that are all alike, such as at the floor, do not say how much they might differ.
    return math.nan if spread <= rounding else 1 - _student_within(distance / spread, n - 1)


def paired_share_interval(
    before: Float[Tensor, "item"], after: Float[Tensor, "item"], *, level: float = 0.95
) -> tuple[float, float]:
    """Return Newcombe's (1998, method 10) interval of a change of a share, items being paired.

    Unlike a bootstrap it says something where no item changed: of 24 items that all stay wrong,
    one more may turn right.

    Args:
        before: 0 or 1 for each item.
        after: The same items.
        level: Probability to cover.

    Returns:
        Lower and upper end; NaN for no items.

    Examples:
        >>> low, high = paired_share_interval(torch.zeros(24), torch.zeros(24))
        >>> round(low, 3), round(high, 3)
        (-0.138, 0.138)
    """
    n = len(before)
    if n == 0:
        return math.nan, math.nan
    p1, p2 = float(before.mean()), float(after.mean())
    l1, u1 = share_interval(p1 * n, n, level=level)
    l2, u2 = share_interval(p2 * n, n, level=level)
    both, first = float((before * after).sum()), float(before.sum())
    second = float(after.sum())
    neither = n - first - second + both
    margins = first * (n - first) * second * (n - second)
    agreement = both * neither - (first - both) * (second - both)
    if agreement > 0:  # Newcombe's correction for continuity
        agreement = max(agreement - n / 2, 0.0)
    phi = agreement / math.sqrt(margins) if margins else 0.0

    def half(one: float, other: float) -> float:
        return math.sqrt(max(one * one - 2 * phi * one * other + other * other, 0.0))

    change = p2 - p1
    return change - half(p2 - l2, u1 - p1), change + half(u2 - p2, p1 - l1)


def share_interval(hits: float | int, count: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's (1927) interval of a share, which says something of 0 and of all, too.

    Args:
        hits: How many of them; not a whole number where clusters are counted.
        count: Of how many.
        level: Probability to cover.

    Returns:
        Lower and upper end; NaN for none.

    Examples:
        >>> [round(end, 3) for end in share_interval(0, 20)]
        [0.0, 0.161]
    """
    _check_level(level)
    if count < 1:
        return math.nan, math.nan
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, whole = hits / count, 1 + z * z / count
    middle = (share + z * z / (2 * count)) / whole
    half = z / whole * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # Exact at the ends, where rounding would leave the interval on the wrong side of them.
    return (
        0.0 if hits == 0 else max(middle - half, 0.0),
        1.0 if hits == count else min(middle + half, 1.0),
    )
