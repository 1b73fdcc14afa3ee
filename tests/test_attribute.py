"""What neurons contribute: closed forms against the model, gradients against differences."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import VOCAB, LetterTokenizer, hf_model, random_documents, tiny
from torch import Tensor

from lens_lang import results
from lens_lang.attribute.card import NeuronCard
from lens_lang.attribute.cards import neuron_card
from lens_lang.attribute.categories import (
    STATISTICS,
    CategoryContribution,
    CategoryContributions,
)
from lens_lang.attribute.gradients import gradient_attribution
from lens_lang.attribute.scores import NeuronScores, contribution, effective_score
from lens_lang.attribute.writing import Writing, check_writing, norm_scale, token_vectors, writing
from lens_lang.collection import collect_parallel
from lens_lang.errors import (
    ActivationError,
    ModelError,
    OptionError,
    ShapeError,
    SiteError,
    StorageError,
)
from lens_lang.intervene import ablate, scale
from lens_lang.models import bridge
from lens_lang.neurons import NeuronSet
from lens_lang.parallel import ParallelCorpora
from lens_lang.patterns import CATEGORIES, Firing, categories
from lens_lang.sites import MLP_OUT, MLP_POST, RESID_POST, n_layers
from lens_lang.stats import Frequency
from lens_lang.vocabulary import VocabularyLanguages

LANGUAGES = ("en", "fr", "de")


def examples(number: int = 4) -> ParallelCorpora:
    lengths = {"en": [5, 9, 2, 12], "fr": [8, 3, 10, 6], "de": [4, 4, 11, 2]}
    docs = {
        lang: random_documents(each[:number], seed=place)
        for place, (lang, each) in enumerate(lengths.items())
    }
    answers = [[5 + n, 20 + n, 40 + n] for n in range(number)]
    return ParallelCorpora.from_tokens(docs, bos_id=1, answers=answers)


def each_text(texts: ParallelCorpora) -> list[tuple[Tensor, int]]:
    """Tokens and answer of every text, language after language."""
    assert texts.answers is not None
    return [
        (torch.cat([torch.tensor([1]), docs[n].long()])[None], int(texts.answers[n, place]))
        for place, docs in enumerate(texts.documents.values())
        for n in range(len(texts))
    ]


# --- what neurons write ---


def test_golden_contribution_and_effective_score() -> None:
    """Golden case Sharing 4."""
    m = torch.tensor([2.0, -3.0])
    lengths = Writing(torch.tensor([[0.6, 0.8], [0.3, 0.4]]), None, torch.zeros(2)).lengths
    assert (m.abs() * lengths).tolist() == pytest.approx([2, 1.5])
    writes = Writing(torch.tensor([[1.0, 9], [-2, 0]]), None, torch.zeros(2))
    assert (m * writes.read_by(torch.tensor([[1.0, 0.0]]))).tolist() == [[2, 6]]


@pytest.mark.lane
def test_what_neurons_write_adds_up_to_the_mlp(any_model: Any) -> None:
    """Through the norm behind it, where there is one; `check_writing` proves it by itself."""
    layers = check_writing(any_model)
    tokens = torch.tensor([[1, 7, 30, 4]])
    _, cache = any_model.run_with_cache(tokens)
    for layer, each in enumerate(layers):
        read = {site: cache[site.at(layer)] for site in each.sites}
        written = (read[MLP_POST] @ each.vectors + each.bias) / each.divisor(read)
        assert torch.allclose(written, cache[MLP_OUT.at(layer)], atol=1e-5)


def test_a_model_whose_neurons_do_not_add_up_is_refused(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lens_lang.attribute import writing as module

    original = module.writing
    monkeypatch.setattr(
        module,
        "writing",
        lambda model, layer: Writing(original(model, layer).matrix * 1.1, None, torch.zeros(48)),
    )
    with pytest.raises(ModelError, match=r"layer 0 .* differs"):
        contribution(llama, examples())


@pytest.mark.lane
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom", "phi", "opt"])
def test_effective_scores_are_the_direct_logit_contribution(architecture: str) -> None:
    """Golden case Sharing 5: the sum over a layer, and the bias, is what mlp_out says."""
    model, texts = tiny(architecture), examples()
    scores = effective_score(model, texts)
    for number, (tokens, answer) in enumerate(each_text(texts)):
        _, cache = model.run_with_cache(tokens)
        for layer in range(n_layers(model)):
            unembedding = model.W_U[:, answer].detach()
            direct = cache[MLP_OUT.at(layer)][0, -1] @ unembedding
            bias = writing(model, layer).bias @ unembedding
            assert float(scores.values[number, layer].sum() + bias) == pytest.approx(
                float(direct), abs=1e-5
            )


@pytest.mark.lane
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "bloom"])
def test_through_the_final_norm_all_parts_add_up_to_the_logit(architecture: str) -> None:
    """MLPs by their neurons, the rest of the residual stream as it is: less the norm's bias."""
    model, texts = tiny(architecture), examples(2)
    scores = effective_score(model, texts, final_norm=True)
    last = n_layers(model) - 1
    for number, (tokens, answer) in enumerate(each_text(texts)):
        with torch.no_grad():
            logits, cache = model.run_with_cache(tokens)
        resid = cache[RESID_POST.at(last)][0, -1]
        vector = token_vectors(model, [answer], final_norm=True)[0]
        size = norm_scale(model, resid[None])[0, 0]
        mlps = sum(cache[MLP_OUT.at(n)][0, -1] for n in range(last + 1))
        neurons = sum(float(scores.values[number, n].sum()) for n in range(last + 1))
        for n in range(last + 1):
            each = writing(model, n)
            read = {site: cache[site.at(n)][:, -1:] for site in each.sites}
            neurons += float((each.bias / each.divisor(read)).reshape(-1, 48)[0] @ vector / size)
        rest = float((resid - mlps) @ vector / size)
        with torch.no_grad():
            norm_bias = float(model.unembed(model.ln_final(torch.zeros(1, 1, 48)))[0, 0, answer])
        assert neurons + rest + norm_bias == pytest.approx(float(logits[0, -1, answer]), abs=1e-4)


@pytest.mark.lane
def test_contributions_are_lengths_at_the_last_token(any_model: Any) -> None:
    texts = examples()
    found = contribution(any_model, texts, batch_size=3)
    assert found.languages == tuple(lang for lang in LANGUAGES for _ in range(4))
    for number, (tokens, _) in enumerate(each_text(texts)):
        _, cache = any_model.run_with_cache(tokens)
        for layer in range(n_layers(any_model)):
            each = writing(any_model, layer)
            read = {site: cache[site.at(layer)][0, -1:] for site in each.sites}
            written = read[MLP_POST][0, :, None] * each.vectors / each.divisor(read)
            assert torch.allclose(found.values[number, layer], written.norm(dim=1), atol=1e-5)


def test_scores_scale_with_what_is_written(llama: Any) -> None:
    model = bridge(hf_model("llama"))
    before = contribution(model, examples()).values
    with torch.no_grad():
        model.blocks[2].mlp.out.original_component.weight[:, 5] *= 3.0
    after = contribution(model, examples()).values
    assert torch.allclose(after[:, 2, 5], 3 * before[:, 2, 5])
    assert torch.allclose(after[:, :2], before[:, :2])


def test_scores_are_measured_under_hooks(llama: Any) -> None:
    some = NeuronSet({MLP_POST: torch.arange(112).expand(3, 112) < 10})
    found = contribution(llama, examples(), fwd_hooks=ablate(some))
    assert not found.values[..., :10].any()
    assert found.values[..., 10:].any()
    with pytest.raises(SiteError, match="no hook point"):
        contribution(llama, examples(), fwd_hooks=[("blocks.0.mlp.hook_pots", print)])


def test_the_embedding_can_stand_for_a_token(gpt2: Any) -> None:
    """GPT-2 ties both, Llama does not."""
    texts = examples()
    tied = effective_score(gpt2, texts).values
    assert torch.allclose(tied, effective_score(gpt2, texts, vector="embedding").values)
    llama = tiny("llama")
    assert not torch.allclose(
        effective_score(llama, texts).values,
        effective_score(llama, texts, vector="embedding").values,
    )


def test_answers_are_one_per_prompt(llama: Any) -> None:
    texts = examples()
    own = effective_score(llama, texts).values
    assert texts.answers is not None
    flat = texts.answers.T.flatten()
    assert torch.equal(effective_score(llama, texts, flat).values, own)
    assert torch.equal(effective_score(llama, texts, flat.tolist()).values, own)
    for wrong in ([5], torch.tensor([5, 6])):
        with pytest.raises(OptionError, match="one per prompt, 12"):
            effective_score(llama, texts, wrong)
    with pytest.raises(OptionError, match="outside the vocabulary"):
        effective_score(llama, texts, [VOCAB] * 12)
    bare = ParallelCorpora.from_tokens({"en": [[5]], "fr": [[6]]})
    with pytest.raises(OptionError, match="no answers of their own"):
        effective_score(llama, bare)


def test_answers_may_be_given_by_language_like_prompts() -> None:
    model = bridge(hf_model("llama"))
    model.tokenizer = LetterTokenizer()
    prompts = {"en": ["abc", "d"], "fr": ["xyz"]}
    flat = effective_score(model, prompts, ["P", "Q", "R"]).values
    named = effective_score(model, prompts, {"French": ["R"], "en": ["P", "Q"]}).values
    assert torch.equal(named, flat)
    for wrong in ({"en": ["P"], "fr": ["R"]}, {"en": ["P", "Q"]}):
        with pytest.raises(OptionError, match="as many as prompts"):
            effective_score(model, prompts, wrong)
    with pytest.raises(OptionError, match="text or the number of a token"):
        gradient_attribution(model, prompts, [5.5, 6, 7])
    with pytest.raises(OptionError, match="outside the vocabulary"):
        gradient_attribution(model, prompts, [5, 6, -1])


def test_hooks_behind_the_neurons_are_refused_where_sums_matter(llama: Any) -> None:
    hooks = [("blocks.1.hook_mlp_out", lambda values, hook: 3 * values)]
    with pytest.raises(SiteError, match="behind its neurons"):
        contribution(llama, examples(), fwd_hooks=hooks)
    with pytest.raises(SiteError, match="behind its neurons"):
        gradient_attribution(llama, examples(1), method="integrated_gradients", fwd_hooks=hooks)
    gradient_attribution(llama, examples(1), fwd_hooks=hooks)  # needs no sum


def test_scores_are_kept_in_a_file(llama: Any, tmp_path: Path) -> None:
    found = gradient_attribution(llama, examples(1), method="integrated_gradients", steps=2)
    found.save(tmp_path / "s.safetensors")
    again = results.load(tmp_path / "s.safetensors")
    assert isinstance(again, NeuronScores)
    assert torch.equal(again.values, found.values)
    assert torch.equal(again.completeness_error, found.completeness_error)
    (tmp_path / "s.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(StorageError):
        NeuronScores.load(tmp_path / "s.safetensors")


def test_an_answer_may_be_text() -> None:
    model = bridge(hf_model("llama"))
    model.tokenizer = LetterTokenizer()
    by_text = effective_score(model, ["abc", "de"], ["x", "yz"]).values
    tokens = [3 + ord(letter) % (VOCAB - 3) for letter in "xy"]
    assert torch.equal(by_text, effective_score(model, ["abc", "de"], tokens).values)
    with pytest.raises(OptionError, match="no token"):
        effective_score(model, ["abc"], [""])
    with pytest.raises(OptionError, match="one string"):
        effective_score(model, ["abc"], "x")


def test_the_highest_and_the_top_are_sorted(llama: Any) -> None:
    found = contribution(llama, examples())
    high = found.highest(7)
    assert bool((high.sum(-1) == 7).all())
    assert float(found.values[high].min()) > 0
    for prompt in range(12):
        kept, rest = found.values[prompt][high[prompt]], found.values[prompt][~high[prompt]]
        assert kept.view(3, 7).amin(1).ge(rest.view(3, -1).amax(1)).all()
    table = found.top(4)
    assert len(table) == 48
    first = table.iloc[0]
    assert first["score"] == pytest.approx(float(found.values[0].max()))
    assert float(found.values[0, first["layer"], first["neuron"]]) == pytest.approx(first["score"])
    for wrong in (0, 113):
        with pytest.raises(OptionError):
            found.highest(wrong)
    with pytest.raises(OptionError):
        found.top(0)
    assert "12 prompts" in repr(found)
    with pytest.raises(ShapeError):
        NeuronScores(("en",), found.values)


def test_broken_weights_end_in_a_sentence() -> None:
    broken = hf_model("llama")
    with torch.no_grad():
        broken.model.embed_tokens.weight[96] = torch.nan
    docs = {"en": [[5, 6]], "fr": [[7, 96]]}
    texts = ParallelCorpora.from_tokens(docs, answers=[[5, 6]])
    with pytest.raises(ActivationError):
        contribution(bridge(broken), texts)
    with torch.no_grad():
        broken.model.layers[0].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(ActivationError, match="MLP of layer 0"):
        contribution(bridge(broken), texts)
    with pytest.raises(ActivationError):
        gradient_attribution(bridge(broken), texts)


# --- gradients ---


def score_with(model: Any, tokens: Tensor, answer: int, hooks: Any, objective: str) -> float:
    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1].double()
    return float((logits if objective == "logit" else logits.log_softmax(-1))[answer])


@pytest.mark.lane
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "bloom"])
@pytest.mark.parametrize("objective", ["logit", "log_probability"])
def test_gradients_are_differences(architecture: str, objective: Any) -> None:
    """Scaling one neuron by 1 +- h at the last token changes the answer by 2 h times its score."""
    model, texts = bridge(hf_model(architecture).double()), examples(1)
    found = gradient_attribution(model, texts, objective=objective)
    h = 0.02  # norms of `transformers` round to float32 on the way
    for number, (tokens, answer) in enumerate(each_text(texts)):
        for layer, neuron in ((0, 3), (1, 50), (2, 111)):
            ends = []
            for factor in (1 + h, 1 - h):

                def louder(values: Tensor, hook: Any, by: float = factor, at: int = neuron) -> Any:
                    changed = values.clone()
                    changed[:, -1, at] *= by
                    return changed

                hooks = [(MLP_POST.at(layer), louder)]
                ends.append(score_with(model, tokens, answer, hooks, objective))
            slope = (ends[0] - ends[1]) / (2 * h)
            assert float(found.values[number, layer, neuron]) == pytest.approx(
                slope, rel=2e-3, abs=2e-5
            )


@pytest.mark.lane
@pytest.mark.parametrize("positions", ["last", "all"])
def test_integrated_gradients_are_complete(any_model: Any, positions: Any) -> None:
    """They add up to what the layer changes, measured apart: its neurons writing nothing."""
    texts = examples(1)
    found = gradient_attribution(
        any_model, texts, method="integrated_gradients", positions=positions, steps=48
    )
    assert found.change is not None
    gap = (found.values.sum(-1) - found.change).abs()
    assert float(gap.max()) < 2e-3 * float(found.change.abs().max())
    for number, (tokens, answer) in enumerate(each_text(texts)):
        whole = score_with(any_model, tokens, answer, [], "logit")
        for layer in range(n_layers(any_model)):
            each = writing(any_model, layer)
            seen: dict[Any, Tensor] = {}

            def nothing(values: Tensor, hook: Any, e: Any = each, s: Any = seen) -> Tensor:
                bare = (e.bias / e.divisor(s)).to(values).expand_as(values)
                kept = values.clone()
                rows = slice(1, None) if positions == "all" else slice(-1, None)
                kept[:, rows] = bare[:, rows]
                return kept

            notes = [
                (site.at(layer), lambda v, hook, s=seen, k=site: s.__setitem__(k, v))
                for site in each.sites
            ]
            less = score_with(
                any_model, tokens, answer, [*notes, (MLP_OUT.at(layer), nothing)], "logit"
            )
            assert float(found.change[number, layer]) == pytest.approx(whole - less, abs=2e-4)


def test_the_last_layer_is_integrated_exactly_without_a_norm_between() -> None:
    """Where the score is linear on the path, every method is the same."""
    model = bridge(hf_model("gpt2"))

    # no norm between the last block and the logits
    model.ln_final.register_forward_hook(lambda module, given, normed: given[0])
    texts = examples(2)
    last = n_layers(model) - 1
    exact = effective_score(model, texts).values[:, last]
    for options in (
        {"method": "gradient_x_activation"},
        {"method": "integrated_gradients", "steps": 3},
    ):
        found = gradient_attribution(model, texts, **options).values[:, last]
        assert torch.allclose(found.float(), exact, atol=1e-4)


@pytest.mark.parametrize("method", ["gradient_x_activation", "integrated_gradients"])
def test_prompts_do_not_see_each_other(llama: Any, method: Any) -> None:
    """Padding and batches change nothing; nor does it matter whether weights are frozen."""
    texts = examples(3)
    together = gradient_attribution(llama, texts, method=method, steps=8, batch_size=3).values
    for number in range(3):
        alone = gradient_attribution(llama, texts[number], method=method, steps=8).values
        assert torch.allclose(together[number::3], alone, atol=1e-5)
    frozen = bridge(hf_model("llama").requires_grad_(False))
    again = gradient_attribution(frozen, texts, method=method, steps=8).values
    assert torch.allclose(again, together, atol=1e-5)


def test_gradients_leave_no_trace(llama: Any) -> None:
    model = bridge(hf_model("llama"))
    needs = {name: p.requires_grad for name, p in model.named_parameters()}
    gradient_attribution(model, examples(1), method="integrated_gradients", steps=2)
    gradient_attribution(model, examples(1))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == needs
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_gradients_are_taken_under_hooks(llama: Any) -> None:
    some = NeuronSet({MLP_POST: torch.arange(112).expand(3, 112) < 10})
    hooks = scale(some, 2.0)
    found = gradient_attribution(llama, examples(1), fwd_hooks=hooks)
    assert not torch.allclose(found.values, gradient_attribution(llama, examples(1)).values)
    off = gradient_attribution(llama, examples(1), fwd_hooks=ablate(some))
    assert not off.values[..., :10].any()
    assert found.provenance["fwd_hooks"] == [f"blocks.{n}.mlp.hook_post" for n in range(3)]


def test_only_integrated_gradients_are_complete(llama: Any) -> None:
    with pytest.raises(OptionError, match="integrated_gradients"):
        _ = gradient_attribution(llama, examples(1)).completeness_error
    found = gradient_attribution(llama, examples(1), method="integrated_gradients", steps=16)
    assert found.completeness_error.shape == (3, 3)
    with pytest.raises(OptionError, match="steps"):
        gradient_attribution(llama, examples(1), method="integrated_gradients", steps=0)


# --- by kind ---


@pytest.mark.lane
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_contributions_by_kind_are_sums_over_their_neurons(architecture: str) -> None:
    model, texts = tiny(architecture), examples()
    found = collect_parallel(model, texts, CategoryContribution(top=9), batch_size=3)
    scores = contribution(model, texts).values.view(3, 4, 3, -1).transpose(0, 1)
    effective = effective_score(model, texts).values.view(3, 4, 3, -1).transpose(0, 1)
    firing = Firing.of(model)
    for example in range(4):
        acts = []
        for docs in texts.documents.values():
            tokens = torch.cat([torch.tensor([1]), docs[example].long()])[None]
            _, cache = model.run_with_cache(tokens)
            acts.append(
                torch.stack([firing.values(cache[firing.site.at(n)][0, -1]) for n in range(3)])
            )
        kinds = categories(torch.stack(acts) > 0)
        assert torch.equal(found.members[example].T, kinds.sum(-1))
        for lang, layer, kind in ((0, 0, 0), (1, 2, 1), (2, 1, 2), (0, 2, 3), (2, 0, 0)):
            mine = kinds[kind, layer]
            for values, kept in ((scores, found.contribution), (effective, found.effective)):
                assert kept is not None
                some = values[example, lang, layer][mine]
                expected = (
                    [some.sum(), some.mean(), some.max(), some.min()] if len(some) else [0.0] * 4
                )
                assert kept[example, lang, layer, :, kind].tolist() == pytest.approx(
                    [float(x) for x in expected], abs=1e-5
                )
            best = scores[example, lang, layer].topk(9).indices
            assert int(found.top[example, lang, layer, kind]) == int(mine[best].sum())
    assert bool((found.top.sum(-1) == 9).all())
    assert torch.allclose(found.share.sum(-1), torch.ones(4, 3).double())
    assert torch.allclose(found.top_share.sum(-1), torch.ones(4, 3).double())


def test_a_kind_without_neurons_contributes_nothing(llama: Any) -> None:
    found = collect_parallel(llama, examples(), CategoryContribution(top=5, threshold=1e6))
    assert not found.contribution[..., :3].any()
    assert found.share[..., 3].eq(1).all()
    summary = found.summary()
    assert summary.query("category == 'specific'")["lift"].isna().all()


def test_parts_add_up_and_files_hold_everything(llama: Any, tmp_path: Path) -> None:
    texts = examples()
    whole = collect_parallel(llama, texts, CategoryContribution(), batch_size=1)
    parts = [
        collect_parallel(llama, texts.select(some), CategoryContribution(), batch_size=1)
        for some in ([0, 1], [2, 3])
    ]
    both = parts[0] + parts[1]
    assert both.effective is not None and whole.effective is not None
    assert torch.equal(both.contribution, whole.contribution)
    assert torch.equal(both.effective, whole.effective)
    assert torch.equal(both.top, whole.top) and both.names == whole.names
    with pytest.raises(OptionError, match="twice"):
        whole + whole
    whole.save(tmp_path / "c.safetensors")
    again = results.load(tmp_path / "c.safetensors")
    assert isinstance(again, CategoryContributions) and again.effective is not None
    assert torch.equal(again.effective, whole.effective)
    assert again.summary().equals(whole.summary())
    (tmp_path / "c.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(StorageError):
        CategoryContributions.load(tmp_path / "c.safetensors")


def test_tables_name_their_rows(llama: Any) -> None:
    found = collect_parallel(llama, examples(), CategoryContribution())
    summary, frame = found.summary(), found.to_frame()
    assert len(summary) == 3 * len(CATEGORIES) and len(frame) == 3 * 3 * len(CATEGORIES)
    assert {f"contribution_{name}" for name in STATISTICS} <= set(frame.columns)
    row = summary.iloc[0]
    assert row["contribution_low"] <= row["contribution"] <= row["contribution_high"]
    bare = ParallelCorpora.from_tokens({"en": [[5, 6]], "fr": [[6]]})
    without = collect_parallel(llama, bare, CategoryContribution())
    assert without.effective is None
    assert "effective_sum" not in without.to_frame()


@pytest.mark.parametrize("top", [0, -1, 1.5, 113])
def test_the_number_looked_at_must_exist(llama: Any, top: Any) -> None:
    with pytest.raises(OptionError, match="top"):
        collect_parallel(llama, examples(), CategoryContribution(top=top))


# --- cards ---


def vocabulary() -> VocabularyLanguages:
    share = torch.zeros(VOCAB, 3)
    share[torch.arange(VOCAB), torch.arange(VOCAB) % 3] = 1.0
    return VocabularyLanguages(("en", "fr"), share)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_a_card_promotes_what_the_neuron_adds_to(architecture: str) -> None:
    """Adding much of what it writes to the residual stream makes the promoted items likelier."""
    model = bridge(hf_model(architecture))
    model.tokenizer = LetterTokenizer()
    card = neuron_card(model, (1, 7), vocabulary(), top_k=5)
    each = writing(model, 1)
    vector = each.vectors[7] / each.lengths[7]
    resid = torch.randn(1, 1, 48)
    shift = model.unembed(model.ln_final(resid + 1e4 * vector))[0, 0]
    order = shift - model.unembed(model.ln_final(resid - 1e4 * vector))[0, 0]
    order[:3] = 0  # special tokens are left out
    best = order.topk(5).indices.tolist()
    assert {item.token for item in card.promoted} == set(best)
    worst = (-order).topk(5).indices.tolist()
    assert {item.token for item in card.suppressed} == set(worst)
    assert [item.score for item in card.promoted] == sorted(
        (item.score for item in card.promoted), reverse=True
    )
    for item in card.promoted:
        assert item.language == ("en", "fr", "other")[item.token % 3]
    assert sum(card.promoted_languages.values()) == pytest.approx(1.0)


def test_a_card_says_where_the_neuron_fires() -> None:
    model = bridge(hf_model("llama"))
    model.tokenizer = LetterTokenizer()
    count = torch.zeros(2, 3, 112, dtype=torch.int64)
    count[0, 1, 7], count[1, 1, 7] = 9, 1
    frequency = Frequency(("en", "fr"), count, torch.tensor([10, 10]))
    card = neuron_card(model, (1, 7), vocabulary(), frequency=frequency)
    assert card.firing == {"en": 0.9, "fr": 0.1}
    with pytest.raises(ShapeError, match="frequencies"):
        narrow = Frequency(("en", "fr"), count[..., :9], torch.tensor([10, 10]))
        neuron_card(model, (1, 7), vocabulary(), frequency=narrow)
    text = repr(card)
    assert "neuron 1.7" in text and "en 90 %" in text and "promotes" in text
    assert isinstance(card, NeuronCard)
    for wrong in ((3, 0), (0, 112), (-1, 0)):
        with pytest.raises(OptionError):
            neuron_card(model, wrong, vocabulary())
    with pytest.raises(OptionError, match="top_k"):
        neuron_card(model, (0, 0), vocabulary(), top_k=0)


def test_quantised_weights_are_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bridge(hf_model("llama"))

    def packed(self: Any) -> Tensor:
        raise NotImplementedError("packed")

    monkeypatch.setattr(type(model.blocks[0].mlp), "W_out", property(packed))
    with pytest.raises(ModelError, match="quantised"):
        contribution(model, examples())


def test_offloaded_weights_are_not_called_quantised() -> None:
    hf = hf_model("llama")
    hf.model.layers[1].mlp.to("meta")
    model = bridge(hf)
    assert torch.equal(writing(model, 0).matrix, writing(tiny("llama"), 0).matrix)
    with pytest.raises(ModelError, match="MLP of layer 1 .* is offloaded, .* without offloading"):
        writing(model, 1)
