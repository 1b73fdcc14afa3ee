"""The commands that find neurons in statistics: ``detect`` and a method's name."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_lang.cli.options import Json, RunDir, Top
from lens_lang.cli.printing import print_rows
from lens_lang.errors import OptionError

if TYPE_CHECKING:
    from lens_lang.neurons import LanguageNeurons


def detect_lape(
    run_dir: RunDir,
    top: Top = 0.01,
    filter_quantile: Annotated[float, typer.Option(help="See lens_lang.lape.")] = 0.95,
    bar_quantile: Annotated[float, typer.Option(help="See lens_lang.lape.")] = 0.95,
    compat: Annotated[bool, typer.Option("--compat", help="As the released script.")] = False,
    as_json: Json = False,
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


def detect_lap(
    run_dir: RunDir,
    threshold: Annotated[float, typer.Option(help="Probability to exceed.")] = 0.95,
    as_json: Json = False,
) -> None:
    """Activation probability above a threshold: a baseline."""
    from lens_lang.detect.baselines import lap
    from lens_lang.stats import Frequency

    neurons = lap(Frequency.load(run_dir / "frequency.safetensors"), threshold=threshold)
    _keep(neurons, run_dir / "lap.safetensors", as_json)


def detect_lave(run_dir: RunDir, top: Top = 0.01, as_json: Json = False) -> None:
    """Lowest entropy of mean activation over languages: a baseline."""
    from lens_lang.detect.baselines import lave
    from lens_lang.stats import Activations

    neurons = lave(Activations.load(run_dir / "activations.safetensors"), top=top)
    _keep(neurons, run_dir / "lave.safetensors", as_json)


def detect_plnd(
    run_dir: RunDir,
    min_share: Annotated[
        float, typer.Option(help="Share of the documents in which a neuron must matter.")
    ] = 1.0,
    top: Annotated[int | None, typer.Option(help="At most so many a layer of each site.")] = None,
    without: Annotated[
        str | None, typer.Option(help="Take away a language's neurons, or the 'common' ones.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Importance in every document of a language (Zhao et al. 2024)."""
    from lens_lang.detect.plnd import plnd
    from lens_lang.importance import Importance

    imp = Importance.load(run_dir / "importance.safetensors")
    neurons = plnd(imp, min_share=min_share, top=top, without=without)
    _keep(neurons, run_dir / "plnd.safetensors", as_json)


def detect_sharing(
    run_dir: RunDir,
    min_share: Annotated[
        float, typer.Option(help="Share of the examples in which a neuron is of a kind.")
    ] = 1.0,
    threshold: Annotated[
        float | None, typer.Option(help="Fires above this; without, the first measured.")
    ] = None,
    across: Annotated[
        str, typer.Option(help="every: each example divides; any: one division of all.")
    ] = "every",
    as_json: Json = False,
) -> None:
    """Which neurons all languages share, some share, one has, none uses (Wang et al. 2024)."""
    from lens_lang.detect.sharing import sharing
    from lens_lang.patterns import SharingPatterns

    patterns = SharingPatterns.load(run_dir / "sharingpatterns.safetensors")
    if across not in ("every", "any"):
        raise OptionError(f"--across must be every or any, got {across!r}")
    found = sharing(
        patterns,
        threshold=threshold,
        min_share=min_share,
        across="any" if across == "any" else "every",
    )
    path = run_dir / "sharing.safetensors"
    found.neurons().save(path)
    table = found.to_frame().round(4)
    rows: list[dict[Any, Any]] = table.to_dict("records")
    if not as_json:
        rows = []
        for layer, part in table.groupby("layer"):
            named = part.set_index("category")
            rows.append(
                {
                    "layer": layer,
                    **{name: f"{named.loc[name, 'share']:.3f}" for name in named.index},
                    **{
                        f"{name} in every": f"{named.loc[name, 'consistent']:.3f}"
                        for name in named.index
                    },
                }
            )
    print_rows(
        rows, as_json, f"Shares of a layer's neurons, {patterns.n_examples} examples; {path}"
    )


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
    print_rows(rows, as_json, f"{len(neurons.union())} distinct neurons, in {path}")
