"""Layers read as predictions: the model's own at the end, sums by language everywhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    VOCAB,
    LetterTokenizer,
    has_hooked_transformer,
    hf_model,
    random_documents,
    tiny,
)

from lens_lang import readout, results
from lens_lang.corpora import Corpora
from lens_lang.curves import LanguageCurve
from lens_lang.errors import (
    ActivationError,
    CorpusError,
    LanguageError,
    ModelError,
    OptionError,
    ShapeError,
    SiteError,
)
from lens_lang.intervene import ablate, describe_hooks
from lens_lang.lens import first_documents, language_curve, lens_table
from lens_lang.models import bridge
from lens_lang.neurons import NeuronSet
from lens_lang.readout import check_readout, read_logits
from lens_lang.sites import MLP_POST, RESID_POST, RESID_PRE, n_layers, site_width
from lens_lang.vocabulary import OTHER, VocabularyLanguages


def a_vocabulary(seed: int = 0) -> VocabularyLanguages:
    """Every item spread over three languages and *other*."""
    share = torch.rand(VOCAB, 4, generator=torch.Generator().manual_seed(seed)) ** 3
    return VocabularyLanguages(("en", "fr", "zh"), share / share.sum(1, keepdim=True))


def some_neurons(model: Any) -> NeuronSet:
    generator = torch.Generator().manual_seed(1)
    shape = (n_layers(model), site_width(model, MLP_POST))
    return NeuronSet({MLP_POST: torch.rand(shape, generator=generator) < 0.2})


def residuals(model: Any, tokens: list[int], fwd_hooks: Any = ()) -> torch.Tensor:
    """The residual stream of all layers at all positions, by TransformerLens's own cache."""
    names = [RESID_PRE.at(0), *(RESID_POST.at(layer) for layer in range(n_layers(model)))]
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook_fn(values: torch.Tensor, hook: Any) -> None:
            seen[name] = values.detach().clone()

        return hook_fn

    hooks = [*fwd_hooks, *((name, keep(name)) for name in names)]
    with torch.inference_mode():
        model.run_with_hooks(torch.tensor([tokens]), fwd_hooks=hooks)
    return torch.stack([seen[name][0] for name in names])


def predictions(model: Any, resid: torch.Tensor, *, norm: bool = True) -> torch.Tensor:
    with torch.inference_mode():
        flat = resid.flatten(0, 1)
        chances = read_logits(model, flat, norm=norm).double().softmax(-1)
    return chances.view(*resid.shape[:2], -1)


# --- readout ---


@pytest.mark.lane
def test_the_last_layer_reads_as_the_models_own_prediction(any_model: Any) -> None:
    tokens = [1, 5, 9, 3, 60]
    check_readout(any_model)
    read = predictions(any_model, residuals(any_model, tokens))[-1]
    with torch.inference_mode():
        own = any_model(torch.tensor([tokens]))[0].double().softmax(-1)
    assert (read - own).abs().max() < 1e-5


@pytest.mark.lane
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_reading_without_the_norm_is_something_else(architecture: str) -> None:
    model = tiny(architecture)
    resid = residuals(model, [1, 5, 9])
    read, raw = predictions(model, resid), predictions(model, resid, norm=False)
    assert (read[-1] - raw[-1]).abs().max() > 1e-3


@pytest.mark.skipif(has_hooked_transformer(), reason="TransformerLens 3 has no readout of its own")
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3", "gpt2", "opt"])
def test_the_readout_is_that_of_transformer_lens_4(architecture: str) -> None:
    from transformer_lens.tools.analysis.logit_lens import logit_readout

    model = tiny(architecture)
    resid = residuals(model, [1, 5, 9, 3])
    theirs = logit_readout(model, resid, return_type="probs").values.double()
    assert (predictions(model, resid) - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("scaled", ["granite", "cohere"])
def test_scales_behind_the_unembedding_are_applied(scaled: str) -> None:
    import transformers
    from conftest import _GATED

    configs: dict[str, Any] = {
        "granite": (transformers.GraniteForCausalLM, transformers.GraniteConfig, "logits_scaling"),
        "cohere": (transformers.CohereForCausalLM, transformers.CohereConfig, "logit_scale"),
    }
    model_class, config_class, option = configs[scaled]
    torch.manual_seed(0)
    model = bridge(model_class(config_class(**_GATED, **{option: 3.0})).eval())
    check_readout(model)


def test_a_model_that_does_more_before_its_logits_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = bridge(hf_model("llama"))
    monkeypatch.setattr(model.adapter, "apply_output_logits_transform", lambda logits: 2 * logits)
    corpora = Corpora.from_tokens({"fr": [[5, 9]]})
    for run in (
        lambda: check_readout(model),
        lambda: language_curve(model, corpora, a_vocabulary()),
    ):
        with pytest.raises(ModelError, match="does something more before its logits"):
            run()


@pytest.mark.parametrize("name", ["ln_final.hook_normalized", "unembed.hook_in"])
def test_hooks_that_could_not_act_are_refused(llama: Any, name: str) -> None:
    corpora = Corpora.from_tokens({"fr": [[5, 9]]})
    hooks = [(name, lambda values, hook: values)]
    with pytest.raises(SiteError, match="comes after the last block"):
        language_curve(llama, corpora, a_vocabulary(), fwd_hooks=hooks)


# --- curves ---


@pytest.fixture
def prompts() -> Corpora:
    """Two languages, prompts of uneven length, with BOS."""
    return Corpora.from_tokens(
        {"en": random_documents([5, 9, 2]), "fr": random_documents([8, 3], seed=1)}, bos_id=1
    )


def by_hand(
    model: Any, prompts: Corpora, vocabulary: VocabularyLanguages, **options: Any
) -> torch.Tensor:
    """Every prompt alone, every position, the whole distribution, in float64."""
    last, top_k = options.get("last", False), options.get("top_k")
    hooks = options.get("fwd_hooks", ())
    rows = []
    for docs in prompts.documents.values():
        for doc in docs:
            resid = residuals(model, [1, *doc.tolist()], hooks)
            chances = predictions(model, resid, norm=options.get("norm", True))
            if top_k is None:
                share = chances @ vocabulary.share.double()
            else:
                share = vocabulary.share.double()[chances.topk(top_k).indices].mean(2)
            rows.append(share[:, -1] if last else share[:, 1:].mean(1))  # BOS is no text
    return torch.stack(rows)


@pytest.mark.lane
def test_curves_are_sums_of_probability_by_language(any_model: Any, prompts: Corpora) -> None:
    vocabulary = a_vocabulary()
    curve = language_curve(any_model, prompts, vocabulary, batch_size=2)
    assert curve.languages == ("en", "fr", "zh")
    assert curve.prompt_languages == ("en", "en", "en", "fr", "fr")
    assert (curve.values - by_hand(any_model, prompts, vocabulary)).abs().max() < 1e-5
    assert torch.allclose(curve.values.sum(-1), torch.ones((), dtype=torch.float64), atol=1e-6)


@pytest.mark.lane
@pytest.mark.parametrize(
    "options",
    [{"last": True}, {"top_k": 1}, {"top_k": 7, "last": True}, {"norm": False}],
    ids=str,
)
def test_every_way_of_reading_is_what_it_says(options: dict[str, Any], prompts: Corpora) -> None:
    model, vocabulary = tiny("gemma2"), a_vocabulary()
    given = dict(options)
    positions: Any = "last" if given.pop("last", False) else "all"
    curve = language_curve(model, prompts, vocabulary, positions=positions, **given)
    assert (curve.values - by_hand(model, prompts, vocabulary, **options)).abs().max() < 1e-5


def test_chunks_and_batches_change_nothing(
    llama: Any, prompts: Corpora, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = language_curve(llama, prompts, a_vocabulary(), batch_size=8)
    monkeypatch.setattr(readout, "CHUNK_LOGITS", 3 * VOCAB)
    rows: list[int] = []
    monkeypatch.setattr(
        "lens_lang.lens.read_logits",
        lambda model, resid, norm: (rows.append(len(resid)), read_logits(model, resid, norm=norm))[
            1
        ],
    )
    parts = language_curve(llama, prompts, a_vocabulary(), batch_size=1)
    assert max(rows) == 3
    assert torch.allclose(parts.values, whole.values, atol=1e-6)


@pytest.mark.lane
def test_curves_under_an_intervention(any_model: Any, prompts: Corpora) -> None:
    hooks = ablate(some_neurons(any_model))
    vocabulary = a_vocabulary()
    plain = language_curve(any_model, prompts, vocabulary)
    off = language_curve(any_model, prompts, vocabulary, fwd_hooks=hooks)
    expected = by_hand(any_model, prompts, vocabulary, fwd_hooks=hooks)
    assert (off.values - expected).abs().max() < 1e-5
    change = off - plain
    assert change.values[:, 0].abs().max() == 0  # nothing comes before the embeddings
    assert change.values[:, -1].abs().max() > 1e-4
    assert change.values.sum(-1).abs().max() < 1e-6


def test_hooks_may_depend_on_the_language_of_the_prompt(llama: Any, prompts: Corpora) -> None:
    hooks = ablate(some_neurons(llama))
    vocabulary = a_vocabulary()
    plain = language_curve(llama, prompts, vocabulary)
    off = language_curve(llama, prompts, vocabulary, fwd_hooks=hooks)
    mixed = language_curve(llama, prompts, vocabulary, fwd_hooks={"French": hooks})
    assert mixed.provenance["edits"]["fr"] == describe_hooks(hooks) != []
    assert not any(said for lang, said in mixed.provenance["edits"].items() if lang != "fr")
    assert torch.equal(mixed.of("en").values, plain.of("en").values)
    assert torch.equal(mixed.of("fr").values, off.of("fr").values)
    with pytest.raises(LanguageError, match="no language 'de'"):
        language_curve(llama, prompts, vocabulary, fwd_hooks={"de": hooks})


@pytest.mark.lane
def test_curves_while_generating_are_what_the_model_saw(any_model: Any) -> None:
    """Step by step without a cache: the readout of every forward pass at its last position."""
    vocabulary, start, steps = a_vocabulary(), [1, 7, 30, 4], 4
    hooks = ablate(some_neurons(any_model))
    tokens, seen = list(start), []
    for _ in range(steps):
        chances = predictions(any_model, residuals(any_model, tokens, hooks))
        seen.append(chances[:, -1] @ vocabulary.share.double())
        tokens.append(int(chances[-1, -1].argmax()))
    prompts = Corpora.from_tokens({"fr": [start[1:]]}, bos_id=1)
    options: dict[str, Any] = {"new_tokens": steps, "fwd_hooks": hooks}
    curve = language_curve(any_model, prompts, vocabulary, positions="new", **options)
    assert (curve.values[0] - torch.stack(seen).mean(0)).abs().max() < 1e-5
    whole = language_curve(any_model, prompts, vocabulary, **options)
    longer = Corpora.from_tokens({"fr": [tokens[1:-1]]}, bos_id=1)
    expected = by_hand(any_model, longer, vocabulary, fwd_hooks=hooks)
    assert (whole.values - expected).abs().max() < 1e-5


def test_texts_are_prompts_with_or_without_a_language() -> None:
    model = bridge(hf_model("llama"))
    model.tokenizer = LetterTokenizer()
    texts = ["le chat", "un"]
    named = language_curve(model, {"French": texts}, a_vocabulary())
    assert named.prompt_languages == ("fr", "fr")
    unnamed = language_curve(model, texts, a_vocabulary())
    assert unnamed.prompt_languages == ("und", "und")
    assert torch.equal(named.values, unnamed.values)
    with pytest.raises(CorpusError, match="Prompt 1 of 'und' is empty"):
        language_curve(model, ["a", ""], a_vocabulary())


@pytest.mark.parametrize(
    ("prompts", "error", "sentence"),
    [
        ("le chat", CorpusError, "one string where a list"),
        ({"fr": "le chat"}, CorpusError, "one string where a list"),
        ({"fr": ["a"], "French": ["b"]}, LanguageError, "twice: fr"),
        ({"Frensh": ["a"]}, LanguageError, "No language is called"),
        ({"fr": []}, CorpusError, "'fr' is empty"),
    ],
)
def test_prompts_that_say_too_little_are_refused(
    prompts: Any, error: type[Exception], sentence: str
) -> None:
    model = bridge(hf_model("llama"))
    model.tokenizer = LetterTokenizer()
    with pytest.raises(error, match=sentence):
        language_curve(model, prompts, a_vocabulary())


def test_texts_may_come_from_a_generator() -> None:
    model = bridge(hf_model("llama"))
    model.tokenizer = LetterTokenizer()
    listed = language_curve(model, {"fr": ["le chat", "un"]}, a_vocabulary())
    drawn = language_curve(model, {"fr": iter(["le chat", "un"])}, a_vocabulary())
    assert torch.equal(listed.values, drawn.values)


def test_a_share_of_corpora_is_refused(llama: Any, prompts: Corpora) -> None:
    with pytest.raises(OptionError, match="a share of others"):
        language_curve(llama, prompts.sharded(0, 2), a_vocabulary())


def test_documents_are_cut_to_the_rows_of_their_corpora(llama: Any) -> None:
    long = random_documents([30])
    cut = Corpora.from_tokens({"fr": long}, ctx_len=11, bos_id=1, pack=False)
    short = Corpora.from_tokens({"fr": [long[0][:10]]}, bos_id=1)
    found = language_curve(llama, cut, a_vocabulary())
    assert torch.equal(found.values, language_curve(llama, short, a_vocabulary()).values)


def test_bos_counts_if_the_corpora_count_it(llama: Any, prompts: Corpora) -> None:
    counted = language_curve(llama, prompts.laid_out(count_bos=True), a_vocabulary())
    resid = residuals(llama, [1, *prompts.documents["en"][0].tolist()])
    expected = (predictions(llama, resid) @ a_vocabulary().share.double()).mean(1)
    assert (counted.values[0] - expected).abs().max() < 1e-5


def test_learned_positions_end_before_generating_past_them(gpt2: Any) -> None:
    prompts = Corpora.from_tokens({"fr": random_documents([120])}, bos_id=1)
    language_curve(gpt2, prompts, a_vocabulary(), positions="last", new_tokens=7)
    with pytest.raises(CorpusError, match="rows of 129 tokens, but the model has only 128"):
        language_curve(gpt2, prompts, a_vocabulary(), new_tokens=8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_half_precision_reads_nearly_the_same(
    architecture: str, dtype: torch.dtype, prompts: Corpora
) -> None:
    half = bridge(hf_model(architecture).to(dtype))
    found = language_curve(half, prompts, a_vocabulary())
    expected = language_curve(tiny(architecture), prompts, a_vocabulary())
    assert torch.allclose(found.values.sum(-1), torch.ones((), dtype=torch.float64), atol=1e-5)
    assert (found.values - expected.values).abs().mean() < 0.02


@pytest.mark.parametrize("top_k", [None, 5])
def test_nan_is_noticed_however_layers_are_read(llama: Any, prompts: Corpora, top_k: Any) -> None:
    nan = [(RESID_POST.at(1), lambda values, hook: values * float("nan"))]
    with pytest.raises(ActivationError, match="NaN or infinite logits"):
        language_curve(llama, prompts, a_vocabulary(), fwd_hooks=nan, top_k=top_k)
    speller = bridge(hf_model("llama"))
    speller.tokenizer = LetterTokenizer()
    with pytest.raises(ActivationError, match="NaN or infinite logits"):
        lens_table(speller, "un", a_vocabulary(), fwd_hooks=nan)


def test_filters_are_hooks_like_others(llama: Any, prompts: Corpora, tmp_path: Path) -> None:
    def double(values: torch.Tensor, hook: Any) -> torch.Tensor:
        return 2 * values

    name = RESID_POST.at(1)
    by_name = language_curve(llama, prompts, a_vocabulary(), fwd_hooks=[(name, double)])
    filtered = language_curve(
        llama, prompts, a_vocabulary(), fwd_hooks=[(lambda each: each == name, double)]
    )
    assert torch.equal(by_name.values, filtered.values)
    assert filtered.provenance["fwd_hooks"]["fr"] == [name]
    filtered.save(tmp_path / "curve.safetensors")
    with pytest.raises(SiteError, match="comes after the last block"):
        hooks = [(lambda each: each == "ln_final.hook_normalized", double)]
        language_curve(llama, prompts, a_vocabulary(), fwd_hooks=hooks)


def test_a_model_without_a_final_norm_to_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(model: Any, resid: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("Original component not set")

    monkeypatch.setattr(readout, "read_logits", missing)
    with pytest.raises(ModelError, match="no final norm and unembedding that can be read alone"):
        check_readout(bridge(hf_model("llama")))


def test_first_documents_are_the_first(prompts: Corpora) -> None:
    some = first_documents(prompts, 2)
    assert {lang: len(docs) for lang, docs in some.documents.items()} == {"en": 2, "fr": 2}
    assert torch.equal(some.documents["en"][1], prompts.documents["en"][1])
    with pytest.raises(OptionError, match="At least 1 prompt"):
        first_documents(prompts, 0)


def test_wrong_questions_are_refused(llama: Any, prompts: Corpora) -> None:
    vocabulary = a_vocabulary()
    for options, sentence in (
        ({"top_k": 0}, "top_k must be between 1 and 97, got 0"),
        ({"positions": "new"}, "new_tokens must be at least 1"),
        ({"new_tokens": -1}, "new_tokens must be at least 0"),
    ):
        with pytest.raises(OptionError, match=sentence):
            language_curve(llama, prompts, vocabulary, **options)
    large = VocabularyLanguages(("en",), torch.tensor([[1.0, 0.0]] * (VOCAB + 1)))
    with pytest.raises(ShapeError, match="made for another model"):
        language_curve(llama, prompts, large)
    with pytest.raises(SiteError, match=r"blocks.0.mlp.hook_past"):
        language_curve(
            llama, prompts, vocabulary, fwd_hooks=[("blocks.0.mlp.hook_past", lambda v, hook: v)]
        )
    with pytest.raises(CorpusError, match="Prompt 1 of 'fr' is empty"):
        language_curve(llama, Corpora.from_tokens({"fr": [[5], []]}), vocabulary)


# --- the value ---


def a_curve() -> LanguageCurve:
    values = torch.rand(7, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    return LanguageCurve(
        ("en", "fr", "zh"), ("en",) * 3 + ("fr",) * 4, values / values.sum(-1, keepdim=True)
    )


def test_means_intervals_and_frames_agree() -> None:
    curve = a_curve()
    assert curve.groups == ("en", "fr")
    assert torch.allclose(curve.mean[1], curve.values[3:].mean(0))
    assert bool((curve.ci[..., 0] <= curve.mean).all() and (curve.mean <= curve.ci[..., 1]).all())
    assert torch.equal(curve.of("French").mean[0], curve.mean[1])
    frame = curve.to_frame()
    assert len(frame) == 2 * 5 * 4
    row = frame[(frame["prompts in"] == "fr") & (frame["layer"] == 2)].set_index("language")
    assert row.at["zh", "share"] == pytest.approx(float(curve.mean[1, 2, 2]))
    assert row.at[OTHER, "ci_low"] == pytest.approx(float(curve.ci[1, 2, 3, 0]))


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(200):
        share = torch.rand(40, 1, 1, generator=generator).double()
        curve = LanguageCurve(("en",), ("en",) * 40, torch.cat([share, 1 - share], dim=-1))
        low, high = curve.interval(resamples=400)[0, 0, 0].tolist()
        covered += low <= 0.5 <= high
    assert 180 <= covered <= 199


def test_the_story_is_english_own_and_others() -> None:
    curve = a_curve()
    story = curve.story()
    assert story.labels == ("en", "own", "others", OTHER)
    english, french = curve.values[0], curve.values[4]
    assert torch.allclose(story.values[0, :, 0], english[:, 0])
    assert float(story.values[0, :, 1].abs().max()) == 0
    assert torch.allclose(story.values[4, :, 1], french[:, 1])
    assert torch.allclose(story.values[4, :, 2], french[:, 2])
    assert torch.allclose(story.values.sum(-1), torch.ones((), dtype=torch.float64))
    with pytest.raises(LanguageError, match="'und' have no own language"):
        LanguageCurve(("en",), ("und",), torch.tensor([[[1.0, 0.0]]]).double()).story()


def test_the_summary_finds_the_bend_of_a_drawn_curve() -> None:
    english = torch.tensor([0.0, 0.9, 0.1, 0.5, 0.7, 0.4, 0.1, 0.0]).double()
    own = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.2, 0.5, 0.7, 0.8]).double()
    values = torch.stack([english, own, 1 - english - own], dim=1)
    curve = LanguageCurve(("en", "fr"), ("fr", "fr"), torch.stack([values, values]))
    (row,) = curve.summary().to_dict("records")
    # the share at layer 1 is what was just read
    assert (row["prompts"], row["layer"], row["takes_over"]) == ("fr", 4, 5)
    shares = [row[name] for name in ("own_first", "pivot", "own", "own_last")]
    assert shares == pytest.approx([0.6, 0.7, 0.2, 0.8])
    never = LanguageCurve(("en", "fr"), ("fr",), values[None, :5])
    assert never.summary()["takes_over"].isna().all()


def test_leaving_other_out_scales_the_rest() -> None:
    values = torch.tensor([[[0.2, 0.1, 0.7], [0.0, 0.0, 1.0]]]).double()
    curve = LanguageCurve(("en", "fr"), ("fr",), values).among_languages()
    assert curve.values[0].flatten().tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0, 0, 1])


def test_differences_are_no_shares() -> None:
    change = a_curve() - a_curve()
    assert change.is_difference
    assert not a_curve().is_difference
    for use in (change.summary, change.among_languages):
        with pytest.raises(OptionError, match="these are differences"):
            use()
    assert change.story().is_difference


def test_one_prompt_has_no_interval() -> None:
    curve = LanguageCurve(("en",), ("en",), torch.tensor([[[0.3, 0.7]]]).double())
    assert bool(curve.ci.isnan().all())


def test_only_curves_of_the_same_prompts_are_subtracted() -> None:
    curve = a_curve()
    assert float((curve - curve).values.abs().max()) == 0
    with pytest.raises(ShapeError, match="same prompts, layers and languages"):
        _ = curve - curve.of("fr")
    with pytest.raises(ShapeError, match="values of 1 prompts and 2 languages"):
        LanguageCurve(("en", "fr"), ("fr",), torch.zeros(2, 5, 3).double())


def test_a_curve_reaches_a_file_and_back(tmp_path: Path) -> None:
    curve = a_curve()
    curve.save(tmp_path / "curve.safetensors")
    again = results.load(tmp_path / "curve.safetensors")
    assert isinstance(again, LanguageCurve)
    assert torch.equal(again.values, curve.values)
    assert (again.languages, again.prompt_languages) == (curve.languages, curve.prompt_languages)


# --- one prompt ---


@pytest.mark.parametrize("where", ["prompt", "new"])
def test_hooks_on_the_prompt_or_on_new_tokens_are_refused(where: Any, prompts: Corpora) -> None:
    model, vocabulary = bridge(hf_model("llama")), a_vocabulary()
    model.tokenizer = LetterTokenizer()
    hooks = ablate(some_neurons(model), positions=where)
    with pytest.raises(OptionError, match="make them with positions='all'"):
        language_curve(model, prompts, vocabulary, fwd_hooks=hooks)
    with pytest.raises(OptionError, match="make them with positions='all'"):
        language_curve(model, prompts, vocabulary, fwd_hooks={"fr": hooks, "en": []})
    with pytest.raises(OptionError, match="make them with positions='all'"):
        lens_table(model, "un chat", vocabulary, fwd_hooks=hooks)


def test_a_table_shows_the_likeliest_items_of_every_layer_and_position() -> None:
    model, vocabulary = bridge(hf_model("llama")), a_vocabulary()
    model.tokenizer = LetterTokenizer()
    table = lens_table(model, "un chat", vocabulary, top_k=3)
    tokens = [1, *LetterTokenizer()(["un chat"])["input_ids"][0]]
    chances = predictions(model, residuals(model, tokens))
    likeliest = chances.topk(3)
    assert torch.equal(table.top, likeliest.indices)
    assert (table.probability - likeliest.values).abs().max() < 1e-5
    assert torch.equal(table.top_label, vocabulary.share.argmax(1)[table.top])
    assert (table.share - chances @ vocabulary.share.double()).abs().max() < 1e-5
    letters = LetterTokenizer().convert_ids_to_tokens
    assert table.pieces[1:] == tuple(letters(tokens[1:]))
    for k in range(3):
        item = int(table.top[2, 4, k])
        assert table.top_text[2][4][k] == (f"[{item}]" if item < 3 else letters([item])[0])
    with pytest.raises(OptionError, match="top_k must be between 1 and 97"):
        lens_table(model, "un chat", vocabulary, top_k=0)


@pytest.mark.lane
@pytest.mark.real
def test_gemma_understands_thinks_in_english_and_answers(gemma: Any) -> None:
    """The MWork story, on twelve held-out sentences: own words, then English, then own words."""
    train, test = Corpora.sample(gemma, languages=["en", "fr", "de", "es"]).split(0.8, seed=0)
    vocabulary = VocabularyLanguages.from_corpora(train, gemma)
    curve = language_curve(gemma, first_documents(test, 3), vocabulary)
    table = curve.summary().set_index("prompts")
    for lang in ("fr", "de", "es"):
        row = table.loc[lang]
        assert row["own_first"] > 0.3
        assert 9 <= row["layer"] <= 16
        assert row["pivot"] > 2 * row["own"]
        assert row["own_last"] > 5 * float(curve.story().of(lang).mean[0, -1, 0])
