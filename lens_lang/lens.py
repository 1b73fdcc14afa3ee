"""Which language each layer speaks: the residual stream of every layer, read as a prediction.

The logit lens (nostalgebraist 2020) applies the final norm and the unembedding after every layer;
here the probability that it gives to each vocabulary item is summed by language. Zhao et al.
(2024), figure 1, draw such curves: other languages first, then English, other languages last.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_lang.batches import TokenBatch
from lens_lang.corpora import Corpora, check_fits
from lens_lang.curves import LanguageCurve
from lens_lang.documents import Documents, bos_token, tokenise, tokenizer_of
from lens_lang.errors import ActivationError, CorpusError, OptionError
from lens_lang.fingerprint import weights_digest
from lens_lang.identification import UNDETERMINED
from lens_lang.intervene import describe_hooks
from lens_lang.languages import distinct_languages, find_language, language_tag
from lens_lang.positions import check_everywhere
from lens_lang.readout import check_before_readout, check_readout, chunks, read_logits
from lens_lang.sites import (
    RESID_POST,
    RESID_PRE,
    FwdHooks,
    HookedModel,
    check_hooks,
    check_supported,
    hooked_names,
    model_name,
    n_layers,
    run_until,
)
from lens_lang.spelling import as_text, spell_vocabulary
from lens_lang.storage import versions
from lens_lang.vocabulary import VocabularyLanguages

Prompts = Corpora | Mapping[str, Iterable[str]] | Iterable[str]
"""Texts by language, or of no stated language ("und"), or documents already tokenised."""

Where = Literal["all", "last", "new"]


def language_curve(
    model: HookedModel,
    prompts: Prompts,
    vocabulary: VocabularyLanguages,
    *,
    fwd_hooks: FwdHooks | Mapping[str, FwdHooks] = (),
    positions: Where = "all",
    top_k: int | None = None,
    norm: bool = True,
    new_tokens: int = 0,
    batch_size: int = 8,
) -> LanguageCurve:
    """Measure how much of each layer's prediction belongs to each language.

    One forward pass gives all layers. Logits exist for at most 2**26 numbers at once, whatever
    the number of layers, prompts and positions.

    Args:
        model: The model.
        prompts: Texts by language, ``{"fr": ["Le chat", ...]}``; or corpora, read one document a
            prompt, cut to the length of their rows; or texts of no stated language.
        vocabulary: Which language each item belongs to.
        fwd_hooks: Interventions under which to measure, for example ``ablate(neurons["fr"])``;
            or one list per language of the prompts, ``{"fr": ablate(neurons["fr"]), ...}``.
        positions: Read every position that counts (not BOS, unless the corpora count it), the
            last of each prompt, or with `new_tokens` those that predict the new tokens.
        top_k: None sums probability over the whole vocabulary. A number counts the likeliest
            items instead, each by its language, as in Zhao et al. (2024) with 10.
        norm: Apply the final norm before reading. The paper's code does so after the last block
            only.
        new_tokens: Continue each prompt greedily by so many tokens, under the same hooks, and
            read the continuation too. What is read equals what the model saw while generating,
            as long as the hooks do not ask which step it is. Prompts are continued one by one.
        batch_size: Prompts per forward pass of the reading.

    Returns:
        Shares of every prompt at the embeddings (layer 0) and after every block, averaged over
        its positions.

    Raises:
        CorpusError: A prompt is empty, too long for the model, or tokenised for another one.
        LanguageError: A language is named twice, or `fwd_hooks` name one without prompts.
        OptionError: An option is out of its range, or the corpora are a share of others.
        ShapeError: `vocabulary` was made for another model.
        SiteError: A hook point in `fwd_hooks` does not exist, or comes after the last block.
        ModelError: The model's logits are not read this way.
        ActivationError: NaN or infinity.
    """
    if positions not in ("all", "last", "new"):
        raise OptionError(f"positions must be all, last or new, got {positions!r}")
    if new_tokens < (positions == "new"):
        raise OptionError(
            f"new_tokens must be at least {int(positions == 'new')} with positions="
            f"{positions!r}, got {new_tokens}"
        )
    if top_k is not None and not 1 <= top_k <= int(model.cfg.d_vocab):
        raise OptionError(f"top_k must be between 1 and {model.cfg.d_vocab}, got {top_k}")
    corpora = as_corpora(model, prompts)
    hooks = _hooks_by_language(fwd_hooks, corpora.languages)
    prepare(model, corpora, [hook for each in hooks.values() for hook in each])
    # one language after the other in memory: a quarter faster to multiply with
    share = vocabulary.padded(int(model.cfg.d_vocab)).share.T.contiguous().T
    first_new: dict[str, Tensor] = {}
    if new_tokens:
        check_fits(corpora, model.cfg, more=new_tokens)
        corpora, first_new = _continued(model, corpora, new_tokens, hooks)
    sums = {
        lang: torch.zeros(len(docs), n_layers(model) + 1, share.shape[1], dtype=torch.float64)
        for lang, docs in corpora.documents.items()
    }
    for batch in corpora.batches(batch_size):
        chosen = _positions(batch, positions, first_new.get(batch.language))
        rows, places = chosen.nonzero(as_tuple=True)
        resid = _residuals(model, batch, rows, places, hooks[batch.language])
        read = _layer_shares(model, resid, share, top_k, norm)
        mean = read / chosen.sum(1)[rows, None]
        sums[batch.language].index_add_(0, batch.documents[rows], mean.movedim(0, 1))
    return LanguageCurve(
        languages=vocabulary.languages,
        prompt_languages=tuple(lang for lang, each in sums.items() for _ in range(len(each))),
        values=torch.cat(list(sums.values())),
        provenance={
            "model": model_name(model),
            "weights": weights_digest(model),
            "prompts": corpora.describe(),
            "vocabulary": dict(vocabulary.provenance),
            "fwd_hooks": {lang: hooked_names(model, each) for lang, each in hooks.items()},
            "edits": {lang: describe_hooks(each) for lang, each in hooks.items()},
            "positions": positions,
            "top_k": top_k,
            "norm": norm,
            "new_tokens": new_tokens,
            "versions": versions(),
        },
    )


@dataclass(frozen=True, eq=False)
class LensTable:
    """What every layer would say next at every position of one prompt.

    Attributes:
        pieces: The prompt's tokens as text.
        languages: The languages of `share`.
        top: The likeliest items, the likeliest first; layer 0 are the embeddings.
        probability: Their probabilities.
        top_text: The same items as text; parts of characters as ``<0xE8>``.
        top_label: The likeliest label of each of them: a place among the languages, or behind
            them for *other*.
        share: Each language's share of the probability; the last column is *other*.
    """

    pieces: tuple[str, ...]
    languages: tuple[str, ...]
    top: Int[Tensor, "layer pos k"]
    probability: Float[Tensor, "layer pos k"]
    top_text: tuple[tuple[tuple[str, ...], ...], ...]
    top_label: Int[Tensor, "layer pos k"]
    share: Float[Tensor, "layer pos lang_other"]


def lens_table(
    model: Any,
    prompt: str,
    vocabulary: VocabularyLanguages,
    *,
    fwd_hooks: FwdHooks = (),
    top_k: int = 5,
    norm: bool = True,
) -> LensTable:
    """Read every layer at every position of one prompt: the usual picture of the logit lens.

    Args:
        model: The model.
        prompt: The text.
        vocabulary: Which language each item belongs to.
        fwd_hooks: Interventions under which to read.
        top_k: How many of the likeliest items to keep.
        norm: Apply the final norm before reading.

    Returns:
        The table; `lens_lang.plot.lens_table` draws it.

    Raises:
        CorpusError: The prompt is empty.
        ShapeError: `vocabulary` was made for another model.
        SiteError: A hook point in `fwd_hooks` does not exist, or comes after the last block.
        ModelError: The model's logits are not read this way.
        OptionError: `top_k` is out of its range.
        ActivationError: NaN or infinity.
    """
    if not 1 <= top_k <= int(model.cfg.d_vocab):
        raise OptionError(f"top_k must be between 1 and {model.cfg.d_vocab}, got {top_k}")
    corpora = as_corpora(model, [prompt])
    prepare(model, corpora, fwd_hooks)
    share = vocabulary.padded(int(model.cfg.d_vocab)).share
    (batch,) = corpora.batches(1)
    rows, places = torch.ones_like(batch.tokens).nonzero(as_tuple=True)
    resid = _residuals(model, batch, rows, places, fwd_hooks)
    layers, n_pos, _ = resid.shape
    flat = resid.flatten(0, 1)
    top, probability, mass = [], [], []
    with torch.inference_mode():
        for some in chunks(model, len(flat)):
            logits = read_logits(model, flat[some], norm=norm)
            likeliest = _top(model, logits, top_k)
            top.append(likeliest.indices.cpu())
            probability.append((likeliest.values - logits.logsumexp(-1, True)).exp().cpu())
            mass.append(_mass(logits, share.to(logits.device)).cpu())
    ids = torch.cat(top).view(layers, n_pos, top_k)
    spelled = spell_vocabulary(model)

    def text(item: int) -> str:
        found = as_text(spelled[item])
        return "".join(f"<0x{b:02X}>" for b in spelled[item]) if found is None else found

    names = tokenizer_of(model).convert_ids_to_tokens(batch.tokens[0].tolist())
    return LensTable(
        pieces=tuple(
            text(item) or str(name)
            for item, name in zip(batch.tokens[0].tolist(), names, strict=True)
        ),
        languages=vocabulary.languages,
        top=ids,
        probability=torch.cat(probability).view(layers, n_pos, top_k),
        top_text=tuple(
            tuple(tuple(text(item) or f"[{item}]" for item in cell) for cell in row)
            for row in ids.tolist()
        ),
        top_label=share.argmax(1)[ids],
        share=torch.cat(mass).view(layers, n_pos, -1),
    )


def as_corpora(model: Any, prompts: Prompts) -> Corpora:
    """Return prompts as corpora with one row a prompt, BOS as TransformerLens has it.

    Args:
        model: Whose tokeniser to use.
        prompts: As `language_curve` takes them.

    Raises:
        CorpusError: There is no prompt, one is empty, or it is one string instead of a list.
        LanguageError: A language is named twice.
        OptionError: The corpora are a share of others.
    """
    if isinstance(prompts, Corpora):
        if prompts.shard != (0, 1):
            raise OptionError("These corpora are a share of others: give the documents to read")
        width = prompts.row_tokens
        documents = {
            lang: docs.cut_each(width) if width else docs
            for lang, docs in prompts.documents.items()
        }
        whole = replace(prompts, documents=documents, ctx_len=None, pack=False)
        return _without_empty(whole)
    named = prompts if isinstance(prompts, Mapping) else {UNDETERMINED: prompts}
    if any(isinstance(texts, str) for texts in named.values()):
        raise CorpusError("Prompts are one string where a list is expected: give [prompt]")
    tags = [lang if lang == UNDETERMINED else language_tag(lang) for lang in named]
    distinct_languages(tags)
    tokenizer = tokenizer_of(model)
    documents = {}
    for lang, given in zip(tags, named.values(), strict=True):
        texts = list(given)
        empty = [number for number, text in enumerate(texts) if not text]
        documents[lang] = tokenise(tokenizer, texts, limit=None, lang=lang)
        if empty or len(documents[lang]) != len(texts):
            which = f"Prompt {empty[0]}" if empty else "A prompt"
            raise CorpusError(f"{which} of {lang!r} is empty: there is nothing to read")
    return _without_empty(Corpora(documents, bos_id=bos_token(model, None)))


def _without_empty(corpora: Corpora) -> Corpora:
    for lang, docs in corpora.documents.items():
        empty = (docs.lengths == 0).nonzero().flatten().tolist()
        if empty:
            raise CorpusError(f"Prompt {empty[0]} of {lang!r} is empty: there is nothing to read")
    return corpora


def first_documents(corpora: Corpora, count: int) -> Corpora:
    """Keep the first documents of every language.

    Args:
        corpora: The text.
        count: Documents a language; languages with fewer keep all.
    """
    if count < 1:
        raise OptionError(f"At least 1 prompt a language is needed, got {count}")
    return replace(
        corpora,
        documents={
            lang: docs.select(range(min(count, len(docs))))
            for lang, docs in corpora.documents.items()
        },
    )


def last_residuals(
    model: HookedModel, batch: TokenBatch, *, fwd_hooks: FwdHooks = ()
) -> Float[Tensor, "layer batch d_model"]:
    """Return the residual stream of all layers at the last token of every row.

    Args:
        model: The model.
        batch: The rows.
        fwd_hooks: Interventions.

    Returns:
        Layer 0 are the embeddings.
    """
    rows, places = _positions(batch, "last", None).nonzero(as_tuple=True)
    return _residuals(model, batch, rows, places, fwd_hooks)


def prepare(model: HookedModel, corpora: Corpora, fwd_hooks: FwdHooks) -> None:
    """Check model, text and hooks before layers are read.

    Raises:
        ModelError: The model is refused, or its logits are not read this way.
        SiteError: A hook point does not exist, or comes after the last block.
        CorpusError: A prompt is empty, or was tokenised for another model.
    """
    check_supported(model)
    check_hooks(model, fwd_hooks)
    check_everywhere(fwd_hooks)
    check_before_readout(model, fwd_hooks)
    check_readout(model)
    check_fits(corpora, model.cfg)


def _positions(
    batch: TokenBatch, where: Where, first_new: Int[Tensor, "doc"] | None
) -> Bool[Tensor, "batch pos"]:
    """True where a batch is to be read."""
    real = batch.mask if batch.attention_mask is None else batch.mask | batch.attention_mask
    numbers = torch.arange(real.shape[1]).expand_as(real)
    last = numbers.masked_fill(~real, -1).max(1, keepdim=True).values
    if where == "last":
        return numbers == last
    if where == "new":
        assert first_new is not None  # language_curve asks for new tokens only with some
        return (numbers >= first_new[batch.documents][:, None]) & (numbers <= last)
    return batch.mask


def _residuals(
    model: HookedModel,
    batch: TokenBatch,
    rows: Int[Tensor, "row"],
    places: Int[Tensor, "row"],
    fwd_hooks: FwdHooks,
) -> Float[Tensor, "layer row d_model"]:
    """The residual stream at chosen positions: embeddings, then after every block."""
    last = n_layers(model)
    kept: list[Tensor] = []  # one tensor, as soon as its dtype and device are known

    def keep(resid: Tensor, hook: Any, layer: int) -> None:
        if not kept:
            kept.append(resid.new_empty(last + 1, len(rows), resid.shape[-1]))
        kept[0][layer] = resid[rows.to(resid.device), places.to(resid.device)].to(kept[0].device)

    readers = [(RESID_PRE.at(0), partial(keep, layer=0))]
    readers += [(RESID_POST.at(n - 1), partial(keep, layer=n)) for n in range(1, last + 1)]
    run_until(
        model,
        batch.tokens,
        attention_mask=batch.attention_mask,
        fwd_hooks=fwd_hooks,
        readers=readers,
    )
    return kept[0]


def _layer_shares(
    model: HookedModel,
    resid: Float[Tensor, "layer row d_model"],
    share: Float[Tensor, "item lang_other"],
    top_k: int | None,
    norm: bool,
) -> Float[Tensor, "layer row lang_other"]:
    flat = resid.flatten(0, 1)
    weights = share.to(resid.device)  # once, not with every chunk
    found = []
    with torch.inference_mode():
        for some in chunks(model, len(flat)):
            logits = read_logits(model, flat[some], norm=norm).to(weights.device)
            if top_k is None:
                read = _mass(logits, weights)
                _check_finite(model, read)
            else:
                read = weights[_top(model, logits, top_k).indices].mean(1)
            found.append(read.cpu())
    return torch.cat(found).view(*resid.shape[:2], -1).double()


def _top(model: HookedModel, logits: Float[Tensor, "row item"], top_k: int) -> Any:
    likeliest = logits.topk(top_k)
    _check_finite(model, likeliest.values)  # NaN counts as largest, infinity is
    return likeliest


def _check_finite(model: HookedModel, values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ActivationError(f"{model_name(model)} gave NaN or infinite logits on a prompt")


def _mass(
    logits: Float[Tensor, "row item"], share: Float[Tensor, "item lang_other"]
) -> Float[Tensor, "row lang_other"]:
    """Probability summed by language; overwrites the logits."""
    logits -= logits.amax(-1, keepdim=True)
    mass = logits.exp_() @ share
    # Rows of `share` sum to 1, so this is the softmax's denominator too.
    return mass / mass.sum(-1, keepdim=True)


def _hooks_by_language(
    fwd_hooks: FwdHooks | Mapping[str, FwdHooks], languages: Sequence[str]
) -> dict[str, FwdHooks]:
    if not isinstance(fwd_hooks, Mapping):
        return dict.fromkeys(languages, fwd_hooks)
    tags = [languages[find_language(lang, languages)] for lang in fwd_hooks]
    if tags:
        distinct_languages(tags)
    given = dict(zip(tags, fwd_hooks.values(), strict=True))
    return {lang: given.get(lang, ()) for lang in languages}


def _continued(
    model: HookedModel, corpora: Corpora, new_tokens: int, hooks: Mapping[str, FwdHooks]
) -> tuple[Corpora, dict[str, Int[Tensor, "doc"]]]:
    """The prompts with what the model adds, and from where on it is read."""
    ends = getattr(getattr(model, "tokenizer", None), "eos_token_id", None)
    documents: dict[str, Documents] = {}
    first: dict[str, Tensor] = {}
    for lang, docs in corpora.documents.items():
        rows, starts = [], []
        for doc in docs:
            bos = [] if corpora.bos_id is None else [corpora.bos_id]
            given = torch.tensor([[*bos, *doc.tolist()]], device=getattr(model.cfg, "device", None))
            with torch.inference_mode(), model.hooks(fwd_hooks=list(hooks[lang])):
                grown = model.generate(  # type: ignore[attr-defined]
                    given,
                    max_new_tokens=new_tokens,
                    do_sample=False,
                    stop_at_eos=False,
                    verbose=False,
                    return_type="tokens",
                )
            new = grown[0, given.shape[1] :].tolist()
            new = new[: new.index(ends) + 1] if ends in new else new
            # The last new token is never read by the model, which only then would have said more.
            rows.append(torch.tensor([*doc.tolist(), *new[:-1]]))
            starts.append(given.shape[1] - 1)
        documents[lang] = Documents.join(rows, [0] * len(rows))
        first[lang] = torch.tensor(starts)
    return Corpora(documents, bos_id=corpora.bos_id, count_bos=corpora.count_bos), first
