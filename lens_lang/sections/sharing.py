"""The sections of neurons that languages share: their number, their part, their effect."""

from lens_lang.attribute.categories import CategoryContributions
from lens_lang.detect.sharing import sharing
from lens_lang.evaluate.categories import EVERY, CategoryEffect
from lens_lang.evaluate.significance import mean_interval
from lens_lang.patterns import CATEGORIES, SharingPatterns
from lens_lang.plot import categories as figures
from lens_lang.sections.cells import Cell
from lens_lang.sections.section import Section, change_with_interval, p_value, share_with_interval

_LABELS = {category: category.replace("_", "-") for category in CATEGORIES}


def sharing_section(name: str, patterns: SharingPatterns) -> Section:
    """How many neurons fire in all, some, one or no language of an example."""
    rows: list[list[str]] = []
    drawn: list[str] = []
    for threshold in patterns.thresholds:
        found = sharing(patterns, threshold=threshold)
        share = found.members.double().mean(1) / found.n_neurons
        ends = mean_interval(share.T)
        for kind, label in enumerate(_LABELS.values()):
            values = share[:, kind]
            rows.append(
                [
                    label,
                    f"{threshold:g}",
                    share_with_interval(values.mean(), ends[kind], percent=True),
                    _span(float(values.min()), float(values.max())),
                    _percent(float(found.consistent[:, kind].mean()), places=2),
                ]
            )
        if not drawn:
            drawn.append(figures.sharing(found).to_json())
    return Section(
        title=f"Neurons shared by languages ({name})",
        text=[
            f"{patterns.n_examples} examples in {', '.join(patterns.languages)}. A neuron fires "
            f"where its activation at {_PLACES[patterns.position]} is above the threshold: in all "
            "languages of an example, in some, in one, or in none. Shares of all neurons, means "
            "over examples with 95 % intervals. The dark part of a bar is the neurons that are of "
            "this kind in every example."
        ],
        columns=["kind", "threshold", "share", "over examples", "the same in every example"],
        rows=rows,
        figures=drawn,
    )


def _percent(share: float, *, places: int = 1) -> str:
    return Cell(f"{100 * share:.{places}f} %", value=100 * share)


def _span(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"


_PLACES = {"last": "the last token", "mean": "its tokens, on average,", "any": "any token"}


def contributions_section(name: str, contributions: CategoryContributions) -> Section:
    """How much the neurons of each kind write at the last token."""
    table = contributions.summary()
    rows = []
    for category, part in table.groupby("category", sort=False):
        cells = [_LABELS[str(category)]]
        for key in ("neurons", "contribution", "top"):
            mean = float(part[key].mean())
            cells.append(_percent(mean))
            if key != "neurons":  # the same in every language
                by_language = part.set_index("language")[key].sort_values()
                (least, low), *_, (most, high) = by_language.items()
                ends = f" ({least} {100 * low:.1f} to {most} {100 * high:.1f})"
                cells[-1] = Cell(cells[-1] + ends, value=100 * mean)
        lift = float(part["lift"].mean())
        rows.append([*cells, Cell(f"{lift:.2f}", value=lift) if part["neurons"].any() else ""])
    return Section(
        title=f"What neurons of each kind contribute ({name})",
        text=[
            f"{len(contributions.names)} examples. A neuron contributes the length of what it "
            "writes into the residual stream at the last token. Of all neurons, of the summed "
            f"contribution, and of the {contributions.top_count} neurons of each layer that "
            "contribute most: the share of each kind, means over examples and languages, with the "
            "languages where it is least and most. Lift is the last over the first."
        ],
        columns=["kind", "of all neurons", "of the contribution", "of the top", "lift"],
        rows=rows,
        figures=[figures.category_contributions(contributions).to_json()],
    )


def category_effect_section(name: str, effect: CategoryEffect) -> Section:
    """What answers lose without the neurons of each kind."""
    table = effect.summary()
    measured = effect.control.shape[1] > 0
    rows = []
    for _, row in table[table["language"] == EVERY].iterrows():
        cells = [
            _LABELS[row["category"]],
            _percent(row["neurons"]),
            _percent(row["accuracy_before"]),
            _percent(row["accuracy"]),
            change_with_interval(row["delta"], row["delta_low"], row["delta_high"]),
        ]
        if measured:
            cells += [
                change_with_interval(row["control"], row["control_low"], row["control_high"]),
                change_with_interval(row["beyond"], row["beyond_low"], row["beyond_high"]),
            ]
        rows.append([*cells, p_value(row["p_holm"])])
    return Section(
        title=f"Effect of switching off each kind ({name})",
        text=[
            f"{len(effect.names)} examples in {', '.join(effect.languages)}. The neurons of one "
            "kind are switched off, other ones for every example, and the answer's first token is "
            "scored: its log-probability in nats, and whether it is the model's answer. Random: as "
            f"many neurons of every layer, {effect.control.shape[1]} draws an example, with a "
            "95 % interval for one more random draw. Other intervals are 95 %, by bootstrap over "
            "examples. p: of the "
            f"{'change less random' if measured else 'change'}, by a sign-flip test over examples, "
            "corrected over the kinds (Holm). Means over languages; the figure has each.",
            "Right less wrong answers, the last figure: of the examples that the model answers "
            "rightly in a language, the share of neurons that all languages have in common, less "
            "that share in the examples that it answers wrongly. Above 0, right answers go with "
            "more all-shared neurons. Intervals are 95 %.",
        ],
        columns=[
            "kind",
            "of all neurons",
            "right before",
            "right after",
            "change",
            *(["random", "change less random"] if measured else []),
            "p (Holm)",
        ],
        rows=rows,
        figures=[
            figures.category_effect(effect).to_json(),
            figures.shared_and_right(effect).to_json(),
        ],
    )
