"""The report is one file that needs no network, says everything, and runs nobody's script."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from elements import Elements
from plotly.offline import get_plotlyjs
from test_categories import planted
from test_plot_generation import answered
from test_plot_tasks import OFF, solved, story

from lens_lang.attribute.categories import CategoryContributions
from lens_lang.contexts import NeuronContexts
from lens_lang.curves import LanguageCurve
from lens_lang.detect.sharing import sharing
from lens_lang.errors import MissingExtraError, StorageError
from lens_lang.evaluate.generation import GenerationMatrix
from lens_lang.evaluate.perplexity import DocumentNLL, PerplexityMatrix
from lens_lang.evaluate.story import MWork
from lens_lang.evaluate.task_scores import TaskMatrix
from lens_lang.heads import HeadAttention
from lens_lang.importance import Importance
from lens_lang.latent import LatentLanguages
from lens_lang.neurons import LanguageNeurons, NeuronSet
from lens_lang.page import read_results, report, write_page
from lens_lang.patterns import SharingPatterns
from lens_lang.plot.views import page_script
from lens_lang.sections.effect import why_not
from lens_lang.sections.neurons import neurons_section
from lens_lang.sections.section import share_with_interval
from lens_lang.sites import ATTN_K, ATTN_Q, MLP_POST
from lens_lang.stats import Frequency
from lens_lang.storage import write_tensors

LAYERS, WIDTH = 4, 50
LANGUAGES = ("en", "fr", "zh")


def some_neurons(counts: dict[str, int], **provenance: Any) -> LanguageNeurons:
    """The first language has the first neurons, the next the following ones."""
    sets, first = {}, 0
    for lang, n in counts.items():
        mask = torch.zeros(LAYERS * WIDTH, dtype=torch.bool)
        mask[first : first + n] = True
        sets[lang] = NeuronSet({MLP_POST: mask.view(LAYERS, WIDTH)})
        first += n
    return LanguageNeurons(sets, {"method": "lape", **provenance})


def some_frequency(languages: tuple[str, ...], **provenance: Any) -> Frequency:
    count = torch.arange(len(languages) * LAYERS * WIDTH).view(-1, LAYERS, WIDTH)
    n_tokens = torch.arange(len(languages)) + 12_345
    return Frequency(languages, count, n_tokens, provenance=provenance)


def some_matrix(
    languages: tuple[str, ...], *, controls: int = 2, **provenance: Any
) -> PerplexityMatrix:
    """Every language loses 1 nat without its own neurons, 0.1 without others', 0 at random."""
    n_tokens = torch.tensor([10, 20, 30])
    documents = {}
    for lang in languages:
        rates = [3.0, *(4.0 if name == lang else 3.1 for name in languages)]
        rates += [3.0] * (len(languages) * controls)
        nll = torch.tensor(rates, dtype=torch.float64)[:, None] * n_tokens
        documents[lang] = DocumentNLL(nll, n_tokens.clone(), 4 * n_tokens)
    return PerplexityMatrix(languages, languages, documents, controls, provenance)


def fill(folder: Path, languages: tuple[str, ...] = LANGUAGES, **provenance: Any) -> Path:
    some_frequency(languages, **provenance).save(folder / "frequency.safetensors")
    counts = {lang: 30 + n for n, lang in enumerate(languages)}
    some_neurons(counts, **provenance).save(folder / "lape.safetensors")
    some_matrix(languages, **provenance).save(folder / "perplexity.safetensors")
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = fill(tmp_path_factory.mktemp("my run"), model="tiny-llama")
    written = report(folder)
    assert written == folder / "report.html"
    return written.read_text(encoding="utf-8")


def test_the_report_loads_nothing_from_anywhere(page: str) -> None:
    loads = Elements(page).loads
    assert set(loads) == {
        "data:,",
        "frequency.safetensors",
        "lape.safetensors",
        "perplexity.safetensors",
    }
    without_plotly = page.replace(get_plotlyjs(), "")
    assert "://" not in without_plotly
    assert "@import" not in without_plotly
    assert "url(" not in without_plotly


def test_a_page_that_loads_something_would_be_noticed() -> None:
    assert Elements('<script src="https://cdn.example/x.js"></script>').loads == [
        "https://cdn.example/x.js"
    ]


def test_the_plotting_script_is_inside_the_page_once(page: str) -> None:
    assert page.count(get_plotlyjs()) == 1
    scripts = Elements(page).scripts
    assert len(scripts) == 2  # plotly, and the page's own few lines
    assert scripts[0] == get_plotlyjs()
    assert "Plotly.react" in scripts[1]


def test_every_language_stands_in_every_table(page: str) -> None:
    cells = Elements(page).cells
    for lang in LANGUAGES:
        assert cells.count(lang) == 3  # neurons, effect, tokens
    assert {"30", "31", "32", "12,345", "12,346", "12,347"} <= set(cells)
    assert cells.count("Its own neurons hurt it most, and far more than random ones.") == 3
    assert cells.count("+1.000 [+1.000, +1.000]") == 3


def test_the_sections_come_in_order_with_their_sentences(page: str) -> None:
    elements = Elements(page)
    assert elements.headings == [
        "Neurons found by LAPE",
        "Effect of switching them off",
        "What was measured",
        "Data",
    ]
    assert "93 distinct neurons of 200 at mlp_post: 93 serve 1 language." in elements.text
    assert "3 of 3 languages pass" in elements.text
    assert "Frequency of tiny-llama." in elements.text
    assert "2 random controls per intervention" in elements.text
    assert "en 60 in 3, fr 60 in 3, zh 60 in 3" in elements.text
    assert '"model": "tiny-llama"' in elements.text


def test_the_figures_of_the_page_are_the_figures_of_the_results(page: str) -> None:
    titles = [figure["layout"]["title"]["text"] for figure in Elements(page).figures]
    assert [title.split(" ")[0] for title in titles] == ["Neurons", "Overlap", "Change"]
    change = Elements(page).figures[2]["data"][0]
    assert change["y"] == [*LANGUAGES, "random control"]
    assert change["text"][0] == ["+1.00", "+0.10", "+0.10"]


def test_shared_neurons_are_counted_as_shared(tmp_path: Path) -> None:
    masks = {
        "en": torch.tensor([[True, True, True, False]]),
        "fr": torch.tensor([[False, True, True, True]]),
    }
    LanguageNeurons({k: NeuronSet({MLP_POST: v}) for k, v in masks.items()}).save(
        tmp_path / "mine.safetensors"
    )
    elements = Elements(report(tmp_path).read_text(encoding="utf-8"))
    assert elements.headings[0] == "Neurons found by mine"  # no method known: the file's name
    text = "4 distinct neurons of 4 at mlp_post: 2 serve 1 language, 2 serve 2 languages."
    assert text in elements.text
    assert elements.cells == [
        *("en", "3", "75.000 %", "1", "layer 0 (3)", "fr 2 (by chance 2.2)"),
        *("fr", "3", "75.000 %", "1", "layer 0 (3)", "en 2 (by chance 2.2)"),
    ]


def test_neurons_of_several_structures_are_counted_by_structure(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    widths = {MLP_POST: 40, ATTN_Q: 16, ATTN_K: 8}
    sets = {
        lang: NeuronSet(
            {site: torch.rand(3, n, generator=generator) < 0.3 for site, n in widths.items()}
        )
        for lang in ("en", "fr")
    }
    LanguageNeurons(sets, {"method": "plnd"}).save(tmp_path / "plnd.safetensors")
    elements = Elements(report(tmp_path).read_text(encoding="utf-8"))
    for site in widths:
        both = int((sets["en"] | sets["fr"]).masks[site].sum())
        assert f"{both} of {3 * widths[site]} at {site.name}" in elements.text
    per_row = len(elements.cells) // 2
    for row, some in enumerate(sets.values()):
        counts = elements.cells[per_row * (row + 1) - 3 : per_row * (row + 1)]
        assert counts == [str(int(mask.sum())) for mask in some.masks.values()]
        per_layer = sum(mask.sum(1) for mask in some.masks.values())
        busiest = f"layer {int(per_layer.argmax())} ({int(per_layer.max())})"
        assert elements.cells[per_row * row + 4] == busiest
    titles = [figure["layout"]["title"]["text"] for figure in elements.figures]
    assert titles[0].startswith("Share of a layer")
    assert titles[1:4] == [f"Neurons per layer at {site.name}" for site in widths]


def test_an_effect_is_not_told_of_neurons_it_is_not_named_after(tmp_path: Path) -> None:
    changes = torch.tensor([[2.0], [2.001]], dtype=torch.float64)
    documents = {"en": DocumentNLL(changes, torch.tensor([1]), torch.tensor([4]))}
    PerplexityMatrix(("en",), ("en",), documents, 0).save(tmp_path / "perplexity-plnd.safetensors")
    some_neurons({"en": 3}).save(tmp_path / "lape.safetensors")
    assert "only 3 neurons" not in Elements(report(tmp_path).read_text(encoding="utf-8")).text


def test_regions_of_the_page_have_names_of_their_own(tmp_path: Path) -> None:
    for name in ("lape", "plnd"):
        some_neurons({"en": 3, "fr": 4}, method=name).save(tmp_path / f"{name}.safetensors")
    elements = Elements(report(tmp_path).read_text(encoding="utf-8"))
    names = [value for _, name, value in elements.attributes if name == "aria-label"]
    assert "Figure: Neurons found by PLND, Neurons per layer at mlp_post" in names
    assert len(set(names)) == len(names) > 10


def test_what_a_method_takes_and_what_was_chosen_is_said(tmp_path: Path) -> None:
    chosen = {"lape": {"top": 0.02}, "plnd": {"min_share": 0.8}, "lap": {"threshold": 0.9}}
    for name, options in chosen.items():
        some_neurons({"en": 3}, method=name, options=options).save(tmp_path / f"{name}.safetensors")
    text = Elements(report(tmp_path).read_text(encoding="utf-8")).text
    assert "LAPE takes the 2 % of neurons whose firing is most concentrated" in text
    assert "how many there are is a choice (top 0.02), not a finding" in text
    assert "in at least 80 % of a language's documents" in text
    assert "fire on more than 90 % of a language's tokens" in text
    assert "A layer is a block of the model, 0 to 3;" in text
    assert "Ablation shows" not in text  # nothing was switched off


def test_a_caution_stands_where_an_effect_of_ablation_does(page: str) -> None:
    assert page.index("Ablation shows what") < page.index('class="facts"')
    assert page.count("Ablation shows what") == 1


def test_results_of_two_versions_of_the_weights_are_told_apart(tmp_path: Path) -> None:
    some_frequency(LANGUAGES, model="toy", weights="9d3c").save(tmp_path / "frequency.safetensors")
    some_neurons({"en": 3}, model="toy", weights="9d3c").save(tmp_path / "lape.safetensors")
    said = "These results come from 2 versions of the weights (see Data)"
    assert said not in Elements(report(tmp_path).read_text(encoding="utf-8")).text
    some_neurons({"en": 3}, model="toy", weights="cd50").save(tmp_path / "lape.safetensors")
    assert said in Elements(report(tmp_path).read_text(encoding="utf-8")).text


def test_words_of_the_code_are_not_shown_as_prose(tmp_path: Path) -> None:
    some_neurons(
        {"en": 3},
        statistic={"spec": {"spec": "ActivationFrequency", "site": "mlp_pre"}},
        vocabulary={"maker": "combined", "parts": [{"maker": "script"}, {"maker": "corpora"}]},
        versions={"lens_lang": "0.1.0"},
    ).save(tmp_path / "lape.safetensors")
    text = Elements(report(tmp_path).read_text(encoding="utf-8")).text
    assert "ActivationFrequency, site mlp_pre" in text and "spec ActivationFrequency" not in text
    assert "maker combined, parts (maker script), (maker corpora)" in text
    assert "lens_lang 0.1.0" in text and "lens lang" not in text


def test_the_contents_are_by_kind_of_result(tmp_path: Path) -> None:
    curve = a_curve(("en", "fr"), ("en", "fr", "fr"))
    curve.save(tmp_path / "curve.safetensors")
    curve.save(tmp_path / "curve-off.safetensors")
    some_neurons({"en": 3}).save(tmp_path / "lape.safetensors")
    written = report(tmp_path).read_text(encoding="utf-8")
    contents = written[written.index("<nav") : written.index("</nav>")]
    for said in (
        '<li><a href="#s1">Neurons found by LAPE</a></li>',
        "<li><span>Language of each layer</span>",
        '<li><a href="#s2">curve</a></li>',
        '<li><a href="#s4">curve-off minus curve</a></li>',
        '<li><a href="#data">Data</a></li>',
    ):
        assert said in contents


def test_a_cell_sorts_and_downloads_by_what_it_knows(tmp_path: Path) -> None:
    counts = {"en": 150, "fr": 3}
    some_neurons(counts).save(tmp_path / "lape.safetensors")
    some_matrix(("en", "fr")).save(tmp_path / "perplexity.safetensors")
    written = report(tmp_path).read_text(encoding="utf-8")
    assert '<td class="word" data-value="3.0">layer 3 (3)</td>' in written
    assert 'data-number="75">75.000 %</td>' in written
    assert ' data-unit=" (%)"' in written
    assert 'data-low="1" data-high="1">+1.000<span' in written
    assert written.count('<caption class="unseen">Neurons found by LAPE</caption>') == 1


def test_text_of_a_known_language_is_marked_and_no_other(tmp_path: Path) -> None:
    odd = answered({"none": ["fr", "x<y>"]}, languages=["fr", "x<y>"], text="oui")
    odd.save(tmp_path / "answers.safetensors")
    elements = Elements(report(tmp_path).read_text(encoding="utf-8"))
    tagged = [value for tag, name, value in elements.attributes if (tag, name) == ("bdi", "lang")]
    assert tagged == ["fr", "fr"]  # a question and its answer


@pytest.mark.parametrize(
    ("record", "title"),
    [
        ({"method": "lave"}, "Neurons found by LAVE"),
        ({"method": "random"}, "Neurons drawn at random"),
        ({"method": "read from file", "file": "x.pt"}, "Neurons read from a file (theirs)"),
        ({"method": "sharing"}, "Neurons found by sharing"),
    ],
)
def test_a_title_says_how_neurons_were_found(record: dict[str, str], title: str) -> None:
    assert neurons_section("theirs", some_neurons({"en": 3}, **record)).title == title


def test_sections_of_one_title_say_which_file_they_are_of(tmp_path: Path) -> None:
    for name in ("lape", "mine"):
        some_neurons({"en": 3}).save(tmp_path / f"{name}.safetensors")
    some_neurons({"en": 3}, method="lap").save(tmp_path / "lap.safetensors")
    assert Elements(report(tmp_path).read_text(encoding="utf-8")).headings == [
        "Neurons found by LAP",
        "Neurons found by LAPE (lape)",
        "Neurons found by LAPE (mine)",
        "Data",
    ]


def test_statistics_of_different_texts_have_columns_of_their_own(tmp_path: Path) -> None:
    some_frequency(("en", "fr")).save(tmp_path / "a.safetensors")
    some_frequency(("fr", "zh")).save(tmp_path / "b.safetensors")
    some_frequency(("en", "fr")).save(tmp_path / "c.safetensors")
    written = report(tmp_path).read_text(encoding="utf-8")
    assert "tokens counted (a, c)" in written and "tokens counted (b)" in written
    assert Elements(written).cells == [
        *("en", "12,345", ""),
        *("fr", "12,346", "12,345"),
        *("zh", "", "12,346"),
    ]


def test_texts_options_and_versions_can_be_read(tmp_path: Path) -> None:
    corpora = {"digest": "d9bf9463d042", "n_tokens": {"en": 3048, "fr": 4064}, "ctx_len": 128}
    record = {
        "model": "toy",
        "weights": "9d3cdc8709dbf505",
        "corpora": corpora,
        "versions": {"torch": "2.9", "lens_lang": "0.1.0"},
    }
    some_frequency(LANGUAGES, **record).save(tmp_path / "frequency.safetensors")
    some_neurons(
        {"en": 3}, options={"top": 0.01, "max_entropy": None, "compat": False}, statistic=record
    ).save(tmp_path / "lape.safetensors")
    elements = Elements(report(tmp_path).read_text(encoding="utf-8"))
    assert elements.tables["Texts"] == ["en", "3,048", "fr", "4,064", "all", "7,112"]
    assert "d9bf9463: rows of at most 128 tokens, one document each." in elements.text
    assert "Read for frequency, lape." in elements.text
    assert "top 0.01, max entropy not set, compat no" in elements.text
    rows = elements.tables["Data"]
    assert rows[1:7] == ["Frequency", "toy", "9d3cdc87", "0.1.0", "2.9", ""]
    assert rows[9:15] == ["LanguageNeurons", "toy", "9d3cdc87", "0.1.0", "2.9", ""]


def test_the_script_of_views_is_on_a_page_with_views_and_on_no_other(tmp_path: Path) -> None:
    contexts = NeuronContexts(
        languages=("en",),
        neurons=torch.tensor([[0, 2]]),
        peak=torch.tensor([[[3.5]]]),
        document=torch.tensor([[[7]]]),
        position=torch.tensor([[[1]]]),
        window=torch.tensor([[[[5, 9]]]]),
        values=torch.tensor([[[[0.5, 3.5]]]]),
        before=1,
        items=torch.tensor([5, 9]),
        spelled=torch.tensor(list(b" a cat"), dtype=torch.uint8),
        ends=torch.tensor([2, 6]),
        site=MLP_POST,
        n_tokens=torch.tensor([40]),
    )
    some_neurons({"en": 3}).save(tmp_path / "lape.safetensors")
    assert page_script() not in report(tmp_path).read_text(encoding="utf-8")
    contexts.save(tmp_path / "b.safetensors")
    contexts.save(tmp_path / "c.safetensors")
    written = report(tmp_path).read_text(encoding="utf-8")
    assert written.count(page_script()) == 1
    assert Elements(written).tables["Texts with the highest activation (b)"] == [
        *("0.2", "en", "+3.500", "cat", "a cat")
    ]
    tagged = [v for tag, name, v in Elements(written).attributes if (tag, name) == ("bdi", "lang")]
    assert tagged == ["en"] * 4  # a token and its text, in both files


def test_what_was_cut_or_left_out_is_said(tmp_path: Path) -> None:
    Importance(
        languages=("en", "fr"),
        score_sum={MLP_POST: torch.ones(2, 1, 3).double()},
        hits={MLP_POST: torch.ones(2, 1, 3).long()},
        n_documents=torch.tensor([4, 5]),
        n_tokens=torch.tensor([400, 1500]),
        provenance={"model": "toy", "corpora": {"documents cut": {"en": 2}}},
    ).save(tmp_path / "importance.safetensors")
    elements = Elements(report(tmp_path).read_text(encoding="utf-8"))
    assert "Importance of toy." in elements.text
    assert "Documents cut: en 2." in elements.text
    assert elements.cells == ["en", "400", "4", "fr", "1,500", "5"]


def test_an_effect_is_told_of_the_neurons_it_is_named_after(tmp_path: Path) -> None:
    changes = torch.tensor([[2.0], [2.001], [2.5]], dtype=torch.float64)
    few = NeuronSet({MLP_POST: torch.eye(LAYERS, WIDTH, dtype=torch.bool)})
    for name in ("lape", "plnd"):
        LanguageNeurons({"en": few}, {"method": name}).save(tmp_path / f"{name}.safetensors")
        documents = {"en": DocumentNLL(changes[:2], torch.tensor([1]), torch.tensor([4]))}
        suffix = "" if name == "lape" else f"-{name}"
        PerplexityMatrix(("en",), ("en",), documents, 0).save(
            tmp_path / f"perplexity{suffix}.safetensors"
        )
    text = Elements(report(tmp_path).read_text(encoding="utf-8")).text
    assert "Plausible: LAPE gave it only 4 neurons. A neuron counts" in text
    assert "Plausible: PLND gave it only 4 neurons." in text
    assert "its removal changed much in all of the language's documents." in text
    assert text.count("few other languages use it") == 1


HOSTILE = "</script><script>alert(1)</script>"
MORE_HOSTILE = ("<img src=x onerror=alert(1)>", "\"'><svg onload=alert(2)>", "{{ 7 * 7 }}&amp;")


def test_names_from_elsewhere_are_text_and_nothing_more(tmp_path: Path) -> None:
    folder = tmp_path / "<b>run"
    folder.mkdir()
    languages = (HOSTILE, *MORE_HOSTILE)
    fill(folder, languages, model=HOSTILE, note={MORE_HOSTILE[0]: [MORE_HOSTILE[1]]})
    written = report(folder).read_text(encoding="utf-8")
    elements = Elements(written)
    assert len(elements.scripts) == 2
    assert not any("alert(" in script for script in elements.scripts[1:])
    tags = {tag for tag, _, _ in elements.attributes}
    assert not tags & {"img", "svg", "b"}
    assert not any(name.startswith("on") for _, name, _ in elements.attributes)
    for lang in languages:
        assert lang in elements.cells  # shown as it is, not eaten
    assert f"Frequency of {HOSTILE}." in elements.text
    assert elements.figures[2]["data"][0]["x"] == list(languages)


def test_the_browsers_eye_sees_a_script_that_is_not_escaped() -> None:
    """The test above can fail."""
    assert Elements(f"<td>{HOSTILE}</td>").scripts == ["alert(1)"]
    assert ("img", "onerror", "alert(1)") in Elements(MORE_HOSTILE[0]).attributes


def test_a_folder_with_one_kind_of_result_gives_a_page_of_it(tmp_path: Path) -> None:
    makers: dict[str, Callable[[], Any]] = {
        "What was measured": lambda: some_frequency(LANGUAGES),
        "Effect of switching them off": lambda: some_matrix(LANGUAGES),
        "Neurons found by LAPE": lambda: some_neurons(dict.fromkeys(LANGUAGES, 3)),
    }
    for title, make in makers.items():
        folder = tmp_path / title
        folder.mkdir()
        make().save(folder / "only.safetensors")
        assert Elements(report(folder).read_text(encoding="utf-8")).headings == [title, "Data"]


def test_a_measurement_without_controls_is_reported(tmp_path: Path) -> None:
    some_matrix(LANGUAGES, controls=0).save(tmp_path / "perplexity.safetensors")
    elements = Elements(report(tmp_path).read_text(encoding="utf-8"))
    assert "0 random controls per intervention" in elements.text
    assert elements.cells.count("+1.000 [+1.000, +1.000]") == 3


def test_one_sample_has_no_interval() -> None:
    ends = torch.tensor([0.25, 0.75])
    assert share_with_interval(0.5, ends) == "0.50 [0.25, 0.75]"
    assert share_with_interval(0.5, ends * math.nan) == "0.50"
    assert share_with_interval(0.5, ends * math.nan, percent=True) == "50.0 %"


def test_what_was_not_measured_is_left_blank(tmp_path: Path) -> None:
    some_matrix(("en",), controls=0).save(tmp_path / "perplexity.safetensors")
    assert not any("nan" in c for c in Elements(report(tmp_path).read_text(encoding="utf-8")).cells)


def test_reasons_count_the_neurons_that_were_switched_off(tmp_path: Path) -> None:
    n_tokens = torch.tensor([10, 20])
    rates = torch.tensor([3.0, 3.0, 3.0], dtype=torch.float64)[:, None]
    docs = {
        lang: DocumentNLL(rates * n_tokens, n_tokens.clone(), 4 * n_tokens) for lang in ("en", "fr")
    }
    PerplexityMatrix(("en", "fr"), ("en", "fr"), docs).save(tmp_path / "perplexity.safetensors")
    some_neurons({"en": 40, "fr": 50}, method="lap").save(tmp_path / "lap.safetensors")
    some_neurons({"en": 3, "fr": 50}).save(tmp_path / "lape.safetensors")
    assert "gave it only 3 neurons" in Elements(report(tmp_path).read_text(encoding="utf-8")).text


def test_the_page_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    fill(tmp_path)
    first = report(tmp_path).read_text(encoding="utf-8")
    assert report(tmp_path).read_text(encoding="utf-8") == first
    assert {path.name for path in tmp_path.iterdir()} == {
        "frequency.safetensors",
        "lape.safetensors",
        "perplexity.safetensors",
        "report.html",
    }


def test_results_are_read_by_name_and_nothing_else_is(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "notes.txt").write_text("not a result")
    read = read_results(tmp_path)
    assert [path.name for path in read] == [
        "frequency.safetensors",
        "lape.safetensors",
        "perplexity.safetensors",
    ]
    assert [type(result) for result in read.values()] == [
        Frequency,
        LanguageNeurons,
        PerplexityMatrix,
    ]


def test_a_missing_an_empty_and_a_damaged_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="There is no run folder .*nowhere"):
        report(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="holds no result to report: run lens_lang.collect"):
        report(tmp_path)
    (tmp_path / "lape.safetensors").write_bytes(b"half a fi")
    with pytest.raises(StorageError, match="lape.safetensors is not a readable safetensors file"):
        report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_file_that_cannot_be_read_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "damaged.safetensors").write_bytes(b"half a fi")
    header = {"languages": LANGUAGES, "provenance": {}}  # of before prompts had languages
    write_tensors(tmp_path / "old.safetensors", "LanguageCurve", header, {"values": torch.ones(2)})
    written = write_page(tmp_path)
    assert sorted(path.name for path in written.unread) == [
        "damaged.safetensors",
        "old.safetensors",
    ]
    elements = Elements(written.path.read_text(encoding="utf-8"))
    assert elements.headings[0] == "Neurons found by LAPE"
    for name in ("damaged", "old"):
        assert (
            f"Not shown: {name}.safetensors, written by another version of lens_lang, or damaged."
            in elements.text
        )
    with pytest.warns(UserWarning, match="is not on the page") as caught:
        assert report(tmp_path) == written.path
    assert len(caught) == 2
    with pytest.raises(StorageError, match="damaged.safetensors is not a readable"):
        read_results(tmp_path)


def test_without_plotly_one_sentence_names_the_pip_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path)
    for module in [m for m in sys.modules if m.split(".")[0] == "plotly"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"The report needs .*pip install 'lens-lang\[plot"):
        report(tmp_path)


# --- why a language passes or does not ---


def judged(**values: Any) -> "pd.Series[Any]":
    row = {
        "own": 0.5,
        "own_low": 0.4,
        "rival": "fr",
        "rival_change": 0.1,
        "specific": True,
        "beyond_chance": True,
        **values,
    }
    return pd.Series(row, name="en", dtype=object)


def test_a_language_that_passes_is_told_so() -> None:
    many = some_neurons({"en": 3, "fr": 40})
    for neurons in (many, None):
        sentence = why_not(judged(), neurons)
        assert sentence == "Its own neurons hurt it most, and far more than random ones."


def test_a_stronger_rival_is_named_with_its_effect() -> None:
    sentence = why_not(judged(specific=False, rival_change=0.7), None)
    assert sentence == "The neurons of fr hurt it more (+0.70 nats)."


def test_neurons_shared_with_the_rival_are_counted() -> None:
    whole = torch.ones(1, 30, dtype=torch.bool)
    half = whole.clone()
    half[0, 25:] = False
    shared = LanguageNeurons(
        {"en": NeuronSet({MLP_POST: half}), "fr": NeuronSet({MLP_POST: whole})}
    )
    row = judged(specific=False, rival_change=0.7)
    assert "25 of its 25 neurons are also among the 30 of fr." in why_not(row, shared)
    apart = some_neurons({"en": 40, "fr": 40})
    assert "no neuron in common" in why_not(row, apart)


def test_an_effect_no_larger_than_chance_is_said_alone_or_after_the_rival() -> None:
    alone = why_not(judged(beyond_chance=False), None)
    assert alone == "Its own effect does not stand out from that of random neurons."
    both = why_not(judged(specific=False, beyond_chance=False, rival_change=0.9), None)
    assert both == (
        "The neurons of fr hurt it more (+0.90 nats) and its own effect does not stand out from "
        "that of random neurons."
    )


@pytest.mark.parametrize(("count", "said"), [(0, "0 neurons"), (1, "1 neuron"), (19, "19 neurons")])
def test_few_neurons_are_given_as_a_plausible_reason(count: int, said: str) -> None:
    sentence = why_not(judged(beyond_chance=False), some_neurons({"en": count, "fr": 60}))
    assert f"LAPE gave it only {said}." in sentence
    assert sentence.count("Plausible") == 1


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            {"method": "plnd", "options": {"min_share": 0.8, "without": "common", "top": 5}},
            "PLND gave it only 3 neurons. A neuron counts only if its removal changed much in at "
            "least 80 % of the language's documents, and those that all languages have are taken "
            "away; at most 5 of a layer are kept.",
        ),
        (
            {"method": "plnd", "options": {"min_share": 1.0, "without": "en"}},
            "in all of the language's documents, and those that en has are taken away.",
        ),
        (
            {"method": "lap", "options": {"threshold": 0.9}},
            "LAP gave it only 3 neurons. A neuron counts only if it fires on more than 90 % of "
            "the language's tokens.",
        ),
        ({"method": "lave"}, "LAVE gave it only 3 neurons. A neuron counts as a language's own"),
        ({"method": "sharing"}, "fires in that language of an example and in no other."),
        ({"method": "random"}, "Plausible: it was given, at random, only 3 neurons."),
        ({"method": "read from file"}, "Plausible: the file gives it only 3 neurons."),
        ({"method": ""}, "Plausible: the method gave it only 3 neurons."),
    ],
)
def test_the_reason_is_that_of_the_method(record: dict[str, Any], said: str) -> None:
    neurons = some_neurons({"en": 3, "fr": 60}, **record)
    sentence = why_not(judged(beyond_chance=False), neurons)
    assert sentence.endswith(said) or (record["method"] == "lave" and said in sentence)
    only = "few other languages use it" in sentence
    assert only == (record["method"] in ("lape", "lave"))


def test_twenty_neurons_are_not_few() -> None:
    sentence = why_not(judged(beyond_chance=False), some_neurons({"en": 20, "fr": 60}))
    assert "only" not in sentence


@pytest.mark.parametrize("rival", [{"rival": "", "rival_change": float("nan")}, {"own": -0.2}])
def test_neurons_without_effect_are_told_so(rival: dict[str, Any]) -> None:
    values = {"specific": False, "own": 0.0, "rival_change": -0.3, **rival}
    assert why_not(judged(**values), None) == "Its own neurons do not hurt it."


@pytest.mark.parametrize("change", [0.0, -0.1])
def test_a_rival_that_does_not_hurt_is_not_said_to(change: float) -> None:
    row = judged(specific=False, own=change, rival_change=change)
    assert why_not(row, None) == "Its own neurons do not hurt it."


def test_a_language_that_the_neurons_do_not_have_has_no_count() -> None:
    sentence = why_not(judged(beyond_chance=False), some_neurons({"zh": 1, "fr": 60}))
    assert sentence == "Its own effect does not stand out from that of random neurons."


def test_a_rival_is_named_even_if_the_neurons_do_not_have_the_language() -> None:
    row = judged(specific=False, rival_change=0.7)
    neurons = some_neurons({"zh": 1, "fr": 60})
    assert why_not(row, neurons) == "The neurons of fr hurt it more (+0.70 nats)."


# --- layers ---


def a_curve(languages: tuple[str, ...], prompts: tuple[str, ...]) -> LanguageCurve:
    values = torch.rand(
        len(prompts), 9, len(languages) + 1, generator=torch.Generator().manual_seed(0)
    ).double()
    return LanguageCurve(languages, prompts, values / values.sum(-1, keepdim=True))


def test_the_language_of_layers_latent_languages_and_heads_have_sections(tmp_path: Path) -> None:
    curve = a_curve(("en", "fr"), ("en", "fr", "fr"))
    curve.save(tmp_path / "curve.safetensors")
    random = torch.rand(4, 9, 2, generator=torch.Generator().manual_seed(1)).double()
    latent = LatentLanguages(("zh", "en"), random, random[..., 0], random[..., 1])
    latent.save(tmp_path / "latent.safetensors")
    attention = HeadAttention(
        ("en",), ("first", "entropy"), torch.ones(1, 2, 3, 4).double(), torch.tensor([5])
    )
    attention.save(tmp_path / "headattention.safetensors")
    elements = Elements(report(tmp_path).read_text(encoding="utf-8"))
    assert elements.headings[:3] == [
        "Language of each layer (curve)",
        "Latent language (latent)",
        "Attention heads (headattention)",
    ]
    assert "Prompts: en 1, fr 2." in elements.text
    assert len(elements.figures) == 2 + 2 + 1
    row = curve.summary().set_index("prompts").loc["fr"]
    place = elements.cells.index("fr")
    cells = elements.cells[place : place + 6]
    assert cells[1].startswith(f"{row['own_first']:.2f} [")
    assert cells[2] == str(int(row["layer"]))
    assert cells[3].startswith(f"{row['pivot']:.2f} [")
    assert cells[5].startswith(f"{row['own_last']:.2f} [")


def test_a_curve_under_an_intervention_is_shown_as_a_change_too(tmp_path: Path) -> None:
    curve = a_curve(("en", "fr"), ("en", "fr", "fr"))
    curve.save(tmp_path / "curve.safetensors")
    off = LanguageCurve(curve.languages, curve.prompt_languages, curve.values.flip(1))
    off.save(tmp_path / "curve-lape-off.safetensors")
    a_curve(("en", "fr"), ("fr",)).save(tmp_path / "curve-other.safetensors")
    elements = Elements(report(tmp_path).read_text(encoding="utf-8"))
    assert elements.headings[:4] == [
        "Language of each layer (curve)",
        "Language of each layer (curve-lape-off)",
        "Change of the language of each layer (curve-lape-off minus curve)",
        "Language of each layer (curve-other)",
    ]
    assert "block 7 writes layer 8" in elements.text
    assert "so 8 is the model's own prediction" in elements.text
    own = [t for t in elements.figures[4]["data"] if t.get("name") == "own"][1]
    expected = (off - curve).story().mean[1, :, 1].tolist()
    assert own["y"] == pytest.approx(expected)


def test_what_a_curve_was_read_under_is_said(tmp_path: Path) -> None:
    curve = a_curve(("en", "fr"), ("en", "fr", "fr"))
    names = ["blocks.0.mlp.hook_post", "blocks.3.mlp.hook_post"]
    record = {"fwd_hooks": {"en": [], "fr": names}, "norm": True}
    edits = {"edits": {"en": [], "fr": ["set 72 neurons of mlp_post to 0"]}}
    for name, about in (("old", record), ("new", {**record, **edits}), ("curve", {})):
        LanguageCurve(curve.languages, curve.prompt_languages, curve.values, about).save(
            tmp_path / f"{name}.safetensors"
        )
    text = Elements(report(tmp_path).read_text(encoding="utf-8")).text
    said = "Each language was read under: fr: "
    assert text.count(f"{said}set 72 neurons of mlp_post to 0; en: no hook.") == 2  # and its change
    assert text.count(f"{said}hooks at mlp.hook_post of 2 blocks; en: no hook. The record") == 2
    assert text.count("Each language was read under") == 4


def test_the_map_of_a_curve_is_not_that_of_english_prompts(tmp_path: Path) -> None:
    a_curve(("en", "fr"), ("en", "fr", "fr")).save(tmp_path / "curve.safetensors")
    titles = [
        figure["layout"]["title"]["text"]
        for figure in Elements(report(tmp_path).read_text(encoding="utf-8")).figures
    ]
    assert titles[1].startswith("Language of each layer, prompts in fr")


def test_curves_without_english_or_of_unnamed_prompts_are_drawn_as_they_are(tmp_path: Path) -> None:
    a_curve(("fr", "zh"), ("fr", "zh")).save(tmp_path / "a.safetensors")
    a_curve(("en", "fr"), ("und",)).save(tmp_path / "b.safetensors")
    elements = Elements(report(tmp_path).read_text(encoding="utf-8"))
    assert elements.cells == []
    names = [[trace.get("name") for trace in figure["data"]] for figure in elements.figures]
    assert "zh" in names[0]
    assert "fr" in names[2]


# --- shared neurons ---


def test_shared_neurons_their_part_and_their_effect_have_sections(tmp_path: Path) -> None:
    acts = torch.randn(6, 3, 4, 50, generator=torch.Generator().manual_seed(0))
    patterns = SharingPatterns.from_activations(acts, ("en", "fr", "de"), threshold=(0.0, 0.5))
    patterns.save(tmp_path / "sharingpatterns.safetensors")
    contributions = CategoryContributions(
        ("en", "fr"),
        ("a", "b"),
        torch.rand(2, 2, 3, 4, 4).double(),
        None,
        torch.ones(2, 2, 3, 4).long(),
        torch.full((2, 3, 4), 10),
        4,
        40,
    )
    contributions.save(tmp_path / "categorycontributions.safetensors")
    planted().save(tmp_path / "categoryeffect.safetensors")
    sharing(patterns).neurons().save(tmp_path / "sharing.safetensors")
    elements = Elements(report(tmp_path).read_text(encoding="utf-8"))
    assert elements.headings[:3] == [
        "Neurons shared by languages (sharingpatterns)",
        "What neurons of each kind contribute (categorycontributions)",
        "Effect of switching off each kind (categoryeffect)",
    ]
    assert len(elements.figures) == 1 + 2 + 1
    assert "6 examples in en, fr, de" in elements.text
    assert "at the last token is above the threshold" in elements.text
    share = sharing(patterns, threshold=0.5).share.mean(0)[3]
    place = elements.cells.index("0.5") + 15  # the fourth row of this threshold
    assert elements.cells[place - 1 : place + 1] == ["non-activated", "0.5"]
    assert elements.cells[place + 1].startswith(f"{100 * float(share):.1f} % [")
    assert "−2.000 [−2.000, −2.000]" in elements.cells
    assert "−1.500 [−1.500, −1.500]" in elements.cells
    assert "The dark part of a bar" in elements.text
    assert "95 % interval for one more random draw" in elements.text
    assert "Right less wrong answers" in elements.text


# --- answers and tasks ---


def test_answers_and_tasks_have_sections_behind_the_effect(tmp_path: Path) -> None:
    some_matrix(("en", "fr")).save(tmp_path / "perplexity.safetensors")
    a_curve(("en", "fr"), ("en", "fr", "fr")).save(tmp_path / "curve.safetensors")
    story().save(tmp_path / "a-story.safetensors")
    solved(OFF, controls=1).save(tmp_path / "b-task.safetensors")
    answers = answered(
        {"none": ["fr", "fr"], "fr off": ["en", "fr"]},
        languages=("fr", "fr"),
        text="<script>alert(1)</script> in",
        model=HOSTILE,
    )
    answers.save(tmp_path / "c-answers.safetensors")
    assert {type(result) for result in read_results(tmp_path).values()} == {
        PerplexityMatrix,
        LanguageCurve,
        MWork,
        TaskMatrix,
        GenerationMatrix,
    }
    elements = Elements(report(tmp_path).read_text(encoding="utf-8"))
    assert elements.headings == [
        "Effect of switching them off",
        "Languages of the answers (c-answers)",
        "Some of the answers (c-answers)",
        "Task xquad (b-task): F1",
        "Task xquad (b-task): log-probability (nats per token)",
        "Regions and tasks (a-story): main metrics",
        "Regions and tasks (a-story): log-probability",
        "Language of each layer (curve)",
        "Data",
    ]
    assert len(elements.figures) == 1 + 3 + 1 + 1 + 1 + 1 + 2
    assert "en: <script>alert(1)</script> in en" in elements.cells  # shown, and nothing more
    assert f"answered by {HOSTILE} without and under 1 intervention." in elements.text
    assert len(elements.scripts) == 2
    assert not any("alert(" in script for script in elements.scripts[1:])
