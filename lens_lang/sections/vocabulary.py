"""The section of which language the items of the vocabulary belong to."""

from lens_lang.sections.cells import Cell
from lens_lang.sections.section import Section
from lens_lang.vocabulary import OTHER, VocabularyLanguages


def vocabulary_section(name: str, vocabulary: VocabularyLanguages) -> Section:
    """How many items of the vocabulary belong to each language.

    Args:
        name: Of the file.
        vocabulary: The distributions.
    """
    labels = [*vocabulary.languages, OTHER]
    share = vocabulary.share.double()
    most = share.max(1)
    rows = []
    for column, label in enumerate(labels):
        mine = most.indices == column
        rows.append(
            [
                label,
                f"{int(mine.sum()):,}",
                Cell(
                    f"{100 * float(mine.double().mean()):.2f} %",
                    value=100 * float(mine.double().mean()),
                ),
                f"{int((mine & (most.values >= 0.9)).sum()):,}",
                f"{float(share[:, column].sum()):,.1f}",
            ]
        )
    return Section(
        title=f"Languages of the vocabulary ({name})",
        text=[
            f"{len(share):,} items, each divided among {len(vocabulary.languages)} languages and "
            f"{OTHER}: what belongs to none of them or to all."
        ],
        columns=["language", "items mostly of it", "of all", "of these above 0.9", "summed share"],
        rows=rows,
    )
