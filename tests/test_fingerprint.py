"""A fingerprint sees every change of a weight, and neither where weights lie nor who reads them."""

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from conftest import D_MLP, LAYERS, hf_model, random_documents, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import lens_lang as ll
from lens_lang import fingerprint
from lens_lang.errors import ModelError, ShapeError, StorageError
from lens_lang.fingerprint import _ROW, _factors, _sums, weights_digest
from lens_lang.models import bridge

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SHAPES = [(0,), (0, 3), (), (1,), (7,), (3, _ROW), (_ROW + 1,), (80, 70), (5, 6, 7)]


def numbers(shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(_sums(one), _sums(other))


# --- one tensor ---


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_those_of_whole_numbers(shape: Any, dtype: torch.dtype) -> None:
    values = numbers(shape, dtype)
    size = min(values.element_size(), 4)
    integer = {2: torch.int16, 4: torch.int32}[size]
    read = values.flatten().view(integer).tolist()
    factors = _factors().tolist()
    expected = [
        sum(x * factor for x, factor in zip(read[start : start + _ROW], factors, strict=False))
        % 2**64
        for start in range(0, len(read), _ROW)
    ]
    assert [found % 2**64 for found in _sums(values).tolist()] == expected


def test_factors_lose_no_change_and_no_swap() -> None:
    factors = _factors()
    assert bool((factors % 2 == 1).all())
    assert len((factors % 2**32).unique()) == len(factors) == _ROW


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    places=st.tuples(st.integers(0, 5599), st.integers(0, 5599)),
    bit=st.integers(0, 15),
)
def test_every_bit_and_every_swap_tells(
    dtype: torch.dtype, places: tuple[int, int], bit: int
) -> None:
    values = numbers((80, 70), dtype)
    one, other = places
    flipped, swapped = values.clone(), values.clone()
    flipped.view(torch.int16).view(-1)[one] ^= -(2**15) if bit == 15 else 2**bit
    assert not same(values, flipped)
    flat = swapped.view(-1)
    flat[[one, other]] = flat[[other, one]]
    assert same(values, swapped) == torch.equal(values, swapped)


@pytest.mark.parametrize("shape", [(6, 4), (80, 70), (9, _ROW), (5, _ROW + 3)])
def test_rows_and_columns_that_change_places_tell(shape: Any) -> None:
    values = numbers(shape)
    ones = torch.ones(shape)
    ones[1], ones[:, 2] = 2.0, -1.0
    for some in (values, ones, ones.bfloat16()):
        assert not same(some, some[[1, 0, *range(2, shape[0])]])
        assert not same(some, some[:, [0, 2, 1, *range(3, shape[1])]])
    assert not same(values[:4, :4], values[:4, :4].T)


@pytest.mark.parametrize("shape", SHAPES)
def test_portions_threads_and_strides_do_not_tell(
    shape: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = numbers(shape)
    found = _sums(values)
    wide = torch.stack([values, values + 1], -1)
    assert torch.equal(_sums(wide[..., 0]), found)
    threads = torch.get_num_threads()
    for portion in (_ROW, 3 * _ROW, 2**22):  # of a CPU, and of any other device
        monkeypatch.setitem(fingerprint._PORTION, "cpu", portion)
        torch.set_num_threads(1 if portion == _ROW else 2)
        assert torch.equal(_sums(values), found)
    torch.set_num_threads(threads)


# --- models ---


@pytest.mark.lane
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_one_other_number_anywhere_is_another_model(architecture: str) -> None:
    model = bridge(hf_model(architecture))
    first = weights_digest(model)
    assert weights_digest(bridge(hf_model(architecture))) == first
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        place = tuple(int(torch.randint(n, (1,), generator=generator)) for n in parameter.shape)
        before = parameter.data[place].clone()
        for other in (-before, before * (1 + 2**-22), before + 1):
            if other == before:  # zeros that TransformerLens 3 puts in as biases
                continue
            parameter.data[place] = other
            assert weights_digest(model) != first, name
        parameter.data[place] = before
    assert weights_digest(model) == first
    assert weights_digest(bridge(hf_model(architecture, seed=1))) != first


def test_precision_tells() -> None:
    models = [bridge(hf_model("llama").to(dtype)) for dtype in DTYPES]
    models.append(bridge(hf_model("llama").to(torch.bfloat16).float()))
    assert len({weights_digest(model) for model in models}) == len(models)


def test_an_edit_of_lens_lang_is_another_model_to_runs_and_results(tmp_path: Path) -> None:
    model = bridge(hf_model("llama"))
    text = ll.Corpora.from_tokens({"en": random_documents([5, 9]), "fr": random_documents([8])})

    def counted(folder: Path | None) -> Any:
        return ll.collect(model, text, ll.ActivationFrequency(), run_dir=folder, progress=False)

    base, before = counted(tmp_path), weights_digest(model)
    neurons = ll.NeuronSet.from_indices(
        torch.tensor([[1, 60], [2, 50]]), site=ll.MLP_POST, shape=(LAYERS, D_MLP)
    )
    ll.tune(model, neurons, text, steps=2, lr=0.5)
    assert weights_digest(model) != before
    with pytest.raises(StorageError, match="holds another run: weights was"):
        counted(tmp_path)
    with pytest.raises(ShapeError):
        base + counted(None)


# --- offloaded weights ---


def offloaded(architecture: str) -> Any:
    hf = hf_model(architecture)
    accelerate.cpu_offload(hf, execution_device=torch.device("cpu"))
    return bridge(hf)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma3", "gpt2"])  # some have tied weights
def test_offloaded_weights_are_those_in_memory(architecture: str) -> None:
    model = offloaded(architecture)
    devices = [parameter.device for parameter in model.parameters()]
    assert torch.device("meta") in devices
    before = weights_digest(model)
    model(torch.tensor([[3, 4]]))
    assert weights_digest(model) == before == weights_digest(tiny(architecture))
    assert [parameter.device for parameter in model.parameters()] == devices


def test_an_offloaded_model_is_counted_as_one_in_memory(corpora: ll.Corpora) -> None:
    found, expected = (
        ll.collect(model, corpora, ll.ActivationFrequency(), progress=False)
        for model in (offloaded("qwen2"), tiny("qwen2"))
    )
    assert torch.equal(found.count, expected.count)
    assert found.provenance == expected.provenance


def test_weights_without_values_are_refused() -> None:
    model = bridge(hf_model("llama").to("meta"))
    with pytest.raises(ModelError, match="embed_tokens.* is on the meta device and has no values"):
        weights_digest(model)
