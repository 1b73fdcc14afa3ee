"""The harness's numbers are those of its own ``hf`` backend on the same weights."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, partialmethod
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
import yaml
from conftest import D_MLP, LAYERS, VOCAB, hf_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from lens_lang import harness
from lens_lang.errors import (
    CorpusError,
    LanguageError,
    MissingExtraError,
    OptionError,
    ShapeError,
    SiteError,
    StorageError,
)
from lens_lang.harness import HarnessModel, main
from lens_lang.harness_settings import HarnessArguments, decoding_of
from lens_lang.intervene import ablate, scale
from lens_lang.models import bridge
from lens_lang.neurons import LanguageNeurons, NeuronSet
from lens_lang.sites import MLP_POST

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.registry import Registry, get_model, model_registry  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

TEXT = (
    "the cat sat on the mat and the dog ran to the sea",
    "le chat est sur la table et le chien court vers la mer",
    "question answer red blue green one two three : ? . , \n",
)
MESSAGES = [{"role": "system", "content": "one"}, {"role": "user", "content": "the cat"}]
CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}"
    "{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}answer:{% endif %}"
)


def letters(*, bos: bool = True) -> transformers.PreTrainedTokenizerFast:
    """A small tokeniser in which spaces matter, as in those of Llama."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>", "<end>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<end>"],
    )


@cache
def ours(architecture: str = "llama") -> Any:
    """The bridge that the tests read, made once."""
    return bridge(hf_model(architecture), letters(), name="toy")


@cache
def theirs(*, bos: bool = True, off: bool = False, architecture: str = "llama") -> Any:
    """The harness's backend on the same weights, the chosen neurons zeroed in them or not."""
    hf = hf_model(architecture)
    if off:
        with torch.no_grad():
            for _, layer, index in chosen():
                hf.model.layers[layer].mlp.down_proj.weight[:, index] = 0
    return HFLM(pretrained=hf, tokenizer=letters(bos=bos), batch_size=1, add_bos_token=bos)


def chosen(seed: int = 0) -> NeuronSet:
    generator = torch.Generator().manual_seed(seed)
    return NeuronSet({MLP_POST: torch.rand(LAYERS, D_MLP, generator=generator) < 0.3})


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=each, task_name="toy") for each in arguments]


PAIRS = requests(
    ("the cat", " sat"),
    ("the cat ", "sat on"),
    ("the cat sat on the mat", " and the dog"),
    ("", "le chat"),
    ("", "<s>le chat"),
    ("the cat", " sat on the sea"),
    ("<s>the cat", " ran"),
    ("question:", " red"),
    ("question:", " blue"),
    ("the dog ran to the sea and " * 20, "le chien court"),
    ("question:\n\n", "le"),
)
TEXTS = requests(("the cat sat",), ("le chat est sur la table et " * 30,), ("",), ("one",))
CONTEXTS = ["the cat sat on", "question:", "le chien court vers la mer et le", "one ", "the " * 99]


def wishes(**settings: Any) -> list[Any]:
    return requests(*((text, {"do_sample": False, **settings}) for text in CONTEXTS))


def assert_alike(mine: Any, their: Any) -> None:
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in their]
    assert [p for p, _ in mine] == pytest.approx([p for p, _ in their], abs=1e-4)


# --- the hf backend's numbers ---


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("max_length", [None, 24])
def test_likelihoods_are_those_of_the_hf_backend(bos: bool, max_length: int | None) -> None:
    mine = HarnessModel(ours(), batch_size=2, max_length=max_length, add_bos_token=bos)
    their = theirs(bos=bos)
    their._max_length = max_length
    assert mine.max_length == their.max_length
    assert_alike(mine.loglikelihood(PAIRS), their.loglikelihood(PAIRS, disable_tqdm=True))
    rolled = mine.loglikelihood_rolling(TEXTS)
    assert rolled == pytest.approx(their.loglikelihood_rolling(TEXTS, disable_tqdm=True), abs=1e-3)
    assert (rolled[2] == 0) == (not bos)  # BOS behind BOS
    assert rolled[1] < rolled[0] < rolled[3] < 0


@pytest.mark.parametrize(
    ("until", "max_gen_toks"),
    [([], 1), ([], 20), (["\n"], 9), (["re", "at"], 20), (" t", 20), (["<end>"], 20)],
)
def test_greedy_answers_are_those_of_the_hf_backend(until: Any, max_gen_toks: int) -> None:
    asked = wishes(until=until, max_gen_toks=max_gen_toks)
    mine = HarnessModel(ours(), batch_size=2).generate_until(asked)
    assert mine == theirs().generate_until(wishes(until=until, max_gen_toks=max_gen_toks))
    assert any(mine)


def test_a_special_token_ends_an_answer() -> None:
    """The model says <end> and goes on, so that what is cut can be seen."""
    model = HarnessModel(ours())
    open_end, closed = (
        model.generate_until(wishes(until=until, max_gen_toks=12))[2] for until in ([], ["<end>"])
    )
    assert open_end.startswith(closed) and len(open_end) > len(closed) > 0


def test_every_request_has_its_own_settings_and_place() -> None:
    model = HarnessModel(ours(), batch_size=2)
    kinds = ({"max_gen_toks": 4}, {"max_gen_toks": 9, "until": ["e"]}, {"max_new_tokens": 9})
    mixed = [wishes(**kinds[n % 3])[n % 5] for n in (7, 0, 13, 3, 12, 5, 1, 8)]
    assert model.generate_until(mixed) == [model.generate_until([one])[0] for one in mixed]
    assert model.generate_until(wishes(max_tokens=4)) == model.generate_until(wishes(**kinds[0]))


def test_neurons_switched_off_are_weights_zeroed() -> None:
    mine, plain = HarnessModel(ours(), fwd_hooks=ablate(chosen())), HarnessModel(ours())
    their = theirs(off=True)
    scores = mine.loglikelihood(PAIRS)
    assert_alike(scores, their.loglikelihood(PAIRS, disable_tqdm=True))
    unchanged = plain.loglikelihood(PAIRS)
    moved = [abs(a - b) for (a, _), (b, _) in zip(scores, unchanged, strict=True)]
    assert max(moved) > 0.01  # a hundred times what likelihoods may differ
    rolled = mine.loglikelihood_rolling(TEXTS)
    assert rolled == pytest.approx(their.loglikelihood_rolling(TEXTS), abs=1e-3)
    asked = wishes(max_gen_toks=12)
    assert mine.generate_until(asked) == their.generate_until(wishes(max_gen_toks=12))
    assert mine.generate_until(asked) != plain.generate_until(asked)


def test_batches_change_nothing() -> None:
    one, many = (HarnessModel(ours(), batch_size=size) for size in (1, 64))
    assert_alike(one.loglikelihood(PAIRS), many.loglikelihood(PAIRS))
    asked = wishes(max_gen_toks=9)
    assert one.generate_until(asked) == many.generate_until(asked)


def test_learned_positions_read_rows_up_to_the_whole_context() -> None:
    model = HarnessModel(ours("gpt2"), batch_size=4)
    their = theirs(architecture="gpt2")
    assert_alike(model.loglikelihood(PAIRS), their.loglikelihood(PAIRS, disable_tqdm=True))
    long = requests(("the cat " * 60,), ("le chat " * 10,))
    expected = their.loglikelihood_rolling(long, disable_tqdm=True)
    assert model.loglikelihood_rolling(long) == pytest.approx(expected, abs=1e-3)
    asked = wishes(max_gen_toks=5)[-1:]
    assert model.generate_until(asked) == their.generate_until(wishes(max_gen_toks=5)[-1:])


# --- tasks ---


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TaskManager]:
    """Three tasks of one's own, in files, and no network."""
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {"q": "the cat sat on the", "choices": ["mat", "sea", "green"], "right": 0, "text": t}
        for t in TEXT
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "num_fewshot": 0,
    }
    specific: dict[str, dict[str, Any]] = {
        "toy_choice": {
            "output_type": "multiple_choice",
            "doc_to_text": "question: {{q}}\nanswer:",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{right}}",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        "toy_answer": {
            "output_type": "generate_until",
            "doc_to_text": "question: {{q}}\nanswer:",
            "doc_to_target": "mat",
            "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 7, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        },
        "toy_text": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
    }
    for name, task in specific.items():
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"task": name, **common, **task}), encoding="utf-8")
    yield TaskManager(include_path=str(folder), include_defaults=False)


def evaluated(model: Any, tasks: TaskManager, **options: Any) -> dict[str, Any]:
    names = ["toy_choice", "toy_answer", "toy_text"]
    found = lm_eval.simple_evaluate(
        model=model, tasks=names, task_manager=tasks, bootstrap_iters=0, **options
    )
    assert found is not None
    return found


def numbers(found: dict[str, Any]) -> dict[str, float]:
    return {
        f"{task} {metric}": value
        for task, metrics in found["results"].items()
        for metric, value in metrics.items()
        if isinstance(value, float)
    }


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # datasets reads and leaves files
def test_whole_tasks_are_scored_alike(tasks: TaskManager) -> None:
    for off in (False, True):
        hooks = ablate(chosen()) if off else []
        mine = evaluated(HarnessModel(ours(), fwd_hooks=hooks), tasks)
        their = evaluated(theirs(off=off), tasks)
        assert len(numbers(mine)) >= 5
        assert numbers(mine) == pytest.approx(numbers(their), rel=1e-4)
        for name in ("toy_choice", "toy_answer"):
            answers, expected = (each["samples"][name] for each in (mine, their))
            for one, other in zip(answers, expected, strict=True):
                assert one["arguments"] == other["arguments"]
                if name == "toy_answer":
                    assert one["resps"] == other["resps"]
        info = mine["config"]
        assert info["transformer_lens_model"] == "toy"
        assert len(info["intervention"]) == (LAYERS if off else 0)
        assert json.dumps(info["intervention"] + [info["model_dtype"]])


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_the_command_line_loads_models_and_neurons(
    tasks: TaskManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    arguments = saved_arguments(tmp_path) + ",language=fr,intervention=ablate,device=cpu"
    found = evaluated("lens_lang", tasks, model_args=arguments, batch_size="2")
    assert numbers(found) == pytest.approx(numbers(evaluated(theirs(off=True), tasks)), rel=1e-4)
    # The command line reads the files of every task that the harness has.
    without = partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", without)
    command = ["lm_eval", "run", "--model", "lens_lang", "--tasks", "toy_choice", "--model_args"]
    options = ["--include_path", str(tmp_path / "tasks"), "--batch_size", "2"]
    monkeypatch.setattr(sys, "argv", [*command, arguments, *options])
    main()
    shown = capsys.readouterr().out
    assert "|toy_choice|" in shown and "acc_norm" in shown
    monkeypatch.setattr(sys, "argv", [*command, f"{arguments},factr=2", *options])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "lens_lang: lens_lang has no model argument 'factr'; did you mean 'factor'?" in (
        capsys.readouterr().err
    )


def saved_arguments(tmp_path: Path) -> str:
    hf_model("llama").save_pretrained(tmp_path / "toy")
    letters().save_pretrained(tmp_path / "toy")
    LanguageNeurons({"fr": chosen(), "de": chosen(1)}).save(tmp_path / "found.safetensors")
    return f"pretrained={tmp_path / 'toy'},neurons={tmp_path / 'found.safetensors'}"


def test_the_cache_of_the_harness_is_filled_as_answers_come(tmp_path: Path) -> None:
    held: dict[str, Any] = {}

    class Notes:
        def add_partial(self, kind: str, arguments: Any, answer: Any) -> None:
            held[json.dumps([kind, *arguments])] = answer

    model = HarnessModel(ours())
    model.set_cache_hook(Notes())
    scores = model.loglikelihood(PAIRS[:3])
    rolled = model.loglikelihood_rolling(TEXTS[:2])
    asked = wishes(until=["\n"], max_gen_toks=3)
    said = model.generate_until(asked)
    kinds = ["loglikelihood"] * 3 + ["loglikelihood_rolling"] * 2 + ["generate_until"] * 5
    given = [*PAIRS[:3], *TEXTS[:2], *asked]
    keys = [json.dumps([kind, *each.args]) for kind, each in zip(kinds, given, strict=True)]
    assert [held[key] for key in keys] == [*scores, *rolled, *said]
    assert len(held) == len(keys)


# --- the command line's arguments ---


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ("", [0, 0, 0]),
        (",neurons={file},language=fr", [1, 1, 1]),
        (",neurons={file},language=French+de,intervention=ablate", [2, 2, 2]),
        (",neurons={file},language=fr,intervention=random,seed=3", [1, 1, 1]),
    ],
)
def test_arguments_name_an_intervention(tmp_path: Path, given: str, sizes: list[int]) -> None:
    saved_arguments(tmp_path)
    start = f"pretrained={tmp_path / 'toy'},device=cpu"
    given = given.format(file=tmp_path / "found.safetensors")
    model = HarnessModel.create_from_arg_string(start + given, {"device": None, "batch_size": 4})
    assert model.batch_size == 4 and model.rank == 0 and model.world_size == 1
    assert model.device == torch.device("cpu")
    edits = [hook for _, hook in model.fwd_hooks]
    sets = {0: [], 1: chosen(), 2: chosen() | chosen(1)}[sizes[0]]
    assert sum(len(edit.indices) for edit in edits) == len(sets)
    if "random" in given:
        assert not any(
            (edit.layer, index) in chosen() for edit in edits for index in edit.indices.tolist()
        )
        again = HarnessModel.create_from_arg_string(start + given)
        other = HarnessModel.create_from_arg_string(start + given.replace("seed=3", "seed=4"))
        drawn = [[e.indices.tolist() for _, e in m.fwd_hooks] for m in (model, again, other)]
        assert drawn[0] == drawn[1] != drawn[2]


def test_arguments_scale_and_size(tmp_path: Path) -> None:
    given = saved_arguments(tmp_path) + ",language=fr,intervention=scale,factor=0.5,dtype=bfloat16"
    more = ",batch_size=8,max_length=64,max_gen_toks=10,add_bos_token=False"
    model = HarnessModel.create_from_arg_string(
        given + more, {"batch_size": 2, "max_batch_size": 4, "device": "cpu"}
    )
    assert (model.batch_size, model.max_length, model.max_gen_toks) == (4, 64, 10)
    assert model.model.cfg.dtype == torch.bfloat16
    assert model.tok_encode("the cat") == letters()("the cat", add_special_tokens=False).input_ids
    assert {repr(edit) for _, edit in model.fwd_hooks} == {
        repr(edit) for _, edit in scale(chosen(), 0.5)
    }
    assert model.get_model_info()["model_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "pretrained is needed"),
        ({"pretraned": "x"}, "no model argument 'pretraned'; did you mean 'pretrained'"),
        ({"language": "fr"}, "language is given, but no neurons"),
        ({"seed": 0}, "seed is given, but no neurons"),
        ({"intervention": "random"}, "intervention is given, but no neurons"),
        ({"neurons": "x"}, "language is needed"),
        ({"neurons": "x", "language": "fr", "intervention": "off"}, "one of ablate, scale, random"),
        ({"neurons": "x", "language": "fr", "intervention": "scale"}, "needs a factor"),
        ({"neurons": "x", "language": "fr", "factor": 2}, "ablate has none"),
        ({"neurons": "x", "language": "fr", "seed": 2}, "only intervention=random draws"),
        ({"batch_size": "auto:4"}, "batch_size=auto is not offered"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
        ({"max_length": True}, "max_length must be a whole number"),
        ({"dtype": "int8"}, "dtype must be auto or the name of a floating-point type"),
        ({"dtype": "float15"}, "dtype must be auto or the name"),
        ({"add_bos_token": 2}, "add_bos_token must be True or False, got 2"),
        ({"factor": "much"}, "factor must be a number, got 'much'"),
    ],
)
def test_arguments_that_cannot_work_are_refused(given: dict[str, Any], message: str) -> None:
    more = {} if "pretraned" in given or not given else {"pretrained": "x"}
    with pytest.raises(OptionError, match=message):
        HarnessModel.create_from_arg_obj({**more, **given})


def test_arguments_may_be_none_and_of_any_spelling() -> None:
    some = HarnessArguments.read(
        {"pretrained": 7, "neurons": None, "dtype": "auto", "add_bos_token": "true", "seed": None}
    )
    assert some == HarnessArguments("7", add_bos_token=True)
    assert HarnessArguments.read({"pretrained": "x", "dtype": torch.float16}).dtype == torch.float16
    assert some.hooks() == []


def test_neurons_are_read_before_the_model(tmp_path: Path) -> None:
    LanguageNeurons({"fr": chosen()}).save(tmp_path / "found.safetensors")
    given = {"pretrained": "no/model", "neurons": tmp_path / "found.safetensors"}
    with pytest.raises(LanguageError, match="'de'"):
        HarnessModel.create_from_arg_obj({**given, "language": "fr+de"})
    with pytest.raises(StorageError):
        HarnessModel.create_from_arg_obj({**given, "neurons": "nowhere", "language": "fr"})


# --- settings of a task ---


def test_settings_are_read_as_the_harness_means_them() -> None:
    drawn = decoding_of({"temperature": 0.5, "top_p": 0.9, "seed": 3}, max_gen_toks=5)
    assert (drawn.temperature, drawn.top_p, drawn.seed, drawn.new_tokens) == (0.5, 0.9, 3, 5)
    greedy = decoding_of({"do_sample": False, "temperature": 0.5, "top_p": 0, "top_k": 5})
    assert greedy == decoding_of({}) == decoding_of({"until": None, "num_beams": 1, "top_k": None})
    both = decoding_of({"max_tokens": 3, "max_gen_toks": 4, "until": "a", "repetition_penalty": 2})
    assert (both.new_tokens, both.stop, both.repetition_penalty) == (4, ("a",), 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 4}, "cannot honour the generation setting num_beams=4; it knows until"),
        ({"stop": ["a"]}, r"setting stop=\['a'\]"),
        ({"max_length": 9}, "setting max_length=9"),
        ({"temperature": 1, "top_k": 5}, "setting top_k=5"),
        ({"do_sample": True}, "needs a temperature above 0"),
        ({"temperature": "warm"}, "temperature must be a number, got 'warm'"),
        ({"until": [3]}, r"until must be a text or a list of texts, got \[3\]"),
        ({"max_gen_toks": 0}, "new_tokens must be at least 1"),
        ({"max_gen_toks": 128}, "no room for its context in 128: lower max_gen_toks"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        HarnessModel(ours()).generate_until(requests(("the cat", settings)))


def test_repeated_requests_are_drawn_anew() -> None:
    model = HarnessModel(ours(), batch_size=1)
    asked = requests(*[("the cat", {"temperature": 9.0, "max_gen_toks": 3})] * 18)
    said = model.generate_until(asked)
    assert len(set(said)) == 18
    assert said == model.generate_until(asked)


# --- texts ---


def test_chats_are_written_as_the_tokeniser_has_it(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = letters()
    tokenizer.chat_template = CHAT
    model = HarnessModel(bridge(hf_model("llama"), tokenizer))
    assert model.chat_template(True) == CHAT
    written = model.apply_chat_template(MESSAGES)
    assert written == "<s>user: the cat\nanswer:"
    assert "refuses the system message, which is left out" in caplog.text
    assert model.tok_encode(written).count(1) == 1
    assert model.tok_encode(written)[0] == 1
    unfinished = [*MESSAGES[1:], {"role": "assistant", "content": "sat"}]
    assert model.apply_chat_template(unfinished, False).endswith("assistant: sat")
    assert model.tokenizer_name == tokenizer.name_or_path.replace("/", "__")
    with pytest.raises(OptionError, match="toy has no chat template: leave out"):
        HarnessModel(ours()).apply_chat_template(MESSAGES)


def test_texts_that_cannot_be_scored_are_refused() -> None:
    model = HarnessModel(ours(), max_length=10)
    with pytest.raises(CorpusError, match="nothing to score behind 'the cat'"):
        model.loglikelihood(requests(("the cat", "")))
    with pytest.raises(CorpusError, match="must have 1 to 10 tokens .* has 18"):
        model.loglikelihood(requests(("the cat", " sat on the mat and the" * 3)))
    assert model.loglikelihood([]) == [] == model.loglikelihood_rolling([])
    assert model.generate_until([]) == []


def test_white_space_alone_is_context_enough() -> None:
    model = HarnessModel(ours(), add_bos_token=False)
    ((score, _),) = model.loglikelihood(requests((" ", "cat")))
    assert score < 0
    assert len(model.generate_until(requests(("", {"max_gen_toks": 2})))) == 1


def test_a_model_that_cannot_serve_is_refused_at_once() -> None:
    with pytest.raises(CorpusError, match="no tokeniser"):
        HarnessModel(bridge(hf_model("llama")))
    with pytest.raises(OptionError, match="batch_size must be at least 1, got 0"):
        HarnessModel(ours(), batch_size=0)
    with pytest.raises(SiteError, match="no hook point 'blocks.9"):
        HarnessModel(ours(), fwd_hooks=[("blocks.9.hook_resid_post", lambda x, hook: x)])
    narrow = NeuronSet({MLP_POST: torch.ones(LAYERS, 7, dtype=torch.bool)})
    with pytest.raises(ShapeError, match="another model"):
        HarnessModel(ours(), fwd_hooks=ablate(narrow))


def test_a_tokeniser_without_either_end_has_no_prefix() -> None:
    model = HarnessModel(ours(), add_bos_token=False)
    model.tokenizer = SimpleNamespace(bos_token_id=None, eos_token_id=7)
    assert model.prefix_token_id == 7
    model.tokenizer = SimpleNamespace(bos_token_id=None, eos_token_id=None)
    with pytest.raises(CorpusError, match="neither BOS nor EOS"):
        _ = model.prefix_token_id


# --- how the harness finds it ---


def test_the_harness_finds_it_by_name() -> None:
    assert get_model("lens_lang") is HarnessModel
    assert "hf" in model_registry


def test_the_installed_package_names_it_for_newer_harnesses() -> None:
    (point,) = entry_points(group="lm_eval.models", name="lens_lang")
    registry: Registry[Any] = Registry("model")
    registry.register(point.name, target=point)
    assert registry.get("lens_lang") is HarnessModel


def test_a_harness_that_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "TemplateLM", object)
    with pytest.raises(MissingExtraError, match=r"pip install 'lens-lang\[eval\]'"):
        HarnessModel(ours())
    with pytest.raises(MissingExtraError):
        HarnessModel.create_from_arg_string("pretrained=x")
    with pytest.raises(SystemExit):
        main()


def test_the_package_does_not_load_the_harness() -> None:
    program = (
        "import sys, lens_lang as ll\n"
        "ll.load_model, ll.ablate\n"
        "assert 'lm_eval' not in sys.modules\n"
        "sys.modules['lm_eval'] = None\n"
        "import lens_lang.harness\n"
        "try:\n    lens_lang.harness.HarnessModel(None)\n"
        "except ll.MissingExtraError:\n    pass\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
