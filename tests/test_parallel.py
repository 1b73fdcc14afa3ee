"""Examples in several languages: rows lie together, answers follow prompts, shares add up."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import LetterTokenizer, random_documents
from hypothesis import given
from hypothesis import strategies as st

from lens_lang.errors import CorpusError, LanguageError, OptionError
from lens_lang.items import read_entailment, read_facts
from lens_lang.parallel import TOGETHER, ParallelCorpora
from lens_lang.questions import Question, answered, demonstrated

ROWS = st.lists(
    st.lists(st.lists(st.integers(3, 90), min_size=1, max_size=7), min_size=3, max_size=3),
    min_size=1,
    max_size=7,
)
"""Examples of three languages each."""


def of(rows: list[list[list[int]]], **options: Any) -> ParallelCorpora:
    by_language = {lang: [row[n] for row in rows] for n, lang in enumerate(("en", "fr", "zh"))}
    return ParallelCorpora.from_tokens(by_language, **options)


def letters(text: str) -> list[int]:
    return LetterTokenizer()([text])["input_ids"][0]


# --- batches ---


@given(ROWS, st.integers(1, 8), st.sampled_from([None, 1]))
def test_rows_come_example_after_example_with_languages_inside(
    rows: list[list[list[int]]], batch_size: int, bos_id: int | None
) -> None:
    examples = of(rows, bos_id=bos_id)
    bos = [] if bos_id is None else [bos_id]
    for side in ("left", "right"):
        found, numbers = [], []
        batches = list(examples.batches(batch_size, padding_side=side))
        assert len(batches) == examples.n_batches(batch_size)
        for batch in batches:
            assert batch.language == TOGETHER
            assert len(batch.tokens) % 3 == 0
            assert len(batch.tokens) <= 3 * batch_size
            numbers += batch.documents.tolist()
            attended = batch.attention_mask
            if attended is None:
                attended = torch.ones_like(batch.mask)
            for row, mask, seen in zip(batch.tokens, batch.mask, attended, strict=True):
                found.append(row[mask].tolist())
                assert row[seen].tolist() == bos + found[-1]
                assert seen[0 if side == "right" else -1]
        assert found == [doc for row in rows for doc in row]
        assert numbers == [n for n in range(len(rows)) for _ in range(3)]


@given(ROWS, st.integers(1, 9))
def test_shares_are_all_examples_once(rows: list[list[list[int]]], count: int) -> None:
    examples = of(rows)
    found = []
    for index in range(count):
        if index >= len(examples):
            with pytest.raises(OptionError, match=f"Share {index} of {count} of {len(examples)}"):
                examples.sharded(index, count)
        else:
            found += examples.sharded(index, count).names
    assert sorted(found) == sorted(examples.names)
    with pytest.raises(OptionError, match="does not exist or is empty"):
        examples.sharded(count, count)


def test_impossible_batches_are_refused() -> None:
    with pytest.raises(OptionError, match="batch_size must be at least 1, got 0"):
        next(of([[[5], [6], [7]]]).batches(0))


# --- choosing examples ---


def some(speller: Any) -> ParallelCorpora:
    questions = [
        Question(f"q{n}", {"en": "ab" * n, "fr": "c" * n}, {"en": "x", "fr": f"{n}"})
        for n in (1, 2, 3)
    ]
    return ParallelCorpora.from_questions(questions, speller)


def test_chosen_examples_keep_all_that_is_theirs(speller: Any) -> None:
    examples = some(speller)
    chosen = examples.select([2, -3])
    assert chosen.names == ("q3", "q1")
    assert [each.name for each in chosen.questions] == ["q3", "q1"]
    assert examples.answers is not None
    assert chosen.answers is not None
    assert chosen.answers.tolist() == examples.answers[[2, 0]].tolist()
    for lang in examples.languages:
        docs = examples.documents[lang]
        assert [doc.tolist() for doc in chosen.documents[lang]] == [
            docs[2].tolist(),
            docs[0].tolist(),
        ]
    assert chosen.bos_id == 1
    assert chosen.select([-1])[-1].digest == examples["q1"].digest == examples[0].digest
    assert [each.names for each in examples] == [("q1",), ("q2",), ("q3",)]
    assert examples.select(range(3)).digest == examples.digest


def test_examples_that_are_not_there_are_refused(speller: Any) -> None:
    examples = some(speller)
    with pytest.raises(CorpusError, match="There is no example 'q4'; known here: q1, q2, q3"):
        examples["q4"]
    for wrong in (3, -4):
        with pytest.raises(IndexError):
            examples[wrong]
        with pytest.raises(IndexError):
            examples.select([wrong])
    with pytest.raises(CorpusError, match="There is no example"):
        examples.select([])
    with pytest.raises(CorpusError, match="Two examples are called 'q2'"):
        examples.select([1, 1])


def test_language_by_language_it_is_the_same_text() -> None:
    rows = [[[5, 6], [7], [8, 9]], [[4], [3, 3, 3], [6]]]
    corpora = of(rows, bos_id=1).by_language
    assert corpora.n_tokens == {"en": 3, "fr": 4, "zh": 3}
    first = next(corpora.batches(2))
    assert first.language == "en"
    assert first.tokens.tolist() == [[1, 5, 6], [1, 4, 0]]


# --- the fingerprint ---

PLAIN = [[[5, 6], [7]], [[8], [9, 4]]]


def two(rows: Any = PLAIN, langs: Any = ("en", "fr"), **options: Any) -> ParallelCorpora:
    named = {lang: [row[n] for row in rows] for n, lang in enumerate(langs)}
    return ParallelCorpora.from_tokens(named, **options)


CHANGED: list[Callable[[], ParallelCorpora]] = [
    two,
    lambda: two(bos_id=1),
    lambda: two(names=["a", "b"]),
    lambda: two(langs=("fr", "en")),
    lambda: two(answers=[[1, 2], [3, 4]]),
    lambda: two(answers=[[1, 2], [4, 3]]),
    lambda: two([[[5, 6], [7]], [[8], [9, 3]]]),
    lambda: two([[[5], [7]], [[6, 8], [9, 4]]]),
    lambda: two(PLAIN[::-1]),
    lambda: two(PLAIN[:1]),
    # the same bytes: answers, or tokens
    lambda: two([[[5], [9]]], answers=[[3, 5]]),
    lambda: two([[[5], [9, 1, 0, 3, 0]]]),
]


def test_any_change_shows_in_the_digest() -> None:
    assert two().digest == two().digest
    assert len({make().digest for make in CHANGED}) == len(CHANGED)
    assert two().describe() == {
        "languages": ["en", "fr"], "examples": 2, "n_tokens": {"en": 3, "fr": 3},
        "bos_id": None, "digest": two().digest,
    }  # fmt: skip


def test_statistics_are_told_languages_names_and_answers() -> None:
    about = two(answers=[[1, 2], [3, 4]]).about()
    assert about.languages == ("en", "fr")
    assert about.names == ("0", "1")
    assert about.answers == ((1, 2), (3, 4))
    assert two().about().answers == ()
    assert (
        repr(two(answers=[[1, 2], [3, 4]])) == "ParallelCorpora(2 examples with answers in en, fr)"
    )
    assert repr(two()) == "ParallelCorpora(2 examples in en, fr)"


# --- what cannot be aligned ---


@pytest.mark.parametrize(
    ("documents", "options", "error", "message"),
    [
        ({"en": [[5]], "fr": [[6], [7]]}, {}, CorpusError, "'fr' has 2 texts .* 1 examples"),
        ({"en": [[5]]}, {}, LanguageError, "at least 2, got en"),
        ({}, {}, LanguageError, "No language was given"),
        ({"en": [], "fr": []}, {}, CorpusError, "'en' is empty"),
        ({"en": [[5], []], "fr": [[6], [7]]}, {}, CorpusError, "Example '1' is empty in 'en'"),
        ({"en": [[-5]], "fr": [[6]]}, {}, CorpusError, "negative token id"),
        ({"en": [[2**40]], "fr": [[6]]}, {}, CorpusError, "token id above"),
        ({"en": [[5]], "fr": [[6]]}, {"names": ["a", "b"]}, CorpusError, "1 texts .* 2 examples"),
        ({"en": [[5]], "fr": [[6]]}, {"answers": [[1]]}, CorpusError, r"1 x 2, got \[1, 1\]"),
        ({"en": [[5]], "fr": [[6]]}, {"answers": [[1, 2], [3]]}, CorpusError, "one token per"),
        ({"en": [[5]] * 2, "fr": [[6]] * 2}, {"names": ["a", "a"]}, CorpusError, "called 'a'"),
    ],
)  # fmt: skip
def test_tokens_that_are_not_aligned_are_refused(
    documents: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ParallelCorpora.from_tokens(documents, **options)


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        ({"en": ["a", "b"], "fr": ["c"]}, {}, CorpusError, "got en 2, fr 1"),
        ({"en": ["a"], "fr": [""]}, {}, CorpusError, "Example '0' is empty in 'fr'|'fr' is empty"),
        ({"en": ["a", "b"], "fr": ["c", ""]}, {}, CorpusError, "Example '1' is empty in 'fr'"),
        ({"en": ["a"], "fr": ["\ud800"]}, {}, CorpusError, "'fr' has half a surrogate"),
        ({"en": ["a"], "fr": "c"}, {}, CorpusError, "are one string: give a list"),
        ({"en": ["a"]}, {}, LanguageError, "at least 2, got en"),
        ({"en": ["a"], "English": ["b"]}, {}, LanguageError, "given twice: en"),
        ({"en": ["a"], "nowhere": ["b"]}, {}, LanguageError, "No language is called 'nowhere'"),
        ({"en": [], "fr": []}, {}, CorpusError, "There is no sentence"),
        ({}, {}, LanguageError, "No language was given"),
        ({"en": ["a"], "fr": ["b"]}, {"names": []}, CorpusError, "1 sentences need as many names"),
    ],
)  # fmt: skip
def test_texts_that_are_not_parallel_are_refused(
    texts: Any, options: Any, error: type[Exception], message: str, speller: Any
) -> None:
    with pytest.raises(error, match=message):
        ParallelCorpora.from_texts(texts, speller, **options)


def test_texts_become_tokens_under_any_name_of_a_language(speller: Any) -> None:
    texts = {"French": iter(["ab", "c"]), "zho_Hans": ("d", "ef")}
    examples = ParallelCorpora.from_texts(texts, speller, names=["x", "y"])
    assert examples.languages == ("fr", "zh")
    assert examples.names == ("x", "y")
    assert [doc.tolist() for doc in examples.documents["fr"]] == [letters("ab"), letters("c")]
    assert [each.prompts["zh"] for each in examples.questions] == ["d", "ef"]
    assert examples.answers is None
    assert examples.bos_id == 1
    assert ParallelCorpora.from_texts({"en": ["a"], "fr": ["b"]}, speller, bos=False).bos_id is None


def test_the_sample_is_aligned_in_the_languages_asked_for(speller: Any) -> None:
    examples = ParallelCorpora.sample(speller, languages=["Japanese", "en"])
    assert examples.languages == ("ja", "en")
    assert len(examples) == 120
    for wrong in (["en", "English"], ["en", "tlh"]):
        with pytest.raises(LanguageError):
            ParallelCorpora.sample(speller, languages=wrong)


# --- questions ---


def test_languages_are_those_of_every_question_or_those_named(speller: Any) -> None:
    wide = Question("w", {"en": "a", "fr": "b", "zh": "c"})
    narrow = Question("n", {"zh": "d", "en": "e", "de": "f"})
    make = ParallelCorpora.from_questions
    assert make([wide, narrow], speller).languages == ("en", "zh")
    assert make([wide], speller, languages=["French", "eng_Latn"]).languages == ("fr", "en")
    with pytest.raises(LanguageError, match="Question 'n' is not given in fr"):
        make([wide, narrow], speller, languages=["fr", "en"])
    with pytest.raises(LanguageError, match="given twice: fr"):
        make([wide], speller, languages=["fr", "French"])
    with pytest.raises(LanguageError, match="at least 2, got fr"):
        make([wide], speller, languages=["fr"])
    with pytest.raises(LanguageError, match="No language was given"):
        make([wide, Question("x", {"de": "a", "ru": "b"}, {"de": "c", "ru": "d"})], speller)
    with pytest.raises(CorpusError, match="There is no question"):
        make([], speller)
    with pytest.raises(CorpusError, match="Two examples are called 'w'"):
        make([wide, wide], speller)


BOTH = {"en": "x", "fr": "y"}


@pytest.mark.parametrize(
    "answers", [{}, {"en": "x"}, {"en": "x", "fr": ""}, {"en": "x", "fr": " "}]
)
def test_all_questions_are_answered_in_all_languages_or_none(answers: Any, speller: Any) -> None:
    questions = [Question("a", BOTH, BOTH), Question("b", BOTH, answers)]
    with pytest.raises(CorpusError, match="Question 'b' has no answer in .*fr, and others have"):
        ParallelCorpora.from_questions(questions, speller)
    german = [Question("a", BOTH, {"de": "x"})]  # of a language that nobody asks in
    assert ParallelCorpora.from_questions(german, speller).answers is None


class MergingTokenizer(LetterTokenizer):
    """Letters, but a digit joins the letter in front of it, and a space the letter behind."""

    def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [self.merged(text) for text in texts]}

    def merged(self, text: str) -> list[int]:
        pieces: list[str] = []
        for letter in text:
            joins = pieces and (letter.isdecimal() or pieces[-1] == " ")
            pieces[-1:] = [pieces[-1] + letter] if joins else [*pieces[-1:], letter]
        return [sum(map(ord, piece)) + 1000 * len(piece) for piece in pieces]


@given(
    st.text("abc ", min_size=1, max_size=6).filter(str.strip),
    st.text("abc12", min_size=1, max_size=4),
    st.sampled_from(["en", "zh"]),
    st.sampled_from([LetterTokenizer(), MergingTokenizer()]),
)
def test_answers_begin_with_the_token_behind_the_prompt(
    prompt: str, answer: str, lang: str, tokenizer: Any
) -> None:
    """Wang et al. (2024): token len(prompt) of prompt and answer, where no token spans both."""
    model = SimpleNamespace(tokenizer=tokenizer, cfg=SimpleNamespace())
    question = Question("x", {lang: prompt, "fr": "a"}, {lang: answer, "fr": "b"})
    examples = ParallelCorpora.from_questions([question], model, languages=[lang, "fr"])
    whole = answered(question, lang)
    (before,), (after,) = tokenizer([prompt])["input_ids"], tokenizer([whole])["input_ids"]
    if after[: len(before)] == before and len(after) > len(before):
        expected = after[len(before)]
    else:  # the answer's own first token
        expected = tokenizer([whole[len(prompt) :]])["input_ids"][0][0]
    assert examples.answers is not None
    assert examples.answers[0, 0].item() == expected


def test_golden_first_tokens() -> None:
    model = SimpleNamespace(tokenizer=MergingTokenizer(), cfg=SimpleNamespace())
    questions = [
        Question("kept", {"en": "ab", "zh": "ab:"}, {"en": "c", "zh": "d"}),
        Question("merged", {"en": "ab ", "ja": "あ", "zh": "是"}, {"en": "c", "zh": "7"}),
    ]
    examples = ParallelCorpora.from_questions(questions, model, languages=["en", "zh"])
    token = model.tokenizer.merged
    assert examples.answers is not None
    assert examples.answers.tolist() == [
        [token(" c")[0], token(" d")[0]],  # a space belongs behind "ab:", even around Chinese
        [token("c")[0], token("7")[0]],  # " c" and "是7" are one token each
    ]


def test_a_text_that_no_token_spells_is_named() -> None:
    class Deaf(LetterTokenizer):
        def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
            return super().__call__([text.replace("?", "") for text in texts])

    model = SimpleNamespace(tokenizer=Deaf(), cfg=SimpleNamespace())
    silent = Question("b", {"en": "b", "fr": "?"})
    with pytest.raises(CorpusError, match="Example 'b' is empty in 'fr'"):
        ParallelCorpora.from_questions([Question("a", BOTH), silent], model)
    silent = Question("b", {"en": "b", "zh": "b是"}, {"en": "a", "zh": "?"})
    loud = Question("a", {"en": "a", "zh": "b是"}, {"en": "a", "zh": "c"})
    with pytest.raises(CorpusError, match="answer of 'b' in 'zh' has no token"):
        ParallelCorpora.from_questions([loud, silent], model)


def test_examples_are_not_changed_by_those_they_were_made_of(speller: Any) -> None:
    examples = some(speller)
    with pytest.raises(TypeError, match="does not support item assignment"):
        examples.documents["en"] = examples.documents["fr"]  # type: ignore[index]
    long = ParallelCorpora.from_tokens({"en": random_documents([9]), "fr": random_documents([4])})
    assert [batch.tokens.shape for batch in long.batches(4)] == [(2, 9)]


@pytest.mark.real
def test_answers_begin_as_they_are_written_in_the_real_tokeniser(gemma: Any) -> None:
    tasks = {
        "facts": read_facts(),
        "shown": demonstrated(read_facts(), 2),
        "en": read_entailment(),
        "native": read_entailment(instruction="native"),
    }
    for task, questions in tasks.items():
        examples = ParallelCorpora.from_questions(questions, gemma)
        assert len(examples) == len(questions)
        assert len(examples.languages) == 9
        assert examples.answers is not None
        for question, row in zip(questions, examples.answers.tolist(), strict=True):
            for lang, token in zip(examples.languages, row, strict=True):
                text = gemma.tokenizer.decode([token]).strip()
                assert text, (task, question.name, lang)
                assert question.answers[lang].startswith(text.rstrip("\ufffd")), (task, lang, text)


def test_a_bare_word_boundary_is_no_answer() -> None:
    """Sentencepiece puts one in front of every text: alone, where no piece begins with it."""
    from tokenizers import Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    vocab = {
        piece: n for n, piece in enumerate(["<unk>", "▁", "首", "都", "是", "北", "京", "是北"])
    }
    core = Tokenizer(models.BPE(vocab, [("是", "北")], unk_token="<unk>"))
    core.normalizer = normalizers.Prepend("▁")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    model: Any = SimpleNamespace(
        tokenizer=tokenizer, cfg=SimpleNamespace(default_prepend_bos=False)
    )
    ask = Question("q", {"zh": "首都是", "ja": "首都"}, {"zh": "北京", "ja": "北京"})
    texts = ParallelCorpora.from_questions([ask], model)
    assert texts.answers is not None
    # across the border "是北" is one piece, so the answer's own first piece that spells something
    assert texts.answers.tolist() == [[vocab["北"], vocab["北"]]]
