"""The sections of neurons that languages share: their number, their part, their effect."""

from lens_lang.attribute.categories import CategoryContributions
from lens_lang.detect.sharing import sharing
from lens_lang.evaluate.categories import EVERY, CategoryEffect
from lens_lang.evaluate.significance import mean_interval
from lens_lang.patterns import CATEGORIES, SharingPatterns
from lens_lang.plot import categories as figures
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
                    share_with_interval(values.mean(), ends[kind]),
                    f"{float(values.min()):.2f} to {float(values.max()):.2f}",
                    f"{100 * float(found.consistent[:, kind].mean()):.2f} %",
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
            "over examples with 95 % intervals."
        ],
        columns=["kind", "threshold", "share", "over examples", "the same in every example"],
        rows=rows,
        figures=drawn,
    )


_PLACES = {"last": "the last token", "mean": "its tokens, on average,", "any": "any token"}


def contributions_section(name: str, contributions: CategoryContributions) -> Section:
    """How much the neurons of each kind write at the last token."""
    table = contributions.summary()
    rows = []
    for category, part in table.groupby("category", sort=False):
        cells = [_LABELS[str(category)]]
        for key in ("neurons", "contribution", "top"):
            cells.append(f"{part[key].mean():.3f}")
            if key != "neurons":  # the same in every language
                by_language = part.set_index("language")[key].sort_values()
                (least, low), *_, (most, high) = by_language.items()
                cells[-1] += f" ({least} {low:.3f} to {most} {high:.3f})"
        rows.append([*cells, f"{part['lift'].mean():.2f}" if part["neurons"].any() else ""])
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
            f"{100 * row['neurons']:.1f} %",
            f"{row['accuracy_before']:.2f}",
            f"{row['accuracy']:.2f}",
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
            f"many neurons of every layer, {effect.control.shape[1]} draws an example, with where "
            "one more would lie. Other intervals are 95 %, by bootstrap over examples. p: of the "
            f"{'change less random' if measured else 'change'}, by a sign-flip test over examples, "
            "corrected over the kinds (Holm). Means over languages; the figure has each."
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
