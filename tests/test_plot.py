"""Figures show the numbers of their result, under the result's own labels, in its order."""

import sys
from typing import Any

import plotly.graph_objects as go
import pytest
import torch

from lens_lang import plot
from lens_lang.errors import MissingExtraError, SiteError
from lens_lang.evaluate.perplexity import DocumentNLL, PerplexityMatrix
from lens_lang.neurons import LanguageNeurons, NeuronSet
from lens_lang.sites import ATTN_Q, MLP_POST, MLP_PRE

LANGUAGES = ("zh", "en", "fr")  # neither sorted nor by size


def neurons_of(chosen: dict[str, list[list[int]]], shape: tuple[int, int] = (3, 6)) -> Any:
    return LanguageNeurons(
        {
            lang: NeuronSet.from_indices(
                torch.tensor(indices, dtype=torch.int64).view(-1, 2), site=MLP_POST, shape=shape
            )
            for lang, indices in chosen.items()
        }
    )


@pytest.fixture
def neurons() -> LanguageNeurons:
    return neurons_of({"zh": [[0, 1], [0, 2], [2, 5]], "en": [[0, 2]], "fr": [[0, 2], [2, 5]]})


def matrix_of(
    changes: dict[str, dict[str, float]],
    *,
    languages: tuple[str, ...] = LANGUAGES,
    controls: dict[str, dict[str, list[float]]] | None = None,
) -> PerplexityMatrix:
    """A matrix with exactly these changes in nats per token; controls not named were not run."""
    n_controls = max((len(d) for row in (controls or {}).values() for d in row.values()), default=0)
    n_tokens = torch.tensor([10, 30])
    documents = {}
    for lang in languages:
        rates = [2.0, *(2.0 + change[lang] for change in changes.values())]
        for name in changes if controls else ():
            drawn = (controls or {}).get(name, {}).get(lang, [float("nan")] * n_controls)
            rates += [2.0 + value for value in drawn]
        nll = torch.tensor(rates, dtype=torch.float64)[:, None] * n_tokens
        documents[lang] = DocumentNLL(nll, n_tokens, torch.tensor([20, 60]))
    return PerplexityMatrix(tuple(changes), languages, documents, n_controls)


CHANGES = {
    "zh": {"zh": 1.5, "en": -0.25, "fr": 0.0},
    "en": {"zh": 0.1, "en": 0.5, "fr": 0.2},
    "fr": {"zh": 0.0, "en": 0.25, "fr": 1.0},
}
OWN_CONTROLS = {"zh": {"zh": [0.1, 0.3]}, "en": {"en": [-0.1, 0.0]}, "fr": {"fr": [0.05, 0.05]}}


def cells(figure: go.Figure) -> Any:
    (trace,) = figure.data
    return trace


def texts(figure: go.Figure) -> list[list[str]]:
    return [list(row) for row in cells(figure).text]


def test_neurons_per_layer_shows_every_count_and_the_distinct_ones_below(
    neurons: LanguageNeurons,
) -> None:
    figure = plot.neurons_per_layer(neurons)
    assert isinstance(figure, go.Figure)
    assert list(cells(figure).y) == [*LANGUAGES, "any"]
    assert list(cells(figure).x) == ["0", "1", "2"]
    assert texts(figure) == [["2", "", "1"], ["1", "", ""], ["1", "", "1"], ["2", "", "1"]]
    assert figure.layout.title.text == "Neurons per layer at mlp_post"
    assert figure.layout.yaxis.autorange == "reversed"  # the first language is on top


def test_more_neurons_are_never_lighter(neurons: LanguageNeurons) -> None:
    trace = cells(plot.neurons_per_layer(neurons))
    for shades, counts in zip(trace.z, trace.text, strict=True):
        numbers = [int(n or 0) for n in counts]
        assert [s * s for s in shades] == pytest.approx(numbers)


def test_neurons_per_layer_can_look_at_another_site() -> None:
    two = LanguageNeurons(
        {
            "en": NeuronSet(
                {
                    MLP_POST: torch.zeros(2, 3, dtype=torch.bool),
                    ATTN_Q: torch.tensor([[True, True], [False, True]]),
                }
            )
        }
    )
    figure = plot.neurons_per_layer(two, site=ATTN_Q)
    assert texts(figure) == [["2", "1"], ["2", "1"]]
    assert "attn_q" in figure.layout.title.text
    with pytest.raises(SiteError, match="not at mlp_pre"):
        plot.neurons_per_layer(two, site=MLP_PRE)


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        ("count", [["", "1", "2"], ["1", "", "1"], ["2", "1", ""]]),
        ("jaccard", [["", "0.33", "0.67"], ["0.33", "", "0.50"], ["0.67", "0.50", ""]]),
        ("containment", [["", "1.00", "1.00"], ["0.33", "", "0.50"], ["0.67", "1.00", ""]]),
    ],
)
def test_overlap_shows_every_pair_but_no_language_with_itself(
    neurons: LanguageNeurons, measure: Any, expected: list[list[str]]
) -> None:
    figure = plot.overlap(neurons, measure=measure)
    assert isinstance(figure, go.Figure)
    assert list(cells(figure).x) == list(cells(figure).y) == list(LANGUAGES)
    assert texts(figure) == expected
    shades = cells(figure).z
    assert [shades[i][i] for i in range(3)] == [0.0, 0.0, 0.0]


def test_hovering_over_an_overlap_tells_what_chance_would_give(neurons: LanguageNeurons) -> None:
    details = cells(plot.overlap(neurons)).customdata
    # 3 and 2 of 18 neurons: 3 * 2 / 18 in common by chance
    assert details[0][2] == "zh and fr: 2 in common, 0.33 by chance"


def test_the_overlap_with_a_language_without_neurons_stays_blank_or_zero() -> None:
    empty = neurons_of({"en": [[0, 1]], "fr": [], "de": []})
    assert texts(plot.overlap(empty)) == [["", "0.00", "0.00"], ["0.00", "", ""], ["0.00", "", ""]]


def test_the_perplexity_map_shows_every_change_with_its_sign() -> None:
    figure = plot.perplexity_matrix(matrix_of(CHANGES))
    assert isinstance(figure, go.Figure)
    assert list(cells(figure).y) == list(CHANGES)
    assert list(cells(figure).x) == list(LANGUAGES)
    assert texts(figure) == [
        ["+1.50", "-0.25", "0.00"],
        ["+0.10", "+0.50", "+0.20"],
        ["0.00", "+0.25", "+1.00"],
    ]
    shades = torch.tensor([list(row) for row in cells(figure).z])
    torch.testing.assert_close(shades, matrix_of(CHANGES).delta_nll.float())


@pytest.mark.parametrize("sign", [1, -1])
def test_the_perplexity_maps_colours_are_centred_at_zero(sign: int) -> None:
    changes = {
        name: {lang: sign * value for lang, value in row.items()} for name, row in CHANGES.items()
    }
    trace = cells(plot.perplexity_matrix(matrix_of(changes)))
    assert trace.zmax == -trace.zmin == pytest.approx(1.5)
    # blue below, red above: the first colour has more blue than red, the last more red than blue
    below, above = (
        [int(part) for part in trace.colorscale[end][1][4:-1].split(",")] for end in (0, -1)
    )
    assert below[2] > below[0]
    assert above[0] > above[2]


def test_a_map_without_any_change_still_has_a_colour_scale() -> None:
    nothing = {"zh": dict.fromkeys(LANGUAGES, 0.0)}
    trace = cells(plot.perplexity_matrix(matrix_of(nothing)))
    assert (trace.zmin, trace.zmax) == (-1.0, 1.0)


def test_hovering_over_the_perplexity_map_gives_the_interval() -> None:
    hover = cells(plot.perplexity_matrix(matrix_of(CHANGES))).customdata
    # every document changes by the same rate, so the interval is a point
    assert hover[0][0] == "zh neurons changed, zh read: +1.500 nats/token [+1.500, +1.500]"


def test_the_control_row_is_there_only_with_controls() -> None:
    without = plot.perplexity_matrix(matrix_of(CHANGES))
    assert "random control" not in cells(without).y
    figure = plot.perplexity_matrix(matrix_of(CHANGES, controls=OWN_CONTROLS))
    assert list(cells(figure).y) == [*CHANGES, "random control"]
    # each language under the controls of its own intervention
    assert texts(figure)[-1] == ["+0.20", "-0.05", "+0.05"]
    assert cells(figure).customdata[-1][0].startswith("2 random sets as large as zh, zh read: +0.2")


def test_a_language_without_neurons_of_its_own_shows_the_mean_of_all_controls() -> None:
    changes = {"zh": CHANGES["zh"], "en": CHANGES["en"]}
    everywhere = {
        "zh": {"zh": [0.2], "en": [0.0], "fr": [0.4]},
        "en": {"zh": [9.0], "en": [0.1], "fr": [0.2]},
    }
    figure = plot.perplexity_matrix(matrix_of(changes, controls=everywhere))
    assert texts(figure)[-1] == ["+0.20", "+0.10", "+0.30"]
    assert "as large as the others" in cells(figure).customdata[-1][2]


def test_a_language_without_any_control_leaves_its_cell_blank_and_the_colours_alone() -> None:
    changes = {"zh": CHANGES["zh"], "en": CHANGES["en"]}
    own = {"zh": {"zh": [0.2]}, "en": {"en": [0.1]}}  # control_on="own", and fr has no neurons
    figure = plot.perplexity_matrix(matrix_of(changes, controls=own))
    assert texts(figure)[-1] == ["+0.20", "+0.10", ""]
    assert cells(figure).zmax == -cells(figure).zmin == pytest.approx(1.5)


def test_figures_have_no_background_of_their_own_and_labels_are_no_numbers(
    neurons: LanguageNeurons,
) -> None:
    figures = [
        plot.neurons_per_layer(neurons),
        plot.overlap(neurons),
        plot.perplexity_matrix(matrix_of(CHANGES)),
    ]
    for figure in figures:
        assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
        assert figure.layout.xaxis.type == figure.layout.yaxis.type == "category"
        assert figure.layout.xaxis.title.text
        assert figure.layout.yaxis.title.text


def test_drawing_changes_neither_the_result_nor_another_figure(neurons: LanguageNeurons) -> None:
    matrix = matrix_of(CHANGES)
    before = matrix.delta_nll.clone()
    first = plot.perplexity_matrix(matrix).to_json()
    plot.overlap(neurons, measure="count")
    assert plot.perplexity_matrix(matrix).to_json() == first
    assert torch.equal(matrix.delta_nll, before)


@pytest.mark.parametrize("name", ["neurons_per_layer", "overlap", "perplexity_matrix"])
def test_without_plotly_one_sentence_names_the_pip_command(
    name: str, neurons: LanguageNeurons, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m.split(".")[0] == "plotly"]:
        monkeypatch.setitem(sys.modules, module, None)
    result = matrix_of(CHANGES) if name == "perplexity_matrix" else neurons
    with pytest.raises(MissingExtraError, match=r"figure needs .*pip install 'lens-lang\[plot\]'"):
        getattr(plot, name)(result)


def test_the_depth_profile_shows_each_structures_share_of_its_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    widths = {MLP_POST: 40, ATTN_Q: 16}
    sets = {
        lang: NeuronSet(
            {site: torch.rand(3, n, generator=generator) < 0.3 for site, n in widths.items()}
        )
        for lang in LANGUAGES
    }
    figure = plot.depth_profile(LanguageNeurons(sets))
    assert [line.name for line in figure.data] == ["mlp_post", "attn_q"]
    for line, site in zip(figure.data, widths, strict=True):
        counts = torch.stack([some.per_layer(site) for some in sets.values()])
        expected = 100 * counts.double().mean(0) / widths[site]
        assert list(line.y) == pytest.approx(expected.tolist())
        assert list(line.x) == [0, 1, 2]
        lowest = LANGUAGES[int(counts[:, 1].argmin())]
        assert f"fewest: {lowest} {int(counts[:, 1].min())}" in line.customdata[1]
        assert f"of {widths[site]} neurons on average" in line.customdata[1]
    assert figure.layout.xaxis.title.text == "layer"
    assert figure.layout.yaxis.title.text == "% of the layer's neurons"
    assert len({line.line.color for line in figure.data}) == 2
    assert len({line.marker.symbol for line in figure.data}) == 2  # not by colour alone


def test_one_document_has_no_interval_to_hover_over() -> None:
    """Nor has a control of one document."""
    documents = {
        lang: DocumentNLL(torch.tensor([[20.0], [25.0], [21.0], [20.5]]).double(), one, one)
        for lang, one in (("en", torch.tensor([10])), ("fr", torch.tensor([10])))
    }
    matrix = PerplexityMatrix(("en",), ("en", "fr"), documents, 2)
    said = [note for row in cells(plot.perplexity_matrix(matrix)).customdata for note in row]
    assert said[0] == "en neurons changed, en read: +0.500 nats/token"
    assert not any("nan" in note for note in said)
