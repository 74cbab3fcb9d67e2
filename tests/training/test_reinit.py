"""Check that just the top layers get new weights, in every architecture, as it initialises them."""

from pathlib import Path

import pytest
import torch
from torch import nn

from kit.errors import RecipeError
from kit.model.backbones import local_backbone
from kit.model.encoder import build_encoder, load_encoder
from kit.model.registry import BACKBONES
from kit.training.setup import reinitialise_layers

LAYERS = 4
FAMILIES = {record.config["model_type"]: name for name, record in BACKBONES.items()}
SMALL = {
    "num_hidden_layers": LAYERS,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 60,
    "embedding_size": 16,
    "max_position_embeddings": 40,
    "pooler_hidden_size": 32,
}
DISTILBERT = {
    "model_type": "distilbert",
    "n_layers": LAYERS,
    "dim": 32,
    "n_heads": 2,
    "hidden_dim": 48,
    "vocab_size": 60,
}

# The "pretrained" weights, which no initialisation draws.
PRETRAINED = 0.5


@pytest.fixture(scope="module", params=[*FAMILIES, "distilbert"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a backbone's folder in which every weight is `PRETRAINED`."""
    config = DISTILBERT
    if request.param != "distilbert":
        config = BACKBONES[FAMILIES[request.param]].config | SMALL
        for token in ("pad", "bos", "cls", "eos", "sep"):
            config[f"{token}_token_id"] = 0
        # Gemma 3 lists the kind of each layer.
        config.pop("layer_types", None)

    encoder = build_encoder(config)
    for parameter in encoder.parameters():
        nn.init.constant_(parameter, PRETRAINED)
    folder = tmp_path_factory.mktemp(request.param)
    encoder.save_pretrained(folder)
    return folder


def layer_in_name(name: str) -> int | None:
    """Return the only number in a parameter's name, which is found in another way than by kit."""
    numbers = [int(part) for part in name.split(".") if part.isdecimal()]
    return numbers[0] if numbers else None


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_just_the_top_layers_change(folder: Path, layers: int):
    encoder = load_encoder(local_backbone(folder))
    reinitialise_layers(encoder, layers)
    for name, parameter in encoder.named_parameters():
        layer = layer_in_name(name)
        if layer is not None and layer >= LAYERS - layers:
            assert (parameter != PRETRAINED).all(), name
        else:
            assert (parameter == PRETRAINED).all(), name


def test_new_weights_are_those_of_the_architectures_initialisation(folder: Path):
    encoder = load_encoder(local_backbone(folder))
    reinitialise_layers(encoder, LAYERS)
    for name, parameter in encoder.named_parameters():
        if layer_in_name(name) is None:
            continue
        if parameter.ndim > 1:
            assert abs(parameter.mean()) < 0.02
            assert 0.001 < parameter.std() < 0.1
        else:
            assert set(parameter.tolist()) <= {0.0, 1.0}, name


def test_new_weights_follow_the_seed(folder: Path):
    weights = []
    for seed in (1, 1, 2):
        encoder = load_encoder(local_backbone(folder))
        torch.manual_seed(seed)
        reinitialise_layers(encoder, 1)
        weights.append(torch.cat([p.detach().ravel() for p in encoder.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_more_layers_than_the_encoder_has_are_refused(folder: Path):
    with pytest.raises(RecipeError, match="the encoder has 4 layers"):
        reinitialise_layers(load_encoder(local_backbone(folder)), LAYERS + 1)
