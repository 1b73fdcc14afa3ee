"""Views show what they were given, whatever the tokens say, with one script and no network."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from browser import Browse

from lens_lang import plot
from lens_lang.contexts import NeuronContexts
from lens_lang.errors import (
    ActivationError,
    LanguageError,
    LensLangError,
    OptionError,
    ShapeError,
    StorageError,
)
from lens_lang.lens import LensTable
from lens_lang.plot import views as module
from lens_lang.plot.views import View, page_script, save_views
from lens_lang.sections.contexts import contexts_section
from lens_lang.sites import MLP_POST
from lens_lang.token_readings import AttentionPatterns, TokenActivations

HOSTILE = (
    "</script><script>window.hurt = 1</script>",
    "<img src=x onerror='window.hurt = 1'>",
    "&lt;b&gt;",
    "<!--",
    "\x00",
    "🐈",
    "\ufffd",
    "\n",
    "\t",
    "  ",
    "\u200d",
    "\\u003c",
    "{0}",
    "花",
)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def activations() -> TokenActivations:
    texts = (HOSTILE, ("Le", " chat", " boit"), (" القط", " يشرب", "."))
    return TokenActivations(
        ("en", "fr", "ar"),
        texts,
        tuple(torch.arange(len(text)) for text in texts),
        tuple(random(len(text), 3) * 3 for text in texts),
        ("0.3", "2.5", "2.9"),
        MLP_POST,
        tuple(random(len(text), 3) > 0 for text in texts),
    )


@pytest.fixture
def contexts() -> NeuronContexts:
    """Two languages, two neurons; French has one document only."""
    peak = torch.tensor([[[3.0, 1.0], [2.0, 0.5]], [[4.0, -torch.inf], [0.25, -torch.inf]]])
    window = torch.tensor([0, 1, 2]).expand(2, 2, 2, 3).clone()
    window[1, :, 1] = -1
    values = torch.stack([peak - 1, peak, peak * 0], -1).masked_fill(window < 0, 0.0)
    return NeuronContexts(
        languages=("en", "fr"),
        neurons=torch.tensor([[0, 3], [2, 5]]),
        peak=peak,
        document=torch.tensor([[[0, 1], [1, 0]], [[0, -1], [0, -1]]]),
        position=torch.ones(2, 2, 2).long(),
        window=window.int(),
        values=values,
        before=1,
        items=torch.tensor([0, 1, 2]).int(),
        spelled=torch.tensor(list(f"a{HOSTILE[1]} c".encode()), dtype=torch.uint8),
        ends=torch.tensor([1, 1 + len(HOSTILE[1]), 3 + len(HOSTILE[1])]),
        site=MLP_POST,
        n_tokens=torch.tensor([6, 3]),
    )


@pytest.fixture
def patterns() -> AttentionPatterns:
    rows = (random(2, 4, 4) * 2).masked_fill(torch.ones(4, 4).triu(1) > 0, -torch.inf)
    return AttentionPatterns(
        ("fr", "en"),
        (("<bos>", "Le", " chat", HOSTILE[0]), ("a", "b")),
        (torch.arange(4), torch.arange(2)),
        (rows.softmax(-1), torch.eye(2).expand(2, 2, 2)),
        ("0.1", "3.2"),
    )


@pytest.fixture
def table() -> LensTable:
    guesses = tuple(
        tuple((f"guess{layer}{pos}", "second") for pos in range(2)) for layer in range(3)
    )
    share = random(3, 2, 3).softmax(-1)
    return LensTable(
        ("Le", HOSTILE[1]),
        ("en", "fr"),
        torch.zeros(3, 2, 2).long(),
        torch.tensor([0.5, 0.25]).expand(3, 2, 2),
        guesses,
        torch.zeros(3, 2, 2).long(),
        share,
    )


@pytest.fixture
def every(
    activations: TokenActivations,
    contexts: NeuronContexts,
    patterns: AttentionPatterns,
    table: LensTable,
) -> dict[str, View]:
    """A view of every kind."""
    return {
        "one text, one neuron": plot.token_activations(
            activations.in_language("en").share_firing()
        ),
        "several texts": plot.token_activations(activations),
        "shares": plot.token_activations(activations.share_firing()),
        "contexts": plot.top_contexts(contexts),
        "contexts in en": plot.top_contexts(contexts, lang="en"),
        "attention": plot.attention_patterns(patterns),
        "layers": plot.lens_tokens(table),
        "languages": plot.token_languages(table, layer=-1),
    }


def content(view: View) -> dict[str, Any]:
    (found,) = re.findall(r'<script type="application/json">(.*?)</script>', str(view), re.DOTALL)
    return json.loads(found)


# --- what a view is ---


def test_html_holds_the_props_and_no_way_out_of_them(every: dict[str, View]) -> None:
    for view in every.values():
        html = str(view)
        assert html.lower().count("<script") == html.lower().count("</script") == 2
        inside = html.split('json">')[1].split("</script>")[0]
        assert "<" not in inside
        found = content(view)
        assert found["element"] == view.element
        for name, value in view.props.items():
            if name != "tokens":
                assert found["props"][name] == value


@pytest.mark.parametrize("token", HOSTILE)
def test_tokens_never_open_a_tag_or_an_entity(token: str) -> None:
    """circuitsvis puts them into the page as HTML."""
    (shown,) = content(View("ColoredTokens", {"tokens": [token], "values": [1]}, "x"))["props"][
        "tokens"
    ]
    assert not re.search(r"<[A-Za-z!/?]|&[A-Za-z#]", shown)
    assert shown.strip()
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", shown)
    if token.isalnum():
        assert shown == token


def test_titles_are_text() -> None:
    view = View("ColoredTokens", {"tokens": ["a"], "values": [1]}, '<b>"&')
    assert "&lt;b&gt;&quot;&amp;" in str(view)
    assert "<b>" not in str(view)


SAMPLE = {"tokens": [["a", "b"]], "activations": [[[[1.0]], [[2.0]]]]}


@pytest.mark.parametrize(
    ("element", "props", "error", "message"),
    [
        ("Tokens", {}, OptionError, "no element 'Tokens'; did you mean 'ColoredTokens'"),
        ("ColoredTokens", {"tokens": ["a"]}, ShapeError, "needs the property values"),
        (
            "ColoredTokens",
            {"tokens": ["a"], "values": [1, 2]},
            ShapeError,
            "each of 1 tokens, got the shape 2",
        ),
        ("ColoredTokens", {"tokens": ["a"], "values": [[1]]}, ShapeError, "a value of 0 axes"),
        ("ColoredTokens", {"tokens": [], "values": []}, ShapeError, "is empty"),
        (
            "ColoredTokens",
            {"tokens": ["a"], "values": torch.tensor([torch.nan])},
            ActivationError,
            r"cannot show nan \(values\[0\]\)",
        ),
        (
            "ColoredTokens",
            {"tokens": ["a"], "values": [1], "maxValue": float("inf")},
            ActivationError,
            "inf",
        ),
        ("ColoredTokens", {"tokens": ["a"], "values": [object()]}, OptionError, "must be JSON"),
        (
            "ColoredTokens",
            {"tokens": ["a"], "values": ["1"]},
            OptionError,
            "values must be numbers, got '1'",
        ),
        ("ColoredTokens", {"tokens": ["a"], "values": [True]}, OptionError, "must be numbers"),
        (
            "ColoredTokens",
            {"tokens": [7], "values": [1]},
            OptionError,
            "tokens must be text, got 7",
        ),
        ("ColoredTokens", {"tokens": "a", "values": [1]}, OptionError, "tokens must be a list"),
        (
            "ColoredTokens",
            {"tokens": ["a"], "values": [1], "minVal": 0},
            OptionError,
            "no property 'minVal'; did you mean 'minValue'",
        ),
        (
            "ColoredTokens",
            {"tokens": ["a"], "values": [1], "maxValue": "9"},
            OptionError,
            "maxValue must be numbers, got '9'",
        ),
        (
            "ColoredTokens",
            {"tokens": ["a"], "values": [1], "positiveColor": 3},
            OptionError,
            "positiveColor must be a str, got 3",
        ),
        (
            "ColoredTokensMulti",
            {"tokens": ["a"], "values": [[1]], "labels": [0]},
            OptionError,
            "labels must be text, got 0",
        ),
        ("ColoredTokensMulti", {"tokens": ["a"], "values": [1]}, ShapeError, "of 1 axes"),
        (
            "ColoredTokensMulti",
            {"tokens": ["a", "b"], "values": [[1], [1, 2]]},
            ShapeError,
            "ragged",
        ),
        (
            "ColoredTokensMulti",
            {"tokens": ["a"], "values": [[1, 2]], "labels": ["x"]},
            ShapeError,
            "labels must be 2 labels, got 1",
        ),
        (
            "TextNeuronActivations",
            {"tokens": ["a"], "activations": [[[1]]]},
            ShapeError,
            r"activations\[0\] must have a value",
        ),
        (
            "TextNeuronActivations",
            {**SAMPLE, "secondDimensionLabels": ["x", "y"]},
            ShapeError,
            "secondDimensionLabels must be 1",
        ),
        (
            "TextNeuronActivations",
            {"tokens": [["a"], ["b"]], "activations": [[[[1.0]]], [[[1.0, 2.0]]]]},
            ShapeError,
            r"activations\[1\] has other axes",
        ),
        (
            "TopkSamples",
            {"tokens": [[[["a"], ["b"]], [["c"]]]], "activations": [[[[1], [1]], [[1]]]]},
            ShapeError,
            "has other axes",
        ),
        (
            "TopkSamples",
            {"tokens": [[[["a"]]]], "activations": [[[[1]], [[1]]]]},
            ShapeError,
            "must be 1 long",
        ),
        (
            "AttentionHeads",
            {"tokens": ["a", "b"], "attention": [[[1, 0]]]},
            ShapeError,
            "heads x 2 x 2, as there are tokens, got 1 x 1 x 2",
        ),
        (
            "AttentionHeads",
            {"tokens": ["a"], "attention": [[[1]]], "attentionHeadNames": ["x", "y"]},
            ShapeError,
            "must be 1 labels",
        ),
    ],
)
def test_props_that_circuitsvis_would_take_in_silence_are_refused(
    element: str, props: dict[str, Any], error: type[LensLangError], message: str
) -> None:
    with pytest.raises(error, match=message):
        View(element, props, "x")


def test_halves_of_surrogate_pairs_are_replaced(tmp_path: Path) -> None:
    view = View("ColoredTokens", {"tokens": ["a\udc80", "\ud83d"], "values": [1, 2]}, "\udc80 x")
    assert view.props["tokens"] == ["a\ufffd", "\ufffd"]
    assert view.title == "\ufffd x"
    save_views(tmp_path / "x.html", [view], title="\ud83d")
    text = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "<title>\ufffd</title>" in text
    assert "<h2>\ufffd x</h2>" in text


def test_samples_may_differ_in_length() -> None:
    view = View(
        "TextNeuronActivations",
        {"tokens": [["a"], ["b", "c"]], "activations": [torch.ones(1, 1, 4), torch.ones(2, 1, 4)]},
        "x",
    )
    assert len(view.props["activations"][1]) == 2
    assert repr(view) == "View(TextNeuronActivations: x)"


# --- the script ---


def test_the_script_can_stand_in_a_page_and_asks_for_nothing() -> None:
    script = page_script()
    assert "</script" not in script.lower()
    assert "<!--" not in script
    assert "sourceMappingURL" not in script
    assert 'innerHTML="<script><\\/script>"' in script  # what stood there means the same
    assert len(script) > 1_200_000


def test_a_missing_script_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(StorageError, match="install circuitsvis"):
        page_script()


class TestInANotebook:
    """The script comes with the first view, and again when that cell runs again."""

    @pytest.fixture
    def view(self) -> View:
        return View("ColoredTokens", {"tokens": ["a"], "values": [1]}, "x")

    @pytest.fixture
    def running(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
        """What Jupyter says of the running cell."""
        request: dict[str, Any] = {}
        shell = SimpleNamespace(get_parent=lambda: request)
        monkeypatch.setattr(module, "_KERNEL", module._Kernel())
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
        return request

    def carries(self, shown: Any) -> bool:
        html = shown._repr_html_()
        assert ("CircuitsVis" in html) == (len(html) > 1_000_000)
        return len(html) > 1_000_000

    def test_once_where_nothing_is_known(self, view: View, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_KERNEL", module._Kernel())
        monkeypatch.delitem(sys.modules, "IPython", raising=False)
        assert [self.carries(view) for _ in range(3)] == [True, False, False]

    def test_again_with_the_same_cell_once(self, view: View, running: dict[str, Any]) -> None:
        def run(cell: str, message: str) -> bool:
            running.update(metadata={"cellId": cell}, header={"msg_id": message})
            return self.carries(view)

        assert run("a", "1")
        assert not run("a", "1")  # a second view of the same cell
        assert not run("b", "2")
        assert not run("b", "3")  # the script is in cell a, which stands
        assert run("a", "4")
        assert not run("a", "4")

    @pytest.mark.parametrize("metadata", [{}, {"cellId": None}, {"cellId": ""}])
    def test_without_cell_ids_a_cell_is_its_source(
        self, view: View, running: dict[str, Any], metadata: dict[str, Any]
    ) -> None:
        def run(source: str, message: str) -> bool:
            running.update(metadata=metadata, header={"msg_id": message}, content={"code": source})
            return self.carries(view)

        assert run("view", "1")
        assert not run("view", "1")
        assert not run("other", "2")
        assert run("view", "3")  # its output, with the script, was replaced
        assert not run("view", "3")

    def test_without_cells_once(self, view: View, running: dict[str, Any]) -> None:
        running.update(metadata={}, header={"msg_id": "1"})
        assert self.carries(view)
        running.update(header={"msg_id": "2"})
        assert not self.carries(view)

    def test_asked_for(self, view: View, running: dict[str, Any]) -> None:
        running.update(metadata={"cellId": "a"}, header={"msg_id": "1"})
        assert self.carries(plot.circuitsvis_script())
        assert not self.carries(view)
        assert self.carries(plot.circuitsvis_script())

    def test_every_time_where_outputs_are_pages(
        self, view: View, running: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
        assert running == {}
        assert [self.carries(view) for _ in range(2)] == [True, True]


# --- what the figures show ---


def test_activations_stand_at_their_tokens(activations: TokenActivations) -> None:
    view = plot.token_activations(activations)
    assert view.element == "TextNeuronActivations"
    assert view.props["secondDimensionLabels"] == ["0.3", "2.5", "2.9"]
    for number, lang in enumerate(activations.languages):
        assert view.props["tokens"][number] == [f"{lang} │ ", *activations.tokens[number]]
        values = torch.tensor(view.props["activations"][number])[:, 0]
        assert values[0].tolist() == [0, 0, 0]
        assert torch.allclose(values[1:], activations.activations[number], rtol=1e-3)
    one = plot.token_activations(activations.in_language("fr"))
    assert one.props["tokens"] == [["Le", " chat", " boit"]]
    share = plot.token_activations(activations.in_language("fr").share_firing())
    assert share.element == "ColoredTokens"
    assert share.props["values"] == pytest.approx(
        activations.fires[1].float().mean(1).tolist(), rel=1e-3
    )
    assert share.props["maxValue"] == -share.props["minValue"] == max(share.props["values"])


def test_contexts_stand_under_their_neuron(contexts: NeuronContexts) -> None:
    view = plot.top_contexts(contexts)
    assert view.props["zerothDimensionLabels"] == ["en", "fr"]
    assert view.props["firstDimensionLabels"] == ["0.3", "2.5"]
    for place, lang in enumerate(("en", "fr")):
        for number, pair in enumerate(((0, 3), (2, 5))):
            found = contexts.of(pair, lang)
            tokens = view.props["tokens"][place][number]
            values = view.props["activations"][place][number]
            assert tokens[: len(found)] == [list(one.tokens) for one in found]
            assert values[: len(found)] == [pytest.approx(one.values) for one in found]
            assert tokens[len(found) :] == [["-"]] * (2 - len(found))
    alone = plot.top_contexts(contexts, lang="French")
    assert alone.props["zerothDimensionLabels"] == ["fr"]
    assert len(alone.props["tokens"][0][0]) == 1
    with pytest.raises(LanguageError):
        plot.top_contexts(contexts, lang="de")
    for names in (["2.5"], [(2, 5)]):
        one = plot.top_contexts(contexts, neurons=names)
        assert one.props["firstDimensionLabels"] == ["2.5"]
        assert one.props["tokens"] == [each[1:] for each in view.props["tokens"]]
    turned = plot.top_contexts(contexts, neurons=["2.5", "0.3"])
    assert turned.props["firstDimensionLabels"] == ["2.5", "0.3"]
    with pytest.raises(OptionError, match=r"2\.6 were not collected"):
        plot.top_contexts(contexts, neurons=["2.6"])
    with pytest.raises(OptionError, match="shows 1 to 100 neurons, got 0"):
        plot.top_contexts(contexts, neurons=[])


def many(contexts: NeuronContexts, count: int) -> NeuronContexts:
    """The same contexts for many neurons."""
    some = {
        name: getattr(contexts, name)[:, :1].repeat_interleave(count, 1)
        for name in ("peak", "document", "position", "window", "values")
    }
    places = torch.stack([torch.zeros(count).long(), torch.arange(count)], 1)
    return replace(contexts, neurons=places, **some)


def test_no_more_contexts_are_shown_than_a_page_holds(contexts: NeuronContexts) -> None:
    assert len(plot.top_contexts(many(contexts, 100)).props["tokens"][0]) == 100
    with pytest.raises(OptionError, match="1 to 100 neurons, got 101: choose some with neurons="):
        plot.top_contexts(many(contexts, 101))
    section = contexts_section("x", many(contexts, 101))
    assert "101 neurons at mlp_post, of which the first 20 are shown." in section.text[0]
    (view,) = section.views
    assert view.props["firstDimensionLabels"] == [f"0.{n}" for n in range(20)]
    assert [row[:2] for row in section.rows] == [
        [f"0.{n}", lang] for n in range(20) for lang in ("en", "fr")
    ]
    assert "are shown" not in contexts_section("x", many(contexts, 20)).text[0]


def test_patterns_of_one_text(patterns: AttentionPatterns) -> None:
    view = plot.attention_patterns(patterns)
    assert view.props["tokens"] == list(patterns.tokens[0])
    assert torch.allclose(torch.tensor(view.props["attention"]), patterns.patterns[0], rtol=1e-3)
    assert view.props["attentionHeadNames"] == ["0.1", "3.2"]
    assert plot.attention_patterns(patterns, lang="en").props["tokens"] == ["a", "b"]
    assert plot.attention_patterns(patterns, text=1).props["tokens"] == ["a", "b"]
    with pytest.raises(OptionError, match="text must be below 1, got 1"):
        plot.attention_patterns(patterns, lang="en", text=1)


def test_layers_are_lines_of_guesses(table: LensTable) -> None:
    view = plot.lens_tokens(table)
    assert view.props["tokens"] == [
        ["prompt │ ", *table.pieces],
        *([f"layer {n} │ ", f"guess{n}0", f"guess{n}1"] for n in (2, 1, 0)),
    ]
    labels = view.props["secondDimensionLabels"]
    assert labels == ["the guess's probability", *(f"share of {x}" for x in ("en", "fr", "other"))]
    for line, layer in enumerate((2, 1, 0), start=1):
        values = torch.tensor(view.props["activations"][line])[1:, 0]
        assert values[:, 0].tolist() == [0.5, 0.5]
        assert torch.allclose(values[:, 1:], table.share[layer], rtol=1e-3)


# --- in a browser ---

CONTRAST = """() => [...document.querySelectorAll(".colored-tokens span > span")].map(token => {
  const light = (colour) => {
    const p = colour.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255);
    const l = p.map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * l[0] + 0.7152 * l[1] + 0.0722 * l[2] + 0.05;
  };
  const style = getComputedStyle(token);
  const [a, b] = [light(style.color), light(style.backgroundColor)];
  return Math.max(a, b) / Math.min(a, b);
})"""


@pytest.mark.parametrize("dark", [False, True])
def test_a_saved_page_shows_everything_offline(
    every: dict[str, View], browse: Browse, tmp_path: Path, dark: bool
) -> None:
    file = tmp_path / "views.html"
    save_views(file, list(every.values()), title="Views & <more>")
    text = file.read_text(encoding="utf-8")
    assert text.count("var CircuitsVis=") == 1
    opened = browse(file, dark=dark)
    page = opened.page
    page.locator("canvas").nth(2).wait_for()
    page.locator(".colored-tokens").nth(12).wait_for()
    assert page.query_selector_all(".lens-lang-view:not([data-drawn])") == []
    assert page.title() == "Views & <more>"
    sections = page.query_selector_all("section")
    for (name, view), section in zip(every.items(), sections, strict=True):
        shown = section.inner_text()
        assert view.title in shown
        assert "not on this page" not in shown, name
    first = sections[0].inner_text().replace("\u2060", "").replace("\xa0", " ")
    for token in ("</script><script>window.hurt = 1</script>", "&lt;b&gt;", "<!--", "花", "🐈"):
        assert token in first
    assert "U+200D" in first
    assert page.query_selector_all("main img, .lens-lang-place script") == []
    assert page.evaluate("window.hurt") is None
    ratios = page.evaluate(CONTRAST)
    assert len(ratios) > 40
    assert min(ratios) >= 4.5
    directions = page.eval_on_selector_all(".colored-tokens", "nodes => nodes.map(n => n.dir)")
    assert directions.count("rtl") == 2  # Arabic, with activations and with shares
    fields = page.eval_on_selector_all(
        "select, input", "nodes => nodes.map(n => n.getAttribute('aria-label'))"
    )
    assert fields
    assert all(fields)
    visible = "nodes => nodes.filter(n => n.offsetParent).map(n => n.options.length)"
    assert min(page.eval_on_selector_all("select", visible)) > 1
    names = page.eval_on_selector_all("canvas", "nodes => nodes.map(n => n.ariaLabel)")
    assert names == ["Attention pattern 0.1", "Attention pattern 3.2", "Attention pattern 0.1"]
    assert opened.errors == []
    assert opened.requests == []


def test_selecting_shows_other_samples_and_keeps_them_readable(
    every: dict[str, View], browse: Browse, tmp_path: Path
) -> None:
    file = tmp_path / "views.html"
    save_views(file, [every["contexts"], every["layers"]])
    opened = browse(file, width=360)
    page = opened.page
    page.wait_for_selector(".colored-tokens")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    contexts, layers = page.query_selector_all("section")
    language, neuron = contexts.query_selector_all("select")[:2]
    before = contexts.eval_on_selector_all(
        ".colored-tokens span > span", "nodes => nodes.map(n => n.style.backgroundColor)"
    )
    neuron.select_option(label="2.5")
    language.select_option(label="fr")
    page.wait_for_timeout(100)
    after = contexts.eval_on_selector_all(
        ".colored-tokens span > span", "nodes => nodes.map(n => n.style.backgroundColor)"
    )
    assert before != after
    assert "-" in contexts.inner_text()
    layers.query_selector("select >> visible=true").select_option(label="share of fr")
    token = layers.query_selector_all(".colored-tokens span > span")[4]
    token.hover()
    page.wait_for_selector("div > strong")
    value = page.eval_on_selector("div > strong", "node => node.parentElement.innerText")
    assert re.search(r"^-?\d+(\.\d{1,6})?$", value.split("\n")[-1]), value
    assert min(page.evaluate(CONTRAST)) >= 4.5
    assert opened.errors == []


@pytest.mark.parametrize("script_first", [True, False])
def test_views_are_drawn_whenever_the_script_comes(
    every: dict[str, View], browse: Browse, tmp_path: Path, script_first: bool
) -> None:
    """In a notebook the cells arrive in any order."""
    script = f"<script>{page_script()}</script>"
    view, other = str(every["shares"]), str(every["contexts"])
    parts = [script, view, other] if script_first else [view, script, other]
    file = tmp_path / "notebook.html"
    file.write_text("<!doctype html><meta charset=utf-8>" + "".join(parts), encoding="utf-8")
    opened = browse(file)
    opened.page.wait_for_function("document.querySelectorAll('.colored-tokens').length > 3")
    assert "not on this page" not in opened.page.inner_text("body")
    assert opened.errors == []


def test_without_the_script_a_view_says_how_to_get_it(
    every: dict[str, View], browse: Browse, tmp_path: Path
) -> None:
    file = tmp_path / "notebook.html"
    file.write_text("<!doctype html><meta charset=utf-8>" + str(every["shares"]), encoding="utf-8")
    opened = browse(file)
    assert "lens_lang.plot.circuitsvis_script()" in opened.page.inner_text("figure")
    opened.page.add_script_tag(content=page_script())  # another cell shows it
    opened.page.wait_for_selector(".colored-tokens")
    assert opened.errors == []


def test_a_view_that_cannot_be_drawn_stops_no_other(
    every: dict[str, View], browse: Browse, tmp_path: Path
) -> None:
    whole = str(every["shares"])
    script = re.compile(r"<script.*?</script>", re.DOTALL)
    broken = [
        script.sub("", whole),  # as a notebook that is not trusted shows it
        whole.replace('application/json">{', 'application/json">{{'),
        whole.replace('"element": "', '"element": "No'),
        re.sub(r'"activations": .*\]', '"activations": null', whole),
    ]
    assert len({*broken, whole}) == 5
    parts = ["<!doctype html><meta charset=utf-8>", *broken, whole, *broken, whole]
    file = tmp_path / "notebook.html"
    file.write_text(f"{''.join(parts)}<script>{page_script()}</script>", encoding="utf-8")
    page = browse(file).page
    page.wait_for_function("document.querySelectorAll('.colored-tokens').length == 6")
    page.wait_for_function("document.body.innerText.split('could not be drawn').length == 7")
    shown = page.eval_on_selector_all("figure", "nodes => nodes.map(n => n.innerText)")
    assert "there is no element NoTextNeuronActivations" in shown[2]
    for first in (0, 5):
        assert "not on this page yet" in shown[first]
        for text in shown[first + 1 : first + 4]:
            assert re.search("This view could not be drawn: .*Error", text)
        assert "share of 3 firing" in shown[first + 4]


# --- files ---


def test_saving_replaces_whole_or_not_at_all(
    every: dict[str, View], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "deep" / "views.html"
    save_views(file, [every["shares"]])
    first = file.read_bytes()
    save_views(file, [every["shares"]])
    assert file.read_bytes() == first

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError, match="No space left"):
        save_views(file, [every["contexts"]])
    assert file.read_bytes() == first
    assert [each.name for each in file.parent.iterdir()] == ["views.html"]


def test_only_views_are_saved(tmp_path: Path, every: dict[str, View]) -> None:
    with pytest.raises(OptionError, match="got none"):
        save_views(tmp_path / "x.html", [])
    assert not (tmp_path / "x.html").exists()
