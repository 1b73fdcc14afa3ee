"""The one loop that runs a model over corpora and sums what the specs ask for.

One forward pass feeds all specs, stops after the last layer they need, and leaves nothing
behind but sums. With a run folder, those sums are on disk every half minute, and the same
command continues where it was interrupted.
"""

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lens_lang.corpora import Corpora, TokenBatch, check_fits
from lens_lang.errors import ActivationError, OptionError, StorageError
from lens_lang.sites import (
    FwdHooks,
    HookedModel,
    Site,
    check_hooks,
    has_neurons,
    hooked_names,
    model_name,
    n_layers,
    preflight,
    run_until,
)
from lens_lang.specs import BoundSpec, Reading, ResultT, Spec, Sums
from lens_lang.storage import (
    read_json,
    read_tensors,
    remove_leftovers,
    versions,
    write_json,
    write_tensors,
)

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_SAVES = 30.0
_RUN_FILE = "run.json"


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
        progress: Show a bar on stderr when that is a terminal.

    Returns:
        The spec's result; for several specs a tuple of results, in their order.

    Raises:
        SiteError: A hook point is missing, silent, or not what it seems.
        ModelError: The model is of a kind that is refused.
        ActivationError: The model produced NaN or infinity; the message names the layer.
        CorpusError: The text was tokenised for another model.
        StorageError: The run folder belongs to another run, or cannot be written.
    """
    if not specs:
        raise OptionError("collect needs at least one spec, such as ActivationFrequency()")
    if run_dir is not None and fwd_hooks:
        raise OptionError(
            "A run folder cannot tell one hook function from another, so it cannot resume under "
            "fwd_hooks: leave out run_dir and save the results yourself"
        )
    bound = [spec.bind(model) for spec in specs]
    corpora, cut = _rows_for(bound, corpora)
    sites = list(dict.fromkeys(site for spec in bound for site in spec.sites))
    preflight(model, sites)
    check_hooks(model, fwd_hooks)
    check_fits(corpora, model.cfg)
    provenance = {
        "model": model_name(model),
        "weights": weights_digest(model),
        "corpora": {**corpora.describe(), **cut},
        "fwd_hooks": hooked_names(model, fwd_hooks),
        "versions": versions(),
    }
    described = [{"spec": type(spec).__name__, **_options(spec)} for spec in specs]
    run = None
    if run_dir is not None:
        run = _RunFolder(Path(run_dir))
        run.open({**provenance, "specs": described, "batch_size": batch_size})
    passes = _Passes(model, bound, sites, fwd_hooks)
    states = _collect_languages(passes, corpora, batch_size, run, progress)
    sums = [
        {lang: state.sums[position].stacked() for lang, state in states.items()}
        for position in range(len(specs))
    ]
    n_tokens = {lang: state.n_tokens for lang, state in states.items()}
    results = tuple(
        replace(spec.result(held, n_tokens), provenance={**provenance, "spec": described[position]})
        for position, (spec, held) in enumerate(zip(bound, sums, strict=True))
    )
    if run_dir is not None:
        for name, result in zip(_file_names(results), results, strict=True):
            result.save(Path(run_dir) / name)
    return results[0] if len(results) == 1 else results


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
    # Whatever is counted by the token must see the rows that it was given.
    as_given = not corpora.pack and documents.n_batches(1) == corpora.n_batches(1)
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


def _file_names(results: Sequence[Any]) -> list[str]:
    """``frequency.safetensors``, or ``frequency-2.safetensors`` for a second one."""
    names: list[str] = []
    for result in results:
        kind = type(result).__name__.lower()
        earlier = sum(name.split(".")[0].split("-")[0] == kind for name in names)
        names.append(f"{kind}-{earlier + 1}.safetensors" if earlier else f"{kind}.safetensors")
    return names


def weights_digest(model: HookedModel) -> str:
    """Return a fingerprint of a model's weights: a few numbers of every parameter, hashed.

    Tells one checkpoint from another; does not see every edit of a single weight.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():  # type: ignore[attr-defined]
        few = parameter.detach().flatten()[:16].to("cpu", torch.float32)
        digest.update(name.encode() + str(tuple(parameter.shape)).encode())
        digest.update(few.numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass
class _State:
    """Sums of one language, one accumulator per spec, and how far they reach."""

    sums: list[Sums]
    n_tokens: int = 0
    n_batches: int = 0


class _Passes:
    """Forward passes whose activations go to the specs and nowhere else."""

    def __init__(
        self,
        model: HookedModel,
        specs: Sequence[BoundSpec[Any]],
        sites: Sequence[Site],
        fwd_hooks: FwdHooks,
    ) -> None:
        self.model, self.specs, self.sites, self.fwd_hooks = model, specs, sites, fwd_hooks

    def sum(self, batch: TokenBatch) -> tuple[list[Sums], int]:
        """Run one batch; return every spec's sums and how many tokens they cover."""
        sums = [Sums() for _ in self.specs]
        totals: dict[tuple[int, str], Tensor] = {}
        values: dict[int, dict[Site, Tensor]] = {}

        def read(activations: Tensor, hook: Any, site: Site, layer: int) -> None:
            held = values.setdefault(layer, {})
            held[site] = activations
            if len(held) < len(self.sites):
                return
            reading = Reading(layer, values.pop(layer), batch.mask, batch.tokens, batch.language)
            for each in filter(has_neurons, self.sites):
                # One number per layer shows NaN and infinity, for a hundredth of its time.
                totals[layer, each.name] = reading.tokens(each).sum(dtype=torch.float32)
            for spec, mine in zip(self.specs, sums, strict=True):
                spec.update(mine, reading)

        readers = [
            (site.at(layer), partial(read, site=site, layer=layer))
            for layer in range(n_layers(self.model))
            for site in self.sites
        ]
        run_until(
            self.model,
            batch.tokens,
            attention_mask=batch.attention_mask,
            fwd_hooks=self.fwd_hooks,
            readers=readers,
        )
        _check_finite(self.model, totals, batch.language)
        return sums, int(batch.mask.sum())


def _check_finite(model: HookedModel, totals: Mapping[tuple[int, str], Tensor], lang: str) -> None:
    for (layer, site), total in sorted(totals.items()):
        if not torch.isfinite(total):
            raise ActivationError(
                f"{model_name(model)} produced NaN or infinity in layer {layer} at {site} on text "
                f"of {lang!r}. What was summed before is kept; half precision often needs "
                "bfloat16 or float32 instead of float16"
            )


def _collect_languages(
    passes: _Passes, corpora: Corpora, batch_size: int, run: "_RunFolder | None", progress: bool
) -> dict[str, _State]:
    planned = corpora.n_batches(batch_size)
    empty = [lang for lang, n in planned.items() if n == 0]
    if empty:
        raise OptionError(
            f"Share {corpora.shard[0]} of {corpora.shard[1]} has no batch of {', '.join(empty)}: "
            "use fewer shares or a smaller batch_size"
        )
    states = {
        lang: (run.read(lang) if run else None) or _State([Sums() for _ in passes.specs])
        for lang in corpora.languages
    }
    resumed = sum(state.n_batches for state in states.values())
    if resumed:
        logger.info("resuming after %d of %d batches", resumed, sum(planned.values()))
    seen = dict.fromkeys(states, 0)
    saved_at = time.monotonic()
    bar = tqdm(
        total=sum(planned.values()),
        initial=resumed,
        unit="batch",
        desc="collect",
        disable=None if progress else True,
    )
    current = corpora.languages[0]
    try:
        for batch in corpora.batches(batch_size):
            current = batch.language
            state = states[current]
            seen[current] += 1
            if seen[current] <= state.n_batches:
                continue
            # Sums change only after the whole batch went well: an interruption loses one batch.
            sums, counted = passes.sum(batch)
            for total, part in zip(state.sums, sums, strict=True):
                total.merge(part)
            state.n_tokens += counted
            state.n_batches += 1
            bar.set_postfix_str(current, refresh=False)
            bar.update()
            done = state.n_batches == planned[current]
            if run and (done or time.monotonic() - saved_at > _SECONDS_BETWEEN_SAVES):
                run.write(current, state)
                saved_at = time.monotonic()
    except BaseException:  # Ctrl-C included: keep what was summed, then let it through
        if run and states[current].n_batches:
            run.write(current, states[current])
        raise
    finally:
        bar.close()
    return states


class _RunFolder:
    """A folder with a description of the run and one file of sums per language."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, description: Mapping[str, Any]) -> None:
        """Begin a run, or check that the one begun here is the same.

        Raises:
            StorageError: It is another one; the message says in what.
        """
        file = self.path / _RUN_FILE
        if not file.exists():
            write_json(file, description)
            return
        remove_leftovers(self.path)
        begun = read_json(file)
        differences = [
            f"{key} was {before!r} and is now {now!r}"
            for key, before, now in _differences(begun, dict(description))
            if key.split(".")[0] != "versions"
        ]
        if differences:
            raise StorageError(
                f"{self.path} holds another run: {'; '.join(differences[:4])}. Use another "
                "folder, or the options of before"
            )

    def write(self, lang: str, state: _State) -> None:
        header = {"language": lang, "n_tokens": state.n_tokens, "n_batches": state.n_batches}
        tensors = {
            f"{position}.{name}": value
            for position, sums in enumerate(state.sums)
            for name, value in sums.stacked().items()
        }
        write_tensors(self._file(lang), "Sums", header, tensors)

    def read(self, lang: str) -> _State | None:
        if not self._file(lang).exists():
            return None
        _, header, tensors = read_tensors(self._file(lang), "Sums")
        by_spec: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            position, name = key.split(".", 1)
            by_spec.setdefault(int(position), {})[name] = value
        sums = [Sums.unstacked(by_spec[position]) for position in sorted(by_spec)]
        return _State(sums, int(header["n_tokens"]), int(header["n_batches"]))

    def _file(self, lang: str) -> Path:
        return self.path / "sums" / f"{lang}.safetensors"


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for key in {**before, **now}:
        left, right = before.get(key), now.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found += _differences(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append((f"{prefix}{key}", left, right))
    return found


def _options(spec: Spec[Any]) -> dict[str, Any]:
    """A spec's options as JSON values: sites by their names, tables by their fingerprints."""

    def plain(value: Any) -> Any:
        if isinstance(value, Site):
            return value.name
        if hasattr(value, "digest"):
            return value.digest
        if isinstance(value, Mapping):
            return {key: plain(each) for key, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, tuple | list) else value

    return {option.name: plain(getattr(spec, option.name)) for option in fields(spec)}
