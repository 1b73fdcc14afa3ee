"""A part is measured once, read after, and never mistaken for another; hooks have fingerprints."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LetterTokenizer, hf_model, tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_intervene import some_neurons

from lens_lang.errors import OptionError, StorageError
from lens_lang.intervene import (
    NeuronEdit,
    UpProjection,
    ablate,
    add,
    matched_control,
    replace,
    scale,
)
from lens_lang.models import bridge
from lens_lang.parts import Parts, hooks_digest, model_digest, seeded
from lens_lang.sites import ATTN_Q, ATTN_Z, MLP_POST
from lens_lang.vectors import VectorEdit

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
KEYS = st.dictionaries(WORDS, JSON, min_size=1, max_size=3)
MANY = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def never() -> Any:
    raise AssertionError("this part is there, and was measured again")


class Measure:
    """What it measures depends on how often it was asked."""

    def __init__(self, part: Any = None) -> None:
        self.calls, self.part = 0, part

    def __call__(self) -> Any:
        self.calls += 1
        return {"number": self.calls, "part": self.part}


# --- parts ---


@MANY
@given(key=KEYS, part=JSON)
def test_a_part_is_measured_once_and_read_after(tmp_path: Path, key: Any, part: Any) -> None:
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    measured = Parts(folder).get(key, lambda: part)
    assert measured == part
    backwards = dict(reversed(key.items()))
    for again in (key, backwards):  # a later process, too
        assert json.dumps(Parts(folder).get(again, never)) == json.dumps(measured)
    assert len(list(folder.iterdir())) == 1


@MANY
@given(keys=st.lists(KEYS, min_size=2, max_size=5, unique_by=lambda key: json.dumps(key)))
def test_another_key_is_measured_anew(tmp_path: Path, keys: Any) -> None:
    keys = list({json.dumps(key, sort_keys=True): key for key in keys}.values())
    parts = Parts(tmp_path / str(len(list(tmp_path.iterdir()))))
    for number, key in enumerate(keys):
        assert parts.get(key, lambda number=number: number) == number
    for number, key in enumerate(keys):
        assert parts.get(key, never) == number


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"x": 1}, {"x": "1"}),
        ({"x": 1}, {"x": 1.0}),
        ({"x": 1}, {"x": True}),
        ({"x": None}, {}),
        ({"x": ["a", "b"]}, {"x": ["b", "a"]}),
        ({"x": ["a", "b"]}, {"x": ["ab"]}),
        ({"x": 0.1}, {"x": 0.1 + 2**-56}),
        ({"x": "e\u0301"}, {"x": "\u00e9"}),
        ({"x": "a "}, {"x": "a"}),
    ],
)
def test_keys_that_look_alike_are_not_mixed_up(tmp_path: Path, one: Any, other: Any) -> None:
    measure = Measure()
    first, second = (Parts(tmp_path).get(key, measure) for key in (one, other))
    assert (first["number"], second["number"]) == (1, 2)
    assert Parts(tmp_path).get(one, never) == first


def test_without_a_folder_a_part_is_measured_every_time() -> None:
    measure, parts = Measure(), Parts(None)
    assert [parts.get({"x": 1}, measure)["number"] for _ in range(3)] == [1, 2, 3]


def test_a_folder_is_made_when_there_is_something_to_keep(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    parts = Parts(str(folder))
    assert not folder.exists()
    parts.get({"x": 1}, Measure())
    assert [file.suffix for file in folder.iterdir()] == [".json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OptionError])
def test_what_was_not_measured_to_its_end_is_not_kept(tmp_path: Path, error: Any) -> None:
    def broken() -> Any:
        raise error("planted")

    parts = Parts(tmp_path)
    with pytest.raises(error):
        parts.get({"x": 1}, broken)
    assert list(tmp_path.iterdir()) == []
    assert parts.get({"x": 1}, Measure())["number"] == 1


def test_what_cannot_be_written_is_not_kept_in_part(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        Parts(tmp_path).get({"x": 1}, lambda: {"tensor": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_parts_stay(tmp_path: Path) -> None:
    Parts(tmp_path).get({"x": 1}, Measure())
    kept = {file: file.read_bytes() for file in tmp_path.iterdir()}
    left = [tmp_path / ".a.json.0123.part", tmp_path / ".b.json.4567.part"]
    others = [tmp_path / "notes.part", tmp_path / ".notes.txt"]
    for file in [*left, *others]:
        file.write_text("half")
    Parts(tmp_path)  # another process may be writing them
    assert all(file.exists() for file in left)
    for file in [*left, *others]:
        os.utime(file, (0, 0))
    parts = Parts(tmp_path)
    assert not any(file.exists() for file in left)
    assert all(file.exists() for file in others)
    assert {file: file.read_bytes() for file in kept} == kept
    parts.get({"x": 1}, never)


# A folder of runs may hold another run, whose process is writing right now.
def test_what_is_in_folders_below_belongs_to_others(tmp_path: Path) -> None:
    below = tmp_path / "another run" / ".x.safetensors.0123.part"
    below.parent.mkdir()
    below.write_text("half")
    Parts(tmp_path)
    assert below.exists()


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def changed(**fields: Any) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(json.loads(content) | fields).encode()


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        lambda content: b"",
        lambda content: b"[]",
        lambda content: b"\xff" + content,
        lambda content: b'{"key": {"x": 1}}',
        changed(key={"x": 2}),
        changed(key=None),
        lambda content: b'{"part": 1}',
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Any) -> None:
    Parts(tmp_path).get({"x": 1}, Measure())
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(StorageError, match=file.name):
        Parts(tmp_path).get({"x": 1}, never)
    file.unlink()
    assert Parts(tmp_path).get({"x": 1}, Measure())["number"] == 1


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="Could not write"):
        Parts(tmp_path / "file").get({"x": 1}, Measure())


# --- fingerprints ---

NEURONS = some_neurons(tiny("llama"))
EDIT = NeuronEdit(
    site=MLP_POST,
    layer=1,
    indices=torch.tensor([3, 8]),
    width=112,
    kind="set",
    values=torch.tensor([0.5, 1.5]),
)
VECTOR = VectorEdit(1, torch.tensor([1.0, 2.0, 3.0]))

MAKERS: dict[str, Callable[[], Any]] = {
    "nothing": list,
    "ablate": lambda: ablate(NEURONS),
    "ablate on the prompt": lambda: ablate(NEURONS, positions="prompt"),
    "ablate on new tokens": lambda: ablate(NEURONS, positions="new"),
    "ablate others": lambda: ablate(~NEURONS),
    "ablate queries": lambda: ablate(some_neurons(tiny("llama"), ATTN_Q)),
    "ablate heads": lambda: ablate(some_neurons(tiny("llama"), ATTN_Z)),
    "scale": lambda: scale(NEURONS, 0.0),
    "scale more": lambda: scale(NEURONS, 2.0),
    "scale a little more": lambda: scale(NEURONS, 2.0000002),
    "add": lambda: add(NEURONS, 2.0, space="product"),
    "add to the gate": lambda: add(NEURONS, 2.0),
    "set": lambda: replace(NEURONS, 2.0, space="product"),
    "set the gate": lambda: replace(NEURONS, 2.0),
    "a control": lambda: matched_control(
        ablate(NEURONS), generator=torch.Generator().manual_seed(0)
    ),
    "another control": lambda: matched_control(
        ablate(NEURONS), generator=torch.Generator().manual_seed(1)
    ),
    "ablate twice": lambda: ablate(NEURONS) * 2,
    "a vector": lambda: [("blocks.1.hook_resid_post", VECTOR)],
}


def test_equal_hooks_have_equal_fingerprints_and_others_others() -> None:
    first = {name: hooks_digest(make()) for name, make in MAKERS.items()}
    assert {name: hooks_digest(make()) for name, make in MAKERS.items()} == first
    assert len(set(first.values())) == len(MAKERS)


EDITS: dict[str, dict[str, Any]] = {
    "indices": {"indices": torch.tensor([3, 9])},
    "their order": {"indices": torch.tensor([8, 3])},
    "fewer": {"indices": torch.tensor([3]), "values": torch.tensor([0.5])},
    "values": {"values": torch.tensor([0.5, 1.25])},
    "a sign": {"values": torch.tensor([0.5, -1.5])},
    "scale": {"kind": "scale"},
    "add": {"kind": "add"},
    "prompt": {"positions": "prompt"},
    "new": {"positions": "new"},
    "width": {"width": 113},
    "gate space": {"up": UpProjection(1)},
}


@pytest.mark.parametrize("changes", EDITS.values(), ids=EDITS.keys())
def test_every_field_of_an_edit_tells(changes: Any) -> None:
    name = MLP_POST.at(1)
    other = dataclasses.replace(EDIT, **changes)
    assert hooks_digest([(name, other)]) != hooks_digest([(name, EDIT)])
    assert hooks_digest([(name, dataclasses.replace(EDIT))]) == hooks_digest([(name, EDIT)])


@pytest.mark.parametrize(
    "changes",
    [
        {"vector": torch.tensor([1.0, 2.0, 3.5])},
        {"vector": torch.tensor([1.0, 3.0, 2.0])},
        {"vector": torch.tensor([2.0, 4.0, 6.0])},
        {"vector": torch.tensor([1.0, 2.0, 3.0, 0.0])},
        {"positions": "new"},
        {"positions": "prompt"},
    ],
)
def test_every_field_of_a_vector_tells(changes: Any) -> None:
    other = dataclasses.replace(VECTOR, **changes)
    assert hooks_digest([("a", other)]) != hooks_digest([("a", VECTOR)])
    assert hooks_digest([("a", dataclasses.replace(VECTOR))]) == hooks_digest([("a", VECTOR)])


def test_names_and_order_tell() -> None:
    a, b = ("blocks.0.hook_resid_post", VECTOR), ("blocks.1.hook_resid_post", VECTOR)
    some = [[], [a], [b], [a, b], [b, a], [a, a], [a, a, a], [a, b, a]]
    assert len({hooks_digest(hooks) for hooks in some}) == len(some)
    assert hooks_digest((a, b)) == hooks_digest([a, b])


def test_numbers_tell_whatever_their_precision_and_nothing_else_does() -> None:
    half = dataclasses.replace(VECTOR, vector=VECTOR.vector.bfloat16())
    double = dataclasses.replace(VECTOR, vector=VECTOR.vector.double().requires_grad_())
    strided = dataclasses.replace(VECTOR, vector=torch.tensor([1.0, 0, 2, 0, 3, 0])[::2])
    assert len({hooks_digest([("a", each)]) for each in (VECTOR, half, double, strided)}) == 1


@pytest.mark.lane
def test_running_hooks_leaves_their_fingerprint(llama: Any) -> None:
    hooks = replace(some_neurons(llama), 0.5)
    before = hooks_digest(hooks)
    with torch.inference_mode():
        llama.run_with_hooks(torch.tensor([[4, 5, 6]]), fwd_hooks=hooks)
    hooks[0][1].held.append(torch.ones(1))  # as an interruption between the two would leave it
    assert hooks_digest(hooks) == before


SCRIPT = """
some = NeuronSet({MLP_POST: torch.eye(3, 5).bool(), ATTN_Q: torch.eye(3, 4).bool()})
found = [hooks_digest(replace(some, 0.1)), seeded(3, "a", 1).initial_seed()]
"""


def test_fingerprints_and_seeds_are_the_same_in_any_process() -> None:
    imports = (
        "import torch\n"
        "from lens_lang.intervene import replace\n"
        "from lens_lang.neurons import NeuronSet\n"
        "from lens_lang.parts import hooks_digest, seeded\n"
        "from lens_lang.sites import ATTN_Q, MLP_POST\n"
    )
    here: dict[str, Any] = {}
    exec(imports + SCRIPT, here)
    there = subprocess.run(
        [sys.executable, "-c", f"{imports}{SCRIPT}print(found)"],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        check=True,
    )
    assert there.stdout.decode().strip() == str(here["found"])


@pytest.mark.parametrize(
    "hook",
    [
        ("blocks.0.mlp.hook_post", lambda values, hook: values * 2),
        ("blocks.0.mlp.hook_post", print),
        (lambda name: name.endswith("mlp.hook_post"), EDIT),
    ],
)
def test_hooks_that_nobody_can_tell_are_refused(hook: Any) -> None:
    with pytest.raises(OptionError, match="not made by lens_lang.*leave out run_dir, or the hook"):
        hooks_digest([*ablate(NEURONS), hook])


# --- models ---


def test_weights_tell_models_apart() -> None:
    model = bridge(hf_model("llama"))
    first = model_digest(model)
    assert model_digest(bridge(hf_model("llama"))) == first
    assert model_digest(bridge(hf_model("llama").bfloat16().float())) != first
    model.blocks[2].mlp.W_out.data[50, 7] += 1
    assert model_digest(model) != first


def copied(tokenizer: Any = None) -> Any:
    model = bridge(hf_model("llama"), name="toy")
    model.tokenizer = LetterTokenizer() if tokenizer is None else tokenizer
    return model


SETTINGS: dict[str, Callable[[Any], None]] = {
    "the norm's epsilon": lambda hf: setattr(hf.config, "rms_norm_eps", 0.5),
    "rotary positions": lambda hf: setattr(hf.config, "rope_theta", 7.0),
    "the activation": lambda hf: setattr(hf.config, "hidden_act", "gelu"),
    "what ends a text": lambda hf: setattr(hf.generation_config, "eos_token_id", [2, 9]),
}


@pytest.mark.parametrize("change", SETTINGS.values(), ids=SETTINGS.keys())
def test_settings_tell_models_apart(change: Any) -> None:
    model = copied()
    before = model_digest(model)
    assert model_digest(copied()) == before
    change(model.original_model)
    assert model_digest(model) != before


class Renamed(LetterTokenizer):
    pass


class Longer(LetterTokenizer):
    def __len__(self) -> int:
        return 98


def test_tokenisers_and_their_ends_of_text_tell_models_apart() -> None:
    ends, begins, longer = LetterTokenizer(), LetterTokenizer(), Longer()
    ends.eos_token_id, begins.bos_token_id = 9, 3
    tokenizers: list[Any] = [LetterTokenizer(), Renamed(), ends, begins, longer]
    found = [model_digest(copied(each)) for each in tokenizers]
    found.append(model_digest(bridge(hf_model("llama"), name="toy")))  # without any
    assert len(set(found)) == len(found)
    assert model_digest(copied(LetterTokenizer())) == found[0]


def test_names_paths_and_versions_do_not_tell_models_apart() -> None:
    one, other = bridge(hf_model("llama"), name="here"), bridge(hf_model("llama"), name="there")
    other.original_model.config.name_or_path = "/somewhere/else"
    other.original_model.config.transformers_version = "0.0"
    assert model_digest(one) == model_digest(other)


@pytest.mark.lane
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "hook", [*ablate(NEURONS)[:1], ("blocks.1.hook_resid_post", VECTOR), ("hook_embed", print)]
)
def test_a_model_under_hooks_is_not_its_own(architecture: str, hook: Any) -> None:
    model = bridge(hf_model(architecture))
    before = model_digest(model)
    with (
        model.hooks(fwd_hooks=[hook]),
        pytest.raises(OptionError, match="Hooks are attached to .*leave out run_dir, or give"),
    ):
        model_digest(model)
    assert model_digest(model) == before  # they are gone


# --- randomness ---


def draws(*arguments: Any) -> list[float]:
    return torch.rand(4, generator=seeded(*arguments)).tolist()


def test_what_is_drawn_depends_on_what_it_is_for_and_on_nothing_else() -> None:
    first = draws(3, "a", "fr", 0)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    draws(3, "b", "fr", 0)
    assert draws(3, "a", "fr", 0) == first
    torch.set_rng_state(state)
    before = torch.get_rng_state()
    seeded(3, "a")
    assert torch.equal(torch.get_rng_state(), before)


def test_whatever_differs_draws_differently() -> None:
    asked: list[tuple[Any, ...]] = [
        *((seed, name, lang, draw) for seed in (0, 1, -1, 2**70) for name in ("", "a", "b", "aa")
          for lang in ("en", "fr") for draw in range(3)),
        (0,), (0, "a"), (0, "a", "en"), (0, "a", "0"), (0, "a", 0), (0, "aen"), (0, "a,en"),
        (0, 'a", "en'), (0, "en", "a"), (0, "é"), (0, "e\u0301"), (12, ""), (1, 2), (1, "2"),
    ]  # fmt: skip
    assert len({tuple(draws(*each)) for each in asked}) == len(asked)


def test_draws_of_neighbours_are_independent() -> None:
    drawn = torch.tensor([draws(0, "x", "en", number) for number in range(300)])
    assert abs(float(drawn.mean()) - 0.5) < 0.05
    correlation = torch.corrcoef(torch.stack([drawn[:-1, 0], drawn[1:, 0]]))[0, 1]
    assert abs(float(correlation)) < 0.2
