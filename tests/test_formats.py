"""Other projects' neuron files are read with checks, and never run anything.

The published files are not ours to ship. What is known of them is counted in
`golden/lape_published_counts.json`; files with exactly those counts are built here.
"""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from lens_lang import formats
from lens_lang.errors import LanguageError, LensLangError, OptionError, StorageError
from lens_lang.neurons import LanguageNeurons, NeuronSet
from lens_lang.results import load
from lens_lang.sites import ATTN_V, MLP_POST, MLP_PRE

PUBLISHED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "golden" / "lape_published_counts.json").read_text()
)
Content = list[list[torch.Tensor]]


def _memberships(entry: dict[str, Any]) -> list[list[set[int]]]:
    """For every layer the languages of each of its neurons, with the published counts.

    Dealing the languages of a layer out one after another, around the neurons that the layer has
    in all, gives the published counts per layer. Moving a language from one neuron to another
    of its layer keeps them; moves that bring the overlaps nearer to the published ones, or no
    farther away, end exactly there.
    """
    languages, published = entry["langs"], entry["overlap"]
    rng = random.Random(0)
    layers: list[list[set[int]]] = []
    for layer, n_distinct in enumerate(entry["union_per_layer"]):
        neurons: list[set[int]] = [set() for _ in range(n_distinct)]
        dealt = 0
        for lang, name in enumerate(languages):
            for _ in range(entry["per_layer"][name][layer]):
                neurons[dealt % n_distinct].add(lang)
                dealt += 1
        layers.append(neurons)
    pairs = [(a, b) for a in range(len(languages)) for b in range(a)]
    found = {(a, b): sum(a in n and b in n for ns in layers for n in ns) for a, b in pairs}
    far = {(a, b): found[a, b] - published[a][b] for a, b in pairs}

    def shift(lang: int, others: set[int], by: int) -> None:
        for other in others:
            far[max(lang, other), min(lang, other)] += by

    sizes = [len(neurons) for neurons in layers]
    distance = sum(map(abs, far.values()))
    while distance:
        (layer,) = rng.choices(layers, sizes)
        giver, taker = rng.choice(layer), rng.choice(layer)
        movable = sorted(giver - taker)
        if len(giver) < 2 or not movable:
            continue
        lang = rng.choice(movable)
        shift(lang, giver - {lang}, -1)
        shift(lang, taker, +1)
        now = sum(map(abs, far.values()))
        if now <= distance:
            giver.remove(lang)
            taker.add(lang)
            distance = now
        else:
            shift(lang, taker, -1)
            shift(lang, giver - {lang}, +1)
    return layers


@cache
def published_content(name: str) -> Content:
    """A file's content in the published layout: its neurons spread evenly over their layer."""
    entry = PUBLISHED[name]
    content: Content = [[] for _ in entry["langs"]]
    for neurons in _memberships(entry):
        # the last neuron of the model's width is among them, so that the width can be guessed
        places = [
            entry["d_ff"] - 1 - n * (entry["d_ff"] // len(neurons)) for n in range(len(neurons))
        ]
        for lang, indices in enumerate(content):
            chosen = sorted(p for p, served in zip(places, neurons, strict=True) if lang in served)
            indices.append(torch.tensor(chosen, dtype=torch.int64))
    return content


def write_content(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts_come_out_of_a_published_file(name: str, tmp_path: Path) -> None:
    entry = PUBLISHED[name]
    path = write_content(tmp_path / f"{name}.neuron.pth", published_content(name))
    neurons = formats.read(path, languages=entry["langs"])

    assert neurons.languages == tuple(entry["langs"])
    for lang, found in neurons.items():
        assert len(found) == entry["per_lang"][lang]
        assert found.per_layer(MLP_POST).tolist() == entry["per_layer"][lang]
        assert found.masks[MLP_POST].shape == (entry["n_layers"], entry["d_ff"])
    union = neurons.union()
    assert len(union) == entry["union"] == entry["k1pct"] == round(entry["total"] * 0.01)
    assert union.per_layer(MLP_POST).tolist() == entry["union_per_layer"]
    overlap = neurons.overlap("count")
    assert overlap.to_numpy().astype(int).tolist() == entry["overlap"]
    members = neurons.membership()
    assert sum(members.values()) == entry["union"]
    assert sum(n * count for n, count in members.items()) == sum(entry["per_lang"].values())
    assert neurons.provenance == {
        "method": "read from file",
        "file": path.name,
        "width is guessed": True,
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_survives_both_formats(name: str, tmp_path: Path) -> None:
    content = published_content(name)
    original = write_content(tmp_path / "a.pth", content)
    neurons = formats.read(original, languages=PUBLISHED[name]["langs"])
    neurons.save(tmp_path / "b.safetensors")
    loaded = load(tmp_path / "b.safetensors")
    assert isinstance(loaded, LanguageNeurons)
    assert loaded == neurons
    assert loaded.provenance == neurons.provenance
    formats.write(loaded, tmp_path / "c.pth")
    written = torch.load(tmp_path / "c.pth", weights_only=True)
    assert [[x.tolist() for x in lang] for lang in written] == [
        [x.tolist() for x in lang] for lang in content
    ]
    assert {x.dtype for lang in written for x in lang} == {torch.int64}


def test_only_two_of_the_published_files_have_seven_languages() -> None:
    """The documentation says all have; a file read with seven names must not be believed."""
    seven = {name for name, entry in PUBLISHED.items() if len(entry["langs"]) == 7}
    assert seven == {"LLaMA-2-7B", "LLaMA-2-13B"}


def test_seven_names_for_a_file_of_six_languages_are_refused(tmp_path: Path) -> None:
    path = write_content(tmp_path / "Phi-2-2.7B.neuron.pth", published_content("Phi-2-2.7B"))
    message = r"Phi-2-2.7B.neuron.pth has 6 languages, but 7 names were given \(en, zh, .*, ja\)"
    with pytest.raises(OptionError, match=message):
        formats.read(path, languages=("en", "zh", "fr", "es", "vi", "id", "ja"))
    with pytest.raises(OptionError, match="has 6 languages, but 1 names were given"):
        formats.read(path, languages=("en",))


def test_names_are_kept_in_their_order_and_only_once(tmp_path: Path) -> None:
    path = write_content(tmp_path / "n.pth", [[torch.tensor([1])], [torch.tensor([2])]])
    assert formats.read(path, languages=["zh", "en"])["zh"].indices(MLP_POST).tolist() == [[0, 1]]
    with pytest.raises(LanguageError, match="given twice: en"):
        formats.read(path, languages=["en", "en"])


# --- widths and sites ---


@pytest.mark.parametrize(
    ("largest", "width"), [(0, 256), (255, 256), (256, 512), (11007, 11008), (11000, 11008)]
)
def test_the_width_is_guessed_as_the_next_multiple_of_256(
    tmp_path: Path, largest: int, width: int
) -> None:
    path = write_content(tmp_path / "n.pth", [[torch.tensor([0, largest])]])
    found = formats.read(path, languages=["en"])
    assert found["en"].masks[MLP_POST].shape == (1, width)
    assert found.provenance["width is guessed"] is True


def test_a_given_width_is_taken_and_one_too_small_refused(tmp_path: Path) -> None:
    path = write_content(tmp_path / "n.pth", [[torch.tensor([3, 300])]])
    found = formats.read(path, languages=["en"], width=301)
    assert found["en"].masks[MLP_POST].shape == (1, 301)
    assert found.provenance["width is guessed"] is False
    with pytest.raises(OptionError, match="n.pth has neuron 300, but width is 300"):
        formats.read(path, languages=["en"], width=300)


def test_neurons_live_at_the_site_asked_for(tmp_path: Path) -> None:
    path = write_content(tmp_path / "n.pth", [[torch.tensor([3])]])
    assert formats.read(path, languages=["en"], site=MLP_PRE).sites == (MLP_PRE,)


def test_a_file_without_any_neuron_keeps_its_layers(tmp_path: Path) -> None:
    nothing = torch.tensor([], dtype=torch.int64)
    path = write_content(tmp_path / "n.pth", [[nothing, torch.tensor([])]])  # [] is a float tensor
    neurons = formats.read(path, languages=["en"])
    assert neurons["en"].per_layer(MLP_POST).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_any_whole_number_type_is_an_index(tmp_path: Path, dtype: torch.dtype) -> None:
    path = write_content(tmp_path / "n.pth", [[torch.tensor([7, 100], dtype=dtype)]])
    assert formats.read(path, languages=["en"])["en"].indices(MLP_POST).tolist() == [
        [0, 7],
        [0, 100],
    ]


def test_writing_keeps_only_the_site_asked_for(tmp_path: Path) -> None:
    post, value = torch.zeros(2, 4, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.bool)
    post[0, 3], value[1, 2] = True, True
    neurons = LanguageNeurons({"en": NeuronSet({MLP_POST: post, ATTN_V: value})})
    formats.write(neurons, tmp_path / "post.pth")
    formats.write(neurons, tmp_path / "value.pth", site=ATTN_V)
    read = {
        name: formats.read(tmp_path / f"{name}.pth", languages=["en"], width=4, site=site)["en"]
        for name, site in (("post", MLP_POST), ("value", ATTN_V))
    }
    assert read["post"] == NeuronSet({MLP_POST: post})
    assert read["value"] == NeuronSet({ATTN_V: value})


# --- files that are not what they should be ---


class Hostile:
    """A pickle that would create a file on being opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    trap = tmp_path / "the trap was sprung"
    path = write_content(tmp_path / "n.pth", [[Hostile(trap)]])
    with pytest.raises(StorageError, match="not a plain file of tensors.*could run code"):
        formats.read(path, languages=["en"])
    assert not trap.exists()


def test_the_hostile_pickle_would_run_elsewhere(tmp_path: Path) -> None:
    """The test above can fail: opened without care, the same file springs its trap."""
    trap = tmp_path / "the trap was sprung"
    path = write_content(tmp_path / "n.pth", [[Hostile(trap)]])
    torch.load(path, weights_only=False)
    assert trap.exists()


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = write_content(tmp_path / "n.pth", published_content("Phi-2-2.7B"))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(StorageError, match="truncated or no torch file"):
        formats.read(path, languages=PUBLISHED["Phi-2-2.7B"]["langs"])


def test_a_file_cut_anywhere_is_refused_in_either_layout_of_torch(tmp_path: Path) -> None:
    content = [[torch.tensor([1, 5]), torch.tensor([7])], [torch.tensor([2]), torch.tensor([3])]]
    path = tmp_path / "n.pth"
    for new in (True, False):
        torch.save(content, path, _use_new_zipfile_serialization=new)
        whole = path.read_bytes()
        for length in range(0, len(whole) - 1, 7):
            path.write_bytes(whole[:length])
            with pytest.raises(StorageError, match="truncated|not a plain file"):
                formats.read(path, languages=["en", "fr"])


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(StorageError, match="There is no neuron file"):
            formats.read(path, languages=["en"])


SOME = torch.tensor([1, 2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"en": [SOME]}, "a list over languages is expected"),
        ([], "a list over languages is expected"),
        (SOME, "a list over languages is expected"),
        ([SOME], "a list over the same number of layers"),
        ([(SOME,)], "a list over the same number of layers"),
        ([[SOME], [SOME, SOME]], "a list over the same number of layers"),
        ([[SOME, [1, 2]]], "a one-dimensional tensor of indices"),
        ([[SOME[None]]], "a one-dimensional tensor of indices"),
        ([[torch.tensor(3)]], "a one-dimensional tensor of indices"),
        ([[SOME.float()]], "indices must be whole numbers"),
        ([[SOME, torch.tensor([4, -1])]], "-1 is no index of a neuron"),
        pytest.param([[torch.tensor([False, True, True])]], "indices must be whole numbers"),
        pytest.param([[torch.tensor([1j])]], "indices must be whole numbers"),
        pytest.param([[], []], "layer"),
    ],
)
def test_another_layout_is_refused_with_what_was_expected(
    tmp_path: Path, content: Any, message: str
) -> None:
    path = write_content(tmp_path / "n.pth", content)
    languages = ["en", "fr"][: len(content)] or ["en"]
    with pytest.raises(StorageError, match=f"not a file of language neurons: .*{message}"):
        formats.read(path, languages=languages)


def test_an_absurd_index_is_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    path = write_content(tmp_path / "n.pth", [[torch.tensor([2**50])]])
    with pytest.raises(LensLangError, match=str(2**50)):
        formats.read(path, languages=["en"])


def test_writing_a_site_that_the_neurons_do_not_have_is_one_sentence(tmp_path: Path) -> None:
    values = LanguageNeurons({"en": NeuronSet({ATTN_V: torch.ones(1, 2, dtype=torch.bool)})})
    with pytest.raises(LensLangError, match="neurons at attn_v, not at mlp_post"):
        formats.write(values, tmp_path / "n.pth")


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    neurons = LanguageNeurons({"en": NeuronSet({MLP_POST: torch.ones(1, 2, dtype=torch.bool)})})
    with pytest.raises(StorageError, match="Could not write .*n.pth"):
        formats.write(neurons, tmp_path / "a file" / "n.pth")
