"""The section of the neurons that a method found."""

import torch

from lens_lang.neurons import LanguageNeurons
from lens_lang.plot import neurons as neuron_figures
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
                f"{100 * len(some) / total:.3f} %",
                f"{len(alone):,}",
                "" if busiest is None else f"layer {busiest} ({int(per_layer[busiest]):,})",
                ""
                if nearest is None
                else f"{nearest} {others[nearest]:,.0f} (by chance "
                f"{expected.loc[lang].to_numpy()[list(expected).index(nearest)]:.1f})",
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
        title=f"Neurons found by {neurons.provenance.get('method', name)}",
        text=[
            f"{len(union):,} distinct neurons of {total:,}{where}"
            + (f": {shared}." if shared else ".")
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
