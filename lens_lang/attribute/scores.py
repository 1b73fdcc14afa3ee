"""How much each MLP neuron contributes at the last token of a prompt (Wang et al. 2024).

The contribution score of a neuron is the length of what it writes into the residual stream; its
effective score for a token is what that adds to the token's score directly, with no layer between.
"""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_lang.attention import widened
from lens_lang.attribute.writing import (
    TokenVector,
    Writing,
    check_writing,
    norm_scale,
    token_vectors,
)
from lens_lang.batches import TokenBatch
from lens_lang.corpora import Corpora
from lens_lang.documents import first_token, tokenizer_of
from lens_lang.errors import ActivationError, OptionError, ShapeError
from lens_lang.fingerprint import weights_digest
from lens_lang.languages import find_language
from lens_lang.lens import Prompts, as_corpora, prepare
from lens_lang.parallel import ParallelCorpora
from lens_lang.patterns import at_last_token
from lens_lang.saved import Saved
from lens_lang.sites import (
    MLP_POST,
    RESID_POST,
    FwdHooks,
    HookedModel,
    Site,
    hooked_names,
    model_name,
    n_layers,
    run_until,
)
from lens_lang.specs import Reading
from lens_lang.storage import versions

if TYPE_CHECKING:
    import pandas as pd

Answers = Sequence[Any] | Mapping[str, Sequence[Any]] | Int[Tensor, "prompt"] | None
"""One per prompt, or by language: text, of which the first token counts, or the token itself."""


@dataclass(frozen=True, eq=False)
class NeuronScores(Saved):
    """One number per prompt and neuron.

    Attributes:
        languages: The language of each prompt.
        values: The scores.
        change: Where scores should add up to something in each layer, what that is; None elsewhere.
        site: Site of the neurons.
        provenance: Model, method and options, as JSON values.
    """

    languages: tuple[str, ...]
    values: Float[Tensor, "prompt layer neuron"]
    change: Float[Tensor, "prompt layer"] | None = None
    site: Site = MLP_POST
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.languages) != len(self.values):
            raise ShapeError(
                f"{len(self.languages)} languages and scores of {len(self.values)} prompts"
            )

    @property
    def completeness_error(self) -> Float[Tensor, "prompt layer"]:
        """How far the scores of a layer are from adding up, relative to what they should.

        Large where the layer changes next to nothing. In half precision the change itself is a
        difference of rounded logits, and this says little.

        Raises:
            OptionError: These scores are not meant to add up to anything.
        """
        if self.change is None:
            raise OptionError(
                "Only integrated gradients add up to a change: gradient_attribution(..., "
                "method='integrated_gradients')"
            )
        return (self.values.double().sum(-1) - self.change).abs() / self.change.abs()

    def highest(self, count: int) -> Bool[Tensor, "prompt layer neuron"]:
        """Return the neurons of highest score, so many in every layer.

        Args:
            count: How many; Wang et al. (2024) take 800 of 16,384.

        Raises:
            OptionError: There are not so many.
        """
        if not 1 <= count <= self.values.shape[-1]:
            raise OptionError(f"count must be between 1 and {self.values.shape[-1]}, got {count}")
        best = self.values.topk(count, dim=-1).indices
        return torch.zeros_like(self.values, dtype=torch.bool).scatter_(-1, best, True)

    def top(self, count: int = 10) -> "pd.DataFrame":
        """Return each prompt's neurons of highest score, over all layers.

        Args:
            count: How many a prompt.

        Returns:
            One row per prompt and neuron: prompt, language, layer, neuron, score.
        """
        import pandas as pd

        if not 1 <= count <= self.values[0].numel():
            raise OptionError(f"count must be between 1 and {self.values[0].numel()}, got {count}")
        best = self.values.flatten(1).topk(count, dim=1)
        width = self.values.shape[-1]
        rows = [
            {
                "prompt": prompt,
                "language": self.languages[prompt],
                "layer": place // width,
                "neuron": place % width,
                "score": score,
            }
            for prompt, (scores, places) in enumerate(
                zip(best.values.tolist(), best.indices.tolist(), strict=True)
            )
            for score, place in zip(scores, places, strict=True)
        ]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        prompts, layers, neurons = self.values.shape
        method = self.provenance.get("method", "scores")
        return f"NeuronScores({method}: {prompts} prompts, {layers} layers of {neurons})"


def contribution(
    model: HookedModel,
    prompts: Prompts | ParallelCorpora,
    *,
    fwd_hooks: FwdHooks = (),
    batch_size: int = 8,
) -> NeuronScores:
    """Return the length of what each MLP neuron writes at the last token of each prompt.

    |m| * ||v||, with m what goes into the down-projection and v the neuron's row of W_out (Wang et
    al. 2024, section 3). Where a norm follows the MLP, which the paper's models do not have, v is
    multiplied by its gain and divided by its scale at that token.

    Args:
        model: The model.
        prompts: Texts by language, or of no stated language; corpora; or parallel examples.
        fwd_hooks: Interventions under which to measure.
        batch_size: Prompts per forward pass.

    Returns:
        One score per prompt and neuron: 4 bytes for each, so a thousand prompts of a model with
        30 layers of 16,384 fill 2 GB; `CategoryContribution` sums instead.

    Raises:
        CorpusError: A prompt is empty, too long, or tokenised for another model.
        SiteError: A hook point in `fwd_hooks` does not exist.
        ModelError: The model's neurons do not add up to what its MLPs add.
        ActivationError: NaN or infinity.
    """
    texts = texts_of(model, prompts)
    layers = check_writing(model, fwd_hooks)

    def score(read: Mapping[Site, Tensor], layer: int, numbers: Tensor) -> Tensor:  # noqa: ARG001
        each = layers[layer]
        lengths = widened(read[MLP_POST]).abs() * each.lengths
        return lengths / each.divisor(read)

    values = _at_last_tokens(model, texts, layers, score, fwd_hooks, batch_size)
    return _scores(model, texts, values, fwd_hooks, {"method": "contribution"})


def effective_score(
    model: HookedModel,
    prompts: Prompts | ParallelCorpora,
    answers: Answers = None,
    *,
    vector: TokenVector = "unembedding",
    final_norm: bool = False,
    fwd_hooks: FwdHooks = (),
    batch_size: int = 8,
) -> NeuronScores:
    """Return what each MLP neuron adds directly to an answer's score at the last token.

    m * <e, v>, with e the vector of the answer's first token (Wang et al. 2024, section 3).

    Args:
        model: The model.
        prompts: Texts by language, or of no stated language; corpora; or parallel examples.
        answers: One per prompt, language after language, or by language like the prompts; None
            takes the examples' own. Of a text the first token counts, tokenised by itself: give
            ``" Paris"`` where a space precedes and the tokeniser knows ``" Paris"`` as one.
        vector: ``"unembedding"``, or ``"embedding"`` as the released code has it.
        final_norm: Through the final norm, its scale at that token held fixed. The scores of all
            layers, with biases, attention and embedding, then add up to the answer's logit (less
            the norm's own bias, and before a soft cap).
        fwd_hooks: Interventions under which to measure.
        batch_size: Prompts per forward pass.

    Returns:
        One score per prompt and neuron: as many numbers as `contribution` returns.

    Raises:
        OptionError: There is not one answer per prompt, or no such vector or token.
        CorpusError: A prompt is empty, too long, or tokenised for another model.
        SiteError: A hook point in `fwd_hooks` does not exist.
        ModelError: The model's neurons do not add up to what its MLPs add.
        ActivationError: NaN or infinity.
    """
    texts = texts_of(model, prompts)
    tokens = answer_tokens(model, prompts, answers, texts)
    vectors = token_vectors(model, tokens, vector=vector, final_norm=final_norm)
    layers = check_writing(model, fwd_hooks)
    if final_norm:
        vectors = vectors / _final_scales(model, texts, fwd_hooks, batch_size).to(vectors.device)

    def score(read: Mapping[Site, Tensor], layer: int, numbers: Tensor) -> Tensor:
        each = layers[layer]
        reads = each.read_by(vectors[numbers.to(vectors.device)])
        return widened(read[MLP_POST]) * reads / each.divisor(read)

    values = _at_last_tokens(model, texts, layers, score, fwd_hooks, batch_size)
    options = {"method": "effective score", "vector": vector, "final_norm": final_norm}
    return _scores(model, texts, values, fwd_hooks, options)


def texts_of(model: Any, prompts: Prompts | ParallelCorpora) -> Corpora:
    """Return prompts as corpora with one row a prompt."""
    return (
        prompts.by_language if isinstance(prompts, ParallelCorpora) else as_corpora(model, prompts)
    )


def len_texts(texts: Corpora) -> int:
    """Return how many prompts there are, in all languages."""
    return sum(len(docs) for docs in texts.documents.values())


def prompt_languages(texts: Corpora) -> tuple[str, ...]:
    """Return the language of every prompt, language after language."""
    return tuple(lang for lang, docs in texts.documents.items() for _ in range(len(docs)))


def answer_tokens(
    model: Any, prompts: Prompts | ParallelCorpora, answers: Answers, texts: Corpora
) -> Int[Tensor, "prompt"]:
    """Return the token of every prompt's answer.

    Args:
        model: Whose vocabulary.
        prompts: What the user gave.
        answers: One per prompt, or by language.
        texts: The prompts as corpora.

    Raises:
        OptionError: There is not one answer per prompt, or one is no token of the vocabulary.
        LanguageError: Answers are given in another language than prompts.
    """
    count = len_texts(texts)
    if answers is None:
        if not isinstance(prompts, ParallelCorpora) or prompts.answers is None:
            raise OptionError("These prompts have no answers of their own: give one for each")
        return check_tokens(prompts.answers.T.flatten(), model)
    if isinstance(answers, Mapping):
        named = {
            texts.languages[find_language(lang, texts.languages)]: list(each)
            for lang, each in answers.items()
        }
        counts = {lang: len(docs) for lang, docs in texts.documents.items()}
        if {lang: len(each) for lang, each in named.items()} != counts:
            raise OptionError(f"answers must be as many as prompts in every language: {counts}")
        answers = [each for lang in texts.languages for each in named[lang]]
    if isinstance(answers, str) or len(answers) != count:
        raise OptionError(
            f"answers must be one per prompt, {count} in all, got "
            f"{'one string' if isinstance(answers, str) else len(answers)}"
        )
    tokenizer = None
    tokens = []
    for answer in answers.tolist() if isinstance(answers, Tensor) else answers:
        if isinstance(answer, str):
            tokenizer = tokenizer or tokenizer_of(model)
            token = first_token(tokenizer, answer)
            if token is None:
                raise OptionError(f"The answer {answer!r} has no token")
            tokens.append(token)
            continue
        try:
            tokens.append(operator.index(answer))
        except TypeError:
            raise OptionError(
                f"An answer must be text or the number of a token, got {answer!r}"
            ) from None
    return check_tokens(torch.tensor(tokens), model)


def check_tokens(tokens: Int[Tensor, "*tokens"], model: HookedModel) -> Int[Tensor, "*tokens"]:
    """Return token ids that a model's vocabulary has.

    Raises:
        OptionError: One lies outside.
    """
    d_vocab = int(model.cfg.d_vocab)
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < d_vocab:
        raise OptionError(f"An answer's token lies outside the vocabulary of {d_vocab}")
    return tokens


def batches_with_numbers(
    texts: Corpora, batch_size: int
) -> Iterator[tuple[TokenBatch, Int[Tensor, "batch"]]]:
    """Yield batches, and the place of each row among all prompts."""
    starts, total = {}, 0
    for lang, docs in texts.documents.items():
        starts[lang] = total
        total += len(docs)
    for batch in texts.batches(batch_size):
        yield batch, batch.documents + starts[batch.language]


def _at_last_tokens(
    model: HookedModel,
    texts: Corpora,
    layers: Sequence[Writing],
    score: Any,
    fwd_hooks: FwdHooks,
    batch_size: int,
) -> Float[Tensor, "prompt layer neuron"]:
    """Score every neuron at the last token of every prompt."""
    prepare(model, texts, fwd_hooks)
    width = len(layers[0].matrix)
    values = torch.zeros(len_texts(texts), len(layers), width, dtype=layers[0].bias.dtype)
    for batch, numbers in batches_with_numbers(texts, batch_size):
        held: dict[int, dict[Site, Tensor]] = {}

        def read(activations: Tensor, hook: Any, site: Site, layer: int) -> None:
            # one layer at a time: the values of the other tokens are not kept
            reading = Reading(layer, {site: activations}, batch.mask)  # noqa: B023
            held.setdefault(layer, {})[site] = at_last_token(reading, site)  # noqa: B023
            if len(held[layer]) == len(layers[layer].sites):  # noqa: B023
                values[numbers, layer] = score(held.pop(layer), layer, numbers).cpu()  # noqa: B023

        readers = [
            (site.at(layer), partial(read, site=site, layer=layer))
            for layer, each in enumerate(layers)
            for site in each.sites
        ]
        run_until(
            model,
            batch.tokens,
            attention_mask=batch.attention_mask,
            fwd_hooks=fwd_hooks,
            readers=readers,
        )
    if not bool(torch.isfinite(values.sum())):
        raise ActivationError(f"{model_name(model)} gave NaN or infinite activations on a prompt")
    return values


def _final_scales(
    model: HookedModel, texts: Corpora, fwd_hooks: FwdHooks, batch_size: int
) -> Float[Tensor, "prompt 1"]:
    """What the final norm divides by at the last token of every prompt."""
    site = RESID_POST.at(n_layers(model) - 1)
    found: list[Tensor] = []
    for batch, _ in batches_with_numbers(texts, batch_size):

        def read(resid: Tensor, hook: Any) -> None:
            reading = Reading(0, {RESID_POST: resid}, batch.mask)  # noqa: B023
            found.append(norm_scale(model, at_last_token(reading, RESID_POST)).cpu())

        run_until(
            model,
            batch.tokens,
            attention_mask=batch.attention_mask,
            fwd_hooks=fwd_hooks,
            readers=[(site, read)],
        )
    return torch.cat(found)


def _scores(
    model: HookedModel,
    texts: Corpora,
    values: Float[Tensor, "prompt layer neuron"],
    fwd_hooks: FwdHooks,
    options: Mapping[str, Any],
) -> NeuronScores:
    return NeuronScores(
        prompt_languages(texts),
        values,
        provenance=scores_provenance(model, texts, fwd_hooks, options),
    )


def scores_provenance(
    model: HookedModel, texts: Corpora, fwd_hooks: FwdHooks, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Say where scores come from."""
    return {
        "model": model_name(model),
        "weights": weights_digest(model),
        "prompts": texts.describe(),
        "fwd_hooks": hooked_names(model, fwd_hooks),
        **options,
        "versions": versions(),
    }
