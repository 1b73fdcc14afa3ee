"""PLND: how much each neuron of the MLPs and of the attention matters for each document.

Zhao et al. 2024, arXiv:2402.18815. The importance of a neuron for a document is the L2 norm of
what removing it changes: in the MLP's output for its hidden units (gate, up and down weights
alike), in the attention's output for columns of V and rows of O, in the attention pattern for
columns of Q and K. A neuron is a language's if it is important for every document; so what is
summed is, for every neuron, the number of documents in which it was important, and its scores.

`lens_lang.removal` has the closed forms. Before they are used on a model, a few of its neurons are
removed and the change is compared (`lens_lang.removal_check`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from lens_lang.attention import (
    AttentionRule,
    RMSNorm,
    attention_rule,
    attention_sites,
    read_attention,
    widened,
)
from lens_lang.errors import ModelError, OptionError, near_misses
from lens_lang.first_order import first_order_importance
from lens_lang.importance import Importance
from lens_lang.removal import (
    NormedOutput,
    Side,
    mlp_importance,
    mlp_importance_behind_norm,
    pattern_importance,
    released_pattern_score,
    row_norms,
    value_gram,
    value_importance,
)
from lens_lang.removal_check import check_removal
from lens_lang.sites import (
    ATTN_K,
    ATTN_Q,
    ATTN_V,
    ATTN_Z,
    MLP_POST,
    MLP_UP,
    POST_NORMALIZED,
    POST_SCALE,
    HookedModel,
    Site,
    check_supported,
    is_gated,
    model_name,
    n_layers,
    preflight,
    site_width,
)
from lens_lang.specs import Reading, Sums

Mode = Literal["exact", "first_order", "released"]
"""How queries and keys are scored; ``released`` scores everything as the published code does."""

Target = Literal["pattern", "output"]
"""What removing a query or key column is taken to change."""

SCORED = (MLP_POST, ATTN_Q, ATTN_K, ATTN_V, ATTN_Z)
"""Every site that PLND scores: feed-forward, queries, keys, values, output projection."""

_SITE_OF = {"mlp": MLP_POST, "q": ATTN_Q, "k": ATTN_K, "v": ATTN_V, "o": ATTN_Z}
_TOP_K = {"mlp": 0.2, "attn": 0.2}
_PROBE_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class PLNDImportance:
    """Score every neuron's importance for every document, and count where it was high.

    Attributes:
        top_k: In a document, the so many highest scores of every layer are high: by ``"mlp"``,
            ``"attn"``, or one of ``"q" "k" "v" "o"``; below 1, a share of the layer's neurons.
            The default is a fifth of each; the released settings lie between .14 and .84.
        eps: Scores of at least this are high, instead. The paper's rule; but its scores of
            different sites have different units, so each site needs its own.
        mode: ``exact``; ``first_order`` is faster for queries and keys, and good where no single
            column moves the pattern by much; ``released`` computes what the published code
            computes: L1 norms of the up-projection and of weighted values, and for queries and
            keys the same squared change of the pattern per rotated channel, 1/sqrt(d_head)
            missing. It has keys and values per query head; the highest of a group is taken.
        target: Whether removing a query or key column counts as the change of the attention's
            ``pattern``, as in the paper, or, much slower, of its ``output``.
        max_tokens: Documents are cut at so many tokens. A document is a row of its own,
            whatever the layout of the corpora.
        sites: What to score. Queries and keys take most of the time.
    """

    top_k: Mapping[str, int | float] | None = None
    eps: Mapping[str, int | float] | None = None
    mode: Mode = "exact"
    target: Target = "pattern"
    max_tokens: int = 512
    sites: tuple[Site, ...] = SCORED

    def __post_init__(self) -> None:
        if self.mode not in ("exact", "first_order", "released"):
            raise OptionError(f"mode must be exact, first_order or released, got {self.mode!r}")
        if self.target not in ("pattern", "output"):
            raise OptionError(f"target must be pattern or output, got {self.target!r}")
        if self.target == "output" and self.mode != "exact":
            raise OptionError("target='output' is measured exactly only: use mode='exact'")
        if self.top_k is not None and self.eps is not None:
            raise OptionError("Give either top_k or eps, not both")
        if self.max_tokens < 1:
            raise OptionError(f"max_tokens must be at least 1, got {self.max_tokens}")
        wrong = [site for site in self.sites if site not in SCORED]
        if wrong or not self.sites:
            raise OptionError(
                f"sites must be some of {', '.join(map(repr, SCORED))}, got {wrong or 'none'}"
            )
        self.thresholds()

    def thresholds(self) -> dict[Site, int | float]:
        """Return the number, the share, or the score that makes a neuron high, by site."""
        given = self.eps if self.eps is not None else self.top_k or _TOP_K
        known = (*_SITE_OF, "attn")
        for name, value in given.items():
            if name not in known:
                raise OptionError(
                    f"A threshold is for one of {', '.join(known)}; there is no {name!r}"
                    f"{near_misses(name, known)}"
                )
            if not value > 0:
                raise OptionError(f"The threshold of {name!r} must be above 0, got {value}")
        found = {}
        for name, site in _SITE_OF.items():
            own = given.get(name) or (None if name == "mlp" else given.get("attn"))
            if site not in self.sites:
                continue
            if own is None:
                raise OptionError(
                    f"There is no threshold for {name!r}, which is among the sites: give one, or "
                    "leave the site out"
                )
            found[site] = own
        return found

    def bind(self, model: HookedModel) -> "_BoundImportance":
        """Fit the spec to a model, and check that its closed forms hold there.

        Raises:
            ModelError: The model's attention or MLPs are of a kind whose closed form is not known.
        """
        check_supported(model)
        bound = _BoundImportance(self, model)
        preflight(model, bound.sites)
        if self.mode != "released":
            exact = bound
            if self.mode != "exact":
                exact = _BoundImportance(replace(self, mode="exact"), model)
            check_removal(
                model, exact.scores, scored=self.sites, reads=exact.sites, target=self.target
            )
        return bound


@dataclass(frozen=True, eq=False)
class _Weights:
    """What the closed forms need of one layer's weights."""

    out_norms: Float[Tensor, "neuron"]
    o: Float[Tensor, "head d_head d_model"] | None
    o_norms: Float[Tensor, "head_channel"]
    gram: Float[Tensor, "kv_head d_head group group"]
    behind_norm: NormedOutput | None
    rule: AttentionRule | None


class _BoundImportance:
    def __init__(self, spec: PLNDImportance, model: HookedModel) -> None:
        self.spec, self.model = spec, model
        self.thresholds = spec.thresholds()
        self.document_tokens: int | None = spec.max_tokens
        self.patterned = tuple(site for site in (ATTN_Q, ATTN_K) if site in spec.sites)
        post_norm = hasattr(model.blocks[0], "ln2_post")  # type: ignore[attr-defined]
        self.post_norm = post_norm and spec.mode != "released"
        self.sites = tuple(dict.fromkeys(self._sites(model)))
        self.d_head = int(model.cfg.d_head)
        self.group = site_width(model, ATTN_Q) // site_width(model, ATTN_K)
        self.weights = [self._weights(model, layer) for layer in range(n_layers(model))]

    def _sites(self, model: HookedModel) -> list[Site]:
        spec, sites = self.spec, []
        if MLP_POST in spec.sites:
            if spec.mode == "released" and not is_gated(model):
                raise ModelError(
                    f"{model_name(model)} has MLPs without a gate, and the released code scores "
                    "only the up-projection of gated ones: use mode='exact'"
                )
            sites.append(MLP_UP if spec.mode == "released" else MLP_POST)
            sites += [POST_NORMALIZED, POST_SCALE] if self.post_norm else []
        if self.patterned:
            sites += attention_sites(model)
        if ATTN_V in spec.sites or ATTN_Z in spec.sites:
            sites.append(ATTN_Z)
        return sites

    def _weights(self, model: HookedModel, layer: int) -> _Weights:
        block = model.blocks[layer]  # type: ignore[attr-defined]
        try:
            out, o = widened(block.mlp.W_out.detach()), widened(block.attn.W_O.detach())
        except NotImplementedError as error:
            raise ModelError(
                f"The weights of {model_name(model)} are quantised or offloaded and cannot be "
                "read, which the closed forms of PLND need: load the model unquantised and whole"
            ) from error
        behind_norm = None
        if self.post_norm:
            norm = RMSNorm.of(block.ln2_post, block.mlp.W_out[0])
            behind_norm = NormedOutput.of(block.mlp.W_out.detach(), norm)
        return _Weights(
            out_norms=row_norms(out),
            # kept only where it is needed: in half precision, `o` is a copy
            o=o if self.patterned and self.spec.target == "output" else None,
            o_norms=row_norms(o.flatten(0, 1)),
            gram=value_gram(o, o.shape[0] // self.group),
            behind_norm=behind_norm,
            rule=attention_rule(model, layer) if self.patterned else None,
        )

    def update(self, sums: Sums, reading: Reading) -> None:
        scores = self.scores(reading)
        for site, values in scores.items():
            high = self._high(site, values)
            if self.spec.mode == "released" and site in (ATTN_K, ATTN_V):
                values, high = self._by_kv_head(values), self._by_kv_head(high)
            sums.add(f"score.{site.name}", reading.layer, values.double().sum(0))
            sums.add(f"hits.{site.name}", reading.layer, high.sum(0))
        n_documents = len(next(iter(scores.values())))
        sums.add("n_documents", reading.layer, torch.tensor(n_documents))

    def scores(self, reading: Reading) -> dict[Site, Float[Tensor, "doc _neuron"]]:
        """Score every neuron of one layer for every document of a batch."""
        wanted, found = self.spec.sites, {}
        if MLP_POST in wanted:
            found[MLP_POST] = self._mlp(reading)
        if self.patterned:
            found.update(self._patterns(reading))
        if ATTN_V in wanted or ATTN_Z in wanted:
            found.update(self._weighted_values(reading))
        return {site: found[site] for site in wanted}

    def _mlp(self, reading: Reading) -> Float[Tensor, "doc neuron"]:
        weights = self.weights[reading.layer]
        if self.spec.mode == "released":
            return torch.stack([up.abs().sum(0) for up in _by_document(reading, MLP_UP)])
        if weights.behind_norm is None:
            documents = _by_document(reading, MLP_POST)
            return torch.stack([mlp_importance(post, weights.out_norms) for post in documents])
        return mlp_importance_behind_norm(
            *(widened(reading.tokens(site)) for site in (MLP_POST, POST_NORMALIZED, POST_SCALE)),
            output=weights.behind_norm,
            lengths=_lengths(reading),
        )

    def _weighted_values(self, reading: Reading) -> dict[Site, Float[Tensor, "doc _neuron"]]:
        weights, documents = self.weights[reading.layer], _by_document(reading, ATTN_Z)
        if self.spec.mode == "released":
            both = torch.stack([z.abs().sum(0) for z in documents])
            return {ATTN_V: both, ATTN_Z: both}
        heads = [rearrange(z, "t (h d) -> t h d", d=self.d_head) for z in documents]
        return {
            ATTN_V: torch.stack([value_importance(z, weights.gram) for z in heads]),
            ATTN_Z: torch.stack([mlp_importance(z, weights.o_norms) for z in documents]),
        }

    def _patterns(self, reading: Reading) -> dict[Site, Float[Tensor, "doc _neuron"]]:
        spec, weights = self.spec, self.weights[reading.layer]
        rule = weights.rule
        assert rule is not None  # read for every layer whose patterns are scored
        found: dict[Site, list[Tensor]] = {site: [] for site in self.patterned}
        for document, counted in enumerate(reading.mask):
            rows = counted.nonzero().flatten()
            if not len(rows):
                continue
            attention = read_attention(rule, reading.values, document, int(rows[-1]) + 1)
            rows = rows.to(attention.q.device)
            for site, scores in found.items():
                side: Side = "q" if site == ATTN_Q else "k"
                if spec.mode == "released":
                    scores.append(released_pattern_score(attention, rows, scale=rule.scale))
                elif spec.mode == "first_order":
                    scores.append(first_order_importance(attention, rows, side))
                else:
                    scores.append(pattern_importance(attention, rows, side, w_o=weights.o))
        return {site: torch.stack(scores) for site, scores in found.items()}

    def _high(self, site: Site, scores: Float[Tensor, "doc neuron"]) -> Bool[Tensor, "doc neuron"]:
        threshold = self.thresholds[site]
        if self.spec.eps is not None:
            return scores >= threshold
        k = round(threshold * scores.shape[1]) if threshold < 1 else int(threshold)
        best = scores.topk(min(max(k, 1), scores.shape[1])).indices
        high = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)
        return high & (scores > 0)  # what changes nothing is not important, however few do

    def _by_kv_head(self, values: Tensor) -> Tensor:
        """Bring what the released code has per query head to key-value heads: the highest."""
        heads = rearrange(values, "b (g r j) -> b g r j", r=self.group, j=self.d_head)
        return heads.amax(2).flatten(1)

    def result(
        self, sums: Mapping[str, Mapping[str, Tensor]], n_tokens: Mapping[str, int]
    ) -> Importance:
        def stacked(kind: str) -> dict[Site, Tensor]:
            return {
                site: torch.stack([held[f"{kind}.{site.name}"] for held in sums.values()])
                for site in self.spec.sites
            }

        return Importance(
            languages=tuple(sums),
            score_sum=stacked("score"),
            hits=stacked("hits"),
            n_documents=torch.stack([held["n_documents"][0] for held in sums.values()]),
            n_tokens=torch.tensor(list(n_tokens.values())),
            mode=self.spec.mode,
            rule={
                "target": self.spec.target,
                "max_tokens": self.spec.max_tokens,
                "by": "top_k" if self.spec.eps is None else "eps",
                "thresholds": {site.name: x for site, x in self.thresholds.items()},
            },
        )


def _lengths(reading: Reading) -> list[int]:
    """Tokens that count of each document that has any."""
    return [int(n) for n in reading.mask.sum(1) if n]


def _by_document(reading: Reading, site: Site) -> Sequence[Float[Tensor, "token neuron"]]:
    return torch.split_with_sizes(widened(reading.tokens(site)), _lengths(reading))
