"""The section of the scores that single neurons got."""

from lens_lang.attribute.scores import NeuronScores
from lens_lang.sections.section import Section

_EACH = 10
"""Neurons of a language that are shown."""


def scores_section(name: str, scores: NeuronScores) -> Section:
    """The neurons of highest mean score over the prompts of each language.

    Args:
        name: Of the file.
        scores: The measurement.
    """
    prompts, layers, width = scores.values.shape
    rows = []
    for lang in dict.fromkeys(scores.languages):
        mine = scores.values[[own == lang for own in scores.languages]].double()
        mean = mine.mean(0).flatten()
        best = mean.topk(min(_EACH, mean.numel()))
        for rank, (value, place) in enumerate(
            zip(best.values.tolist(), best.indices.tolist(), strict=True), 1
        ):
            layer, neuron = divmod(place, width)
            low, high = mine[:, layer, neuron].min().item(), mine[:, layer, neuron].max().item()
            rows.append(
                [
                    lang,
                    str(rank),
                    f"{layer}.{neuron}",
                    f"{value:.4g}",
                    f"{low:.4g} to {high:.4g}",
                    f"{mean.mean().item():.4g}",
                ]
            )
    method = scores.provenance.get("method", "scores")
    return Section(
        title=f"Neurons of highest score ({name})",
        text=[
            f"{method} of {prompts:,} prompt{'' if prompts == 1 else 's'}, {layers} layers of "
            f"{width:,} neurons at {scores.site.name}. For each language of the prompts, the "
            "neurons (layer.number) of highest mean score."
        ],
        columns=["prompts in", "rank", "neuron", "mean score", "over prompts", "mean of all"],
        rows=rows,
    )
