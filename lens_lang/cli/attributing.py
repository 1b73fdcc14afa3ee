"""The command that says what neurons of each kind contribute, and what answers lose with them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lens_lang.cli.options import (
    Demonstrations,
    Instruction,
    Items,
    Json,
    Languages,
    Model,
    Task,
    examples_of,
    questions_of,
)
from lens_lang.cli.printing import print_rows, say
from lens_lang.errors import OptionError


def attribute(
    out: Annotated[Path, typer.Argument(help="Run folder.")],
    task: Task = "facts",
    model: Model = "gemma-3-270m",
    instruction: Instruction = "en",
    demonstrations: Demonstrations = 0,
    languages: Languages = None,
    items: Items = None,
    controls: Annotated[int, typer.Option(help="Random sets per example and kind.")] = 3,
    last: Annotated[
        bool, typer.Option("--last", help="Switch off at the last token only, not at all tokens.")
    ] = False,
    threshold: Annotated[float, typer.Option(help="A neuron fires above this.")] = 0.0,
    cards: Annotated[
        int, typer.Option(help="Show so many neurons of highest contribution, and their words.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Say what neurons shared by languages contribute, and what answers lose without them."""
    from lens_lang.attribute.categories import CategoryContribution
    from lens_lang.collection import collect_parallel
    from lens_lang.evaluate.categories import PerExample, category_effect
    from lens_lang.models import load_model

    if task is None:
        raise OptionError("--task is needed: questions with answers")
    if cards < 0:
        raise OptionError(f"--cards must be at least 0, got {cards}")
    rule = PerExample(threshold=threshold, positions="last" if last else "all")
    asked = questions_of(task, instruction, demonstrations, languages, items)
    loaded = load_model(model)
    examples = examples_of(loaded, asked, languages)
    contributions = collect_parallel(loaded, examples, CategoryContribution(threshold=threshold))
    contributions.save(out / "categorycontributions.safetensors")
    say("contributions are measured")
    effect = category_effect(loaded, examples, rule, controls=controls)
    effect.save(out / "categoryeffect.safetensors")
    shares = contributions.summary().set_index(["language", "category"])[["contribution", "top"]]
    mean = shares.groupby("category").mean()
    rows: list[dict[Any, Any]] = []
    for row in effect.summary().round(4).to_dict("records"):
        key = (row["language"], row["category"])
        found = shares.loc[key] if key in shares.index else mean.loc[key[1]]
        kept = row if as_json else {name: row[name] for name in _SHOWN if name in row}
        rows.append({**kept, **found.round(4).to_dict()})
    print_rows(rows, as_json, "Share of neurons and contribution; answers with each kind off, nats")
    if cards:
        _show_cards(loaded, examples, cards)


_SHOWN = (
    "language",
    "category",
    "neurons",
    "accuracy_before",
    "accuracy",
    "delta",
    "delta_low",
    "delta_high",
    "control",
    "beyond",
)


def _show_cards(model: Any, examples: Any, count: int) -> None:
    """Cards of the neurons that contribute most, on average over the examples."""
    from lens_lang.attribute.cards import neuron_card
    from lens_lang.attribute.scores import contribution
    from lens_lang.corpora import Corpora
    from lens_lang.vocabulary import VocabularyLanguages

    first = examples.select(range(min(len(examples), 16)))
    mean = contribution(model, first).values.mean(0)
    vocabulary = VocabularyLanguages.from_corpora(Corpora.sample(model), model)
    for place in mean.flatten().topk(min(count, mean.numel())).indices.tolist():
        layer, index = divmod(place, mean.shape[1])
        say(str(neuron_card(model, (layer, index), vocabulary)))
