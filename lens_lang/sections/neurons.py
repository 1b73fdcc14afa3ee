"""The section of the neurons that a method found."""

from collections.abc import Mapping
from typing import Any

import torch

from lens_lang.neurons import LanguageNeurons
from lens_lang.plot import neurons as neuron_figures
from lens_lang.sections.cells import Cell
from lens_lang.sections.section import Section


def neurons_section(name: str, neurons: LanguageNeurons) -> Section:
    """How many neurons each language has, where, and what they share."""
    union = neurons.union()
    total = sum(mask.numel() for mask in union.masks.values())
    counts, expected = neurons.overlap("count"), neurons.overlap("expected")
    rows = []
    for lang, some in neurons.items():
        alone = some
        for other, theirs in neurons.items():
            alone = alone if other == lang else alone - theirs
        per_layer = torch.stack([some.per_layer(site) for site in neurons.sites]).sum(0)
        busiest = int(per_layer.argmax()) if len(some) else None
        others = counts.loc[lang].drop(lang)
        nearest = str(others.idxmax()) if len(others) and others.max() > 0 else None
        rows.append(
            [
                lang,
                f"{len(some):,}",
                Cell(f"{100 * len(some) / total:.3f} %", value=100 * len(some) / total),
                f"{len(alone):,}",
                ""
                if busiest is None
                else Cell(f"layer {busiest} ({int(per_layer[busiest]):,})", order=busiest),
                ""
                if nearest is None
                else Cell(
                    f"{nearest} {others[nearest]:,.0f} (by chance "
                    f"{expected.loc[lang].to_numpy()[list(expected).index(nearest)]:.1f})",
                    order=float(others.to_numpy().max()),
                ),
                *(
                    [f"{int(some.masks[site].sum()):,}" for site in neurons.sites]
                    if len(neurons.sites) > 1
                    else []
                ),
            ]
        )
    shared = ", ".join(
        f"{count:,} serve {n} language{'' if n == 1 else 's'}"
        for n, count in neurons.membership().items()
        if count
    )
    where = f" at {neurons.sites[0].name}"
    if len(neurons.sites) > 1:
        found = (f"{int(m.sum()):,} of {m.numel():,} at {s.name}" for s, m in union.masks.items())
        where = f" ({', '.join(found)})"
    figures = [
        *([neuron_figures.depth_profile(neurons)] if len(neurons.sites) > 1 else []),
        *(neuron_figures.neurons_per_layer(neurons, site=site) for site in neurons.sites),
        neuron_figures.overlap(neurons),
    ]
    return Section(
        title=_title(name, neurons.provenance),
        text=[
            f"{len(union):,} distinct neurons of {total:,}{where}"
            + (f": {shared}." if shared else "."),
            *_method(neurons.provenance),
            _terms(len(neurons.union().per_layer(neurons.sites[0]))),
        ],
        columns=[
            "language",
            "neurons",
            "of all",
            "of no other language",
            "most in",
            "most in common with",
            *([site.name for site in neurons.sites] if len(neurons.sites) > 1 else []),
        ],
        rows=rows,
        figures=[figure.to_json() for figure in figures],
    )


def _title(name: str, record: Mapping[str, Any]) -> str:
    match record.get("method", name):
        case "lape" | "lave" | "lap" | "plnd" as method:
            return f"Neurons found by {method.upper()}"
        case "random":
            return "Neurons drawn at random"
        case "read from file":
            return f"Neurons read from a file ({name})"
        case method:
            return f"Neurons found by {method}"


def _terms(layers: int) -> str:
    """What the table and the maps call things."""
    return (
        "Of no other language: neurons that no other language here has. In common by chance: what "
        "as many neurons drawn at random would share. Jaccard: what two languages have in common, "
        "over what either has. A layer is a block of the model, 0 to "
        f"{layers - 1}; where layers of a curve are shown, layer n is after n blocks."
    )


def _method(record: Mapping[str, Any]) -> list[str]:
    """What a method takes for a language's neurons, and what of it was chosen."""
    options = record.get("options") or {}
    match record.get("method"):
        case "lape" | "lave" as method:
            firing = "firing is" if method == "lape" else "activation is"
            top, bound = options.get("top"), options.get("max_entropy")
            if bound is not None:
                return [
                    f"{method.upper()} takes the neurons whose {firing} most concentrated on few "
                    f"languages, up to an entropy of {bound:g} nats; how many there are follows "
                    "from that choice, and is no finding."
                ]
            if top is not None:
                return [
                    f"{method.upper()} takes the {100 * top:g} % of neurons whose {firing} most "
                    "concentrated on few languages, and gives each to those languages; how many "
                    f"there are is a choice (top {top:g}), not a finding."
                ]
        case "plnd":
            share = float(options.get("min_share", 1.0))
            often = "every one" if share == 1 else f"at least {100 * share:g} %"
            return [
                "PLND takes the neurons whose removal changes much what the model computes in "
                f"{often} of a language's documents; what is much is a choice (see below), and "
                "many languages can have the same neuron."
            ]
        case "lap":
            share = 100 * float(options.get("threshold", 0.95))
            return [
                f"LAP takes the neurons that fire on more than {share:g} % of a language's tokens, "
                "whether or not they fire as often on those of others."
            ]
        case "random":
            return ["These neurons were drawn at random, to compare others with."]
    return []
