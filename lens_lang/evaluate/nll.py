"""Negative log-likelihood of documents, under any hooks, with bounded memory.

Documents are read one a row, after BOS if the corpora have one. The residual stream after the
last block goes through the final norm and the unembedding in chunks, so no more than 2**26
logits exist at once, whatever the vocabulary, the batch and the length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_lang.batches import TokenBatch
from lens_lang.corpora import Corpora, check_fits
from lens_lang.errors import ActivationError, CorpusError, OptionError
from lens_lang.positions import check_everywhere
from lens_lang.readout import chunks, read_logits
from lens_lang.sites import (
    RESID_POST,
    FwdHooks,
    HookedModel,
    check_hooks,
    model_name,
    n_layers,
    run_until,
)


@dataclass(frozen=True, eq=False)
class DocumentNLL:
    """Negative log-likelihood of every document of one language.

    Attributes:
        nll: Sum over the scored tokens, in nats; one row per way of running the model.
        n_tokens: Scored tokens of each document. The first token of a row has nothing before it
            and is scored only after BOS.
        n_bytes: UTF-8 bytes of each document; 0 where it never was text.
    """

    nll: Float[Tensor, "run doc"]
    n_tokens: Int[Tensor, "doc"]
    n_bytes: Int[Tensor, "doc"]


def document_nll(
    model: HookedModel,
    corpora: Corpora,
    *,
    fwd_hooks: FwdHooks = (),
    batch_size: int = 16,
) -> dict[str, DocumentNLL]:
    """Return every document's NLL under one intervention.

    Args:
        model: The model.
        corpora: The text; documents are read one a row.
        fwd_hooks: The intervention; none by default.
        batch_size: Documents per forward pass.

    Returns:
        By language; ``nll`` has one row.
    """
    check_hooks(model, fwd_hooks)
    check_everywhere(fwd_hooks)
    corpora = corpora.laid_out(pack=False)
    check_fits(corpora, model.cfg)
    return {
        lang: nll_of_runs(model, corpora[lang], [fwd_hooks], batch_size=batch_size)
        for lang in corpora.languages
    }


def nll_of_runs(
    model: HookedModel,
    corpora: Corpora,
    runs: Sequence[FwdHooks | None],
    *,
    batch_size: int = 16,
    after_run: Callable[[], Any] = lambda: None,
) -> DocumentNLL:
    """Return the NLL of one language's documents under several interventions.

    Args:
        model: The model.
        corpora: One language, laid out one document a row.
        runs: Hooks of each run. The first is the baseline; a later one without hooks is a copy of
            it, at no cost, and None is not run at all: NaN.
        batch_size: Documents per forward pass.
        after_run: Called after each run that needed the model, for a progress bar.

    Returns:
        One row of ``nll`` per run.

    Raises:
        CorpusError: There is no token to score.
        OptionError: The corpora are a share of others.
    """
    if corpora.shard != (0, 1):
        raise OptionError(
            "These corpora are a share of others, and NLL of shares cannot be put together: give "
            "the whole, or truncate(tokens=...)"
        )
    (docs,) = corpora.documents.values()
    batches = list(corpora.batches(batch_size))
    n_tokens = torch.zeros(len(docs), dtype=torch.int64)
    for batch in batches:
        n_tokens.index_add_(0, batch.documents, scored_positions(batch).sum(1))
    if int(n_tokens.sum()) == 0:
        raise CorpusError(
            f"{corpora.languages[0]!r} has no token to score: its documents have one token each "
            "and nothing stands before it (bos=False)"
        )
    nll = torch.full((len(runs), len(docs)), torch.nan, dtype=torch.float64)
    for position, hooks in enumerate(runs):
        if hooks is None:
            continue
        if position and not hooks:
            nll[position] = nll[0]
            continue
        nll[position] = 0.0
        for batch in batches:
            sums = _batch_nll(model, batch, hooks)
            nll[position].index_add_(0, batch.documents, sums)
        after_run()
    return DocumentNLL(nll, n_tokens, docs.n_bytes)


def scored_positions(batch: TokenBatch) -> Bool[Tensor, "batch pos"]:
    """Return True where the token is scored: real text with something before it.

    Args:
        batch: Rows of text.
    """
    real = batch.mask if batch.attention_mask is None else batch.attention_mask
    scored = batch.mask & real
    scored = scored.clone()
    scored[:, 0] = False
    return scored


def _batch_nll(
    model: HookedModel, batch: TokenBatch, fwd_hooks: FwdHooks
) -> Float[Tensor, "batch"]:
    """Sum of NLL over each row's scored tokens, reading the residual stream in chunks."""
    scored = scored_positions(batch)
    if not bool(scored.any()):  # single tokens, with nothing before them
        return torch.zeros(len(batch.tokens), dtype=torch.float64)
    rows, places = scored.nonzero(as_tuple=True)
    targets = batch.tokens[rows, places]
    sums = torch.zeros(len(batch.tokens), dtype=torch.float64)

    def read(resid: Tensor, hook: Any) -> None:
        # the token at a position is predicted one position before it
        before = resid[rows.to(resid.device), places.to(resid.device) - 1]
        nll = token_nll(model, before, targets.to(resid.device))
        sums.index_add_(0, rows, nll.cpu().double())

    run_until(
        model,
        batch.tokens,
        attention_mask=batch.attention_mask,
        fwd_hooks=fwd_hooks,
        readers=[(RESID_POST.at(n_layers(model) - 1), read)],
    )
    if not bool(torch.isfinite(sums).all()):
        raise ActivationError(
            f"{model_name(model)} gave NaN or infinite log-probabilities on text of "
            f"{batch.language!r}"
        )
    return sums


def token_nll(
    model: HookedModel,
    resid: Float[Tensor, "token d_model"],
    targets: Int[Tensor, "token"],
) -> Float[Tensor, "token"]:
    """Return -log p(target) after the final norm and the unembedding, a chunk at a time.

    Never holds more than 2**26 logits, whatever the vocabulary and the number of tokens.

    Args:
        model: The model.
        resid: Residual stream after the last block.
        targets: The token that follows each.

    Returns:
        Nats per token, float32.
    """
    if not len(resid):
        return resid.new_zeros(0, dtype=torch.float32)
    found = []
    for some in chunks(model, len(resid)):
        logits = read_logits(model, resid[some])
        target = logits.gather(-1, targets[some].to(logits.device)[:, None])[:, 0]
        found.append(torch.logsumexp(logits, dim=-1) - target)
    return torch.cat(found)
