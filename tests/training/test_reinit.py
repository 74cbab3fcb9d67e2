"""Fresh top layers: just these change, for every architecture, and they begin as the architecture begins."""

from pathlib import Path

import pytest
import torch
from torch import nn

from kit.errors import RecipeError
from kit.model.backbones import BACKBONES, local_backbone
from kit.model.encoder import build_encoder, load_encoder
from kit.training.setup import reinitialise_layers

FAMILIES = {record.config["model_type"]: name for name, record in BACKBONES.items()}
SMALL = {
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
SMALL |= {
    "vocab_size": 60,
    "embedding_size": 16,
    "max_position_embeddings": 40,
    "pooler_hidden_size": 32,
}
DISTILBERT = {
    "model_type": "distilbert",
    "n_layers": 4,
    "dim": 32,
    "n_heads": 2,
    "hidden_dim": 48,
    "vocab_size": 60,
}


@pytest.fixture(scope="module", params=[*FAMILIES, "distilbert"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone whose every weight is 0.5, as a pretrained one that no draw would give."""
    config = DISTILBERT
    if request.param != "distilbert":
        config = BACKBONES[FAMILIES[request.param]].config | SMALL
        for token in ("pad", "bos", "cls", "eos", "sep"):
            config[f"{token}_token_id"] = 0
    encoder = build_encoder(config)
    for parameter in encoder.parameters():
        nn.init.constant_(parameter, 0.5)
    folder = tmp_path_factory.mktemp(request.param)
    encoder.save_pretrained(folder)
    return folder


def inside(name: str) -> int | None:
    """The layer's number, told in another way than the code does."""
    numbers = [int(part) for part in name.split(".") if part.isdecimal()]
    return numbers[0] if numbers else None


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_just_the_top_layers_change(folder: Path, layers: int):
    encoder = load_encoder(local_backbone(folder))
    reinitialise_layers(encoder, layers)
    for name, parameter in encoder.named_parameters():
        fresh = inside(name) is not None and inside(name) >= 4 - layers
        assert bool((parameter == 0.5).any()) != fresh, name
        assert not fresh or bool((parameter != 0.5).all()), name


def test_they_begin_as_the_architecture_does(folder: Path):
    encoder = load_encoder(local_backbone(folder))
    reinitialise_layers(encoder, 4)
    for name, parameter in encoder.named_parameters():
        if inside(name) is None:
            continue
        if parameter.ndim > 1:
            assert abs(parameter.mean()) < 0.02
            assert 0.001 < parameter.std() < 0.1
        else:
            assert set(parameter.tolist()) <= {0.0, 1.0}, name


def test_the_draw_follows_the_seed(folder: Path):
    drawn = []
    for seed in (1, 1, 2):
        encoder = load_encoder(local_backbone(folder))
        torch.manual_seed(seed)
        reinitialise_layers(encoder, 1)
        drawn.append(torch.cat([p.detach().ravel() for p in encoder.parameters()]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_more_layers_than_there_are_is_an_error(folder: Path):
    with pytest.raises(RecipeError, match="the encoder has 4 layers"):
        reinitialise_layers(load_encoder(local_backbone(folder)), 5)
