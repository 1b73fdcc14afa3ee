"""Figures of layers show the numbers of their result, panel by panel."""

from typing import Any

import pytest
import torch

from lens_lang import plot
from lens_lang.curves import LanguageCurve
from lens_lang.errors import LanguageError, OptionError
from lens_lang.heads import HeadAttention
from lens_lang.latent import LatentLanguages
from lens_lang.lens import LensTable
from lens_lang.plot.style import NO_LANGUAGE

LABELS = ("en", "fr", "other")
SHOWN = ("en", "fr", "no language")


def random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).double()


@pytest.fixture
def curve() -> LanguageCurve:
    values = random(5, 4, 3)
    return LanguageCurve(
        ("en", "fr"), ("en", "en", "fr", "fr", "fr"), values / values.sum(-1, keepdim=True)
    )


def lines(figure: Any) -> list[Any]:
    return [trace for trace in figure.data if trace.mode == "lines" and trace.name]


def bands(figure: Any) -> list[Any]:
    return [trace for trace in figure.data if trace.fill == "toself"]


def test_a_curve_has_a_panel_per_prompt_language_and_a_line_per_label(curve: LanguageCurve) -> None:
    figure = plot.language_curve(curve)
    assert [note.text for note in figure.layout.annotations] == ["prompts in en", "prompts in fr"]
    found = lines(figure)
    assert [trace.name for trace in found] == [*SHOWN, *SHOWN]
    assert [trace.xaxis for trace in found] == ["x"] * 3 + ["x2"] * 3
    assert [trace.showlegend for trace in found] == [True] * 3 + [False] * 3
    for number, trace in enumerate(found):
        group, column = divmod(number, 3)
        assert list(trace.y) == pytest.approx(curve.mean[group, :, column].tolist())
        low, high = curve.ci[group, :, column].T.tolist()
        assert list(bands(figure)[number].y) == pytest.approx([*high, *reversed(low)])
    colours = {trace.name: trace.line.color for trace in found}
    assert len(set(colours.values())) == 3
    assert colours["no language"] == NO_LANGUAGE
    assert "share" in str(figure.layout.yaxis.title.text)


def test_a_difference_is_called_one(curve: LanguageCurve) -> None:
    figure = plot.language_curve(curve - curve)
    assert str(figure.layout.title.text).startswith("Change of the language")
    assert figure.layout.yaxis.title.text == "change"


def test_a_map_shows_the_prompts_asked_for(curve: LanguageCurve) -> None:
    (trace,) = plot.layer_languages(curve, prompts="French").data
    assert list(trace.y) == list(SHOWN)
    assert torch.allclose(torch.tensor(trace.z).double(), curve.mean[1].T)
    assert trace.text[0][0] == f"{100 * float(curve.mean[1, 0, 0]):.0f}"
    (first,) = plot.layer_languages(curve).data
    assert torch.allclose(torch.tensor(first.z).double(), curve.mean[0].T)
    with pytest.raises(LanguageError, match="'zh'"):
        plot.layer_languages(curve, prompts="zh")


def test_others_are_not_taken_for_other(curve: LanguageCurve) -> None:
    names = [trace.name for trace in lines(plot.language_curve(curve.story()))]
    assert names[:4] == ["en", "own", "other languages", "no language"]


def test_a_map_says_where_its_colours_stop(curve: LanguageCurve) -> None:
    values = torch.tensor([0.1, 0.2, 0.7]).double().expand(2, 3, 3)
    capped = plot.layer_languages(LanguageCurve(("en", "fr"), ("fr", "fr"), values))
    assert capped.layout.meta["note"].startswith("Colours stop at 20 %")
    values = torch.tensor([0.7, 0.2, 0.1]).double().expand(2, 3, 3)
    whole = plot.layer_languages(LanguageCurve(("en", "fr"), ("fr", "fr"), values))
    assert whole.layout.meta is None


def test_a_map_of_changes_is_centred_at_none(curve: LanguageCurve) -> None:
    other = LanguageCurve(curve.languages, curve.prompt_languages, curve.values.flip(0))
    (trace,) = plot.layer_languages(curve - other).data
    assert trace.zmin == -trace.zmax < 0
    figure = plot.layer_languages(curve - other)
    assert str(figure.layout.title.text).startswith("Change of the language")


def test_many_languages_fit_into_panels() -> None:
    names = tuple(f"l{n}" for n in range(40))
    figure = plot.language_curve(LanguageCurve(("en",), names, random(40, 3, 2)))
    assert len(figure.layout.annotations) == 40


@pytest.fixture
def table() -> LensTable:
    share = torch.zeros(3, 2, 3)
    share[..., 2] = 0.2
    share[0, :, 0] = share[1, :, 1] = share[2, 0, 1] = share[2, 1, 0] = 0.8
    return LensTable(
        pieces=("<bos>", "▁chat"),
        languages=("en", "fr"),
        top=torch.zeros(3, 2, 2, dtype=torch.int64),
        probability=torch.tensor([0.5, 0.25]).expand(3, 2, 2),
        top_text=(
            (("a", "x"), ("b", "x")),
            (("c", "x"), ("a very long word", "second")),
            (("\n", "x"), ("f", "x")),
        ),
        top_label=torch.tensor([[0, 0], [1, 1], [1, 0]])[..., None].expand(3, 2, 2),
        share=share,
    )


def test_a_table_has_the_last_layer_on_top_and_languages_as_colours(table: LensTable) -> None:
    (trace,) = plot.lens_table(table).data
    assert list(trace.y) == ["2", "1", "0"]
    assert list(trace.x) == ["0: <bos>", "1: ▁chat"]
    assert [list(row) for row in trace.text] == [["⏎", "f"], ["c", "a very l…"], ["a", "b"]]
    assert [list(row) for row in trace.z] == [[1.5, 0.5], [1.5, 1.5], [0.5, 0.5]]
    assert (trace.zmin, trace.zmax) == (0, 3)
    assert list(trace.colorbar.ticktext) == list(LABELS)
    edges = [edge for edge, _ in trace.colorscale]
    assert edges == sorted(edges)
    assert trace.customdata[1][1].startswith(
        "layer 1, after '▁chat':<br>'a very long word' 0.50, 'second' 0.25<br>fr 0.80, other 0.20"
    )


def test_tokens_coloured_by_language_are_a_circuitsvis_view(table: LensTable) -> None:
    html = str(plot.token_languages(table, layer=-1))
    for word in ("chat", "en", "fr", "other", "ColoredTokensMulti"):
        assert word in html
    with pytest.raises(OptionError, match="layer must be below 3, got 3"):
        plot.token_languages(table, layer=3)


def test_latent_languages_have_three_panels() -> None:
    latent = LatentLanguages(("zh", "en"), random(6, 4, 2), random(6, 4) * 10, random(6, 4))
    figure = plot.latent_language(latent)
    found = lines(figure)
    assert [trace.name for trace in found] == ["zh", "en", "entropy", "energy"]
    assert [trace.xaxis for trace in found] == ["x", "x", "x2", "x3"]
    assert list(found[1].y) == pytest.approx(latent.mean[:, 1].tolist())
    assert list(found[2].y) == pytest.approx(latent.entropy.mean(0).tolist())
    assert list(found[3].y) == pytest.approx(latent.energy.mean(0).tolist())
    assert "6 prompts" in str(figure.layout.title.text)


def test_heads_by_layers() -> None:
    attention = HeadAttention(
        ("en", "fr"), ("first", "entropy"), random(2, 2, 3, 4), torch.tensor([5, 8])
    )
    (trace,) = plot.head_attention(attention, measure="first", language="fr").data
    assert torch.allclose(torch.tensor(trace.z).double(), attention["first"][1].T)
    figure = plot.head_attention(attention)
    assert torch.allclose(torch.tensor(figure.data[0].z).double(), attention["entropy"].mean(0).T)
    assert "bits" in str(figure.layout.title.text)
