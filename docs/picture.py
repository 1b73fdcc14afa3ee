"""Draw the README's picture from a run folder: python docs/picture.py RUN_FOLDER PICTURE.png.

Needs Chromium on the path, which takes the screenshot.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lens_lang import plot
from lens_lang.evaluate.perplexity import PerplexityMatrix


def main() -> None:
    """Write the figure to a page, and photograph it."""
    run_dir, picture = Path(sys.argv[1]), Path(sys.argv[2])
    figure = plot.perplexity_matrix(PerplexityMatrix.load(run_dir / "perplexity.safetensors"))
    figure.update_layout(paper_bgcolor="white", plot_bgcolor="white", width=820, height=470)
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
                "--window-size=820,470",
                "--virtual-time-budget=5000",
                f"--screenshot={picture.resolve()}",
                page.as_uri(),
            ],
            check=True,
            stderr=subprocess.DEVNULL,
        )


if __name__ == "__main__":
    main()
