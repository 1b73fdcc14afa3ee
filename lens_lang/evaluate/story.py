"""What each region's neurons do to each task: English against the other languages.

The tables of Zhao et al. (2024), section 4, with intervals and random neurons: English, the
others, their changes, and the difference of the changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_lang.errors import StorageError
from lens_lang.evaluate.significance import (
    bootstrap_ratio,
    holm,
    percentile_interval,
    prediction_test,
    sign_flip_test,
)
from lens_lang.evaluate.task_scores import HITS, TaskMatrix
from lens_lang.storage import read_tensors, write_tensors

if TYPE_CHECKING:
    import pandas as pd

PIVOT = "en"
"""The language that the others are compared with."""

_RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class MWork:
    """What each region's neurons do to each task, in English and in the other languages.

    Attributes:
        matrices: By task, without its spaces; an intervention called ``"U+G de"`` switches off
            German's neurons of understanding and generation, and was tested in German and English.
        settings: By task, what was switched off.
        regions: The layers of each region.
        provenance: Neurons and regions, as JSON values.

    Examples:
        The difference of the changes, beside random neurons::

            result = lens_lang.mwork(model, neurons, [lens_lang.read_task("xquad")])
            result.to_frame()[["task", "off", "neurons", "delta", "delta_low", "delta_high"]]
    """

    matrices: Mapping[str, TaskMatrix]
    settings: Mapping[str, tuple[str, ...]]
    regions: Mapping[str, tuple[int, ...]]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self, metric: str | None = None) -> "pd.DataFrame":
        """Return the paper's tables 2 to 5, with intervals: one row per task, setting and neurons.

        Args:
            metric: Such as ``"log_probability"``, which all tasks have; None takes each task's
                main one.

        Returns:
            ``off``: regions (U understanding, A attention and F MLPs that solve the task, G
            generation). ``neurons``: the languages' own, or random ones. ``english``: the mean over
            languages of English under that language's neurons; ``others``: the mean over languages
            of each under its own. ``d_english`` and ``d_others``: their changes; ``delta``:
            d_english - d_others, which is above 0 if English is spared. Each with a 95 % interval
            by bootstrap over items, drawn together where they are aligned (NaN where no item
            changed). ``p``: of a paired permutation test that delta is 0; ``p_others``: that the
            others' change is; ``p_random`` and ``p_random_others``: how probable it is that one
            more random set for every language would do as much (Student's t over the draws; NaN
            for fewer than two). All four corrected after Holm over settings and tasks, with
            ``_holm`` behind their names.
        """
        import pandas as pd

        rows = []
        for task, matrix in self.matrices.items():
            for setting in self.settings[task]:
                story = _Story(matrix, setting, metric)
                rows += story.rows()
        frame = pd.DataFrame(rows)
        for name in ("p", "p_others", "p_random", "p_random_others"):
            adjusted = holm(torch.tensor(frame[name].tolist(), dtype=torch.float64))
            frame.insert(list(frame).index(name) + 1, f"{name}_holm", adjusted.tolist())
        return frame

    def by_language(self, metric: str | None = None) -> "pd.DataFrame":
        """Return every language by itself, as in the paper's appendix.

        Args:
            metric: As in `to_frame`.

        Returns:
            One row per task, setting, neurons and language: its score and English's under its
            neurons, their scores before, and the difference of the changes.
        """
        import pandas as pd

        rows = []
        for task, matrix in self.matrices.items():
            for setting in self.settings[task]:
                story = _Story(matrix, setting, metric)
                for kind in story.kinds:
                    for lang in story.others:
                        own, english = (
                            story.scores(kind, lang, lang),
                            story.scores(kind, lang, PIVOT),
                        )
                        before = story.before(lang), story.before(PIVOT)
                        rows.append(
                            {
                                "task": task,
                                "off": setting,
                                "neurons": kind,
                                "language": lang,
                                "before": float(before[0].mean()),
                                "score": float(own.mean()),
                                "english_before": float(before[1].mean()),
                                "english": float(english.mean()),
                                "delta": float(
                                    (english - before[1]).mean() - (own - before[0]).mean()
                                ),
                            }
                        )
        return pd.DataFrame(rows)

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file.

        Raises:
            StorageError: The file cannot be written.
        """
        header = {
            "settings": dict(self.settings),
            "regions": dict(self.regions),
            "provenance": dict(self.provenance),
            "matrices": {task: each.header() for task, each in self.matrices.items()},
        }
        tensors = {
            f"{task}.{lang}": scores
            for task, each in self.matrices.items()
            for lang, scores in each.scores.items()
        }
        write_tensors(path, type(self).__name__, header, tensors)

    @classmethod
    def load(cls, path: str | Path) -> "MWork":
        """Read what `save` wrote.

        Raises:
            StorageError: The file is missing, damaged, or holds something else.
        """
        _, header, tensors = read_tensors(path, cls.__name__)
        try:
            matrices = {}
            for task, about in header["matrices"].items():
                mine = {
                    key.removeprefix(f"{task}."): value
                    for key, value in tensors.items()
                    if key.startswith(f"{task}.")
                }
                matrices[task] = TaskMatrix.from_header(about, mine, str(path))
            return cls(
                matrices,
                {task: tuple(each) for task, each in header["settings"].items()},
                {name: tuple(each) for name, each in header["regions"].items()},
                header["provenance"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise StorageError(f"{path} is damaged: {error} is missing or malformed") from error

    def __repr__(self) -> str:
        tried = "; ".join(f"{task} {', '.join(each)}" for task, each in self.settings.items())
        return f"MWork({tried})"


class _Story:
    """One setting of one task: English against the others, own neurons against random ones."""

    def __init__(self, matrix: TaskMatrix, setting: str, metric: str | None) -> None:
        self.matrix, self.setting, self.metric = matrix, setting, metric
        self.others = [
            lang for lang in matrix.languages if f"{setting} {lang}" in matrix.interventions
        ]
        self.kinds = ("own", *(["random"] if matrix.n_controls else []))

    def before(self, lang: str) -> Float[Tensor, "item"]:
        return self.matrix.of(lang, self.metric)[0]

    def scores(self, kind: str, off: str, tested: str) -> Float[Tensor, "item"]:
        """Items of a language, with another's neurons off; random ones on average."""
        if kind == "random":
            return self._draws(off, tested).mean(0)
        run = 1 + self.matrix.interventions.index(f"{self.setting} {off}")
        return self.matrix.of(tested, self.metric)[run]

    def english_change(self, kind: str) -> Float[Tensor, "item"]:
        """Of English, over the languages: differences first, so that no change is exactly none."""
        before = self.before(PIVOT)
        changes = [self.scores(kind, lang, PIVOT) - before for lang in self.others]
        return torch.stack(changes).mean(0)

    def rows(self) -> list[dict[str, Any]]:
        found = []
        for kind in self.kinds:
            others = {x: self.scores(kind, x, x) for x in self.others}
            changes = {PIVOT: self.english_change(kind)}
            changes |= {lang: scores - self.before(lang) for lang, scores in others.items()}
            row: dict[str, Any] = {
                "task": self.matrix.task,
                "metric": self.metric or self.matrix.metrics[0],
                "off": self.setting,
                "neurons": kind,
                "english": float((self.before(PIVOT) + changes[PIVOT]).mean()),
                "others": sum(float(each.mean()) for each in others.values()) / len(others),
            }
            resampled = self._resampled(changes)
            values = {
                "d_english": float(changes[PIVOT].mean()),
                "d_others": sum(float(changes[x].mean()) for x in others) / len(others),
            }
            values["delta"] = values["d_english"] - values["d_others"]
            for name, value in values.items():
                low, high = percentile_interval(resampled[name]).tolist()
                if value == 0 and float(resampled[name].std()) == 0:
                    # No item changed, and drawing the same ones again is no news.
                    low = high = float("nan")
                row |= {name: value, f"{name}_low": low, f"{name}_high": high}
            found.append(row | self._tests(kind, changes))
        return found

    def _tests(self, kind: str, changes: Mapping[str, Tensor]) -> dict[str, float]:
        """Test delta and the others' change: against no change, and against random neurons."""
        names = ("p", "p_others", "p_random", "p_random_others")
        if kind == "random":
            return dict.fromkeys(names, float("nan"))
        # One sign for all translations of an item: they are no independent witnesses.
        parts: dict[tuple[str, str], float] = {}
        others: dict[tuple[str, str], float] = {}
        for lang, change in changes.items():
            weight = 1 / len(change) / (1 if lang == PIVOT else -len(self.others))
            for name, value in zip(self.matrix.names[lang], change.tolist(), strict=True):
                key = (name, "" if self._aligned else lang)
                parts[key] = parts.get(key, 0.0) + weight * value
                if lang != PIVOT:
                    others[key] = others.get(key, 0.0) - weight * value
        flipped = [
            float(sign_flip_test(torch.tensor(list(each.values()), dtype=torch.float64)))
            for each in (parts, others)
        ]
        return dict(zip(names, [*flipped, *self._against_random(changes)], strict=True))

    def _against_random(self, changes: Mapping[str, Tensor]) -> tuple[float, float]:
        """How probable it is that one more random set per language would do as much."""
        if "random" not in self.kinds:
            return float("nan"), float("nan")
        drawn = {
            PIVOT: torch.stack([self._draws(lang, PIVOT) for lang in self.others]).mean(0),
            **{lang: self._draws(lang, lang) for lang in self.others},
        }
        means = {lang: (each - self.before(lang)).mean(1) for lang, each in drawn.items()}
        theirs = torch.stack([means[lang] for lang in self.others]).mean(0)
        apart = {
            lang: change - (drawn[lang].mean(0) - self.before(lang))
            for lang, change in changes.items()
        }
        resampled = self._resampled(apart)
        judged = self.metric or self.matrix.metrics[0]
        # Where all items are alike, the next one may still differ.
        least = 0.5 / len(changes[PIVOT]) if judged in HITS else 0.0
        mine = {lang: float(change.mean()) for lang, change in changes.items()}
        others = sum(mine[lang] for lang in self.others) / len(self.others)
        return (
            prediction_test(
                mine[PIVOT] - others,
                means[PIVOT] - theirs,
                max(float(resampled["delta"].std()), least),
            ),
            prediction_test(others, theirs, max(float(resampled["d_others"].std()), least)),
        )

    def _draws(self, off: str, tested: str) -> Float[Tensor, "draw item"]:
        run = 1 + self.matrix.interventions.index(f"{self.setting} {off}")
        return self.matrix.controls(run, tested, self.metric)

    @property
    def _aligned(self) -> bool:
        return len({self.matrix.names[lang] for lang in (PIVOT, *self.others)}) == 1

    def _resampled(self, changes: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "resample"]]:
        means = {}
        for number, (lang, change) in enumerate(changes.items()):
            seed = 0 if self._aligned else number
            generator = torch.Generator().manual_seed(seed)
            each = torch.ones(len(change), dtype=torch.float64)
            means[lang] = bootstrap_ratio(change, each, resamples=_RESAMPLES, generator=generator)
        english = means[PIVOT]
        others = torch.stack([means[lang] for lang in self.others]).mean(0)
        return {"d_english": english, "d_others": others, "delta": english - others}
