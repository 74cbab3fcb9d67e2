"""Check that tokens fit their budget, nothing is cut needlessly, and a bad cache is noticed."""

import dataclasses
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from kit.data import tokenize as module
from kit.data.dataset import Dataset
from kit.data.tokenize import PairTokenizer, TokenizedRows, tokenize_cached, tokenize_rows
from kit.errors import DataError, RecipeError
from kit.model.registry import BACKBONES
from kit.model.tiny import SPECIAL, train_tokenizer
from kit.recipe.spec import EncodeSpec
from kit.storage.seal import SEAL_FILE
from kit.task import PROMPT, RESPONSES, TEXTS

LETTERS = "abcdefghijklmnopqrstuvwxyz[]SEP"
CLS, SEP, PAD = 1, 2, 0
# Stands for SEP in expected texts; no text has it.
BAR = "|"


def per_character() -> PairTokenizer:
    """Return a tokenizer that makes every character a token, so that tokens are readable."""
    tokenizer = Tokenizer(
        models.WordLevel({c: i for i, c in enumerate([*SPECIAL, *LETTERS])}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.add_special_tokens(SPECIAL)
    return PairTokenizer(SimpleNamespace(backend_tokenizer=tokenizer), CLS, SEP, PAD)


CHARACTERS = per_character()
TURNS = st.lists(st.text("abcxyz", max_size=25), min_size=1, max_size=4)
ROWS = st.lists(st.tuples(TURNS, TURNS, TURNS), min_size=1, max_size=6)
SPECS = st.builds(
    EncodeSpec,
    max_tokens=st.integers(8, 90),
    prompt_share=st.floats(0, 0.6),
    head_share=st.floats(0, 1),
)


def table(rows: list[tuple[list[str], list[str], list[str]]]) -> pa.Table:
    columns = zip(*rows, strict=True)
    return pa.table(
        {
            name: pa.array(column, pa.list_(pa.string()))
            for name, column in zip(TEXTS, columns, strict=True)
        }
    )


def encoded(
    rows: pa.Table, spec: EncodeSpec, folder: Path, tokenizer: PairTokenizer = CHARACTERS
) -> TokenizedRows:
    tokenize_rows(rows, tokenizer, spec, folder)
    return TokenizedRows.open(folder)


def sides(rows: TokenizedRows) -> list[list[list[int]]]:
    """Return the tokens of every row's sides."""
    sequences = [rows.tokens[a:b].tolist() for a, b in pairwise(rows.starts)]
    return [sequences[i : i + rows.sides] for i in range(0, len(sequences), rows.sides)]


def segments(rows: TokenizedRows) -> list[tuple[str, str]]:
    """Return prompt and response of every side as text, with a bar for SEP."""
    letters = dict(enumerate(LETTERS, len(SPECIAL))) | {SEP: BAR}
    found = []
    for (start, end), first in zip(pairwise(rows.starts), rows.first_lengths, strict=True):
        tokens = rows.tokens[start:end].tolist()
        assert tokens[0] == CLS
        assert tokens[first - 1] == tokens[-1] == SEP
        prompt, response = (
            "".join(letters[token] for token in part)
            for part in (tokens[1 : first - 1], tokens[first:-1])
        )
        found.append((prompt, response))
    return found


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encode") / "tokens"


@settings(deadline=None, max_examples=80)
@given(ROWS, SPECS)
def test_no_side_exceeds_its_budget_and_a_cut_side_fills_it(
    scratch: Path, rows: list, spec: EncodeSpec
):
    # A few tokens may leave nothing of an answer, for which a whole data set would be refused.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kit.data.tokenize.MAX_EMPTIED", 1.0)
        tokens = encoded(table(rows), spec, scratch)
    lengths = tokens.lengths
    assert lengths.shape == (len(rows), len(RESPONSES))
    assert lengths.max() <= spec.max_tokens

    need = np.array(
        [
            [3 + sum(len(BAR.join(t)) for t in (row[0], answer)) for answer in row[1:]]
            for row in rows
        ]
    )
    assert tokens.cut == (need > spec.max_tokens).sum()
    assert (lengths[need <= spec.max_tokens] == need[need <= spec.max_tokens]).all()
    # Unused is at most one SEP with nothing before it, in prompt and response.
    assert (lengths[need > spec.max_tokens] >= spec.max_tokens - 2).all()


@settings(deadline=None, max_examples=80)
@given(ROWS, st.floats(0, 1), st.floats(0, 1))
def test_nothing_is_cut_that_fits(
    scratch: Path, rows: list, prompt_share: float, head_share: float
):
    tokens = encoded(table(rows), EncodeSpec(210, prompt_share, head_share), scratch)
    assert segments(tokens) == [
        (BAR.join(row[0]), BAR.join(answer)) for row in rows for answer in row[1:]
    ]
    assert tokens.cut == 0


@settings(deadline=None, max_examples=80)
@given(ROWS, SPECS)
def test_swapping_the_answers_swaps_the_sides(scratch: Path, rows: list, spec: EncodeSpec):
    straight = encoded(table(rows), spec, scratch)
    expected = [side[::-1] for side in sides(straight)]
    swapped = encoded(table([(prompt, b, a) for prompt, a, b in rows]), spec, scratch)
    assert sides(swapped) == expected
    assert (
        swapped.first_lengths.reshape(-1, 2).tolist()
        == straight.first_lengths.reshape(-1, 2)[:, ::-1].tolist()
    )


def is_kept(turns: list[str], text: str, head_share: float) -> bool:
    """Return whether `text` is the last turns, the first of them perhaps without its middle."""
    first, *rest = text.split(BAR)
    if rest != turns[len(turns) - len(rest) :]:
        return False
    turn = turns[len(turns) - len(rest) - 1]
    head = round(len(first) * head_share)
    return first in (turn, turn[:head] + turn[len(turn) - (len(first) - head) :])


@settings(deadline=None, max_examples=120)
@given(ROWS, SPECS)
def test_the_last_turns_are_kept_and_the_head_and_tail_of_a_long_one(
    scratch: Path, rows: list, spec: EncodeSpec
):
    tokens = encoded(table(rows), spec, scratch)
    room = spec.max_tokens - 3
    texts = [(row[0], answer) for row in rows for answer in row[1:]]
    for (prompt, response), (kept_prompt, kept_response) in zip(
        texts, segments(tokens), strict=True
    ):
        assert is_kept(prompt, kept_prompt, spec.head_share)
        assert is_kept(response, kept_response, spec.head_share)

        for_prompt = int(room * spec.prompt_share)
        assert len(kept_prompt) >= min(len(BAR.join(prompt)), for_prompt - 1)
        assert len(kept_response) >= min(len(BAR.join(response)), room - for_prompt - 1)


@pytest.mark.parametrize(
    ("spec", "prompt", "response"),
    [
        (EncodeSpec(13, 0.5, 0.5), "abcde", "vwxyz"),
        (EncodeSpec(11, 0.5, 0.5), "abde", "vwyz"),
        # The prompt gets more than its share, since the response leaves it free.
        (EncodeSpec(11, 0.25, 0.5), "abe", "vwxyz"),
        (EncodeSpec(11, 0.0, 0.5), "abe", "vwxyz"),
        (EncodeSpec(8, 0.0, 1.0), "", "vwxyz"),
        (EncodeSpec(9, 0.5, 1.0), "abc", "vwx"),
        (EncodeSpec(9, 0.5, 0.0), "cde", "xyz"),
    ],
)
def test_the_budget_is_shared_as_the_recipe_says(
    scratch: Path, spec: EncodeSpec, prompt: str, response: str
):
    tokens = encoded(table([(["abcde"], ["vwxyz"], ["vwxyz"])]), spec, scratch)
    assert segments(tokens)[0] == (prompt, response)


def test_a_budget_that_leaves_nothing_of_answers_is_refused(scratch: Path):
    with pytest.raises(RecipeError, match="leaves nothing of 2 answers"):
        encoded(table([(["abcde"], ["vwxyz"], ["vwxyz"])]), EncodeSpec(8, 1.0), scratch)


def test_what_is_kept_of_prompts_and_answers_is_counted(scratch: Path):
    rows = table([(["abcde"], ["vwxyz"], ["vw"])])
    assert encoded(rows, EncodeSpec(9, 0.5), scratch).retention == (10, 7, 7, 5)


def test_early_turns_are_cut_first(scratch: Path):
    turns = ["aaaa", "bbbb", "cccc"]
    kept = [
        segments(encoded(table([([""], turns, turns)]), EncodeSpec(n + 3, 0.0), scratch))[0][1]
        for n in range(5, 15)
    ]
    assert kept == [
        *("cccc", "b|cccc", "bb|cccc", "bbb|cccc", "bbbb|cccc", "bbbb|cccc"),
        *("a|bbbb|cccc", "aa|bbbb|cccc", "aaa|bbbb|cccc", "aaaa|bbbb|cccc"),
    ]


@settings(deadline=None, max_examples=40)
@given(ROWS, st.integers(1, 4))
def test_tokens_do_not_depend_on_the_chunk_size(scratch: Path, rows: list, chunk: int):
    whole = scratch.parent / "whole"
    tokenize_rows(table(rows), CHARACTERS, EncodeSpec(30), whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        tokenize_rows(table(rows), CHARACTERS, EncodeSpec(30), scratch)

    for name in ("tokens.int32", "starts.npy", "first_lengths.npy"):
        assert (whole / name).read_bytes() == (scratch / name).read_bytes()


def test_tokens_do_not_depend_on_the_tables_chunks(scratch: Path):
    rows = [([f"p{i}".replace("p", "a" * i)], ["b" * i, ""], ["c"]) for i in range(9)]
    pieces = pa.concat_tables([table(rows[:2]), table(rows[2:3]), table(rows[3:])])
    assert pieces[PROMPT].num_chunks == 3
    for chunked, whole in (
        (pieces, table(rows)),
        (pieces.slice(1, 4), table(rows[1:5])),
    ):
        expected = sides(encoded(whole, EncodeSpec(), scratch))
        assert sides(encoded(chunked, EncodeSpec(), scratch)) == expected


def test_empty_turns_and_answers_are_framed_too(scratch: Path):
    tokens = encoded(table([([""], [""], ["", ""])]), EncodeSpec(8), scratch)
    assert sides(tokens) == [[[CLS, SEP, SEP], [CLS, SEP, SEP, SEP]]]
    assert tokens.first_lengths.tolist() == [2, 2]
    assert len(tokens) == 1


def test_a_text_that_spells_out_a_special_token_is_text(scratch: Path):
    tokens = encoded(table([(["a[SEP]b"], ["[SEP]"], ["x"])]), EncodeSpec(), scratch)
    assert segments(tokens) == [("a[SEP]b", "[SEP]"), ("a[SEP]b", "x")]


@pytest.mark.parametrize("name", ["tiny-deberta", "tiny-roberta", "tiny-electra"])
def test_a_batch_gives_the_tokens_of_one_text_at_a_time(
    processed: Dataset, scratch: Path, name: str
):
    rows = processed.train().select(TEXTS)
    texts = rows.to_pylist()
    turns = [turn for row in texts for turn in row[PROMPT] + row[RESPONSES[0]]]
    tokenizer = train_tokenizer(BACKBONES[name], turns)
    pair_tokenizer = PairTokenizer(SimpleNamespace(backend_tokenizer=tokenizer), CLS, SEP, PAD)
    tokens = encoded(rows, EncodeSpec(8192), scratch, pair_tokenizer)
    assert len(tokens) == len(texts)

    for row, pair in zip(texts[::7], sides(tokens)[::7], strict=True):
        prompt, *answers = (
            [
                t
                for turn in row[name]
                for t in (*tokenizer.encode(turn, add_special_tokens=False).ids, SEP)
            ]
            for name in TEXTS
        )
        assert pair == [[CLS, *prompt, *answer] for answer in answers]


def test_tokens_are_memory_mapped(scratch: Path):
    tokens = encoded(table([(["ab"], ["c"], ["d"])]), EncodeSpec(), scratch)
    assert isinstance(tokens.tokens, np.memmap)
    assert tokens.tokens.dtype == np.int32
    assert not tokens.tokens.flags.writeable


def test_a_cached_table_is_not_tokenised_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = table([(["ab"], ["c"], ["d"])])
    first = tokenize_cached(rows, "content", CHARACTERS, EncodeSpec(), tmp_path)
    monkeypatch.setattr(module, "tokenize_rows", lambda *_: pytest.fail("encoded again"))
    again = tokenize_cached(rows, "content", per_character(), EncodeSpec(), tmp_path)
    assert sides(again) == sides(first)


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "other"},
        {"tokenizer": dataclasses.replace(CHARACTERS, sep=3)},
        {"tokenizer": dataclasses.replace(CHARACTERS, cls=3)},
        {"shape": "cross"},
        *(
            {"spec": EncodeSpec(**change)}
            for change in ({"max_tokens": 9}, {"prompt_share": 0.3}, {"head_share": 0.1})
        ),
    ],
)
def test_another_table_tokenizer_budget_or_shape_is_tokenised_again(tmp_path: Path, change: dict):
    arguments = {"digest": "content", "tokenizer": CHARACTERS, "spec": EncodeSpec()}
    rows = table([(["ab"], ["c"], ["d"])])
    tokenize_cached(rows, **arguments, cache=tmp_path)
    tokenize_cached(rows, **arguments | change, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_another_tokenizer_has_another_digest():
    other = per_character()
    other.backend.pre_tokenizer = pre_tokenizers.Whitespace()
    assert other.digest != CHARACTERS.digest
    assert per_character().digest == CHARACTERS.digest


@pytest.mark.parametrize("lost", [1, 4, 1000])
@pytest.mark.parametrize("file", ["tokens.int32", "starts.npy", "first_lengths.npy", "meta.json"])
def test_a_truncated_cache_names_the_folder_to_delete(tmp_path: Path, file: str, lost: int):
    rows = table([(["ab"], ["c"], ["d"])] * 3)
    tokenize_cached(rows, "content", CHARACTERS, EncodeSpec(), tmp_path)
    (folder,) = tmp_path.iterdir()
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: max(0, len(content) - lost)])
    with pytest.raises(DataError, match=folder.name) as caught:
        tokenize_cached(rows, "content", CHARACTERS, EncodeSpec(), tmp_path)
    assert "Delete the folder" in caught.value.hint


@pytest.mark.parametrize(
    "file", ["tokens.int32", "starts.npy", "first_lengths.npy", "meta.json", SEAL_FILE]
)
def test_a_changed_byte_is_refused(tmp_path: Path, file: str):
    rows = table([(["ab"], ["c"], ["d"])] * 3)
    tokenize_cached(rows, "content", CHARACTERS, EncodeSpec(), tmp_path)
    (folder,) = tmp_path.iterdir()
    content = bytearray((folder / file).read_bytes())
    content[-8] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(DataError, match=folder.name) as caught:
        tokenize_cached(rows, "content", CHARACTERS, EncodeSpec(), tmp_path)
    assert "Delete the folder" in caught.value.hint


def test_tokens_of_an_older_kit_without_hashes_are_made_again(tmp_path: Path):
    rows = table([(["ab"], ["c"], ["d"])])
    first = sides(tokenize_cached(rows, "content", CHARACTERS, EncodeSpec(), tmp_path))
    (folder,) = tmp_path.iterdir()
    (folder / SEAL_FILE).unlink()
    (folder / "tokens.int32").write_bytes(b"")
    assert sides(tokenize_cached(rows, "content", CHARACTERS, EncodeSpec(), tmp_path)) == first


@pytest.mark.parametrize("file", ["tokens.int32", "starts.npy", "first_lengths.npy"])
def test_a_missing_file_is_refused(tmp_path: Path, file: str):
    rows = table([(["ab"], ["c"], ["d"])])
    tokenize_rows(rows, CHARACTERS, EncodeSpec(), tmp_path / "tokens")
    (tmp_path / "tokens" / file).unlink()
    with pytest.raises(DataError, match="tokens"):
        TokenizedRows.open(tmp_path / "tokens")


def test_an_interrupted_tokenisation_leaves_nothing(tmp_path: Path):
    broken = PairTokenizer(SimpleNamespace(backend_tokenizer=CHARACTERS.backend), CLS, SEP, PAD)
    rows = table([(["ab"], ["c"], ["d"])]).drop_columns(RESPONSES[1])
    with pytest.raises(KeyError):
        tokenize_cached(rows, "content", broken, EncodeSpec(), tmp_path)
    assert not list(tmp_path.iterdir())
