"""NLL equals the model's own, deltas are paired, controls are fair, planted effects are found."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import VOCAB, hf_model, random_documents, tiny

from lens_lang import readout, results
from lens_lang.corpora import Corpora
from lens_lang.errors import (
    ActivationError,
    CorpusError,
    OptionError,
    ShapeError,
    SiteError,
    StorageError,
)
from lens_lang.evaluate import nll as nll_module
from lens_lang.evaluate import significance
from lens_lang.evaluate.nll import DocumentNLL, document_nll, token_nll
from lens_lang.evaluate.perplexity import PerplexityMatrix, perplexity_matrix
from lens_lang.evaluate.significance import (
    bootstrap_ratio,
    bootstrap_weights,
    percentile_interval,
    prediction_interval,
    student_quantile,
)
from lens_lang.intervene import ablate
from lens_lang.models import bridge
from lens_lang.neurons import NeuronSet
from lens_lang.sections.effect import why_not
from lens_lang.sites import MLP_POST, n_layers, site_width


def some_neurons(model: Any, *, share: float = 0.1, seed: int = 0) -> NeuronSet:
    generator = torch.Generator().manual_seed(seed)
    shape = (n_layers(model), site_width(model, MLP_POST))
    return NeuronSet({MLP_POST: torch.rand(shape, generator=generator) < share})


def nll_by_hand(model: Any, tokens: list[int], hooks: Any = ()) -> float:
    row = torch.tensor([tokens])
    with torch.inference_mode():
        logits = model.run_with_hooks(row, fwd_hooks=list(hooks))
    logp = logits[0].log_softmax(-1)
    return -sum(logp[t - 1, tokens[t]].item() for t in range(1, len(tokens)))


@pytest.mark.lane
def test_nll_is_the_models_own(any_model: Any, corpora: Corpora) -> None:
    found = document_nll(any_model, corpora, batch_size=3)
    for lang, docs in corpora.documents.items():
        for number in range(len(docs)):
            expected = nll_by_hand(any_model, [1, *docs[number].tolist()])
            assert found[lang].nll[0, number].item() == pytest.approx(expected, abs=1e-3)
        assert found[lang].n_tokens.tolist() == [len(docs[n]) for n in range(len(docs))]


@pytest.mark.lane
def test_interventions_are_seen(llama: Any, corpora: Corpora) -> None:
    hooks = ablate(some_neurons(llama))
    found = document_nll(llama, corpora["fr"], fwd_hooks=hooks)["fr"]
    tokens = [1, *corpora.documents["fr"][0].tolist()]
    assert found.nll[0, 0].item() == pytest.approx(nll_by_hand(llama, tokens, hooks), abs=1e-3)


@pytest.mark.lane
def test_chunks_of_any_size_give_the_same(
    llama: Any, corpora: Corpora, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = document_nll(llama, corpora)["en"].nll
    monkeypatch.setattr(readout, "CHUNK_LOGITS", 2 * VOCAB)
    widths: list[int] = []
    spy = ("unembed.hook_in", lambda values, hook: widths.append(values.shape[:-1].numel()))
    chunked = document_nll(llama, corpora, fwd_hooks=[spy])["en"].nll
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=0)
    assert max(widths) == 2  # never more logits at once than the chunk


def test_uniform_logits_give_the_logarithm_of_the_vocabulary(corpora: Corpora) -> None:
    flat = hf_model("llama")
    with torch.no_grad():
        flat.lm_head.weight.zero_()
    model = bridge(flat)
    matrix = perplexity_matrix(model, corpora, {"some": ablate(some_neurons(model))})
    expected = torch.full((1, 2), math.log(VOCAB), dtype=torch.float64)
    torch.testing.assert_close(matrix.nll, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(matrix.perplexity, expected.exp(), atol=1e-3, rtol=0)
    assert matrix.delta_nll.abs().max() == 0


def test_a_row_of_two_tokens_has_one_scored_token(llama: Any) -> None:
    docs = Corpora.from_tokens({"en": [[5, 9]]})  # no BOS: the first token is not scored
    found = document_nll(llama, docs)["en"]
    assert found.n_tokens.tolist() == [1]
    assert found.nll.item() == pytest.approx(nll_by_hand(llama, [5, 9]), abs=1e-4)


@pytest.mark.lane
def test_logits_are_capped_where_the_model_caps_them(corpora: Corpora) -> None:
    """`test_nll_is_the_models_own` runs on this model too; here it is shown to see the cap."""
    model = tiny("gemma2")
    cap = model.cfg.output_logits_soft_cap
    resid = torch.randn(4, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = model.unembed(model.ln_final(resid[None]))[0]
        capped = cap * torch.tanh(logits / cap)
        expected = torch.nn.functional.cross_entropy(capped, torch.arange(4), reduction="none")
        found = token_nll(model, resid, torch.arange(4))
    assert not torch.allclose(capped, logits, atol=0.1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_no_hooks_change_nothing_and_cost_nothing(
    llama: Any, corpora: Corpora, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = nll_module._batch_nll

    def counting(*args: Any) -> torch.Tensor:
        calls.append(1)
        return original(*args)

    monkeypatch.setattr(nll_module, "_batch_nll", counting)
    matrix = perplexity_matrix(llama, corpora, {"en": [], "fr": []}, controls=3)
    assert len(calls) == 2  # the baselines
    assert matrix.delta_nll.abs().max() == 0
    assert matrix.control.abs().max() == 0
    assert matrix.ci.abs().max() == 0


@pytest.mark.lane
def test_a_planted_neuron_moves_exactly_the_planted_language() -> None:
    """One neuron fires at the tokens of one language only and helps to predict the next one."""
    hf = hf_model("llama")
    mine, theirs = list(range(3, 40)), list(range(40, VOCAB))
    with torch.no_grad():
        direction = torch.zeros(48)
        direction[0] = 4.0
        hf.model.embed_tokens.weight[:, 0] = 0
        hf.model.embed_tokens.weight[mine, 0] = 4.0
        for name, parameter in hf.model.layers.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            elif "o_proj" in name or "down_proj" in name:
                parameter.zero_()  # nothing but the planted neuron writes
        mlp = hf.model.layers[1].mlp
        mlp.gate_proj.weight[17] = direction
        mlp.up_proj.weight[17] = direction
        mlp.down_proj.weight[1, 17] = 1.0
        hf.lm_head.weight[:, 1] = 0
        hf.lm_head.weight[mine, 1] = 2.0
        hf.model.norm.weight.fill_(1.0)
    model = bridge(hf)
    generator = torch.Generator().manual_seed(0)

    def documents(ids: list[int]) -> list[list[int]]:
        chosen = torch.randint(len(ids), (6, 12), generator=generator)
        return [[ids[i] for i in row] for row in chosen.tolist()]

    docs = Corpora.from_tokens({"xx": documents(mine), "yy": documents(theirs)})
    mask = torch.zeros(3, 112, dtype=torch.bool)
    mask[1, 17] = True
    matrix = perplexity_matrix(model, docs, {"xx": ablate(NeuronSet({MLP_POST: mask}))}, controls=4)
    assert matrix.delta_nll[0, 0] > 0.1
    assert matrix.delta_nll[0, 1] == 0
    assert matrix.ci[0, 0, 0] > 0
    assert matrix.control.abs().max() == 0
    verdict = matrix.selectivity().loc["xx"]
    assert verdict["specific"] and verdict["beyond_chance"] and verdict["fair_control"]
    assert verdict["selectivity"] == pytest.approx(float(matrix.delta_nll[0, 0]))


def test_controls_of_random_neurons_cover_zero_difference(llama: Any) -> None:
    """An intervention on random neurons is no different from its own controls."""
    docs = Corpora.from_tokens({"en": random_documents([20] * 30)}, bos_id=1)
    hooks = ablate(some_neurons(llama, share=0.05, seed=3))
    matrix = perplexity_matrix(llama, docs, {"random": hooks}, controls=20)
    low, high = matrix.control_ci[0, 0].tolist()
    spread = matrix._control_deltas("en")[0]
    assert low < float(spread.mean()) < high
    assert float(spread.min()) < float(matrix.delta_nll[0, 0]) < float(spread.max())


def test_controls_may_be_measured_on_their_own_language_only(llama: Any, corpora: Corpora) -> None:
    interventions = {
        "en": ablate(some_neurons(llama)),
        "fr": ablate(some_neurons(llama, seed=1)),
        "both": ablate(some_neurons(llama, seed=2)),
    }
    everywhere = perplexity_matrix(llama, corpora, interventions, controls=2)
    own = perplexity_matrix(llama, corpora, interventions, controls=2, control_on="own")
    measured = torch.tensor([[True, False], [False, True], [True, True]])
    assert torch.equal(~own.control.isnan(), measured)
    assert torch.equal(own.control[measured], everywhere.control[measured])
    assert torch.equal(own.delta_nll, everywhere.delta_nll)


def test_the_seed_decides_the_controls(llama: Any, corpora: Corpora) -> None:
    interventions = {"en": ablate(some_neurons(llama))}
    first, same, other = (
        perplexity_matrix(llama, corpora, interventions, controls=2, seed=seed)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.control, same.control)
    assert not torch.equal(first.control, other.control)


def by_hand(nll: list[list[float]], n_controls: int = 0, **changes: Any) -> PerplexityMatrix:
    """Two documents of 10 and 30 tokens, 50 and 70 bytes, in every language."""
    docs = DocumentNLL(
        torch.tensor(nll, dtype=torch.float64), torch.tensor([10, 30]), torch.tensor([50, 70])
    )
    rows = (len(nll) - 1) // (1 + n_controls)
    fields = {"interventions": ("en", "fr")[:rows], "languages": ("en",), "documents": {"en": docs}}
    return PerplexityMatrix(**{**fields, "n_controls": n_controls, **changes})


def test_a_batch_without_a_scored_token_is_no_obstacle(llama: Any) -> None:
    """Without BOS, nothing stands before a document's only token."""
    corpora = Corpora.from_tokens({"en": [[5, 9, 3], [7], [8, 4]]}, bos_id=None)
    found = [document_nll(llama, corpora, batch_size=size)["en"] for size in (1, 2, 3)]
    for each in found:
        assert each.n_tokens.tolist() == [2, 0, 1]
        assert each.nll[0, 1] == 0
        torch.testing.assert_close(each.nll, found[0].nll)
    assert len(token_nll(llama, torch.zeros(0, llama.cfg.d_model), torch.zeros(0).long())) == 0


def test_a_share_of_corpora_is_refused(llama: Any) -> None:
    corpora = Corpora.from_tokens({"en": [[5, 9, 3]] * 4}, bos_id=None)
    with pytest.raises(OptionError, match="a share of others"):
        perplexity_matrix(llama, corpora.sharded(0, 2), {})


def test_averages_weigh_tokens_not_documents() -> None:
    matrix = by_hand([[20.0, 90.0], [30.0, 120.0]])
    assert matrix.baseline_nll.item() == pytest.approx(110 / 40)
    assert matrix.delta_nll.item() == pytest.approx(40 / 40)
    assert matrix.nll.item() == pytest.approx(150 / 40)
    assert matrix.perplexity.item() == pytest.approx(math.exp(150 / 40))
    assert matrix.bits_per_byte.item() == pytest.approx(150 / 120 / math.log(2))
    assert matrix.baseline_bits_per_byte.item() == pytest.approx(110 / 120 / math.log(2))
    assert matrix.delta_bits_per_byte.item() == pytest.approx(40 / 120 / math.log(2))


def test_the_interval_holds_every_resample_of_two_documents() -> None:
    matrix = by_hand([[20.0, 90.0], [30.0, 180.0]])
    # documents change by 1.0 and 3.0 nats per token; a quarter of resamples has only either
    assert matrix.ci[0, 0].tolist() == pytest.approx([1.0, 3.0])
    assert matrix.interval(level=0.4)[0, 0].tolist() != matrix.ci[0, 0].tolist()


def test_documents_without_a_scored_token_change_no_interval() -> None:
    rows = [[20.0, 90.0], [30.0, 180.0], [20.0, 94.0], [24.0, 90.0]]
    plain = by_hand(rows, n_controls=2)
    empty = DocumentNLL(
        torch.tensor([[0.0, 20.0, 0.0, 90.0], *([0.0, a, 0.0, b] for a, b in rows[1:])]).double(),
        torch.tensor([0, 10, 0, 30]),
        torch.tensor([1, 50, 1, 70]),
    )
    padded = by_hand(rows, n_controls=2, documents={"en": empty})
    assert torch.equal(padded.ci, plain.ci)
    assert torch.equal(padded.control_ci, plain.control_ci)


def test_one_scored_document_has_no_interval_and_passes_nothing() -> None:
    one = DocumentNLL(
        torch.tensor([[0.0, 20.0], [0.0, 90.0], [0.0, 20.5], [0.0, 19.5]]).double(),
        torch.tensor([0, 10]),
        torch.tensor([1, 50]),
    )
    matrix = by_hand([[0.0, 0.0]] * 4, n_controls=2, documents={"en": one})
    assert matrix.delta_nll.item() == pytest.approx(7.0)
    assert matrix.ci.isnan().all()
    assert matrix.control_ci.isnan().all()
    judged = matrix.selectivity().loc["en"]
    assert not judged["beyond_chance"]
    assert why_not(judged, None) == "Only one document was scored, which says nothing of others."


def test_controls_are_averaged_over_draws() -> None:
    matrix = by_hand([[20.0, 90.0], [30.0, 120.0], [20.0, 94.0], [24.0, 90.0]], n_controls=2)
    assert matrix.control.item() == pytest.approx((4 / 40 + 4 / 40) / 2)
    # both draws change the whole by 0.1, so what is left is the choice of documents
    low, high = matrix.control_ci[0, 0].tolist()
    assert low + high == pytest.approx(0.2)
    assert high - low > 0.5  # Student's quantile for two draws is 12.7
    assert matrix.selectivity().loc["en", "ratio"] == pytest.approx(1.0 / 0.1)


def test_bytes_that_were_never_known_give_nan() -> None:
    docs = DocumentNLL(torch.ones(2, 1, dtype=torch.float64), torch.tensor([1]), torch.tensor([0]))
    matrix = by_hand([[1.0, 1.0]] * 2, documents={"en": docs})
    assert matrix.bits_per_byte.isnan().all()


def test_a_matrix_says_what_it_is_without_its_numbers() -> None:
    assert repr(by_hand([[20.0, 90.0], [30.0, 120.0]])) == (
        "PerplexityMatrix(1 interventions with 0 controls each; tokens scored: en 40)"
    )


def test_the_strongest_rival_is_named() -> None:
    matrix = by_hand([[20.0, 90.0], [20.0, 94.0], [20.0, 98.0]])
    docs = matrix.documents["en"]
    matrix = dataclasses.replace(matrix, languages=("en", "fr"), documents={"en": docs, "fr": docs})
    row = matrix.selectivity().loc["en"]
    assert row["rival"] == "fr"
    assert row["rival_change"] == pytest.approx(0.2)
    assert not row["specific"]
    assert row["others"] == pytest.approx(0.1)


def test_frames_hold_every_cell(llama: Any, corpora: Corpora) -> None:
    matrix = perplexity_matrix(
        llama, corpora, {"en": ablate(some_neurons(llama)), "x": []}, controls=1
    )
    frame = matrix.to_frame()
    assert frame[["intervention", "language"]].to_numpy().tolist() == [
        ["en", "en"],
        ["en", "fr"],
        ["x", "en"],
        ["x", "fr"],
    ]
    assert frame["delta_nll"].tolist() == pytest.approx(matrix.delta_nll.flatten().tolist())
    assert (frame["ci_low"] <= frame["delta_nll"]).all()
    assert (frame["delta_nll"] <= frame["ci_high"]).all()


def test_saving_and_loading_is_the_identity(llama: Any, corpora: Corpora, tmp_path: Path) -> None:
    matrix = perplexity_matrix(llama, corpora, {"en": ablate(some_neurons(llama))}, controls=2)
    matrix.save(tmp_path / "x.safetensors")
    loaded = results.load(tmp_path / "x.safetensors")
    assert isinstance(loaded, PerplexityMatrix)
    assert loaded.to_frame().equals(matrix.to_frame())
    assert loaded.provenance == matrix.provenance
    assert "scale" not in str(loaded.provenance["interventions"])
    (tmp_path / "y.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-8])
    with pytest.raises(StorageError, match="not a readable safetensors file"):
        results.load(tmp_path / "y.safetensors")


@pytest.mark.lane
@pytest.mark.parametrize(
    ("docs", "hooks", "error", "message"),
    [
        ({"en": [[5], [7]]}, [], CorpusError, "'en' has no token to score"),
        ({"en": [[5, VOCAB]]}, [], CorpusError, "the model has only"),
        ({"en": [[5, 6]]}, [("blocks.9.mlp.hook_post", None)], SiteError, "no hook point"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    llama: Any, docs: Any, hooks: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        perplexity_matrix(llama, Corpora.from_tokens(docs), {"x": [(n, print) for n, _ in hooks]})


def test_neurons_of_another_model_are_refused(llama: Any, corpora: Corpora) -> None:
    narrow = NeuronSet({MLP_POST: torch.ones(3, 50, dtype=torch.bool)})
    with pytest.raises(ShapeError, match="belong to another model"):
        perplexity_matrix(llama, corpora, {"x": ablate(narrow)})
    deep = NeuronSet({MLP_POST: torch.ones(5, 112, dtype=torch.bool)})
    with pytest.raises(SiteError, match="no hook point 'blocks.3.mlp.hook_post'"):
        perplexity_matrix(llama, corpora, {"x": ablate(deep)})


def test_nan_is_reported(corpora: Corpora) -> None:
    broken = hf_model("llama")
    with torch.no_grad():
        broken.lm_head.weight[4] = torch.nan
    with pytest.raises(ActivationError, match="NaN or infinite log-probabilities"):
        document_nll(bridge(broken), corpora)


def test_a_negative_number_of_controls_is_refused(llama: Any, corpora: Corpora) -> None:
    with pytest.raises(OptionError, match="at least 0, got -1"):
        perplexity_matrix(llama, corpora, {}, controls=-1)


def test_hooks_on_the_prompt_or_on_new_tokens_are_refused_where_nothing_is_generated(
    llama: Any, corpora: Corpora
) -> None:
    for where in ("prompt", "new"):
        hooks = ablate(some_neurons(llama), positions=where)
        with pytest.raises(OptionError, match="make them with positions='all'"):
            perplexity_matrix(llama, corpora, {"fine": ablate(some_neurons(llama)), "x": hooks})
        with pytest.raises(OptionError, match="make them with positions='all'"):
            document_nll(llama, corpora, fwd_hooks=hooks)


class TestBootstrap:
    """The interval of a ratio, by resampling documents."""

    def test_weights_count_draws(self) -> None:
        weights = bootstrap_weights(7, resamples=400, generator=torch.Generator().manual_seed(0))
        assert weights.sum(1).tolist() == [7.0] * 400
        assert weights.mean(0).tolist() == pytest.approx([1.0] * 7, abs=0.2)

    def test_ratios_of_equal_documents_never_vary(self) -> None:
        generator = torch.Generator().manual_seed(0)
        values, sizes = torch.full((5,), 6.0), torch.full((5,), 3.0)
        ratios = bootstrap_ratio(values, sizes, resamples=50, generator=generator)
        torch.testing.assert_close(ratios, torch.full((50,), 2.0).double())

    def test_portions_are_the_draws_of_one_piece(self, monkeypatch: pytest.MonkeyPatch) -> None:
        values, sizes = torch.randn(2, 30).double(), torch.arange(30.0)

        def ratios() -> torch.Tensor:
            generator = torch.Generator().manual_seed(3)
            return bootstrap_ratio(values, sizes, resamples=50, generator=generator)

        whole = ratios()
        generator = torch.Generator().manual_seed(3)
        weights = bootstrap_weights(29, resamples=50, generator=generator)  # one has no size
        expected = (values[:, 1:] @ weights.T) / (weights @ sizes[1:].double())
        torch.testing.assert_close(whole, expected)
        monkeypatch.setattr(significance, "_HELD", 29 * 7)
        torch.testing.assert_close(ratios(), whole)

    def test_the_interval_covers_the_truth_as_often_as_it_says(self) -> None:
        generator = torch.Generator().manual_seed(0)
        covered = 0
        for _ in range(200):
            values = torch.randn(40, generator=generator) + 1.0
            ratios = bootstrap_ratio(values, torch.ones(40), resamples=300, generator=generator)
            low, high = percentile_interval(ratios).tolist()
            covered += low <= 1.0 <= high
        assert 0.88 <= covered / 200 <= 0.99

    @pytest.mark.parametrize(
        ("level", "degrees", "expected"),
        [(0.95, 1, 12.706), (0.95, 2, 4.303), (0.95, 3, 3.182), (0.95, 4, 2.776),
         (0.95, 10, 2.228), (0.9, 5, 2.015), (0.99, 7, 3.499), (0.95, 120, 1.980)],
    )  # fmt: skip
    def test_students_quantiles_are_those_of_the_tables(
        self, level: float, degrees: int, expected: float
    ) -> None:
        assert student_quantile(level, degrees) == pytest.approx(expected, abs=6e-4)

    @pytest.mark.parametrize("draws", [2, 3, 5, 20])
    def test_one_more_draw_lies_where_it_was_predicted(self, draws: int) -> None:
        generator = torch.Generator().manual_seed(draws)
        values = torch.randn(4000, draws + 1, generator=generator) * 0.3 + 1
        ends = prediction_interval(values[:, :draws], torch.zeros(4000))
        covered = (ends[:, 0] <= values[:, -1]) & (values[:, -1] <= ends[:, 1])
        assert 0.935 < covered.float().mean() < 0.965

    def test_the_choice_of_documents_widens_the_prediction(self) -> None:
        draws = torch.tensor([0.1, 0.2, 0.3])
        narrow = prediction_interval(draws, torch.tensor(0.0))
        wide = prediction_interval(draws, torch.tensor(0.1))
        assert wide[0] < narrow[0] < narrow[1] < wide[1]
        assert prediction_interval(draws[:1], torch.tensor(0.0)).isnan().all()
        assert prediction_interval(torch.zeros(1), torch.tensor(0.0)).tolist() == [0.0, 0.0]

    def test_an_impossible_level_is_refused(self) -> None:
        with pytest.raises(OptionError, match="between 0 and 1, got 95"):
            percentile_interval(torch.zeros(3), level=95.0)


def test_rows_of_whole_documents_are_judged_document_by_document(llama: Any) -> None:
    corpora = Corpora.from_tokens({"xx": [[5, 6], [7], [8, 9, 10, 11]]}, ctx_len=4)
    some = NeuronSet(
        {MLP_POST: torch.ones(n_layers(llama), site_width(llama, MLP_POST), dtype=torch.bool)}
    )
    rows = corpora.one_document_a_row(max_tokens=8)
    matrix = perplexity_matrix(llama, rows, {"off": ablate(some)})
    sorted_by_hand = Corpora.from_tokens({"xx": [[8, 9, 10, 11], [5, 6]]}, ctx_len=4)
    alone = perplexity_matrix(llama, sorted_by_hand, {"off": ablate(some)})
    torch.testing.assert_close(matrix.delta_nll, alone.delta_nll)
