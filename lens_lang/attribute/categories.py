"""How much the neurons of each kind contribute: shared by all languages, by some, by none.

Wang et al. (2024), section 3: of the neurons that write most at the last token of a prompt, how
many are all-shared? One pass over the examples gives firing and contribution of every neuron; what
is kept are sums over the neurons of each kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_lang.attention import widened
from lens_lang.attribute.writing import TokenVector, Writing, check_writing, token_vectors
from lens_lang.errors import OptionError, ShapeError
from lens_lang.evaluate.significance import mean_interval
from lens_lang.languages import distinct_languages
from lens_lang.patterns import (
    CATEGORIES,
    Firing,
    FiringSpace,
    at_last_token,
    categories,
    one_level,
)
from lens_lang.saved import Saved
from lens_lang.sites import MLP_POST, HookedModel
from lens_lang.specs import Examples, Reading, Sums
from lens_lang.stats import joined_provenance

if TYPE_CHECKING:
    import pandas as pd

STATISTICS = ("sum", "mean", "max", "min")
"""What is kept of the scores of each kind's neurons; 0 where there are none."""


@dataclass(frozen=True, eq=False)
class CategoryContributions(Saved):
    """For each example, language and layer: what the neurons of each kind contribute.

    Attributes:
        languages: Names of the axis ``lang``.
        names: The examples'.
        contribution: Contribution scores: sum, mean, max and min over the neurons of a kind.
        effective: The same of effective scores for the answer; None where there were no answers.
        top: How many of the `top_count` neurons of highest contribution are of each kind.
        members: How many neurons of a layer are of each kind.
        top_count: Neurons of highest contribution that are looked at, in each layer.
        n_neurons: Neurons of a layer.
        provenance: Model, examples and versions, as JSON values.
    """

    languages: tuple[str, ...]
    names: tuple[str, ...]
    contribution: Float[Tensor, "example lang layer statistic category"]
    effective: Float[Tensor, "example lang layer statistic category"] | None
    top: Int[Tensor, "example lang layer category"]
    members: Int[Tensor, "example layer category"]
    top_count: int
    n_neurons: int
    provenance: Mapping[str, Any] = field(default_factory=dict)

    _same: ClassVar[tuple[str, ...]] = ("languages", "top_count", "n_neurons")

    def __post_init__(self) -> None:
        distinct_languages(self.languages)
        shape = (len(self.names), len(self.languages))
        layers = self.contribution.shape[2]
        expected = {
            "contribution": (*shape, layers, len(STATISTICS), len(CATEGORIES)),
            "top": (*shape, layers, len(CATEGORIES)),
            "members": (shape[0], layers, len(CATEGORIES)),
        }
        if self.effective is not None:
            expected["effective"] = expected["contribution"]
        for name, wanted in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != wanted:
                raise ShapeError(f"{name} must be {wanted}, got {found}")

    @property
    def share(self) -> Float[Tensor, "example lang category"]:
        """Share of the summed contribution, over all layers, that each kind has."""
        whole = self.contribution[..., STATISTICS.index("sum"), :].sum(2)
        return whole / whole.sum(-1, keepdim=True)

    @property
    def top_share(self) -> Float[Tensor, "example lang category"]:
        """Share of the neurons of highest contribution of all layers that is of each kind."""
        return self.top.double().mean(2) / self.top_count

    @property
    def member_share(self) -> Float[Tensor, "example category"]:
        """Share of all neurons that is of each kind."""
        return self.members.double().mean(1) / self.n_neurons

    def __add__(self, other: "CategoryContributions") -> "CategoryContributions":
        """Join what was measured on other examples in the same way."""
        if not isinstance(other, CategoryContributions):
            return NotImplemented
        for name in self._same:
            if getattr(self, name) != getattr(other, name):
                raise ShapeError(f"Cannot add contributions that differ in {name}")
        if set(self.names) & set(other.names):
            raise OptionError("An example is in both, and would count twice")
        if (self.effective is None) != (other.effective is None):
            raise ShapeError("Cannot add contributions with and without effective scores")
        both = {
            name: torch.cat([getattr(self, name), getattr(other, name)])
            for name in ("contribution", "top", "members")
        }
        effective = None
        if self.effective is not None and other.effective is not None:
            effective = torch.cat([self.effective, other.effective])
        return CategoryContributions(
            self.languages,
            (*self.names, *other.names),
            both["contribution"],
            effective,
            both["top"],
            both["members"],
            self.top_count,
            self.n_neurons,
            joined_provenance(self.provenance, other.provenance),
        )

    def __repr__(self) -> str:
        shares = ", ".join(
            f"{name} {100 * share:.1f} %"
            for name, share in zip(CATEGORIES, self.share.mean((0, 1)).tolist(), strict=True)
        )
        return f"CategoryContributions({len(self.names)} examples; of the contribution: {shares})"

    def summary(self) -> "pd.DataFrame":
        """Return one row per language and kind.

        Returns:
            ``neurons``: share of all neurons; ``contribution``: share of the summed contribution;
            ``top``: share of the neurons of highest contribution in their layer. Each with a 95 %
            interval by bootstrap over examples. ``lift``: ``top`` over ``neurons``, above 1 where
            a kind is among the highest more often than its number alone would have it.
        """
        import pandas as pd

        parts = {
            "neurons": self.member_share[:, None].expand(-1, len(self.languages), -1),
            "contribution": self.share,
            "top": self.top_share,
        }
        means = {name: values.mean(0) for name, values in parts.items()}
        ends = {name: mean_interval(values.movedim(0, -1)) for name, values in parts.items()}
        rows = []
        for place, lang in enumerate(self.languages):
            for kind, category in enumerate(CATEGORIES):
                row: dict[str, Any] = {"language": lang, "category": category}
                for name in parts:
                    row[name] = float(means[name][place, kind])
                    row[f"{name}_low"], row[f"{name}_high"] = ends[name][place, kind].tolist()
                row["lift"] = row["top"] / row["neurons"] if row["neurons"] else float("nan")
                rows.append(row)
        return pd.DataFrame(rows)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per language, layer and kind: means over examples of every statistic."""
        import pandas as pd

        scores = {"contribution": self.contribution.mean(0)}
        if self.effective is not None:
            scores["effective"] = self.effective.mean(0)
        members = self.members.double().mean(0) / self.n_neurons
        top = self.top.double().mean(0) / self.top_count
        rows = []
        for place, lang in enumerate(self.languages):
            for layer in range(members.shape[0]):
                for kind, category in enumerate(CATEGORIES):
                    row = {
                        "language": lang,
                        "layer": layer,
                        "category": category,
                        "neurons": float(members[layer, kind]),
                        "top": float(top[place, layer, kind]),
                    }
                    for name, values in scores.items():
                        for number, statistic in enumerate(STATISTICS):
                            row[f"{name}_{statistic}"] = float(values[place, layer, number, kind])
                    rows.append(row)
        return pd.DataFrame(rows)


@dataclass(frozen=True)
class CategoryContribution:
    """Sum, for `collect_parallel`, what the neurons of each kind contribute.

    Attributes:
        top: Neurons of highest contribution to look at in each layer: a share, or a number above
            1. Wang et al. (2024) take 800 of 16,384.
        threshold: A neuron fires where its activation is above this, strictly.
        space: See `SharingPattern`.
        vector: What stands for the answer's token in effective scores; see `effective_score`.
    """

    top: float | int = 800 / 16384
    threshold: float | int = 0.0
    space: FiringSpace = "gate"
    vector: TokenVector = "unembedding"

    def __post_init__(self) -> None:
        one_level(self.threshold)
        if (
            not isinstance(self.top, int | float)
            or not self.top > 0
            or (self.top > 1 and self.top != int(self.top))
        ):
            raise OptionError(f"top must be a share up to 1, or a whole number, got {self.top!r}")
        if self.space not in ("gate", "product"):
            raise OptionError(f"space must be gate or product, got {self.space!r}")
        if self.vector not in ("unembedding", "embedding"):
            raise OptionError(f"vector must be unembedding or embedding, got {self.vector!r}")

    def bind_examples(self, model: HookedModel, examples: Examples) -> "_BoundContribution":
        """Fit the spec to a model, and prove that its neurons add up to what its MLPs add."""
        return _BoundContribution(self, model, examples)


class _BoundContribution:
    def __init__(self, spec: CategoryContribution, model: HookedModel, examples: Examples) -> None:
        self.spec, self.examples = spec, examples
        self.layers: list[Writing] = check_writing(model)
        self.firing = Firing.of(model, spec.space)
        self.sites = tuple(dict.fromkeys((self.firing.site, *self.layers[0].sites)))
        self.width = len(self.layers[0].matrix)
        self.count = round(spec.top * self.width) if spec.top <= 1 else int(spec.top)
        if not 1 <= self.count <= self.width:
            raise OptionError(f"top asks for {self.count} of {self.width} neurons of a layer")
        self.vectors = None
        if examples.answers:
            flat = torch.tensor(examples.answers).flatten()
            self.vectors = token_vectors(model, flat, vector=spec.vector)

    def update(self, sums: Sums, reading: Reading) -> None:
        """Add one layer of a batch."""
        n_langs = len(self.examples.languages)
        assert reading.documents is not None  # `collect_parallel` says which example a row is
        numbers = reading.documents[::n_langs]
        read = {site: at_last_token(reading, site) for site in self.sites}
        each = self.layers[reading.layer]
        fires = self.firing.values(read[self.firing.site]) > self.spec.threshold
        kinds = categories(fires.view(len(numbers), n_langs, -1).transpose(0, 1))
        m = widened(read[MLP_POST])
        lengths = m.abs() * each.lengths / each.divisor(read)
        best = lengths.topk(self.count, dim=1).indices
        high = torch.zeros_like(fires).scatter_(1, best, True).view(len(numbers), n_langs, -1)
        found = {
            "contribution": _statistics(lengths.view(len(numbers), n_langs, -1), kinds),
            "top": (high[:, :, None] & kinds.movedim(0, 1)[:, None]).sum(-1),
            "members": kinds.sum(-1).T,
        }
        if self.vectors is not None:
            rows = (numbers[:, None] * n_langs + torch.arange(n_langs)).flatten()
            reads = each.read_by(self.vectors[rows.to(self.vectors.device)])
            scores = m * reads / each.divisor(read)
            found["effective"] = _statistics(scores.view(len(numbers), n_langs, -1), kinds)
        for name, values in found.items():
            whole = values.new_zeros(len(self.examples.names), *values.shape[1:])
            whole[numbers.to(values.device)] = values
            sums.add(name, reading.layer, whole)

    def result(self, sums: Mapping[str, Tensor]) -> CategoryContributions:
        """Make the result; layers come first in the sums."""
        return CategoryContributions(
            self.examples.languages,
            self.examples.names,
            sums["contribution"].movedim(0, 2),
            sums["effective"].movedim(0, 2) if "effective" in sums else None,
            sums["top"].movedim(0, 2),
            sums["members"].movedim(0, 1),
            self.count,
            self.width,
        )


def _statistics(
    scores: Float[Tensor, "example lang neuron"], kinds: Bool[Tensor, "category example neuron"]
) -> Float[Tensor, "example lang statistic category"]:
    """Sum, mean, max and min over the neurons of each kind; 0 where there are none."""
    found = []
    for kind in kinds:
        mask = kind[:, None]
        some = mask.sum(-1)
        total = (scores * mask).sum(-1)
        most = scores.masked_fill(~mask, -torch.inf).amax(-1)
        least = scores.masked_fill(~mask, torch.inf).amin(-1)
        values = torch.stack([total, total / some.clamp(min=1), most, least], dim=-1)
        found.append(values.masked_fill((some == 0)[..., None], 0.0))
    return torch.stack(found, dim=-1)
