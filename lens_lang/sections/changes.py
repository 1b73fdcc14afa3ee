"""The section of a change of the model's weights."""

from lens_lang.delta import Delta
from lens_lang.sections.section import Section


def delta_section(name: str, delta: Delta) -> Section:
    """Which entries of which weights were changed, and by how much.

    Args:
        name: Of the file.
        delta: The change.
    """
    rows = []
    for weight, change in delta.changes.items():
        before, after = change.before.double(), change.after.double()
        moved = float((after - before).norm())
        size = float(before.norm())
        rows.append(
            [
                weight,
                f"{len(change.indices):,}",
                f"{before.numel():,}",
                f"{moved:.3g}",
                f"{100 * moved / size:.3g} %" if size else "",
            ]
        )
    return Section(
        title=f"Changed weights ({name})",
        text=[
            f"{delta.n_entries:,} entries of {len(delta.changes)} weights were changed; all others "
            "are as they were. The length of the change, and what it is of the length of these "
            "entries before."
        ],
        columns=["weight", "neurons", "entries", "length of the change", "of the entries"],
        rows=rows,
    )
