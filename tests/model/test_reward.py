"""Check that a reward model gives its encoder and the reward that transformers computes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from quick_recipe import QUICK
from safetensors.torch import load_file, save_file
from token_rows import PAD, token_rows
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2ForSequenceClassification,
    ElectraForSequenceClassification,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    RobertaForSequenceClassification,
)

from kit.data.dataset import Dataset
from kit.data.tokenize import tokenize_cached
from kit.errors import BackboneError
from kit.model.backbones import local_backbone, resolve_backbone
from kit.model.collator import Collator
from kit.model.encoder import load_encoder
from kit.model.inference import make_collator
from kit.model.pair_model import PairModel
from kit.model.registry import BACKBONES
from kit.model.reward import load_reward_head
from kit.predict import predict_input, predict_split
from kit.recipe.load import choose_recipe, load_recipe
from kit.recipe.spec import ModelSpec
from kit.run import Run
from kit.task import CLASSES, HOLDOUT, SWAP
from kit.training.setup import new_model, tiny_folder
from kit.training.train import train_recipe

BERT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
ROWS = token_rows(np.array([[9, 30], [12, 12], [40, 5], [3, 3]]))
KINDS = {
    "deberta-v2": (DebertaV2ForSequenceClassification, BACKBONES["tiny-deberta"]),
    "electra": (ElectraForSequenceClassification, BACKBONES["tiny-electra"]),
    "roberta": (RobertaForSequenceClassification, BACKBONES["tiny-roberta"]),
    "bert": (BertForSequenceClassification, None),
}


def classifier(family: str, outputs: int = 1) -> PreTrainedModel:
    torch.manual_seed(3)
    kind, record = KINDS[family]
    config = (
        BertConfig(**BERT) if record is None else kind.config_class.from_dict(dict(record.config))
    )
    config.num_labels = outputs
    return kind(config).eval()


@pytest.fixture(scope="module")
def checkpoint(processed: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DeBERTa reward model with the toy tokenizer, in transformers' own files."""
    folder = tmp_path_factory.mktemp("reward") / "model"
    shutil.copytree(tiny_folder(BACKBONES["tiny-deberta"], processed), folder)
    classifier("deberta-v2").save_pretrained(folder)
    assert {"classifier.weight", "pooler.dense.weight"} <= set(
        load_file(folder / "model.safetensors")
    )
    return folder


def test_the_encoder_of_a_reward_model_comes_whole(checkpoint: Path):
    original = classifier("deberta-v2").deberta.state_dict()
    loaded = load_encoder(local_backbone(checkpoint)).state_dict()
    assert set(loaded) == set(original)
    assert all(torch.equal(value, original[name]) for name, value in loaded.items())


@pytest.mark.parametrize("family", KINDS)
def test_the_reward_is_the_one_that_transformers_computes(family: str, tmp_path: Path):
    model = classifier(family)
    model.save_pretrained(tmp_path)
    backbone = local_backbone(tmp_path)
    head, encoder = load_reward_head(backbone), load_encoder(backbone).eval()
    tokens = torch.randint(4, 40, (5, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mask = torch.ones_like(tokens)
        ours = head(encoder(input_ids=tokens, attention_mask=mask).last_hidden_state, mask)
        theirs = model(input_ids=tokens, attention_mask=mask).logits
    assert ours.std() > 0
    torch.testing.assert_close(ours, theirs)


def test_each_side_has_its_reward_beside_its_pooled_vector(checkpoint: Path):
    config = local_backbone(checkpoint).config
    model = PairModel(
        load_encoder(local_backbone(checkpoint)), config, ModelSpec(pooling="mean", reward=True)
    ).eval()
    model.reward = load_reward_head(local_backbone(checkpoint))
    original = classifier("deberta-v2")
    batch = Collator(ROWS, PAD, segments=False, pack_overhead=0)(range(len(ROWS)))
    with torch.no_grad():
        vectors = model.encode(batch["packs"], batch["order"])
        assert vectors.shape == (len(ROWS), 2, config["hidden_size"] + 1)
        for side in range(2 * len(ROWS)):
            tokens = torch.from_numpy(
                ROWS.tokens[ROWS.starts[side] : ROWS.starts[side + 1]].astype(np.int64)
            )[None]
            alone = original(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, 0]
            torch.testing.assert_close(
                vectors[side // 2, side % 2, -1], alone, rtol=1e-4, atol=1e-5
            )
        both = model(batch["packs"], batch["order"], augment=True)
    torch.testing.assert_close(both[:, 0], both[:, 1], rtol=1e-5, atol=1e-5)


def test_before_training_the_odds_of_the_answers_are_those_of_the_reward(checkpoint: Path):
    config = local_backbone(checkpoint).config
    model = PairModel(
        load_encoder(local_backbone(checkpoint)),
        config,
        ModelSpec(pooling="cls", reward=True, features=True),
    ).eval()
    model.reward = load_reward_head(local_backbone(checkpoint))
    for parameter in model.head.parameters():
        torch.nn.init.zeros_(parameter)
    torch.manual_seed(0)
    vectors = torch.randn(6, 2, config["hidden_size"] + 1)
    features = {
        "sides": torch.randn(6, 2, len(model.feature_names[0])),
        "pair": torch.randn(6, len(model.feature_names[1])),
    }
    with torch.no_grad():
        chances = model.classify(vectors, features).softmax(-1)
        turned = model.classify(
            vectors.flip(1), features | {"sides": features["sides"].flip(1)}
        ).softmax(-1)
    lead = vectors[:, 0, -1] - vectors[:, 1, -1]
    torch.testing.assert_close((chances[:, 0] / chances[:, 1]).log(), lead)
    torch.testing.assert_close(turned[:, list(SWAP)], chances)


def test_the_reward_stays_in_float32_under_autocast(checkpoint: Path):
    model = PairModel(
        load_encoder(local_backbone(checkpoint)),
        local_backbone(checkpoint).config,
        ModelSpec(pooling="cls", reward=True),
    )
    batch = Collator(ROWS, PAD, segments=False)(range(len(ROWS)))
    with torch.autocast("cpu", torch.bfloat16):
        vectors = model.encode(batch["packs"], batch["order"])
    assert vectors.dtype == torch.float32
    model(batch["packs"], batch["order"]).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_a_run_from_a_reward_model_starts_with_its_reward_and_predicts_without_it(
    checkpoint: Path, data: Path, processed: Dataset, raw: Path, tmp_path: Path
):
    overrides = (*QUICK, "train.max_steps=3", "model.reward=true", "model.pooling=cls")
    recipe = load_recipe("default", overrides, backbone=str(checkpoint))
    model, _ = new_model(recipe, resolve_backbone(recipe.backbone), processed)
    original = classifier("deberta-v2")
    assert torch.equal(model.reward.dense.weight, original.pooler.dense.weight)
    assert torch.equal(model.reward.out.weight, original.classifier.weight)
    run = Path(train_recipe(recipe, data, tmp_path / "runs")["run"])
    rows = pd.read_csv(raw / "test.csv", dtype=str)
    rows.rename(columns={"response_a": "response_b", "response_b": "response_a"}).to_csv(
        tmp_path / "swapped.csv"
    )
    straight = predict_input(run, raw / "test.csv", swap=False)[list(CLASSES)].to_numpy()
    other = predict_input(run, tmp_path / "swapped.csv", swap=False)[list(CLASSES)].to_numpy()
    np.testing.assert_allclose(other[:, list(SWAP)], straight, atol=1e-5)
    assert "reward.out.weight" in load_file(run / "holdout" / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda weights: weights.pop("classifier.weight"), r"lack classifier\.weight"),
        (
            lambda weights: [weights.pop(name) for name in list(weights) if "pooler" in name],
            r"lack pooler\.dense",
        ),
        (
            lambda weights: weights.update({"classifier.weight": torch.zeros(1, 5)}),
            "cannot be loaded",
        ),
    ],
)
def test_a_checkpoint_without_a_reward_is_refused(
    checkpoint: Path, tmp_path: Path, damage: Callable, message: str
):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "damaged"))
    weights = load_file(folder / "model.safetensors")
    damage(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=message):
        load_reward_head(local_backbone(folder))


def test_a_classifier_of_three_classes_is_no_reward_model(tmp_path: Path):
    classifier("roberta", outputs=3).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="3 outputs") as caught:
        load_reward_head(local_backbone(tmp_path))
    assert "reward-deberta" in caught.value.hint


@pytest.mark.parametrize("name", ["tiny-electra", "modernbert-base"])
def test_a_backbone_without_a_reward_is_refused(name: str):
    with pytest.raises(BackboneError, match=f"{name} starts from random|no reward head is known"):
        load_reward_head(resolve_backbone(name))


@pytest.fixture(scope="module")
def reward_decoder(judge_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen 3 reward model with the toy tokenizer, in transformers' own files."""
    folder = tmp_path_factory.mktemp("reward") / "decoder"
    shutil.copytree(judge_base, folder)
    torch.manual_seed(3)
    config = Qwen3Config(
        **BACKBONES["tiny-qwen"].config | {"head_dim": 16, "model_type": "qwen3"}, num_labels=1
    )
    Qwen3ForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_decoder_begins_with_the_odds_of_its_reward(
    reward_decoder: Path, processed: Dataset, lora_rank: int
):
    settings = ("model.shape=siamese", "model.reward=true", "encode.max_tokens=128")
    recipe = choose_recipe(
        str(reward_decoder),
        None,
        (*settings, "model.features=false", f"train.lora_rank={lora_rank}"),
    )
    model, tokenizer = new_model(recipe, local_backbone(reward_decoder), processed)
    model.start_from_prior(np.array([0.4, 0.3, 0.3]))
    digest = processed.digest("train")
    tokens = tokenize_cached(
        processed.train(), digest, tokenizer, recipe.encode, processed.cache, "siamese"
    )
    rows = range(6)
    batch = make_collator(model, tokens, tokenizer)(np.array(rows))
    with torch.no_grad():
        logits = model.eval()(batch["packs"], batch["order"])
    odds = logits[:, 0] - logits[:, 1]

    original = Qwen3ForSequenceClassification.from_pretrained(reward_decoder).eval()
    rewards = []
    for side in range(2 * len(rows)):
        start, end = tokens.starts[side : side + 2]
        ids = torch.from_numpy(np.asarray(tokens.tokens[start:end], np.int64))[None]
        with torch.no_grad():
            state = original.model(input_ids=ids).last_hidden_state[:, -1]
            rewards.append(original.score(state)[0, 0])
    lead = torch.stack(rewards[::2]) - torch.stack(rewards[1::2])
    assert lead.abs().min() > 1e-4
    torch.testing.assert_close(odds, lead, rtol=1e-4, atol=1e-4)


def test_a_decoder_without_a_score_is_no_reward_model(judge_base: Path):
    with pytest.raises(BackboneError, match=r"safetensors files lack score\.weight"):
        load_reward_head(local_backbone(judge_base))


def test_a_run_keeps_the_reward_of_a_decoder(reward_decoder: Path, data: Path, tmp_path: Path):
    settings = ("model.shape=siamese", "model.reward=true", "encode.max_tokens=128")
    quick = (*QUICK, *settings, "train.max_steps=2", "train.lora_rank=4")
    recipe = choose_recipe(str(reward_decoder), None, quick)
    run = Run.open(train_recipe(recipe, data, tmp_path)["run"])
    again = predict_split(run.path, "valid", data)
    pd.testing.assert_frame_equal(again, run.fold(HOLDOUT).predictions, rtol=0, atol=1e-6)
