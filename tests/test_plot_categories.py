"""Figures of shared neurons show the numbers of their result."""

from typing import Any

import pytest
import torch
from test_categories import planted

from lens_lang import plot
from lens_lang.attribute.categories import CategoryContributions
from lens_lang.detect.sharing import Sharing, sharing
from lens_lang.errors import LanguageError, OptionError
from lens_lang.patterns import SharingPatterns

LABELS = ["all-shared", "partial-shared", "specific", "non-activated"]


@pytest.fixture
def found() -> Sharing:
    acts = torch.randn(6, 3, 4, 50, generator=torch.Generator().manual_seed(0))
    acts[:, :, :, :5] = 1.0
    return sharing(SharingPatterns.from_activations(acts, ("en", "fr", "de")))


@pytest.fixture
def contributions() -> CategoryContributions:
    generator = torch.Generator().manual_seed(0)
    members = torch.full((5, 3, 4), 10)
    return CategoryContributions(
        ("en", "fr"),
        tuple("abcde"),
        torch.rand(5, 2, 3, 4, 4, generator=generator).double(),
        torch.randn(5, 2, 3, 4, 4, generator=generator).double(),
        torch.randint(0, 9, (5, 2, 3, 4), generator=generator),
        members,
        9,
        40,
    )


def test_shares_are_stacked_to_all_neurons(found: Sharing) -> None:
    figure = plot.sharing(found)
    assert figure.layout.barmode == "stack"
    assert [bar.name for bar in figure.data if bar.showlegend] == LABELS
    heights = torch.tensor([list(bar.y) for bar in figure.data])
    assert heights.sum(0).tolist() == pytest.approx([100.0] * 4)
    always = torch.tensor([list(bar.y) for bar in figure.data if not bar.showlegend])
    assert always.T.flatten().tolist() == pytest.approx((100 * found.consistent).flatten().tolist())
    assert "in every example" in figure.data[0].customdata[0]
    assert figure.data[0].marker.color == figure.data[1].marker.color


def test_contributions_are_a_map_of_kinds_and_layers(
    contributions: CategoryContributions,
) -> None:
    figure = plot.category_contributions(contributions)
    assert list(figure.data[0].y) == LABELS
    shares = 100 * contributions.top.double().mean(0) / 9
    for kind in range(4):
        assert figure.data[0].z[kind] == pytest.approx(shares[:, :, kind].mean(0).tolist())
    assert f"fr {float(shares[1, 2, 1]):.3g}" in figure.data[0].customdata[1][2]
    one = plot.category_contributions(contributions, statistic="max", language="French")
    assert one.data[0].z[2] == pytest.approx(contributions.contribution.mean(0)[1, :, 2, 2])
    signed = plot.category_contributions(contributions, statistic="effective min")
    assert signed.data[0].zmin == -signed.data[0].zmax


def test_what_cannot_be_drawn_is_refused(contributions: CategoryContributions) -> None:
    import dataclasses

    for wrong in ("median", "effective top", "other sum"):
        with pytest.raises(OptionError, match="statistic must be"):
            plot.category_contributions(contributions, statistic=wrong)
    with pytest.raises(OptionError, match="no answers"):
        plot.category_contributions(
            dataclasses.replace(contributions, effective=None), statistic="effective sum"
        )
    with pytest.raises(LanguageError):
        plot.category_contributions(contributions, language="zh")


def traces(figure: Any, name: str) -> list[Any]:
    return [trace for trace in figure.data if trace.name == name]


def test_effects_stand_beside_chance_with_their_intervals() -> None:
    effect = planted()
    figure = plot.category_effect(effect)
    assert [note.text for note in figure.layout.annotations] == LABELS
    table = effect.summary()
    for kind, category in enumerate(table["category"].unique()):
        rows = table[table["category"] == category]
        off = traces(figure, "these neurons off")[kind]
        random = traces(figure, "as many random ones")[kind]
        assert list(off.x) == ["en", "fr", "all"]
        assert list(off.y) == pytest.approx(rows["delta"].tolist())
        ends = (rows["control_high"] - rows["control"]).tolist()
        assert list(random.error_y.array) == pytest.approx(ends)
    empty = torch.zeros(4, 0, 10, 2)
    bare = plot.category_effect(planted(control=empty.double(), control_correct=empty.bool()))
    assert not traces(bare, "as many random ones")


def test_right_less_wrong_is_drawn_in_points() -> None:
    figure = plot.shared_and_right(planted())
    assert list(figure.data[0].x) == ["en (6/10)", "fr (3/10)"]
    rows = planted().by_correctness().query("category == 'all_shared'")
    assert list(figure.data[0].y) == pytest.approx((100 * rows["difference"]).tolist())
