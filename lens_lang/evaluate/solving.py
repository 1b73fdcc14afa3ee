"""Solving a task's items under interventions: what was answered, and how well.

An answer is generated, or where there are options the likeliest is taken; either way the right
answer's log-probability is measured, too: small models that are never right still say how much an
intervention hurts. Every run of a language is a part that is kept as soon as it is done.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lens_lang.decoding import Decoding, generate
from lens_lang.errors import CorpusError, OptionError
from lens_lang.evaluate.metrics import exact_match, number_match, rouge_l, token_f1
from lens_lang.evaluate.runs import HooksByLanguage, measure_runs, plan_runs
from lens_lang.evaluate.task_scores import METRICS, TaskMatrix
from lens_lang.fingerprint import weights_digest
from lens_lang.likelihood import Likelihood, log_likelihoods, token_pairs
from lens_lang.parts import Parts, hooks_digest, model_digest
from lens_lang.positions import check_everywhere
from lens_lang.questions import space_between
from lens_lang.sites import FwdHooks, HookedModel, hooked_names, model_name
from lens_lang.storage import versions
from lens_lang.tasks import Item, TaskItems


@dataclass(frozen=True)
class TaskOptions:
    """How items are solved.

    Attributes:
        controls: Random controls per intervention (see `lens_lang.matched_control`).
        new_tokens: At most so many in an answer; None takes the task's own.
        batch_size: Prompts at once.
        seed: Of the controls' random neurons.
    """

    controls: int = 0
    new_tokens: int | None = None
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.controls < 0:
            raise OptionError(f"controls must be at least 0, got {self.controls}")
        if self.batch_size < 1:
            raise OptionError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.new_tokens is not None and self.new_tokens < 1:
            raise OptionError(f"new_tokens must be at least 1, got {self.new_tokens}")


def task_matrix(
    model: HookedModel,
    items: TaskItems,
    interventions: Mapping[str, HooksByLanguage],
    *,
    options: TaskOptions = TaskOptions(),  # noqa: B008  frozen
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> TaskMatrix:
    """Solve a task in every language, without and with interventions and random controls.

    Args:
        model: The model.
        items: The task's items, from `lens_lang.read_task` or `lens_lang.stream_task`.
        interventions: Hooks by name: the same for all languages, or by language, as in
            ``{"own": {lang: ablate(some) for lang, some in neurons.items()}}``; then languages
            without hooks are not tested under that intervention.
        options: Controls, length of answers, batch size, seed.
        run_dir: Folder that keeps every run of a language as soon as it is done, so that the
            same call goes on after an interruption.
        progress: Show a bar on stderr, in a terminal or a notebook.

    Returns:
        Every item's scores in every run.

    Raises:
        OptionError: A hook that is not of lens_lang is to be controlled or kept.
        LanguageError: An intervention names no language of the task.
        CorpusError: A prompt is too long for the model.
        SiteError: A hook's name is unknown, or it comes after the last block.
        MissingExtraError: A metric's library is not installed.
        ActivationError: The model produced NaN or infinity.
    """
    plan = plan_runs(
        model,
        interventions,
        items.languages,
        controls=options.controls,
        seed=options.seed,
        kept=run_dir is not None,
        measured=f"{items.task.name} is tested",
    )
    for row in plan:
        for hooks in row.values():
            check_everywhere(hooks)
    _check_items(items)
    metrics = METRICS[items.task.metric]
    solver = _Solver(model, items, options, Parts(run_dir))
    runs = measure_runs(plan, solver.of, progress=progress, label=items.task.name)
    scores = {
        lang: torch.full((len(metrics), len(runs), len(some)), torch.nan, dtype=torch.float64)
        for lang, some in items.items.items()
    }
    answers: dict[str, list[tuple[str | None, ...]]] = {lang: [] for lang in items.languages}
    for run, solved in enumerate(runs):
        for lang, some in items.items.items():
            if lang not in solved:
                answers[lang].append((None,) * len(some))
                continue
            said, judged = solved[lang]
            for place, metric in enumerate(metrics):
                scores[lang][place, run] = torch.tensor(judged[metric])
            answers[lang].append(tuple(said))
    return TaskMatrix(
        task=items.task.name,
        interventions=tuple(interventions),
        languages=items.languages,
        names={lang: tuple(item.name for item in some) for lang, some in items.items.items()},
        scores=scores,
        answers={lang: tuple(some) for lang, some in answers.items()},
        n_controls=options.controls,
        metrics=metrics,
        provenance={
            "model": model_name(model),
            "weights": weights_digest(model),
            "items": items.describe(),
            "options": asdict(options),
            "interventions": {
                name: {lang: len(hooked_names(model, hooks)) for lang, hooks in row.items()}
                for name, row in zip(interventions, plan[1:], strict=False)
            },
            "versions": versions(),
        },
    )


_JUDGES: Mapping[str, Mapping[str, Callable[[str, Sequence[str], str], float]]] = {
    "f1": {"f1": token_f1, "exact_match": exact_match},
    "number": {"accuracy": number_match},
    "rouge_l": {"rouge_l": rouge_l},
    "choice": {},
}


def _check_items(items: TaskItems) -> None:
    """Find out before anything is measured what would be in the way."""
    for judge in _JUDGES[items.task.metric].values():
        judge("1", ("1",), "en")  # a missing library should cost no hour
    for lang, some in items.items.items():
        for item in some:
            if items.task.metric == "choice" and not item.options:
                raise CorpusError(
                    f"{item.name!r} of {items.task.name} in {lang!r} has no options to choose from"
                )


class _Solver:
    """A model's scores on the items of a language, from a file if they are there."""

    def __init__(
        self, model: HookedModel, items: TaskItems, options: TaskOptions, parts: Parts
    ) -> None:
        self.model, self.items, self.options, self.parts = model, items, options, parts
        self.weights = model_digest(model) if parts.folder else ""

    def of(self, lang: str, hooks: FwdHooks) -> tuple[list[str], dict[str, list[float]]]:
        """Answers and scores. What is kept is what the model did; it is judged anew each time."""
        some = self.items.items[lang]
        kept = self._measured(lang, hooks)
        log_p: list[list[float]] = kept["log_probabilities"]
        sizes: list[list[int]] = kept["n_tokens"]
        if self.items.task.metric == "choice":
            return _chosen(some, log_p, sizes)
        answers = [str(text) for text in kept["answers"]]
        scores = {
            name: [
                judge(answer, item.references, lang)
                for answer, item in zip(answers, some, strict=True)
            ]
            for name, judge in _JUDGES[self.items.task.metric].items()
        }
        per_token = [p[0] / n[0] for p, n in zip(log_p, sizes, strict=True)]
        return answers, {**scores, "log_probability": per_token}

    def _measured(self, lang: str, hooks: FwdHooks) -> dict[str, Any]:
        measure = partial(self._solve, lang, hooks)
        if self.parts.folder is None:
            return measure()
        key = {
            "what": "task",
            "model": self.weights,
            "language": lang,
            "prompts": [[item.prompt, list(self._scored(item))] for item in self.items.items[lang]],
            "generated": None
            if self.items.task.metric == "choice"
            else [self._new_tokens, list(self.items.stops[lang])],
            "hooks": hooks_digest(hooks),
        }
        return dict(self.parts.get(key, measure))

    def _scored(self, item: Item) -> tuple[str, ...]:
        """What is scored behind an item's prompt: all options, or the right answer."""
        choosing = self.items.task.metric == "choice"
        return item.options if choosing else item.references[:1]

    @property
    def _new_tokens(self) -> int:
        return self.options.new_tokens or self.items.task.new_tokens

    def _solve(self, lang: str, hooks: FwdHooks) -> dict[str, Any]:
        some = self.items.items[lang]
        scored = [self._scored(item) for item in some]
        found = self._likelihoods(some, scored, lang, hooks)
        kept: dict[str, Any] = {
            "log_probabilities": [[each.log_probability for each in row] for row in found],
            "n_tokens": [[each.n_tokens for each in row] for row in found],
        }
        if self.items.task.metric == "choice":
            return kept
        decoding = Decoding(
            new_tokens=self._new_tokens, stop=self.items.stops[lang], skip_blank=True
        )
        said = generate(
            self.model,
            [item.prompt for item in some],
            decoding,
            fwd_hooks=hooks,
            batch_size=self.options.batch_size,
        )
        return {**kept, "answers": [each.text.strip() for each in said]}

    def _likelihoods(
        self,
        some: tuple[Item, ...],
        texts: list[tuple[str, ...]],
        lang: str,
        hooks: FwdHooks,
    ) -> list[list[Likelihood]]:
        """How likely every text is behind every prompt."""
        pairs = [
            (item.prompt, space_between(item.prompt, lang) + text)
            for item, each in zip(some, texts, strict=True)
            for text in each
        ]
        found = iter(
            log_likelihoods(
                self.model,
                token_pairs(self.model, pairs),
                fwd_hooks=hooks,
                batch_size=self.options.batch_size,
            )
        )
        return [[next(found) for _ in row] for row in texts]


def _chosen(
    some: Sequence[Item], log_p: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]]
) -> tuple[list[str], dict[str, list[float]]]:
    """The likeliest options, and whether they are right, by the whole and by the UTF-8 byte."""
    answers: list[str] = []
    scores: dict[str, list[float]] = {name: [] for name in METRICS["choice"]}
    for item, whole, n_tokens in zip(some, log_p, sizes, strict=True):
        right = item.options.index(item.references[0])
        # By bytes, because tokenisers cut languages differently.
        spread = [p / len(text.encode()) for p, text in zip(whole, item.options, strict=True)]
        answers.append(item.options[whole.index(max(whole))])
        scores["accuracy"].append(_is_best(whole, right))
        scores["accuracy_by_byte"].append(_is_best(spread, right))
        scores["log_probability"].append(whole[right] / n_tokens[right])
    return answers, scores


def _is_best(values: Sequence[float], right: int) -> float:
    """1 if the right one is likelier than each of the others: a tie is no answer."""
    best = max(values)
    return float(values[right] == best and values.count(best) == 1)
