"""Switching off other neurons for every example: those of one kind, beside random ones.

Wang et al. (2024) divide neurons anew for every input, so they are switched off anew for every
input, in all translations of the example at once.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_lang.batches import TokenBatch
from lens_lang.errors import CorpusError, OptionError
from lens_lang.evaluate.categories import CategoryEffect
from lens_lang.evaluate.judging import Judge
from lens_lang.fingerprint import weights_digest
from lens_lang.lens import prepare
from lens_lang.parallel import ParallelCorpora
from lens_lang.patterns import (
    CATEGORIES,
    Firing,
    FiringSpace,
    at_last_token,
    categories,
    last_tokens,
    one_level,
)
from lens_lang.progress import progress_bar
from lens_lang.rows import ablate_rows
from lens_lang.run_folder import spec_options
from lens_lang.sites import (
    RESID_POST,
    FwdHooks,
    HookedModel,
    hooked_names,
    model_name,
    n_layers,
    preflight,
    run_until,
)
from lens_lang.specs import Reading
from lens_lang.storage import versions


@dataclass(frozen=True)
class PerExample:
    """How `category_effect` divides the neurons of an example, and where it switches them off.

    Attributes:
        threshold: A neuron fires where its activation at the last token is above this, strictly.
        space: See `SharingPattern`.
        positions: Switch off at ``"all"`` tokens, or at the ``"last"`` only.
    """

    threshold: float | int = 0.0
    space: FiringSpace = "gate"
    positions: Literal["all", "last"] = "all"

    def __post_init__(self) -> None:
        one_level(self.threshold)
        if self.positions not in ("all", "last"):
            raise OptionError(f"positions must be all or last, got {self.positions!r}")
        if self.space not in ("gate", "product"):
            raise OptionError(f"space must be gate or product, got {self.space!r}")


def category_effect(
    model: HookedModel,
    examples: ParallelCorpora,
    rule: PerExample = PerExample(),  # noqa: B008  frozen
    *,
    controls: int = 3,
    fwd_hooks: FwdHooks = (),
    batch_size: int = 2,
    seed: int = 0,
    progress: bool = True,
) -> CategoryEffect:
    """Switch off the neurons of each kind, example by example, and score the answers.

    Args:
        model: The model.
        examples: Examples with answers.
        rule: How neurons are divided, and where they are switched off.
        controls: Random sets per example and kind: as many neurons of every layer, drawn from
            the whole layer, whatever their kind.
        fwd_hooks: Interventions under which to measure all of it.
        batch_size: Examples per forward pass, each in all its languages.
        seed: Of the random sets.
        progress: Show a bar on stderr, in a terminal or a notebook.

    Returns:
        Log-probabilities and judgements of every example, language and kind. An open question is
        right if the likeliest vocabulary item is one with which the answer could begin, a question
        with options if the answer is likelier than each of the others.

    Raises:
        CorpusError: There are no answers, or no vocabulary item begins one; or the examples were
            tokenised for another model.
        OptionError: `controls` is negative, or an argument is of another kind.
        SiteError: A hook point does not exist, or comes after the last block.
        ModelError: The model's logits are not read this way.
        ActivationError: NaN or infinity.
    """
    if controls < 0:
        raise OptionError(f"controls must be at least 0, got {controls}")
    if not isinstance(examples, ParallelCorpora) or not isinstance(rule, PerExample):
        raise OptionError(
            "category_effect takes ParallelCorpora and a PerExample rule, got "
            f"{type(examples).__name__} and {type(rule).__name__}"
        )
    prepare(model, examples.by_language, fwd_hooks)
    judge = _judge(model, examples)
    passes = _Passes(model, rule, len(examples.languages), fwd_hooks)
    preflight(model, [passes.firing.site])
    kinds_and_draws = len(CATEGORIES) * (1 + controls)
    shape = (1 + kinds_and_draws, len(examples), len(examples.languages))
    scores = torch.zeros(shape, dtype=torch.float64)
    right = torch.zeros(shape, dtype=torch.bool)
    members = []
    bar = progress_bar(
        progress, total=examples.n_batches(batch_size), unit="batch", label="category_effect"
    )
    for batch in examples.batches(batch_size):
        numbers = batch.documents[:: shape[2]]
        places = [n * shape[2] + lang for n in numbers.tolist() for lang in range(shape[2])]
        kinds, resid = passes.kinds(batch)
        members.append(kinds.sum(-1).movedim(0, -1))
        # Drawn for each example by itself, so that batches and shares change nothing.
        random = torch.stack(
            [
                _random_masks(kinds[:, place], controls, seed=f"{seed} {examples.names[number]}")
                for place, number in enumerate(numbers.tolist())
            ],
            dim=2,
        )
        for case, off in enumerate([None, *kinds, *random.flatten(0, 1)]):
            resid = resid if off is None else passes.without(batch, off)
            found, hits = judge.scores(model, resid, places)
            scores[case, numbers] = found.view(-1, shape[2])
            right[case, numbers] = hits.view(-1, shape[2])
        bar.update()
    bar.close()
    counted = torch.cat(members)
    n_kinds = len(CATEGORIES)
    drawn = (n_kinds, controls, *shape[1:])
    return CategoryEffect(
        languages=examples.languages,
        names=examples.names,
        before=scores[0],
        before_correct=right[0],
        off=scores[1 : 1 + n_kinds],
        off_correct=right[1 : 1 + n_kinds],
        control=scores[1 + n_kinds :].view(drawn),
        control_correct=right[1 + n_kinds :].view(drawn),
        members=counted,
        n_neurons=int(counted[0, 0].sum()),
        provenance={
            "model": model_name(model),
            "weights": weights_digest(model),
            "examples": examples.describe(),
            "fwd_hooks": hooked_names(model, fwd_hooks),
            "rule": spec_options(rule),
            "seed": seed,
            "versions": versions(),
        },
    )


def _judge(model: HookedModel, examples: ParallelCorpora) -> Judge:
    """Every example in every language, example after example."""
    if examples.answers is None:
        raise CorpusError("These examples have no answers to score")
    if not examples.questions:
        return Judge.of_tokens(model, examples.answers.flatten())
    asked = [(each, lang) for each in examples.questions for lang in examples.languages]
    return Judge.of_questions(model, asked)


class _Passes:
    """Forward passes over examples, each in all its languages."""

    def __init__(
        self, model: HookedModel, rule: PerExample, n_langs: int, fwd_hooks: FwdHooks
    ) -> None:
        self.model, self.rule, self.n_langs = model, rule, n_langs
        self.fwd_hooks = list(fwd_hooks)
        self.firing = Firing.of(model, rule.space)
        self.last = n_layers(model) - 1

    def kinds(
        self, batch: TokenBatch
    ) -> tuple[Bool[Tensor, "category example layer neuron"], Float[Tensor, "row d_model"]]:
        """Divide the neurons of every example; the residual stream at the end comes along."""
        found: dict[int, Tensor] = {}
        site = self.firing.site

        def read(values: Tensor, hook: Any, layer: int) -> None:
            acts = self.firing.values(
                at_last_token(Reading(layer, {site: values}, batch.mask), site)
            )
            fires = (acts > self.rule.threshold).view(-1, self.n_langs, acts.shape[-1])
            found[layer] = categories(fires.transpose(0, 1)).cpu()

        readers = [(site.at(layer), partial(read, layer=layer)) for layer in range(self.last + 1)]
        resid = self._run(batch, [], readers)
        return torch.stack([found[layer] for layer in range(self.last + 1)], dim=2), resid

    def without(
        self, batch: TokenBatch, off: Bool[Tensor, "example layer neuron"]
    ) -> Float[Tensor, "row d_model"]:
        """Return the residual stream at the end with each example's own neurons off."""
        at = last_tokens(Reading(0, {}, batch.mask)) if self.rule.positions == "last" else None
        masks = off.repeat_interleave(self.n_langs, dim=0)
        return self._run(batch, ablate_rows(masks, at=at), [])

    def _run(
        self, batch: TokenBatch, more: FwdHooks, readers: Sequence[tuple[str, Any]]
    ) -> Float[Tensor, "row d_model"]:
        held: list[Tensor] = []

        def keep(resid: Tensor, hook: Any) -> None:
            held.append(
                at_last_token(Reading(self.last, {RESID_POST: resid}, batch.mask), RESID_POST)
            )

        run_until(
            self.model,
            batch.tokens,
            attention_mask=batch.attention_mask,
            fwd_hooks=[*self.fwd_hooks, *more],
            readers=[*readers, (RESID_POST.at(self.last), keep)],
        )
        return held[0]


def _random_masks(
    kinds: Bool[Tensor, "category layer neuron"], draws: int, *, seed: str
) -> Bool[Tensor, "category draw layer neuron"]:
    """As many neurons of every layer as each kind has, drawn from all of it.

    One random order of the neurons serves all kinds: each takes as many as it has from its front.
    """
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(number)
    order = torch.rand(draws, *kinds.shape[1:], generator=generator).argsort(-1)
    place = torch.arange(kinds.shape[-1]).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, place)
    return rank < kinds.sum(-1)[:, None, :, None]
