"""`generate`, `evaluate tasks` and `evaluate mwork` do what their functions do."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LetterTokenizer, hf_model
from test_cli import done, lens_lang, refused, squeezed

from lens_lang.evaluate.generation import GenerationMatrix
from lens_lang.evaluate.story import MWork
from lens_lang.evaluate.task_scores import TaskMatrix
from lens_lang.models import bridge
from lens_lang.neurons import LanguageNeurons, NeuronSet
from lens_lang.sites import ATTN_Q, MLP_POST, site_width
from lens_lang.stats import Activations

LANGUAGES = ("en", "fr", "de")


@pytest.fixture(scope="module")
def model() -> Any:
    tiny = bridge(hf_model("llama"))
    tiny.tokenizer = LetterTokenizer()
    return tiny


@pytest.fixture
def folder(tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with neurons of three languages and their means, as two methods found them."""
    monkeypatch.setattr("lens_lang.models.load_model", lambda name: model)
    generator = torch.Generator().manual_seed(0)
    shapes = {site: (3, site_width(model, site)) for site in (MLP_POST, ATTN_Q)}
    masks = {
        lang: {site: torch.rand(shape, generator=generator) < 0.2 for site, shape in shapes.items()}
        for lang in LANGUAGES
    }
    mlp_only = {lang: NeuronSet({MLP_POST: mask[MLP_POST]}) for lang, mask in masks.items()}
    LanguageNeurons(mlp_only, {"method": "lape"}).save(tmp_path / "lape.safetensors")
    both = {lang: NeuronSet(mask) for lang, mask in masks.items()}
    LanguageNeurons(both, {"method": "plnd"}).save(tmp_path / "plnd.safetensors")
    sums = torch.rand(3, *shapes[MLP_POST], generator=generator, dtype=torch.float64)
    Activations(LANGUAGES, sums, sums, torch.ones(3, dtype=torch.int64)).save(
        tmp_path / "activations.safetensors"
    )
    return tmp_path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "questions.jsonl"
    rows = [{"id": n, "questions": {x: f"{x} {n}?" for x in LANGUAGES}} for n in range(3)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def answer_files(folder: Path) -> Iterator[Path]:
    yield from (folder / "answers").glob("*.json")


def test_steering_is_swept_beside_vectors_and_controls(
    folder: Path, questions: Path, tmp_path: Path
) -> None:
    texts = []
    for lang in LANGUAGES:
        file = tmp_path / f"{lang}.txt"
        file.write_text(f"words of {lang}\n" * 4)
        texts += ["--text", f"{lang}={file}"]
    options = ["--file", questions, "--new-tokens", 4, "--strengths", "1,2", "--vectors", 1]
    rows = json.loads(done("generate", folder, *options, *texts, "--targets", "fr", "--json"))
    names = [row["intervention"] for row in rows]
    assert names == [
        "none",
        "lape neurons fr x1",
        "lape neurons fr x2",
        "vector after layer 1 fr x1",
        "vector after layer 1 fr x2",
    ]
    matrix = GenerationMatrix.load(folder / "generation.safetensors")
    assert matrix.n_controls == 1
    assert [row["rate"] for row in rows] == pytest.approx(matrix.summary()["rate"].tolist())
    assert {row["answers"] for row in rows[1:]} == {6}  # French questions are not steered
    assert (folder / "residual" / "activations.safetensors").exists()
    kept = {file: file.stat().st_mtime_ns for file in answer_files(folder)}
    done("generate", folder, *options, *texts, "--targets", "fr")
    assert kept == {file: file.stat().st_mtime_ns for file in answer_files(folder)}


def test_neurons_are_switched_off_instead(folder: Path, questions: Path) -> None:
    out = done(
        "generate", folder, "--off", "--file", questions, "--new-tokens", 3, "--languages", "en,fr"
    )
    matrix = GenerationMatrix.load(folder / "generation-off.safetensors")
    assert matrix.interventions == ("en off", "fr off", "de off")
    assert matrix.groups == ("en", "fr")
    assert "froff" in squeezed(out)


def test_tasks_are_solved_with_own_neurons_off(folder: Path) -> None:
    options = ["--task", "xcsqa", "--languages", "en,fr", "--items", 4, "--controls", 1]
    rows = json.loads(done("evaluate", "tasks", folder, *options, "--json"))
    matrix = TaskMatrix.load(folder / "task-xcsqa.safetensors")
    assert len(rows) == 2 * 2 * len(matrix.metrics)
    assert {row["items"] for row in rows} == {4}
    main = [row for row in rows if row["metric"] == "accuracy"]
    assert [row["score"] for row in main] == pytest.approx(matrix.to_frame()["score"].tolist())
    assert "own off" in done("evaluate", "tasks", folder, *options)


def test_own_files_are_read(folder: Path, tmp_path: Path) -> None:
    row = {"question": "two and two", "answer_number": 4, "answer": None}
    for lang in ("en", "fr"):
        (tmp_path / f"{lang}.jsonl").write_text(json.dumps(row))
    files = [x for lang in ("en", "fr") for x in ("--file", f"mgsm:{lang}={tmp_path}/{lang}.jsonl")]
    done("evaluate", "tasks", folder, "--task", "mgsm", *files, "--new-tokens", 3, "--controls", 0)
    matrix = TaskMatrix.load(folder / "task-mgsm.safetensors")
    assert matrix.languages == ("en", "fr")
    assert matrix.n_controls == 0


def test_the_story_is_told_by_regions(folder: Path) -> None:
    options = ["--task", "xcsqa", "--items", 3, "--understanding", 1, "--generation", 1]
    rows = json.loads(done("evaluate", "mwork", folder, *options, "--json"))
    result = MWork.load(folder / "mwork.safetensors")
    assert result.regions == {"understanding": (0,), "task": (1,), "generation": (2,)}
    assert [(row["off"], row["neurons"]) for row in rows] == [
        (off, kind) for off in ("F", "A", "A+F", "U+A+F+G") for kind in ("own", "random")
    ]
    assert [row["delta"] for row in rows] == pytest.approx(result.to_frame()["delta"].tolist())
    assert "U layers 0-0, G layers 2-2" in done("evaluate", "mwork", folder, *options)


def test_regions_are_tuned_on_a_task(folder: Path) -> None:
    options = ["--task", "xcsqa", "--items", 2, "--controls", 0, "--tune", "xcsqa:fr"]
    outcome = lens_lang("evaluate", "mwork", folder, *options, "--metric", "log_probability")
    assert outcome.code == 0, outcome
    assert "region understanding layers 1" in outcome.err


def test_evaluate_without_a_word_is_perplexity(folder: Path) -> None:
    assert "There is no file" in refused("evaluate", folder / "nowhere")
    assert "There is no file" in refused("evaluate", "perplexity", folder / "nowhere")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["generate", "{}", "--identifier", "oracle"], "--identifier must be langid or lingua"),
        (["generate", "{}", "--strengths", "much"], "--strengths takes numbers"),
        (["generate", "{}", "--off", "--vectors", "1"], "are for steering"),
        (["generate", "{}", "--neurons", "gone"], "There is no file"),
        (["generate", "{}", "--how", "multiply"], "--how must be replace or add"),
        (["generate", "{}", "--positions", "old"], "--positions must be all, prompt or new"),
        (["generate", "{}", "--controls", "-1"], "controls must be at least 0"),
        (["generate", "{}", "--new-tokens", "0"], "new_tokens must be at least 1"),
        (["evaluate", "tasks", "{}", "--task", "xsquad"], "There is no task 'xsquad'"),
        (["evaluate", "tasks", "{}", "--task", "mgsm", "--file", "mgsm=x"], "--file takes"),
        (["evaluate", "tasks", "{}", "--task", "mgsm", "--languages", "ja"], "no packaged set"),
        (
            ["evaluate", "tasks", "{}", "--task", "mgsm", "--items", "0"],
            "--items must be at least 1",
        ),
        (["evaluate", "mwork", "{}", "--task", "mgsm", "--tune", "xquad:zh"], "--tune takes"),
        (["evaluate", "mwork", "{}", "--task", "mgsm", "--languages", "fr"], "must be in English"),
        (["evaluate", "mwork", "{}", "--task", "mgsm", "--understanding", "3"], "leave none"),
    ],
)
def test_impossible_wishes_are_one_sentence(
    arguments: list[str], sentence: str, folder: Path
) -> None:
    assert sentence in refused(*(each.replace("{}", str(folder)) for each in arguments))
