"""In which language a word is on its way: the latent language of Wendler et al. (2024).

A prompt asks for one word. At its last position every layer is read as a prediction; the
probability of all vocabulary items with which the word could begin is summed, for the language
asked for and for English. Beside it: the entropy of the prediction, and how much of the residual
stream lies in directions that tokens use.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_lang.concepts import Concept, Prompt
from lens_lang.energy import token_energy, unembedding_gram
from lens_lang.errors import ActivationError, OptionError, ShapeError
from lens_lang.evaluate.significance import mean_interval
from lens_lang.fingerprint import weights_digest
from lens_lang.intervene import describe_hooks
from lens_lang.lens import as_corpora, last_residuals, prepare
from lens_lang.readout import chunks, read_logits
from lens_lang.saved import Saved
from lens_lang.sites import FwdHooks, HookedModel, hooked_names, model_name, n_layers
from lens_lang.spelling import spell_vocabulary
from lens_lang.storage import versions

TokenSets = Mapping[str, tuple[int, ...]]
"""By language, the vocabulary items with which a prompt's word could begin: Start(w)."""


def start_items(spelled: Sequence[bytes], words: Iterable[str]) -> dict[str, tuple[int, ...]]:
    r"""Return for each word the vocabulary items with which it could begin.

    Start(w) of Wendler et al. (2024), appendix: every item that spells a beginning of the word,
    with or without a word boundary before it. Spelled as bytes, so that the first bytes of a
    character that the vocabulary has no item for are among them in every kind of vocabulary.

    Args:
        spelled: What each item spells, from `spell_vocabulary`.
        words: The words.

    Returns:
        Item numbers by word, sorted.

    Examples:
        >>> toy = [b"f", b"fl", b"flow", b"flower", b" f", b" flower", "花".encode(), b"\xe8"]
        >>> start_items(toy, ["flower", "花"])
        {'flower': (0, 1, 2, 3, 4, 5), '花': (6, 7)}
    """
    places: dict[bytes, list[int]] = {}
    for item, each in enumerate(spelled):
        if each:
            places.setdefault(each, []).append(item)
    found = {}
    for word in words:
        letters = word.encode("utf-8")
        beginnings = [letters[:end] for end in range(1, len(letters) + 1)]
        items = {
            item
            for begin in beginnings
            for spelling in (begin, b" " + begin)
            for item in places.get(spelling, ())
        }
        found[word] = tuple(sorted(items))
    return found


def separable_prompts(
    model: Any, prompts: Sequence[Prompt]
) -> tuple[list[Prompt], list[TokenSets]]:
    """Keep the prompts whose answers can be told apart by their first token.

    Left out are prompts where a language's set of items is empty, where two languages share an
    item, and where a word contains the same word of another language (Wendler et al. leave out
    words that contain the English one).

    Args:
        model: Whose vocabulary.
        prompts: From `translation_prompts`, `repetition_prompts` or `cloze_prompts`.

    Returns:
        The prompts kept and, for each, its items by language: what `latent_language` takes.

    Raises:
        OptionError: No prompt is left.
    """
    words = {word for prompt in prompts for word in prompt.answers.values()}
    starts = start_items(spell_vocabulary(model), words)
    kept: list[Prompt] = []
    sets: list[TokenSets] = []
    for prompt in prompts:
        found = {lang: starts[word] for lang, word in prompt.answers.items()}
        every = [item for items in found.values() for item in items]
        if not all(found.values()) or len(every) != len(set(every)):
            continue
        folded = [word.casefold() for word in prompt.answers.values()]
        if any(a in b for n, a in enumerate(folded) for m, b in enumerate(folded) if n != m):
            continue
        kept.append(prompt)
        sets.append(found)
    if not kept:
        raise OptionError(
            f"None of {len(prompts)} prompts has answers that begin differently in their "
            "languages: use other words or another target language"
        )
    return kept, sets


def single_token_concepts(model: Any, concepts: Sequence[Concept], language: str) -> list[Concept]:
    """Keep the concepts whose word is one item of a vocabulary, with or without a space before.

    Args:
        model: Whose vocabulary.
        concepts: The concepts.
        language: Of the word.
    """
    known = set(spell_vocabulary(model))
    return [
        concept
        for concept in concepts
        if (word := concept.words.get(language, "").encode("utf-8"))
        and (word in known or b" " + word in known)
    ]


@dataclass(frozen=True, eq=False)
class LatentLanguages(Saved):
    """What every layer would answer, at the last position of every prompt.

    Attributes:
        languages: The languages of the answers; that of the prompt's answer first.
        probability: Of the items with which the word could begin; no distribution over
            languages. Layer 0 are the embeddings.
        entropy: Of the whole prediction, in bits.
        energy: Token energy: 1 if the residual stream is as close to the tokens' directions as
            they are to each other, in the mean square; 0 if it is orthogonal to all.
        provenance: Model, prompts and options, as JSON values.
    """

    languages: tuple[str, ...]
    probability: Float[Tensor, "prompt layer lang"]
    entropy: Float[Tensor, "prompt layer"]
    energy: Float[Tensor, "prompt layer"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = tuple(self.probability.shape)
        if len(shape) != 3 or shape[2] != len(self.languages):
            raise ShapeError(
                f"probability must be [prompt layer {len(self.languages)}], got {list(shape)}"
            )
        for name, values in (("entropy", self.entropy), ("energy", self.energy)):
            if tuple(values.shape) != shape[:2]:
                raise ShapeError(f"{name} must be {list(shape[:2])}, got {list(values.shape)}")

    @property
    def mean(self) -> Float[Tensor, "layer lang"]:
        """Mean probability over prompts."""
        return self.probability.mean(0)

    @cached_property
    def ci(self) -> Float[Tensor, "layer lang 2"]:
        """95 % interval of `mean`, by bootstrap over prompts."""
        return mean_interval(self.probability.movedim(0, -1))

    @cached_property
    def entropy_ci(self) -> Float[Tensor, "layer 2"]:
        """95 % interval of the mean entropy."""
        return mean_interval(self.entropy.movedim(0, -1))

    @cached_property
    def energy_ci(self) -> Float[Tensor, "layer 2"]:
        """95 % interval of the mean token energy."""
        return mean_interval(self.energy.movedim(0, -1))

    def __repr__(self) -> str:
        prompts, layers, _ = self.probability.shape
        return f"LatentLanguages({prompts} prompts, {layers - 1} layers: {self.languages})"


def latent_language(
    model: HookedModel,
    prompts: Sequence[Prompt] | Sequence[str],
    token_sets: Sequence[TokenSets],
    *,
    fwd_hooks: FwdHooks = (),
    norm: bool = True,
    batch_size: int = 8,
) -> LatentLanguages:
    """Measure which language's word every layer is about to say.

    Args:
        model: The model.
        prompts: From `separable_prompts`; or texts.
        token_sets: For each prompt its items by language, the same languages for all.
        fwd_hooks: Interventions under which to measure.
        norm: Apply the final norm before reading.
        batch_size: Prompts per forward pass.

    Returns:
        Probabilities, entropy and token energy of every prompt at every layer.

    Raises:
        OptionError: There are no prompts, or not a set for each, or sets of other languages, or
            of items that the vocabulary does not have.
        CorpusError: A prompt is empty.
        SiteError: A hook point in `fwd_hooks` does not exist, or comes after the last block.
        ModelError: The model's logits are not read this way.
        ActivationError: NaN or infinity.
    """
    if not prompts or len(prompts) != len(token_sets):
        raise OptionError(
            f"latent_language needs prompts and one set of items for each, got {len(prompts)} "
            f"prompts and {len(token_sets)} sets"
        )
    languages = _languages(token_sets, int(model.cfg.d_vocab))
    texts = [each.text if isinstance(each, Prompt) else each for each in prompts]
    corpora = as_corpora(model, texts)
    prepare(model, corpora, fwd_hooks)
    gram = unembedding_gram(model)
    shape = (len(texts), n_layers(model) + 1)
    probability = torch.zeros(*shape, len(languages), dtype=torch.float64)
    entropy = torch.zeros(shape, dtype=torch.float64)
    energy = torch.zeros(shape, dtype=torch.float64)
    for batch in corpora.batches(batch_size):
        resid = last_residuals(model, batch, fwd_hooks=fwd_hooks)
        sets = [list(token_sets[n].values()) for n in batch.documents.tolist()]
        read, bits = _predictions(model, resid, sets, norm)
        if not bool(torch.isfinite(bits).all()):
            raise ActivationError(f"{model_name(model)} gave NaN or infinite logits on a prompt")
        probability[batch.documents] = read.movedim(0, 1)
        entropy[batch.documents] = bits.T
        energy[batch.documents] = token_energy(gram, resid).cpu().double().T
    return LatentLanguages(
        languages,
        probability,
        entropy,
        energy,
        {
            "model": model_name(model),
            "weights": weights_digest(model),
            "prompts": corpora.describe(),
            "fwd_hooks": hooked_names(model, fwd_hooks),
            "edits": describe_hooks(fwd_hooks),
            "norm": norm,
            "versions": versions(),
        },
    )


def _languages(token_sets: Sequence[TokenSets], d_vocab: int) -> tuple[str, ...]:
    languages = tuple(token_sets[0])
    for number, each in enumerate(token_sets):
        if tuple(each) != languages or not languages:
            raise OptionError(
                f"Every prompt needs items of the same languages in the same order: the first has "
                f"{', '.join(languages) or 'none'}, number {number} has {', '.join(each) or 'none'}"
            )
        for lang, items in each.items():
            if not items:
                raise OptionError(f"Prompt {number} has no item for {lang!r}")
            if len(set(items)) < len(items) or not all(0 <= item < d_vocab for item in items):
                raise OptionError(
                    f"The items of prompt {number} for {lang!r} must be different numbers below "
                    f"{d_vocab}"
                )
    return languages


def _predictions(
    model: HookedModel,
    resid: Float[Tensor, "layer row d_model"],
    sets: Sequence[Sequence[Sequence[int]]],
    norm: bool,
) -> tuple[Float[Tensor, "layer row lang"], Float[Tensor, "layer row"]]:
    """Probability of each row's sets, and entropy in bits."""
    layers, n_rows, _ = resid.shape
    flat = resid.flatten(0, 1)
    longest = max(len(some) for row in sets for some in row)
    items = torch.tensor([[[*some, *[-1] * (longest - len(some))] for some in row] for row in sets])
    probability = torch.zeros(len(flat), len(sets[0]), dtype=torch.float64)
    entropy = torch.zeros(len(flat), dtype=torch.float64)
    with torch.inference_mode():
        for some in chunks(model, len(flat)):
            chances = read_logits(model, flat[some], norm=norm).softmax(-1)
            bits = torch.special.entr(chances).sum(-1) / math.log(2)
            entropy[some] = bits.cpu().double()
            places = items[torch.arange(len(flat))[some] % n_rows].to(chances.device)
            found = chances.gather(1, places.clamp(min=0).flatten(1)).view(places.shape)
            probability[some] = (found * (places >= 0)).sum(-1).cpu().double()
    return probability.view(layers, n_rows, -1), entropy.view(layers, n_rows)
