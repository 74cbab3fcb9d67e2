"""Check that features are found by name, computed once, and joined with the token counts."""

from pathlib import Path

import numpy as np
import pytest
from tabular_rows import tabular_rows

from kit.data import feature_cache as module
from kit.data.dataset import Dataset
from kit.data.feature_cache import SIDE_NAMES, TOKENS, FeatureTable, features_cached
from kit.data.features import FEATURES, PAIR_FEATURES, compute_features
from kit.data.tokenize import PairTokenizer, TokenizedRows, tokenize_cached
from kit.errors import DataError, RunError
from kit.model.backbones import local_backbone
from kit.model.encoder import load_tokenizer
from kit.model.registry import BACKBONES
from kit.recipe.spec import EncodeSpec
from kit.training.setup import tiny_folder


@pytest.fixture(scope="module")
def vocabulary(processed: Dataset) -> PairTokenizer:
    return load_tokenizer(local_backbone(tiny_folder(BACKBONES["tiny-electra"], processed)))


@pytest.fixture(scope="module")
def encoded(processed: Dataset, vocabulary: PairTokenizer) -> TokenizedRows:
    return tokenize_cached(
        processed.train(), processed.digest("train"), vocabulary, EncodeSpec(40), processed.cache
    )


@pytest.fixture(scope="module")
def made(
    processed: Dataset, encoded: TokenizedRows, tmp_path_factory: pytest.TempPathFactory
) -> FeatureTable:
    return features_cached(processed.train(), "content", encoded, tmp_path_factory.mktemp("cache"))


def test_every_row_has_its_features(processed: Dataset, made: FeatureTable):
    a, b, pair = compute_features(processed.train())
    assert (made.side_names, made.pair_names) == (SIDE_NAMES, PAIR_FEATURES)
    assert made.sides.dtype == made.pair.dtype == np.float32
    np.testing.assert_array_equal(made.sides[:, :, : len(FEATURES)], np.stack([a, b], 1))
    np.testing.assert_array_equal(made.pair, pair)


def test_tokens_are_counted_before_truncation(
    processed: Dataset,
    encoded: TokenizedRows,
    vocabulary: PairTokenizer,
    made: FeatureTable,
    tmp_path: Path,
):
    whole = tokenize_cached(processed.train(), "content", vocabulary, EncodeSpec(8192), tmp_path)
    assert encoded.cut > 0
    assert whole.cut == 0
    assert (
        whole.whole_lengths.tolist()
        == whole.lengths.ravel().tolist()
        == encoded.whole_lengths.tolist()
    )
    np.testing.assert_allclose(
        made.sides[:, :, SIDE_NAMES.index(TOKENS)], np.log1p(whole.lengths), rtol=1e-6
    )


def test_features_are_computed_once(
    processed: Dataset, encoded: TokenizedRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = features_cached(processed.train(), "content", encoded, tmp_path)
    monkeypatch.setattr(module, "compute_features", lambda _: pytest.fail("computed again"))
    again = features_cached(processed.train(), "content", encoded, tmp_path)
    np.testing.assert_array_equal(again.sides, first.sides)
    np.testing.assert_array_equal(again.pair, first.pair)
    with pytest.raises(pytest.fail.Exception):
        features_cached(processed.train(), "other content", encoded, tmp_path)


def test_features_of_another_format_are_computed_again(
    processed: Dataset, encoded: TokenizedRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "FORMAT", 1)
    features_cached(processed.train(), "content", encoded, tmp_path)
    monkeypatch.undo()
    features_cached(processed.train(), "content", encoded, tmp_path)
    assert len(list(tmp_path.glob("features-*"))) == 2


@pytest.mark.parametrize("file", ["sides.npy", "pair.npy"])
@pytest.mark.parametrize("end", [b"", b"\x01\x02\x03\x04"], ids=["cut", "changed"])
def test_a_damaged_cache_names_the_folder_to_delete(
    processed: Dataset, encoded: TokenizedRows, tmp_path: Path, file: str, end: bytes
):
    features_cached(processed.train(), "content", encoded, tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / file).write_bytes((folder / file).read_bytes()[:-4] + end)
    with pytest.raises(DataError, match=folder.name) as caught:
        features_cached(processed.train(), "content", encoded, tmp_path)
    assert "Delete the folder" in caught.value.hint


def test_columns_are_found_by_their_names():
    rows = tabular_rows(5)
    rewards = np.arange(10).reshape(5, 2)
    chosen = rows.add_side_feature("reward", rewards).select(["reward", "words"], ["same"])
    assert (chosen.side_names, chosen.pair_names) == (("reward", "words"), ("same",))
    np.testing.assert_array_equal(chosen.sides[:, :, 0], rewards)
    np.testing.assert_array_equal(
        chosen.sides[:, :, 1], rows.sides[:, :, SIDE_NAMES.index("words")]
    )
    np.testing.assert_array_equal(chosen.pair[:, 0], rows.pair[:, PAIR_FEATURES.index("same")])


def test_an_unknown_feature_is_named():
    with pytest.raises(RunError, match="charm, wit"):
        tabular_rows(2).select(["words", "charm"], ["wit"])
