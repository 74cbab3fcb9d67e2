"""Check where adapters are, that only they learn, and that ordinary weights remain."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
import torch
from interruption import interrupt_at
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from quick_recipe import QUICK
from safetensors.torch import load_file
from torch import nn
from transformers import set_seed

from kit.data.dataset import Dataset
from kit.errors import RecipeError
from kit.model.adapters import AdapterSpec, add_adapters, merge_adapters, require_peft
from kit.model.backbones import resolve_backbone
from kit.model.encoder import build_encoder
from kit.model.registry import BACKBONES
from kit.predict import predict_split
from kit.predictions import read_predictions
from kit.recipe.load import load_recipe
from kit.recipe.spec import TrainSpec
from kit.run import Run
from kit.task import HOLDOUT
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

# Linear layers in one transformer layer, by family.
LINEAR_LAYERS = {"deberta-v2": 6, "roberta": 6, "xlm-roberta": 6, "electra": 6, "modernbert": 4}
LINEAR_LAYERS |= dict.fromkeys(("llama", "qwen2", "qwen3", "gemma2", "gemma3_text"), 7)
LINEAR_LAYERS |= {"phi3": 4}


def small_encoder(name: str) -> nn.Module:
    """Build the architecture of a registry backbone with three thin layers."""
    config = BACKBONES[name].config
    optional = {
        "embedding_size": 16,
        "pooler_hidden_size": 16,
        "vocab_size": 50,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "cls_token_id": 1,
        "eos_token_id": 2,
        "sep_token_id": 2,
        "decoder_sparse": False,
        "num_key_value_heads": 1,
        "layer_types": ["sliding_attention"] * 3,
    }
    changes = SMALL | {key: value for key, value in optional.items() if key in config}
    torch.manual_seed(0)
    return build_encoder(config | changes).eval()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["tiny-electra", "tiny-llama"])
def test_states_and_gradients_are_those_of_peft(name: str, precision: torch.dtype):
    encoder = small_encoder(name)
    add_adapters(encoder, AdapterSpec(rank=4, alpha=6.0, dropout=0.0))
    adapted = [module for module in encoder.modules() if isinstance(module, Linear)]
    for module in adapted:
        nn.init.normal_(module.lora_B["default"].weight, std=0.1)

    def compute() -> list[torch.Tensor]:
        encoder.zero_grad()
        tokens = torch.arange(4, 34).reshape(2, 15)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            outputs = encoder(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        states = outputs.last_hidden_state
        weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
        (weights * states).sum().backward()
        gradients = [p.grad.clone() for p in encoder.parameters() if p.requires_grad]
        return [states.detach(), *gradients]

    ours = compute()
    assert all(type(module) is not Linear for module in adapted)
    for module in adapted:
        module.__class__ = Linear
    close = 1e-5 if precision == torch.float32 else 0.05
    for mine, pefts in zip(ours, compute(), strict=True):
        scale = pefts.abs().max()
        torch.testing.assert_close(mine / scale, pefts / scale, rtol=0, atol=close)


def compute_states(encoder: nn.Module) -> torch.Tensor:
    """Return the last hidden states of two sequences."""
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
    (info / "top_level.txt").write_text("torchao\n")
    monkeypatch.syspath_prepend(tmp_path)
    is_torchao_available.cache_clear()
    yield
    is_torchao_available.cache_clear()


@pytest.mark.usefixtures("old_torchao")
def test_an_old_torchao_does_not_stop_a_training() -> None:
    from peft.import_utils import is_torchao_available

    # The oldest peft takes any torchao.
    takes_any = version("peft") == "0.18.0"
    with nullcontext() if takes_any else pytest.raises(ImportError, match=r"0\.10\.0"):
        is_torchao_available()

    encoder = small_encoder("roberta")
    before = compute_states(encoder)
    add_adapters(encoder, AdapterSpec.of_recipe(SPEC))
    merge_adapters(encoder)
    torch.testing.assert_close(compute_states(encoder), before)


def randomise_adapters(encoder: nn.Module) -> None:
    """Give the adapters, which start at zero, an effect."""
    for name, parameter in encoder.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)


@pytest.mark.parametrize(
    "name", {record.config["model_type"]: name for name, record in BACKBONES.items()}.values()
)
def test_adapters_are_on_all_attention_and_feed_forward_layers_of_every_family(name: str):
    encoder = small_encoder(name)
    add_adapters(encoder, AdapterSpec.of_recipe(SPEC))
    adapted = [
        module_name
        for module_name, module in encoder.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]
    assert len(adapted) == 3 * LINEAR_LAYERS[BACKBONES[name].config["model_type"]]
    assert not [module_name for module_name in adapted if "embeddings" in module_name]

    trained = [name for name, p in encoder.named_parameters() if p.requires_grad]
    assert all(".lora_" in name for name in trained)


@pytest.mark.parametrize(
    "name", ["tiny-deberta", "tiny-roberta", "tiny-electra", "modernbert-base"]
)
def test_adding_and_merging_adapters_does_not_change_the_outputs(name: str):
    encoder = small_encoder(name)
    names = set(encoder.state_dict())
    plain = compute_states(encoder)
    add_adapters(encoder, AdapterSpec.of_recipe(SPEC))
    torch.testing.assert_close(compute_states(encoder), plain)

    randomise_adapters(encoder)
    adapted = compute_states(encoder)
    assert not torch.allclose(adapted, plain, atol=1e-2)

    merge_adapters(encoder)
    torch.testing.assert_close(compute_states(encoder), adapted, rtol=1e-4, atol=1e-5)
    assert set(encoder.state_dict()) == names
    assert not [module for module in encoder.modules() if isinstance(module, BaseTunerLayer)]


def test_the_optimizer_has_just_the_adapters_and_the_head(processed: Dataset):
    recipe = load_recipe("tiny-electra", (*LORA, "train.layer_decay=0.5"))
    model, _ = new_model(recipe, resolve_backbone(recipe.backbone), processed)
    groups = parameter_groups(model, recipe.train)
    optimised = {id(p) for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = "lora_" in name or not name.startswith("encoder.")
        assert (id(parameter) in optimised) == expected, name

    # Rates decay by layer, as without adapters.
    assert {0.01, 0.005} <= {group["lr"] for group in groups}


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train the holdout with adapters, without interruption."""
    return train_run(LORA, data, tmp_path_factory.mktemp("runs"))


def train_run(overrides: tuple[str, ...], data: Path, runs: Path, resume: bool = False) -> Run:
    recipe = load_recipe("tiny-electra", overrides)
    return Run.open(train_recipe(recipe, data, runs, resume=resume)["run"])


def load_weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.fold(HOLDOUT).path / "model.safetensors")


def test_a_run_has_ordinary_weights_of_which_just_the_adapted_ones_changed(
    run: Run, processed: Dataset
):
    weights = load_weights(run)
    plain = load_recipe("tiny-electra", (*LORA, "train.lora_rank=0"))
    set_seed(plain.train.seed)
    untrained, _ = new_model(plain, resolve_backbone("tiny-electra"), processed)
    assert set(weights) == set(untrained.state_dict())

    changed = {
        name
        for name, tensor in untrained.encoder.state_dict().items()
        if not tensor.equal(weights[f"encoder.{name}"])
    }
    linear = {
        f"{name}.weight"
        for name, module in untrained.encoder.named_modules()
        if isinstance(module, nn.Linear)
    }
    assert changed == {name for name in linear if ".layer." in name}


def test_the_metrics_are_those_of_the_merged_weights(run: Run, data: Path):
    again = predict_split(run.path, "valid", data)
    stored = run.fold(HOLDOUT).predictions
    pd.testing.assert_frame_equal(again, stored, rtol=0, atol=1e-9)
    assert run.fold(HOLDOUT).metrics["steps"] == 8


def test_prediction_needs_no_peft(run: Run, data: Path, tmp_path: Path):
    # None in sys.modules makes an import fail.
    code = (
        "import sys\n"
        "sys.modules['peft'] = None\n"
        "from kit.cli.main import main\n"
        "main(['predict', *sys.argv[1:]])\n"
    )
    output = tmp_path / "predictions.csv"
    arguments = [str(run.path), "--data", str(data), "-o", str(output)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(read_predictions(output))


def test_an_interrupted_training_resumes_to_the_same_weights(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)
        with pytest.raises(KeyboardInterrupt):
            train_run(LORA, data, tmp_path)
    resumed = train_run(LORA, data, tmp_path, resume=True)

    expected = load_weights(run)
    for name, tensor in load_weights(resumed).items():
        assert torch.equal(tensor, expected[name]), name


def test_adapters_combine_with_r_drop(data: Path, tmp_path: Path):
    extras = ("train.r_drop=0.5", "train.max_steps=4")
    weights = load_weights(train_run((*LORA, *extras), data, tmp_path))
    assert not [name for name in weights if "lora" in name]
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_missing_peft_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    require_peft(0)
    with pytest.raises(RecipeError, match="needs peft") as caught:
        require_peft(SPEC.lora_rank)
    assert "peft>=0.18" in caught.value.hint
