"""What each intervention does to each language's perplexity, beside matched random controls.

The matrix of Tang et al. (2024): a row is what was done, a column the language that was
read. Everything is kept per document, so that every number has a paired interval. NLL is in nats
per token; bits per UTF-8 byte stand beside it, because tokenisers cut languages differently.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lens_lang.corpora import Corpora, check_fits
from lens_lang.errors import OptionError, StorageError
from lens_lang.evaluate.nll import DocumentNLL, nll_of_runs
from lens_lang.evaluate.significance import (
    bootstrap_ratio,
    holm,
    percentile_interval,
    prediction_interval,
    sign_flip_test,
)
from lens_lang.fingerprint import weights_digest
from lens_lang.intervene import matched_control
from lens_lang.languages import find_language
from lens_lang.positions import check_everywhere
from lens_lang.progress import progress_bar
from lens_lang.sites import FwdHooks, HookedModel, check_hooks, check_supported, model_name
from lens_lang.storage import read_tensors, versions, write_tensors

if TYPE_CHECKING:
    import pandas as pd

_RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class PerplexityMatrix:
    """NLL of each language's documents under each intervention, without any, and under controls.

    Attributes:
        interventions: Names of the rows.
        languages: Names of the columns.
        documents: By language; rows of ``nll`` are: no intervention, then the interventions,
            then the controls of the first, of the second, and so on. NaN where a control was
            not measured.
        n_controls: Random controls per intervention.
        provenance: Model, corpora and versions, as JSON values.
    """

    interventions: tuple[str, ...]
    languages: tuple[str, ...]
    documents: Mapping[str, DocumentNLL]
    n_controls: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def baseline_nll(self) -> Float[Tensor, "lang"]:
        """Nats per token without any intervention."""
        return torch.stack([self._per_token(lang)[0] for lang in self.languages])

    @property
    def nll(self) -> Float[Tensor, "intervention lang"]:
        """Nats per token under each intervention."""
        return self.baseline_nll + self.delta_nll

    @property
    def delta_nll(self) -> Float[Tensor, "intervention lang"]:
        """Change of nats per token: above 0, the intervention hurts the language."""
        last = 1 + len(self.interventions)
        per_lang = [
            self._per_token(lang)[1:last] - self._per_token(lang)[0] for lang in self.languages
        ]
        return torch.stack(per_lang, dim=1)

    @property
    def perplexity(self) -> Float[Tensor, "intervention lang"]:
        """exp(nll): tokens are averaged, then exponentiated."""
        return self.nll.exp()

    @property
    def bits_per_byte(self) -> Float[Tensor, "intervention lang"]:
        """Bits per UTF-8 byte under each intervention; NaN where bytes are unknown."""
        return self.nll * self._bits_per_byte_of_nats()

    @property
    def baseline_bits_per_byte(self) -> Float[Tensor, "lang"]:
        """Bits per UTF-8 byte without any intervention."""
        return self.baseline_nll * self._bits_per_byte_of_nats()

    @property
    def delta_bits_per_byte(self) -> Float[Tensor, "intervention lang"]:
        """Change of bits per UTF-8 byte."""
        return self.delta_nll * self._bits_per_byte_of_nats()

    @cached_property
    def ci(self) -> Float[Tensor, "intervention lang 2"]:
        """95 % interval of `delta_nll`, by paired bootstrap over documents."""
        return self.interval()

    @property
    def control(self) -> Float[Tensor, "intervention lang"]:
        """Mean change of nats per token under the intervention's random controls."""
        rows = [self._control_deltas(lang).mean(1) for lang in self.languages]
        return torch.stack(rows, dim=1)

    @cached_property
    def control_ci(self) -> Float[Tensor, "intervention lang 2"]:
        """Where the effect of one more random set lies with 95 % probability."""
        return self.control_interval()

    @property
    def p(self) -> Float[Tensor, "intervention lang"]:
        """How likely such a change is if documents change either way as easily.

        See `lens_lang.evaluate.significance.sign_flip_test`; not corrected for the languages.
        """
        return self._p_values[0]

    @property
    def p_beyond(self) -> Float[Tensor, "intervention lang"]:
        """The same of the change less the mean change under the intervention's random controls.

        Without controls, of the change alone. NaN where the controls were not measured.
        """
        return self._p_values[1]

    @cached_property
    def _p_values(self) -> Float[Tensor, "2 intervention lang"]:
        """The p of the change, and of what it is beyond its controls, from the same flips."""
        columns = []
        for lang in self.languages:
            nll = self.documents[lang].nll
            off = nll[1 : 1 + len(self.interventions)]
            control = self._control_rows(lang).mean(1) if self.n_controls else nll[0]
            columns.append(sign_flip_test(torch.stack([off - nll[0], off - control])))
        return torch.stack(columns, dim=-1)

    def interval(
        self, *, level: float = 0.95, resamples: int = _RESAMPLES, seed: int = 0
    ) -> Float[Tensor, "intervention lang 2"]:
        """Return intervals of `delta_nll`: documents are drawn again, in pairs.

        NaN for a language of which fewer than two documents have a scored token: one document
        says nothing of others.

        Args:
            level: Probability to cover.
            resamples: Number of resamples.
            seed: Of the resampling.
        """
        columns = []
        for lang in self.languages:
            generator = torch.Generator().manual_seed(seed)
            resampled = bootstrap_ratio(
                self._changes(lang),
                self.documents[lang].n_tokens.double(),
                resamples=resamples,
                generator=generator,
            )
            columns.append(percentile_interval(resampled, level=level))
        return torch.stack(columns, dim=1)

    def control_interval(
        self, *, level: float = 0.95, resamples: int = _RESAMPLES, seed: int = 0
    ) -> Float[Tensor, "intervention lang 2"]:
        """Return where the effect of one more random set of neurons is expected.

        What an intervention has to leave behind to be more than chance: a prediction interval
        over the random sets that were drawn, widened by the choice of documents. NaN where
        `interval` is.

        Args:
            level: Probability to cover.
            resamples: Number of resamples.
            seed: Of the resampling.
        """
        columns = []
        for lang in self.languages:
            generator = torch.Generator().manual_seed(seed)
            docs = self.documents[lang]
            resampled = bootstrap_ratio(
                (self._control_rows(lang) - docs.nll[0]).mean(1),
                docs.n_tokens.double(),
                resamples=resamples,
                generator=generator,
            )
            draws = self._control_deltas(lang)
            columns.append(prediction_interval(draws, resampled.std(-1), level=level))
        return torch.stack(columns, dim=1)

    def selectivity(self) -> "pd.DataFrame":
        """Judge every intervention named after a language: does it hurt its own, and only it?

        Returns:
            One row per such language: ``own`` change in nats per token with its interval,
            ``others``: the mean change of the other languages, ``selectivity``: own - others
            with its interval, ``rival``: the intervention of another language that hurts this
            one most and its change, ``control`` with its interval, ``ratio``: own / |control|.
            ``p``: how likely own less the mean control (own, where there are no controls) is so
            far from 0 if it had either sign as easily in every document, by a sign-flip test;
            ``p_holm``: corrected over the languages by Holm's method; both speak of other
            documents, and the control's interval of other random sets.
            ``specific``: no rival hurts the language as much; ``beyond_chance``: own is at least
            five times the mean control, and its interval lies above the control's;
            ``fair_control``: the control's interval covers zero, or stays within 0.02 nats of
            it.
        """
        import pandas as pd

        own = [lang for lang in self.interventions if lang in self.languages]
        places = [(self.interventions.index(lang), self.languages.index(lang)) for lang in own]
        p = torch.tensor([float(self.p_beyond[place]) for place in places], dtype=torch.float64)
        rows = [
            self._judge(*place, p=each, p_holm=corrected)
            for place, each, corrected in zip(places, p.tolist(), holm(p).tolist(), strict=True)
        ]
        return pd.DataFrame(rows).set_index("language") if rows else pd.DataFrame()

    def to_frame(self) -> "pd.DataFrame":
        """Return everything that was measured.

        Returns:
            One row per intervention and language: ``delta_nll``, the change in nats per token,
            with its 95 % interval; ``p``, how likely such a change is if documents change either
            way as easily, by a sign-flip test, and ``p_holm``, corrected over the languages of
            the intervention by Holm's method; ``control``, the mean change under random controls,
            with where one more would lie; ``nll`` and ``perplexity`` under the intervention; and
            ``delta_bits_per_byte``.
        """
        import pandas as pd

        p = self.p
        p_holm = [holm(row) for row in p]
        delta, ci, nll, bits = self.delta_nll, self.ci, self.nll, self.delta_bits_per_byte
        control, control_ci = self.control, self.control_ci
        return pd.DataFrame(
            [
                {
                    "intervention": intervention,
                    "language": lang,
                    "delta_nll": float(delta[i, j]),
                    "ci_low": float(ci[i, j, 0]),
                    "ci_high": float(ci[i, j, 1]),
                    "p": float(p[i, j]),
                    "p_holm": float(p_holm[i][j]),
                    "control": float(control[i, j]),
                    "control_low": float(control_ci[i, j, 0]),
                    "control_high": float(control_ci[i, j, 1]),
                    "nll": float(nll[i, j]),
                    "perplexity": float(nll[i, j].exp()),
                    "delta_bits_per_byte": float(bits[i, j]),
                }
                for i, intervention in enumerate(self.interventions)
                for j, lang in enumerate(self.languages)
            ]
        )

    def __repr__(self) -> str:
        tokens = ", ".join(
            f"{lang} {int(docs.n_tokens.sum()):,}" for lang, docs in self.documents.items()
        )
        return (
            f"PerplexityMatrix({len(self.interventions)} interventions with {self.n_controls} "
            f"controls each; tokens scored: {tokens})"
        )

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file."""
        header = {
            "interventions": list(self.interventions),
            "languages": list(self.languages),
            "n_controls": self.n_controls,
            "provenance": dict(self.provenance),
        }
        tensors = {
            f"{lang}.{name}": getattr(docs, name)
            for lang, docs in self.documents.items()
            for name in ("nll", "n_tokens", "n_bytes")
        }
        write_tensors(path, type(self).__name__, header, tensors)

    @classmethod
    def load(cls, path: str | Path) -> "PerplexityMatrix":
        """Read what `save` wrote."""
        _, header, tensors = read_tensors(path, cls.__name__)
        try:
            documents = {
                lang: DocumentNLL(*(tensors[f"{lang}.{x}"] for x in ("nll", "n_tokens", "n_bytes")))
                for lang in header["languages"]
            }
            return cls(
                tuple(header["interventions"]),
                tuple(header["languages"]),
                documents,
                int(header["n_controls"]),
                header["provenance"],
            )
        except (KeyError, TypeError) as error:
            raise StorageError(f"{path} is damaged: {error} is missing or malformed") from error

    def _per_token(self, lang: str) -> Float[Tensor, "run"]:
        docs = self.documents[lang]
        return docs.nll.sum(1) / docs.n_tokens.sum()

    def _control_rows(self, lang: str) -> Float[Tensor, "intervention control doc"]:
        first = 1 + len(self.interventions)
        rows = self.documents[lang].nll[first:]
        return rows.view(len(self.interventions), self.n_controls, rows.shape[1])

    def _control_deltas(self, lang: str) -> Float[Tensor, "intervention control"]:
        docs = self.documents[lang]
        change = self._control_rows(lang) - docs.nll[0]
        return change.sum(-1) / docs.n_tokens.sum()

    def _changes(self, lang: str) -> Float[Tensor, "intervention doc"]:
        nll = self.documents[lang].nll
        return nll[1 : 1 + len(self.interventions)] - nll[0]

    def _bits_per_byte_of_nats(self) -> Float[Tensor, "lang"]:
        factors = []
        for lang in self.languages:
            docs = self.documents[lang]
            n_bytes = docs.n_bytes.sum() if bool((docs.n_bytes > 0).all()) else torch.nan
            factors.append(docs.n_tokens.sum() / (n_bytes * torch.tensor(2.0).log()))
        return torch.stack(factors).double()

    def _judge(self, row: int, column: int, *, p: float, p_holm: float) -> dict[str, Any]:
        delta, ci = self.delta_nll, self.ci
        own = float(delta[row, column])
        others = [j for j in range(len(self.languages)) if j != column]
        rivals = {
            name: float(delta[i, column])
            for i, name in enumerate(self.interventions)
            if i != row and name in self.languages
        }
        rival = max(rivals, key=rivals.__getitem__) if rivals else ""
        low, high = self._selectivity_interval(row, column)
        control = float(self.control[row, column])
        control_low, control_high = self.control_ci[row, column].tolist()
        rival_change = rivals.get(rival, float("nan"))
        return {
            "language": self.languages[column],
            "own": own,
            "own_low": float(ci[row, column, 0]),
            "own_high": float(ci[row, column, 1]),
            "others": float(delta[row, others].mean()) if others else float("nan"),
            "selectivity": own - float(delta[row, others].mean()) if others else float("nan"),
            "selectivity_low": low,
            "selectivity_high": high,
            "rival": rival,
            "rival_change": rival_change,
            "control": control,
            "control_low": control_low,
            "control_high": control_high,
            "ratio": own / abs(control) if control else float("nan"),
            "p": p,
            "p_holm": p_holm,
            "specific": own > max(rivals.values(), default=0.0) and own > 0,
            "beyond_chance": own >= 5 * abs(control) and float(ci[row, column, 0]) > control_high,
            "fair_control": control_low <= 0 <= control_high
            or max(abs(control_low), abs(control_high)) <= 0.02,
        }

    def _selectivity_interval(self, row: int, column: int) -> tuple[float, float]:
        if len(self.languages) < 2:
            return float("nan"), float("nan")
        own = self._resampled[column, row]
        others = torch.cat([self._resampled[:column, row], self._resampled[column + 1 :, row]])
        low, high = percentile_interval(own - others.mean(0)).tolist()
        return low, high

    @cached_property
    def _resampled(self) -> Float[Tensor, "lang intervention resample"]:
        """Languages have their own documents, so each is resampled by itself."""
        return torch.stack(
            [
                bootstrap_ratio(
                    self._changes(lang),
                    self.documents[lang].n_tokens.double(),
                    resamples=_RESAMPLES,
                    generator=torch.Generator().manual_seed(number),
                )
                for number, lang in enumerate(self.languages)
            ]
        )


def perplexity_matrix(
    model: HookedModel,
    corpora: Corpora,
    interventions: Mapping[str, FwdHooks],
    *,
    controls: int = 0,
    control_on: Literal["all", "own"] = "all",
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = True,
) -> PerplexityMatrix:
    """Measure every language's NLL under every intervention, and under random controls.

    Documents are read one a row, after BOS if the corpora have one, whatever way the corpora lay
    out their rows for counting. Use text that the neurons were not found on.

    Args:
        model: The model.
        corpora: Held-out text, by language.
        interventions: Hooks by name; an intervention named after a language is judged on it by
            `PerplexityMatrix.selectivity`. No hooks at all change nothing and cost nothing.
        controls: Random controls per intervention: the same edits on as many other neurons of
            the same layers (see `lens_lang.intervene.matched_control`).
        control_on: Measure controls on ``"all"`` languages, or only on the intervention's
            ``"own"`` where it is named after one: as many times faster as there are languages.
        seed: Of the controls' random neurons.
        batch_size: Documents per forward pass.
        progress: Show a bar on stderr, in a terminal or a notebook.

    Returns:
        The matrix, with every document's NLL.

    Raises:
        SiteError: A hook's name is unknown.
        ShapeError: Neurons belong to another model.
        CorpusError: A language has no token to score.
        ActivationError: The model produced NaN or infinity.
    """
    if controls < 0:
        raise OptionError(f"controls must be at least 0, got {controls}")
    if control_on not in ("all", "own"):
        raise OptionError(f"control_on must be all or own, got {control_on!r}")
    if not isinstance(interventions, Mapping):
        raise OptionError(
            "interventions are hooks by name, such as {lang: ablate(some) for lang, some in "
            f"neurons.items()}}, got {type(interventions).__name__}"
        )
    for hooks in interventions.values():
        check_hooks(model, hooks)
        check_everywhere(hooks)
    check_supported(model)
    corpora = corpora.laid_out(pack=False)
    check_fits(corpora, model.cfg)
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: [matched_control(hooks, generator=generator) for _ in range(controls)]
        for name, hooks in interventions.items()
    }
    plan: dict[str, list[FwdHooks | None]] = {}
    for lang in corpora.languages:
        runs: list[FwdHooks | None] = [[], *interventions.values()]
        for name, control_hooks in drawn.items():
            own = _same_language(name, lang, corpora.languages)
            runs += [hooks if own or control_on == "all" else None for hooks in control_hooks]
        plan[lang] = runs
    total = sum(len(_distinct(runs)) for runs in plan.values())
    documents = {}
    with progress_bar(progress, total=total, unit="run", label="perplexity") as bar:
        for lang, runs in plan.items():
            bar.set_postfix_str(lang, refresh=False)
            documents[lang] = nll_of_runs(
                model, corpora[lang], runs, batch_size=batch_size, after_run=bar.update
            )
    provenance = {
        "model": model_name(model),
        "weights": weights_digest(model),
        "corpora": corpora.describe(),
        "interventions": {
            name: [f"{hook}: {fn!r}" for hook, fn in hooks] for name, hooks in interventions.items()
        },
        "control_on": control_on,
        "seed": seed,
        "versions": versions(),
    }
    return PerplexityMatrix(
        tuple(interventions), corpora.languages, documents, controls, provenance
    )


def _same_language(name: str, lang: str, languages: Sequence[str]) -> bool:
    """Whether the control's own language is `lang`; a name that is no language owns them all."""
    if name not in languages:
        return True
    return find_language(name, languages) == list(languages).index(lang)


def _distinct(runs: Sequence[FwdHooks | None]) -> list[FwdHooks]:
    """The runs that need a forward pass: the baseline, and those that have hooks."""
    return [[], *(hooks for hooks in runs[1:] if hooks)]
