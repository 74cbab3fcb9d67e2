"""Which credential is found, in which order, and that none is ever shown."""

import json
from pathlib import Path

import pytest
from captured import SECRETS
from fake_kaggle import KEY, TOKEN
from hypothesis import given
from hypothesis import strategies as st

from kit.kaggle import credentials
from kit.kaggle.credentials import Credential
from kit.kaggle.errors import CredentialsError


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def kinds(search: credentials.Search) -> list[tuple[str, str]]:
    return [(c.kind, Path(c.source).name) for c in search.found]


def test_each_place_is_found_and_the_token_comes_first(home: Path) -> None:
    write(home / ".kaggle/access_token", TOKEN + "\n")
    write(home / ".kaggle/kaggle.json", json.dumps({"username": "kituser", "key": KEY}))
    write(
        home / ".kaggle/credentials.json",
        json.dumps({"refresh_token": "refresh", "username": "kituser"}),
    )
    search = credentials.find_credentials({"HOME": str(home), "KAGGLE_API_TOKEN": TOKEN})
    assert kinds(search) == [
        ("token", "KAGGLE_API_TOKEN"),
        ("token", "access_token"),
        ("key", "kaggle.json"),
        ("oauth", "credentials.json"),
    ]
    assert search.found[1].secret == TOKEN  # without the line end of the file
    assert search.problems == ()


def test_the_token_variable_may_name_a_file(home: Path) -> None:
    path = write(home / "token.txt", TOKEN)
    assert (
        credentials.find_credentials({"HOME": str(home), "KAGGLE_API_TOKEN": str(path)})
        .found[0]
        .secret
        == TOKEN
    )


def test_a_long_token_is_not_taken_for_a_file_name(home: Path) -> None:
    assert (
        credentials.find_credentials({"HOME": str(home), "KAGGLE_API_TOKEN": "x" * 5000})
        .found[0]
        .secret
        == "x" * 5000
    )


def test_environment_and_file_complete_each_other_as_in_the_client(home: Path) -> None:
    write(home / "conf/kaggle.json", json.dumps({"username": "filed", "key": KEY}))
    found = credentials.find_credentials(
        {"HOME": str(home), "KAGGLE_CONFIG_DIR": str(home / "conf"), "KAGGLE_USERNAME": "named"}
    )
    assert (found.found[0].username, found.found[0].secret) == ("named", KEY)


def test_the_xdg_folder_counts_where_there_is_no_dot_kaggle(home: Path) -> None:
    write(home / ".config/kaggle/kaggle.json", json.dumps({"username": "kituser", "key": KEY}))
    assert kinds(credentials.find_credentials({"HOME": str(home)})) == [("key", "kaggle.json")]


def test_without_credentials_the_message_says_where_to_get_one(home: Path) -> None:
    with pytest.raises(CredentialsError, match="no Kaggle credentials found") as caught:
        credentials.require_credentials(credentials.find_credentials({"HOME": str(home)}))
    assert "https://www.kaggle.com/settings/api" in str(caught.value)
    assert "KAGGLE_API_TOKEN" in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "file", "told"),
    [
        ({"KAGGLE_API_TOKEN": "two words"}, None, "KAGGLE_API_TOKEN holds blanks"),
        ({"KAGGLE_KEY": KEY}, None, "without its username"),
        ({"KAGGLE_USERNAME": "kituser"}, None, "without its key"),
        ({}, "{", "is not JSON"),
        ({}, "[1]", "no Kaggle credentials"),
    ],
)
def test_what_is_wrong_with_a_credential_is_said(
    home: Path, variables: dict[str, str], file: str | None, told: str
) -> None:
    if file is not None:
        write(home / ".kaggle/kaggle.json", file)
    with pytest.raises(CredentialsError, match=told):
        credentials.require_credentials(
            credentials.find_credentials({"HOME": str(home), **variables})
        )


def test_a_key_that_others_can_read_is_reported_and_used(home: Path) -> None:
    write(home / ".kaggle/kaggle.json", json.dumps({"username": "kituser", "key": KEY}), mode=0o644)
    search = credentials.find_credentials({"HOME": str(home)})
    assert "chmod 600" in search.problems[0]
    assert kinds(search) == [("key", "kaggle.json")]


def test_a_credential_never_shows_its_secret() -> None:
    credential = Credential("key", "KAGGLE_KEY", "kituser", KEY)
    assert KEY not in repr(credential) + str(credential) + f"{credential}"
    assert str(credential) == "legacy key from KAGGLE_KEY (user kituser)"


def test_a_refused_token_is_explained_by_what_it_shadows(home: Path) -> None:
    variables = {
        "HOME": str(home),
        "KAGGLE_API_TOKEN": "stale",
        "KAGGLE_USERNAME": "kituser",
        "KAGGLE_KEY": KEY,
    }
    search = credentials.find_credentials(variables)
    error = credentials.credentials_refused(search.found[0], search)
    assert "legacy key from KAGGLE_KEY" in str(error)
    assert "unset KAGGLE_API_TOKEN" in str(error)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("403 for url: https://x.test/a/b.csv?X-Goog-Signature=abc&y=1 end", "X-Goog"),
        ("url: /_blob/ab/archive.zip?X-Goog-Signature=signed5ecret (Caused by", "signed5ecret"),
        ("ProxyError http://me:hunter22@proxy.test:3128", "hunter22"),
        ("Invalid header value b'Bearer KGAT_abcdef'", "KGAT"),
        ("Authorization: Basic a2l0dXNlcjpwbGFudGVk", "a2l0"),
    ],
)
def test_redact_removes_what_it_was_not_told_about(text: str, left: str) -> None:
    assert left not in credentials.redact(text)


@given(st.text(), st.sampled_from(SECRETS), st.text())
def test_redact_removes_a_known_secret_wherever_it_stands(
    before: str, secret: str, after: str
) -> None:
    assert secret not in credentials.redact(before + secret + after, [secret])
