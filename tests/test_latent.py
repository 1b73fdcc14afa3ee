"""Token sets, prompts, latent probabilities and token energy, as Wendler et al. define them."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import VOCAB, LetterTokenizer, hf_model
from hypothesis import given
from hypothesis import strategies as st
from test_lens import predictions, residuals, some_neurons

from lens_lang import latent as latent_module
from lens_lang import results
from lens_lang.concepts import (
    BLANK,
    Concept,
    Prompt,
    cloze_prompts,
    read_concepts,
    repetition_prompts,
    translation_prompts,
)
from lens_lang.energy import UnembeddingGram, token_energy, unembedding_gram
from lens_lang.errors import (
    ActivationError,
    CorpusError,
    LanguageError,
    OptionError,
)
from lens_lang.intervene import ablate
from lens_lang.latent import (
    LatentLanguages,
    latent_language,
    separable_prompts,
    single_token_concepts,
    start_items,
)
from lens_lang.models import bridge
from lens_lang.readout import final_scale
from lens_lang.sites import RESID_POST
from lens_lang.spelling import spell_pieces

TOY = ["f", "fl", "flow", "flower", "▁f", "▁flower", "花", "<0xE8>"]


# --- Start(w) ---


def test_golden_token_sets() -> None:
    """Golden case Lens 1."""
    starts = start_items(spell_pieces(TOY), ["flower", "花", "fleur"])
    assert starts["flower"] == (0, 1, 2, 3, 4, 5)
    assert starts["花"] == (6, 7)
    assert starts["fleur"] == (0, 1, 4)


@given(st.text(min_size=1, max_size=4), st.lists(st.text(max_size=3), max_size=12))
def test_an_item_starts_a_word_if_the_word_begins_with_it(word: str, items: list[str]) -> None:
    spelled = [item.encode() for item in items]
    found = start_items(spelled, [word])[word]
    expected = {
        number
        for number, item in enumerate(items)
        if item
        and (word.startswith(item) or (" " + word).startswith(item))
        # a bare boundary begins every word and says nothing of this one
        and item != " " * (not word.startswith(" "))
    }
    assert set(found) == expected


def model_of(pieces: list[str]) -> Any:
    class Tokenizer:
        all_special_ids = ()

        def __len__(self) -> int:
            return len(pieces)

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return [pieces[item] for item in ids]

    return SimpleNamespace(tokenizer=Tokenizer(), cfg=SimpleNamespace(d_vocab=len(pieces)))


def test_prompts_whose_answers_begin_alike_are_left_out() -> None:
    prompts = [
        Prompt("a", {"zh": "花", "en": "flower"}),
        Prompt("b", {"fr": "fleur", "en": "flower"}),  # share f, fl
        Prompt("c", {"ru": "цвет", "en": "flower"}),  # no item begins цвет
        Prompt("d", {"id": "aflower", "en": "flower"}),  # contains the English word
    ]
    kept, sets = separable_prompts(model_of([*TOY, "▁a"]), prompts)
    assert kept == prompts[:1]
    assert sets == [{"zh": (6, 7), "en": (0, 1, 2, 3, 4, 5)}]
    with pytest.raises(OptionError, match="None of 1 prompts"):
        separable_prompts(model_of(TOY), prompts[1:2])


def test_single_token_words_are_found_with_or_without_a_space() -> None:
    concepts = [
        Concept("flower", {"en": "flower", "zh": "花"}, {}),
        Concept("f", {"en": "flows", "zh": "花花"}, {}),
    ]
    for lang in ("en", "zh"):
        assert single_token_concepts(model_of(TOY), concepts, lang) == concepts[:1]
    assert single_token_concepts(model_of(TOY), concepts, "fr") == []


# --- prompts ---


CONCEPTS = [
    Concept(
        name,
        {"en": name, "fr": f"{name}e", "zh": chr(0x82B1 + n)},
        {"fr": f"Un {BLANK} est la chose numéro {n}.", "zh": f"{BLANK}是{n}。"},
    )
    for n, name in enumerate(["one", "two", "six", "ten", "sun"])
]


def test_translation_prompts_are_solved_lines_and_an_open_one() -> None:
    prompts = translation_prompts(CONCEPTS, "fr", "zh", demonstrations=2, seed=7)
    assert len(prompts) == len(CONCEPTS)
    for concept, prompt in zip(CONCEPTS, prompts, strict=True):
        *shown, question = prompt.text.split("\n")
        assert question == f'Français: "{concept.words["fr"]}" - 中文: "'
        assert prompt.answers == {"zh": concept.words["zh"], "en": concept.words["en"]}
        assert list(prompt.answers) == ["zh", "en"]
        solved = {
            f'Français: "{c.words["fr"]}" - 中文: "{c.words["zh"]}"'
            for c in CONCEPTS
            if c is not concept
        }
        assert len(set(shown)) == 2 <= len(solved)
        assert set(shown) <= solved
    assert prompts == translation_prompts(CONCEPTS, "fr", "zh", demonstrations=2, seed=7)
    assert prompts != translation_prompts(CONCEPTS, "fr", "zh", demonstrations=2, seed=8)


def test_languages_go_by_any_name_and_pivots_must_exist() -> None:
    named = translation_prompts(CONCEPTS, "French", "Chinese", pivot="English", demonstrations=1)
    assert named == translation_prompts(CONCEPTS, "fr", "zh", demonstrations=1)
    assert cloze_prompts(CONCEPTS, "French") == cloze_prompts(CONCEPTS, "fr")
    with pytest.raises(LanguageError, match="pivot language 'de'"):
        translation_prompts(CONCEPTS, "fr", "zh", pivot="de")
    with pytest.raises(LanguageError, match="No language is called"):
        translation_prompts(CONCEPTS, "Frensh", "zh")


def test_repetition_is_translation_into_the_same_language() -> None:
    (prompt, *_) = repetition_prompts(CONCEPTS, "zh", demonstrations=1)
    first, question = prompt.text.split("\n")
    assert question == '中文: "花" - 中文: "'
    assert first.count(first.split('"')[1]) == 2
    (english, *_) = repetition_prompts(CONCEPTS, "en", demonstrations=0)
    assert english.answers == {"en": "one"}


def test_cloze_prompts_answer_in_the_language_of_the_sentence() -> None:
    prompt = cloze_prompts(CONCEPTS, "fr", demonstrations=1)[0]
    shown, question = prompt.text.split("\n")
    assert question == 'Un "___" est la chose numéro 0. Réponse: "'
    assert shown.endswith('e".')
    assert prompt.answers == {"fr": "onee", "en": "one"}
    assert cloze_prompts(CONCEPTS, "zh", demonstrations=0)[1].text == '"___"是1。 答案: "'


def test_wrong_prompts_are_refused() -> None:
    with pytest.raises(OptionError, match="between 0 and the 4 other concepts, got 5"):
        translation_prompts(CONCEPTS, "fr", "zh", demonstrations=5)
    with pytest.raises(LanguageError, match="has nothing in 'de'"):
        translation_prompts(CONCEPTS, "de", "zh")
    with pytest.raises(LanguageError, match="has nothing in 'en'"):
        cloze_prompts(CONCEPTS, "en")


def test_concepts_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "words.jsonl"
    row = {"concept": "sun", "words": {"en": "sun"}, "cloze": {"en": f"The {BLANK} shines."}}
    # a line separator inside a string is no new line
    path.write_text(json.dumps(row) + "\n\n", encoding="utf-8")
    assert read_concepts(path) == [Concept("sun", row["words"], row["cloze"])]
    for content, sentence in (
        ("", "holds no concept"),
        ("{}", "Line 1 of .* is no concept"),
        ("[]", "Line 1 of .* is no concept"),
        (json.dumps({**row, "cloze": {"en": "no gap"}}), "'en' must have \"___\" once"),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(CorpusError, match=sentence):
            read_concepts(path)
    with pytest.raises(CorpusError, match="Could not read"):
        read_concepts(tmp_path / "none.jsonl")


# --- the words that come with lens_lang ---


def test_the_word_list_is_whole() -> None:
    concepts = read_concepts()
    languages = ["en", "de", "es", "fr", "id", "ja", "ru", "vi", "zh"]
    assert len(concepts) >= 80
    assert len({concept.name for concept in concepts}) == len(concepts)
    for concept in concepts:
        assert [*concept.words] == languages == [*concept.cloze]
        for lang, sentence in concept.cloze.items():
            word = concept.words[lang]
            assert word == word.strip()
            assert word.casefold() not in sentence.casefold().split(), (word, sentence)
            assert ":" not in sentence
            assert "：" not in sentence
    for lang in languages:
        words = [concept.words[lang] for concept in concepts]
        assert len(set(words)) == len(words), lang


# --- energy ---


def test_energy_of_the_token_directions_is_one_in_the_mean_square() -> None:
    """Golden case Lens 3; and from the Gram matrix it is what it is from all directions."""
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * 3
    rows[:, 7] = 0.0
    gram = UnembeddingGram.of_rows(rows)
    energy = token_energy(gram, rows)
    assert float(energy.square().mean()) == pytest.approx(1.0, abs=1e-5)
    assert float(token_energy(gram, torch.eye(8))[7]) == 0.0
    unit = torch.nn.functional.normalize(rows, dim=1)
    vector = torch.randn(8, generator=torch.Generator().manual_seed(1))
    cosines = unit @ (vector / vector.norm())
    scale = (unit.T @ unit).square().sum().sqrt() / 50
    expected = cosines.square().mean().sqrt() / scale
    assert float(token_energy(gram, vector)) == pytest.approx(float(expected), rel=1e-5)
    assert float(token_energy(gram, -5 * vector)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.lane
def test_token_directions_are_what_moves_the_logits(any_model: Any) -> None:
    """The rows behind the Gram matrix are the gradient of each logit through a frozen norm."""
    gram = unembedding_gram(any_model)
    d_model = any_model.W_U.shape[0]
    unit = torch.randn(d_model, generator=torch.Generator().manual_seed(0))
    unit = unit - unit.mean()
    unit = unit / unit.square().mean().sqrt()  # what the norm leaves as it is, up to its epsilon
    scale = 1e-3

    def linear(vector: torch.Tensor) -> torch.Tensor:
        """Logits before any cap, of a vector that the norm does not change in length."""
        with torch.inference_mode():
            return any_model.unembed(any_model.ln_final(vector[None, None]))[0, 0]

    weight = any_model.W_U.T.float()
    norm_scale, centred = final_scale(any_model, d_model, any_model.W_U)
    rows = weight * norm_scale
    rows = rows - rows.mean(1, keepdim=True) if centred else rows
    moved = (linear(unit) - linear(-unit)) / 2
    assert torch.allclose(rows @ unit, moved, atol=scale, rtol=1e-3)
    assert torch.allclose(UnembeddingGram.of_rows(rows).gram, gram.gram, atol=1e-4)


# --- latent language ---


def a_speller(architecture: str = "llama") -> Any:
    model = bridge(hf_model(architecture))
    model.tokenizer = LetterTokenizer()
    return model


PROMPTS = ['a "b" - c: "', "xy", 'longer "d" - c: "']
SETS = [{"fr": (5, 6), "en": (7,)}, {"fr": (8,), "en": (9, 10, 11)}, {"fr": (5,), "en": (6,)}]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_probabilities_and_entropy_are_those_of_every_layer(
    architecture: str, batch_size: int
) -> None:
    model = a_speller(architecture)
    hooks = ablate(some_neurons(model))
    gram = unembedding_gram(model)
    found = latent_language(model, PROMPTS, SETS, fwd_hooks=hooks, batch_size=batch_size)
    assert found.languages == ("fr", "en")
    for number, (text, sets) in enumerate(zip(PROMPTS, SETS, strict=True)):
        resid = residuals(model, [1, *LetterTokenizer()([text])["input_ids"][0]], hooks)
        chances = predictions(model, resid)[:, -1]
        for column, items in enumerate(sets.values()):
            expected = chances[:, list(items)].sum(-1)
            assert (found.probability[number, :, column] - expected).abs().max() < 1e-6
        bits = -(chances * chances.log2()).sum(-1)
        assert (found.entropy[number] - bits).abs().max() < 1e-4
        energy = token_energy(gram, resid[:, -1])
        assert (found.energy[number] - energy).abs().max() < 1e-5


def test_uniform_and_certain_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden case Lens 2: log2 V bits and |Start| / V; 0 bits, and no NaN, for certainty."""
    model = a_speller()

    def uniform(model: Any, resid: torch.Tensor, *, norm: bool) -> torch.Tensor:
        return torch.zeros(len(resid), VOCAB)

    def certain(model: Any, resid: torch.Tensor, *, norm: bool) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.full((len(resid),), 5), VOCAB).float().log()

    monkeypatch.setattr(latent_module, "read_logits", uniform)
    found = latent_language(model, PROMPTS, SETS)
    assert torch.allclose(found.entropy, torch.full_like(found.entropy, math.log2(VOCAB)))
    assert float(found.probability[1, 2, 1]) == pytest.approx(3 / VOCAB)
    monkeypatch.setattr(latent_module, "read_logits", certain)
    found = latent_language(model, PROMPTS, SETS)
    assert float(found.entropy.abs().max()) == 0.0
    assert found.probability[:, 0].tolist() == [[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]


def test_means_have_intervals_and_reach_a_file(tmp_path: Path) -> None:
    found = latent_language(a_speller(), [Prompt(text, {}) for text in PROMPTS], SETS)
    for mean, ci in (
        (found.mean, found.ci),
        (found.entropy.mean(0), found.entropy_ci),
        (found.energy.mean(0), found.energy_ci),
    ):
        assert bool((ci[..., 0] <= mean).all() and (mean <= ci[..., 1]).all())
    found.save(tmp_path / "latent.safetensors")
    again = results.load(tmp_path / "latent.safetensors")
    assert isinstance(again, LatentLanguages)
    for name in ("probability", "entropy", "energy"):
        assert torch.equal(getattr(again, name), getattr(found, name))
    assert again.languages == found.languages


def test_one_prompt_has_no_interval() -> None:
    found = latent_language(a_speller(), PROMPTS[:1], SETS[:1])
    assert bool(found.ci.isnan().all())


def test_wrong_sets_are_refused() -> None:
    model = a_speller()
    for prompts, sets, sentence in (
        ([], [], "got 0 prompts"),
        (["a"], SETS, "got 1 prompts and 3 sets"),
        (["a", "b"], [SETS[0], {"en": (7,), "fr": (5,)}], "number 1 has en, fr"),
        (["a"], [{"fr": ()}], "Prompt 0 has no item for 'fr'"),
        (["a"], [{"fr": (VOCAB,)}], "prompt 0 for 'fr' must be different numbers below 97"),
        (["a"], [{"fr": (-1,)}], "must be different numbers"),
        (["a"], [{"fr": (5, 5)}], "must be different numbers"),
        (["a"], [{}], "the first has none"),
    ):
        with pytest.raises(OptionError, match=sentence):
            latent_language(model, prompts, sets)
    nan = [(RESID_POST.at(1), lambda values, hook: values * float("nan"))]
    with pytest.raises(ActivationError, match="NaN"):
        latent_language(model, PROMPTS, SETS, fwd_hooks=nan)


# the first prompt's: layers by languages, then layers
GOLDEN = {
    "probability": [
        *(0.02145912, 0.01059225, 0.02159924, 0.0120194),
        *(0.021699, 0.0116043, 0.02181764, 0.01136885),
    ],
    "entropy": [6.58586836, 6.58285332, 6.58301163, 6.58338022],
    "energy": [0.65307486, 0.71046472, 0.6971879, 0.6836853],
}


@pytest.mark.lane
def test_both_lanes_read_the_same_numbers() -> None:
    """Measured on TransformerLens 4.3.0; the random weights are the same on every lane."""
    found = latent_language(a_speller(), PROMPTS, SETS)
    for name, values in GOLDEN.items():
        assert getattr(found, name)[0].flatten().tolist() == pytest.approx(values, rel=1e-4), name


@pytest.mark.real
def test_gemma_translates_through_english(gemma: Any) -> None:
    """French to Chinese: the English word is likelier than the Chinese one on the way."""
    prompts = translation_prompts(read_concepts(), "fr", "zh")
    kept, sets = separable_prompts(gemma, prompts)
    assert len(kept) > 40
    found = latent_language(gemma, kept[:24], sets[:24])
    assert found.languages == ("zh", "en")
    way = found.mean[10:15]
    assert float((way[:, 1] - way[:, 0]).max()) > 0
    assert found.mean[-1, 0] > found.mean[-1, 1]
    assert found.entropy.mean(0)[-1] < found.entropy.mean(0)[12]
    assert way[3, 1] > 0.01  # the English word is really there, not only likelier
