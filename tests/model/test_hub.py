"""Check that a hub that cannot be reached is noticed at once, and that nothing waits for it."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

import kit
from kit.errors import BackboneError
from kit.model import hub
from kit.model.backbones import resolve_backbone
from kit.model.encoder import load_encoder, load_tokenizer


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub on a port of this machine that nothing listens on, an empty cache, and no waiting."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def wait(seconds: float) -> None:
        pytest.fail(f"waits for {seconds} s")

    monkeypatch.setattr(time, "sleep", wait)
    hub._is_reachable.cache_clear()
    yield
    hub._is_reachable.cache_clear()


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["deberta", "microsoft/deberta-v3-small"])
def test_without_a_network_nothing_is_asked_again(name: str):
    backbone = resolve_backbone(name)
    for load in (load_encoder, load_tokenizer):
        with pytest.raises(BackboneError, match="no connection to the Hugging Face hub"):
            load(backbone)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["deberta-xsmall", "microsoft/deberta-v3-small"])
def test_without_a_network_no_empty_run_is_left(name: str, data: Path, tmp_path: Path):
    with pytest.raises(BackboneError) as caught:
        kit.train(name, data=data, runs=tmp_path / "runs")
    assert "hf download microsoft/deberta-v3-" in caught.value.hint
    assert not (tmp_path / "runs").exists()
