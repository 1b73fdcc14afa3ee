"""Readings of single texts equal the model's own cache, token by token."""

from typing import Any

import pytest
import torch
from conftest import KV_HEADS, LetterTokenizer, bridge, hf_model

from lens_lang.corpora import Corpora
from lens_lang.errors import (
    ActivationError,
    CorpusError,
    LanguageError,
    OptionError,
    ShapeError,
    SiteError,
)
from lens_lang.intervene import ablate
from lens_lang.neurons import NeuronSet
from lens_lang.sites import ATTN_PATTERN, ATTN_V, MLP_POST, MLP_PRE, Site, n_layers, site_width
from lens_lang.token_readings import (
    AttentionPatterns,
    TokenActivations,
    attention_patterns,
    token_activations,
)

PAIRS = [(0, 3), (1, 7), (1, 2)]
SORTED = [(0, 3), (1, 2), (1, 7)]


def neurons(model: Any, site: Site = MLP_POST, pairs: list[tuple[int, int]] = PAIRS) -> NeuronSet:
    shape = (n_layers(model), site_width(model, site))
    return NeuronSet.from_indices(torch.tensor(pairs), site=site, shape=shape)


def caches(model: Any, corpora: Corpora) -> list[tuple[str, list[int], Any]]:
    """Every document by itself, BOS in front."""
    found = []
    for lang, docs in corpora.documents.items():
        for doc in docs:
            ids = doc.long().tolist()
            _, cache = model.run_with_cache(torch.tensor([[corpora.bos_id, *ids]]))
            found.append((lang, ids, cache))
    return found


@pytest.mark.lane
def test_activations_equal_the_cache(any_model: Any, corpora: Corpora) -> None:
    read = token_activations(any_model, corpora, neurons(any_model))
    assert read.labels == ("0.3", "1.2", "1.7")
    assert len(read) == 8
    for number, (lang, ids, cache) in enumerate(caches(any_model, corpora)):
        assert read.languages[number] == lang
        assert read.ids[number].tolist() == ids
        assert read.tokens[number] == tuple(f"[{item}]" for item in ids)
        for column, (layer, index) in enumerate(SORTED):
            expected = cache[MLP_POST.at(layer)][0, 1:, index]
            assert torch.allclose(read.activations[number][:, column], expected, atol=1e-5)
            fires = cache[MLP_PRE.at(layer)][0, 1:, index] > 0
            assert torch.equal(read.fires[number][:, column], fires)
        share = read.share_firing().activations[number]
        expected = torch.stack(
            [(cache[MLP_PRE.at(n)][0, 1:, i] > 0).float() for n, i in SORTED]
        ).mean(0)
        assert torch.allclose(share[:, 0], expected)


@pytest.mark.parametrize("site", [MLP_PRE, ATTN_V])
def test_other_sites(llama: Any, corpora: Corpora, site: Site) -> None:
    read = token_activations(llama, corpora, neurons(llama, site))
    for number, (_, _, cache) in enumerate(caches(llama, corpora)):
        for column, (layer, index) in enumerate(SORTED):
            expected = cache[site.at(layer)][0, 1:].flatten(1)[:, index]
            assert torch.allclose(read.activations[number][:, column], expected, atol=1e-5)
    if site == MLP_PRE:
        assert all(
            torch.equal(fires, values > 0)
            for fires, values in zip(read.fires, read.activations, strict=True)
        )
    else:
        with pytest.raises(OptionError, match="Only neurons of an MLP fire"):
            read.share_firing()


def test_bos_is_read_and_shown_only_if_it_counts(llama: Any, corpora: Corpora) -> None:
    plain = token_activations(llama, corpora, neurons(llama))
    counted = token_activations(llama, corpora.laid_out(count_bos=True), neurons(llama))
    for mine, theirs in zip(plain.activations, counted.activations, strict=True):
        assert torch.equal(mine, theirs[1:])
    assert all(ids[0] == 1 for ids in counted.ids)


def test_the_model_runs_no_further_than_needed(llama: Any, corpora: Corpora) -> None:
    ran: list[str] = []
    hooks = [(MLP_POST.at(layer), lambda values, hook: ran.append(hook.name)) for layer in (0, 2)]
    token_activations(llama, corpora, neurons(llama, pairs=[(0, 3)]), fwd_hooks=hooks)
    assert len(ran) == 2  # the first layer, once a language
    assert all(name.startswith("blocks.0.") for name in ran)


def test_interventions_are_seen(llama: Any, corpora: Corpora) -> None:
    some = neurons(llama, pairs=[(0, 3)])
    off = token_activations(llama, corpora, neurons(llama), fwd_hooks=ablate(some))
    plain = token_activations(llama, corpora, neurons(llama))
    assert all(float(each[:, 0].abs().max()) == 0 for each in off.activations)
    assert any(
        not torch.equal(a[:, 1:], b[:, 1:])
        for a, b in zip(off.activations, plain.activations, strict=True)
    )
    with pytest.raises(SiteError, match="no hook point"):
        token_activations(llama, corpora, some, fwd_hooks=[("blocks.0.mlp.hook_pst", print)])


def test_one_language_of_several(llama: Any, corpora: Corpora) -> None:
    read = token_activations(llama, corpora, neurons(llama))
    french = read.in_language("French")
    assert french.languages == ("fr",) * 3
    assert torch.equal(french.activations[1], read.activations[6])
    assert torch.equal(french.fires[1], read.fires[6])
    with pytest.raises(LanguageError):
        read.in_language("de")
    frame = read.to_frame()
    assert len(frame) == 56
    row = frame[(frame.text == 6) & (frame.position == 2)].iloc[0]
    assert row["1.7"] == pytest.approx(float(read.activations[6][2, 2]))
    assert "8 texts, 3 columns at mlp_post" in repr(read)


def test_texts_are_tokenised(gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bridge(hf_model("gpt2"))
    model.tokenizer = LetterTokenizer()
    read = token_activations(model, {"fr": ["le chat", "oui"], "en": ["no"]}, neurons(model))
    assert ["".join(each) for each in read.tokens] == ["le chat", "oui", "no"]
    assert read.languages == ("fr", "fr", "en")
    alone = token_activations(model, ["le chat"], neurons(model))
    assert torch.allclose(alone.activations[0], read.activations[0], atol=1e-5)
    with pytest.raises(CorpusError, match=r"give \[prompt\]"):
        token_activations(model, {"fr": "le chat"}, neurons(model))


def test_characters_of_several_tokens_are_whole() -> None:
    model = bridge(hf_model("gpt2"))
    model.tokenizer = LetterTokenizer()
    pieces = ["<pad>", "<bos>", "<eos>", "è", "Ĭ", "±", "Ġ", "a"]
    model.tokenizer.convert_ids_to_tokens = lambda ids: [pieces[n % len(pieces)] for n in ids]
    corpora = Corpora.from_tokens({"zh": [[6, 3, 4, 5, 7]]}, bos_id=1)
    expected = (" ", "·", "·", "花", "a")
    assert token_activations(model, corpora, neurons(model)).tokens == (expected,)
    assert attention_patterns(model, corpora, [(0, 1)]).tokens == (("<bos>", *expected),)


def test_neurons_that_cannot_be_read_are_refused(llama: Any, corpora: Corpora) -> None:
    some = neurons(llama)
    with pytest.raises(OptionError, match="of one site are needed, and this set is empty"):
        token_activations(llama, corpora, some - some)
    with pytest.raises(OptionError, match="of one site are needed, got mlp_post and attn_v"):
        token_activations(llama, corpora, some | neurons(llama, ATTN_V))
    with pytest.raises(ShapeError, match="another model"):
        token_activations(llama, corpora, NeuronSet({MLP_POST: torch.ones(2, 5).bool()}))


def test_nan_is_reported_with_its_text(corpora: Corpora) -> None:
    broken = hf_model("llama")
    with torch.no_grad():
        broken.model.embed_tokens.weight[96] = torch.nan
    docs = {"en": [[5, 6]], "fr": [[5, 6], [7, 96]]}
    model = bridge(broken)
    with pytest.raises(ActivationError, match="NaN or infinity on text 1 of 'fr'"):
        token_activations(model, Corpora.from_tokens(docs, bos_id=1), neurons(model))
    with pytest.raises(ActivationError, match="NaN or infinity on text 1 of 'fr'"):
        attention_patterns(model, Corpora.from_tokens(docs, bos_id=1), [(0, 1)])


@pytest.mark.lane
def test_patterns_equal_the_cache(any_model: Any, corpora: Corpora) -> None:
    heads = [(2, 1), (0, 5), (2, 0)]
    looks = attention_patterns(any_model, corpora, heads)
    assert looks.labels == ("2.1", "0.5", "2.0")
    for number, (lang, ids, cache) in enumerate(caches(any_model, corpora)):
        assert looks.languages[number] == lang
        assert looks.ids[number].tolist() == [1, *ids]
        for place, (layer, head) in enumerate(heads):
            expected = cache[ATTN_PATTERN.at(layer)][0, head]
            assert torch.allclose(looks.patterns[number][place], expected, atol=1e-5)
        assert torch.allclose(looks.patterns[number].sum(-1), torch.ones(()), atol=1e-5)
        assert float(looks.patterns[number].triu(1).abs().max()) == 0
    assert looks.in_language("fr").tokens == looks.tokens[5:]
    assert "8 texts, heads 2.1, 0.5, 2.0" in repr(looks)


def test_heads_that_do_not_exist_are_refused(llama: Any, corpora: Corpora) -> None:
    for heads, message in (
        ([(0, 6)], "head 6 in layer 0"),
        ([(3, 0)], "head 0 in layer 3"),
        ([], "got no head"),
    ):
        with pytest.raises(OptionError, match=message):
            attention_patterns(llama, corpora, heads)
    assert KV_HEADS < 6  # heads are those of the queries


def test_fields_that_do_not_fit_are_refused() -> None:
    ids = (torch.tensor([4, 5]),)
    with pytest.raises(ShapeError, match="2 tokens and 1 neurons"):
        TokenActivations(("fr",), (("a", "b"),), ids, (torch.ones(3, 1),), ("0.1",), MLP_POST)
    with pytest.raises(ShapeError, match="must be as many, got 2, 1, 1, 1"):
        TokenActivations(("fr", "en"), (("a", "b"),), ids, (torch.ones(2, 1),), ("0.1",), MLP_POST)
    with pytest.raises(ShapeError, match="2 tokens and 1 heads"):
        AttentionPatterns(("fr",), (("a", "b"),), ids, (torch.ones(2, 2, 2),), ("0.1",))


@pytest.mark.real
def test_on_gemma(gemma: Any) -> None:
    some = neurons(gemma, pairs=[(12, 1542), (17, 3)])
    read = token_activations(gemma, {"fr": ["Le chat boit du lait."], "zh": ["我喝牛奶。"]}, some)
    assert "".join(read.tokens[0]) == "Le chat boit du lait."
    assert "".join(read.tokens[1]) == "我喝牛奶。"
    rare = "𓂀 ꙮ"  # which Gemma writes byte by byte
    tokens = token_activations(gemma, [rare], some).tokens[0]
    assert "".join(tokens).replace("·", "") == rare
    assert "·" in tokens
    looks = attention_patterns(gemma, ["Le chat"], [(5, 0)])
    assert looks.tokens[0][0] == "<bos>"
    assert looks.languages == ("und",)
