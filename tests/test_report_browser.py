"""The report in a browser: it is quiet, everything is drawn, sorts, downloads, and can be read."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from browser import Browse, Opened, opening
from test_categories import planted
from test_page import a_curve, fill, some_matrix, some_neurons
from test_plot_generation import answered, swept
from test_plot_tasks import OFF, solved, story

from lens_lang import page as pages
from lens_lang import results
from lens_lang.attribute.card import NeuronCard
from lens_lang.attribute.cards import NeuronCards
from lens_lang.attribute.categories import CategoryContributions
from lens_lang.attribute.effect import LanguageEffect
from lens_lang.attribute.neighbourhood import Neighbour, Neighbourhood
from lens_lang.attribute.promotion import Item
from lens_lang.attribute.scores import NeuronScores
from lens_lang.contexts import Context, NeuronContexts
from lens_lang.delta import Delta, WeightChange
from lens_lang.heads import HeadAttention
from lens_lang.importance import Importance
from lens_lang.latent import LatentLanguages
from lens_lang.neurons import LanguageNeurons, NeuronSet
from lens_lang.page import read_results, report
from lens_lang.patterns import SharingPatterns
from lens_lang.sections.section import Section
from lens_lang.signs import NeuronSigns
from lens_lang.sites import ATTN_K, ATTN_Q, MLP_POST
from lens_lang.stats import Activations
from lens_lang.vocabulary import VocabularyLanguages

NINE = ("en", "de", "es", "fr", "id", "ja", "ru", "vi", "zh")
SITES = {MLP_POST: 50, ATTN_Q: 16, ATTN_K: 8}
EFFECT = "Effect of switching them off (perplexity-plnd)"
DRAWN = "document.documentElement.dataset.drawn === 'all'"


def a_context(lang: str) -> Context:
    return Context(lang, 3, 2.5, (" <b>le", " chat", "\n"), (0.1, 2.5, -0.4), 1)


def a_card(layer: int, index: int) -> NeuronCard:
    items = (Item(5, " ville", 0.4, "fr"), Item(6, "<script>alert(1)</script>", 0.3, "other"))
    return NeuronCard(
        layer,
        index,
        items,
        items[::-1],
        {"fr": 0.5, "other": 0.5},
        Neighbourhood(
            layer, 50, (Neighbour(3, 0.8, ("fr",)),), ("fr",), {"fr": (3, 0, 1, 2)}, "lape"
        ),
        {lang: 0.05 * rank for rank, lang in enumerate(NINE)},
        {"fr": (a_context("fr"),)},
        tuple(
            LanguageEffect(
                lang, 0.01 * n, 0.01 * n - 0.005, 0.01 * n + 0.01, 0.0, -0.01, 0.01, 3, 90
            )
            for n, lang in enumerate(NINE)
        ),
        {"model": "toy"},
    )


def some_contexts() -> NeuronContexts:
    window = torch.tensor([5, 9, 7, -1]).expand(9, 3, 2, 4)
    return NeuronContexts(
        languages=NINE,
        neurons=torch.tensor([[0, 9], [0, 10], [2, 41]]),
        peak=torch.tensor([3.5, 2.5]).expand(9, 3, 2),
        document=torch.arange(2).expand(9, 3, 2),
        position=torch.ones(9, 3, 2).long(),
        window=window,
        values=torch.tensor([0.5, 3.5, -0.25, 0.0]).expand(9, 3, 2, 4),
        before=1,
        items=torch.tensor([5, 7, 9]),
        spelled=torch.tensor(list(b" a <script>alert(1)</script> cat"), dtype=torch.uint8),
        ends=torch.tensor([2, 28, 32]),
        site=MLP_POST,
        n_tokens=torch.full((9,), 40),
    )


def everything() -> dict[str, Any]:
    """Every kind of result, by the name of its file."""
    draw = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Any:
        return torch.rand(*shape, generator=draw).double()

    texts = {
        "languages": list(NINE),
        "ctx_len": 128,
        "bos_id": 2,
        "count_bos": False,
        "pack": True,
        "shard": [0, 1],
        "n_tokens": {lang: 3000 + n for n, lang in enumerate(NINE)},
        "digest": "d9bf9463d042a858",
    }
    record = {"model": "toy", "weights": "9d3cdc8709dbf505", "corpora": texts}
    plnd = LanguageNeurons(
        {lang: NeuronSet({s: rand(4, n) < 0.2 for s, n in SITES.items()}) for lang in NINE},
        {"method": "plnd", "options": {"min_share": 1.0, "without": "common"}, **record},
    )
    acts = torch.randn(6, 9, 4, 50, generator=draw)
    curve = a_curve(NINE, NINE * 2)
    change = WeightChange(0, torch.tensor([1, 4]), torch.ones(2, 6), torch.full((2, 6), 1.25))
    sums = {site: rand(9, 4, n) for site, n in SITES.items()}
    hits = {site: (4 * x).long() for site, x in sums.items()}
    counted = torch.arange(9) + 1200
    return {
        "plnd": plnd,
        "perplexity-plnd": some_matrix(NINE, **record),
        "activations": Activations(
            NINE, rand(9, 4, 50), rand(9, 4, 50), counted, provenance=record
        ),
        "importance": Importance(
            languages=NINE,
            score_sum=sums,
            hits=hits,
            n_documents=torch.full((9,), 5),
            n_tokens=counted,
            provenance=record,
        ),
        "cards": NeuronCards((a_card(2, 41), a_card(0, 9)), {"model": "toy"}),
        "contexts": some_contexts(),
        "signs": NeuronSigns(
            NINE,
            ("2.41", "0.9"),
            torch.ones(9, 2).long(),
            torch.full((9, 2), 3),
            counted,
            record,
        ),
        "answers": answered(
            {"none": NINE, "fr off": ["en", *["de"] * 8]},
            languages=NINE,
            controls=[NINE, NINE],
            text='=1+1, "quoted"\n<b>in',
            model="toy",
        ),
        "steering": swept(),
        "task": solved(OFF, controls=2),
        "story": story(controls=2, tasks=("xquad", "xcsqa", "mgsm", "xlsum")),
        "curve": curve,
        "curve-off": a_curve(NINE, NINE * 2),
        "latent": LatentLanguages(("zh", "en"), rand(4, 9, 2), rand(4, 9), rand(4, 9)),
        "headattention": HeadAttention(
            NINE, ("first", "entropy"), rand(9, 2, 3, 4), torch.full((9,), 5)
        ),
        "sharingpatterns": SharingPatterns.from_activations(acts, NINE, threshold=(0.0, 0.5)),
        "categorycontributions": CategoryContributions(
            NINE[:2],
            ("a", "b"),
            rand(2, 2, 3, 4, 4),
            None,
            torch.ones(2, 2, 3, 4).long(),
            torch.full((2, 3, 4), 10),
            4,
            40,
        ),
        "categoryeffect": planted(),
        "scores": NeuronScores(NINE, rand(9, 4, 50).float(), provenance={"method": "contribution"}),
        "delta": Delta({"blocks.0.mlp.W_in": change}, record),
        "vocabulary": VocabularyLanguages(("en", "fr"), torch.eye(3)[torch.arange(97) % 3]),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("runs") / "all <script>alert('kinds')</script> #1 100%"
    made.mkdir(parents=True)
    fill(made, NINE, model="toy")
    for name, result in everything().items():
        result.save(made / f"{name}.safetensors")
    kinds = {type(result) for result in read_results(made).values()}
    assert kinds == set(get_args(results.Result))  # a new kind is not forgotten here
    report(made)
    return made


@pytest.fixture(scope="module")
def wide(browser: Any, folder: Path) -> Iterator[Opened]:
    """The page on a desk, everything drawn. Tests leave it as they find it."""
    with opening(browser) as browse:
        yield drawn(browse(folder / "report.html", reduced_motion="reduce"))


@pytest.fixture(scope="module")
def narrow(browser: Any, folder: Path) -> Iterator[Opened]:
    """The page on a phone, in the dark."""
    with opening(browser) as browse:
        yield drawn(browse(folder / "report.html", 360, True, has_touch=True, is_mobile=True))


def drawn(opened: Opened) -> Opened:
    opened.page.wait_for_function(DRAWN, timeout=60_000)
    return opened


def overflow(page: Any) -> list[str]:
    """What reaches beyond the right edge of the page, other than inside what scrolls."""
    return page.evaluate(
        """() => [document.documentElement.scrollWidth > innerWidth ? "the page" : "",
            ...[...document.querySelectorAll("body *")]
            .filter(e => !e.closest(".wide, pre, .said, .lens-lang-view, .fragment"))
            .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
            .map(e => e.outerHTML.slice(0, 80))].filter(Boolean)"""
    )


def serious(page: Any) -> list[str]:
    """What axe-core finds that is serious or critical."""
    from axe_playwright_python.sync_playwright import Axe

    # Pictures are hidden from those who do not see them: the caption and the values speak.
    found = Axe().run(page, {"exclude": [".main-svg"]}).response["violations"]
    return [
        f"{each['id']}: {each['help']}: {node['html'][:200]}: {node['failureSummary'][:200]}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"][:3]
    ]


def table_of(page: Any, heading: str) -> Any:
    return page.locator("main > section", has=page.get_by_role("heading", name=heading, exact=True))


def column(table: Any, place: int) -> list[str]:
    return table.locator(f"tbody tr > *:nth-child({place})").all_text_contents()


# --- quiet, complete, readable ---


def test_nothing_is_asked_for_and_nothing_goes_wrong(wide: Opened, narrow: Opened) -> None:
    for opened in (wide, narrow):
        assert opened.errors == []
        assert opened.requests == []


def test_names_of_folders_and_tokens_run_nothing(wide: Opened, folder: Path) -> None:
    assert wide.page.locator("h1").text_content() == f"Language neurons: {folder.name}"
    assert wide.page.title() == f"Language neurons: {folder.name}"
    assert wide.page.locator("main b").count() == 0
    assert "<script>alert(1)</script>" in wide.page.locator("main").inner_text()


def test_every_figure_is_drawn_and_visible(wide: Opened, narrow: Opened) -> None:
    for opened in (wide, narrow):
        found = opened.page.evaluate(
            """() => [...document.querySelectorAll("[data-figure]")].map(place => {
                const svg = place.querySelector(".main-svg"), box = svg?.getBoundingClientRect();
                return [JSON.parse(place.dataset.figure).layout.title.text, box?.width ?? 0,
                    box?.height ?? 0, place.querySelectorAll(
                        ".trace.scatter path, .trace.bars path, .heatmaplayer image, .hm *").length,
                    svg?.checkVisibility() ?? false];
            })"""
        )
        assert len(found) > 30
        for title, width, height, marks, visible in found:
            assert visible and width >= 300 and height >= 60 and marks > 0, title


def test_every_section_is_in_the_contents_and_its_link_leads_there(wide: Opened) -> None:
    page = wide.page
    headings = page.locator("main h2")
    links = page.locator("nav a")
    labels, titles = links.all_text_contents(), headings.all_text_contents()
    assert all(label in title for label, title in zip(labels, titles, strict=True))
    assert "curve-off minus curve" in labels
    ids = headings.evaluate_all("all => all.map(each => '#' + each.id)")
    assert links.evaluate_all("all => all.map(each => each.getAttribute('href'))") == ids
    assert len(set(ids)) == len(ids) > 25
    links.last.click()
    assert headings.last.evaluate("e => e.getBoundingClientRect().top < innerHeight")
    page.evaluate("scrollTo(0, 0)")


def test_every_file_is_named_with_what_it_holds_and_can_be_fetched(
    wide: Opened, folder: Path
) -> None:
    data = table_of(wide.page, "Data")
    files = {path.name: type(result).__name__ for path, result in read_results(folder).items()}
    assert dict(zip(column(data, 1), column(data, 2), strict=True)) == files
    for link in data.locator("tbody a").all()[:3]:
        address = link.evaluate("link => decodeURIComponent(link.href)")
        assert Path(address.removeprefix("file://")).is_file()


def test_how_a_result_was_made_is_said_below_it(wide: Opened) -> None:
    section = table_of(wide.page, "Neurons found by PLND")
    section.locator(".how > summary").click()
    told = section.locator(".how").inner_text()
    for said in ("plnd.safetensors", "min share 1, without common", "toy", "d9bf9463, 27,036"):
        assert said in told
    section.locator(".how > summary").click()
    assert "toy (weights 9d3cdc8709dbf505)" in wide.page.locator(".facts").inner_text()
    texts = table_of(wide.page, "Texts")
    assert column(texts, 2)[:2] == ["3,000", "3,001"]
    assert "filled with several documents" in texts.inner_text()


@pytest.mark.parametrize("which", ["wide", "narrow"])
def test_the_page_does_not_scroll_sideways(which: str, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(which).page
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert overflow(page) == []
    page.evaluate("document.querySelectorAll('main details').forEach(e => { e.open = false; })")


def test_a_page_that_is_too_wide_would_be_noticed(browse: Browse, tmp_path: Path) -> None:
    path = tmp_path / "wide.html"
    path.write_text("<body><div style='width: 2000px'>wide</div><img src='data:,'></body>")
    page = browse(path).page
    assert overflow(page)[0] == "the page"
    assert any("image-alt" in each for each in serious(page))


def test_there_is_no_serious_barrier_in_light_and_in_dark(wide: Opened, narrow: Opened) -> None:
    assert serious(wide.page) == []
    assert serious(narrow.page) == []


def test_what_is_written_in_a_map_can_be_read(wide: Opened, narrow: Opened) -> None:
    for opened in (wide, narrow):
        # the colour of each cell is looked up in the picture, not computed
        found = opened.page.evaluate(
            """async () => {
                const ratios = [];
                for (const place of document.querySelectorAll("[data-figure]")) {
                    const image = place.querySelector(".heatmaplayer image");
                    const texts = [...place.querySelectorAll(".heatmaplayer text")];
                    if (!image || !texts.length) continue;
                    const picture = new Image();
                    picture.src = image.href.baseVal;
                    await picture.decode();
                    const canvas = document.createElement("canvas");
                    [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
                    const context = canvas.getContext("2d");
                    context.drawImage(picture, 0, 0);
                    const box = image.getBoundingClientRect();
                    const light = rgb => rgb.map(x => x / 255).map(x =>
                        x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
                        .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
                    for (const text of texts) {
                        const at = text.getBoundingClientRect();
                        const x = (at.left + at.width / 2 - box.left) / box.width * canvas.width;
                        const y = (at.top + at.height / 2 - box.top) / box.height * canvas.height;
                        const [r, g, b, a] = context.getImageData(x, y, 1, 1).data;
                        if (a < 255) continue;
                        const fill = getComputedStyle(text).fill.match(/\\d+/g).slice(0, 3);
                        const both = [light([r, g, b]), light(fill.map(Number))];
                        ratios.push((Math.max(...both) + 0.05) / (Math.min(...both) + 0.05));
                    }
                }
                return ratios;
            }"""
        )
        assert len(found) > 100
        assert min(found) >= 4.5


def test_regions_are_told_apart_by_their_names(wide: Opened) -> None:
    from axe_playwright_python.sync_playwright import Axe

    chosen = {"runOnly": ["landmark-unique"]}
    assert Axe().run(wide.page, options=chosen).response["violations"] == []


def test_colours_follow_the_system(wide: Opened) -> None:
    page = wide.page
    ink = "getComputedStyle(document.querySelector('.xtick text')).fill"
    light = page.evaluate(ink), page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{ink} !== {light[0]!r}")
    dark = page.evaluate(ink), page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert light[1] == "rgb(255, 255, 255)"
    assert dark[1] == "rgb(20, 23, 27)"
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"{ink} === {light[0]!r}")


def test_nothing_moves_for_those_who_want_no_motion(wide: Opened) -> None:
    page = wide.page
    scrolling = "getComputedStyle(document.documentElement).scrollBehavior"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(scrolling) == "auto"
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(scrolling) == "smooth"


# --- figures ---


def test_hovering_shows_the_value(wide: Opened) -> None:
    page = wide.page
    figure = table_of(page, EFFECT).locator("[data-figure]").first
    figure.scroll_into_view_if_needed()
    box = figure.locator(".nsewdrag").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 18, box["y"] + box["height"] / 20)
    label = figure.locator(".hoverlayer .hovertext")
    label.wait_for(timeout=5000)
    assert "en neurons changed, en read: +1.000 nats/token" in label.text_content()
    page.mouse.move(0, 0)


def test_figures_are_drawn_again_when_the_window_changes(wide: Opened) -> None:
    page = wide.page
    width = "document.querySelector('.main-svg').getBoundingClientRect().width"
    before = page.evaluate(width)
    page.set_viewport_size({"width": 900, "height": 900})
    page.wait_for_function(f"{width} !== {before}")
    assert page.evaluate(width) <= 900
    page.set_viewport_size({"width": 1280, "height": 900})
    page.wait_for_function(f"{width} === {before}")


def test_a_figure_has_a_name_a_caption_and_its_values(wide: Opened) -> None:
    page = wide.page
    part = table_of(page, "Neurons found by LAPE").locator("figure").first
    name = part.locator(".wide").get_attribute("aria-label")
    assert name == "Figure: Neurons found by LAPE, Neurons per layer at mlp_post"
    assert part.locator("p").text_content().startswith("Map. Rows, language: en, de,")
    assert part.locator(".main-svg").first.get_attribute("aria-hidden") == "true"
    with page.expect_download() as caught:
        part.locator("button.csv").click()
    rows = read_csv(caught.value)
    assert rows[0] == ["series", "y", "x", "value", "low", "high", "note"]
    assert [row[1:4] for row in rows[1:3]] == [["en", "0", "30"], ["en", "1", "0"]]
    assert len(rows) == 1 + 10 * 4


def test_all_figures_and_rows_are_on_paper_in_dark_ink(browse: Browse, tmp_path: Path) -> None:
    swept().save(tmp_path / "steering.safetensors")
    some_contexts().save(tmp_path / "contexts.safetensors")
    page = browse(report(fill(tmp_path, NINE, model="toy")), dark=True).page
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    found = page.evaluate(
        """() => [...document.querySelectorAll("[data-figure]")].map(place => {
            const svg = place.querySelector(".main-svg");
            const text = place.querySelector(".xtick text, .ytick text");
            return [svg?.getBoundingClientRect().width ?? 0, getComputedStyle(text).fill];
        })"""
    )
    assert all(300 <= width <= 660 and fill == "rgb(27, 31, 36)" for width, fill in found)
    assert page.locator("tr.rest").first.is_visible()
    assert not page.locator("nav").is_visible()
    assert page.locator("details.how").first.evaluate("each => each.open")
    assert not page.locator("details.raw").is_visible()
    assert not page.locator("details.raw").evaluate("each => each.open")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not page.locator("details.how").first.evaluate("each => each.open")


# --- tables ---


def read_csv(download: Any) -> list[list[str]]:
    text = Path(download.path()).read_text(encoding="utf-8-sig")
    return list(csv.reader(io.StringIO(text, newline="")))


def downloaded(page: Any, heading: str) -> list[list[str]]:
    with page.expect_download() as caught:
        table_of(page, heading).locator(".table button.csv").click()
    return read_csv(caught.value)


def test_a_table_of_words_is_downloaded_as_it_stands(wide: Opened) -> None:
    heading = "Some of the answers (answers)"
    shown = (
        table_of(wide.page, heading)
        .locator("table.result tr")
        .evaluate_all("rows => rows.map(row => [...row.cells].map(cell => cell.textContent))")
    )
    assert downloaded(wide.page, heading) == shown
    assert len(shown) >= 10
    assert any('"quoted"' in cell for row in shown for cell in row)


def test_numbers_are_downloaded_unrounded_with_the_ends_of_their_intervals(wide: Opened) -> None:
    heads, *rows = downloaded(wide.page, EFFECT)
    assert heads[:5] == [
        *("language", "own neurons", "own neurons low", "own neurons high", "random control")
    ]
    table = some_matrix(NINE).selectivity()
    for cells, (lang, row) in zip(rows, table.iterrows(), strict=True):
        assert cells[0] == lang
        expected = [row[key] for key in ("own", "own_low", "own_high")]
        assert [float(cell) for cell in cells[1:4]] == expected
        assert float(cells[heads.index("p (Holm)")]) == row["p_holm"]
    heads, *rows = downloaded(wide.page, "Languages of the vocabulary (vocabulary)")
    assert heads[2] == "of all (%)"
    assert float(rows[0][2]) == pytest.approx(100 * 33 / 97, rel=1e-12)
    heads, *rows = downloaded(wide.page, "Texts")
    assert rows[0][1] == "3000"


def test_intervals_of_a_figure_are_downloaded(wide: Opened) -> None:
    part = table_of(wide.page, "Task xquad (task): F1").locator("figure").first
    with wide.page.expect_download() as caught:
        part.locator("button.csv").click()
    rows = [row for row in read_csv(caught.value) if row[0] == "under the intervention"]
    frame = solved(OFF, controls=2).to_frame().query("intervention == 'fr off'")
    for row, (_, expected) in zip(rows, frame.iterrows(), strict=False):
        ends = [float(cell) for cell in row[3:6]]
        assert ends == pytest.approx([expected[k] for k in ("score", "score_low", "score_high")])


MESSY = ["+0.5 [+0.1, +0.9]", "-1.25 [-2.0, 0.0]", "", "<.001", "1,234", "12 %", "word", ".5", "−3"]


@pytest.fixture(scope="module")
def messy(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A page with one table, of all that a cell can be."""
    rows = [[f"n{n}", cell, "same" if n % 2 else "other"] for n, cell in enumerate(MESSY)]
    section = Section("Messy", columns=["name", "value", "group"], rows=rows)
    made = tmp_path_factory.mktemp("messy")
    some_neurons({"en": 3}).save(made / "lape.safetensors")
    with pytest.MonkeyPatch.context() as patch, opening(browser) as browse:
        patch.setattr(pages, "_sections", lambda results: [section])
        yield browse(report(made)).page


def test_the_first_stop_of_the_keyboard_skips_the_contents(messy: Any) -> None:
    messy.keyboard.press("Tab")
    assert messy.evaluate("document.activeElement.textContent") == "Skip to the results"
    messy.keyboard.press("Enter")
    assert messy.evaluate("document.activeElement.id") == "results"


def test_numbers_sort_as_numbers_words_after_them_and_nothing_last(messy: Any) -> None:
    head = messy.locator("th", has_text="value")
    head.locator("button").click()
    numbers = ["−3", "-1.25 [-2.0, 0.0]", "<.001", "+0.5 [+0.1, +0.9]", ".5", "12 %", "1,234"]
    assert column(messy, 2)[: len(MESSY)] == [*numbers, "word", ""]
    assert head.get_attribute("aria-sort") == "ascending"
    assert messy.locator("[role=status]").text_content() == "Sorted by value, ascending"
    head.locator("button").click()
    backwards = ["1,234", "12 %", "+0.5 [+0.1, +0.9]", ".5", "<.001", "-1.25 [-2.0, 0.0]", "−3"]
    assert column(messy, 2)[: len(MESSY)] == ["word", *backwards, ""]
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").click()
    assert column(messy, 2)[: len(MESSY)] == MESSY
    assert head.get_attribute("aria-sort") is None


def test_rows_that_are_alike_keep_their_order_and_one_column_is_sorted_at_a_time(
    messy: Any,
) -> None:
    messy.locator("th", has_text="value").locator("button").focus()
    messy.keyboard.press("Enter")
    messy.keyboard.press("Tab")  # the next head
    messy.keyboard.press("Space")
    assert messy.locator("[aria-sort]").all_text_contents() == ["group"]
    order = column(messy, 1)[: len(MESSY)]
    # within each group as they were, by value
    assert order == ["n8", "n0", "n4", "n6", "n2", "n1", "n3", "n7", "n5"]
    for _ in range(2):
        messy.locator("th", has_text="group").locator("button").click()
    assert column(messy, 2)[: len(MESSY)] == MESSY


def test_a_long_table_shows_its_beginning_until_all_is_asked_for(wide: Opened) -> None:
    section = table_of(wide.page, "Neurons of highest score (scores)")
    rows, more = section.locator("table.result tbody tr"), section.locator("button.more")
    total = rows.count()
    assert total == 90
    seen = rows.evaluate_all("all => all.map(row => row.checkVisibility())")
    assert seen == [True] * 20 + [False] * 70
    # what is sorted to the front is what is seen
    section.locator("th button", has_text="mean score").click()
    best = [float(cell) for cell in column(section, 4)]
    assert best == sorted(best)
    assert rows.nth(19).is_visible() and not rows.nth(20).is_visible()
    assert more.text_content() == "Show all 90 rows"
    assert more.get_attribute("aria-expanded") == "false"
    more.focus()
    wide.page.keyboard.press("Enter")
    assert rows.last.is_visible()
    assert more.get_attribute("aria-expanded") == "true"
    more.click()
    assert not rows.last.is_visible()


def test_a_table_on_a_phone_scrolls_by_itself_with_its_names_in_sight(narrow: Opened) -> None:
    section = table_of(narrow.page, EFFECT)
    box, name = section.locator(".table .wide"), section.locator("tbody th").first
    assert box.get_attribute("tabindex") == "0"
    before = name.bounding_box()["x"]
    box.evaluate("each => { each.scrollLeft = 200; }")
    assert box.evaluate("each => each.scrollLeft") == 200
    assert name.bounding_box()["x"] == pytest.approx(before, abs=1)


def test_what_does_not_scroll_is_no_stop_for_the_keyboard(wide: Opened) -> None:
    assert wide.page.locator(".wide:not([tabindex])").count() > 5
    stops = wide.page.evaluate(
        """() => [...document.querySelectorAll(".wide[tabindex]")]
            .filter(box => box.scrollWidth <= box.clientWidth).length"""
    )
    assert stops == 0
