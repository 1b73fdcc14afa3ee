"""Forward passes whose activations go to statistics and nowhere else.

One pass feeds all specs and stops after the last layer they need. Sums are replaced, all at once,
only after a whole batch went well, so that an interruption loses one batch and counts nothing
twice.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lens_lang.batches import TokenBatch
from lens_lang.errors import ActivationError
from lens_lang.parallel import TOGETHER
from lens_lang.progress import progress_bar
from lens_lang.run_folder import RunFolder, RunState
from lens_lang.sites import (
    FwdHooks,
    HookedModel,
    Site,
    has_neurons,
    model_name,
    n_layers,
    run_until,
)
from lens_lang.specs import BoundParallelSpec, BoundSpec, Reading, Sums

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_SAVES = 30.0


class Passes:
    """Forward passes whose activations go to the specs and nowhere else."""

    def __init__(
        self,
        model: HookedModel,
        specs: Sequence[BoundSpec[Any] | BoundParallelSpec[Any]],
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
            reading = Reading(
                layer,
                values.pop(layer),
                batch.mask,
                batch.tokens,
                batch.language,
                batch.documents,
            )
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
        _check_finite(self.model, totals, batch)
        return sums, int(batch.mask.sum())


def _check_finite(
    model: HookedModel, totals: Mapping[tuple[int, str], Tensor], batch: TokenBatch
) -> None:
    numbers = ", ".join(map(str, dict.fromkeys(batch.documents.tolist())))
    where = f"examples {numbers}" if batch.language == TOGETHER else f"text of {batch.language!r}"
    for (layer, site), total in sorted(totals.items()):
        if not torch.isfinite(total):
            raise ActivationError(
                f"{model_name(model)} produced NaN or infinity in layer {layer} at {site} on "
                f"{where}. What was summed before is kept; half precision often needs "
                "bfloat16 or float32 instead of float16"
            )


def sum_batches(
    passes: Passes,
    batches: Iterable[TokenBatch],
    planned: Mapping[str, int],
    *,
    run: RunFolder | None = None,
    progress: bool = True,
) -> dict[str, RunState]:
    """Sum over batches, part by part, from where an earlier run stopped.

    Args:
        passes: What to run and to sum.
        batches: Always the same ones in the same order; a part is a batch's language.
        planned: How many batches each part has.
        run: Where to keep the sums while they grow.
        progress: Show a bar on stderr, in a terminal or a notebook.

    Returns:
        The sums of every part.
    """
    states = {
        part: (run.read(part) if run else None) or RunState([Sums() for _ in passes.specs])
        for part in planned
    }
    resumed = sum(state.n_batches for state in states.values())
    if resumed:
        logger.info("resuming after %d of %d batches", resumed, sum(planned.values()))
    seen = dict.fromkeys(states, 0)
    saved_at = time.monotonic()
    bar = progress_bar(
        progress, total=sum(planned.values()), unit="batch", label="collect", done=resumed
    )
    current = next(iter(planned))
    try:
        for batch in batches:
            current = batch.language
            state = states[current]
            seen[current] += 1
            if seen[current] <= state.n_batches:
                continue
            parts, counted = passes.sum(batch)
            totals = [Sums() for _ in passes.specs]
            for both in (state.sums, parts):
                for total, each in zip(totals, both, strict=True):
                    total.merge(each)
            # One statement: interrupted anywhere, a batch is in all sums and counts or in none.
            states[current] = state = RunState(
                totals, state.n_tokens + counted, state.n_batches + 1
            )
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
