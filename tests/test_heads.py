"""What heads look at, by brute force over cached patterns; whole heads as neurons."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import HEADS, KV_HEADS, LAYERS, random_documents, tiny
from test_lens import a_vocabulary

from lens_lang import results
from lens_lang.collection import collect
from lens_lang.corpora import Corpora
from lens_lang.errors import (
    ActivationError,
    LanguageError,
    OptionError,
    ShapeError,
    StorageError,
)
from lens_lang.heads import HeadAttention, HeadPattern, head_set, random_heads
from lens_lang.intervene import ablate
from lens_lang.neurons import NeuronSet
from lens_lang.sites import ATTN_PATTERN, ATTN_Z, MLP_POST, RESID_POST, n_layers
from lens_lang.stats import ActivationFrequency


def by_hand(model: Any, corpora: Corpora, vocabulary: Any = None) -> dict[str, torch.Tensor]:
    """Sums over all counted queries, one document at a time, key by key."""
    shape = (len(corpora.languages), n_layers(model), int(model.cfg.n_heads))
    names = ("first", "previous", "itself", "entropy", "own_language")
    sums = {name: torch.zeros(shape, dtype=torch.float64) for name in names}
    for row, (lang, docs) in enumerate(corpora.documents.items()):
        for doc in docs:
            tokens = [1, *doc.tolist()]
            for layer in range(n_layers(model)):
                seen: list[torch.Tensor] = []
                hooks = [
                    (ATTN_PATTERN.at(layer), lambda values, hook, seen=seen: seen.append(values))
                ]
                with torch.inference_mode():
                    model.run_with_hooks(torch.tensor([tokens]), fwd_hooks=hooks)
                pattern = seen[0][0].double()
                for query in range(1, len(tokens)):  # BOS does not count
                    looks = pattern[:, query]
                    sums["first"][row, layer] += looks[:, 0]
                    sums["previous"][row, layer] += looks[:, query - 1]
                    sums["itself"][row, layer] += looks[:, query]
                    entropy = -(looks * looks.clamp(min=1e-300).log2()).sum(-1)
                    sums["entropy"][row, layer] += entropy
                    if vocabulary is not None:
                        for key in range(1, query + 1):
                            share = float(vocabulary.of(lang)[tokens[key]])
                            sums["own_language"][row, layer] += looks[:, key] * share
    return sums


@pytest.fixture
def text() -> Corpora:
    return Corpora.from_tokens(
        {"en": random_documents([5, 9, 2]), "fr": random_documents([8, 3], seed=1)}, bos_id=1
    )


@pytest.mark.lane
def test_sums_are_those_of_every_pattern(any_model: Any, text: Corpora) -> None:
    vocabulary = a_vocabulary()
    found = collect(any_model, text, HeadPattern(vocabulary), batch_size=2, progress=False)
    expected = by_hand(any_model, text, vocabulary)
    assert found.n_tokens.tolist() == [16, 11]
    for name in found.measures:
        place = found.measures.index(name)
        assert (found.sum[:, place] - expected[name]).abs().max() < 1e-4, name
    assert torch.allclose(found["first"][1], expected["first"][1] / 11, atol=1e-5)


def test_it_shares_a_pass_with_other_statistics_and_resumes(tmp_path: Path, text: Corpora) -> None:
    model = tiny("llama")
    spec = HeadPattern(a_vocabulary())
    options: dict[str, Any] = {"run_dir": tmp_path, "batch_size": 1, "progress": False}
    found, freq = collect(model, text, spec, ActivationFrequency(), **options)
    alone = collect(model, text, spec, batch_size=1, progress=False)
    assert torch.equal(found.sum, alone.sum)
    again, _ = collect(model, text, spec, ActivationFrequency(), **options)
    assert torch.equal(again.sum, found.sum)
    assert isinstance(results.load(tmp_path / "headattention.safetensors"), HeadAttention)
    with pytest.raises(StorageError, match="another run"):
        collect(model, text, HeadPattern(a_vocabulary(1)), ActivationFrequency(), **options)
    assert freq.languages == found.languages


def test_halves_add_up_to_the_whole(text: Corpora) -> None:
    model = tiny("gemma2")
    options: dict[str, Any] = {"batch_size": 1, "progress": False}
    whole = collect(model, text, HeadPattern(), **options)
    halves = [collect(model, text.sharded(n, 2), HeadPattern(), **options) for n in (0, 1)]
    assert torch.allclose((halves[0] + halves[1]).sum, whole.sum, atol=1e-9)
    assert whole.measures == ("first", "previous", "itself", "entropy")


def test_frames_name_every_head(text: Corpora) -> None:
    found = collect(tiny("llama"), text, HeadPattern(), progress=False)
    frame = found.to_frame()
    assert len(frame) == 2 * LAYERS * HEADS
    row = frame[(frame["language"] == "fr") & (frame["layer"] == 1) & (frame["head"] == 4)]
    assert float(row["entropy"].iloc[0]) == pytest.approx(float(found["entropy"][1, 1, 4]))
    with pytest.raises(OptionError, match="give HeadPattern a vocabulary"):
        _ = found["own_language"]
    with pytest.raises(OptionError, match="'last' was not measured; first, previous"):
        _ = found["last"]
    with pytest.raises(ShapeError, match="1 measures need as many rows"):
        HeadAttention(("en",), ("first",), torch.zeros(1, 2, 1, 1).double(), torch.tensor([3]))


def test_nan_patterns_and_unknown_languages_are_refused(text: Corpora) -> None:
    nan = [(RESID_POST.at(0), lambda values, hook: values * float("nan"))]
    with pytest.raises(ActivationError, match="patterns of layer 1 are NaN on text of 'en'"):
        collect(tiny("llama"), text, HeadPattern(), fwd_hooks=nan, progress=False)
    other = Corpora.from_tokens({"de": [[5, 6]]}, bos_id=1)
    with pytest.raises(LanguageError, match="'de'"):
        collect(tiny("llama"), other, HeadPattern(a_vocabulary()), progress=False)


# --- whole heads ---


@pytest.mark.lane
def test_ablating_a_head_set_takes_its_heads_away(any_model: Any) -> None:
    tokens = torch.tensor([[1, 5, 9, 3]])
    chosen = [(0, 2), (2, HEADS - 1)]
    hooks = ablate(head_set(any_model, chosen))

    def zero(values: torch.Tensor, hook: Any, head: int) -> torch.Tensor:
        out = values.clone()
        out[:, :, head] = 0
        return out

    by_head = [
        (ATTN_Z.at(layer), lambda values, hook, head=head: zero(values, hook, head))
        for layer, head in chosen
    ]
    with torch.inference_mode():
        mine = any_model.run_with_hooks(tokens, fwd_hooks=hooks)
        theirs = any_model.run_with_hooks(tokens, fwd_hooks=by_head)
        plain = any_model(tokens)
    assert torch.allclose(mine, theirs, atol=1e-5)
    assert not torch.allclose(mine, plain, atol=1e-3)


def test_random_heads_are_as_many_others() -> None:
    model = tiny("llama")
    heads = head_set(model, [(0, 1), (0, 2), (2, 5)])
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(40):
        drawn = random_heads(model, heads, generator=generator)
        width = int(model.cfg.d_head)
        assert torch.equal(drawn.per_layer(ATTN_Z), torch.tensor([2, 0, 1]) * width)
        assert len(drawn & heads) == 0
        seen |= {(layer, index // width) for layer, index in drawn.indices(ATTN_Z).tolist()}
    free = {(0, 0), (0, 3), (0, 4), (0, 5)} | {(2, head) for head in range(5)}
    assert seen == free


def test_heads_that_are_none_are_refused() -> None:
    model = tiny("llama")
    with pytest.raises(OptionError, match="no head 6 in layer 0"):
        head_set(model, [(0, HEADS)])
    some = NeuronSet({ATTN_Z: torch.eye(LAYERS, 48, dtype=torch.bool)})
    generator = torch.Generator().manual_seed(0)
    mlp = NeuronSet({MLP_POST: torch.ones(LAYERS, 112, dtype=torch.bool)})
    with pytest.raises(OptionError, match="not whole heads"):
        random_heads(model, mlp, generator=generator)
    with pytest.raises(OptionError, match="not whole heads"):
        random_heads(model, some, generator=generator)
    many = head_set(model, [(0, head) for head in range(4)])
    with pytest.raises(OptionError, match="4 of 6 heads in the set"):
        random_heads(model, many, generator=generator)
    assert KV_HEADS < HEADS  # heads are counted at their outputs, not by keys and values
