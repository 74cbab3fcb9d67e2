"""Adapters stand where they should, learn alone, survive an interruption, and leave ordinary weights behind."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from interruption import interrupt_at
from peft.tuners.tuners_utils import BaseTunerLayer
from quick_recipe import QUICK
from safetensors.torch import load_file
from torch import nn
from transformers import set_seed

from kit.data.dataset import Dataset
from kit.errors import RecipeError
from kit.model.backbones import BACKBONES, resolve_backbone
from kit.model.encoder import build_encoder
from kit.predict import predict_split
from kit.predictions import read_predictions
from kit.recipe.load import load_recipe
from kit.recipe.spec import TrainSpec
from kit.training.lora import add_adapters, merge_adapters, require_peft
from kit.training.optim import parameter_groups
from kit.training.setup import new_model
from kit.training.train import train_recipe

SPEC = TrainSpec(lora_rank=4, lora_alpha=8.0)
LORA = (*QUICK, "train.lora_rank=4", "train.lora_dropout=0.1", "train.max_steps=8", "train.lr=0.01")
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
# By family, the linear layers of one transformer layer.
LINEARS = {"deberta-v2": 6, "roberta": 6, "xlm-roberta": 6, "electra": 6, "modernbert": 4}


def small(name: str) -> nn.Module:
    """The architecture of a registry backbone with three thin layers."""
    torch.manual_seed(0)
    sizes = SMALL | {
        key: 16 for key in ("embedding_size", "pooler_hidden_size") if key in BACKBONES[name].config
    }
    special = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1}
    special |= {"eos_token_id": 2, "sep_token_id": 2, "decoder_sparse": False}
    known = {key: value for key, value in special.items() if key in BACKBONES[name].config}
    return build_encoder(BACKBONES[name].config | sizes | known).eval()


def states(encoder: nn.Module) -> torch.Tensor:
    tokens = torch.arange(4, 34).reshape(2, 15)
    with torch.no_grad():
        return encoder(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state


@pytest.fixture
def old_torchao(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a torchao 0.10.0, as Kaggle's and Colab's images do."""
    from peft.import_utils import is_torchao_available

    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao/__init__.py").touch()
    info = tmp_path / "torchao-0.10.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchao\nVersion: 0.10.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    is_torchao_available.cache_clear()
    yield
    is_torchao_available.cache_clear()


@pytest.mark.usefixtures("old_torchao")
def test_an_old_torchao_does_not_stop_a_training() -> None:
    from peft.import_utils import is_torchao_available

    with pytest.raises(ImportError, match=r"0\.10\.0"):
        is_torchao_available()

    encoder = small("roberta")
    before = states(encoder)
    add_adapters(encoder, SPEC)
    merge_adapters(encoder)
    torch.testing.assert_close(states(encoder), before)


def stir(encoder: nn.Module) -> None:
    """Gives the adapters, which begin as zero, something to add."""
    for name, parameter in encoder.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)


@pytest.mark.parametrize("name", BACKBONES)
def test_adapters_stand_on_all_attention_and_feed_forward_layers_of_every_backbone(name: str):
    encoder = small(name)
    add_adapters(encoder, SPEC)
    adapted = [
        each for each, module in encoder.named_modules() if isinstance(module, BaseTunerLayer)
    ]
    assert len(adapted) == 3 * LINEARS[BACKBONES[name].config["model_type"]]
    assert not [each for each in adapted if "embeddings" in each]
    assert {
        each.rpartition(".lora_")[1] for each, p in encoder.named_parameters() if p.requires_grad
    } == {".lora_"}


@pytest.mark.parametrize(
    "name", ["tiny-deberta", "tiny-roberta", "tiny-electra", "modernbert-base"]
)
def test_they_change_nothing_at_first_and_merging_them_changes_nothing_at_the_end(name: str):
    encoder = small(name)
    names, plain = set(encoder.state_dict()), states(encoder)
    add_adapters(encoder, SPEC)
    torch.testing.assert_close(states(encoder), plain)
    stir(encoder)
    learned = states(encoder)
    assert not torch.allclose(learned, plain, atol=1e-2)
    merge_adapters(encoder)
    torch.testing.assert_close(states(encoder), learned, rtol=1e-4, atol=1e-5)
    assert set(encoder.state_dict()) == names
    assert not [each for each in encoder.modules() if isinstance(each, BaseTunerLayer)]


def test_the_optimizer_holds_adapters_and_head_alone(processed: Dataset):
    recipe = load_recipe("tiny-electra", (*LORA, "train.layer_decay=0.5"))
    model, _ = new_model(recipe, resolve_backbone(recipe.backbone), processed)
    groups = parameter_groups(model, recipe.train)
    held = {id(p) for group in groups for p in group["params"]}
    by_name = dict(model.named_parameters())
    assert {name for name, p in by_name.items() if id(p) in held} == {
        name for name in by_name if "lora_" in name or not name.startswith("encoder.")
    }
    assert {0.01, 0.005} <= {group["lr"] for group in groups}  # by layer, as without adapters


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The holdout, trained by adapters without interruption."""
    return Path(
        train_recipe(load_recipe("tiny-electra", LORA), data, tmp_path_factory.mktemp("runs"))[
            "run"
        ]
    )


def test_a_run_holds_ordinary_weights_of_which_only_the_adapted_ones_moved(
    run: Path, processed: Dataset
):
    recipe = load_recipe("tiny-electra", LORA)
    weights = load_file(run / "holdout" / "model.safetensors")
    set_seed(recipe.train.seed)
    plain = load_recipe("tiny-electra", (*LORA, "train.lora_rank=0"))
    begun, _ = new_model(plain, resolve_backbone("tiny-electra"), processed)
    assert set(weights) == set(begun.state_dict())
    moved = {
        name
        for name, value in begun.encoder.state_dict().items()
        if not value.equal(weights[f"encoder.{name}"])
    }
    linear = {
        f"{name}.weight"
        for name, each in begun.encoder.named_modules()
        if isinstance(each, nn.Linear)
    }
    assert moved == {name for name in linear if ".layer." in name}


def test_the_metrics_are_those_of_the_merged_weights(run: Path, data: Path):
    again = predict_split(run, "valid", data)
    stored = read_predictions(run / "holdout" / "valid.csv")
    assert (again.to_numpy() - stored.to_numpy()).__abs__().max() < 1e-9
    assert json.loads((run / "holdout" / "metrics.json").read_text())["steps"] == 8


def test_prediction_needs_no_peft(run: Path, data: Path, tmp_path: Path):
    code = (
        "import sys, importlib.abc\n"
        "class Gone(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.split('.')[0] == 'peft': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Gone())\n"
        "from kit.cli.main import main\n"
        f"main(['predict', {str(run)!r}, '--data', {str(data)!r}, '-o', {str(tmp_path / 'out.csv')!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(read_predictions(tmp_path / "out.csv"))


def test_an_interrupted_training_resumes_to_the_same_weights(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = load_recipe("tiny-electra", LORA)
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)
        with pytest.raises(KeyboardInterrupt):
            train_recipe(recipe, data, tmp_path)
    resumed = Path(train_recipe(recipe, data, tmp_path, resume=True)["run"])
    expected = load_file(run / "holdout" / "model.safetensors")
    for name, weights in load_file(resumed / "holdout" / "model.safetensors").items():
        assert torch.equal(weights, expected[name]), name


def test_they_go_together_with_averaging_perturbation_and_two_passes(data: Path, tmp_path: Path):
    extras = (
        "train.ema=0.9",
        "train.awp=0.01",
        "train.awp_start=0.0",
        "train.r_drop=0.5",
        "train.max_steps=4",
    )
    result = train_recipe(load_recipe("tiny-electra", (*LORA, *extras)), data, tmp_path)
    weights = load_file(Path(result["run"]) / "holdout" / "model.safetensors")
    assert not [name for name in weights if "lora" in name]
    assert all(value.isfinite().all() for value in weights.values())


def test_without_peft_it_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    require_peft(TrainSpec())
    with pytest.raises(RecipeError, match="needs peft") as caught:
        require_peft(SPEC)
    assert "peft>=0.18" in caught.value.hint
