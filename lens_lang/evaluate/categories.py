"""What answers lose without the neurons that all languages share, some share, one has, none uses.

`lens_lang.category_effect` measures it; here is what came out, and how it is summed up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_lang.errors import OptionError, ShapeError
from lens_lang.evaluate.significance import (
    holm,
    mean_interval,
    prediction_interval,
    sign_flip_test,
)
from lens_lang.languages import distinct_languages, find_language
from lens_lang.patterns import (
    CATEGORIES,
)
from lens_lang.saved import Saved
from lens_lang.stats import joined_provenance

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
            the mean control's, paired, with their intervals. ``p``: how likely ``beyond`` (or
            ``delta``, with no random neurons) is so far from 0 if it had either sign as easily
            in every example, by a sign-flip test; ``p_holm``: corrected by Holm's method over
            the languages measured, and for ``all`` over the kinds.

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
            at = -1 if label == EVERY else places[0]
            for kind, category in enumerate(CATEGORIES):
                row = {"language": label, "category": category, **self._row(kind, places)}
                p, p_holm = self._p_values[kind, at].tolist()
                rows.append({**row, "p": p, "p_holm": p_holm})
        return pd.DataFrame(rows)

    @cached_property
    def _p_values(self) -> Float[Tensor, "category label 2"]:
        """The p and corrected p of every language, then of their mean.

        A language's correction counts the other languages also where the table shows only one.
        """
        beyond = self.change
        if self.control.shape[1]:
            beyond = beyond - self.control_change.mean(1)
        beyond = torch.cat([beyond, beyond.mean(-1, keepdim=True)], dim=-1)
        p = sign_flip_test(beyond.movedim(1, -1))
        corrected = torch.stack([holm(row) for row in p[:, :-1]])
        corrected = torch.cat([corrected, holm(p[:, -1])[:, None]], dim=1)
        return torch.stack([p, corrected], dim=-1)

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
