"""What answers lose without the neurons that all languages share, some share, one has, none uses.

Wang et al. (2024) divide neurons anew for every input, so they are switched off anew for every
input: those of one kind, in all translations of the example, beside as many random neurons of the
same layers. Scored is the answer's first token, as in `lens_lang.answer_scores`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from lens_lang.attribute.scores import check_tokens
from lens_lang.collection import weights_digest
from lens_lang.corpora import TokenBatch
from lens_lang.errors import ActivationError, CorpusError, OptionError, ShapeError
from lens_lang.evaluate.significance import mean_interval, prediction_interval
from lens_lang.languages import distinct_languages, find_language
from lens_lang.latent import start_items
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
from lens_lang.readout import read_logits
from lens_lang.rows import ablate_rows
from lens_lang.run_folder import spec_options
from lens_lang.saved import Saved
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
from lens_lang.spelling import spell_vocabulary
from lens_lang.stats import joined_provenance
from lens_lang.storage import versions

if TYPE_CHECKING:
    import pandas as pd

EVERY = "all"
"""Label of the mean over languages."""


@dataclass(frozen=True, eq=False)
class CategoryEffect(Saved):
    """Answers with the neurons of each kind switched off, beside random ones.

    Attributes:
        languages: Names of the axis ``lang``.
        names: The examples'.
        before: Log-probability of the answer, in nats, with nothing switched off.
        before_correct: Whether the answer was right.
        off: The same with the neurons of one kind off, in the order of
            `lens_lang.patterns.CATEGORIES`.
        off_correct: Whether the answer was right.
        control: The same with as many random neurons of every layer off.
        control_correct: Whether the answer was right.
        members: How many neurons of each layer are of each kind.
        n_neurons: Neurons of a layer.
        provenance: Model, examples and options, as JSON values.
    """

    languages: tuple[str, ...]
    names: tuple[str, ...]
    before: Float[Tensor, "example lang"]
    before_correct: Bool[Tensor, "example lang"]
    off: Float[Tensor, "category example lang"]
    off_correct: Bool[Tensor, "category example lang"]
    control: Float[Tensor, "category draw example lang"]
    control_correct: Bool[Tensor, "category draw example lang"]
    members: Int[Tensor, "example layer category"]
    n_neurons: int
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.names), len(distinct_languages(self.languages)))
        kinds, draws = len(CATEGORIES), self.control.shape[1]
        expected = {
            "before": shape,
            "before_correct": shape,
            "off": (kinds, *shape),
            "off_correct": (kinds, *shape),
            "control": (kinds, draws, *shape),
            "control_correct": (kinds, draws, *shape),
            "members": (shape[0], self.members.shape[1], kinds),
        }
        for name, wanted in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != wanted:
                raise ShapeError(f"{name} must be {wanted}, got {found}")

    @property
    def change(self) -> Float[Tensor, "category example lang"]:
        """Change of the answer's log-probability, in nats."""
        return self.off - self.before

    @property
    def control_change(self) -> Float[Tensor, "category draw example lang"]:
        """The same with random neurons off."""
        return self.control - self.before

    @property
    def member_share(self) -> Float[Tensor, "example category"]:
        """Share of all neurons that is of each kind."""
        return self.members.double().mean(1) / self.n_neurons

    @cached_property
    def accuracy(self) -> Float[Tensor, "lang"]:
        """Share of right answers, with nothing switched off."""
        return self.before_correct.double().mean(0)

    def __repr__(self) -> str:
        changes = ", ".join(
            f"{name} {change:+.2f}"
            for name, change in zip(CATEGORIES, self.change.mean((1, 2)).tolist(), strict=True)
        )
        return (
            f"CategoryEffect({len(self.names)} examples in {', '.join(self.languages)}; nats when "
            f"off: {changes})"
        )

    def summary(self, language: str | None = None) -> "pd.DataFrame":
        """Return what each kind's neurons do to the answers.

        Args:
            language: One language; None gives every language, then the mean over all, ``all``.

        Returns:
            One row per language and kind: ``neurons``, their share of all; ``accuracy_before``,
            ``accuracy``; ``delta``, the change of log-probability in nats, and
            ``delta_accuracy``, each with a 95 % interval by bootstrap over examples; ``control``
            and ``control_delta_accuracy``, the mean changes with random neurons off, with
            ``control_low`` and ``control_high``, where one more random draw would lie on the same
            examples (NaN for a single draw); ``beyond`` and ``beyond_accuracy``, the changes less
            the mean control's, paired, with their intervals.

        Raises:
            LanguageError: The language was not measured.
        """
        import pandas as pd

        chosen: list[tuple[str, list[int]]] = [
            (lang, [place]) for place, lang in enumerate(self.languages)
        ]
        if language is None:
            chosen.append((EVERY, list(range(len(self.languages)))))
        else:
            chosen = [chosen[find_language(language, self.languages)]]
        rows = []
        for label, places in chosen:
            for kind, category in enumerate(CATEGORIES):
                rows.append({"language": label, "category": category, **self._row(kind, places)})
        return pd.DataFrame(rows)

    def _row(self, kind: int, places: Sequence[int]) -> dict[str, float]:
        """One language, or several averaged example by example."""
        some = list(places)
        before = self.before_correct[:, some].double().mean(1)
        right = self.off_correct[kind][:, some].double().mean(1)
        change = self.change[kind][:, some].mean(1)
        row = {
            "neurons": float(self.member_share[:, kind].mean()),
            "accuracy_before": float(before.mean()),
            "accuracy": float(right.mean()),
            **_with_ends("delta", change),
            **_with_ends("delta_accuracy", right - before),
        }
        if self.control.shape[1]:
            draws = self.control_change[kind][..., some].mean(-1)
            control_right = self.control_correct[kind][..., some].double().mean(-1)
            no_more = torch.zeros((), dtype=torch.float64)  # on the same examples
            low, high = prediction_interval(draws.mean(1), no_more).tolist()
            row |= {
                "control": float(draws.mean()),
                "control_low": low,
                "control_high": high,
                "control_delta_accuracy": float((control_right - before).mean()),
                **_with_ends("beyond", change - draws.mean(0)),
                **_with_ends("beyond_accuracy", right - control_right.mean(0)),
            }
        return row

    def by_correctness(self) -> "pd.DataFrame":
        """Compare examples answered rightly with those answered wrongly.

        Returns:
            One row per language and kind: the kind's share of all neurons in examples that the
            language answers rightly, ``right``, and wrongly, ``wrong``, with their numbers; and
            ``difference`` with a 95 % interval by bootstrap within either group (NaN where one
            has fewer than two).
        """
        import pandas as pd

        rows = []
        for place, lang in enumerate(self.languages):
            hit = self.before_correct[:, place]
            for kind, category in enumerate(CATEGORIES):
                right, wrong = self.member_share[hit, kind], self.member_share[~hit, kind]
                low, high = _difference_interval(right, wrong)
                rows.append(
                    {
                        "language": lang,
                        "category": category,
                        "n_right": len(right),
                        "n_wrong": len(wrong),
                        "right": float(right.mean()),
                        "wrong": float(wrong.mean()),
                        "difference": float(right.mean() - wrong.mean()),
                        "ci_low": low,
                        "ci_high": high,
                    }
                )
        return pd.DataFrame(rows)

    def __add__(self, other: "CategoryEffect") -> "CategoryEffect":
        """Join what was measured on other examples in the same way."""
        if not isinstance(other, CategoryEffect):
            return NotImplemented
        for name, mine, theirs in (
            ("languages", self.languages, other.languages),
            ("number of neurons", self.n_neurons, other.n_neurons),
            ("number of controls", self.control.shape[1], other.control.shape[1]),
            ("rule", self.provenance.get("rule"), other.provenance.get("rule")),
        ):
            if mine != theirs:
                raise ShapeError(f"Cannot add effects that differ in {name}: {mine} and {theirs}")
        if set(self.names) & set(other.names):
            raise OptionError("An example is in both effects, and would count twice")
        axes = {"before": 0, "before_correct": 0, "members": 0, "off": 1, "off_correct": 1}
        both = {
            name: torch.cat([getattr(self, name), getattr(other, name)], dim=axes.get(name, 2))
            for name in _TENSORS
        }
        return CategoryEffect(
            languages=self.languages,
            names=(*self.names, *other.names),
            n_neurons=self.n_neurons,
            provenance=joined_provenance(self.provenance, other.provenance),
            **both,
        )


_TENSORS = (
    "before",
    "before_correct",
    "off",
    "off_correct",
    "control",
    "control_correct",
    "members",
)


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
        progress: Show a bar on stderr when that is a terminal.

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
    judge = _Judge.of(model, examples)
    measured = _Measured(model, rule, len(examples.languages), fwd_hooks)
    preflight(model, [measured.firing.site])
    before, off, control, members = [], [], [], []
    batches = tqdm(
        examples.batches(batch_size),
        total=examples.n_batches(batch_size),
        unit="batch",
        desc="category_effect",
        disable=None if progress else True,
    )
    for batch in batches:
        kinds, resid = measured.kinds(batch)
        before.append(judge.scores(model, resid, batch.documents))
        members.append(kinds.sum(-1).movedim(0, -1))
        # Drawn for each example by itself, so that batches and shares change nothing.
        numbers = batch.documents[:: len(examples.languages)].tolist()
        draws = torch.stack(
            [
                _random_masks(kinds[:, place], controls, seed=f"{seed} {examples.names[number]}")
                for place, number in enumerate(numbers)
            ],
            dim=2,
        )
        with_off = [
            judge.scores(model, measured.without(batch, kind), batch.documents) for kind in kinds
        ]
        with_random = [
            [judge.scores(model, measured.without(batch, draw), batch.documents) for draw in some]
            for some in draws
        ]
        off.append(with_off)
        control.append(with_random)
    n_langs = len(examples.languages)

    def joined(parts: Sequence[tuple[Tensor, Tensor]], which: int) -> Tensor:
        return torch.cat([part[which] for part in parts]).view(-1, n_langs)

    def joined_kinds(which: int) -> Tensor:
        return torch.stack(
            [joined([part[kind] for part in off], which) for kind in range(len(CATEGORIES))]
        )

    def joined_draws(which: int) -> Tensor:
        shape = (len(CATEGORIES), controls, len(examples), n_langs)
        draws = [
            joined([part[kind][draw] for part in control], which)
            for kind in range(len(CATEGORIES))
            for draw in range(controls)
        ]
        dtype = torch.bool if which else torch.float64
        return torch.stack(draws).view(shape) if draws else torch.zeros(shape, dtype=dtype)

    counted = torch.cat(members)
    return CategoryEffect(
        languages=examples.languages,
        names=examples.names,
        before=joined(before, 0),
        before_correct=joined(before, 1),
        off=joined_kinds(0),
        off_correct=joined_kinds(1),
        control=joined_draws(0),
        control_correct=joined_draws(1),
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


def sharing_and_accuracy(effects: Mapping[str, CategoryEffect]) -> "pd.DataFrame":
    """Set the share of all-shared neurons beside accuracy, over models or checkpoints.

    Args:
        effects: By the model's name, measured on the same examples.

    Returns:
        One row per model and language: ``all_shared``, the share of all neurons; ``accuracy``;
        ``log_probability`` of the answers.

    Raises:
        OptionError: There is no model.
        ShapeError: They were not measured on the same examples and languages.
    """
    import pandas as pd

    if not effects:
        raise OptionError("sharing_and_accuracy needs at least one model")
    first = next(iter(effects.values()))
    rows = []
    for name, effect in effects.items():
        # Not the tokens, which differ between models.
        mine, theirs = (
            (each.languages, each.names, each.provenance.get("rule")) for each in (effect, first)
        )
        if mine != theirs:
            raise ShapeError(
                f"{name!r} was measured on other examples, languages, or by another rule"
            )
        shared = float(effect.member_share[:, CATEGORIES.index("all_shared")].mean())
        for place, lang in enumerate(effect.languages):
            rows.append(
                {
                    "model": name,
                    "language": lang,
                    "all_shared": shared,
                    "accuracy": float(effect.accuracy[place]),
                    "log_probability": float(effect.before[:, place].mean()),
                }
            )
    return pd.DataFrame(rows)


class _Measured:
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

        resid = self._run(batch, [], [(site.at(n), _bound(read, n)) for n in range(self.last + 1)])
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
        places = last_tokens(Reading(0, {}, batch.mask))

        def keep(resid: Tensor, hook: Any) -> None:
            held.append(resid[torch.arange(len(resid)).to(resid.device), places.to(resid.device)])

        run_until(
            self.model,
            batch.tokens,
            attention_mask=batch.attention_mask,
            fwd_hooks=[*self.fwd_hooks, *more],
            readers=[*readers, (RESID_POST.at(self.last), keep)],
        )
        return held[0]


def _bound(read: Any, layer: int) -> Any:
    def hook_fn(values: Tensor, hook: Any) -> None:
        read(values, hook, layer)

    return hook_fn


@dataclass(frozen=True, eq=False)
class _Judge:
    """Which vocabulary items begin each answer, and each of the options."""

    answers: Sequence[Sequence[int]]
    options: Sequence[Sequence[Sequence[int]]]
    right: Sequence[int]
    n_langs: int

    @classmethod
    def of(cls, model: Any, examples: ParallelCorpora) -> "_Judge":
        """Look up the items of every example and language, example after example."""
        if examples.answers is None:
            raise CorpusError("These examples have no answers to score")
        langs = examples.languages
        if not examples.questions:
            check_tokens(examples.answers, model)
            tokens = [[token] for token in examples.answers.flatten().tolist()]
            return cls(tokens, [()] * len(tokens), [0] * len(tokens), len(langs))
        asked = [(each, lang) for each in examples.questions for lang in langs]
        words = {
            word
            for each, lang in asked
            for word in (each.answers[lang], *each.options.get(lang, ()))
        }
        starts = start_items(spell_vocabulary(model), words)
        answers, options, right = [], [], []
        for each, lang in asked:
            offered = each.options.get(lang, ())
            sets = [set(starts[word]) for word in offered]
            # An item that could begin two options says nothing of either.
            alone = [
                sorted(mine - set().union(*(s for s in sets if s is not mine))) for mine in sets
            ]
            place = offered.index(each.answers[lang]) if offered else 0
            answers.append(alone[place] if offered else list(starts[each.answers[lang]]))
            options.append(alone)
            right.append(place)
            for word, items in [
                (each.answers[lang], answers[-1]),
                *zip(offered, alone, strict=True),
            ]:
                if not items:
                    raise CorpusError(
                        f"No item of the vocabulary begins {word!r} alone ({each.name!r} in "
                        f"{lang!r}): leave the question out, or offer other options"
                    )
        return cls(answers, options, right, len(langs))

    def scores(
        self,
        model: HookedModel,
        resid: Float[Tensor, "row d_model"],
        examples: Int[Tensor, "row"],
    ) -> tuple[Float[Tensor, "row"], Bool[Tensor, "row"]]:
        """Return each answer's log-probability, and whether it is the one the model gives."""
        places = [
            example * self.n_langs + row % self.n_langs
            for row, example in enumerate(examples.tolist())
        ]
        # The answer first, then the options; padded, so that one gather reads them all.
        sets = [[self.answers[place], *self.options[place]] for place in places]
        many, longest = max(map(len, sets)), max(len(some) for row in sets for some in row)
        items = torch.full((len(sets), many, longest), -1)
        for row, each in enumerate(sets):
            for number, some in enumerate(each):
                items[row, number, : len(some)] = torch.tensor(list(some))
        with torch.inference_mode():
            logits = read_logits(model, resid)
            whole = logits.logsumexp(1).cpu().double()
            likeliest = logits.argmax(1).cpu()
            index = items.clamp(min=0).flatten(1).to(logits.device)
            read = logits.gather(1, index).cpu().double().view(items.shape)
        if not bool(torch.isfinite(whole).all()):
            raise ActivationError(f"{model_name(model)} gave NaN or infinite logits on an example")
        scores = read.masked_fill(items < 0, -torch.inf).logsumexp(-1)
        right = []
        for row, place in enumerate(places):
            if self.options[place]:
                offered = scores[row, 1 : len(self.options[place]) + 1].tolist()
                best = max(offered)
                # A tie, which half precision makes likely, is no answer.
                right.append(offered[self.right[place]] == best and offered.count(best) == 1)
            else:
                right.append(int(likeliest[row]) in self.answers[place])
        return scores[:, 0] - whole, torch.tensor(right)


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


def _with_ends(name: str, values: Float[Tensor, "example"]) -> dict[str, float]:
    low, high = mean_interval(values).tolist()
    return {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}


def _difference_interval(
    right: Float[Tensor, "n"], wrong: Float[Tensor, "m"], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a difference of means, either group drawn again within itself."""
    if len(right) < 2 or len(wrong) < 2:
        return float("nan"), float("nan")
    generator = torch.Generator().manual_seed(seed)
    means = [
        group[torch.randint(len(group), (resamples, len(group)), generator=generator)].mean(1)
        for group in (right, wrong)
    ]
    ends = torch.quantile(means[0] - means[1], torch.tensor([0.025, 0.975], dtype=torch.float64))
    low, high = ends.tolist()
    return low, high
