"""Other projects' neuron files are read with checks, and never run anything.

The published files are not ours to ship. What is known of them is counted in
`golden/lape_published_counts.json`; files with exactly those counts are built here.
"""

import json
import random
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_lang import formats
from lens_lang.errors import (
    LanguageError,
    LensLangError,
    OptionError,
    ShapeError,
    SiteError,
    StorageError,
)
from lens_lang.neurons import LanguageNeurons, NeuronSet
from lens_lang.results import load
from lens_lang.sites import ATTN_K, ATTN_Q, ATTN_V, ATTN_Z, MLP_POST, MLP_PRE, Site

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


# --- PLND's text files ---

# 2 layers of 6 neurons; 4 query heads of 3 channels share 2 key-value heads
SMALL: dict[str, int] = {"n_layers": 2, "d_mlp": 6, "n_heads": 4, "d_head": 3, "n_kv_heads": 2}
NOTHING = "{0: set(), 1: set()}"
PLND_SITES = (MLP_POST, ATTN_Q, ATTN_K, ATTN_V)


def plnd_file(path: Path, **lines: str) -> Path:
    """A file with some lines, under their names, and the others without neurons."""
    names = ("up", "down", "q", "k", "v")
    assert set(lines) <= set(names)
    path.write_text("".join(lines.get(name, NOTHING) + "\n" for name in names), encoding="utf-8")
    return path


def read_small(path: Path, **sizes: int) -> NeuronSet:
    return formats.read_plnd({"en": path}, **{**SMALL, **sizes})["en"]


def members(neurons: NeuronSet, site: Site) -> list[list[int]]:
    return neurons.indices(site).tolist()


def empty_masks(sizes: dict[str, int]) -> dict[Site, torch.Tensor]:
    kv_width = sizes["n_kv_heads"] * sizes["d_head"]
    widths = (sizes["d_mlp"], sizes["n_heads"] * sizes["d_head"], kv_width, kv_width)
    return {
        site: torch.zeros(sizes["n_layers"], width, dtype=torch.bool)
        for site, width in zip(PLND_SITES, widths, strict=True)
    }


@st.composite
def plnd_neurons(draw: st.DrawFn) -> tuple[NeuronSet, dict[str, int]]:
    """Neurons of a small model at PLND's four sites, and its sizes."""
    sizes = {name: draw(st.integers(1, 4)) for name in ("n_layers", "d_mlp", "d_head")}
    sizes["n_kv_heads"] = draw(st.integers(1, 3))
    sizes["n_heads"] = sizes["n_kv_heads"] * draw(st.integers(1, 4))
    masks = empty_masks(sizes)
    for mask in masks.values():
        flat = draw(st.lists(st.booleans(), min_size=mask.numel(), max_size=mask.numel()))
        mask.view(-1)[:] = torch.tensor(flat)
    return NeuronSet(masks), sizes


@settings(deadline=None, max_examples=80)
@given(plnd_neurons())
def test_what_is_written_for_plnd_is_read_again(drawn: tuple[NeuronSet, dict[str, int]]) -> None:
    neurons, sizes = drawn
    group = sizes["n_heads"] // sizes["n_kv_heads"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "French_all.txt"
        formats.write_plnd(neurons, path, d_head=sizes["d_head"], group=group)
        found = formats.read_plnd({"fr": path}, **sizes)
    assert found == LanguageNeurons({"fr": neurons})
    assert found.sites == PLND_SITES


def test_every_language_has_its_file_and_the_provenance_names_it(tmp_path: Path) -> None:
    paths = {
        "fr": plnd_file(tmp_path / "french.txt", up="{0: {1}}"),
        "en": str(plnd_file(tmp_path / "english.txt", up="{0: {2}}")),
    }
    neurons = formats.read_plnd(paths, **SMALL)
    assert neurons.languages == ("fr", "en")
    assert members(neurons["French"], MLP_POST) == [[0, 1]]
    assert members(neurons["en"], MLP_POST) == [[0, 2]]
    assert neurons.provenance == {
        "method": "read from file",
        "files": {"fr": "french.txt", "en": "english.txt"},
    }
    neurons.save(tmp_path / "b.safetensors")
    assert load(tmp_path / "b.safetensors") == neurons


def test_no_file_at_all_is_refused() -> None:
    with pytest.raises(LanguageError, match="No language was given"):
        formats.read_plnd({}, **SMALL)


def test_five_lines_stand_for_four_sites(tmp_path: Path) -> None:
    path = plnd_file(
        tmp_path / "n.txt",
        up="{0: {5}, 1: set()}",
        q="{0: {11}, 1: {0, 7}}",
        k="{0: {1}, 1: set()}",
        v="{0: set(), 1: {2}}",
    )
    found = read_small(path)
    assert members(found, MLP_POST) == [[0, 5]]
    assert members(found, ATTN_Q) == [[0, 11], [1, 0], [1, 7]]
    assert members(found, ATTN_K) == [[0, 1]]
    assert members(found, ATTN_V) == [[1, 2]]


def test_the_lists_of_up_and_down_are_united(tmp_path: Path) -> None:
    path = plnd_file(tmp_path / "n.txt", up="{0: {1, 2}}", down="{0: {2, 3}, 1: {0}}")
    assert members(read_small(path), MLP_POST) == [[0, 1], [0, 2], [0, 3], [1, 0]]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{0: {np.int64(3), np.int64(4)}, 1: set()}", [[0, 3], [0, 4]]),
        ("{0: {np.int32(3)}, 1: {numpy.int64(4)}}", [[0, 3], [1, 4]]),
        ("{np.int64(1): {numpy.int32(5)}}", [[1, 5]]),
        ("{0: set(), 1: set()}", []),
        ("{}", []),
        ("{1: {5}, 0: {3, 1, 3}}", [[0, 1], [0, 3], [1, 5]]),
        ("  { 0:{ 1,2 , } , }  ", [[0, 1], [0, 2]]),
    ],
)
def test_spellings_of_the_same_sets_are_read(
    tmp_path: Path, line: str, expected: list[list[int]]
) -> None:
    assert members(read_small(plnd_file(tmp_path / "n.txt", up=line)), MLP_POST) == expected


def test_line_ends_of_windows_and_a_missing_last_one_are_read(tmp_path: Path) -> None:
    path = plnd_file(tmp_path / "n.txt", up="{0: {3}}", v="{0: {1}}")
    whole, text = read_small(path), path.read_text()
    for variant in (text.replace("\n", "\r\n"), text.rstrip(), text + "\n"):
        path.write_bytes(variant.encode())
        assert read_small(path) == whole


# --- keys and values, numbered per query head ---


def test_channel_17_of_query_head_3_is_channel_17_of_its_key_value_head(tmp_path: Path) -> None:
    """The released code takes channel 100, of the same head."""
    index = 3 * 128 + 17
    assert formats.kv_index(torch.tensor([index]), d_head=128, group=4).tolist() == [17]
    assert index // 4 == 100
    path = plnd_file(tmp_path / "n.txt", k=f"{{0: {{{index}}}}}", v=f"{{1: {{{index + 512}}}}}")
    found = read_small(path, n_heads=8, d_head=128, n_kv_heads=2)
    assert members(found, ATTN_K) == [[0, 17]]
    assert members(found, ATTN_V) == [[1, 128 + 17]]


@given(n=st.integers(0, 40), j=st.integers(0, 7), group=st.integers(1, 4))
def test_a_channel_keeps_its_place_in_the_head_that_its_group_shares(
    n: int, j: int, group: int
) -> None:
    found = formats.kv_index(torch.tensor([n * 8 + j]), d_head=8, group=group)
    assert divmod(int(found), 8) == (n // group, j)


def test_without_shared_heads_keys_and_values_are_numbered_as_queries(tmp_path: Path) -> None:
    everything = torch.arange(24)
    assert formats.kv_index(everything, d_head=3, group=1).equal(everything)
    path = plnd_file(tmp_path / "n.txt", q="{0: {11}}", k="{0: {11}}", v="{0: {4}}")
    found = read_small(path, n_kv_heads=4)
    assert members(found, ATTN_Q) == members(found, ATTN_K) == [[0, 11]]
    assert members(found, ATTN_V) == [[0, 4]]


def test_any_query_head_of_a_group_names_the_neuron_that_the_group_shares(tmp_path: Path) -> None:
    for line in ("{0: {7}}", "{0: {10}}", "{0: {7, 10}}"):
        assert members(read_small(plnd_file(tmp_path / "n.txt", k=line)), ATTN_K) == [[0, 4]]


# --- writing ---


def test_a_plnd_file_names_every_layer_and_every_query_head(tmp_path: Path) -> None:
    masks = empty_masks(SMALL)
    masks[MLP_POST][1, [5, 0]] = True
    masks[ATTN_Q][0, 11] = True
    masks[ATTN_K][0, 4] = True
    masks[ATTN_V][1, [0, 3]] = True
    formats.write_plnd(NeuronSet(masks), tmp_path / "n.txt", d_head=3, group=2)
    assert (tmp_path / "n.txt").read_text().split("\n") == [
        "{0: set(), 1: {0, 5}}",
        "{0: set(), 1: {0, 5}}",
        "{0: {11}, 1: set()}",
        "{0: {7, 10}, 1: set()}",
        "{0: set(), 1: {0, 3, 6, 9}}",
        "",
    ]


def test_a_written_file_means_the_same_to_the_released_reader(tmp_path: Path) -> None:
    """It evaluates each line; what is written here is safe to."""
    masks = empty_masks({**SMALL, "d_mlp": 20_000})
    masks[MLP_POST][0, [3, 12, 777, 9000, 14000]] = True  # a set of these prints in another order
    formats.write_plnd(NeuronSet(masks), tmp_path / "n.txt", d_head=3, group=2)
    up, down, *rest = map(eval, (tmp_path / "n.txt").read_text().splitlines())
    assert up == down == {0: {3, 12, 777, 9000, 14000}, 1: set()}
    assert rest == [{0: set(), 1: set()}] * 3


def test_sites_that_a_set_does_not_have_are_written_without_neurons(tmp_path: Path) -> None:
    post = torch.zeros(2, 6, dtype=torch.bool)
    post[1, 4] = True
    formats.write_plnd(NeuronSet({MLP_POST: post}), tmp_path / "n.txt", d_head=3, group=2)
    assert read_small(tmp_path / "n.txt") == NeuronSet({**empty_masks(SMALL), MLP_POST: post})


def test_a_site_without_a_line_is_refused(tmp_path: Path) -> None:
    neurons = NeuronSet({**empty_masks(SMALL), ATTN_Z: torch.ones(2, 12, dtype=torch.bool)})
    with pytest.raises(SiteError, match="no line for neurons at attn_z, only for mlp_post, attn_q"):
        formats.write_plnd(neurons, tmp_path / "n.txt", d_head=3, group=2)
    assert not (tmp_path / "n.txt").exists()


@pytest.mark.parametrize(("d_head", "group"), [(3, 1), (3, 4), (4, 2)])
def test_sizes_of_other_heads_are_refused(tmp_path: Path, d_head: int, group: int) -> None:
    message = f"attn_q 12, attn_k 6, attn_v 6.*d_head={d_head} with group={group}"
    with pytest.raises(ShapeError, match=message):
        formats.write_plnd(
            NeuronSet(empty_masks(SMALL)), tmp_path / "n.txt", d_head=d_head, group=group
        )
    for site in (ATTN_Q, ATTN_V):  # alone, a site can still tell another d_head
        alone = NeuronSet({site: empty_masks(SMALL)[site]})
        with pytest.raises(ShapeError, match="d_head=5"):
            formats.write_plnd(alone, tmp_path / "n.txt", d_head=5, group=group)


def test_sites_with_other_numbers_of_layers_are_refused(tmp_path: Path) -> None:
    neurons = NeuronSet({**empty_masks(SMALL), MLP_POST: torch.ones(3, 6, dtype=torch.bool)})
    with pytest.raises(ShapeError, match="same number of layers, got .*'mlp_post': 3"):
        formats.write_plnd(neurons, tmp_path / "n.txt", d_head=3, group=2)


def test_a_folder_that_cannot_be_written_for_plnd_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    with pytest.raises(StorageError, match="Could not write .*n.txt"):
        formats.write_plnd(
            NeuronSet(empty_masks(SMALL)), tmp_path / "a file" / "n.txt", d_head=3, group=2
        )


# --- sizes that cannot be ---


@pytest.mark.parametrize("name", SMALL)
def test_a_size_below_one_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match=f"{name} must be at least 1, got 0"):
        read_small(plnd_file(tmp_path / "n.txt"), **{name: 0})


def test_key_value_heads_that_do_not_divide_the_query_heads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="n_heads must be a multiple of n_kv_heads, got 4 and 3"):
        read_small(plnd_file(tmp_path / "n.txt"), n_kv_heads=3)


def test_groups_and_heads_below_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="group must be at least 1, got 0"):
        formats.kv_index(torch.tensor([1]), d_head=3, group=0)
    with pytest.raises(OptionError, match="d_head must be at least 1, got -1"):
        formats.write_plnd(NeuronSet({}), tmp_path / "n.txt", d_head=-1, group=1)


# --- text files that are not what they should be ---


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{0: {4, -3}}", "has '-3}}' where only whole numbers from 0"),
        ("{0: {np.int64(-3)}}", "has 'np.int64(-3)}}' where only"),
        ("{-1: {4}}", "has '-1: {4}}' where only"),
        ("{0: {12}}", "has neuron 12 in layer 0, but there are 12 by the sizes given"),
        (f"{{0: {{{2**63}}}}}", f"has neuron {2**63} in layer 0, but there are 12"),
        pytest.param(f"{{0: {{{'9' * 5000}}}}}", "is cut off or malformed", id="5000 digits"),
        ("{2: {4}}", "has layer 2, but n_layers is 2"),
        ("{0: {4}, 1: {4}, 0: {5}}", "has layer 0 twice"),
        ("{0: {4}, np.int64(0): {5}}", "has layer 0 twice"),
        ("{0: {}}", "must have a set of neurons in every layer, such as {3, 7} or set()"),
        ("{0: 4}", "must have a set of neurons in every layer"),
        ("{0: {{4}}}", "must have whole numbers as layers and neurons"),
        ("{set(): {4}}", "must have whole numbers as layers and neurons"),
        ("{0, 4}", "must be {layer: {neurons}, ...}"),
        ("set()", "must be {layer: {neurons}, ...}"),
        ("{0: {4}}, {0: {4}}", "must be {layer: {neurons}, ...}"),
        ("4", "must be {layer: {neurons}, ...}"),
        ("{0: {4}} {0: {4}}", "is cut off or malformed"),
        ("{0: {4 5}}", "is cut off or malformed"),
        ("{0: {007}}", "is cut off or malformed"),
        ("{0: {4}", "is cut off or malformed"),
        ("{0: [4]}", "has '[4]}' where only"),
        ("{0: {4.0}}", "has '.0}}' where only"),
        ("{0: {4_0}}", "has '_0}}' where only"),
        ("{0: {0x4}}", "has 'x4}}' where only"),
        ("{0: {True}}", "has 'True}}' where only"),
        ("{0: {'4'}}", "has \"'4'}}\" where only"),
        ("{0: {np.float64(4)}}", "has 'np.float64(4)}}' where only"),
        ("{0: {xnp.int64(4)}}", "has 'xnp.int64(4)}}' where only"),
        ("{0: {np.int64(np.int64(4))}}", "has 'np.int64(4)}}' where only"),
        ("{0: set([4])}", "has 'set([4])}' where only"),
        ("{0: set(4)}", "has 'set(4)}' where only"),
        ("{**{0: {4}}}", "has '**{0: {4}}}' where only"),
        ("{0: {*{4}}}", "has '*{4}}}' where only"),
        ("{0: {x for x in {4}}}", "has 'x for x in {4}}}' where only"),
        ("{0: {\u0664}}", "has '\u0664}}' where only"),  # a digit, but not one of Python's
        ("\ufeff{}", "has '\\ufeff{}' where only"),
        ("{0: {4}}\0", "has '\\x00' where only"),
    ],
)
def test_a_line_that_is_no_table_of_sets_is_refused(
    tmp_path: Path, line: str, message: str
) -> None:
    path = plnd_file(tmp_path / "n.txt", q=line)
    message = f"n.txt cannot be read as a PLND neuron file: line 3 (q) {message}"
    with pytest.raises(StorageError, match=re.escape(message)):
        read_small(path)


@pytest.mark.parametrize(
    ("name", "number", "width"),
    [("up", 1, 6), ("down", 2, 6), ("q", 3, 12), ("k", 4, 12), ("v", 5, 12)],
)
def test_each_line_has_its_own_width(tmp_path: Path, name: str, number: int, width: int) -> None:
    path = tmp_path / "n.txt"
    assert len(read_small(plnd_file(path, **{name: f"{{0: {{{width - 1}}}}}"}))) == 1
    with pytest.raises(StorageError, match=rf"line {number} \({name}\) has neuron {width} "):
        read_small(plnd_file(path, **{name: f"{{0: {{{width}}}}}"}))


@pytest.mark.parametrize(
    "bomb",
    ["{" * 200_000, "{0:" * 200_000, "-" * 200_000, "set" + "()" * 200_000, "0" + "+1" * 200_000],
    ids=["sets", "dicts", "signs", "calls", "sums"],
)
def test_deep_nesting_is_refused(tmp_path: Path, bomb: str) -> None:
    with pytest.raises(StorageError, match=r"line 4 \(k\) "):
        read_small(plnd_file(tmp_path / "n.txt", k=bomb))


def touching(path: Path) -> str:
    """An expression that creates a file on being evaluated."""
    return f"__import__('pathlib').Path({str(path)!r}).touch()"


@pytest.mark.parametrize(
    "wrapped", ["{code}", "{{0: {code}}}", "{{0: {{{code}}}}}", "{{{code}: 0}}"]
)
def test_a_text_file_that_would_call_something_is_refused_and_runs_nothing(
    tmp_path: Path, wrapped: str
) -> None:
    trap = tmp_path / "trap"
    path = plnd_file(tmp_path / "n.txt", v=wrapped.format(code=touching(trap)))
    with pytest.raises(StorageError, match=r"line 5 \(v\) has .*__import__.* where only"):
        read_small(path)
    assert not trap.exists()


def test_the_hostile_text_file_would_run_elsewhere(tmp_path: Path) -> None:
    """The test above can fail: evaluated as the released code does, the line springs its trap."""
    trap = tmp_path / "trap"
    eval(f"{{0: {touching(trap)}}}")
    assert trap.exists()


def test_a_text_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    line = "{0: {1, 5}, 1: {np.int64(4)}}"
    path = plnd_file(tmp_path / "n.txt", up=line, down=line, q=line, k=line, v=line)
    whole = path.read_text().rstrip()
    for length in range(len(whole)):
        path.write_text(whole[:length])
        with pytest.raises(StorageError, match="cut off or malformed|where only|must have 5 lines"):
            read_small(path)


@pytest.mark.parametrize("n_lines", [0, 1, 4, 6])
def test_another_number_of_lines_is_refused(tmp_path: Path, n_lines: int) -> None:
    path = tmp_path / "n.txt"
    path.write_text((NOTHING + "\n") * n_lines)
    message = rf"it must have 5 lines \(up, down, q, k, v\), got {n_lines}"
    with pytest.raises(StorageError, match=message):
        read_small(path)


def test_a_missing_text_file_a_folder_and_bytes_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.txt", tmp_path):
        with pytest.raises(StorageError, match="There is no neuron file"):
            read_small(path)
    (tmp_path / "n.txt").write_bytes(b"{0: {\xe9}}\n" * 5)
    with pytest.raises(StorageError, match="n.txt is not a readable text file: .*utf-8"):
        read_small(tmp_path / "n.txt")
