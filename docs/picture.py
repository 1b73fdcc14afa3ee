"""Draw the pictures of README and docs.

    python docs/picture.py effect RUN_FOLDER PICTURE.png   needs perplexity.safetensors there
    python docs/picture.py layers RUN_FOLDER PICTURE.png   needs vocabulary.safetensors there
    python docs/picture.py sharing RUN_FOLDER PICTURE.png  needs sharingpatterns.safetensors there
    python docs/picture.py steering RUN_FOLDER PICTURE.png needs generation.safetensors there

Needs Chromium on the path, which takes the screenshot.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import lens_lang as ll

SENTENCE = "Le livre est dans la maison de mon ami, et la fleur est sur la"


def effect(run_dir: Path) -> Any:
    """What switching each language's neurons off does."""
    figure = ll.plot.perplexity_matrix(ll.PerplexityMatrix.load(run_dir / "perplexity.safetensors"))
    return figure.update_layout(width=820, height=470)


def layers(run_dir: Path) -> Any:
    """What every layer of the packaged model would say next in a French sentence."""
    model = ll.load_model("gemma-3-270m")
    vocabulary = ll.VocabularyLanguages.load(run_dir / "vocabulary.safetensors")
    figure = ll.plot.lens_table(ll.lens_table(model, SENTENCE, vocabulary))
    return figure.update_layout(width=1250, height=700)


def sharing(run_dir: Path) -> Any:
    """How many neurons of each layer all languages share, some share, one has, none uses."""
    patterns = ll.SharingPatterns.load(run_dir / "sharingpatterns.safetensors")
    return ll.plot.sharing(ll.sharing(patterns)).update_layout(width=820, height=430)


def steering(run_dir: Path) -> Any:
    """Share of answers in the wanted language, without steering and with."""
    matrix = ll.GenerationMatrix.load(run_dir / "generation.safetensors")
    return ll.plot.generation_matrix(matrix).update_layout(width=900)


def photograph(figure: Any, picture: Path) -> None:
    """Write the figure to a page, and take its picture."""
    figure.update_layout(paper_bgcolor="white", plot_bgcolor="white")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("picture.py needs Chromium to take the screenshot")
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "figure.html"
        html = figure.to_html(include_plotlyjs=True, config={"displayModeBar": False})
        page.write_text(html.replace("<body>", "<body style='margin:0'>"), encoding="utf-8")
        subprocess.run(
            [
                browser,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                f"--user-data-dir={scratch}/profile",
                f"--window-size={figure.layout.width},{figure.layout.height}",
                "--virtual-time-budget=5000",
                f"--screenshot={picture.resolve()}",
                page.as_uri(),
            ],
            check=True,
            stderr=subprocess.DEVNULL,
        )


def main() -> None:
    """Draw what was asked for."""
    what, run_dir, picture = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    drawn = {"effect": effect, "layers": layers, "sharing": sharing, "steering": steering}
    photograph(drawn[what](run_dir), picture)


if __name__ == "__main__":
    main()
