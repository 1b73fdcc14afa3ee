"""Regions divide the neurons of a model, every one into exactly one part."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lens_lang.errors import OptionError
from lens_lang.neurons import NeuronSet
from lens_lang.regions import Regions
from lens_lang.sites import ATTN_K, ATTN_Q, ATTN_V, ATTN_Z, MLP_POST


def random_set(seed: int, layers: int) -> NeuronSet:
    generator = torch.Generator().manual_seed(seed)
    widths = {MLP_POST: 7, ATTN_Q: 4, ATTN_K: 2, ATTN_V: 2, ATTN_Z: 4}
    return NeuronSet(
        {site: torch.rand(layers, n, generator=generator) < 0.5 for site, n in widths.items()}
    )


@given(st.integers(0, 999), st.integers(2, 12), st.integers(0, 5), st.integers(0, 5))
def test_every_neuron_is_in_exactly_one_region(seed: int, layers: int, a: int, b: int) -> None:
    if a + b >= layers:
        return
    neurons = random_set(seed, layers)
    parts = Regions(understanding=a, generation=b).split(neurons)
    assert list(parts) == ["understanding", "task_attention", "task_mlp", "generation"]
    union = NeuronSet({site: torch.zeros_like(mask) for site, mask in neurons.masks.items()})
    for part in parts.values():
        assert len(union & part) == 0
        union = union | part
    assert union == neurons
    assert {layer for _, layer, _ in parts["understanding"]} <= set(range(a))
    assert {layer for _, layer, _ in parts["generation"]} <= set(range(layers - b, layers))
    assert {site for site, _, _ in parts["task_mlp"]} <= {MLP_POST}
    assert MLP_POST not in {site for site, _, _ in parts["task_attention"]}


@pytest.mark.parametrize(
    ("regions", "first", "last"),
    [
        (Regions(understanding=0.25, generation=0.06), 8, 2),  # Vicuna-7B in the paper
        (Regions(understanding=0.19, generation=0.09), 6, 3),  # Mistral-7B
        (Regions(understanding=8, generation=4), 8, 4),
        (Regions(understanding=0, generation=0), 0, 0),
        (Regions(understanding=0.001, generation=0.001), 1, 1),
    ],
)
def test_shares_and_numbers_of_layers(regions: Regions, first: int, last: int) -> None:
    layers = regions.layers(32)
    assert (len(layers["understanding"]), len(layers["generation"])) == (first, last)
    assert [*layers["understanding"], *layers["task"], *layers["generation"]] == [*range(32)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"understanding": -1}, "understanding must not be negative"),
        ({"generation": -0.1}, "generation must not be negative"),
        ({"understanding": 3, "generation": 1}, "leave none of 4 for the task"),
    ],
)
def test_regions_that_leave_no_task_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Regions(**options).layers(4)
