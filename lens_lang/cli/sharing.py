"""The commands about examples in several languages: ``collect-parallel`` and ``attribute``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lens_lang.cli.options import (
    Column,
    Demonstrations,
    Device,
    Instruction,
    Items,
    Json,
    Languages,
    Model,
    Task,
    Texts,
    evenly,
    examples_of,
    languages_of,
    questions_of,
    share_of,
    text_files,
    vocabulary_of,
)
from lens_lang.cli.printing import print_rows, say
from lens_lang.errors import OptionError

_Threshold = Annotated[float, typer.Option(help="A neuron fires above this.")]
_Batch = Annotated[int, typer.Option(help="Examples per forward pass, each in all languages.")]


def collect_parallel(
    out: Annotated[Path, typer.Argument(help="Run folder; continued if it holds this run.")],
    task: Task = None,
    model: Model = "gemma-3-270m",
    device: Device = None,
    text: Texts = None,
    text_column: Column = "text",
    instruction: Instruction = "en",
    demonstrations: Demonstrations = 0,
    languages: Languages = None,
    items: Items = None,
    threshold: Annotated[
        list[float] | None, typer.Option(help="A neuron fires above this; once for each.")
    ] = None,
    batch_size: _Batch = 2,
    shard: Annotated[str, typer.Option(help="INDEX/COUNT: one machine's share.")] = "0/1",
) -> None:
    """Count in how many languages of an example neurons fire; without --task, sample sentences."""
    from lens_lang import collection
    from lens_lang.attribute.categories import CategoryContribution
    from lens_lang.models import load_model
    from lens_lang.parallel import ParallelCorpora
    from lens_lang.patterns import SharingPattern

    files, share = text_files(text), share_of(shard)
    if task is not None and files:
        raise OptionError("--task and --text are two sources of examples: give one")
    if files and languages is not None:
        raise OptionError("--text names its languages itself: leave out --languages")
    if task is None and (demonstrations or instruction != "en"):
        raise OptionError("--demonstrations and --instruction are for questions: give --task")
    levels = tuple(threshold or (0.0,))
    specs = (SharingPattern(threshold=levels), CategoryContribution(threshold=levels[0]))
    asked = None
    if task is not None:
        asked = questions_of(task, instruction, demonstrations, languages, items)
    loaded = load_model(model, device=device)
    if asked is not None:
        examples = examples_of(loaded, asked, languages)
    else:
        examples = (
            ParallelCorpora.from_files(files, loaded, text_column=text_column)
            if files
            else ParallelCorpora.sample(loaded, languages=languages_of(languages))
        )
        examples = examples.select(evenly(len(examples), items))
    examples = examples.sharded(*share)
    collection.collect_parallel(loaded, examples, *specs, run_dir=out, batch_size=batch_size)
    say(f"Patterns of {len(examples)} examples in {len(examples.languages)} languages are in {out}")


def attribute(
    out: Annotated[Path, typer.Argument(help="Run folder.")],
    task: Task = "facts",
    model: Model = "gemma-3-270m",
    device: Device = None,
    instruction: Instruction = "en",
    demonstrations: Demonstrations = 0,
    languages: Languages = None,
    items: Items = None,
    controls: Annotated[int, typer.Option(help="Random sets per example and kind.")] = 3,
    last: Annotated[
        bool, typer.Option("--last", help="Switch off at the last token only, not at all tokens.")
    ] = False,
    threshold: _Threshold = 0.0,
    batch_size: _Batch = 2,
    seed: Annotated[int, typer.Option(help="Of the random sets.")] = 0,
    cards: Annotated[
        int, typer.Option(help="Show so many neurons of highest contribution, and their words.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Say what neurons shared by languages contribute, and what answers lose without them."""
    from lens_lang.attribute.categories import CategoryContribution
    from lens_lang.collection import collect_parallel
    from lens_lang.evaluate.per_example import PerExample, category_effect
    from lens_lang.models import load_model

    if task is None:
        raise OptionError("--task is needed: questions with answers")
    if cards < 0 or controls < 0:
        raise OptionError("--cards and --controls must be at least 0")
    rule = PerExample(threshold=threshold, positions="last" if last else "all")
    asked = questions_of(task, instruction, demonstrations, languages, items)
    loaded = load_model(model, device=device)
    examples = examples_of(loaded, asked, languages)
    # First, because it looks at the answers before it runs.
    effect = category_effect(
        loaded, examples, rule, controls=controls, batch_size=batch_size, seed=seed
    )
    name = task.partition("=")[0] + ("-native" if instruction == "native" else "")
    effect.save(out / f"categoryeffect-{name}.safetensors")
    contributions = collect_parallel(
        loaded, examples, CategoryContribution(threshold=threshold), batch_size=batch_size
    )
    contributions.save(out / f"categorycontributions-{name}.safetensors")
    shares = contributions.summary().set_index(["language", "category"])[["contribution", "top"]]
    mean = shares.groupby("category").mean()
    rows: list[dict[Any, Any]] = []
    for row in effect.summary().round(4).to_dict("records"):
        key = (row["language"], row["category"])
        found = (shares.loc[key] if key in shares.index else mean.loc[key[1]]).round(4).to_dict()
        rows.append({**row, **found} if as_json else {**_shown(row), **found})
    print_rows(rows, as_json, "Share of neurons and contribution; answers with each kind off, nats")
    if cards:
        _show_cards(loaded, examples, cards)


def _shown(row: dict[Any, Any]) -> dict[str, Any]:
    """A row as a person reads it: changes with their intervals."""
    found = {name: row[name] for name in ("language", "category", "neurons")}
    found["right"] = f"{row['accuracy_before']:.2f} > {row['accuracy']:.2f}"
    for name in ("delta", "control", "beyond"):
        if name in row:
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            ends = f" [{low:+.2f}, {high:+.2f}]" if low == low else ""
            found[name] = f"{row[name]:+.2f}{ends}"
    return found


def _show_cards(model: Any, examples: Any, count: int) -> None:
    """Cards of the neurons that contribute most, on average over the examples."""
    from lens_lang.attribute.cards import neuron_cards
    from lens_lang.attribute.scores import contribution
    from lens_lang.corpora import Corpora

    first = examples.select(range(min(len(examples), 16)))
    mean = contribution(model, first).values.mean(0)
    vocabulary = vocabulary_of(model, Corpora.sample(model))
    best = mean.flatten().topk(min(count, mean.numel())).indices.tolist()
    for each in neuron_cards(model, [divmod(place, mean.shape[1]) for place in best], vocabulary):
        say(str(each))
