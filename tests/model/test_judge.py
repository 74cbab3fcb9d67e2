"""Check decoder judges: where they begin, what their runs hold, and that predictions repeat."""

import dataclasses
import itertools
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from interruption import interrupt_at
from quick_recipe import QUICK
from safetensors.torch import load_file

from kit.cli.main import main
from kit.data.dataset import Dataset
from kit.data.tokenize import tokenize_cached
from kit.errors import BackboneError, DataError, RecipeError, RunError
from kit.export import HEAD_FILE, export_run
from kit.model import states
from kit.model.adapters import AdapterSpec, add_adapters
from kit.model.backbones import ResolvedBackbone, local_backbone, resolve_backbone
from kit.model.base import digest_weights
from kit.model.collator import Collator
from kit.model.encoder import build_encoder, load_encoder
from kit.model.inference import make_collator
from kit.model.pair_model import PairModel
from kit.model.registry import BACKBONES
from kit.predict import predict_split
from kit.recipe.load import change_recipe, choose_recipe, load_recipe
from kit.run import Run
from kit.task import CLASSES, HOLDOUT
from kit.training.setup import new_model, target_prior
from kit.training.train import train_recipe

JUDGE = (
    *QUICK,
    "encode.max_tokens=128",
    "train.max_steps=6",
    "train.lora_rank=4",
    "train.lr=0.01",
    "train.batch_size=8",
)


def train_run(base: Path, data: Path, runs: Path, *more: str, resume: bool = False) -> Run:
    recipe = choose_recipe(str(base), None, (*JUDGE, *more))
    return Run.open(train_recipe(recipe, data, runs, resume=resume)["run"])


@pytest.fixture(scope="module")
def run(judge_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train the holdout of a judge with adapters."""
    return train_run(judge_base, data, tmp_path_factory.mktemp("runs"))


def test_a_decoder_folder_is_trained_as_a_judge(judge_base: Path):
    recipe = choose_recipe(str(judge_base), None)
    assert (recipe.name, recipe.model.shape, recipe.train.lora_rank) == ("tiny-base", "judge", 32)


@pytest.mark.parametrize("head", ["symmetric", "fusion"])
def test_step_0_has_the_loss_of_the_prior(head: str, judge_base: Path, processed: Dataset):
    recipe = choose_recipe(str(judge_base), None, (*JUDGE, f"model.head={head}"))
    model, tokenizer = new_model(recipe, local_backbone(judge_base), processed)
    prior = target_prior(processed.targets())
    if head == "symmetric":
        prior = np.array([(prior[0] + prior[1]) / 2] * 2 + [prior[2]])
    model.start_from_prior(target_prior(processed.targets()))
    recipe = load_recipe("tiny-qwen", ["model.features=false"])
    table = processed.train()
    tokens = tokenize_cached(
        table, processed.digest("train"), tokenizer, recipe.encode, processed.cache, "judge"
    )
    features = {
        "sides": torch.randn(2, 2, len(model.feature_names[0])),
        "pair": torch.randn(2, len(model.feature_names[1])),
    }
    batch = make_collator(model, tokens, tokenizer)(np.arange(2)) | {"features": features}
    logits = model.eval()(**batch)
    found = logits.softmax(-1).detach().numpy()
    np.testing.assert_allclose(found, np.tile(prior, (2, 1)), atol=1e-6)


def test_a_run_holds_adapters_and_head_alone(run: Run, judge_base: Path):
    folder = run.fold(HOLDOUT).path
    weights = load_file(folder / "model.safetensors")
    assert all("lora_" in name or not name.startswith("encoder.") for name in weights)
    assert any(name.startswith("encoder.") and weight.any() for name, weight in weights.items())

    config = json.loads((folder / "config.json").read_text())
    assert config["base"]["digest"] == digest_weights(judge_base)
    assert config["frame"]["kind"] == "plain"
    assert list(folder.glob("checkpoint*")) == []


def test_adapters_are_saved_in_the_type_that_they_are_computed_in(
    judge_base: Path, data: Path, tmp_path: Path
):
    run = train_run(judge_base, data, tmp_path, "train.precision=bf16", "train.max_steps=2")
    folder = run.fold(HOLDOUT).path
    kinds = {name: w.dtype for name, w in load_file(folder / "model.safetensors").items()}
    for name, dtype in kinds.items():
        assert dtype == (torch.bfloat16 if name.startswith("encoder.") else torch.float32), name

    # They are trained as float32, and loaded as that.
    model, _ = PairModel.from_pretrained(folder)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_the_weights_of_a_small_judge_take_21_megabytes():
    """With the tokenizer, of 3.5, a run of a 135M judge stays below 25."""
    recipe = load_recipe("smollm2-135m")
    config = BACKBONES["smollm2-135m"].config
    with torch.device("meta"):
        encoder = build_encoder(config)
        model = PairModel(encoder, config, dataclasses.replace(recipe.model, pooling="last"))
        add_adapters(model.encoder, AdapterSpec.of_recipe(recipe.train))
    adapters = sum(p.numel() for p in model.encoder.parameters() if p.requires_grad)
    head = sum(p.numel() for p in model.head.parameters())
    assert 2 * adapters + 4 * head < 21.0e6


def test_the_predictions_are_those_of_the_training(run: Run, data: Path):
    again = predict_split(run.path, "valid", data)
    pd.testing.assert_frame_equal(again, run.fold(HOLDOUT).predictions, rtol=0, atol=1e-9)


def test_the_size_of_a_batch_does_not_change_predictions(run: Run, processed: Dataset):
    model, tokenizer = PairModel.from_pretrained(run.fold(HOLDOUT).path)
    tokens = tokenize_cached(
        processed.train(),
        processed.digest("train"),
        tokenizer,
        run.recipe.encode,
        processed.cache,
        "judge",
    )
    model.feature_names = None
    model.head.pair.features = None
    vectors = []
    for size in (1, 7):
        collator = make_collator(model, tokens, tokenizer)
        with torch.inference_mode():
            packs = [collator.pack(np.arange(start, start + size)) for start in range(0, 7, size)]
            vectors.append(torch.cat([model.pool(pack) for pack in packs]))
    torch.testing.assert_close(vectors[0], vectors[1], rtol=1e-5, atol=1e-5)


def test_an_interrupted_training_resumes_to_the_same_adapters(
    run: Run, judge_base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        interrupt_at(4, patch)
        with pytest.raises(KeyboardInterrupt):
            train_run(judge_base, data, tmp_path)
    resumed = train_run(judge_base, data, tmp_path, resume=True)

    expected = load_file(run.fold(HOLDOUT).path / "model.safetensors")
    found = load_file(resumed.fold(HOLDOUT).path / "model.safetensors")
    assert set(found) == set(expected)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_adapters_of_another_base_are_refused(
    run: Run, judge_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    fold = tmp_path / "fold"
    shutil.copytree(run.fold(HOLDOUT).path, fold)
    config = json.loads((fold / "config.json").read_text())
    moved = config | {"base": config["base"] | {"source": str(tmp_path / "gone")}}
    (fold / "config.json").write_text(json.dumps(moved))
    with pytest.raises(BackboneError, match="the backbone tiny-base below this run is not on this"):
        PairModel.from_pretrained(fold)

    # A copy in models/ is found wherever the base was at the training.
    shutil.copytree(judge_base, tmp_path / "models" / "tiny-base")
    PairModel.from_pretrained(fold)

    other = load_encoder(local_backbone(judge_base))
    other.get_parameter("norm.weight").data.add_(1)
    other.save_pretrained(tmp_path / "models" / "tiny-base")
    with pytest.raises(BackboneError, match="not those that the run was made with"):
        PairModel.from_pretrained(fold)


def test_a_run_refuses_another_frame(run: Run, tmp_path: Path):
    fold = tmp_path / "fold"
    shutil.copytree(run.fold(HOLDOUT).path, fold)
    config = json.loads((fold / "config.json").read_text())
    config["frame"]["end"] = [5]
    (fold / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match="its frame around prompt and answers"):
        PairModel.from_pretrained(fold)


def test_the_loss_scaler_meets_no_half_precision_gradient(judge_base: Path):
    encoder = load_encoder(local_backbone(judge_base), dtype=torch.float16)
    add_adapters(encoder, AdapterSpec(rank=4, alpha=8.0, dropout=0.0))
    kinds = {parameter.requires_grad: parameter.dtype for parameter in encoder.parameters()}
    assert kinds == {True: torch.float32, False: torch.float16}


def test_whole_weights_are_trained_without_adapters(judge_base: Path, data: Path, tmp_path: Path):
    run = train_run(judge_base, data, tmp_path, "train.lora_rank=0", "train.max_steps=2")
    weights = load_file(run.fold(HOLDOUT).path / "model.safetensors")
    assert "encoder.embed_tokens.weight" in weights
    assert len(predict_split(run.path, "test", data))


def test_whole_weights_are_saved_with_the_configuration_that_they_came_with(
    judge_base: Path, processed: Dataset, tmp_path: Path
):
    """The registry's copy of it may be another version's."""
    folder = tmp_path / "base"
    shutil.copytree(judge_base, folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 123.0
    (folder / "config.json").write_text(json.dumps(config))

    # As a name of the hub, from which transformers loads it, it is no folder.
    backbone = ResolvedBackbone("tiny-qwen", str(folder), BACKBONES["tiny-qwen"])
    recipe = load_recipe("tiny-qwen", ("train.lora_rank=0",))
    model, tokenizer = new_model(recipe, backbone, processed)
    model.save_pretrained(tmp_path / "fold", tokenizer)
    again, _ = PairModel.from_pretrained(tmp_path / "fold")
    ids = torch.arange(10, 40)[None]
    with torch.inference_mode():
        states = model.eval().encoder(input_ids=ids).last_hidden_state
        assert torch.equal(again.encoder(input_ids=ids).last_hidden_state, states)
    assert again.encoder_config["rope_parameters"]["rope_theta"] == 123.0


def test_shapes_and_backbones_that_do_not_fit_are_refused(judge_base: Path, data: Path):
    cross = choose_recipe(str(judge_base), "default", (*QUICK, "model.shape=cross"))
    with pytest.raises(RecipeError, match="is a decoder"):
        train_recipe(cross, data, data / "runs")
    encoder = load_recipe("tiny-electra", ("model.shape=judge",))
    with pytest.raises(RecipeError, match="reads with a decoder"):
        train_recipe(encoder, data, data / "runs")
    narrow = choose_recipe(str(judge_base), None, ("encode.max_tokens=32",))
    with pytest.raises(RecipeError, match="the plain frame alone takes"):
        train_recipe(narrow, data, data / "runs")
    assert not (data / "runs").exists()
    assert resolve_backbone("tiny-qwen").is_decoder


def test_an_export_prints_its_folders_and_what_is_next(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture
):
    result = CliRunner().invoke(main, ["export", str(run.path), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out" / HOLDOUT
    assert result.stdout == f"{folder}\n"
    assert result.stderr == f"Next: kit train --backbone {folder}\n"
    # What libraries print past click.
    assert capfd.readouterr() == ("", "")

    arguments = ["--backbone", str(folder), "--dry-run", "--no-steps"]
    data = ["--data", str(tmp_path)]
    tried = CliRunner().invoke(main, ["train", *arguments, *data])
    assert tried.stderr.startswith(f"the recipe judge with {folder}\n")


def test_an_export_has_whole_weights_and_the_same_states(run: Run, tmp_path: Path):
    (folder,) = export_run(run.path, tmp_path / "out", "fp32")
    model, _ = PairModel.from_pretrained(run.fold(HOLDOUT).path)
    exported = load_encoder(local_backbone(folder))
    ids = torch.arange(10, 40)[None]
    with torch.inference_mode():
        states = model.encoder(input_ids=ids).last_hidden_state
        torch.testing.assert_close(
            exported(input_ids=ids).last_hidden_state, states, rtol=1e-4, atol=1e-5
        )
    head = load_file(folder / HEAD_FILE)
    assert torch.equal(head["head.pair.out.weight"], model.head.pair.out.weight)
    with pytest.raises(RunError, match="exists already"):
        export_run(run.path, tmp_path / "out")


def test_two_answers_are_compared_in_one_line(run: Run):
    answers = ("--prompt", "2+2?", "--a", "4", "--b", "five")
    result = CliRunner().invoke(main, ["compare", str(run.path), *answers, "--json"])
    assert result.exit_code == 0, result.output
    assert sum(json.loads(result.output).values()) == pytest.approx(1)
    swapped = ("--prompt", "2+2?", "--a", "five", "--b", "4")
    other = CliRunner().invoke(main, ["compare", str(run.path), *swapped, "--json"])
    first, second = (list(json.loads(one.output).values()) for one in (result, other))
    assert first == pytest.approx([second[1], second[0], second[2]], abs=1e-6)


FROZEN = ("train.lora_rank=0", "train.frozen=true", "train.lr=0")


@pytest.mark.parametrize("shape", ["judge", "siamese"])
def test_a_frozen_base_is_read_once_and_only_the_head_is_kept(
    shape: str, judge_base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = train_run(judge_base, data, tmp_path, *FROZEN, f"model.shape={shape}")
    weights = load_file(first.fold(HOLDOUT).path / "model.safetensors")
    assert all(name.startswith("head.") for name in weights)
    again = predict_split(first.path, "valid", data)
    pd.testing.assert_frame_equal(again, first.fold(HOLDOUT).predictions, rtol=0, atol=1e-5)

    # Another training of the head takes the vectors from the disk; only its trial runs the base.
    def refuse(*_: object) -> None:
        raise AssertionError("the base was run again")

    monkeypatch.setattr("kit.model.states._compute_vectors", refuse)
    second = train_run(judge_base, data, tmp_path, *FROZEN, f"model.shape={shape}", "train.seed=3")
    assert second.fold(HOLDOUT).metrics["steps"] == 6

    # Vectors that have changed since are not trained on.
    copy = shutil.copytree(data, tmp_path / "copy")
    for file in copy.glob("cache/vectors-*/vectors.npy"):
        file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(DataError, match=r"vectors\.npy is missing or has changed"):
        train_run(judge_base, copy, tmp_path, *FROZEN, f"model.shape={shape}", "train.seed=4")


def test_a_reading_that_was_interrupted_goes_on_from_its_last_block(
    judge_base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("kit.model.states.BLOCK_ROWS", 100)
    copy = shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    recipe = choose_recipe(str(judge_base), None, (*JUDGE, *FROZEN))
    blocks: list[int] = []
    pooled = states.pooled_vectors

    def read(model: PairModel, collator: Collator, rows: np.ndarray, *more: object) -> np.ndarray:
        # The trial before a training reads a row of its own.
        if len(collator.encoded) > 100:
            blocks.append(int(rows[0]))
        if blocks == [0, 100]:
            raise KeyboardInterrupt
        return pooled(model, collator, rows, *more)

    monkeypatch.setattr(states, "pooled_vectors", read)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, copy, tmp_path / "cut")
    train_recipe(recipe, copy, tmp_path / "runs")
    assert blocks == [0, 100, 100, 200]
    (file,) = copy.glob("cache/vectors-*/vectors.npy")
    assert not list(copy.glob("cache/.vectors*"))

    monkeypatch.setattr("kit.model.states.BLOCK_ROWS", 1000)
    whole = shutil.copytree(data, tmp_path / "whole", ignore=shutil.ignore_patterns("cache"))
    train_recipe(recipe, whole, tmp_path / "other")
    (expected,) = whole.glob("cache/vectors-*/vectors.npy")
    np.testing.assert_allclose(np.load(file), np.load(expected), atol=1e-5)


def test_an_encoder_can_be_frozen_too(fixed_backbone: Path, data: Path, tmp_path: Path):
    recipe = choose_recipe(str(fixed_backbone), None, (*QUICK, "train.frozen=true"))
    run = Run.open(train_recipe(recipe, data, tmp_path)["run"])
    assert run.fold(HOLDOUT).path.joinpath("model.safetensors").stat().st_size < 2_000_000
    again = predict_split(run.path, "valid", data)
    pd.testing.assert_frame_equal(again, run.fold(HOLDOUT).predictions, rtol=0, atol=1e-5)


def test_the_reading_of_a_frozen_base_is_announced_and_reported(
    judge_base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("kit.model.states._REPORT_EVERY", 0.0)
    copy = shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("cache"))
    recipe = choose_recipe(str(judge_base), None, (*JUDGE, *FROZEN))
    for seed, announced in ((0, True), (1, False)):
        lines: list[str] = []
        changed = change_recipe(recipe, [f"train.seed={seed}"])
        train_recipe(changed, copy, tmp_path / "runs", say=lines.append)
        text = "\n".join(lines)
        assert ("reads all 239 rows once: about" in text) == announced
        assert ("has read" in text) == announced
        assert text.count("(estimated)") == announced


def test_keys_that_change_a_frozen_base_are_refused(judge_base: Path):
    with pytest.raises(RecipeError, match=r"lora_rank with train\.frozen"):
        choose_recipe(str(judge_base), None, ("train.frozen=true",))


@pytest.mark.parametrize("head", ["symmetric", "fusion"])
def test_the_second_order_goes_to_the_least_decided_rows_until_time_is_over(
    head: str, judge_base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = train_run(judge_base, data, tmp_path, f"model.head={head}", "train.max_steps=4")
    whole = predict_split(run.path, "valid", data)
    messages: list[str] = []
    in_time = predict_split(run.path, "valid", data, deadline=time.monotonic() + 3600)
    pd.testing.assert_frame_equal(in_time, whole, rtol=0, atol=1e-6)

    # Each look at the clock is a step of a second: after one group of rows time is over.
    clock = itertools.count(0.0, 1.0)
    monkeypatch.setattr("kit.model.inference.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("kit.model.inference.ORDER_ROWS", 5)
    partial = predict_split(run.path, "valid", data, deadline=1.5, log=messages.append)
    assert re.search(rf"in 5 of {len(whole)} rows, the least decided", messages[0])
    changed = ~np.isclose(partial[list(CLASSES)], whole[list(CLASSES)], atol=1e-7).all(1)
    assert 0 < changed.sum() <= len(whole) - 5


def test_what_cannot_be_shared_out_is_refused(judge_base: Path, data: Path, tmp_path: Path):
    with pytest.raises(RecipeError, match="only frozen weights are shared out"):
        choose_recipe(str(judge_base), None, ("train.shard=true", "train.lora_rank=0"))
    with pytest.raises(RecipeError, match=r"train\.shard = true does not go with model\.quantize"):
        choose_recipe(str(judge_base), None, ("train.shard=true", "model.quantize=4bit"))
    encoder = load_recipe("tiny-electra", ("train.shard=true", "train.lora_rank=4"))
    with pytest.raises(RecipeError, match="tiny-electra is an encoder"):
        train_recipe(encoder, data, tmp_path)
