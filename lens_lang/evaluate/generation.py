"""In which language does a model answer, with and without an intervention?

Open questions in several languages are answered under each intervention, beside matched random
controls; an identifier says in which language every answer is. How well it is written stands
beside it, because a model that babbles in the target language has not been steered: repetition,
distinct n-grams, its own likelihood.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_lang.errors import StorageError
from lens_lang.evaluate.significance import (
    holm,
    paired_share_interval,
    prediction_test,
    share_interval,
    sign_flip_test,
)
from lens_lang.evaluate.task_scores import WITHOUT
from lens_lang.identification import UNDETERMINED, Identify, is_spoken, spoken_languages
from lens_lang.storage import read_tensors, write_tensors

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class GenerationMatrix:
    """What was answered, and in which language, in every run.

    Runs are: no intervention, then the interventions, then the controls of the first, of the
    second, and so on.

    Attributes:
        interventions: Their names.
        prompts: The questions.
        languages: The language of each question.
        texts: The answers of every run; None where a question was not asked.
        spoken: The language of each answer, ``und`` for none.
        lines: The languages of each answer's lines, those without a language left out.
        nll: Nats per new token, as the model under the run's hooks gave them; NaN where a
            question was not asked.
        tokens: The tokens of all answers, run by run and prompt by prompt, without what ended them.
        n_tokens: How many of them belong to each answer.
        steering: ``target``, ``method`` and ``strength`` of the interventions that have them.
        n_controls: Random controls per intervention.
        provenance: Model, decoding, identifier and versions, as JSON values.
    """

    interventions: tuple[str, ...]
    prompts: tuple[str, ...]
    languages: tuple[str, ...]
    texts: tuple[tuple[str | None, ...], ...]
    spoken: tuple[tuple[str, ...], ...]
    lines: tuple[tuple[tuple[str, ...], ...], ...]
    nll: Float[Tensor, "run prompt"]
    tokens: Int[Tensor, "token"]
    n_tokens: Int[Tensor, "run prompt"]
    steering: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    n_controls: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def groups(self) -> tuple[str, ...]:
        """The languages of the questions, each once."""
        return tuple(dict.fromkeys(self.languages))

    @property
    def rate(self) -> Float[Tensor, "intervention lang"]:
        """Share of answers in the wanted language: the target, or else the question's own."""
        runs = range(1, 1 + len(self.interventions))
        rates = [[self._mean(self._hits(run), lang) for lang in self.groups] for run in runs]
        shape = (len(self.interventions), len(self.groups))
        return torch.tensor(rates, dtype=torch.float64).view(shape)

    @property
    def baseline_rate(self) -> Float[Tensor, "lang"]:
        """Share of answers in the question's own language without any intervention."""
        rates = [self._mean(self._hits(0), lang) for lang in self.groups]
        return torch.tensor(rates, dtype=torch.float64)

    def rejudged(self, identify: Identify) -> "GenerationMatrix":
        """Judge the same answers by another identifier.

        Args:
            identify: The identifier.
        """
        spoken, lines = judged(self.texts, identify)
        about = {**self.provenance, "identifier": identifier_name(identify)}
        return dataclasses.replace(self, spoken=spoken, lines=lines, provenance=about)

    def distribution(self) -> "pd.DataFrame":
        """Return the share of each spoken language, for each run and language of the question.

        Returns:
            One row per intervention (``none`` first) and question language; one column per
            language that was spoken.
        """
        import pandas as pd

        named = (WITHOUT, *self.interventions)
        rows = {}
        for run, name in enumerate(named):
            for lang in self.groups:
                said = [self.spoken[run][p] for p in self._asked(run, lang)]
                if said:
                    shares = pd.Series(said).value_counts(normalize=True)
                    rows[name, lang] = shares
        frame = pd.DataFrame(rows).T.fillna(0.0)
        order = sorted(
            frame.columns, key=lambda lang: (lang not in self.groups, -frame[lang].sum())
        )
        frame = frame[order]
        frame.index.names = ["intervention", "question"]
        return frame

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per run and language of the questions: how often, and how well.

        Returns:
            ``wanted``: the language asked for; ``rate``: the share of answers in it, with
            Wilson's 95 % interval; ``before``: that share without intervention; ``gain``: the
            change, with Newcombe's paired interval; ``p``: of a paired permutation test that the
            intervention changes nothing, ``p_holm`` corrected over all languages of the
            intervention. ``control``: the mean rate under matched random controls; ``p_random``:
            how probable it is that one more random set would do as much (Student's t over the
            draws; NaN for fewer than two), with its own correction. ``line_pass``: share of
            answers with every line in the wanted language. ``distinct_1``, ``distinct_2``:
            different n-grams of tokens among all, over the answers of one language of the
            questions (Li et al. 2016). ``repetition``: share of an answer's 4-grams that it has
            had before (Welleck et al. 2020), on average. ``nll``: nats per token of the answers as
            the model gave them, low for babble, too.
        """
        import pandas as pd

        rows = []
        for run in range(1 + len(self.interventions)):
            mine = [self._row(run, lang) for lang in self.groups if self._asked(run, lang)]
            rows += _corrected(mine)
        return pd.DataFrame(rows)

    def summary(self) -> "pd.DataFrame":
        """Return one row per run: the columns of `to_frame`, over the questions of all languages.

        Question n of every language is taken for the same one, translated: its answers are one
        witness in intervals and tests. Corrections are over the interventions.
        """
        import pandas as pd

        rows = [self._row(run, None) for run in range(1 + len(self.interventions))]
        return pd.DataFrame(_corrected(rows)).drop(columns="question")

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file.

        Raises:
            StorageError: The file cannot be written.
        """
        names = ("interventions", "prompts", "languages", "texts", "spoken", "lines")
        header = {name: getattr(self, name) for name in names}
        header |= {
            "steering": {name: dict(each) for name, each in self.steering.items()},
            "n_controls": self.n_controls,
            "provenance": dict(self.provenance),
        }
        tensors = {name: getattr(self, name) for name in ("nll", "tokens", "n_tokens")}
        write_tensors(path, type(self).__name__, header, tensors)

    @classmethod
    def load(cls, path: str | Path) -> "GenerationMatrix":
        """Read what `save` wrote.

        Raises:
            StorageError: The file is missing, damaged, or holds something else.
        """
        _, header, tensors = read_tensors(path, cls.__name__)
        try:
            return cls(
                interventions=tuple(header["interventions"]),
                prompts=tuple(header["prompts"]),
                languages=tuple(header["languages"]),
                texts=tuple(map(tuple, header["texts"])),
                spoken=tuple(map(tuple, header["spoken"])),
                lines=tuple(tuple(map(tuple, run)) for run in header["lines"]),
                steering=header["steering"],
                n_controls=int(header["n_controls"]),
                provenance=header["provenance"],
                **{name: tensors[name] for name in ("nll", "tokens", "n_tokens")},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{path} is damaged: {error} is missing or malformed") from error

    def __repr__(self) -> str:
        return (
            f"GenerationMatrix({len(self.interventions)} interventions with {self.n_controls} "
            f"controls each; {len(self.prompts)} questions in {', '.join(self.groups)})"
        )

    def _asked(self, run: int, lang: str | None) -> list[int]:
        """The questions of a language, or of all, that were asked in a run."""
        return [
            place
            for place, own in enumerate(self.languages)
            if lang in (None, own) and self.texts[run][place] is not None
        ]

    def _controls(self, run: int) -> list[int]:
        first = 1 + len(self.interventions) + (run - 1) * self.n_controls
        return list(range(first, first + self.n_controls)) if run else []

    def _wanted(self, run: int, place: int) -> str:
        named = self.interventions[run - 1] if run else ""
        return str(self.steering.get(named, {}).get("target") or self.languages[place])

    def _hits(self, run: int, judge: int | None = None) -> Float[Tensor, "prompt"]:
        """1 where a run's answer is in the language that run `judge` wants; NaN if not asked."""
        judge = run if judge is None else judge
        return torch.tensor(
            [
                float(is_spoken(said, self._wanted(judge, place)))
                if self.texts[run][place] is not None
                else torch.nan
                for place, said in enumerate(self.spoken[run])
            ],
            dtype=torch.float64,
        )

    def _mean(self, values: Float[Tensor, "prompt"], lang: str) -> float:
        mine = [place for place, own in enumerate(self.languages) if own == lang]
        return float(values[mine].nanmean())

    def _row(self, run: int, lang: str | None) -> dict[str, Any]:
        asked = self._asked(run, lang)
        hits, before = self._hits(run)[asked], self._hits(0, run)[asked]
        # Translations of a question are no independent witnesses: they count as one.
        questions = self._questions[asked]
        mine, earlier = by_cluster(hits, questions), by_cluster(before, questions)
        low, high = share_interval(float(hits.mean()) * len(mine), len(mine))
        gain_low, gain_high = (
            paired_share_interval(earlier, mine) if run else (float("nan"), float("nan"))
        )
        controls = [self._hits(control, run)[asked] for control in self._controls(run)]
        drawn = torch.stack(controls) if controls else hits.new_zeros(0, len(hits))
        apart = by_cluster(hits - drawn.mean(0), questions)
        spread = float(apart.std()) if len(apart) > 1 else 0.0
        # No less than half an answer: where all are alike, the next one may still differ.
        error = max(spread / len(apart) ** 0.5, 0.5 / len(apart))
        wanted = {self._wanted(run, place) for place in asked}
        named = self.interventions[run - 1] if run else WITHOUT
        about = self.steering.get(named, {})
        answers = {
            each: [self._tokens(run, place) for place in self._asked(run, each)]
            for each in ([lang] if lang else self.groups)
        }
        varied = {
            n: _mean_of([distinct(some, n) for some in answers.values() if some]) for n in (1, 2)
        }
        said = [each for some in answers.values() for each in some]
        nll = self.nll[run][asked]
        return {
            "intervention": named,
            "method": about.get("method", ""),
            "target": about.get("target", ""),
            "strength": float(about.get("strength", torch.nan)),
            "question": lang or "all",
            "wanted": next(iter(wanted)) if len(wanted) == 1 else "own",
            "answers": len(asked),
            "rate": float(hits.mean()),
            "rate_low": low,
            "rate_high": high,
            "before": float(before.mean()),
            "gain": float((mine - earlier).mean()),
            "gain_low": gain_low,
            "gain_high": gain_high,
            "p": float(sign_flip_test(mine - earlier)) if run else float("nan"),
            "control": float(drawn.mean()) if controls else float("nan"),
            "p_random": prediction_test(float(hits.mean()), drawn.mean(1), error)
            if controls
            else float("nan"),
            "line_pass": self._line_pass(run, asked),
            "distinct_1": varied[1],
            "distinct_2": varied[2],
            "repetition": sum(map(repetition, said)) / max(len(said), 1),
            "nll": float(nll.mean()) if len(asked) else float("nan"),
        }

    @property
    def _questions(self) -> Int[Tensor, "prompt"]:
        """The place of each question among those of its language."""
        seen: dict[str, int] = {}
        numbers = []
        for lang in self.languages:
            numbers.append(seen.get(lang, 0))
            seen[lang] = numbers[-1] + 1
        return torch.tensor(numbers)

    def _line_pass(self, run: int, asked: Sequence[int]) -> float:
        passed = [
            bool(self.lines[run][place])
            and all(is_spoken(lang, self._wanted(run, place)) for lang in self.lines[run][place])
            for place in asked
        ]
        return sum(passed) / max(len(passed), 1)

    def _tokens(self, run: int, place: int) -> list[int]:
        end = int(self._ends[run, place])
        return self.tokens[end - int(self.n_tokens[run, place]) : end].tolist()

    @cached_property
    def _ends(self) -> Int[Tensor, "run prompt"]:
        """Where each answer ends among the tokens of all."""
        return self.n_tokens.flatten().cumsum(0).view_as(self.n_tokens)


def distinct(answers: Sequence[Sequence[int]], n: int) -> float:
    """Return the share of different n-grams among all, over several answers (Li et al. 2016).

    Args:
        answers: Their tokens.
        n: Length of the n-grams.

    Returns:
        1 if none occurs twice; NaN if there is none.

    Examples:
        >>> distinct([[1, 2, 1, 2]], 2)
        0.6666666666666666
    """
    grams = [tuple(some[i : i + n]) for some in answers for i in range(len(some) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def repetition(answer: Sequence[int], n: int = 4) -> float:
    """Return the share of an answer's n-grams that it has had before (Welleck et al. 2020).

    Args:
        answer: Its tokens.
        n: Length of the n-grams.

    Returns:
        0 if all differ, or there is none; near 1 for babble.

    Examples:
        >>> repetition([7] * 8)
        0.8
    """
    share = distinct([answer], n)
    return 1 - share if share == share else 0.0


def judged(
    texts: Sequence[Sequence[str | None]], identify: Identify
) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[tuple[str, ...], ...], ...]]:
    """Say in which language every answer is, and each of its lines.

    Args:
        texts: Answers by run; None for a question that was not asked.
        identify: The identifier, asked once about all of them.

    Returns:
        Of every answer its language, and the languages of its lines.
    """
    flat = [text or "" for row in texts for text in row]
    divided = [text.splitlines() for text in flat]
    asked = [*flat, *(line for lines in divided for line in lines)]
    said = iter(spoken_languages(asked, identify))
    whole = [next(said) for _ in flat]
    by_line = [
        tuple(x for x in [next(said) for _ in lines] if x != UNDETERMINED) for lines in divided
    ]
    width = len(texts[0])
    starts = range(0, len(flat), width)
    return (
        tuple(tuple(whole[start : start + width]) for start in starts),
        tuple(tuple(by_line[start : start + width]) for start in starts),
    )


def by_cluster(
    values: Float[Tensor, "answer"], clusters: Int[Tensor, "answer"]
) -> Float[Tensor, "cluster"]:
    """Return the mean of each cluster's values, in the order of the clusters' numbers.

    Args:
        values: One per answer.
        clusters: Which cluster each belongs to.

    Examples:
        >>> by_cluster(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([5, 5, 7])).tolist()
        [0.5, 1.0]
    """
    names, places = torch.unique(clusters, return_inverse=True)
    sums = torch.zeros(len(names), dtype=values.dtype).index_add_(0, places, values)
    return sums / torch.bincount(places, minlength=len(names))


def _mean_of(values: Sequence[float]) -> float:
    """Of those that are numbers."""
    return float(torch.tensor(values, dtype=torch.float64).nanmean())


def _corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put Holm's corrections behind both p, over the rows."""
    for name in ("p", "p_random"):
        adjusted = holm(torch.tensor([row[name] for row in rows], dtype=torch.float64)).tolist()
        found = []
        for row, value in zip(rows, adjusted, strict=True):
            place = list(row).index(name) + 1
            pairs = list(row.items())
            found.append(dict([*pairs[:place], (f"{name}_holm", value), *pairs[place:]]))
        rows = found
    return rows


def identifier_name(identify: Identify) -> str:
    """Return what tells an identifier's answers from another's, for provenance.

    Args:
        identify: The identifier.
    """
    given = (getattr(identify, name, None) for name in ("name", "__qualname__"))
    return str(next((each for each in given if each), type(identify).__name__))
