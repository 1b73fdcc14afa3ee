"""How sure a measured difference is: the paired bootstrap that every table here uses.

What is compared is measured on the same documents with and without an intervention, so
documents are drawn again, with replacement, in pairs. Tokens of one document are not
independent, which is why documents and not tokens are drawn.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lens_lang.errors import OptionError


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

    Example:
        >>> bootstrap_weights(3, resamples=2, generator=torch.Generator().manual_seed(0)).sum(1)
        tensor([3., 3.], dtype=torch.float64)
    """
    drawn = torch.randint(n_docs, (resamples, n_docs), generator=generator)
    weights = torch.zeros(resamples, n_docs, dtype=torch.float64)
    return weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


def bootstrap_ratio(
    values: Float[Tensor, "... doc"],
    sizes: Float[Tensor, "doc"],
    weights: Float[Tensor, "resample doc"],
) -> Float[Tensor, "... resample"]:
    """Return a ratio of sums, such as nats per token, in every resample of the documents.

    Args:
        values: What is summed, for example the change in a document's NLL.
        sizes: What it is divided by, for example the document's number of tokens.
        weights: From `bootstrap_weights`.

    Returns:
        sum(weights * values) / sum(weights * sizes).
    """
    return (values.double() @ weights.T) / (weights @ sizes.double())


def percentile_interval(
    resampled: Float[Tensor, "... resample"], *, level: float = 0.95
) -> Float[Tensor, "... 2"]:
    """Return the percentile interval of resampled values.

    Args:
        resampled: One value per resample.
        level: Probability that the interval is to cover.

    Returns:
        Lower and upper end.

    Example:
        >>> percentile_interval(torch.arange(101.0).double(), level=0.9).tolist()
        [5.0, 95.0]
    """
    if not 0 < level < 1:
        raise OptionError(f"level is a probability between 0 and 1, got {level}")
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    return torch.quantile(resampled.double(), ends, dim=-1).movedim(0, -1)
