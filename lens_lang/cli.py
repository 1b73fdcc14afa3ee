"""The command line: one verb per function, everything else in the functions.

Progress goes to stderr, tables to stdout, results into the run folder. Bad input ends with exit
code 2 and one sentence. Nothing heavy is imported until a command needs it.
"""

import json
import math
import signal
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lens_lang.corpora import Corpora
    from lens_lang.neurons import LanguageNeurons

app = typer.Typer(
    name="lens-lang",
    help="Find, switch and judge the neurons that carry languages in a language model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help is instant; the rich one costs as much again
    pretty_exceptions_enable=False,
)
detect_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Find language neurons in a run folder's statistics.",
)
app.add_typer(detect_app, name="detect")

_RunDir = Annotated[Path, typer.Argument(help="Run folder, as `collect` made it.")]
_Model = Annotated[str, typer.Option(help="gemma-3-270m, a folder, or a hub id.")]
_Texts = Annotated[
    list[str] | None,
    typer.Option(
        "--text", help="LANGUAGE=FILE, once per language; .txt .jsonl .csv (.gz) .parquet."
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
_CtxLen = Annotated[int, typer.Option(help="Tokens per row, BOS included.")]
_Column = Annotated[str, typer.Option(help="Column that holds the text.")]
_Neurons = Annotated[str, typer.Option(help="Neuron file in the run folder.")]
_Top = Annotated[float, typer.Option(help="Share of all neurons to select.")]


class _Statistic(str, Enum):
    firing = "firing"
    plnd = "plnd"


class _Mode(str, Enum):
    exact = "exact"
    first_order = "first_order"
    released = "released"


class _Interrupted(BaseException):
    """Ctrl-C, under a name that typer does not catch before we can say what it means."""


def _interrupt(signum: int, frame: Any) -> None:  # noqa: ARG001
    raise _Interrupted


def main() -> None:
    """Run the command line."""
    from lens_lang.errors import LensLangError

    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except LensLangError as error:
        sys.stderr.write(f"lens-lang: {error}\n")
        raise SystemExit(2) from None
    except _Interrupted:
        sys.stderr.write("lens-lang: interrupted; the same command continues from what was saved\n")
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGINT, before)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    full: Annotated[
        bool, typer.Option("--full", help="All held-out text, five controls on every language.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Find and prove the language neurons of the packaged model, on the sample text."""
    from lens_lang.demo import run_demo
    from lens_lang.page import why_not

    result = run_demo(out, full=full, say=_say)
    table = result.matrix.selectivity()
    reasons = {str(lang): why_not(row, result.neurons) for lang, row in table.iterrows()}
    rows = [
        {
            "language": lang,
            "neurons": len(result.neurons[lang]),
            "own": round(float(row["own"]), 3),
            "random": round(float(row["control"]), 3),
            "rival": f"{row['rival']} {row['rival_change']:+.2f}",
            "passes": "yes" if row["specific"] and row["beyond_chance"] else "no",
        }
        for lang, row in ((str(lang), row) for lang, row in table.iterrows())
    ]
    _print(rows, as_json, "Nats per token that a language loses when neurons are off")
    if not as_json:
        passed = sum(row["passes"] == "yes" for row in rows)
        _say(
            f"{passed} of {len(rows)} languages depend on their own neurons more than on any "
            "other's, and at least five times more than on random ones."
        )
        for row in rows:
            if row["passes"] == "no":
                _say(f"  {row['language']}: {reasons[str(row['language'])]}")
        _say(f"Report: {result.page}")


@app.command()
def collect(
    out: Annotated[Path, typer.Argument(help="Run folder; continued if it holds this run.")],
    model: _Model = "gemma-3-270m",
    text: _Texts = None,
    ctx_len: _CtxLen = 128,
    tokens: Annotated[int | None, typer.Option(help="At most so many tokens a language.")] = None,
    text_column: _Column = "text",
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
    share, files = _share(shard), _files(text)  # before the model: a typo should cost no minute
    loaded = load_model(model)
    corpora = _corpora(loaded, files, ctx_len, tokens, text_column).sharded(*share)
    collection.collect(
        loaded,
        corpora,
        *specs,
        run_dir=out,
        batch_size=batch_size,
    )
    _say(f"Statistics of {len(corpora.languages)} languages are in {out}")


@detect_app.command("lape")
def detect_lape(
    run_dir: _RunDir,
    top: _Top = 0.01,
    filter_quantile: Annotated[float, typer.Option(help="See lens_lang.lape.")] = 0.95,
    bar_quantile: Annotated[float, typer.Option(help="See lens_lang.lape.")] = 0.95,
    compat: Annotated[bool, typer.Option("--compat", help="As the released script.")] = False,
    as_json: _Json = False,
) -> None:
    """Lowest entropy of activation probability over languages (Tang et al. 2024)."""
    from lens_lang.detect.lape import lape
    from lens_lang.stats import Frequency

    neurons = lape(
        Frequency.load(run_dir / "frequency.safetensors"),
        top=top,
        filter_quantile=filter_quantile,
        bar_quantile=bar_quantile,
        compat=compat,
    )
    _keep(neurons, run_dir / "lape.safetensors", as_json)


@detect_app.command("lap")
def detect_lap(
    run_dir: _RunDir,
    threshold: Annotated[float, typer.Option(help="Probability to exceed.")] = 0.95,
    as_json: _Json = False,
) -> None:
    """Activation probability above a threshold: a baseline."""
    from lens_lang.detect.baselines import lap
    from lens_lang.stats import Frequency

    neurons = lap(Frequency.load(run_dir / "frequency.safetensors"), threshold=threshold)
    _keep(neurons, run_dir / "lap.safetensors", as_json)


@detect_app.command("lave")
def detect_lave(run_dir: _RunDir, top: _Top = 0.01, as_json: _Json = False) -> None:
    """Lowest entropy of mean activation over languages: a baseline."""
    from lens_lang.detect.baselines import lave
    from lens_lang.stats import Activations

    neurons = lave(Activations.load(run_dir / "activations.safetensors"), top=top)
    _keep(neurons, run_dir / "lave.safetensors", as_json)


@detect_app.command("plnd")
def detect_plnd(
    run_dir: _RunDir,
    min_share: Annotated[
        float, typer.Option(help="Share of the documents in which a neuron must matter.")
    ] = 1.0,
    top: Annotated[int | None, typer.Option(help="At most so many a layer of each site.")] = None,
    without: Annotated[
        str | None, typer.Option(help="Take away a language's neurons, or the 'common' ones.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Importance in every document of a language (Zhao et al. 2024)."""
    from lens_lang.detect.plnd import plnd
    from lens_lang.importance import Importance

    imp = Importance.load(run_dir / "importance.safetensors")
    neurons = plnd(imp, min_share=min_share, top=top, without=without)
    _keep(neurons, run_dir / "plnd.safetensors", as_json)


@app.command()
def evaluate(
    run_dir: _RunDir,
    model: _Model = "gemma-3-270m",
    text: _Texts = None,
    neurons: _Neurons = "lape",
    tokens: Annotated[int | None, typer.Option(help="At most so many tokens a language.")] = None,
    controls: Annotated[int, typer.Option(help="Random controls per language.")] = 3,
    all_controls: Annotated[
        bool, typer.Option("--all-controls", help="Measure controls on every language.")
    ] = False,
    text_column: _Column = "text",
    as_json: _Json = False,
) -> None:
    """Switch neurons off and measure each language's perplexity, beside random controls."""
    from lens_lang.evaluate.perplexity import perplexity_matrix
    from lens_lang.intervene import ablate
    from lens_lang.models import load_model
    from lens_lang.neurons import LanguageNeurons

    found, files = LanguageNeurons.load(run_dir / f"{neurons}.safetensors"), _files(text)
    loaded = load_model(model)
    held_out = _corpora(loaded, files, 512, tokens, text_column, part=1)
    matrix = perplexity_matrix(
        loaded,
        held_out,
        {lang: ablate(some) for lang, some in found.items()},
        controls=controls,
        control_on="all" if all_controls else "own",
    )
    name = "perplexity" if neurons == "lape" else f"perplexity-{neurons}"
    matrix.save(run_dir / f"{name}.safetensors")
    rows = matrix.to_frame().round(4).to_dict("records")
    _print(rows, as_json, "Change of NLL in nats per token")


@app.command()
def tune(
    run_dir: _RunDir,
    language: Annotated[str, typer.Option(help="Whose neurons to train, on whose text.")],
    model: _Model = "gemma-3-270m",
    neurons: _Neurons = "lape",
    steps: Annotated[int, typer.Option(help="Steps of the optimiser.")] = 100,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-4,
    text: _Texts = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option("--held-out", help="LANGUAGE=FILE to judge on; without, of the sample."),
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Held-out tokens a language, at most.")] = 320,
    controls: Annotated[int, typer.Option(help="Random sets trained alike.")] = 1,
    cloze: Annotated[
        int, typer.Option(help="Sentences a language to fill a word in, before and after.")
    ] = 0,
    ctx_len: _CtxLen = 128,
    text_column: _Column = "text",
    as_json: _Json = False,
) -> None:
    """Train exactly a language's neurons; keep the change as a small file."""
    from lens_lang.concepts import cloze_prompts, read_concepts
    from lens_lang.evaluate.answers import answer_scores
    from lens_lang.models import load_model
    from lens_lang.neurons import LanguageNeurons
    from lens_lang.tuning import tune as train

    found = LanguageNeurons.load(run_dir / f"{neurons}.safetensors")[language]
    files, judged = _files(text), _files(held_out)
    loaded = load_model(model)
    corpora = _corpora(loaded, files, ctx_len, None, text_column)[language]
    read_too = _corpora(loaded, judged, 512, tokens, text_column, part=1)
    concepts = read_concepts()[:cloze] if cloze > 0 else []
    asked = {
        lang: cloze_prompts(concepts, lang, pivot=lang)
        for lang in read_too.languages
        if concepts and lang in concepts[0].cloze
    }
    before = answer_scores(loaded, asked) if asked else None
    tuned = train(
        loaded,
        found,
        corpora,
        steps=steps,
        lr=lr,
        held_out=read_too,
        controls=controls,
        run_dir=run_dir / f"tuning-{language}",
    )
    delta = run_dir / f"delta-{language}.safetensors"
    tuned.delta.save(delta)
    assert tuned.held_out is not None  # it was given
    tuned.held_out.save(run_dir / f"tuned-{language}.safetensors")
    rows = tuned.held_out.to_frame().round(4).to_dict("records")
    if before is not None:
        answers = answer_scores(loaded, asked).change_from(before).round(4)
        by_language = answers.set_index("language").to_dict("index")
        for row in rows:
            row.update({f"word {k}": v for k, v in by_language.get(row["language"], {}).items()})
    _print(rows, as_json, f"Change of held-out NLL in nats per token; weights in {delta}")


@app.command()
def export(
    run_dir: _RunDir,
    out: Annotated[Path, typer.Argument(help="New folder, for AutoModelForCausalLM.")],
    language: Annotated[str, typer.Option(help="Whose neurons to switch off in the weights.")],
    model: _Model = "gemma-3-270m",
    neurons: _Neurons = "lape",
    scale: Annotated[float, typer.Option(help="Multiply them by this instead.")] = 0.0,
) -> None:
    """Write a Hugging Face model with a language's neurons off for good."""
    from lens_lang.exporting import export as write
    from lens_lang.models import load_model
    from lens_lang.neurons import LanguageNeurons

    found = LanguageNeurons.load(run_dir / f"{neurons}.safetensors")[language]
    _out(str(write(load_model(model), found, out, scale=scale)))


@app.command("apply")
def apply_delta(
    delta: Annotated[Path, typer.Argument(help="File that `tune` wrote.")],
    out: Annotated[Path, typer.Argument(help="New folder, for AutoModelForCausalLM.")],
    model: _Model = "gemma-3-270m",
) -> None:
    """Write a Hugging Face model with a tuned change in its weights."""
    from lens_lang.delta import Delta
    from lens_lang.exporting import export as write
    from lens_lang.models import load_model
    from lens_lang.neurons import NeuronSet

    change, loaded = Delta.load(delta), load_model(model)
    change.apply(loaded)
    _out(str(write(loaded, NeuronSet({}), out)))


@app.command()
def lens(
    out: Annotated[Path, typer.Argument(help="Run folder.")],
    model: _Model = "gemma-3-270m",
    text: _Texts = None,
    neurons: Annotated[
        str | None,
        typer.Option(help="Neuron file in the run folder: switch each language's own off, too."),
    ] = None,
    prompts: Annotated[int, typer.Option(help="Held-out documents a language.")] = 8,
    last: Annotated[
        bool, typer.Option("--last", help="Read the last token only, not every one: quicker.")
    ] = False,
    top_k: Annotated[
        int | None, typer.Option(help="Count the likeliest items instead of summing probability.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Read without the final norm.")] = False,
    text_column: _Column = "text",
    as_json: _Json = False,
) -> None:
    """Measure which language each layer speaks, and how that changes without its neurons."""
    import torch

    from lens_lang.intervene import ablate
    from lens_lang.lens import first_documents, language_curve
    from lens_lang.models import load_model
    from lens_lang.neurons import LanguageNeurons, random_like

    files = _files(text)
    found = LanguageNeurons.load(out / f"{neurons}.safetensors") if neurons else None
    loaded = load_model(model)
    if files:
        train, held_out = _corpora(loaded, files, 512, None, text_column, part=1).split(0.8, seed=0)
    else:
        train, held_out = (_corpora(loaded, files, 512, None, text_column, part) for part in (0, 1))
    some = first_documents(held_out, prompts)
    vocabulary = _vocabulary(loaded, train)
    vocabulary.save(out / "vocabulary.safetensors")
    if found is not None and not set(found.languages) & set(some.languages):
        raise _bad(f"{neurons} has no neurons of {', '.join(some.languages)}: none to switch off")
    cases: dict[str, dict[str, Any]] = {"curve": {}}
    if found is not None:
        generator = torch.Generator().manual_seed(0)
        known = {lang: each for lang, each in found.items() if lang in some.languages}
        cases[f"curve-{neurons}-off"] = {lang: ablate(each) for lang, each in known.items()}
        cases[f"curve-{neurons}-random"] = {
            lang: ablate(random_like(each, generator=generator)) for lang, each in known.items()
        }
    rows: list[dict[Any, Any]] = []
    for name, hooks in cases.items():
        curve = language_curve(
            loaded,
            some,
            vocabulary,
            fwd_hooks=hooks,
            positions="last" if last else "all",
            top_k=top_k,
            norm=not raw,
        )
        curve.save(out / f"{name}.safetensors")
        _say(f"{name} is measured")
        table = curve.summary() if "en" in curve.languages else curve.to_frame()
        rows += [{"case": name, **row} for row in table.round(3).to_dict("records")]
    _print(rows, as_json, "Share of each layer's prediction")


@app.command()
def latent(
    out: Annotated[Path, typer.Argument(help="Run folder.")],
    target: Annotated[str, typer.Option(help="Language of the word that is asked for.")],
    source: Annotated[
        str | None, typer.Option(help="Language to translate from; without, fill in sentences.")
    ] = None,
    model: _Model = "gemma-3-270m",
    words: Annotated[
        Path | None, typer.Option(help="JSON lines of concepts; without, those of lens_lang.")
    ] = None,
    prompts: Annotated[int, typer.Option(help="At most so many prompts.")] = 48,
    neurons: Annotated[
        str | None,
        typer.Option(help="Neuron file in the run folder: the target's off, then random ones."),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Measure in which language a word is on its way, layer by layer (Wendler et al. 2024)."""
    import torch

    from lens_lang.concepts import cloze_prompts, read_concepts, translation_prompts
    from lens_lang.intervene import ablate
    from lens_lang.languages import language_tag
    from lens_lang.latent import latent_language, separable_prompts
    from lens_lang.models import load_model
    from lens_lang.neurons import LanguageNeurons, random_like

    if prompts < 1:
        raise _bad(f"--prompts must be at least 1, got {prompts}")
    concepts, asked = read_concepts(words), language_tag(target)
    given = None if source is None else language_tag(source)
    made = (
        cloze_prompts(concepts, asked)
        if given is None
        else translation_prompts(concepts, given, asked)
    )
    task = "cloze" if given is None else given
    cases: dict[str, Any] = {f"latent-{task}-{asked}": []}
    if neurons:
        some = LanguageNeurons.load(out / f"{neurons}.safetensors")[asked]
        random = random_like(some, generator=torch.Generator().manual_seed(0))
        cases = {
            f"latent-{task}-{asked}-{neurons}-off": ablate(some),
            f"latent-{task}-{asked}-{neurons}-random": ablate(random),
        }
    loaded = load_model(model)
    kept, sets = separable_prompts(loaded, made)
    _say(f"{len(kept)} of {len(made)} prompts have answers that begin differently")
    rows: list[dict[Any, Any]] = []
    for name, hooks in cases.items():
        found = latent_language(loaded, kept[:prompts], sets[:prompts], fwd_hooks=hooks)
        found.save(out / f"{name}.safetensors")
        means = (found.mean, found.entropy.mean(0), found.energy.mean(0))
        for layer, (mean, bits, energy) in enumerate(
            zip(*(values.tolist() for values in means), strict=True)
        ):
            rows.append(
                {
                    "case": name,
                    "layer": layer,
                    **{lang: round(p, 4) for lang, p in zip(found.languages, mean, strict=True)},
                    "entropy": round(bits, 2),
                    "energy": round(energy, 3),
                }
            )
    _print(rows, as_json, "Probability of the word's beginnings, bits, token energy")


@app.command()
def report(run_dir: _RunDir) -> None:
    """Write one HTML page, which opens offline, from a run folder."""
    from lens_lang import page

    _out(str(page.report(run_dir)))


@app.command()
def info(model: Annotated[str, typer.Argument()] = "gemma-3-270m", as_json: _Json = False) -> None:
    """Say what lens_lang sees of a model: layers, neurons, hook points, tokeniser, versions."""
    from lens_lang.models import describe, load_model

    found = describe(load_model(model))
    if as_json:
        _out(json.dumps(found, indent=2))
        return
    rows = []
    for key, value in found.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        rows += [{"what": f"{key} {part}".strip(), "value": str(some)} for part, some in parts]
    _print(rows, as_json, "")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Neuron file: .pth of the LAPE code, or ours.")],
    target: Annotated[Path, typer.Argument(help="Neuron file to write, of the other kind.")],
    languages: Annotated[
        str, typer.Option(help="Languages of a .pth file, in its order, with commas.")
    ] = "",
) -> None:
    """Turn a published neuron file into one of lens_lang, or back."""
    from lens_lang import formats
    from lens_lang.neurons import LanguageNeurons

    if source.suffix == ".pth":
        names = [name.strip() for name in languages.split(",") if name.strip()]
        if not names:
            raise _bad("--languages is needed: a .pth file does not name its languages")
        neurons = formats.read(source, languages=names)
        neurons.save(target)
    else:
        neurons = LanguageNeurons.load(source)
        formats.write(neurons, target)
    _out(f"{target}: {neurons!r}")


def _files(text: list[str] | None) -> dict[str, str | Path]:
    """LANGUAGE=FILE pairs, checked as far as that is possible without a model."""
    from lens_lang.languages import language_tag
    from lens_lang.texts import check_text_file

    files: dict[str, str | Path] = {}
    for pair in text or []:
        lang, equals, path = pair.partition("=")
        if not equals or lang in files:
            raise _bad(f"--text takes LANGUAGE=FILE, once per language, got {pair!r}")
        language_tag(lang)
        files[lang] = path
    for file in files.values():
        check_text_file(file)
    return files


def _corpora(
    model: Any,
    files: dict[str, str | Path],
    ctx_len: int,
    tokens: int | None,
    text_column: str,
    part: int = 0,
) -> "Corpora":
    """The text named on the command line, or a part of the sample: 0 to search, 1 to judge."""
    from lens_lang.corpora import Corpora

    if not files:
        sample = Corpora.sample(model, ctx_len=ctx_len).split(0.8, seed=0)[part]
        return sample if tokens is None else sample.truncate(tokens=tokens)
    # Text to judge on is read document by document, however short.
    return Corpora.from_files(
        files, model, ctx_len=ctx_len, text_column=text_column, tokens=tokens, pack=part == 0
    )


def _vocabulary(model: Any, train: "Corpora") -> Any:
    """Which language each vocabulary item belongs to: by counts, then script, then lingua."""
    from importlib.util import find_spec

    from lens_lang.identification import LinguaIdentifier
    from lens_lang.vocabulary import VocabularyLanguages

    parts = [VocabularyLanguages.from_corpora(train, model)]
    if "en" in train.languages:  # else a script would call English words another language's
        parts.append(VocabularyLanguages.from_script(model, train.languages))
    if find_spec("lingua"):
        _say("asking lingua about the vocabulary; once for each model and choice of languages")
        parts.append(
            VocabularyLanguages.from_identifier(model, train.languages, LinguaIdentifier())
        )
    else:
        _say("without lingua (pip install 'lens-lang[lid]') only words of the text are known")
    return VocabularyLanguages.combine(*parts)


def _share(shard: str) -> tuple[int, int]:
    index, slash, count = shard.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise _bad(f"--shard takes INDEX/COUNT, such as 0/4, got {shard!r}")
    return int(index), int(count)


def _keep(neurons: "LanguageNeurons", path: Path, as_json: bool) -> None:
    neurons.save(path)
    rows = [
        {
            "language": lang,
            "neurons": len(some),
            **(
                {site.name: int(mask.sum()) for site, mask in some.masks.items()}
                if len(some.sites) > 1
                else {}
            ),
        }
        for lang, some in neurons.items()
    ]
    _print(rows, as_json, f"{len(neurons.union())} distinct neurons, in {path}")


def _bad(sentence: str) -> Exception:
    from lens_lang.errors import OptionError

    return OptionError(sentence)


def _say(line: str) -> None:
    """Tell the person; stderr, so that stdout holds results only."""
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(line, markup=False)


def _out(line: str) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(line, markup=False)


def _print(rows: list[dict[Any, Any]], as_json: bool, title: str) -> None:
    if as_json:
        finite = [
            {
                key: None if isinstance(x, float) and not math.isfinite(x) else x
                for key, x in r.items()
            }
            for r in rows
        ]
        _out(json.dumps(finite, ensure_ascii=False, allow_nan=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, title_justify="left")
    for column in rows[0]:
        numeric = isinstance(rows[0][column], int | float)
        table.add_column(str(column), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row.values()))
    # Whoever reads a pipe has no width to fit.
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


if __name__ == "__main__":
    main()
