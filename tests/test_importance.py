"""Importance is summed over documents, whatever the batches, and refuses what it cannot know."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import VOCAB, hf_model, random_documents, tiny
from float64 import in_float64, tiny64

from lens_lang import scoring
from lens_lang.collection import collect
from lens_lang.corpora import Corpora
from lens_lang.errors import (
    CorpusError,
    LanguageError,
    ModelError,
    OptionError,
    ShapeError,
    SiteError,
    StorageError,
)
from lens_lang.importance import Importance
from lens_lang.intervene import ablate
from lens_lang.models import bridge
from lens_lang.neurons import NeuronSet
from lens_lang.results import load
from lens_lang.scoring import SCORED, PLNDImportance
from lens_lang.sites import (
    ATTN_K,
    ATTN_Q,
    ATTN_V,
    ATTN_Z,
    MLP_POST,
    MLP_UP,
    RESID_POST,
    site_width,
)
from lens_lang.stats import ActivationFrequency

TOP = {"mlp": 10, "attn": 5}
ENGLISH = random_documents([5, 9, 3, 12, 7])
CORPORA = Corpora.from_tokens({"en": ENGLISH, "fr": random_documents([8, 4, 10], seed=1)}, bos_id=1)


def importance(seed: int = 0, **changes: Any) -> Importance:
    generator = torch.Generator().manual_seed(seed)
    n_documents = torch.randint(8, 12, (3,), generator=generator)
    fields: dict[str, Any] = {
        "languages": ("en", "fr", "zh"),
        "score_sum": {
            site: torch.rand(3, 2, 6, generator=generator, dtype=torch.float64)
            for site in (MLP_POST, ATTN_Q)
        },
        "hits": {
            site: torch.randint(0, 8, (3, 2, 6), generator=generator) for site in (MLP_POST, ATTN_Q)
        },
        "n_documents": n_documents,
        "n_tokens": n_documents * 30,
    }
    return Importance(**{**fields, **changes})


# --- collecting ---


@pytest.mark.lane
def test_every_site_of_every_architecture_is_scored(any_model: Any) -> None:
    """Binding removes neurons of the model and compares: closed forms that failed would raise."""
    imp = collect(any_model, CORPORA, PLNDImportance(top_k=TOP), progress=False)
    assert imp.sites == SCORED
    assert imp.n_documents.tolist() == [5, 3]
    assert imp.n_tokens.tolist() == [36, 22]
    for site in SCORED:
        width = site_width(any_model, site)
        assert imp.scores(site).shape == (2, 3, width)
        assert float(imp.scores(site).median()) > 0
        per_layer = imp.hits[site].sum(-1)
        k = 10 if site == MLP_POST else 5
        assert bool((per_layer <= k * imp.n_documents[:, None]).all())
        if site != MLP_POST:  # a ReLU may leave fewer units on than are asked for
            assert bool((per_layer == k * imp.n_documents[:, None]).all())


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3", "bloom"])
def test_a_batch_of_documents_scores_each_as_if_alone(architecture: str) -> None:
    """So padding never counts, and neither does what other rows hold."""
    model = tiny64(architecture)
    with in_float64():
        whole, alone = (
            collect(
                model,
                CORPORA["en"],
                PLNDImportance(top_k=TOP),
                batch_size=batch_size,
                progress=False,
            )
            for batch_size in (5, 1)
        )
        parts = [
            collect(
                model,
                Corpora.from_tokens({"en": [document]}, bos_id=1),
                PLNDImportance(top_k=TOP),
                progress=False,
            )
            for document in ENGLISH
        ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    for site in SCORED:
        for other in (alone, total):
            torch.testing.assert_close(
                whole.scores(site), other.scores(site), rtol=1e-9, atol=1e-12
            )
            assert torch.equal(whole.hits[site], other.hits[site])


def test_packed_corpora_are_read_document_by_document(llama: Any) -> None:
    packed = Corpora.from_tokens({"en": ENGLISH}, bos_id=1, ctx_len=6)
    spec = PLNDImportance(top_k=TOP)
    found = collect(llama, packed, spec, progress=False)
    expected = collect(llama, CORPORA["en"], spec, progress=False)
    for site in SCORED:
        assert torch.equal(found.score_sum[site], expected.score_sum[site])


def test_shares_of_the_corpora_add_up(llama: Any) -> None:
    spec = PLNDImportance(top_k=TOP)
    whole = collect(llama, CORPORA, spec, batch_size=1, progress=False)
    parts = [
        collect(llama, CORPORA.sharded(i, 3), spec, batch_size=1, progress=False) for i in range(3)
    ]
    total = parts[0] + parts[1] + parts[2]
    assert torch.equal(total.n_documents, whole.n_documents)
    for site in SCORED:
        assert torch.equal(total.hits[site], whole.hits[site])
        torch.testing.assert_close(total.scores(site), whole.scores(site))


def test_an_interrupted_run_ends_with_the_same_numbers(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = PLNDImportance(top_k=TOP)
    expected = collect(llama, CORPORA, spec, batch_size=2, progress=False)
    real, calls = scoring.mlp_importance, []

    def stop_in_the_fourth_document(post: Any, w_out: Any) -> Any:
        calls.append(1)
        if len(calls) == 3 + 3 * 3 + 1:  # three layers each, after those of the removal check
            raise KeyboardInterrupt
        return real(post, w_out)

    monkeypatch.setattr(scoring, "mlp_importance", stop_in_the_fourth_document)
    with pytest.raises(KeyboardInterrupt):
        collect(llama, CORPORA, spec, batch_size=2, run_dir=tmp_path, progress=False)
    monkeypatch.setattr(scoring, "mlp_importance", real)
    resumed = collect(llama, CORPORA, spec, batch_size=2, run_dir=tmp_path, progress=False)
    for site in SCORED:
        assert torch.equal(resumed.score_sum[site], expected.score_sum[site])
    again = load(tmp_path / "importance.safetensors")
    assert isinstance(again, Importance)
    assert torch.equal(again.hits[ATTN_K], expected.hits[ATTN_K])


def test_interventions_are_seen(gpt2: Any) -> None:
    mask = torch.zeros(3, site_width(gpt2, MLP_POST), dtype=torch.bool)
    mask[1, 7] = True
    imp = collect(
        gpt2,
        CORPORA,
        PLNDImportance(top_k=TOP, sites=(MLP_POST,)),
        fwd_hooks=ablate(NeuronSet({MLP_POST: mask})),
        progress=False,
    )
    assert bool((imp.scores(MLP_POST)[:, 1, 7] == 0).all())


def test_cut_and_left_out_documents_are_counted_and_said(
    llama: Any, caplog: pytest.LogCaptureFixture
) -> None:
    documents = {"en": random_documents([30, 1, 5, 40]), "fr": random_documents([6, 2])}
    corpora = Corpora.from_tokens(documents)
    spec = PLNDImportance(top_k=TOP, max_tokens=20, sites=(MLP_POST,))
    with caplog.at_level(logging.WARNING):
        imp = collect(llama, corpora, spec, progress=False)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "documents cut at 20 tokens: en 2",
        "documents left out for having one token: en 1",
    ]
    assert imp.provenance["corpora"]["documents cut"] == {"en": 2}
    assert imp.provenance["corpora"]["documents left out"] == {"en": 1}
    assert imp.n_tokens.tolist() == [20 + 20 + 5, 8]
    assert imp.n_documents.tolist() == [3, 2]


def test_one_token_after_bos_is_a_document(llama: Any) -> None:
    corpora = Corpora.from_tokens({"en": [[5]]}, bos_id=1)
    imp = collect(llama, corpora, PLNDImportance(top_k=TOP), progress=False)
    assert imp.n_documents.tolist() == [1]
    assert float(imp.scores(ATTN_Q).min()) > 0


def test_a_language_of_single_tokens_is_refused(llama: Any) -> None:
    corpora = Corpora.from_tokens({"en": [[5], [6]]})
    with pytest.raises(CorpusError, match="'en' has no document of at least 2 tokens"):
        collect(llama, corpora, PLNDImportance(top_k=TOP), progress=False)


def test_counting_tokens_and_documents_in_one_pass_needs_rows_that_are_documents(
    llama: Any,
) -> None:
    specs = (ActivationFrequency(), PLNDImportance(top_k=TOP, sites=(MLP_POST,)))
    freq, imp = collect(llama, CORPORA, *specs, progress=False)
    alone = collect(llama, CORPORA, specs[0], progress=False)
    assert torch.equal(freq.count, alone.count)
    assert imp.n_tokens.tolist() == freq.n_tokens.tolist()
    for pack in (True, False):  # rows that run on, rows that divide a document
        rows = Corpora.from_tokens({"en": ENGLISH}, bos_id=1, ctx_len=6, pack=pack)
        with pytest.raises(OptionError, match="collect them in two calls"):
            collect(llama, rows, *specs, progress=False)


# --- what counts as high ---


def collected(model: Any, **options: Any) -> Importance:
    return collect(model, CORPORA["en"], PLNDImportance(**options), progress=False)


def test_eps_counts_the_documents_whose_score_reaches_it(llama: Any) -> None:
    one = Corpora.from_tokens({"en": ENGLISH[:1]}, bos_id=1)
    scores = collect(llama, one, PLNDImportance(sites=(ATTN_V,)), progress=False).scores(ATTN_V)[0]
    bar = float(scores.flatten().sort().values[20])
    found = collect(llama, one, PLNDImportance(eps={"v": bar}, sites=(ATTN_V,)), progress=False)
    assert torch.equal(found.hits[ATTN_V][0].bool(), scores >= bar)
    assert found.rule["by"] == "eps"


def test_a_share_below_one_is_a_share_of_the_layer(llama: Any) -> None:
    share = collected(
        llama, top_k={"mlp": 0.25, "q": 0.5, "k": 16}, sites=(MLP_POST, ATTN_Q, ATTN_K)
    )
    assert share.hits[MLP_POST].sum(-1).tolist() == [[5 * 28] * 3]
    assert share.hits[ATTN_Q].sum(-1).tolist() == [[5 * 24] * 3]
    assert bool((share.hits[ATTN_K] == 5).all())  # all sixteen, in every document


def test_what_changes_nothing_is_never_high(llama: Any) -> None:
    """The first row sees one key only: no query or key column changes its pattern."""
    documents = Corpora.from_tokens({"en": [[5, 6]]}, count_bos=False)
    rows = dataclasses.replace(documents, bos_id=None)
    imp = collect(llama, rows, PLNDImportance(top_k={"attn": 48}, sites=(ATTN_Q,)), progress=False)
    zero = imp.scores(ATTN_Q) == 0
    assert not bool(imp.hits[ATTN_Q][zero].any())


def test_thresholds_of_one_structure_override_those_of_attention() -> None:
    spec = PLNDImportance(top_k={"mlp": 7, "attn": 3, "o": 2})
    assert list(spec.thresholds().values()) == [7, 3, 3, 3, 2]


# --- modes ---


def test_first_order_is_near_where_single_channels_matter_little(llama: Any) -> None:
    # weights a tenth as large: scores a hundredth
    model = hf_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= 0.1
    small = bridge(model)
    options: dict[str, Any] = {"top_k": TOP, "sites": (ATTN_Q, ATTN_K)}
    exact = collected(small, **options)
    near = collected(small, **options, mode="first_order")
    for site in (ATTN_Q, ATTN_K):
        torch.testing.assert_close(near.scores(site), exact.scores(site), rtol=0.05, atol=1e-4)
    assert near.mode == "first_order"


def test_released_mode_is_the_released_codes_formula(llama: Any) -> None:
    """Written out as its five-dimensional tensor, for one document."""
    tokens = torch.tensor([[1, *ENGLISH[3]]])
    corpora = Corpora.from_tokens({"en": [ENGLISH[3]]}, bos_id=1, count_bos=True)
    imp = collect(llama, corpora, PLNDImportance(mode="released", top_k=TOP), progress=False)
    names = ("attn.hook_rot_q", "attn.hook_rot_k", "attn.hook_attn_scores", "attn.hook_pattern")
    with torch.inference_mode():
        _, cache = llama.run_with_cache(tokens)
    q, k, scores, pattern = (cache[f"blocks.1.{name}"][0] for name in names)
    k = k.repeat_interleave(3, 1)
    delta = torch.einsum("tnj,snj->ntsj", q, k)
    moved = (scores[..., None] - delta).softmax(2) - pattern[..., None]
    expected = moved.square().sum((1, 2))  # head, channel
    torch.testing.assert_close(
        imp.scores(ATTN_Q)[0, 1], expected.flatten().double(), rtol=1e-4, atol=1e-6
    )
    by_group = expected.view(2, 3, 8).amax(1).flatten().double()
    torch.testing.assert_close(imp.scores(ATTN_K)[0, 1], by_group, rtol=1e-4, atol=1e-6)
    z = cache["blocks.1.attn.hook_z"][0].abs().sum(0)
    torch.testing.assert_close(imp.scores(ATTN_Z)[0, 1], z.flatten().double())
    torch.testing.assert_close(imp.scores(ATTN_V)[0, 1], z.view(2, 3, 8).amax(1).flatten().double())
    up = cache[MLP_UP.at(1)][0].abs().sum(0).double()
    torch.testing.assert_close(imp.scores(MLP_POST)[0, 1], up)


def test_released_mode_needs_a_gate(gpt2: Any) -> None:
    with pytest.raises(ModelError, match="MLPs without a gate"):
        collected(gpt2, mode="released")


def test_half_precision_scores_like_single() -> None:
    single, half = (
        collected(bridge(hf_model("gemma3").to(dtype)), top_k=TOP)
        for dtype in (torch.float32, torch.bfloat16)
    )
    for site in SCORED:
        ratio = half.scores(site) / single.scores(site)
        assert 0.9 < float(ratio.median()) < 1.1


# --- the check that the closed forms hold ---


@pytest.mark.parametrize("change", ["scale", "cap", "norm", "adjacent"])
def test_a_model_that_works_otherwise_than_is_read_from_it_is_refused(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = "gemma3" if change == "norm" else "llama"
    real = scoring.attention_rule

    def misread(model: Any, layer: int) -> Any:
        rule = real(model, layer)
        wrong = {
            "scale": {"scale": rule.scale * 1.1},
            "cap": {"cap": 0.05},
            "norm": {"q_norm": None},
            "adjacent": {"adjacent": True},
        }[change]
        return dataclasses.replace(rule, **wrong)

    monkeypatch.setattr(scoring, "attention_rule", misread)
    with pytest.raises(ModelError, match="but the closed form of PLND says"):
        PLNDImportance().bind(tiny(architecture))
    PLNDImportance(sites=(MLP_POST, ATTN_V, ATTN_Z)).bind(tiny(architecture))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: transformers.Olmo2ForCausalLM(
                transformers.Olmo2Config(
                    vocab_size=VOCAB,
                    hidden_size=48,
                    intermediate_size=112,
                    num_hidden_layers=2,
                    num_attention_heads=6,
                    num_key_value_heads=2,
                )
            ),
            "normalises queries and keys over more than one head",
        ),
        (
            lambda: transformers.GPTJForCausalLM(
                transformers.GPTJConfig(
                    vocab_size=VOCAB, n_embd=48, n_layer=2, n_head=6, rotary_dim=4, n_inner=112
                )
            ),
            "Leave ATTN_Q out of sites",
        ),
    ],
)
def test_attention_without_a_known_closed_form_is_refused(model: Any, message: str) -> None:
    torch.manual_seed(0)
    hf = model()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.normal_(0.0, 0.15)
    with pytest.raises(ModelError, match=message):
        PLNDImportance().bind(bridge(hf.eval()))


def test_quantised_weights_are_refused(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(llama.blocks[0].mlp)

    def unreadable(self: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(kind, "W_out", property(unreadable), raising=False)
    monkeypatch.setattr(scoring, "preflight", lambda model, sites: {})
    with pytest.raises(ModelError, match="quantised"):
        PLNDImportance().bind(llama)


# --- options ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": {"mlp": 1}, "eps": {"mlp": 1.0}}, "either top_k or eps"),
        ({"top_k": {"mpl": 1, "attn": 3}}, "there is no 'mpl'; did you mean 'mlp'"),
        ({"top_k": {"mlp": 0, "attn": 3}}, "threshold of 'mlp' must be above 0, got 0"),
        ({"top_k": {"mlp": 5}}, "no threshold for 'q'"),
        ({"eps": {"attn": 0.5}}, "no threshold for 'mlp'"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"sites": ()}, "sites must be some of"),
        ({"sites": (RESID_POST,)}, "sites must be some of"),
        ({"target": "output", "mode": "first_order"}, "use mode='exact'"),
    ],
)
def test_wrong_options_get_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PLNDImportance(**options)


# --- the result ---


def test_adding_matches_languages_by_name() -> None:
    one, two = importance(0), importance(1)
    order = [2, 0, 1]
    shuffled = Importance(
        languages=tuple(two.languages[i] for i in order),
        score_sum={site: x[order] for site, x in two.score_sum.items()},
        hits={site: x[order] for site, x in two.hits.items()},
        n_documents=two.n_documents[order],
        n_tokens=two.n_tokens[order],
    )
    total, again = one + two, one + shuffled
    for site in one.sites:
        assert torch.equal(total.score_sum[site], again.score_sum[site])
        assert torch.equal(total.hits[site], one.hits[site] + two.hits[site])
    assert torch.equal(total.n_documents, again.n_documents)


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "released"},
        {"rule": {"by": "eps"}},
        {"languages": ("en", "fr", "de")},
        {"score_sum": {}, "hits": {}},
    ],
)
def test_other_measurements_are_not_added(changes: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="Cannot add importances"):
        importance() + importance(**changes)


def test_saving_and_loading_is_the_identity(tmp_path: Path) -> None:
    imp = importance(rule={"by": "top_k"}, provenance={"model": "toy"})
    imp.save(tmp_path / "x.safetensors")
    loaded = load(tmp_path / "x.safetensors")
    assert isinstance(loaded, Importance)
    assert (loaded.languages, loaded.sites, loaded.rule, loaded.mode, loaded.provenance) == (
        imp.languages,
        imp.sites,
        imp.rule,
        imp.mode,
        imp.provenance,
    )
    for site in imp.sites:
        assert torch.equal(loaded.score_sum[site], imp.score_sum[site])
        assert torch.equal(loaded.hits[site], imp.hits[site])


def test_a_damaged_header_is_one_sentence(tmp_path: Path) -> None:
    from lens_lang.storage import write_tensors

    write_tensors(tmp_path / "x.safetensors", "Importance", {"languages": ["en"]}, {})
    with pytest.raises(StorageError, match="is damaged: 'sites' is missing or malformed"):
        Importance.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hits": {}}, ShapeError, "must speak of the same sites"),
        (
            {"hits": {s: torch.zeros(3, 2, 5).long() for s in (MLP_POST, ATTN_Q)}},
            ShapeError,
            "of one shape",
        ),
        ({"n_documents": torch.tensor([1, 1, 1])}, ShapeError, "number of hits at mlp_post"),
        (
            {
                "n_documents": torch.tensor([9, 0, 9]),
                "hits": {s: torch.zeros(3, 2, 6).long() for s in (MLP_POST, ATTN_Q)},
            },
            LanguageError,
            "No document was scored for fr",
        ),
    ],
)
def test_sums_that_do_not_go_together_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        importance(**changes)


def test_an_unscored_site_is_named() -> None:
    with pytest.raises(SiteError, match="attn_v was not scored; mlp_post, attn_q were"):
        importance().scores(ATTN_V)


def test_ranking_is_by_mean_score_within_a_site() -> None:
    imp = importance()
    frame = imp.ranked("fr")
    assert list(frame.columns) == ["site", "layer", "neuron", "rank", "score", "share"]
    for site in imp.sites:
        part = frame[frame["site"] == site.name]
        assert len(part) == int((imp.hits[site][1] > 0).sum())
        assert part["score"].is_monotonic_decreasing
        assert part["rank"].tolist() == list(range(1, len(part) + 1))
        first = part.iloc[0]
        layer, neuron = int(first["layer"]), int(first["neuron"])
        assert first["score"] == float(imp.scores(site)[1, layer, neuron])
        assert first["share"] == float(imp.share(site)[1, layer, neuron])
    assert set(imp.ranked("French", site=ATTN_Q)["site"]) == {"attn_q"}


def test_it_says_what_it_is() -> None:
    assert repr(importance(n_documents=torch.tensor([9, 10, 11]))) == (
        "Importance(exact: mlp_post, attn_q; documents: en 9, fr 10, zh 11)"
    )
