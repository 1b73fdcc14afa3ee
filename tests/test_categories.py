"""Switching off an example's own neurons: against one example, one kind and one text at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import VOCAB, LetterTokenizer, hf_model, random_documents, tiny
from torch import Tensor

from lens_lang import results
from lens_lang.collection import collect_parallel
from lens_lang.detect.sharing import sharing
from lens_lang.errors import CorpusError, OptionError, ShapeError, StorageError
from lens_lang.evaluate.categories import CategoryEffect, sharing_and_accuracy
from lens_lang.evaluate.per_example import PerExample, category_effect
from lens_lang.intervene import ablate
from lens_lang.models import bridge
from lens_lang.neurons import NeuronSet
from lens_lang.parallel import ParallelCorpora
from lens_lang.patterns import CATEGORIES, SharingPattern
from lens_lang.questions import Question
from lens_lang.rows import RowAblation, ablate_rows
from lens_lang.sites import MLP_POST

LANGUAGES = ("en", "fr", "de")


def examples() -> ParallelCorpora:
    lengths = {"en": [5, 9, 2], "fr": [8, 3, 10], "de": [4, 4, 11]}
    docs = {
        lang: random_documents(each, seed=place)
        for place, (lang, each) in enumerate(lengths.items())
    }
    answers = [[5 + n, 20 + n, 40 + n] for n in range(3)]
    return ParallelCorpora.from_tokens(docs, bos_id=1, answers=answers)


@pytest.fixture(scope="module")
def effect() -> CategoryEffect:
    return category_effect(tiny("llama"), examples(), controls=2, progress=False)


def log_probability(model: Any, texts: ParallelCorpora, hooks: Any, place: int) -> Tensor:
    lang = texts.languages[place]
    assert texts.answers is not None
    found = []
    for n in range(len(texts)):
        tokens = torch.cat([torch.tensor([1]), texts.documents[lang][n].long()])[None]
        with torch.no_grad():
            logits = model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]
        found.append(logits.log_softmax(-1)[texts.answers[n, place]])
    return torch.stack(found)


# --- hooks that differ by row ---


def test_each_row_loses_its_own_neurons() -> None:
    acts = torch.randn(3, 4, 5)
    off = torch.rand(3, 2, 5) > 0.5
    hooks = dict(ablate_rows(off))
    for layer in range(2):
        given = acts.clone()
        changed = hooks[MLP_POST.at(layer)](given)
        assert torch.equal(given, acts)  # out of place
        assert torch.equal(changed, acts * ~off[:, layer][:, None])


def test_at_one_token_the_others_keep_theirs() -> None:
    acts = torch.ones(2, 3, 2)
    hooks = ablate_rows(torch.ones(2, 1, 2, dtype=torch.bool), at=torch.tensor([2, 0]))
    assert hooks[0][1](acts)[..., 0].tolist() == [[1, 1, 0], [0, 1, 1]]


def test_nothing_to_switch_off_gives_no_hooks() -> None:
    assert ablate_rows(torch.zeros(2, 3, 4, dtype=torch.bool)) == []


def test_masks_of_another_batch_or_model_are_refused() -> None:
    hook = RowAblation(MLP_POST, 1, torch.ones(2, 5, dtype=torch.bool))
    for wrong in (torch.ones(3, 1, 5), torch.ones(2, 1, 4)):
        with pytest.raises(ShapeError, match="layer 1 got"):
            hook(wrong)


def test_infinity_switched_off_is_zero() -> None:
    hooks = ablate_rows(torch.ones(1, 1, 2, dtype=torch.bool))
    assert not hooks[0][1](torch.full((1, 1, 2), torch.inf)).any()


# --- the effect ---


@pytest.mark.lane
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("positions", ["all", "last"])
def test_the_effect_is_one_example_at_a_time(architecture: str, positions: Any) -> None:
    model, texts = tiny(architecture), examples()
    found = category_effect(
        model, texts, PerExample(positions=positions), controls=0, batch_size=2, progress=False
    )
    for place in range(3):
        plain = log_probability(model, texts, [], place)
        assert torch.allclose(found.before[:, place], plain.double(), atol=1e-4)
    for n, one in enumerate(texts):
        kinds = sharing(collect_parallel(model, one, SharingPattern()))
        assert torch.equal(found.members[n], kinds.members[0])
        for kind, name in enumerate(CATEGORIES):
            hooks = ablate(kinds[name])
            if positions == "last":
                hooks = [(point, only_last(edit)) for point, edit in hooks]
            for place in range(3):
                expected = log_probability(model, one, hooks, place)
                assert float(found.off[kind, n, place]) == pytest.approx(float(expected), abs=1e-4)


def only_last(edit: Any) -> Any:
    def hook_fn(values: Tensor, hook: Any = None) -> Tensor:
        return torch.cat([values[:, :-1], edit(values)[:, -1:]], dim=1)

    return hook_fn


def test_controls_are_as_many_of_every_layer_and_reproducible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lens_lang.evaluate import per_example as module

    seen: list[tuple[Tensor, Tensor]] = []
    original = module._random_masks

    def watched(kinds: Tensor, draws: int, **options: Any) -> Tensor:
        masks = original(kinds, draws, **options)
        seen.extend(zip(kinds, masks, strict=True))
        return masks

    monkeypatch.setattr(module, "_random_masks", watched)
    model = tiny("llama")
    one = category_effect(model, examples(), controls=2, batch_size=1, progress=False)
    assert len(seen) == 3 * len(CATEGORIES)
    for off, masks in seen:
        assert torch.equal(masks.sum(-1), off.sum(-1).expand(2, -1))
        assert not torch.equal(masks[0], masks[1])
    for batch_size in (2, 3):
        other = category_effect(model, examples(), controls=2, batch_size=batch_size)
        assert torch.allclose(other.control, one.control, atol=1e-4)
    another = category_effect(model, examples(), controls=2, seed=1, progress=False)
    assert not torch.allclose(another.control, one.control)


def test_random_neurons_of_one_layer_are_drawn_evenly() -> None:
    from lens_lang.evaluate.per_example import _random_masks

    off = torch.zeros(1, 8, dtype=torch.bool)
    off[0, :2] = True
    masks = _random_masks(off[None], 4000, seed="0")[0]
    assert masks.double().mean((0, 1)).tolist() == pytest.approx([0.25] * 8, abs=0.03)


def test_a_planted_neuron_carries_the_answer() -> None:
    """The neuron that writes the answer fires in all languages: without its kind it is lost."""
    model = bridge(hf_model("llama"))
    with torch.no_grad():
        weight = model.blocks[2].mlp.out.original_component.weight
        gate = model.blocks[2].mlp.gate.original_component.weight
        weight[:, 0] = 4000 * model.W_U[:, 50] / model.W_U[:, 50].norm()
        gate[0] = 0.0
    texts = examples()
    answers = [[50] * 3] * 3
    texts = ParallelCorpora.from_tokens(
        {lang: [doc.tolist() for doc in docs] for lang, docs in texts.documents.items()},
        bos_id=1,
        answers=answers,
    )

    def fires(values: Tensor, hook: Any) -> Tensor:
        changed = values.clone()
        changed[..., 0] = 5.0
        return changed

    hooks = [("blocks.2.mlp.hook_pre", fires), ("blocks.2.mlp.hook_post", fires)]
    found = category_effect(model, texts, controls=2, fwd_hooks=hooks, progress=False)
    assert bool(found.before_correct.all())
    assert not found.off_correct[CATEGORIES.index("all_shared")].any()
    for name in ("partial_shared", "specific", "non_activated"):
        assert bool(found.off_correct[CATEGORIES.index(name)].all())
    table = found.summary().query("language == 'all'").set_index("category")
    assert table.loc["all_shared", "delta_high"] < -0.5
    assert table.loc["all_shared", "beyond"] < -0.3


# --- answers ---


def letters(*questions: Question) -> tuple[Any, ParallelCorpora]:
    model = bridge(hf_model("llama"))
    model.tokenizer = LetterTokenizer()
    return model, ParallelCorpora.from_questions(questions, model)


def test_an_open_answer_counts_by_all_items_that_begin_it() -> None:
    ask = Question("q", {"en": "ab", "fr": "cd"}, {"en": "x", "fr": "y"})
    model, texts = letters(ask)
    found = category_effect(model, texts, controls=0, progress=False)
    for place, (prompt, answer) in enumerate((("ab", "x"), ("cd", "y"))):
        ids = LetterTokenizer()([prompt, answer])["input_ids"]
        with torch.no_grad():
            chances = model(torch.tensor([[1, *ids[0]]]))[0, -1].log_softmax(-1)
        expected = float(chances[ids[1][0]])
        assert float(found.before[0, place]) == pytest.approx(expected, abs=1e-5)
        assert bool(found.before_correct[0, place]) == (int(chances.argmax()) == ids[1][0])


def test_of_options_the_likeliest_is_the_models_answer() -> None:
    """An item that could begin two options says nothing of either."""
    options = {"en": ("xa", "xb", "c"), "fr": ("xa", "xb", "c")}
    model, texts = letters(
        Question("q", {"en": "ab", "fr": "cd"}, {"en": "c", "fr": "c"}, {"en": ("c", "d")}),
    )
    found = category_effect(model, texts, controls=0, progress=False)
    ids = LetterTokenizer()(["ab", "cd", "xyz"])["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([[1, *ids[0]]]))[0, -1]
    c, d = (3 + ord(letter) % (VOCAB - 3) for letter in "cd")
    assert bool(found.before_correct[0, 0]) == bool(logits[c] >= logits[d])
    with pytest.raises(CorpusError, match=r"begins 'xa' alone .*'q' in 'en'"):
        category_effect(
            *letters(Question("q", {"en": "ab", "fr": "cd"}, {"en": "c", "fr": "c"}, options))
        )


def test_a_tie_between_options_is_no_answer() -> None:
    model = bridge(hf_model("llama"))
    model.tokenizer = LetterTokenizer()
    with torch.no_grad():
        c, d = (3 + ord(letter) % (VOCAB - 3) for letter in "cd")
        head = model.unembed.original_component.weight
        head[d] = head[c]
    ask = Question(
        "q",
        {"en": "ab", "fr": "cd"},
        {"en": "c", "fr": "d"},
        dict.fromkeys(("en", "fr"), ("c", "d")),
    )
    texts = ParallelCorpora.from_questions([ask], model)
    found = category_effect(model, texts, controls=0, progress=False)
    assert not found.before_correct.any()


def test_shares_of_the_examples_draw_the_same_random_sets() -> None:
    model = tiny("llama")
    whole = category_effect(model, examples(), controls=2, progress=False)
    parts = [
        category_effect(model, examples().select(some), controls=2, progress=False)
        for some in ([0], [1, 2])
    ]
    both = parts[0] + parts[1]
    assert both.names == whole.names
    for name in ("before", "off", "control"):
        assert torch.allclose(getattr(both, name), getattr(whole, name), atol=1e-4)
    assert both.summary().shape == whole.summary().shape
    with pytest.raises(OptionError, match="twice"):
        whole + whole
    with pytest.raises(ShapeError, match="controls"):
        whole + category_effect(model, examples(), controls=1, progress=False)


def test_answers_that_the_vocabulary_lacks_are_refused() -> None:
    docs = {"en": [[5]], "fr": [[6]]}
    texts = ParallelCorpora.from_tokens(docs, answers=[[VOCAB, 5]])
    with pytest.raises(OptionError, match="outside the vocabulary"):
        category_effect(tiny("llama"), texts)


def test_examples_need_answers() -> None:
    texts = ParallelCorpora.from_tokens({"en": [[5]], "fr": [[6]]})
    with pytest.raises(CorpusError, match="no answers"):
        category_effect(tiny("llama"), texts)
    with pytest.raises(OptionError, match="controls"):
        category_effect(tiny("llama"), examples(), controls=-1)


# --- tables ---


def planted(**changes: Any) -> CategoryEffect:
    """Ten examples in two languages; all-shared neurons cost 2 nats, random ones 0.5."""
    before = torch.full((10, 2), -1.0, dtype=torch.float64)
    right = torch.zeros(10, 2, dtype=torch.bool)
    right[:6, 0] = right[:3, 1] = True
    off = before.expand(4, 10, 2).clone()
    off[0] -= 2.0
    control = before.expand(4, 2, 10, 2).clone()
    control[0, 0] -= 0.4
    control[0, 1] -= 0.6
    members = torch.full((10, 3, 4), 25)
    members[:6, :, 0], members[:6, :, 3] = 40, 10
    given = {
        "languages": ("en", "fr"),
        "names": tuple("abcdefghij"),
        "before": before,
        "before_correct": right,
        "off": off,
        "off_correct": right.expand(4, 10, 2) & (torch.arange(4) > 0)[:, None, None],
        "control": control,
        "control_correct": right.expand(4, 2, 10, 2),
        "members": members,
        "n_neurons": 100,
    }
    return CategoryEffect(**{**given, **changes})


def test_the_summary_sets_the_effect_beside_chance() -> None:
    table = planted().summary()
    assert table["language"].tolist() == ["en"] * 4 + ["fr"] * 4 + ["all"] * 4
    row = table.iloc[0]
    assert (row["delta"], row["control"], row["beyond"]) == pytest.approx((-2.0, -0.5, -1.5))
    assert (row["accuracy_before"], row["accuracy"]) == pytest.approx((0.6, 0.0))
    assert row["delta_accuracy"] == pytest.approx(-0.6)
    assert row["control_delta_accuracy"] == 0.0
    assert row["beyond_accuracy"] == pytest.approx(-0.6)
    assert row["delta_low"] == row["delta_high"] == pytest.approx(-2.0)
    assert row["control_low"] < -0.6 and row["control_high"] > -0.4  # where one more would lie
    assert row["neurons"] == pytest.approx(0.34)
    every = table.query("language == 'all'").iloc[0]
    assert every["accuracy_before"] == pytest.approx(0.45)
    assert planted().summary("French")["language"].unique().tolist() == ["fr"]


def test_without_controls_nothing_is_said_of_chance() -> None:
    empty = torch.zeros(4, 0, 10, 2)
    table = planted(control=empty.double(), control_correct=empty.bool()).summary()
    assert "control" not in table and "beyond" not in table


def test_right_and_wrong_answers_are_compared() -> None:
    table = planted().by_correctness()
    row = table.iloc[0]
    assert (row["n_right"], row["n_wrong"]) == (6, 4)
    assert (row["right"], row["wrong"]) == pytest.approx((0.40, 0.25))
    assert row["difference"] == row["ci_low"] == row["ci_high"] == pytest.approx(0.15)
    fr = table.query("language == 'fr'").iloc[0]
    assert fr["ci_low"] < fr["difference"] < fr["ci_high"]
    never = planted(before_correct=torch.zeros(10, 2, dtype=torch.bool)).by_correctness()
    assert never["ci_low"].isna().all() and (never["n_right"] == 0).all()


def test_models_are_compared_on_the_same_examples() -> None:
    one, other = planted(), planted(members=torch.full((10, 3, 4), 10))
    table = sharing_and_accuracy({"a": one, "b": other})
    assert table.query("model == 'b'")["all_shared"].tolist() == pytest.approx([0.1, 0.1])
    assert table.query("model == 'a' and language == 'fr'")["accuracy"].item() == 0.3
    with pytest.raises(ShapeError, match="another rule"):
        sharing_and_accuracy({"a": one, "d": planted(provenance={"rule": {"threshold": 0.3}})})
    with pytest.raises(ShapeError, match="'c' was measured on other"):
        sharing_and_accuracy({"a": one, "c": planted(names=tuple("klmnopqrst"))})
    with pytest.raises(OptionError):
        sharing_and_accuracy({})


def test_a_file_holds_everything(effect: CategoryEffect, tmp_path: Path) -> None:
    effect.save(tmp_path / "e.safetensors")
    again = results.load(tmp_path / "e.safetensors")
    assert isinstance(again, CategoryEffect)
    assert again.summary().equals(effect.summary())
    assert again.provenance["rule"] == {"threshold": 0.0, "space": "gate", "positions": "all"}
    assert "all_shared" in repr(again)
    (tmp_path / "e.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(StorageError):
        CategoryEffect.load(tmp_path / "e.safetensors")
    with pytest.raises(ShapeError, match="before must be"):
        planted(names=("a",))


def test_other_hooks_are_there_all_along() -> None:
    some = NeuronSet({MLP_POST: torch.arange(112).expand(3, 112) < 40})
    model = tiny("llama")
    found = category_effect(model, examples(), controls=0, fwd_hooks=ablate(some), progress=False)
    for place in range(3):
        expected = log_probability(model, examples(), ablate(some), place)
        assert torch.allclose(found.before[:, place], expected.double(), atol=1e-4)
    assert found.provenance["fwd_hooks"] == [f"blocks.{n}.mlp.hook_post" for n in range(3)]
