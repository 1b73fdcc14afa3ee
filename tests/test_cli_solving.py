"""`generate`, `evaluate tasks` and `evaluate mwork` do what their functions do."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LetterTokenizer, hf_model
from test_cli import done, lens_lang, refused, squeezed

from lens_lang.cli.solving import _apart as apart
from lens_lang.errors import OptionError
from lens_lang.evaluate.generation import GenerationMatrix
from lens_lang.evaluate.story import MWork
from lens_lang.evaluate.task_scores import TaskMatrix
from lens_lang.models import bridge
from lens_lang.neurons import LanguageNeurons, NeuronSet
from lens_lang.sites import ATTN_Q, MLP_POST, site_width
from lens_lang.stats import Activations
from lens_lang.task_reading import read_task
from lens_lang.tasks import MGSM, Item, TaskItems

LANGUAGES = ("en", "fr", "de")


@pytest.fixture(scope="module")
def model() -> Any:
    tiny = bridge(hf_model("llama"))
    tiny.tokenizer = LetterTokenizer()
    return tiny


@pytest.fixture
def folder(tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with neurons of three languages and their means, as methods found them."""
    monkeypatch.setattr("lens_lang.models.load_model", lambda name, device=None: model)
    generator = torch.Generator().manual_seed(0)
    shapes = {site: (3, site_width(model, site)) for site in (MLP_POST, ATTN_Q)}
    masks = {
        lang: {site: torch.rand(shape, generator=generator) < 0.2 for site, shape in shapes.items()}
        for lang in LANGUAGES
    }
    mlp_only = {lang: NeuronSet({MLP_POST: mask[MLP_POST]}) for lang, mask in masks.items()}
    for method in ("lape", "lave"):
        LanguageNeurons(mlp_only, {"method": method}).save(tmp_path / f"{method}.safetensors")
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
    assert matrix.n_controls == 3
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


@pytest.mark.parametrize(
    ("options", "file", "labels"),
    [
        (["--how", "replace"], "generation", ["lape neurons"]),
        (["--how", "add"], "generation-add", ["lape neurons added"]),
        (["--positions", "prompt"], "generation-prompt", ["lape neurons, prompt only"]),
        (
            ["--how", "add", "--positions", "new", "--neurons", "lave"],
            "generation-lave-add-new",
            ["lave neurons added, new tokens only"],
        ),
        (
            ["--neurons", "lape,lave"],
            "generation-lape-lave",
            ["lape neurons", "lave neurons"],
        ),
    ],
)
def test_results_say_what_was_done(
    options: list[str], file: str, labels: list[str], folder: Path, questions: Path
) -> None:
    few = ["--file", questions, "--new-tokens", 1, "--controls", 0, "--languages", "en,fr"]
    done("generate", folder, *few, *options, "--targets", "fr")
    matrix = GenerationMatrix.load(folder / f"{file}.safetensors")
    assert matrix.interventions == tuple(f"{label} fr x1" for label in labels)
    assert [each.name for each in folder.glob("generation*")] == [f"{file}.safetensors"]


def test_switching_off_says_what_was_done(folder: Path, questions: Path) -> None:
    few = ["--off", "--file", questions, "--new-tokens", 1, "--controls", 0, "--languages", "en,fr"]
    done("generate", folder, *few, "--positions", "new")
    done("generate", folder, *few, "--neurons", "lape,plnd")
    new = GenerationMatrix.load(folder / "generation-off-new.safetensors")
    assert new.interventions[0] == "en off, new tokens only"
    both = GenerationMatrix.load(folder / "generation-off-lape-plnd.safetensors")
    assert both.interventions[3] == "plnd en off"


def test_vectors_need_no_neurons_and_say_whose_means_they_are(
    folder: Path, questions: Path, tmp_path: Path
) -> None:
    (folder / "activations.safetensors").unlink()
    options = ["--file", questions, "--new-tokens", 1, "--controls", 0, "--languages", "en,fr"]
    steered = ["--neurons", "", "--vectors", "0,2", "--positions", "prompt"]
    texts = []
    for lang in ("en", "fr"):
        (tmp_path / f"{lang}.txt").write_text(f"words of {lang}\n" * 4)
        texts += ["--text", f"{lang}={tmp_path}/{lang}.txt"]
    outcome = lens_lang("generate", folder, *options, *steered, *texts)
    assert outcome.code == 0, outcome
    assert f"The means of --vectors are of en={tmp_path}/en.txt, fr={tmp_path}/fr" in outcome.err
    matrix = GenerationMatrix.load(folder / "generation-vectors-prompt.safetensors")
    assert matrix.interventions[0] == "vector after layer 0, prompt only en x1"
    assert {each["method"] for each in matrix.steering.values()} == {
        "vector after layer 0, prompt only",
        "vector after layer 2, prompt only",
    }


def test_vectors_of_the_sample_say_so(
    folder: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise OptionError("far enough")

    monkeypatch.setattr("lens_lang.collection.collect", stop)
    few = ["--file", questions, "--languages", "en,fr", "--vectors", "1"]
    outcome = lens_lang("generate", folder, *few)
    assert outcome.code == 2
    assert outcome.err.splitlines() == [
        "The means of --vectors are of the packaged sample; --text names other text",
        "lens-lang: far enough",
    ]


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


def test_regions_are_tuned_on_every_second_item_and_tested_on_the_others(folder: Path) -> None:
    options = ["--items", 5, "--controls", 0, "--metric", "log_probability"]
    outcome = lens_lang(
        "evaluate", "mwork", folder, "--task", "X-CSQA", *options, "--tune", "xcsqa:French",
        "--languages", "en,de",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    assert "region understanding layers 1" in outcome.err
    assert "Items of xcsqa to choose the layers on (packaged): en 3, fr 3\n" in outcome.err
    assert "Items of xcsqa to test on (packaged): en 2, de 2\n" in outcome.err
    result = MWork.load(folder / "mwork.safetensors")
    every = [item.name for item in read_task("xcsqa").limit(5).items["en"]]
    assert result.matrices["xcsqa"].names["de"] == tuple(every[1::2])
    told = result.provenance["regions"]["search"]
    assert (told["task"], told["language"]) == ("xcsqa", "fr")
    tuning = read_task("xcsqa", languages=["en", "fr"]).limit(5)
    chosen = {lang: some[::2] for lang, some in tuning.items.items()}
    assert told["items"] == replace(tuning, items=chosen).describe()
    assert [(row["region"], row["layers"]) for row in told["tried"]] == [
        ("understanding", 1),
        ("generation", 1),
    ]


def test_regions_are_tuned_on_another_task_and_all_its_items(folder: Path) -> None:
    options = ["--items", 3, "--controls", 0, "--tune", "xnli:fr"]
    outcome = lens_lang("evaluate", "mwork", folder, "--task", "xcsqa", *options)
    assert outcome.code == 0, outcome
    assert "Items of xnli to choose the layers on (packaged): en 3, fr 3\n" in outcome.err
    result = MWork.load(folder / "mwork.safetensors")
    assert list(result.matrices) == ["xcsqa"]
    assert set(map(len, result.matrices["xcsqa"].names.values())) == {3}
    assert result.provenance["regions"]["search"]["items"]["counts"] == {"en": 3, "fr": 3}


def test_items_that_only_share_names_are_kept_apart() -> None:
    def items_of(**names: str) -> TaskItems:
        return TaskItems(
            MGSM,
            {
                lang: tuple(Item(x, f"{lang} {x}", ("1",)) for x in some)
                for lang, some in names.items()
            },
            "files",
        )

    chosen, tested = apart(items_of(en="abcd", fr="bcde"), items_of(en="abcd", fr="bcde", de="dab"))
    assert {x: [item.name for item in some] for x, some in chosen.items.items()} == {
        "en": ["a", "c"], "fr": ["c", "e"],
    }  # fmt: skip
    assert {x: [item.name for item in some] for x, some in tested.items.items()} == {
        "en": ["b", "d"], "fr": ["b", "d"], "de": ["d", "b"],
    }  # fmt: skip
    assert tested.stops == items_of(en="abcd", fr="bcde", de="dab").stops


def test_what_has_no_neurons_is_left_out_and_said(folder: Path) -> None:
    options = ["--task", "xcsqa", "--items", 1, "--controls", 0, "--neurons", "lape"]
    outcome = lens_lang("evaluate", "mwork", folder, *options)
    assert outcome.code == 0, outcome
    assert "xcsqa: de, fr left out of A, having no neurons there" in outcome.err
    assert MWork.load(folder / "mwork-lape.safetensors").settings == {"xcsqa": ("F", "U+F+G")}
    assert not (folder / "mwork.safetensors").exists()


def test_it_is_said_where_items_are_from(folder: Path, tmp_path: Path) -> None:
    row = {"question": "two and two", "answer_number": 4, "answer": None}
    for lang in ("en", "fr"):
        (tmp_path / f"{lang}.jsonl").write_text(json.dumps(row))
    files = [x for lang in ("en", "fr") for x in ("--file", f"MGSM:{lang}={tmp_path}/{lang}.jsonl")]
    outcome = lens_lang(
        "evaluate", "tasks", folder, "--task", "mgsm", "--task", "X-CSQA", "--task", "xcsqa",
        *files, "--languages", "en,fr", "--items", 2, "--new-tokens", 2, "--controls", 0,
    )  # fmt: skip
    assert outcome.code == 0, outcome
    said = [line for line in outcome.err.splitlines() if line.startswith("Items of")]
    assert said == ["Items of mgsm (files): en 1, fr 1", "Items of xcsqa (packaged): en 2, fr 2"]


def test_the_weights_are_read_as_asked_and_where(
    folder: Path, questions: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def load_model(
        name: str, *, device: str | None = None, dtype: torch.dtype | None = None
    ) -> Any:
        asked.append((device, dtype))
        return model

    monkeypatch.setattr("lens_lang.models.load_model", load_model)
    few = ["--items", 1, "--controls", 0, "--languages", "en,fr", "--task", "xcsqa"]
    done("evaluate", "tasks", folder, *few, "--dtype", "bfloat16", "--device", "cpu")
    done("evaluate", "mwork", folder, *few, "--dtype", "float64")
    done(
        "generate", folder, "--file", questions, "--new-tokens", 1, "--controls", 0, "--dtype",
        "float16", "--languages", "en,fr",
    )  # fmt: skip
    assert asked == [("cpu", torch.bfloat16), (None, torch.float64), (None, torch.float16)]
    for command in ("tasks", "mwork"):
        sentence = refused("evaluate", command, folder, *few, "--dtype", "bfloat")
        assert "--dtype takes bfloat16, float16, float32, float64, got 'bfloat'" in sentence
    assert "--dtype takes" in refused("generate", folder, "--dtype", "int8")
    assert len(asked) == 3


def test_evaluate_without_a_word_is_perplexity(folder: Path) -> None:
    assert "There is no file" in refused("evaluate", folder / "nowhere")
    assert "There is no file" in refused("evaluate", "perplexity", folder / "nowhere")


TASKS = ["evaluate", "tasks", "{}"]
MWORK = ["evaluate", "mwork", "{}", "--task", "mgsm"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["generate", "{}", "--identifier", "oracle"], "--identifier must be langid or lingua"),
        (["generate", "{}", "--strengths", "much"], "--strengths takes numbers"),
        (["generate", "{}", "--off", "--vectors", "1"], "are for steering"),
        (["generate", "{}", "--off", "--strengths", "1"], "are for steering"),
        (["generate", "{}", "--off", "--how", "replace"], "are for steering"),
        (["generate", "{}", "--strengths", "nan"], "--strengths takes numbers"),
        (["generate", "{}", "--vectors", "nan"], "--vectors takes layers, such as"),
        (["generate", "{}", "--vectors", "inf"], "--vectors takes layers, such as"),
        (["generate", "{}", "--vectors", "9.5"], "--vectors takes layers, such as"),
        (["generate", "{}", "--vectors", "-1"], "--vectors takes layers, such as"),
        (["generate", "{}", "--vectors", ""], "--vectors takes layers, such as"),
        (["generate", "{}", "--vectors", "2,3,17"], "layers from 0 to 2 of this model, got 3, 17"),
        (["generate", "{}", "--neurons", ""], "--neurons names none: give some, or steer"),
        (["generate", "{}", "--neurons", "", "--off"], "--neurons names none"),
        (["generate", "{}", "--neurons", "", "--vectors", "1"], "--languages is needed"),
        (
            ["generate", "{}", "--neurons", "", "--vectors", "1", "--how", "add"],
            "--how says what becomes of neurons",
        ),
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
        (
            ["evaluate", "tasks", "{}", "--task", "mgsm", "--file", "xquad:en=x"],
            "--file is for mgsm",
        ),
        (
            [*TASKS, "--task", "mgsm", "--file", "mgsm:en=x", "--file", "MGSM:en=y"],
            "--file names two files of mgsm in en",
        ),
        ([*MWORK, "--tune", "xquad"], "--tune takes TASK:LANGUAGE"),
        ([*MWORK, "--tune", ":fr"], "--tune takes TASK:LANGUAGE"),
        ([*MWORK, "--tune", "xsquad:fr"], "There is no task 'xsquad'"),
        ([*MWORK, "--tune", "xquad:xx-none"], "xx-none"),
        ([*MWORK, "--tune", "xquad:English"], "--tune takes a language to compare with English"),
        ([*MWORK, "--tune", "xquad:zh"], "no language 'zh' here"),
        ([*MWORK, "--tune", "mgsm:fr", "--items", "1"], "two at least"),
        ([*MWORK, "--tune", "mgsm:fr", "--understanding", "1"], "give one"),
        ([*MWORK, "--tune", "mgsm:fr", "--generation", "0.06"], "give one"),
        ([*MWORK, "--metric", "f1"], "--metric 'f1' is not measured for mgsm; known here"),
        (
            [*MWORK, "--metric", "accuracy", "--tune", "xquad:fr"],
            "--metric 'accuracy' is not measured for xquad",
        ),
        ([*MWORK, "--understanding", "3"], "leave none"),
        ([*MWORK, "--understanding", "2.5"], "takes a whole number of layers, or a share below 1"),
        ([*MWORK, "--generation", "nan"], "--generation takes a whole number"),
        ([*MWORK, "--generation", "inf"], "--generation takes a whole number"),
        ([*MWORK, "--generation", "-1"], "--generation takes a whole number"),
    ],
)
def test_impossible_wishes_are_one_sentence(
    arguments: list[str], sentence: str, folder: Path
) -> None:
    assert sentence in refused(*(each.replace("{}", str(folder)) for each in arguments))


def test_what_only_the_items_show_is_refused_after_they_are_named(folder: Path) -> None:
    code, out, err = lens_lang("evaluate", "mwork", folder, "--task", "mgsm", "--languages", "fr")
    assert (code, out) == (2, "")
    first, last = err.splitlines()
    assert first.startswith("Items of mgsm (packaged): fr ")
    assert last.startswith("lens-lang: mgsm must be in English")


def test_languages_are_explained_as_each_command_takes_them() -> None:
    for command in (["generate"], ["evaluate", "tasks"], ["evaluate", "mwork"]):
        assert "every example" not in " ".join(done(*command, "--help").split())
