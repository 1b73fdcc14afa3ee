"""What removing one neuron changes, in closed form, for every neuron of a layer at once.

The importance of a neuron for a document (Zhao et al. 2024, arXiv:2402.18815) is the L2 norm, over
the positions of the document, of the change in its module's output when the neuron is removed:
for the MLP, values and the output projection the change of that output, for queries and keys the
change of the attention pattern. These forms give from one pass the numbers that otherwise need one
pass per neuron.

Removing a neuron means zeroing its column of the projection with the bias, which is what
`lens_lang.ablate` does at the same site. Padding and positions that do not count are left out by
the caller, who passes only rows that count.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor

from lens_lang.attention import Attention, RMSNorm, widened

_CHUNK = {"cpu": 2**18}
"""Numbers held at once while patterns are recomputed: about a core's cache."""
_CHUNK_ELSEWHERE = 2**25
_ROWS = 32
"""Queries taken together: few, because keys that none of them sees are skipped."""

Side = Literal["q", "k"]
"""Whose columns are removed: the queries' or the keys'."""


def row_norms(weight: Float[Tensor, "neuron d_model"]) -> Float[Tensor, "neuron"]:
    """Return the norm of what each neuron writes: of the rows of an output projection."""
    return torch.linalg.vector_norm(weight, dim=1)


def mlp_importance(
    post: Float[Tensor, "pos neuron"], norms: Float[Tensor, "neuron"]
) -> Float[Tensor, "neuron"]:
    """Return the change in an MLP's output without each neuron.

    Removing neuron k takes ``post[:, k] (x) w_out[k]`` away, a matrix of rank 1, whose norm is
    the product of both norms. The same for its gate, up and down weights (paper, equation for
    the feed-forward layer).

    Args:
        post: Input of the down-projection.
        norms: `row_norms` of the down-projection.

    Examples:
        >>> mlp_importance(torch.tensor([[3.0], [4.0]]), torch.tensor([2.0])).tolist()
        [10.0]
    """
    return torch.linalg.vector_norm(post, dim=0) * norms


@dataclass(frozen=True, eq=False)
class NormedOutput:
    """A down-projection and the norm behind it, as Gemma 2 and 3 have it.

    Attributes:
        w_out: The down-projection.
        norm: The norm.
        size: Squared norm of each neuron's row.
        size_gained: The same of the row times the norm's gain.
    """

    w_out: Float[Tensor, "neuron d_model"]
    norm: RMSNorm
    size: Float[Tensor, "neuron"]
    size_gained: Float[Tensor, "neuron"]

    @classmethod
    def of(cls, w_out: Float[Tensor, "neuron d_model"], norm: RMSNorm) -> "NormedOutput":
        """Take both, and what of them is needed again and again; half precision stays so."""
        square = widened(w_out).square()
        return cls(w_out, norm, square.sum(1), square @ norm.gain.square())


def mlp_importance_behind_norm(
    post: Float[Tensor, "token neuron"],
    normalized: Float[Tensor, "token d_model"],
    rms: Float[Tensor, "token 1"],
    *,
    output: NormedOutput,
    lengths: Sequence[int],
) -> Float[Tensor, "doc neuron"]:
    """Return the change behind the norm that follows the MLP in Gemma 2 and 3.

    Without neuron k the MLP gives ``y - h w``, with h = post[t, k] and w = w_out[k], and its root
    mean square falls from 1 to ``rest``, in units of itself. The output changes by
    ``gain * ((1 - rest) y - h w) / rest``, whose square needs only products of y with w.

    Args:
        post: Input of the down-projection, for the tokens of several documents.
        normalized: The MLP's output over its root mean square: ``y / rms``.
        rms: That root mean square, with the norm's epsilon.
        output: The down-projection and the norm.
        lengths: Tokens of each document; the documents lie end to end.
    """
    square_gain = output.norm.gain.square()
    whole_gained = (normalized.square() @ square_gain)[:, None]
    # one product for both: with y itself, and with y weighted by the squared gain
    products = torch.cat([normalized, normalized * square_gain]) @ output.w_out.to(post.dtype).T
    along, along_gained = products[: len(post)], products[len(post) :]
    smallest = output.norm.eps / rms.square()
    totals = post.new_zeros(len(lengths), len(output.size))
    start = 0
    for total, length in zip(totals, lengths, strict=True):
        # All in units of rms; few rows at a time, which stay in the cache and are written over.
        for few in slices(length, _ROWS):
            rows = slice(start + few.start, start + few.stop)
            h = post[rows] / rms[rows]
            lost = (2 * along[rows]).sub_(h * output.size).mul_(h).div_(output.w_out.shape[1])
            square_rest = torch.maximum(1 - lost, smallest[rows])
            less = lost.div_(square_rest.sqrt().add_(1))  # 1 - rest, not as a small difference
            change = (less * whole_gained[rows]).sub_((h * along_gained[rows]).mul_(2)).mul_(less)
            change.add_(h.square_().mul_(output.size_gained)).div_(square_rest)
            total += change.sum(0)
        start += length
    return totals.clamp(min=0).sqrt()


def value_gram(
    w_o: Float[Tensor, "head d_head d_model"], kv_heads: int
) -> Float[Tensor, "kv_head d_head group group"]:
    """Return the products of the output weights that one value channel reaches.

    Args:
        w_o: Output projection by query head.
        kv_heads: Number of key-value heads; each serves ``head / kv_heads`` query heads.
    """
    by_group = rearrange(w_o, "(g r) j d -> g r j d", g=kv_heads)
    return torch.einsum("grjd,gsjd->gjrs", by_group, by_group)


def value_importance(
    z: Float[Tensor, "pos head d_head"], gram: Float[Tensor, "kv_head d_head group group"]
) -> Float[Tensor, "neuron"]:
    """Return the change in the attention output without each column of the value projection.

    A value channel reaches the output once through every query head of its group, so that the
    contributions add up before their norm is taken: the elementwise product of two small Gram
    matrices.

    Args:
        z: Weighted values per query head.
        gram: `value_gram` of the output projection.

    Returns:
        One score per value channel, key-value heads flattened.
    """
    heads = rearrange(z, "t (g r) j -> r t g j", g=len(gram))
    square = torch.zeros_like(gram[..., 0, 0])
    for one in range(len(heads)):
        for two in range(one + 1):
            product = (heads[one] * heads[two]).sum(0) * gram[..., one, two]
            square += product if one == two else 2 * product
    return square.clamp(min=0).sqrt().flatten()


def pattern_importance(
    attention: Attention,
    rows: Int[Tensor, "pos"],
    side: Side,
    *,
    w_o: Float[Tensor, "head d_head d_model"] | None = None,
) -> Float[Tensor, "neuron"]:
    """Return the change in the attention pattern without each query or key column, exactly.

    With D the change of a row's scores, the pattern P becomes softmax(log P - D): the mask,
    slopes and whatever else was added to the scores stay in log P. D is an outer product of
    queries and keys, so patterns are rebuilt in chunks that fit into a core's cache, and keys
    that no query of a chunk attends to are skipped.

    Args:
        attention: Queries, keys and pattern of one document.
        rows: Positions whose pattern counts.
        side: Remove columns of the query or of the key projection.
        w_o: Measure the change of the attention's output through these weights instead of the
            change of its pattern. Slower: the values are weighted anew for every column.

    Returns:
        One score per column. A key column changes the pattern of every query head of its group;
        the square of its score is the sum over them. Through the output, their changes add up
        before the norm is taken.
    """
    change = score_change(attention, side)
    shared = attention.group if side == "k" else 1
    return _squared_change(attention, change, rows, shared, w_o).flatten().sqrt()


def released_pattern_score(
    attention: Attention, rows: Int[Tensor, "pos"], *, scale: float
) -> Float[Tensor, "neuron"]:
    """Return what the released code computes for queries and keys alike.

    For every query head and channel *after* rotation, the squared change of the pattern when
    ``q k`` of that channel is subtracted from the scores without the factor 1/sqrt(d_head).

    Args:
        attention: Queries, keys and pattern of one document.
        rows: Positions whose pattern counts.
        scale: The factor that `attention` has on its queries.
    """
    keys = _repeated(attention.k_turned, attention.group)
    change = ScoreChange("q", [attention.q_turned / scale], [keys])
    plain = replace(attention, cap=None)  # it subtracts from the scores behind the cap
    return _squared_change(plain, change, rows, 1, None).flatten()


@dataclass(frozen=True, eq=False)
class ScoreChange:
    """How each head's scores S change without each channel: to ``growth * (S - D)``.

    D is the sum over terms of ``left * right``.

    Attributes:
        side: Whose columns are removed.
        left: For each term a factor per query. Channels that rotate in pairs have two terms.
        right: For each term a factor per key.
        growth: With QK-norm, what the rest of the head is multiplied with, per query or per key;
            it is in `left` or `right` already.
    """

    side: Side
    left: Sequence[Float[Tensor, "query head channel"]]
    right: Sequence[Float[Tensor, "key head channel"]]
    growth: Float[Tensor, "position head channel"] | None = None


def score_change(attention: Attention, side: Side) -> ScoreChange:
    """Return how the scores change without each column of the queries or keys.

    Args:
        attention: Queries and keys of one document.
        side: Remove columns of the query or of the key projection.
    """
    group = attention.group
    if side == "q":
        removed, growth = attention.q, attention.q_growth
        other = _repeated(attention.k_turned, group)
    else:
        removed, growth = _repeated(attention.k, group), attention.k_growth
        growth = None if growth is None else _repeated(growth, group)
        other = attention.q_turned
    # A removed channel had a share in itself and, where it rotates, in its partner.
    shares, partners = [removed * attention.cos[:, None]], [other]
    if bool((attention.sin != 0).any()):
        shares.append(removed * attention.sin[:, None])
        partners.append(other[..., attention.partner])
    if growth is not None:
        shares = [share * growth for share in shares]
    left, right = (shares, partners) if side == "q" else (partners, shares)
    return ScoreChange(side, left, right, growth)


def _repeated(x: Float[Tensor, "key kv_head d"], group: int) -> Float[Tensor, "key head d"]:
    return x if group == 1 else x.repeat_interleave(group, 1)


def _squared_change(
    attention: Attention,
    change: ScoreChange,
    rows: Int[Tensor, "pos"],
    shared: int,
    w_o: Float[Tensor, "head d_head d_model"] | None,
) -> Float[Tensor, "owner channel"]:
    """Sum the squared change over rows, and over the heads that share their channels."""
    n_heads, n_channels = change.left[0].shape[1:]
    total = attention.q.new_zeros(n_heads // shared, n_channels)
    limit = _CHUNK.get(total.device.type, _CHUNK_ELSEWHERE)
    factors = _Factors.of(change)
    for block in slices(len(rows), _ROWS):
        rebuilt = _Rebuilt.of(attention, factors, as_slice(rows[block]))
        width = (
            rebuilt.pattern.numel()
            if w_o is None
            else rebuilt.pattern[..., 0].numel() * max(rebuilt.pattern.shape[-1], w_o.shape[-1])
        )
        for chunk in slices(n_channels, max(limit // width, 1)):
            changed = rebuilt.change(chunk)
            if w_o is None:
                squares = torch.linalg.vector_norm(changed.flatten(2), dim=2).square()
                total[:, chunk] += reduce(squares, "(g r) c -> g c", "sum", r=shared)
            else:
                output = changed @ rebuilt.values[:, None] @ w_o[:, None]
                output = reduce(output, "(g r) c t m -> g c t m", "sum", r=shared)
                total[:, chunk] += output.square().sum((2, 3))
    return total


def slices(length: int, size: int) -> Iterator[slice]:
    """Yield neighbouring slices that cover a length.

    Examples:
        >>> list(slices(5, 2))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def as_slice(rows: Int[Tensor, "row"]) -> slice | Int[Tensor, "row"]:
    """Return neighbouring positions as a slice, which copies nothing."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first == len(rows) - 1 else rows


def attended(pattern: Float[Tensor, "head row key"]) -> slice:
    """Return the smallest range of keys outside which no row attends."""
    seen = (pattern > 0).flatten(0, 1).any(0).nonzero().flatten()
    return slice(int(seen[0]), int(seen[-1]) + 1)


@dataclass(frozen=True, eq=False)
class _Factors:
    """A `ScoreChange` laid out as it is multiplied: heads and channels first, contiguous."""

    left: Sequence[Float[Tensor, "head channel query 1"]]
    right: Sequence[Float[Tensor, "head channel 1 key"]]
    more: Float[Tensor, "head channel query_or_1 key_or_1"] | None

    @classmethod
    def of(cls, change: ScoreChange) -> "_Factors":
        def per_query(x: Tensor) -> Tensor:
            return rearrange(x, "t h c -> h c t 1").contiguous()

        def per_key(x: Tensor) -> Tensor:
            return rearrange(x, "s h c -> h c 1 s").contiguous()

        more = None
        if change.growth is not None:
            more = (per_query if change.side == "q" else per_key)(change.growth - 1)
        return cls([*map(per_query, change.left)], [*map(per_key, change.right)], more)


@dataclass(frozen=True, eq=False)
class _Rebuilt:
    """The pattern at a few rows, and what is needed to rebuild it without each channel."""

    pattern: Float[Tensor, "head 1 row column"]
    log_pattern: Float[Tensor, "head 1 row column"]
    values: Float[Tensor, "head column d_head"]
    left: Sequence[Float[Tensor, "head channel row 1"]]
    right: Sequence[Float[Tensor, "head channel 1 column"]]
    more: Tensor | None
    scores: Float[Tensor, "head 1 row column"] | None
    cap: float | None

    @classmethod
    def of(
        cls, attention: Attention, factors: _Factors, rows: slice | Int[Tensor, "row"]
    ) -> "_Rebuilt":
        keys = attended(attention.pattern[:, rows])
        pattern = attention.pattern[:, None, rows, keys].contiguous()
        more, scores = factors.more, None
        if more is not None:
            more = more[:, :, rows] if more.shape[-1] == 1 else more[..., keys]
        if attention.scores is not None and (more is not None or attention.cap is not None):
            scores = attention.scores[:, None, rows, keys].contiguous()
        return cls(
            pattern,
            pattern.log(),
            rearrange(_repeated(attention.v[keys], attention.group), "s h d -> h s d"),
            [factor[:, :, rows] for factor in factors.left],
            [factor[..., keys] for factor in factors.right],
            more,
            scores,
            attention.cap,
        )

    def change(self, chunk: slice) -> Float[Tensor, "head channel row column"]:
        """Return the pattern without each channel of a chunk, minus the pattern."""
        cap, scores = self.cap, self.scores
        start = self.log_pattern if cap is None or scores is None else scores
        logits = torch.addcmul(start, self.left[0][:, chunk], self.right[0][:, chunk], value=-1)
        for left, right in zip(self.left[1:], self.right[1:], strict=True):
            logits.addcmul_(left[:, chunk], right[:, chunk], value=-1)
        if self.more is not None and scores is not None:
            logits.addcmul_(self.more[:, chunk], scores)
        if cap is not None and scores is not None:
            capped = cap * torch.tanh(scores / cap)
            logits.div_(cap).tanh_().mul_(cap).add_(self.log_pattern - capped)
        return torch.softmax(logits, -1).sub_(self.pattern)
