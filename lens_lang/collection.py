"""Running a model over text once, and summing what the specs ask for.

`collect` reads corpora language by language; `collect_parallel` reads examples that are given in
several languages, all languages of an example together. With a run folder, sums are on disk every
half minute, and the same command continues where it was interrupted.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from jaxtyping import Int
from torch import Tensor

from lens_lang.batches import TokenBatch
from lens_lang.corpora import Corpora, check_fits
from lens_lang.errors import OptionError
from lens_lang.fingerprint import weights_digest
from lens_lang.parallel import TOGETHER, ParallelCorpora
from lens_lang.passes import Passes, sum_batches
from lens_lang.positions import check_everywhere
from lens_lang.run_folder import RunFolder, file_names, spec_options
from lens_lang.sites import (
    FwdHooks,
    HookedModel,
    check_hooks,
    hooked_names,
    model_name,
    preflight,
)
from lens_lang.specs import BoundSpec, ParallelSpec, ResultT, Spec
from lens_lang.storage import versions

logger = logging.getLogger(__name__)


@overload
def collect(
    model: HookedModel,
    corpora: Corpora,
    spec: Spec[ResultT],
    /,
    *,
    run_dir: str | Path | None = None,
    batch_size: int = 8,
    fwd_hooks: FwdHooks = (),
    progress: bool = True,
) -> ResultT: ...


@overload
def collect(
    model: HookedModel,
    corpora: Corpora,
    /,
    *specs: Spec[Any],
    run_dir: str | Path | None = None,
    batch_size: int = 8,
    fwd_hooks: FwdHooks = (),
    progress: bool = True,
) -> tuple[Any, ...]: ...


def collect(
    model: HookedModel,
    corpora: Corpora,
    /,
    *specs: Spec[Any],
    run_dir: str | Path | None = None,
    batch_size: int = 8,
    fwd_hooks: FwdHooks = (),
    progress: bool = True,
) -> Any:
    """Run a model over corpora once, and sum what the specs ask for.

    Args:
        model: The model. Its hooks, weights and mode are left as they are.
        corpora: The text, by language.
        *specs: What to sum, for example ``ActivationFrequency()``, ``MeanActivation()``.
        run_dir: Folder that keeps the sums while they grow and the results when they are done.
            Killed anywhere, the same call continues there and ends with the same numbers.
        batch_size: Rows per forward pass.
        fwd_hooks: Interventions under which to measure, as TransformerLens hooks.
        progress: Show a bar on stderr, in a terminal or a notebook.

    Returns:
        The spec's result; for several specs a tuple of results, in their order.

    Raises:
        SiteError: A hook point is missing, silent, or not what it seems.
        ModelError: The model is of a kind that is refused.
        ActivationError: The model produced NaN or infinity; the message names the layer.
        CorpusError: The text was tokenised for another model.
        StorageError: The run folder belongs to another run, or cannot be written.
    """
    _check_specs(specs, run_dir, fwd_hooks, Spec)
    if not isinstance(corpora, Corpora):
        raise OptionError(
            f"collect reads Corpora, got {type(corpora).__name__}: collect_parallel reads examples "
            "in several languages"
        )
    bound = [spec.bind(model) for spec in specs]
    given = corpora
    corpora, cut = _rows_for(bound, given)
    planned = corpora.n_batches(batch_size)
    empty = [lang for lang, n in planned.items() if n == 0]
    if empty:
        raise OptionError(
            f"Share {corpora.shard[0]} of {corpora.shard[1]} has no batch of {', '.join(empty)}: "
            "use fewer shares or a smaller batch_size"
        )
    sites = list(dict.fromkeys(site for spec in bound for site in spec.sites))
    preflight(model, sites)
    check_hooks(model, fwd_hooks)
    check_everywhere(fwd_hooks)
    check_fits(corpora, model.cfg)
    batches = corpora.batches(batch_size)
    text = {**corpora.describe(), **cut}
    if corpora is not given:
        # Whatever names documents means those that were given, not the rows made of them.
        batches = _numbered(batches, given.longest_first())
        text["documents of"] = given.digest
    run = _Run(model, specs, fwd_hooks, text)
    folder = run.open(run_dir, batch_size)
    passes = Passes(model, bound, sites, fwd_hooks)
    states = sum_batches(passes, batches, planned, run=folder, progress=progress)
    n_tokens = {lang: state.n_tokens for lang, state in states.items()}
    return run.keep(
        [
            spec.result(
                {lang: state.sums[position].stacked() for lang, state in states.items()}, n_tokens
            )
            for position, spec in enumerate(bound)
        ],
        run_dir,
    )


@overload
def collect_parallel(
    model: HookedModel,
    examples: ParallelCorpora,
    spec: ParallelSpec[ResultT],
    /,
    *,
    run_dir: str | Path | None = None,
    batch_size: int = 2,
    fwd_hooks: FwdHooks = (),
    progress: bool = True,
) -> ResultT: ...


@overload
def collect_parallel(
    model: HookedModel,
    examples: ParallelCorpora,
    /,
    *specs: ParallelSpec[Any],
    run_dir: str | Path | None = None,
    batch_size: int = 2,
    fwd_hooks: FwdHooks = (),
    progress: bool = True,
) -> tuple[Any, ...]: ...


def collect_parallel(
    model: HookedModel,
    examples: ParallelCorpora,
    /,
    *specs: ParallelSpec[Any],
    run_dir: str | Path | None = None,
    batch_size: int = 2,
    fwd_hooks: FwdHooks = (),
    progress: bool = True,
) -> Any:
    """Run a model once over examples that are given in several languages.

    Args:
        model: The model. Its hooks, weights and mode are left as they are.
        examples: The examples.
        *specs: What to sum, for example ``SharingPattern()``.
        run_dir: Folder that keeps the sums while they grow and the results when they are done,
            as for `collect`.
        batch_size: Examples per forward pass, each in all its languages.
        fwd_hooks: Interventions under which to measure, as TransformerLens hooks.
        progress: Show a bar on stderr, in a terminal or a notebook.

    Returns:
        The spec's result; for several specs a tuple of results, in their order.

    Raises:
        SiteError: A hook point is missing, silent, or not what it seems.
        ModelError: The model is of a kind that is refused.
        ActivationError: The model produced NaN or infinity; the message names the layer.
        CorpusError: The examples were tokenised for another model.
        StorageError: The run folder belongs to another run, or cannot be written.
        OptionError: A spec is not one for examples in several languages.
    """
    _check_specs(specs, run_dir, fwd_hooks, ParallelSpec)
    if not isinstance(examples, ParallelCorpora):
        raise OptionError(
            f"collect_parallel reads ParallelCorpora, got {type(examples).__name__}: collect reads "
            "corpora"
        )
    about = examples.about()
    bound = [spec.bind_examples(model, about) for spec in specs]
    sites = list(dict.fromkeys(site for spec in bound for site in spec.sites))
    preflight(model, sites)
    check_hooks(model, fwd_hooks)
    check_everywhere(fwd_hooks)
    check_fits(examples.by_language, model.cfg)
    run = _Run(model, specs, fwd_hooks, examples.describe())
    folder = run.open(run_dir, batch_size)
    passes = Passes(model, bound, sites, fwd_hooks)
    planned = {TOGETHER: examples.n_batches(batch_size)}
    state = sum_batches(
        passes, examples.batches(batch_size), planned, run=folder, progress=progress
    )[TOGETHER]
    return run.keep(
        [spec.result(sums.stacked()) for spec, sums in zip(bound, state.sums, strict=True)], run_dir
    )


def _check_specs(specs: Sequence[Any], run_dir: Any, fwd_hooks: FwdHooks, kind: type[Any]) -> None:
    name, example = (
        ("collect", "ActivationFrequency()")
        if kind is Spec
        else ("collect_parallel", "SharingPattern()")
    )
    if not specs:
        raise OptionError(f"{name} needs at least one spec, such as {example}")
    for spec in specs:
        if isinstance(spec, type) or not isinstance(spec, kind):
            given = spec.__name__ if isinstance(spec, type) else type(spec).__name__
            raise OptionError(f"{name} takes specs such as {example}, not {given}")
    if run_dir is not None and fwd_hooks:
        raise OptionError(
            "A run folder cannot tell one hook function from another, so it cannot resume under "
            "fwd_hooks: leave out run_dir and save the results yourself"
        )


class _Run:
    """What a run is: described in its folder, and in the provenance of its results."""

    def __init__(
        self, model: HookedModel, specs: Sequence[Any], fwd_hooks: FwdHooks, text: dict[str, Any]
    ) -> None:
        self.provenance = {
            "model": model_name(model),
            "weights": weights_digest(model),
            "corpora": text,
            "fwd_hooks": hooked_names(model, fwd_hooks),
            "versions": versions(),
        }
        self.specs = [{"spec": type(spec).__name__, **spec_options(spec)} for spec in specs]

    def open(self, run_dir: str | Path | None, batch_size: int) -> RunFolder | None:
        if run_dir is None:
            return None
        folder = RunFolder(Path(run_dir))
        folder.open({**self.provenance, "specs": self.specs, "batch_size": batch_size})
        return folder

    def keep(self, results: Sequence[Any], run_dir: str | Path | None) -> Any:
        """Say where results come from, save them, and return one alone or several."""
        told = tuple(
            replace(result, provenance={**self.provenance, "spec": spec})
            for result, spec in zip(results, self.specs, strict=True)
        )
        if run_dir is not None:
            for name, result in zip(file_names(told), told, strict=True):
                result.save(Path(run_dir) / name)
        return told[0] if len(told) == 1 else told


def _rows_for(
    specs: Sequence[BoundSpec[Any]], corpora: Corpora
) -> tuple[Corpora, dict[str, dict[str, int]]]:
    """Lay the corpora out as the specs need them; say which documents that cut or left out."""
    limits = {spec.document_tokens for spec in specs}
    if limits == {None}:
        return corpora, {}
    longest = min(limit for limit in limits if limit is not None)
    documents = corpora.one_document_a_row(max_tokens=longest)
    cut = corpora.cut_documents(max_tokens=longest)
    cut = {f"documents {what}": counts for what, counts in cut.items() if counts}
    # Whatever is counted by the token must see the rows that it was given: all of them are
    # compared, for a share of other rows may have as many.
    wholes = [replace(each, shard=(0, 1)) for each in (documents, corpora)]
    as_given = not corpora.pack and wholes[0].n_batches(1) == wholes[1].n_batches(1)
    if len(limits) > 1 and (cut or not as_given):
        raise OptionError(
            f"One spec reads whole documents of at most {longest} tokens, another any rows: "
            "collect them in two calls, or give corpora laid out with pack=False whose documents "
            "need no cutting"
        )
    for what, counts in cut.items():
        numbers = ", ".join(f"{lang} {n}" for lang, n in counts.items())
        why = f"at {longest} tokens" if what.endswith("cut") else "for having one token"
        logger.warning("%s %s: %s", what, why, numbers)
    return documents, cut


def _numbered(
    batches: Iterable[TokenBatch], numbers: Mapping[str, Int[Tensor, "_"]]
) -> Iterator[TokenBatch]:
    for batch in batches:
        yield replace(batch, documents=numbers[batch.language][batch.documents])
