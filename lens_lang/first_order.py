"""The importance of query and key columns to first order: matrix products, no exponentials.

A small change D of a row's scores changes its pattern P by about ``P (mean - D)``, where mean is
the average of D under P. D is an outer product, so the squares of these changes are products of
P and P**2 with the keys and their squares: a handful of matrix multiplications for all columns at
once. Good where no single column moves the scores by much; `lens_lang.removal` is exact.
"""

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor

from lens_lang.attention import Attention
from lens_lang.removal import ScoreChange, Side, as_slice, attended, score_change, slices

_ROWS = 64

Moments = tuple[Tensor, Tensor, Tensor]
"""Sums over keys of P D, P**2 D and P**2 D**2, each row by channel."""


def first_order_importance(
    attention: Attention, rows: Int[Tensor, "pos"], side: Side
) -> Float[Tensor, "neuron"]:
    """Return the change in the attention pattern without each column, to first order.

    Args:
        attention: Queries, keys and pattern of one document.
        rows: Positions whose pattern counts.
        side: Remove columns of the query or of the key projection.

    Returns:
        One score per column, as `lens_lang.removal.pattern_importance` returns it.
    """
    change = score_change(attention, side)
    squares = torch.stack(
        [_squared_change(attention, change, rows[block]) for block in slices(len(rows), _ROWS)]
    ).sum(0)
    if side == "k":
        squares = squares.sum(1)
    return squares.flatten().sqrt()


def _squared_change(
    attention: Attention, change: ScoreChange, block: Int[Tensor, "row"]
) -> Float[Tensor, "kv_head group channel"]:
    """Sum over rows and keys of ``P**2 (D - mean)**2``.

    The heads of a group see the same keys, so that their rows are stacked: larger products.
    """
    group, rows = attention.group, as_slice(block)
    keys = attended(attention.pattern[:, rows])

    def stacked(x: Float[Tensor, "head key key"]) -> Float[Tensor, "kv_head row column"]:
        return rearrange(x[:, rows, keys], "(g r) t s -> g (r t) s", r=group)

    def per_query(x: Float[Tensor, "key head channel"]) -> Float[Tensor, "kv_head row channel"]:
        return rearrange(x[rows], "t (g r) c -> g (r t) c", r=group)

    def per_key(x: Float[Tensor, "key head channel"]) -> Float[Tensor, "kv_head column channel"]:
        return x[keys, ::group].transpose(0, 1)

    pattern = stacked(attention.pattern)
    square = pattern.square()
    scores = None if attention.scores is None else stacked(attention.scores)
    weights = [pattern, square, square]
    if attention.cap is not None and scores is not None:
        slope = 1 - torch.tanh(scores / attention.cap).square()  # of the capped score
        weights = [pattern * slope, square * slope, square * slope.square()]
    left, right = [*map(per_query, change.left)], [*map(per_key, change.right)]
    growth = change.growth
    if change.side == "q":
        growth = None if growth is None else per_query(growth)
        moments = _query_moments(weights, left, right[0], attention.partner, scores, growth)
    else:
        growth = None if growth is None else per_key(growth)
        moments = _key_moments(weights, left, right, scores, growth)
    mean, first, second = moments
    squared = mean.square().mul_(square.sum(-1, keepdim=True)).addcmul_(mean, first, value=-2)
    squared.add_(second).clamp_(min=0)
    return reduce(squared, "g (r t) c -> g r c", "sum", r=group)


def _query_moments(
    weights: list[Tensor],
    left: list[Tensor],
    keys: Tensor,
    partner: Tensor,
    scores: Tensor | None,
    growth: Tensor | None,
) -> Moments:
    """The moments of D = left[0] k + left[1] k' + (1 - growth) S, k' the partner's key."""

    def single(weight: Tensor) -> Tensor:
        sums = weight @ keys
        return left[0] * sums + (left[1] * sums[..., partner] if len(left) > 1 else 0)

    mean, first = single(weights[0]), single(weights[1])
    squares = weights[2] @ keys.square()
    second = left[0].square() * squares
    if len(left) > 1:
        second += left[1].square() * squares[..., partner]
        second += 2 * left[0] * left[1] * (weights[2] @ (keys * keys[..., partner]))
    if scores is not None and growth is not None:
        less = 1 - growth
        scored = [weight * scores for weight in weights]
        mean += less * scored[0].sum(-1, keepdim=True)
        first += less * scored[1].sum(-1, keepdim=True)
        second += less.square() * (scored[2] * scores).sum(-1, keepdim=True)
        second += 2 * less * single(scored[2])
    return mean, first, second


def _key_moments(
    weights: list[Tensor],
    left: list[Tensor],
    right: list[Tensor],
    scores: Tensor | None,
    growth: Tensor | None,
) -> Moments:
    """The moments of D = left[0] right[0] + left[1] right[1] + (1 - growth) S."""

    def single(weight: Tensor, *factors: Tensor) -> Tensor:
        sums = torch.zeros_like(left[0])
        for query, key in zip(left, right, strict=True):
            for factor in factors:
                key = key * factor
            sums.addcmul_(query, weight @ key)
        return sums

    mean, first = single(weights[0]), single(weights[1])
    second = left[0].square() * (weights[2] @ right[0].square())
    if len(left) > 1:
        second += left[1].square() * (weights[2] @ right[1].square())
        second += 2 * left[0] * left[1] * (weights[2] @ (right[0] * right[1]))
    if scores is not None and growth is not None:
        less = 1 - growth
        scored = [weight * scores for weight in weights]
        mean += scored[0] @ less
        first += scored[1] @ less
        second += (scored[2] * scores) @ less.square()
        second += 2 * single(scored[2], less)
    return mean, first, second
