"""How well a task was solved, item by item, in every language and under every intervention."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_lang.errors import OptionError, StorageError, near_misses
from lens_lang.evaluate.significance import (
    holm,
    mean_interval,
    paired_share_interval,
    prediction_interval,
    prediction_test,
    share_interval,
    sign_flip_test,
)
from lens_lang.languages import find_language
from lens_lang.storage import read_tensors, write_tensors
from lens_lang.tasks import find_task

if TYPE_CHECKING:
    import pandas as pd

METRICS: Mapping[str, tuple[str, ...]] = {
    "f1": ("f1", "exact_match", "log_probability"),
    "number": ("accuracy", "log_probability"),
    "choice": ("accuracy", "accuracy_by_byte", "log_probability"),
    "rouge_l": ("rouge_l", "log_probability"),
}
"""What is measured for each task's `Task.metric`, the main one first."""

WITHOUT = "none"
"""Name of the run without any intervention."""

HITS = ("accuracy", "accuracy_by_byte", "exact_match")
"""Metrics that are 0 or 1 for an item."""


@dataclass(frozen=True, eq=False)
class TaskMatrix:
    """The scores of every item in every run.

    Runs are: no intervention, then the interventions, then the controls of the first, of the
    second, and so on.

    Attributes:
        task: The task's name.
        interventions: Their names.
        languages: The languages tested.
        names: The items' names by language.
        scores: By language, one row of runs per metric of `metrics`; NaN where a run was not
            tested in the language. ``log_probability`` is that of the right answer, in nats
            per token.
        answers: By language and run; None where it was not tested.
        n_controls: Random controls per intervention.
        provenance: Model, items, options and versions, as JSON values.
        metrics: What was measured, the main one first; without, what is measured of the task.
    """

    task: str
    interventions: tuple[str, ...]
    languages: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]]
    scores: Mapping[str, Float[Tensor, "metric run item"]]
    answers: Mapping[str, tuple[tuple[str | None, ...], ...]]
    n_controls: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        metrics = self.metrics or METRICS[find_task(self.task).metric]
        object.__setattr__(self, "metrics", tuple(metrics))

    def of(self, lang: str, metric: str | None = None) -> Float[Tensor, "run item"]:
        """Return every item's score in one language.

        Args:
            lang: The language, under any of its names.
            metric: One of `metrics`; None takes the first.

        Raises:
            LanguageError: The language was not tested.
            OptionError: The metric was not measured.
        """
        if metric is not None and metric not in self.metrics:
            raise OptionError(
                f"{self.task} was not judged by {metric!r}{near_misses(metric, self.metrics)}"
            )
        place = 0 if metric is None else self.metrics.index(metric)
        return self.scores[self.languages[find_language(lang, self.languages)]][place]

    def controls(
        self, run: int, lang: str, metric: str | None = None
    ) -> Float[Tensor, "draw item"]:
        """Return the items' scores under the controls of one intervention.

        Args:
            run: Number of the intervention's run, from 1.
            lang: The language.
            metric: One of `metrics`; None takes the first.
        """
        first = 1 + len(self.interventions) + (run - 1) * self.n_controls
        return self.of(lang, metric)[first : first + self.n_controls]

    def to_frame(self, metric: str | None = None) -> "pd.DataFrame":
        """Return one row per run and language.

        Args:
            metric: One of `metrics`; None takes the task's main one.

        Returns:
            ``score`` with a 95 % interval (Wilson's for shares, else by bootstrap over items);
            ``change`` from the run without intervention, with a paired interval (Newcombe's for
            shares); ``p`` of a paired permutation test that the intervention changes nothing;
            ``control``: the mean change under random controls, with the interval where one more
            would lie; ``p_random``: how probable it is that one more random set would do as much
            (Student's t over the draws; NaN for fewer than two). ``p_holm`` and
            ``p_random_holm`` are corrected over the languages of an intervention.
        """
        import pandas as pd

        rows = []
        for run in range(1 + len(self.interventions)):
            mine = [
                self._row(run, lang, metric)
                for lang in self.languages
                if bool(torch.isfinite(self.of(lang, metric)[run]).all())
            ]
            adjusted = {
                f"{name}_holm": holm(
                    torch.tensor([row[name] for row in mine], dtype=torch.float64)
                ).tolist()
                for name in ("p", "p_random")
            }
            rows += [
                {**row, **{name: values[place] for name, values in adjusted.items()}}
                for place, row in enumerate(mine)
            ]
        return pd.DataFrame(rows)

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file.

        Raises:
            StorageError: The file cannot be written.
        """
        write_tensors(path, type(self).__name__, self.header(), self.scores)

    def header(self) -> dict[str, Any]:
        """Return everything but the scores, as JSON values."""
        return {
            "task": self.task,
            "interventions": self.interventions,
            "languages": self.languages,
            "names": dict(self.names),
            "answers": dict(self.answers),
            "n_controls": self.n_controls,
            "metrics": self.metrics,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def load(cls, path: str | Path) -> "TaskMatrix":
        """Read what `save` wrote.

        Raises:
            StorageError: The file is missing, damaged, or holds something else.
        """
        _, header, tensors = read_tensors(path, cls.__name__)
        return cls.from_header(header, tensors, str(path))

    @classmethod
    def from_header(
        cls, header: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str
    ) -> "TaskMatrix":
        """Build a matrix from what a file holds.

        Args:
            header: All but the scores.
            tensors: The scores by language.
            source: What to call the file in a message.

        Raises:
            StorageError: Something is missing or malformed.
        """
        try:
            languages = tuple(header["languages"])
            return cls(
                task=str(header["task"]),
                interventions=tuple(header["interventions"]),
                languages=languages,
                names={lang: tuple(header["names"][lang]) for lang in languages},
                scores={lang: tensors[lang] for lang in languages},
                answers={lang: tuple(map(tuple, header["answers"][lang])) for lang in languages},
                n_controls=int(header["n_controls"]),
                metrics=tuple(header["metrics"]),
                provenance=header["provenance"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StorageError(f"{source} is damaged: {error} is missing or malformed") from error

    def __repr__(self) -> str:
        counts = ", ".join(f"{lang} {len(names)}" for lang, names in self.names.items())
        return (
            f"TaskMatrix({self.task}: {len(self.interventions)} interventions with "
            f"{self.n_controls} controls each; items: {counts})"
        )

    def _row(self, run: int, lang: str, metric: str | None) -> dict[str, Any]:
        scores = self.of(lang, metric)
        mine = scores[run]
        name = metric or self.metrics[0]
        low, high = (
            share_interval(int(mine.sum()), len(mine))
            if name in HITS
            else mean_interval(mine).tolist()
        )
        change = mine - scores[0]
        change_low, change_high = (
            (float("nan"), float("nan"))
            if not run
            else paired_share_interval(scores[0], mine)
            if name in HITS
            else mean_interval(change).tolist()
        )
        drawn = self.controls(run, lang, metric) - scores[0] if run else scores[:0]
        control = drawn.mean(0) if len(drawn) else torch.zeros_like(change)
        many = len(change) > 1
        ends = [torch.nan, torch.nan]
        p_random = torch.nan
        if len(drawn):
            spread = control.std() / len(control) ** 0.5 if many else torch.tensor(0.0)
            ends = prediction_interval(drawn.mean(1), spread.double()).tolist()
            apart = change - control
            error = float(apart.std()) / len(apart) ** 0.5 if many else 0.0
            if name in HITS:  # where all items are alike, the next one may still differ
                error = max(error, 0.5 / len(apart))
            p_random = prediction_test(float(change.mean()), drawn.mean(1), error)
        return {
            "task": self.task,
            "metric": name,
            "intervention": self.interventions[run - 1] if run else WITHOUT,
            "language": lang,
            "items": len(mine),
            "score": float(mine.mean()),
            "score_low": low,
            "score_high": high,
            "change": float(change.mean()),
            "change_low": change_low,
            "change_high": change_high,
            "p": float(sign_flip_test(change)) if run else float("nan"),
            "control": float(control.mean()) if len(drawn) else float("nan"),
            "control_low": ends[0],
            "control_high": ends[1],
            "p_random": p_random,
        }
