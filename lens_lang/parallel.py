"""The same examples in several languages, as batches that hold all languages of an example.

What Wang et al. (2024) ask of a neuron, whether it fires in every translation of an input, is asked
of one example at a time; so example n of every language is the same sentence or question, and a
batch keeps them together.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from lens_lang.batches import TokenBatch, padded_batch
from lens_lang.corpora import Corpora, sample_sentences
from lens_lang.documents import (
    Documents,
    TokenisingModel,
    bos_token,
    first_token,
    tokenise,
    tokenizer_of,
)
from lens_lang.errors import CorpusError, LanguageError, OptionError, near_misses
from lens_lang.languages import distinct_languages, find_language, language_tag
from lens_lang.questions import Question, space_between
from lens_lang.specs import Examples
from lens_lang.texts import read_documents

TOGETHER = "mul"
"""Language of a batch that holds several, as in BCP 47."""


@dataclass(frozen=True, eq=False)
class ParallelCorpora:
    """Examples given in several languages: prompts with answers, or plain sentences.

    Attributes:
        names: What each example is called.
        documents: By language, one document per example, in the order of the names.
        bos_id: Put in front of every row; None puts nothing there.
        questions: What was tokenised, where it was text.
        answers: The first token of every answer, as it follows its prompt; None without answers.
    """

    names: tuple[str, ...]
    documents: Mapping[str, Documents]
    bos_id: int | None = None
    questions: tuple[Question, ...] = ()
    answers: Int[Tensor, "example lang"] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_several(self.documents)
        if not self.names:
            raise CorpusError("There is no example")
        (name, times) = Counter(self.names).most_common(1)[0]
        if times > 1:
            raise CorpusError(f"{'Two' if times == 2 else times} examples are called {name!r}")
        for lang, docs in self.documents.items():
            if len(docs) != len(self.names):
                raise CorpusError(
                    f"{lang!r} has {len(docs)} texts and there are {len(self.names)} examples: "
                    "every example must be given once in every language"
                )
            empty = (docs.lengths == 0).nonzero().flatten().tolist()
            if empty:
                raise CorpusError(f"Example {self.names[empty[0]]!r} is empty in {lang!r}")
        shape = (len(self.names), len(self.documents))
        if self.answers is not None and tuple(self.answers.shape) != shape:
            raise CorpusError(
                f"answers must be one token per example and language, {shape[0]} x {shape[1]}, "
                f"got {list(self.answers.shape)}"
            )
        object.__setattr__(self, "documents", MappingProxyType(dict(self.documents)))

    @classmethod
    def from_questions(
        cls,
        questions: Sequence[Question],
        model: TokenisingModel,
        *,
        languages: Sequence[str] | None = None,
        bos: bool | None = None,
    ) -> "ParallelCorpora":
        """Tokenise questions.

        Args:
            questions: From `read_facts`, `read_entailment`, `read_questions` and the like.
            model: Whose tokeniser to use.
            languages: Which languages, under any of their names; every question must have them.
                None takes those that every question has.
            bos: Put BOS in front of every row. None does what TransformerLens does.

        Returns:
            One example per question.

        Raises:
            CorpusError: There is no question, one is empty, or only some have answers.
            LanguageError: A question lacks a language, they share fewer than two, or one of
                those asked for is unknown or given twice.
            OptionError: `questions` or `languages` is one instead of a list.
        """
        if isinstance(questions, Question) or isinstance(languages, str):
            raise OptionError("questions and languages are lists: give [question], ['en', 'fr']")
        if not questions:
            raise CorpusError("There is no question")
        if languages is None:
            first = questions[0].languages
            tags = [lang for lang in first if all(lang in each.prompts for each in questions)]
        else:
            tags = list(distinct_languages(language_tag(name) for name in languages))
            for each in questions:
                missing = [tag for tag in tags if tag not in each.prompts]
                if missing:
                    raise LanguageError(
                        f"Question {each.name!r} is not given in {', '.join(missing)}: leave the "
                        "question or the language out"
                    )
        _check_several(tags)
        answered = any(tag in each.answers for each in questions for tag in tags)
        for each in questions if answered else ():
            missing = [tag for tag in tags if not each.answers.get(tag, "").strip()]
            if missing:
                raise CorpusError(
                    f"Question {each.name!r} has no answer in {', '.join(missing)}, and others "
                    "have: answer all questions in all languages, or none"
                )
        tokenizer = tokenizer_of(model)
        documents = {
            tag: _tokenised(tokenizer, questions, [each.prompts[tag] for each in questions], tag)
            for tag in tags
        }
        answers = None
        if answered:
            answers = torch.stack(
                [_first_tokens(tokenizer, questions, tag, documents[tag]) for tag in tags], dim=1
            )
        return cls(
            names=tuple(each.name for each in questions),
            documents=documents,
            bos_id=bos_token(model, bos),
            questions=tuple(questions),
            answers=answers,
        )

    @classmethod
    def from_texts(
        cls,
        texts: Mapping[str, Iterable[str]],
        model: TokenisingModel,
        *,
        names: Sequence[str] | None = None,
        bos: bool | None = None,
    ) -> "ParallelCorpora":
        """Tokenise parallel sentences.

        Args:
            texts: For each language, under any of its names, the same sentences in the same order.
            model: Whose tokeniser to use.
            names: What to call the examples; None numbers them.
            bos: Put BOS in front of every row. None does what TransformerLens does.

        Returns:
            One example per sentence.

        Raises:
            CorpusError: Languages have different numbers of sentences, or one is empty.
            LanguageError: A language is unknown, given twice, or alone.
        """
        if any(isinstance(each, str) for each in texts.values()):
            raise CorpusError("The texts of a language are one string: give a list")
        tags = distinct_languages(language_tag(name) for name in texts)
        named = {tag: list(each) for tag, each in zip(tags, texts.values(), strict=True)}
        counts = {lang: len(each) for lang, each in named.items()}
        if len(set(counts.values())) > 1:
            raise CorpusError(
                "Parallel text must have as many sentences in every language, got "
                + ", ".join(f"{lang} {n}" for lang, n in counts.items())
            )
        number = counts[tags[0]]
        if not number:
            raise CorpusError("There is no sentence")
        called = [str(n) for n in range(number)] if names is None else list(names)
        if len(called) != number:
            raise CorpusError(f"{number} sentences need as many names, got {len(called)}")
        questions = [
            Question(name, {lang: each[n] for lang, each in named.items()})
            for n, name in enumerate(called)
        ]
        return cls.from_questions(questions, model, bos=bos)

    @classmethod
    def from_files(
        cls,
        files: Mapping[str, str | Path],
        model: TokenisingModel,
        *,
        text_column: str = "text",
        names: Sequence[str] | None = None,
        bos: bool | None = None,
    ) -> "ParallelCorpora":
        """Tokenise parallel text, one file per language: line n says the same in every file.

        Args:
            files: For each language, under any of its names, a ``.txt``, ``.jsonl``, ``.csv``,
                ``.parquet``, or gzipped text file.
            model: Whose tokeniser to use.
            text_column: The column that holds the text, in all but ``.txt``.
            names: What to call the examples; None numbers them. Results of several files are
                only added if their examples' names differ.
            bos: Put BOS in front of every row. None does what TransformerLens does.

        Returns:
            One example per line.

        Raises:
            CorpusError: A file is missing or damaged, files differ in length, or a line is blank.
            LanguageError: A language is unknown, given twice, or alone.
        """
        texts = {
            lang: read_documents(path, text_column=text_column, keep_blank=True)
            for lang, path in files.items()
        }
        return cls.from_texts(texts, model, names=names, bos=bos)

    @classmethod
    def from_tokens(
        cls,
        documents: Mapping[str, Sequence[Sequence[int]]],
        *,
        names: Sequence[str] | None = None,
        bos_id: int | None = None,
        answers: Sequence[Sequence[int]] | None = None,
    ) -> "ParallelCorpora":
        """Build examples from token ids, without a tokeniser.

        Args:
            documents: For each language, the same examples in the same order, as token ids.
            names: What to call the examples; None numbers them.
            bos_id: Token to put in front of every row.
            answers: For each example, the first token of its answer in each language.

        Returns:
            The examples.

        Raises:
            CorpusError: Languages have different numbers of examples, or one is empty or no list
                of token ids.
            LanguageError: There are fewer than two languages.

        Examples:
            >>> ParallelCorpora.from_tokens({"en": [[5, 9]], "fr": [[7]]}).languages
            ('en', 'fr')
        """
        joined = Corpora.from_tokens(documents, bos_id=bos_id).documents
        number = len(next(iter(joined.values())))
        called = [str(n) for n in range(number)] if names is None else list(names)
        given = None
        if answers is not None:
            if not all(isinstance(each, Sequence) for each in answers):
                raise CorpusError("answers must be, for each example, one token per language")
            if len({len(each) for each in answers}) > 1:
                raise CorpusError("answers must be one token per example and language")
            rows = [list(each) for each in answers]
            if not all(type(item) is int for row in rows for item in row):
                raise CorpusError("answers must be token ids, which are whole numbers")
            given = torch.tensor(rows, dtype=torch.int64)
        return cls(tuple(called), joined, bos_id=bos_id, answers=given)

    @classmethod
    def sample(
        cls, model: TokenisingModel, *, languages: Sequence[str] | None = None
    ) -> "ParallelCorpora":
        """Tokenise the sample sentences: 120, each in nine languages, written for this project.

        Args:
            model: Whose tokeniser to use.
            languages: Which languages; None takes all nine.

        Raises:
            LanguageError: A language is not among them, or given twice.
        """
        sentences = sample_sentences()
        known = list(sentences)
        wanted = known if languages is None else [known[find_language(x, known)] for x in languages]
        return cls.from_texts({lang: sentences[lang] for lang in distinct_languages(wanted)}, model)

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages, in order."""
        return tuple(self.documents)

    @property
    def by_language(self) -> Corpora:
        """The same texts language by language, one row each."""
        return Corpora(self.documents, bos_id=self.bos_id)

    @property
    def digest(self) -> str:
        """Fingerprint of names, languages, tokens and answers."""
        about = [self.names, self.languages, self.bos_id, self.answers is not None]
        digest = hashlib.sha256(json.dumps(about).encode())
        for docs in self.documents.values():
            for tensor in (docs.tokens, docs.ends):
                digest.update(tensor.numpy().tobytes())
        asked = [
            [dict(each.answers), {k: list(v) for k, v in each.options.items()}]
            for each in self.questions
        ]
        digest.update(json.dumps(asked).encode())
        if self.answers is not None:
            digest.update(self.answers.numpy().tobytes())
        return digest.hexdigest()[:32]

    def describe(self) -> dict[str, Any]:
        """Return languages, sizes and digest, for a result's provenance."""
        return {
            "languages": list(self.languages),
            "examples": len(self),
            "n_tokens": {lang: len(docs.tokens) for lang, docs in self.documents.items()},
            "bos_id": self.bos_id,
            "digest": self.digest,
        }

    def about(self) -> Examples:
        """Return what a statistic is told of the examples before it is collected."""
        answers = () if self.answers is None else tuple(map(tuple, self.answers.tolist()))
        return Examples(self.languages, self.names, answers)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str | int) -> "ParallelCorpora":
        """Return one example, by its name or its place."""
        if isinstance(name, str) and name not in self.names:
            raise CorpusError(f"There is no example {name!r}{near_misses(name, self.names)}")
        number = self.names.index(name) if isinstance(name, str) else range(len(self))[name]
        return self.select([number])

    def __iter__(self) -> Iterator["ParallelCorpora"]:
        return (self[number] for number in range(len(self)))

    def __repr__(self) -> str:
        asked = "" if self.answers is None else " with answers"
        return f"ParallelCorpora({len(self)} examples{asked} in {', '.join(self.languages)})"

    def select(self, numbers: Sequence[int]) -> "ParallelCorpora":
        """Return some of the examples, in the given order."""
        numbers = [range(len(self))[number] for number in numbers]  # -1 is the last
        return replace(
            self,
            names=tuple(self.names[n] for n in numbers),
            documents={lang: docs.select(numbers) for lang, docs in self.documents.items()},
            questions=tuple(self.questions[n] for n in numbers) if self.questions else (),
            answers=None if self.answers is None else self.answers[numbers],
        )

    def sharded(self, index: int, count: int) -> "ParallelCorpora":
        """Return one machine's share of the examples: the shares' results add up to the whole.

        Args:
            index: Which share, from 0.
            count: How many shares.

        Raises:
            OptionError: There is no such share, or it is empty.
        """
        if not 0 <= index < count or index >= len(self):
            raise OptionError(
                f"Share {index} of {count} of {len(self)} examples does not exist or is empty"
            )
        return self.select(range(index, len(self), count))

    def n_batches(self, batch_size: int) -> int:
        """Return how many batches of so many examples there are."""
        if batch_size < 1:
            raise OptionError(f"batch_size must be at least 1, got {batch_size}")
        return -(-len(self) // batch_size)

    def batches(
        self, batch_size: int, *, padding_side: Literal["left", "right"] = "right"
    ) -> Iterator[TokenBatch]:
        """Yield examples, each in all languages, example after example.

        Args:
            batch_size: Examples in a batch; the last may have fewer.
            padding_side: Where shorter rows are padded.

        Yields:
            Batches whose ``documents`` are the examples' numbers, as often as there are languages.
        """
        for batch in range(self.n_batches(batch_size)):
            numbers = range(batch * batch_size, min((batch + 1) * batch_size, len(self)))
            yield padded_batch(
                [docs[n] for n in numbers for docs in self.documents.values()],
                language=TOGETHER,
                numbers=[n for n in numbers for _ in self.documents],
                bos_id=self.bos_id,
                padding_side=padding_side,
            )


def _check_several(languages: Iterable[str]) -> None:
    if len(tags := distinct_languages(languages)) < 2:
        raise LanguageError(
            f"Sharing is between languages: examples need at least 2, got {', '.join(tags)}"
        )


def _tokenised(
    tokenizer: Any, questions: Sequence[Question], texts: Sequence[str], lang: str
) -> Documents:
    """One text per question as tokens, none of them empty."""
    docs = tokenise(tokenizer, texts, limit=None, lang=lang)
    if len(docs) < len(texts):  # those without a token were left out
        sizes = map(len, tokenizer(list(texts), add_special_tokens=False)["input_ids"])
        empty = next(each.name for each, size in zip(questions, sizes, strict=True) if not size)
        raise CorpusError(f"Example {empty!r} is empty in {lang!r}")
    return docs


def _first_tokens(
    tokenizer: Any, questions: Sequence[Question], lang: str, prompts: Documents
) -> Int[Tensor, "example"]:
    """The token that follows each prompt if its answer does, as in Wang et al. (2024).

    Where prompt and answer would be tokenised across their border, the answer's own first token.
    """
    answers = [space_between(each.prompts[lang], lang) + each.answers[lang] for each in questions]
    both = [each.prompts[lang] + answer for each, answer in zip(questions, answers, strict=True)]
    found = []
    wholes = _tokenised(tokenizer, questions, both, lang)
    for prompt, whole, answer, each in zip(prompts, wholes, answers, questions, strict=True):
        follows = len(whole) > len(prompt) and torch.equal(whole[: len(prompt)], prompt)
        token = int(whole[len(prompt)]) if follows else first_token(tokenizer, answer)
        if token is None:
            raise CorpusError(f"The answer of {each.name!r} in {lang!r} has no token")
        found.append(token)
    return torch.tensor(found)
