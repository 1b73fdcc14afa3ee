"""What one neuron's absence does to each language, as a row of a perplexity matrix."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lens_lang.errors import OptionError, ShapeError, near_misses
from lens_lang.evaluate.perplexity import PerplexityMatrix
from lens_lang.fingerprint import weights_digest
from lens_lang.intervene import ablate
from lens_lang.single_neurons import neuron_set
from lens_lang.sites import HookedModel, model_name


@dataclass(frozen=True)
class LanguageEffect:
    """What one language loses without one neuron, beside random neurons of the same layer.

    Attributes:
        language: The language that was read.
        delta_nll: Change in nats per token: above 0, the language is hurt.
        ci_low: Lower end of its 95 % interval, by paired bootstrap over documents; None where
            there is only one document.
        ci_high: Upper end.
        control: Mean change without a random neuron of the layer; None where none was measured.
        control_low: Lower end of where one more random neuron would lie, with 95 % probability;
            None for fewer than two, or only one document.
        control_high: Upper end.
        controls: How many random neurons were measured.
        tokens: Tokens scored.
    """

    language: str
    delta_nll: float
    ci_low: float | None
    ci_high: float | None
    control: float | None
    control_low: float | None
    control_high: float | None
    controls: int
    tokens: int


def neuron_effect(
    model: HookedModel, neuron: tuple[int, int], matrix: PerplexityMatrix
) -> tuple[LanguageEffect, ...]:
    """Return the row of a perplexity matrix that is named after a neuron.

    Args:
        model: The model.
        neuron: Its layer and index. The row is called ``"12.1542"`` for (12, 1542).
        matrix: The measurement; many neurons can share one.

    Returns:
        One per language of the matrix.

    Raises:
        OptionError: There is no such row, or it was not this neuron alone that was switched off.
    """
    layer, index = neuron
    name = f"{layer}.{index}"
    if name not in matrix.interventions:
        raise OptionError(
            f"The effect has no row for neuron {name}{near_misses(name, matrix.interventions)}"
        )
    if matrix.provenance:
        done = matrix.provenance.get("interventions", {}).get(name)
        alone = [f"{hook}: {fn!r}" for hook, fn in ablate(neuron_set(model, [neuron]))]
        if done is None or list(done) != alone:
            said = "not recorded" if done is None else "; ".join(done) or "no intervention"
            raise OptionError(
                f"The row {name} of the effect must be ablate() of that neuron alone, and it is "
                f"{said}: measure {{{name!r}: ablate(neuron_set(model, [{name!r}]))}}"
            )
    row = matrix.interventions.index(name)
    delta, ci = matrix.delta_nll[row].tolist(), matrix.ci[row].tolist()
    control = matrix.control[row].tolist() if matrix.n_controls else [math.nan] * len(delta)
    ends = matrix.control_ci[row].tolist() if matrix.n_controls else [[math.nan] * 2] * len(delta)
    found = []
    for place, lang in enumerate(matrix.languages):
        documents = matrix.documents[lang]
        low, high, control_low, control_high = map(_measured, (*ci[place], *ends[place]))
        found.append(
            LanguageEffect(
                lang,
                delta[place],
                low,
                high,
                _measured(control[place]),
                control_low,
                control_high,
                0 if math.isnan(control[place]) else matrix.n_controls,
                int(documents.n_tokens.sum()),
            )
        )
    return tuple(found)


def check_measured_on(
    model: HookedModel, provenance: Mapping[str, Any], what: str, *, weights: str | None = None
) -> None:
    """Refuse what says that it was measured on another model, whatever its size.

    Args:
        model: The model.
        provenance: Of the measurement, or of what was chosen by one.
        what: What was measured, for the message.
        weights: The model's digest, if it is known; else it is read.

    Raises:
        ShapeError: It was measured on a model of another name, or of other weights.
    """
    measured = other_model(model, provenance, weights=weights)
    if measured is not None:
        raise ShapeError(
            f"The {what} of {measured} cannot be shown on a card of {model_name(model)}: measure "
            "on the model that the neuron is of"
        )


def other_model(
    model: HookedModel, provenance: Mapping[str, Any], *, weights: str | None = None
) -> str | None:
    """Name the model that something was measured on, if it is another one.

    Args:
        model: The model.
        provenance: Of the measurement, or of what was chosen by one.
        weights: The model's digest, if it is known; else it is read.

    Returns:
        The other model; None if it is this one, or none is recorded.
    """
    # What a detector returns remembers the statistic that it decided by.
    record = provenance if "model" in provenance else provenance.get("statistic")
    if not isinstance(record, Mapping) or "model" not in record:
        return None
    measured, digest = str(record["model"]), record.get("weights")
    if measured != model_name(model):
        return measured
    if digest is None or digest == (weights or weights_digest(model)):
        return None
    return f"{measured} with other weights"


def _measured(value: float) -> float | None:
    return value if math.isfinite(value) else None
