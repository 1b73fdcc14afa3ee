"""Each command does what its function does, and bad input is one sentence and exit code 2."""

import contextlib
import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
import typer
from conftest import D_MLP, LAYERS, LetterTokenizer, hf_model

from lens_lang import cli
from lens_lang.cli.printing import print_rows
from lens_lang.collection import collect_parallel
from lens_lang.concepts import Concept, read_concepts, translation_prompts
from lens_lang.corpora import Corpora, sample_sentences
from lens_lang.detect.baselines import lap, lave
from lens_lang.detect.lape import lape
from lens_lang.detect.plnd import plnd
from lens_lang.detect.sharing import sharing
from lens_lang.evaluate.categories import CategoryEffect
from lens_lang.evaluate.perplexity import PerplexityMatrix
from lens_lang.importance import Importance
from lens_lang.intervene import ablate
from lens_lang.items import read_facts
from lens_lang.latent import LatentLanguages, latent_language, separable_prompts
from lens_lang.lens import first_documents, language_curve
from lens_lang.models import bridge
from lens_lang.neurons import LanguageNeurons
from lens_lang.parallel import ParallelCorpora
from lens_lang.patterns import SharingPattern, SharingPatterns
from lens_lang.questions import demonstrated
from lens_lang.results import load
from lens_lang.sites import ATTN_K, MLP_POST
from lens_lang.stats import Activations, Frequency
from lens_lang.vocabulary import VocabularyLanguages

HEAVY = ("torch", "transformer_lens", "transformers", "plotly", "circuitsvis", "pandas", "datasets")


class Outcome(NamedTuple):
    """What a shell would see of a command."""

    code: Any
    out: str
    err: str


def lens_lang(*arguments: Any) -> Outcome:
    """Run a command as the installed script does, in this process."""
    argv, excepthook = sys.argv, sys.excepthook
    sys.argv = ["lens-lang", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
        code: Any = 0
    except SystemExit as exit_:
        code = exit_.code
    finally:
        sys.argv, sys.excepthook = argv, excepthook
    return Outcome(code, out.getvalue(), err.getvalue())


def done(*arguments: Any) -> str:
    """Run a command that must succeed; return its stdout."""
    outcome = lens_lang(*arguments)
    assert outcome.code == 0, outcome
    return outcome.out


def refused(*arguments: Any) -> str:
    """Run a command that must be refused with one sentence; return the sentence."""
    code, out, err = lens_lang(*arguments)
    assert (code, out) == (2, ""), (code, out, err)
    assert err.startswith("lens-lang: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def squeezed(text: str) -> str:
    """Text without white space, as tables wrap it anywhere."""
    return "".join(text.split())


def table_rows(text: str) -> list[list[str]]:
    """The cells of a printed table's body."""
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in text.splitlines()
        if line.startswith("│")
    ]


@pytest.fixture(scope="module")
def spelling_model() -> Any:
    """A tiny model with a tokeniser of letters."""
    model = bridge(hf_model("llama"))
    model.tokenizer = LetterTokenizer()
    return model


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name two small text files."""
    folder = tmp_path_factory.mktemp("texts")
    english, french = folder / "en.txt", folder / "fr.jsonl"
    lines = [f"the quick brown fox number {n} jumps over it" for n in range(20)]
    english.write_text("\n".join(lines))
    rows = [{"body": f"le renard rapide et brun {n} saute", "text": "..."} for n in range(20)]
    french.write_text("\n".join(json.dumps(row) for row in rows))
    return ["--text", f"en={english}", "--text", f"French={french}", "--text-column", "body"]


@pytest.fixture
def tiny_model(spelling_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lens_lang.models.load_model", lambda name, device=None: spelling_model)


@pytest.fixture(scope="module")
def run_dir(
    spelling_model: Any, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A run folder that the commands have filled, one after another."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lens_lang.models.load_model", lambda name, device=None: spelling_model)
        done("collect", folder, *texts, "--ctx-len", 32)
        done("detect", "lape", folder, "--top", 0.05)
        done("evaluate", folder, *texts, "--controls", 2)
        done("report", folder)
    yield folder


# --- help ---


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


ALL_COMMANDS = dict(commands(typer.main.get_command(cli.app)))


def test_there_is_one_verb_per_function() -> None:
    assert set(ALL_COMMANDS) == {
        (),
        ("demo",),
        ("collect",),
        ("collect-parallel",),
        ("detect",),
        ("detect", "lape"),
        ("detect", "lap"),
        ("detect", "lave"),
        ("detect", "plnd"),
        ("detect", "sharing"),
        ("attribute",),
        ("card",),
        ("evaluate",),
        ("evaluate", "perplexity"),
        ("evaluate", "tasks"),
        ("evaluate", "mwork"),
        ("generate",),
        ("latent",),
        ("lens",),
        ("tune",),
        ("export",),
        ("apply",),
        ("report",),
        ("info",),
        ("convert",),
    }


@pytest.mark.parametrize("path", ALL_COMMANDS, ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    out = done(*path, "--help")
    assert f"{' '.join(('lens-lang', *path))} [OPTIONS]" in out.splitlines()[0]
    command = ALL_COMMANDS[path]
    assert command.help
    assert squeezed(command.help.splitlines()[0]) in squeezed(out)
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            assert parameter.opts[0] in out
            assert parameter.help, f"{parameter.name} is not explained"


@pytest.mark.parametrize("path", ALL_COMMANDS, ids=" ".join)
def test_every_command_that_takes_a_model_takes_a_device(path: tuple[str, ...]) -> None:
    options = {option for each in ALL_COMMANDS[path].params for option in each.opts}
    assert ("--device" in options) == ("--model" in options)


def test_an_absent_device_is_one_sentence(texts: list[str], tmp_path: Path) -> None:
    wrong = refused("collect", tmp_path / "run", *texts, "--device", "cuda:77")
    assert "There is no device 'cuda:77' here" in wrong


def test_nothing_to_do_shows_the_help() -> None:
    assert "Commands:" in "".join(lens_lang()[1:])
    assert "Commands:" in "".join(lens_lang("detect")[1:])


# --- start-up ---


def heavy_modules_after(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after some code."""
    report = f"print('\\n' + repr(sorted({set(HEAVY)!r} & set(sys.modules))))"
    program = f"import sys\ntry:\n    {code}\nfinally:\n    {report}"
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    return set(json.loads(finished.stdout.splitlines()[-1].replace("'", '"')))


@pytest.mark.parametrize(
    "code",
    [
        "import lens_lang.cli",
        "sys.argv = ['lens-lang', '--help']; import lens_lang.cli; lens_lang.cli.main()",
        "sys.argv = ['lens-lang', 'detect', 'lape', '--help']; import lens_lang.cli as c; c.main()",
        "sys.argv = ['lens-lang', 'detect', 'nope']; import lens_lang.cli as c; c.main()",
    ],
)
def test_the_command_line_answers_without_loading_anything_heavy(code: str) -> None:
    assert heavy_modules_after(code) == set()


def test_a_heavy_import_would_be_noticed() -> None:
    assert "torch" in heavy_modules_after("import lens_lang.cli, lens_lang.neurons")


def test_the_process_ends_with_the_code_and_the_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lens_lang.cli", "report", str(tmp_path / "nowhere")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr == f"lens-lang: There is no run folder {tmp_path / 'nowhere'}\n"


# --- detect, on statistics made by hand ---

FREQUENCY = Frequency(
    languages=("en", "fr"),
    count=torch.tensor([[[50, 1, 30, 0]], [[0, 60, 31, 0]]]),
    n_tokens=torch.tensor([100, 100]),
    provenance={"model": "by hand"},
)
_SUMS = torch.ones(2, 1, 40, dtype=torch.float64)
_SUMS[0, 0, [0, 1]] = torch.tensor([100.0, 90.0], dtype=torch.float64)
_SUMS[1, 0, 7] = 95.0
ACTIVATIONS = Activations(
    languages=("en", "fr"), sum=_SUMS, sum_sq=_SUMS.square(), n_tokens=torch.tensor([10, 10])
)


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    FREQUENCY.save(tmp_path / "frequency.safetensors")
    ACTIVATIONS.save(tmp_path / "activations.safetensors")
    return tmp_path


LENIENT = ["--top", 0.5, "--filter-quantile", 0.5, "--bar-quantile", 0.5]
DETECTORS = {
    "lape": (LENIENT, lape(FREQUENCY, top=0.5, filter_quantile=0.5, bar_quantile=0.5)),
    "lap": (["--threshold", 0.3], lap(FREQUENCY, threshold=0.3)),
    "lave": (["--top", 0.05], lave(ACTIVATIONS, top=0.05)),
}


@pytest.mark.parametrize("method", DETECTORS)
def test_detect_keeps_and_shows_what_the_function_finds(method: str, by_hand: Path) -> None:
    options, expected = DETECTORS[method]
    assert len(expected.union()) > 0
    path = by_hand / f"{method}.safetensors"
    out = done("detect", method, by_hand, *options)
    found = load(path)
    assert isinstance(found, LanguageNeurons)
    assert found == expected
    assert found.provenance["method"] == method
    assert found.provenance["options"] == expected.provenance["options"]
    assert table_rows(out) == [[lang, str(len(some))] for lang, some in expected.items()]
    title = f"{len(expected.union())} distinct neurons, in {path}"
    assert squeezed(title) in squeezed(out)


@pytest.mark.parametrize("method", DETECTORS)
def test_detect_prints_json_for_machines(method: str, by_hand: Path) -> None:
    options, expected = DETECTORS[method]
    assert json.loads(done("detect", method, by_hand, *options, "--json")) == [
        {"language": lang, "neurons": len(some)} for lang, some in expected.items()
    ]


def test_compat_reaches_the_method(by_hand: Path) -> None:
    done("detect", "lape", by_hand, *LENIENT, "--compat")
    found = LanguageNeurons.load(by_hand / "lape.safetensors")
    assert found.provenance["options"]["compat"] is True
    assert found.provenance["options"]["numerics"] == "float32"


def test_a_folder_with_brackets_in_its_name_is_named_whole(by_hand: Path) -> None:
    folder = by_hand / "[bold]"
    folder.mkdir()
    FREQUENCY.save(folder / "frequency.safetensors")
    assert squeezed(str(folder)) in squeezed(done("detect", "lap", folder))


# --- convert ---


def test_convert_there_and_back_keeps_every_neuron(tmp_path: Path) -> None:
    published = [[torch.tensor([3, 300]), torch.tensor([7])], [torch.tensor([3]), torch.tensor([])]]
    torch.save(published, tmp_path / "a.neuron.pth")
    out = done("convert", tmp_path / "a.neuron.pth", tmp_path / "b.st", "--languages", "en, zh")
    assert "en 3, zh 1; 3 distinct" in out
    ours = LanguageNeurons.load(tmp_path / "b.st")
    assert ours.languages == ("en", "zh")
    assert ours["en"].indices(MLP_POST).tolist() == [[0, 3], [0, 300], [1, 7]]
    out = done("convert", tmp_path / "b.st", tmp_path / "c.pth")
    assert f"{tmp_path / 'c.pth'}: LanguageNeurons(" in out
    back = torch.load(tmp_path / "c.pth", weights_only=True)
    assert [[x.tolist() for x in lang] for lang in back] == [[[3, 300], [7]], [[3], []]]


def test_convert_refuses_what_it_cannot_turn(tmp_path: Path) -> None:
    source, target = tmp_path / "a.pth", tmp_path / "b.safetensors"
    torch.save([[torch.tensor([3])], [torch.tensor([4])]], source)
    assert "--languages is needed" in refused("convert", source, target)
    assert "--languages is needed" in refused("convert", source, target, "--languages", " , ")
    assert "has 2 languages, but 3 names" in refused(
        "convert", source, target, "--languages", "en,zh,fr"
    )
    assert "given twice: en" in refused("convert", source, target, "--languages", "en,en")
    assert "no neuron file" in refused(
        "convert", tmp_path / "x.pth", target, "--languages", "en,zh"
    )
    assert "There is no file" in refused("convert", tmp_path / "x.safetensors", tmp_path / "y.pth")
    assert "not a readable safetensors file" in refused(
        "convert", source.rename(tmp_path / "a.pt"), target
    )
    assert not target.exists()


# --- bad input ---


@pytest.mark.parametrize("method", ["lape", "lap", "lave"])
def test_detect_without_statistics_names_the_missing_file(method: str, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    assert f"There is no file {missing}" in refused("detect", method, missing)
    assert not missing.exists()


def test_a_detector_that_does_not_exist_is_a_usage_error() -> None:
    code, out, err = lens_lang("detect", "lope", "runs/x")
    assert (code, out) == (2, "")
    assert "No such command 'lope'" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--top", 2], "top is a share of all neurons, above 0 and at most 1, got 2.0"),
        (["--filter-quantile", 0], "filter_quantile must lie above 0"),
        (["--bar-quantile", 1.5], "bar_quantile must lie above 0 and at most at 1, got 1.5"),
    ],
)
def test_impossible_options_are_refused(options: list[Any], sentence: str, by_hand: Path) -> None:
    assert sentence in refused("detect", "lape", by_hand, *options)
    assert not (by_hand / "lape.safetensors").exists()


def test_a_word_in_place_of_a_number_is_a_usage_error(by_hand: Path) -> None:
    code, _, err = lens_lang("detect", "lape", by_hand, "--top", "many")
    assert code == 2
    assert "--top" in err
    assert "Traceback" not in err


def test_a_neuron_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    sentence = refused("evaluate", tmp_path, "--neurons", "lope")
    assert f"There is no file {tmp_path / 'lope.safetensors'}" in sentence


def test_a_statistic_in_place_of_neurons_is_refused(by_hand: Path) -> None:
    sentence = refused("evaluate", by_hand, "--neurons", "frequency")
    assert "holds a Frequency, not a LanguageNeurons" in sentence


def test_reports_of_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    assert "There is no run folder" in refused("report", tmp_path / "nowhere")
    assert "holds no result to report" in refused("report", tmp_path)


def test_a_report_without_a_file_that_cannot_be_read_says_so(by_hand: Path) -> None:
    (by_hand / "old.safetensors").write_bytes(b"half a fi")
    outcome = lens_lang("report", by_hand)
    assert (outcome.code, outcome.out.strip()) == (1, str(by_hand / "report.html"))
    assert outcome.err.startswith("lens-lang: old.safetensors is not on the page: ")
    assert "Traceback" not in outcome.err


def test_a_model_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert "There is no model folder" in refused("info", tmp_path / "nowhere")


@pytest.mark.usefixtures("tiny_model")
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--text", "fr.txt"], "--text takes LANGUAGE=FILE, once per language, got 'fr.txt'"),
        (["--text", "fr=a.txt", "--text", "fr=b.txt"], "once per language, got 'fr=b.txt'"),
        (["--text", "fr=nowhere.txt"], "There is no text file nowhere.txt"),
        (["--text", "fr=a.pdf"], "Cannot read text from a.pdf"),
        (["--text", "qqqq=a.txt"], "No language is called 'qqqq'"),
        (["--text", "=a.txt"], "No language is called ''"),
        (["--text", "Frenhc=a.txt"], "did you mean 'French'?"),
    ],
)
def test_text_that_cannot_be_read_is_refused(
    options: list[str], sentence: str, tmp_path: Path
) -> None:
    assert sentence in refused("collect", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("tiny_model")
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--shard", "1"], "--shard takes INDEX/COUNT, such as 0/4, got '1'"),
        (["--shard", "a/b"], "--shard takes INDEX/COUNT"),
        (["--shard=-1/2"], "--shard takes INDEX/COUNT"),
        (["--shard", "3/2"], "Share 3 of 2 does not exist"),
        (["--shard", "0/0"], "Share 0 of 0 does not exist"),
        (["--shard", "7/8"], "Share 7 of 8 has no batch of en, fr"),
        (["--ctx-len", "1"], "ctx_len must be at least 2 tokens"),
        (["--ctx-len", "100000"], "fewer than one row"),
        (["--tokens", "0"], "tokens must be at least 1"),
        (["--text-column", "bodi"], "has no column 'bodi'; did you mean 'body'?"),
        pytest.param(["--batch-size", "0"], "batch_size must be at least 1"),
    ],
)
def test_impossible_ways_to_collect_are_refused(
    options: list[str], sentence: str, texts: list[str], tmp_path: Path
) -> None:
    assert sentence in refused("collect", tmp_path / "run", *texts, *options)


@pytest.mark.usefixtures("tiny_model")
def test_another_run_in_the_same_folder_is_refused(run_dir: Path, texts: list[str]) -> None:
    sentence = refused("collect", run_dir, *texts, "--ctx-len", 16)
    assert "holds another run: corpora.ctx_len was 32 and is now 16" in sentence


def test_an_interrupted_command_says_so_and_ends_with_code_130(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(
        "lens_lang.models.load_model", lambda name, device=None: signal.raise_signal(signal.SIGINT)
    )
    done = lens_lang("info")
    assert done.code == 130
    assert done.err == "lens-lang: interrupted; the same command continues from what was saved\n"
    assert signal.getsignal(signal.SIGINT) is before


# --- with a model, from text to report ---


def test_the_whole_path_leaves_every_result_in_the_run_folder(run_dir: Path) -> None:
    kinds = {path.name: type(load(path)) for path in run_dir.glob("*.safetensors")}
    assert kinds == {
        "frequency.safetensors": Frequency,
        "activations.safetensors": Activations,
        "lape.safetensors": LanguageNeurons,
        "perplexity.safetensors": PerplexityMatrix,
    }
    assert (run_dir / "report.html").stat().st_size > 1_000_000  # plotly is inside


def test_collect_counts_the_text_it_was_given(run_dir: Path) -> None:
    freq = Frequency.load(run_dir / "frequency.safetensors")
    assert freq.languages == ("en", "fr")
    assert freq.count.shape == (2, LAYERS, D_MLP)
    # full rows of 31 letters after BOS
    lengths = [
        sum(len(f"the quick brown fox number {n} jumps over it") for n in range(20)),
        sum(len(f"le renard rapide et brun {n} saute") for n in range(20)),
    ]
    assert freq.n_tokens.tolist() == [length - length % 31 for length in lengths]


def test_detected_neurons_are_those_of_the_function(run_dir: Path) -> None:
    freq = Frequency.load(run_dir / "frequency.safetensors")
    found = LanguageNeurons.load(run_dir / "lape.safetensors")
    assert found == lape(freq, top=0.05)
    assert len(found.union()) == round(0.05 * LAYERS * D_MLP)


def test_evaluate_measures_every_language_document_by_document(run_dir: Path) -> None:
    matrix = PerplexityMatrix.load(run_dir / "perplexity.safetensors")
    assert matrix.interventions == matrix.languages == ("en", "fr")
    assert matrix.n_controls == 2
    # controls were measured on the intervention's own language only
    assert torch.isfinite(matrix.control).tolist() == [[True, False], [False, True]]
    assert {lang: len(docs.n_tokens) for lang, docs in matrix.documents.items()} == {
        "en": 20,
        "fr": 20,
    }
    assert bool((matrix.delta_nll.diagonal() != 0).all())


@pytest.fixture
def found_dir(run_dir: Path, tmp_path: Path) -> Path:
    """A run folder of one's own, with neurons in it."""
    (tmp_path / "lape.safetensors").write_bytes((run_dir / "lape.safetensors").read_bytes())
    return tmp_path


@pytest.mark.usefixtures("tiny_model")
def test_evaluate_prints_its_table_as_json(found_dir: Path, texts: list[str]) -> None:
    options = ["--controls", 1, "--all-controls", "--tokens", 60]
    rows = json.loads(done("evaluate", found_dir, *texts, *options, "--json"))
    assert [(row["intervention"], row["language"]) for row in rows] == [
        ("en", "en"),
        ("en", "fr"),
        ("fr", "en"),
        ("fr", "fr"),
    ]
    matrix = PerplexityMatrix.load(found_dir / "perplexity.safetensors")
    assert [row["delta_nll"] for row in rows] == pytest.approx(
        matrix.delta_nll.flatten().tolist(), abs=5e-5
    )
    assert bool(torch.isfinite(matrix.control).all())


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@pytest.mark.usefixtures("tiny_model")
def test_controls_that_were_not_measured_are_still_json(found_dir: Path, texts: list[str]) -> None:
    options = ["--controls", 1, "--tokens", 60]
    out = done("evaluate", found_dir, *texts, *options, "--json")
    json.loads(out, parse_constant=refuse_constant)


@pytest.mark.usefixtures("tiny_model")
def test_a_table_in_a_pipe_is_not_cut(found_dir: Path, texts: list[str]) -> None:
    out = done("evaluate", found_dir, *texts, "--controls", 1, "--tokens", 60)
    assert "…" not in out


@pytest.mark.usefixtures("tiny_model")
def test_a_measurement_without_controls_is_kept_and_reported(
    found_dir: Path, texts: list[str]
) -> None:
    done("evaluate", found_dir, *texts, "--controls", 0, "--tokens", 60)
    assert PerplexityMatrix.load(found_dir / "perplexity.safetensors").n_controls == 0
    assert done("report", found_dir).strip() == str(found_dir / "report.html")


@pytest.mark.usefixtures("tiny_model")
def test_shares_of_two_machines_add_up_to_the_whole(
    run_dir: Path, texts: list[str], tmp_path: Path
) -> None:
    parts = []
    for index in (0, 1):
        out = tmp_path / str(index)
        outcome = lens_lang("collect", out, *texts, "--ctx-len", 32, "--shard", f"{index}/2")
        assert outcome.code == 0
        assert outcome.err.endswith(f"Statistics of 2 languages are in {out}\n")
        parts.append(Frequency.load(out / "frequency.safetensors"))
    whole = Frequency.load(run_dir / "frequency.safetensors")
    assert torch.equal((parts[0] + parts[1]).count, whole.count)


@pytest.mark.usefixtures("tiny_model")
def test_without_text_the_sample_is_read(tmp_path: Path) -> None:
    done("collect", tmp_path / "run", "--tokens", 200, "--ctx-len", 32)
    freq = Frequency.load(tmp_path / "run" / "frequency.safetensors")
    assert freq.languages == ("en", "de", "es", "fr", "id", "ja", "ru", "vi", "zh")
    assert freq.n_tokens.tolist() == [186] * 9  # six rows of 31


@pytest.mark.usefixtures("tiny_model")
def test_info_says_what_is_seen_of_a_model() -> None:
    found = json.loads(done("info", "--json"))
    assert (found["layers"], found["gated"]) == (LAYERS, True)
    assert found["neurons per layer"]["mlp_post"] == D_MLP
    assert found["tokeniser"] == "LetterTokenizer"
    rows = dict(table_rows(done("info")))
    assert rows["layers"] == str(LAYERS)
    assert rows["neurons per layer mlp_post"] == str(D_MLP)
    assert rows["versions torch"] == torch.__version__


def test_demo_tells_its_story_on_stderr_and_its_table_on_stdout(
    spelling_model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("lens_lang.demo.load_model", lambda name: spelling_model)
    few = {lang: lines[:40] for lang, lines in sample_sentences().items()}
    monkeypatch.setattr("lens_lang.corpora.sample_sentences", lambda: few)
    code, out, err = lens_lang("demo", "--out", tmp_path, "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["language"] for row in rows] == [
        *("en", "de", "es", "fr", "id", "ja", "ru", "vi", "zh")
    ]
    found = LanguageNeurons.load(tmp_path / "lape.safetensors")
    assert [row["neurons"] for row in rows] == [len(some) for some in found.values()]
    assert f"LAPE chose {len(found.union())} of {LAYERS * D_MLP} neurons." in err
    assert (tmp_path / "report.html").is_file()


def test_full_demo_measures_all_held_out_text_with_controls_on_every_language(
    spelling_model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("lens_lang.demo.load_model", lambda name: spelling_model)
    few = {lang: lines[:10] for lang, lines in sample_sentences().items() if lang in ("en", "fr")}
    monkeypatch.setattr("lens_lang.corpora.sample_sentences", lambda: few)
    code, out, err = lens_lang("demo", "--out", tmp_path, "--full")
    assert code == 0, err
    assert "--full takes" not in err
    matrix = load(tmp_path / "perplexity.safetensors")
    assert isinstance(matrix, PerplexityMatrix)
    assert matrix.n_controls == 5
    assert not matrix.control.isnan().any()
    assert f"of {len(matrix.languages)} languages depend on their own neurons" in err
    assert "passes" in out


# --- PLND ---


def test_plnd_from_text_to_report(
    spelling_model: Any, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lens_lang.models.load_model", lambda name, device=None: spelling_model)
    folder = tmp_path / "plnd"
    collected = ("collect", folder, *texts, "--statistic", "plnd", "--tokens", 200, "--ctx-len", 64)
    done(*collected, "--top-mlp", 30, "--top-attn", 0.5)
    imp = Importance.load(folder / "importance.safetensors")
    assert imp.rule["thresholds"] == {
        "mlp_post": 30,
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_z"), 0.5),
    }
    options = ("--min-share", 0.8, "--top", 9, "--without", "common")
    rows = json.loads(done("detect", "plnd", folder, *options, "--json"))
    neurons = load(folder / "plnd.safetensors")
    assert neurons == plnd(imp, min_share=0.8, top=9, without="common")
    assert [row["language"] for row in rows] == ["en", "fr"]
    for row in rows:
        assert row["neurons"] == len(neurons[row["language"]])
        assert row["attn_k"] == int(neurons[row["language"]].masks[ATTN_K].sum())
    done("evaluate", folder, *texts, "--neurons", "plnd", "--controls", 2, "--tokens", 100)
    assert (folder / "perplexity-plnd.safetensors").exists()
    done("report", folder)
    assert "Neurons found by PLND" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("tiny_model")
def test_an_impossible_threshold_is_refused(texts: list[str], tmp_path: Path) -> None:
    options = ("--statistic", "plnd", "--top-mlp", "0")
    sentence = refused("collect", tmp_path / "run", *texts, *options)
    assert "The threshold of 'mlp' must be above 0, got 0.0" in sentence


@pytest.mark.parametrize(
    ("options", "choices"),
    [
        (["--mode", "fast"], "'exact', 'first_order', 'released'"),
        (["--statistic", "lape"], "'firing', 'plnd'"),
    ],
)
def test_words_that_are_no_choice_are_refused(
    options: list[str], choices: str, tmp_path: Path
) -> None:
    outcome = lens_lang("collect", tmp_path / "run", *options)
    assert outcome.code == 2
    assert f"{options[1]!r} is not one of {choices}" in squeezed_words(outcome.err)


def squeezed_words(text: str) -> str:
    return " ".join(text.split())


def test_detecting_without_importance_is_one_sentence(tmp_path: Path) -> None:
    assert "There is no file" in refused("detect", "plnd", tmp_path)


# --- layers ---


def test_the_language_of_layers_with_and_without_neurons(
    texts: list[str], run_dir: Path, monkeypatch: pytest.MonkeyPatch, spelling_model: Any
) -> None:
    monkeypatch.setattr("lens_lang.models.load_model", lambda name, device=None: spelling_model)
    monkeypatch.setenv("LENS_LANG_CACHE", str(run_dir / "cache"))
    options = ("--neurons", "lape", "--prompts", 2, "--json")
    rows = json.loads(done("lens", run_dir, *texts, *options))
    cases = ["curve", "curve-lape-off", "curve-lape-random"]
    assert [row["case"] for row in rows] == [case for case in cases for _ in range(2)]
    curves = {case: load(run_dir / f"{case}.safetensors") for case in cases}
    vocabulary = load(run_dir / "vocabulary.safetensors")
    assert isinstance(vocabulary, VocabularyLanguages)
    corpora = Corpora.from_files(
        dict(pair.split("=") for pair in texts[1:4:2]), spelling_model, text_column="body"
    )
    _, held_out = corpora.split(0.8, seed=0)
    some = first_documents(held_out, 2)
    neurons = LanguageNeurons.load(run_dir / "lape.safetensors")
    hooks = {lang: ablate(each) for lang, each in neurons.items()}
    expected = {
        "curve": language_curve(spelling_model, some, vocabulary),
        "curve-lape-off": language_curve(spelling_model, some, vocabulary, fwd_hooks=hooks),
    }
    for case, curve in expected.items():
        assert torch.equal(curves[case].values, curve.values)
        assert curves[case].prompt_languages == ("en", "en", "fr", "fr")
    assert not torch.equal(curves["curve-lape-random"].values, curves["curve"].values)
    done("lens", run_dir, *texts, "--last", "--raw", "--top-k", 3, "--prompts", 1)
    about = load(run_dir / "curve.safetensors").provenance
    assert (about["positions"], about["norm"], about["top_k"]) == ("last", False, 3)
    done("report", run_dir)
    assert "Language of each layer" in (run_dir / "report.html").read_text(encoding="utf-8")


def test_the_latent_language_of_words(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, spelling_model: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr("lens_lang.models.load_model", lambda name, device=None: spelling_model)
    words = tmp_path / "words.jsonl"
    pairs = [("dog", "chien"), ("house", "maison"), ("sun", "soleil"), ("six", "six")]
    pairs += [("black", "noir"), ("king", "roi")]
    rows = [
        {
            "concept": en,
            "words": {"en": en, "fr": fr},
            "cloze": {"fr": f'Un "___" numéro {n}.', "en": f'A "___" number {n}.'},
        }
        for n, (en, fr) in enumerate(pairs)
    ]
    words.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    common = ("latent", run_dir, "--target", "French", "--words", words, "--json")
    table = json.loads(done(*common, "--source", "en", "--prompts", 2))
    assert [row["layer"] for row in table] == list(range(LAYERS + 1))
    found = load(run_dir / "latent-en-fr.safetensors")
    assert isinstance(found, LatentLanguages)
    assert found.languages == ("fr", "en")
    assert len(found.probability) == 2
    prompts, sets = separable_prompts(
        spelling_model, translation_prompts(read_concepts(words), "en", "fr")
    )
    expected = latent_language(spelling_model, prompts[:2], sets[:2])
    assert torch.equal(found.probability, expected.probability)
    assert table[1]["fr"] == pytest.approx(float(found.mean[1, 0]), abs=1e-4)
    done(*common, "--neurons", "lape")
    off = load(run_dir / "latent-cloze-fr-lape-off.safetensors")
    assert isinstance(off, LatentLanguages)
    random = load(run_dir / "latent-cloze-fr-lape-random.safetensors")
    assert isinstance(random, LatentLanguages)
    assert off.provenance["fwd_hooks"] == random.provenance["fwd_hooks"] != []
    assert not torch.equal(off.probability, random.probability)
    assert "has nothing in 'de'" in refused("latent", run_dir, "--target", "de", "--words", words)


# --- shared neurons ---


@pytest.fixture
def task(tmp_path: Path) -> Path:
    rows = [
        {
            "id": f"q{n}",
            "prompt": {"en": f"{n} plus", "fr": f"{n} et"},
            "answer": {"en": "x", "fr": "y"},
        }
        for n in range(5)
    ]
    path = tmp_path / "task.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.usefixtures("tiny_model")
def test_shared_neurons_from_collecting_to_the_report(
    task: Path, spelling_model: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    common = ("--task", f"facts={task}", "--demonstrations", 1)
    levels = ("--threshold", 0, "--threshold", 0.1)
    done("collect-parallel", run, *common, *levels)
    examples = ParallelCorpora.from_questions(demonstrated(read_facts(task), 1), spelling_model)
    spec = SharingPattern(threshold=(0.0, 0.1))
    expected = collect_parallel(spelling_model, examples, spec)
    patterns = load(run / "sharingpatterns.safetensors")
    assert isinstance(patterns, SharingPatterns)
    assert torch.equal(patterns.exactly, expected.exactly)
    options = ("--min-share", 0.6, "--threshold", 0.1, "--json")
    rows = json.loads(done("detect", "sharing", run, *options))
    found = sharing(expected, threshold=0.1, min_share=0.6)
    assert load(run / "sharing.safetensors") == found.neurons()
    assert rows[0]["share"] == pytest.approx(float(found.share[0, 0]), abs=1e-4)
    assert len(table_rows(done("detect", "sharing", run))) == LAYERS
    rows = json.loads(done("attribute", run, *common, "--controls", 1, "--items", 3, "--json"))
    effect = load(run / "categoryeffect-facts.safetensors")
    assert isinstance(effect, CategoryEffect)
    assert effect.names == ("q0", "q1", "q3")  # evenly chosen
    assert [row["language"] for row in rows] == ["en"] * 4 + ["fr"] * 4 + ["all"] * 4
    assert rows[0]["delta"] == pytest.approx(float(effect.change[0, :, 0].mean()), abs=1e-4)
    assert 0 <= rows[0]["top"] <= 1
    done("report", run)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Effect of switching off each kind" in page and "Neurons shared by languages" in page


@pytest.mark.usefixtures("tiny_model")
def test_attribution_shows_the_cards_of_the_strongest(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LENS_LANG_CACHE", str(tmp_path / "cache"))
    options = ("--task", f"facts={task}", "--controls", 0, "--last", "--cards", 2)
    code, out, err = lens_lang("attribute", tmp_path / "run", *options)
    assert code == 0, err
    assert "control" not in out
    names = re.findall(r"^neuron (\d+\.\d+) of ", err, flags=re.M)
    assert len(set(names)) == 2


@pytest.mark.usefixtures("tiny_model")
def test_parallel_text_is_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_text("a cat\na dog\na cow\n")
    (tmp_path / "fr.txt").write_text("un chat\nun chien\nune vache\n")
    text = ("--text", f"en={tmp_path / 'en.txt'}", "--text", f"fr={tmp_path / 'fr.txt'}")
    done("collect-parallel", tmp_path / "run", *text, "--shard", "1/2")
    patterns = load(tmp_path / "run" / "sharingpatterns.safetensors")
    assert isinstance(patterns, SharingPatterns)
    assert patterns.names == ("1",)
    (tmp_path / "fr.txt").write_text("un chat\n\nune vache\n")
    sentence = refused("collect-parallel", tmp_path / "b", *text)
    assert "empty in 'fr'" in sentence


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--task", "fact"), "--task takes facts"),
        (("--task", "relations"), "--task takes facts"),
        (("--task", "relations=."), "needs --languages"),
        (("--task", "facts=nowhere.jsonl"), "nowhere.jsonl"),
        (("--task", "entailment", "--instruction", "fr"), "--instruction must be en or native"),
        (("--task", "facts", "--items", 0), "--items must be at least 1"),
        (("--task", "facts", "--demonstrations", -1), "at least 0"),
        (("--task", "facts", "--demonstrations", 24), "24 demonstrations"),
    ],
)
def test_a_wrong_task_is_one_sentence_before_the_model_loads(
    tmp_path: Path, options: tuple[Any, ...], words: str
) -> None:
    assert words in refused("attribute", tmp_path, *options)
    assert words in refused("collect-parallel", tmp_path, *options)


def test_options_that_do_not_go_together_are_refused(tmp_path: Path, texts: list[str]) -> None:
    run = ("collect-parallel", tmp_path)
    assert "two sources" in refused(*run, "--task", "facts", *texts)
    assert "leave out --languages" in refused(*run, "--languages", "en, fr", *texts)
    assert "give --task" in refused(*run, "--demonstrations", 1)
    for wrong in ("--cards", "--controls"):
        assert "at least 0" in refused("attribute", tmp_path, wrong, -1)


@pytest.mark.usefixtures("tiny_model")
def test_languages_and_items_of_the_sample_can_be_chosen(tmp_path: Path) -> None:
    done("collect-parallel", tmp_path, "--languages", "en, zh", "--items", 2, "--batch-size", 1)
    patterns = load(tmp_path / "sharingpatterns.safetensors")
    assert isinstance(patterns, SharingPatterns)
    assert (patterns.languages, patterns.names) == (("en", "zh"), ("0", "60"))
    any_example = json.loads(done("detect", "sharing", tmp_path, "--across", "any", "--json"))
    assert len(any_example) == 4 * LAYERS
    assert "--across must be" in refused("detect", "sharing", tmp_path, "--across", "all")


# --- keeping ---


def test_tuning_exporting_and_applying(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command starts from the model as it is on disk."""

    def fresh(name: str, device: str | None = None) -> Any:
        model = bridge(hf_model("llama"))
        model.tokenizer = LetterTokenizer()
        return model

    monkeypatch.setattr("lens_lang.models.load_model", fresh)
    folder = tmp_path / "run"
    done("collect", folder, *texts, "--ctx-len", 32)
    done("detect", "lape", folder, "--top", 0.05)
    held_out = [x.replace("--text", "--held-out") if x == "--text" else x for x in texts]
    plain = [  # the tokeniser of this test has ASCII only
        Concept(fr, {"fr": fr, "en": en}, {"fr": f'"___" {n}', "en": f'"___" is {n}'})
        for n, (fr, en) in enumerate([("chat", "cat"), ("chien", "dog"), ("roi", "king")] * 2)
    ]
    monkeypatch.setattr("lens_lang.concepts.read_concepts", lambda: plain)
    options = ("--language", "French", "--steps", 3, "--lr", 0.01, "--ctx-len", 32, "--cloze", 4)
    rows = json.loads(done("tune", folder, *options, *texts, *held_out[:4], "--json"))
    assert [row["language"] for row in rows] == ["en", "fr"]
    assert [row["word prompts"] for row in rows] == [4, 4]
    assert all(row["word ci_low"] <= row["word delta"] <= row["word ci_high"] for row in rows)
    assert any(row["word delta"] != 0 for row in rows)
    assert all(row["intervention"] == "tuned" for row in rows)
    delta = load(folder / "delta-French.safetensors")
    matrix = load(folder / "tuned-French.safetensors")
    assert (matrix.n_controls, matrix.interventions) == (1, ("tuned",))
    monkeypatch.setattr(LetterTokenizer, "save_pretrained", lambda self, path: (), raising=False)
    changed = Path(done("apply", folder / "delta-French.safetensors", tmp_path / "tuned").strip())
    tokens = torch.tensor([[1, 5, 9, 40, 3]])
    expected = fresh("")
    delta.apply(expected)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(changed)
    torch.testing.assert_close(loaded(tokens).logits, expected(tokens), rtol=1e-5, atol=1e-5)
    off = done("export", folder, tmp_path / "off", "--language", "fr").strip()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(off)
    hooks = ablate(load(folder / "lape.safetensors")["fr"])
    hooked = fresh("").run_with_hooks(tokens, fwd_hooks=hooks)
    torch.testing.assert_close(loaded(tokens).logits, hooked, rtol=1e-5, atol=1e-5)
    done("report", folder)
    assert "Effect of training them" in (folder / "report.html").read_text(encoding="utf-8")


def test_what_rounds_to_nothing_has_no_sign(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([{"random": round(-0.0001, 3), "own": -0.022}], False, "")
    assert re.findall(r"-?\d\.\d+", capsys.readouterr().out) == ["0.0", "-0.022"]
