"""How one layer's attention makes its pattern out of queries and keys.

A score is ``scale * <query, key>``, where query and key may have been normalised over the head
(QK-norm) and rotated by position (rotary embeddings), and where the score may have been capped
(``cap * tanh(score / cap)``). Removing one column of the query or key projection goes through all
of it; what is added to scores afterwards (mask, slopes of ALiBi) does not change by it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_lang.errors import ModelError
from lens_lang.sites import (
    ATTN_K,
    ATTN_PATTERN,
    ATTN_Q,
    ATTN_V,
    ROTARY_COS,
    ROTARY_SIN,
    HookedModel,
    Site,
    model_name,
)


@dataclass(frozen=True, eq=False)
class RMSNorm:
    """``gain * x / sqrt(mean(x**2) + eps)``, over the last axis.

    Attributes:
        gain: What the normalised vector is multiplied with.
        eps: Added to the mean square.
    """

    gain: Float[Tensor, "d"]
    eps: float

    @classmethod
    def of(cls, module: Any, like: Tensor) -> "RMSNorm":
        """Read a norm by applying it to ones: some keep their gain as ``weight``, some less 1.

        Args:
            module: The norm of a bridge, of `transformers`, or of a `HookedTransformer`.
            like: A vector as wide as the norm, of the model's dtype and device.
        """
        module = getattr(module, "original_component", None) or module
        names = ("eps", "variance_epsilon")
        eps = next((float(getattr(module, name)) for name in names if hasattr(module, name)), 0.0)
        with torch.inference_mode():
            gain = module(torch.ones_like(like)[None, None])[0, 0] * math.sqrt(1 + eps)
        return cls(widened(gain), eps)

    def mean_square(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... 1"]:
        """Return what the norm divides by, squared."""
        return x.square().mean(-1, keepdim=True) + self.eps

    def apply(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Normalise."""
        return x * self.mean_square(x).rsqrt() * self.gain

    def growth(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Return how much longer the rest of the normalised vector gets without each entry."""
        whole = self.mean_square(x)
        return (whole / (whole - x.square() / x.shape[-1])).sqrt()


@dataclass(frozen=True, eq=False)
class AttentionRule:
    """How one layer makes scores.

    Attributes:
        scale: Factor on the product of query and key.
        cap: Bound of the scores; None where they are not capped.
        q_norm: Norm of every query; None where there is none.
        k_norm: Norm of every key.
        adjacent: Rotation turns channels 2j and 2j+1 together, rather than j and j + half.
        cos: Table of cosines, where the model keeps one instead of a hook point.
        sin: The same of sines.
    """

    scale: float
    cap: float | None = None
    q_norm: RMSNorm | None = None
    k_norm: RMSNorm | None = None
    adjacent: bool = False
    cos: Float[Tensor, "pos rotary"] | None = None
    sin: Float[Tensor, "pos rotary"] | None = None


@dataclass(frozen=True, eq=False)
class Attention:
    """Queries, keys and pattern of one document in one layer, ready for the closed forms.

    Attributes:
        q: Queries times the score's scale, normalised but not rotated.
        k: Keys, normalised but not rotated.
        q_turned: Queries times the scale, rotated.
        k_turned: Keys, rotated.
        pattern: The attention pattern.
        cos: Cosine of each channel's rotation at each position; 1 where nothing turns.
        sin: Signed sine: the channel's share in its partner.
        partner: The channel that each one turns with; itself where nothing turns.
        v: Values.
        cap: Bound of the scores, or None.
        q_growth: With QK-norm, how much longer the rest of the query gets without each channel.
        k_growth: The same of keys.
        scores: Before cap, mask and slopes; kept where QK-norm or a cap needs them.
    """

    q: Float[Tensor, "key head d_head"]
    k: Float[Tensor, "key kv_head d_head"]
    q_turned: Float[Tensor, "key head d_head"]
    k_turned: Float[Tensor, "key kv_head d_head"]
    pattern: Float[Tensor, "head key key"]
    cos: Float[Tensor, "key d_head"]
    sin: Float[Tensor, "key d_head"]
    partner: Int[Tensor, "d_head"]
    v: Float[Tensor, "key kv_head d_head"]
    cap: float | None = None
    q_growth: Float[Tensor, "key head d_head"] | None = None
    k_growth: Float[Tensor, "key kv_head d_head"] | None = None
    scores: Float[Tensor, "head key key"] | None = None

    @property
    def group(self) -> int:
        """Query heads per key-value head."""
        return self.q.shape[1] // self.k.shape[1]


def widened(x: Tensor) -> Tensor:
    """Return half precision as float32, and leave wider numbers as they are."""
    return x if x.dtype == torch.float64 else x.float()


def attention_rule(model: HookedModel, layer: int) -> AttentionRule:
    """Read from a model how one layer makes its scores.

    What is read is not trusted: `lens_lang.collect` removes neurons of the model and compares,
    before it counts on the closed forms.

    Args:
        model: The model.
        layer: The layer.

    Raises:
        ModelError: The model normalises whole queries instead of heads.
    """
    cfg = model.cfg
    attn = model.blocks[layer].attn  # type: ignore[attr-defined]
    like = attn.W_Q[0, 0]
    norms = {}
    for name in ("q_norm", "k_norm"):
        module = getattr(attn, name, None)
        try:
            norms[name] = None if module is None else RMSNorm.of(module, like)
        except RuntimeError as error:
            raise ModelError(
                f"{model_name(model)} normalises queries and keys over more than one head in layer "
                f"{layer}; the importance of their neurons is not known in closed form. Use "
                "sites=(MLP_POST, ATTN_V, ATTN_Z)"
            ) from error
    cap = float(getattr(cfg, "attn_scores_soft_cap", None) or 0.0)
    return AttentionRule(
        scale=_score_scale(attn, int(cfg.d_head)),
        cap=cap if cap > 0 else None,
        adjacent=bool(
            getattr(cfg, "rotary_adjacent_pairs", False)
            or getattr(cfg, "rotary_interleaved_cos_sin", False)
        ),
        cos=getattr(attn, "rotary_cos", None),
        sin=getattr(attn, "rotary_sin", None),
        **norms,
    )


def _score_scale(attn: Any, d_head: int) -> float:
    original = getattr(attn, "original_component", None)
    for module, name in ((original, "scaling"), (original, "inv_norm_factor")):
        if isinstance(getattr(module, name, None), float):
            return float(getattr(module, name))
    if original is None and isinstance(getattr(attn, "attn_scale", None), int | float):
        return 1 / float(attn.attn_scale)  # a HookedTransformer divides
    return d_head**-0.5


def attention_sites(model: HookedModel) -> tuple[Site, ...]:
    """Return what `read_attention` must be given of a model."""
    tables = (ROTARY_COS, ROTARY_SIN)
    turned = all(site.at(0) in model.hook_dict for site in tables)
    return (ATTN_Q, ATTN_K, ATTN_V, ATTN_PATTERN, *(tables if turned else ()))


def read_attention(
    rule: AttentionRule, values: Mapping[Site, Tensor], document: int, n_tokens: int
) -> Attention:
    """Prepare one document of a batch for the closed forms.

    Args:
        rule: How the layer makes scores.
        values: What the hooks at `attention_sites` received.
        document: Row of the batch.
        n_tokens: Tokens of the document, padding excluded; they come first in the row.
    """
    q, k, v = (widened(values[site][document, :n_tokens]) for site in (ATTN_Q, ATTN_K, ATTN_V))
    pattern = widened(values[ATTN_PATTERN][document, :, :n_tokens, :n_tokens])
    q_growth = None if rule.q_norm is None else rule.q_norm.growth(q)
    k_growth = None if rule.k_norm is None else rule.k_norm.growth(k)
    q = (q if rule.q_norm is None else rule.q_norm.apply(q)) * rule.scale
    k = k if rule.k_norm is None else rule.k_norm.apply(k)
    cos, sin, partner = _rotation(rule, values, document, q)
    turn = (cos[:, None], sin[:, None], partner)
    q_turned, k_turned = _turned(q, *turn), _turned(k, *turn)
    scores = None
    if q_growth is not None or k_growth is not None or rule.cap is not None:
        repeated = k_turned.repeat_interleave(q.shape[1] // k.shape[1], 1)
        scores = torch.einsum("tnd,snd->nts", q_turned, repeated)
    return Attention(
        q=q,
        k=k,
        q_turned=q_turned,
        k_turned=k_turned,
        pattern=pattern,
        cos=cos,
        sin=sin,
        partner=partner,
        cap=rule.cap,
        q_growth=q_growth,
        k_growth=k_growth,
        v=v,
        scores=scores,
    )


def _turned(x: Tensor, cos: Tensor, sin: Tensor, partner: Tensor) -> Tensor:
    """Rotate: every channel keeps its cosine, and its partner gives it what it has of it."""
    return x * cos + (x * sin)[..., partner]


def _rotation(
    rule: AttentionRule, values: Mapping[Site, Tensor], document: int, q: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(cosine, signed sine, partner) of every channel, at every position of a document."""
    n_tokens, _, d_head = q.shape
    cos = torch.ones(n_tokens, d_head, dtype=q.dtype, device=q.device)
    sin = torch.zeros_like(cos)
    partner = torch.arange(d_head, device=q.device)
    tables = []
    for table, site in ((rule.cos, ROTARY_COS), (rule.sin, ROTARY_SIN)):
        if site in values:
            held = values[site]
            table = held[document if len(held) > 1 else 0]
        if table is None:
            return cos, sin, partner
        tables.append(table[:n_tokens].to(q))
    width = tables[0].shape[-1]
    half = width // 2
    channel = torch.arange(width, device=q.device)
    if rule.adjacent:
        other, sign = channel ^ 1, torch.where(channel % 2 == 0, 1.0, -1.0)
        # Tables come with each angle twice: side by side, or half a table apart.
        if not all(torch.equal(table[:, ::2], table[:, 1::2]) for table in tables):
            tables = [table[:, :half].repeat_interleave(2, -1) for table in tables]
    else:
        other, sign = (channel + half) % width, torch.where(channel < half, 1.0, -1.0)
    cos[:, :width], sin[:, :width] = tables[0], tables[1] * sign.to(q)
    partner[:width] = other
    return cos, sin, partner
