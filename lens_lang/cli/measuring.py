"""The commands that look at a model: ``collect`` and ``info``."""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from lens_lang.cli.options import (
    Column,
    CtxLen,
    Device,
    Json,
    Model,
    Texts,
    corpora_of,
    share_of,
    text_files,
)
from lens_lang.cli.printing import print_line, print_rows, say


class _Statistic(str, Enum):
    firing = "firing"
    plnd = "plnd"


class _Mode(str, Enum):
    exact = "exact"
    first_order = "first_order"
    released = "released"


def collect(
    out: Annotated[Path, typer.Argument(help="Run folder; continued if it holds this run.")],
    model: Model = "gemma-3-270m",
    device: Device = None,
    text: Texts = None,
    ctx_len: CtxLen = None,
    tokens: Annotated[int | None, typer.Option(help="At most so many tokens a language.")] = None,
    text_column: Column = "text",
    batch_size: Annotated[int, typer.Option(help="Rows per forward pass.")] = 8,
    shard: Annotated[str, typer.Option(help="INDEX/COUNT: one machine's share.")] = "0/1",
    statistic: Annotated[
        _Statistic, typer.Option(help="What fires (LAPE and baselines), or what matters (PLND).")
    ] = _Statistic.firing,
    mode: Annotated[
        _Mode, typer.Option(help="How PLND scores queries and keys; see PLNDImportance.")
    ] = _Mode.exact,
    top_mlp: Annotated[
        float, typer.Option(help="PLND: high in a document are so many neurons, or share, a layer.")
    ] = 0.2,
    top_attn: Annotated[float, typer.Option(help="The same, in each of q, k, v and o.")] = 0.2,
) -> None:
    """Count which neurons fire, or matter, on each language; without --text, on the sample."""
    from lens_lang import collection
    from lens_lang.models import load_model
    from lens_lang.scoring import PLNDImportance
    from lens_lang.specs import Spec
    from lens_lang.stats import ActivationFrequency, MeanActivation

    specs: list[Spec[Any]] = [ActivationFrequency(), MeanActivation()]
    if statistic is _Statistic.plnd:
        specs = [PLNDImportance(top_k={"mlp": top_mlp, "attn": top_attn}, mode=mode.value)]
    # Before the model: a typo should cost no minute.
    share, files = share_of(shard), text_files(text)
    loaded = load_model(model, device=device)
    corpora = corpora_of(loaded, files, ctx_len, tokens, text_column).sharded(*share)
    collection.collect(
        loaded,
        corpora,
        *specs,
        run_dir=out,
        batch_size=batch_size,
    )
    say(f"Statistics of {len(corpora.languages)} languages are in {out}")


def info(model: Annotated[str, typer.Argument()] = "gemma-3-270m", as_json: Json = False) -> None:
    """Say what lens_lang sees of a model: layers, neurons, hook points, tokeniser, versions."""
    from lens_lang.models import describe, load_model

    found = describe(load_model(model))
    if as_json:
        print_line(json.dumps(found, indent=2))
        return
    rows = []
    for key, value in found.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        rows += [{"what": f"{key} {part}".strip(), "value": str(some)} for part, some in parts]
    print_rows(rows, as_json, "")
