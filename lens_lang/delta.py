"""A change of a few entries of a model's weights: small, named, and exactly reversible."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_lang.errors import ModelError, ShapeError, StorageError
from lens_lang.sites import HookedModel, model_name
from lens_lang.storage import read_tensors, versions, write_tensors
from lens_lang.weights import find_weight


@dataclass(frozen=True, eq=False)
class WeightChange:
    """What some entries of one weight were, and what they became.

    Attributes:
        axis: Which axis of the weight numbers the neurons.
        indices: The neurons.
        before: Their entries before the change, in the weight's own dtype.
        after: Their entries after it.
    """

    axis: int
    indices: Int[Tensor, "chosen"]
    before: Float[Tensor, "*entries"]
    after: Float[Tensor, "*entries"]

    def __post_init__(self) -> None:
        if self.before.shape != self.after.shape or self.before.dtype != self.after.dtype:
            raise ShapeError("The entries before and after a change differ in shape or dtype")


@dataclass(frozen=True, eq=False)
class Delta:
    """The changed entries of a model's weights, by the weight's name.

    Attributes:
        changes: For each weight, as TransformerLens spells it, what changed.
        provenance: How it came to be, as JSON values.
    """

    changes: Mapping[str, WeightChange]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "changes", MappingProxyType(dict(self.changes)))

    @property
    def n_entries(self) -> int:
        """Number of changed entries."""
        return sum(change.before.numel() for change in self.changes.values())

    def apply(self, model: HookedModel) -> None:
        """Write the change into a model's weights.

        Raises:
            ModelError: The entries are not what they were before the change: another model, or
                the change is in it already. Nothing is written then.
        """
        self._write(model, "before", "after")

    def remove(self, model: HookedModel) -> None:
        """Take the change out again; every entry gets back the bits that it had.

        Raises:
            ModelError: The entries are not what they were after the change. Nothing is written
                then.
        """
        self._write(model, "after", "before")

    def _write(self, model: HookedModel, expected: str, wanted: str) -> None:
        found = {name: find_weight(model, name).detach() for name in self.changes}
        for name, change in self.changes.items():
            weight, values = found[name], getattr(change, expected)
            indices = change.indices.to(weight.device)
            fits = weight.ndim > change.axis and len(indices) <= weight.shape[change.axis]
            fits = fits and int(change.indices.max()) < weight.shape[change.axis]
            if not fits or not torch.equal(
                weight.index_select(change.axis, indices), values.to(weight)
            ):
                raise ModelError(
                    f"The entries of {name} in {model_name(model)} are not those {expected} this "
                    "change: it belongs to another model, or is "
                    + ("in it already" if wanted == "after" else "not in it")
                )
        for name, change in self.changes.items():
            weight = found[name]
            weight.index_copy_(
                change.axis,
                change.indices.to(weight.device),
                getattr(change, wanted).to(weight),
            )

    def __repr__(self) -> str:
        return f"Delta({self.n_entries:,} entries of {len(self.changes)} weights)"

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file.

        Raises:
            StorageError: The file cannot be written.
        """
        tensors, axes = {}, {}
        for position, (name, change) in enumerate(self.changes.items()):
            axes[name] = change.axis
            tensors[f"{position}.indices"] = change.indices
            tensors[f"{position}.before"] = change.before
            tensors[f"{position}.after"] = change.after
        header = {"axes": axes, "provenance": {**self.provenance, "saved_with": versions()}}
        write_tensors(path, type(self).__name__, header, tensors)

    @classmethod
    def load(cls, path: str | Path) -> "Delta":
        """Read what `save` wrote.

        Raises:
            StorageError: The file is missing, damaged, or holds something else.
        """
        _, header, tensors = read_tensors(path, cls.__name__)
        try:
            changes = {
                str(name): WeightChange(
                    int(axis),
                    tensors[f"{position}.indices"],
                    tensors[f"{position}.before"],
                    tensors[f"{position}.after"],
                )
                for position, (name, axis) in enumerate(header["axes"].items())
            }
            provenance = dict(header["provenance"])
        except (KeyError, TypeError, ValueError, AttributeError, ShapeError) as error:
            raise StorageError(f"{path} is damaged: {error}") from error
        provenance.pop("saved_with", None)
        return cls(changes, provenance)
