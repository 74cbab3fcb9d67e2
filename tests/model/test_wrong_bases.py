"""Check that a base that no judge can read with is one clear error before a run begins."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from quick_recipe import QUICK
from safetensors.torch import save_file

from kit.data.dataset import Dataset
from kit.data.tokenize import tokenize_cached
from kit.errors import BackboneError, DeviceError
from kit.kaggle.job import Source, train_job
from kit.model.backbones import local_backbone, resolve_backbone
from kit.model.device import Compute
from kit.model.encoder import load_encoder, load_tokenizer
from kit.model.inference import make_collator
from kit.model.pair_model import PairModel
from kit.model.registry import BACKBONES
from kit.recipe.load import choose_recipe, load_recipe
from kit.training import setup
from kit.training.setup import new_model
from kit.training.train import train_recipe


@pytest.fixture
def base(judge_base: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny decoder, to change."""
    return shutil.copytree(judge_base, tmp_path / "base")


def change_json(file: Path, **changes: Any) -> None:
    """Set values of a JSON file; None removes one."""
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def refused(base: Path, data: Path, runs: Path) -> BackboneError:
    """Return the error that a training from this base is refused with; no run is left behind."""
    with pytest.raises(BackboneError) as caught:
        train_recipe(choose_recipe(str(base), "judge", QUICK), data, runs)
    assert not runs.exists()
    return caught.value


def test_a_base_without_a_pad_token_works(base: Path, processed: Dataset, tmp_path: Path):
    change_json(base / "config.json", pad_token_id=None)
    generic = "PreTrainedTokenizerFast"
    change_json(base / "tokenizer_config.json", pad_token=None, tokenizer_class=generic)
    overrides = (*QUICK, "encode.max_tokens=128", "train.lora_rank=2", "model.features=false")
    recipe = choose_recipe(str(base), None, overrides)
    new_model(recipe, local_backbone(base), processed)[0].save_pretrained(
        tmp_path / "fold", load_tokenizer(local_backbone(base), "plain")
    )

    model, tokenizer = PairModel.from_pretrained(tmp_path / "fold")
    tokens = tokenize_cached(
        processed.train(), "rows", tokenizer, recipe.encode, tmp_path / "cache", "judge"
    )
    alone, together = (
        make_collator(model, tokens, tokenizer, np.zeros(len(tokens)))(np.arange(rows))
        for rows in (1, 6)
    )
    for batch in (alone, together):
        batch.pop("labels")
    torch.testing.assert_close(model(**alone), model(**together)[:1])


def gated_error(status: int) -> GatedRepoError:
    """Return what the hub's client raises for a repository whose licence was not accepted."""
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return GatedRepoError("Access to this repository is restricted", response=response)


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_base_names_its_licence_and_what_to_do(
    status: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise gated_error(status)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(BackboneError, match="accepted its licence") as caught:
        train_recipe(load_recipe("gemma-2-2b"), data, tmp_path / "runs")
    assert "https://huggingface.co/google/gemma-2-2b-it" in caught.value.hint
    assert "`hf auth login` or set HF_TOKEN" in caught.value.hint
    assert "--model google/gemma-2/transformers/gemma-2-2b-it/2" in caught.value.hint
    assert not (tmp_path / "runs").exists()


def test_what_transformers_raises_for_a_gated_base_is_understood():
    error = OSError("You are trying to access a gated repo.")
    error.__cause__ = gated_error(401)
    backbone = resolve_backbone("llama-3.2-1b")
    assert "accepted its licence" in backbone.loading_error(error).problem
    assert "accepted its licence" not in backbone.loading_error(OSError("no such file")).problem


def test_a_gguf_file_in_place_of_a_folder_is_named(base: Path, data: Path, tmp_path: Path):
    file = tmp_path / "model-q4.gguf"
    file.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(BackboneError, match=r"model-q4\.gguf: a GGUF file"):
        resolve_backbone(str(file))
    with pytest.raises(BackboneError, match="a GGUF file"):
        resolve_backbone(str(tmp_path))

    (base / "model.safetensors").unlink()
    file.rename(base / file.name)
    assert "a GGUF file" in refused(base, data, tmp_path / "runs").problem


@pytest.mark.parametrize("has_config", [True, False])
def test_adapters_in_place_of_a_base_are_named(
    has_config: bool, base: Path, data: Path, tmp_path: Path
):
    (base / "model.safetensors").unlink()
    (base / "adapter_model.safetensors").write_bytes(b"")
    (base / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen3-4B"}')
    if not has_config:
        (base / "config.json").unlink()
    error = refused(base, data, tmp_path / "runs")
    assert "it holds peft adapters of Qwen/Qwen3-4B, not a model" in error.problem
    assert "merge_and_unload" in error.hint


def test_a_multimodal_model_is_named(base: Path, data: Path, tmp_path: Path):
    text = BACKBONES["gemma-3-1b"].config
    multimodal = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}
    (base / "config.json").write_text(json.dumps(multimodal | {"text_config": text}))
    error = refused(base, data, tmp_path / "runs")
    assert "a multimodal model (gemma3)" in error.problem
    assert "gemma-3-1b" in error.hint


def test_a_model_with_code_of_its_own_is_refused_and_a_known_family_is_not(
    base: Path, data: Path, tmp_path: Path
):
    # Phi-3's folder has such code, too, but transformers knows the family.
    own = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    change_json(base / "config.json", auto_map=own)
    load_encoder(local_backbone(base))

    change_json(base / "config.json", model_type="own")
    error = refused(base, data, tmp_path / "runs")
    assert "auto_map in config.json" in error.problem
    assert "never runs" in error.problem


def test_a_model_that_overflows_in_fp16_is_refused_before_anything_is_downloaded(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    half = Compute(torch.device("cpu"), "fp16", "for this test")
    monkeypatch.setattr(setup, "choose_device", lambda *_: half)
    with pytest.raises(
        DeviceError, match=r"gemma-3-1b \(gemma3_text\) overflows in fp16"
    ) as caught:
        train_recipe(load_recipe("gemma-3-1b"), data, tmp_path / "runs")
    assert "qwen2.5-1.5b, " in caught.value.hint
    assert "gemma-3-270m" not in caught.value.hint
    assert "train.precision=fp32" in caught.value.hint


def test_predictions_in_fp16_are_refused_before_the_base_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    half = Compute(torch.device("cpu"), "fp16", "for this test")
    monkeypatch.setattr("kit.model.pair_model.choose_device", lambda *_: half)
    config = {"format": 3, "model": {}, "encoder": BACKBONES["gemma-3-270m"].config}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(DeviceError, match="overflows in fp16"):
        PairModel.from_pretrained(tmp_path, "auto")


def test_a_push_is_refused_for_what_a_session_cannot_load_or_compute():
    mounted = [Source("google/gemma-3/transformers/gemma-3-1b-it", kind="model", versions=(1,))]
    recipe = load_recipe("gemma-3-1b")
    with pytest.raises(DeviceError, match="a T4 would compute it in fp16"):
        train_job(recipe, weights=mounted)
    slow = load_recipe("gemma-3-1b", ("train.precision=fp32",))
    assert train_job(slow, weights=mounted).model_sources

    # A session has no token for the hub: what is gated there is mounted from Kaggle.
    mounted_model = "google/gemma-2/transformers/gemma-2-2b-it/2"
    assert train_job(load_recipe("gemma-2-2b")).model_sources == (mounted_model,)
