"""Check which credential is found, in which order, and that no secret is ever shown."""

import json
from pathlib import Path

import pytest
from captured import SECRETS
from fake_kaggle import KEY, TOKEN
from hypothesis import given
from hypothesis import strategies as st

from kit.kaggle import credentials
from kit.kaggle.credentials import Credential, CredentialSearch
from kit.kaggle.errors import CredentialsError


def write_secret(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def find(home: Path, **variables: str) -> CredentialSearch:
    return credentials.find_credentials({"HOME": str(home), **variables})


def places(search: CredentialSearch) -> list[tuple[str, str]]:
    return [(credential.kind, Path(credential.source).name) for credential in search.found]


def test_every_place_is_searched_and_tokens_come_first(home: Path) -> None:
    write_secret(home / ".kaggle/access_token", TOKEN + "\n")
    write_secret(home / ".kaggle/kaggle.json", json.dumps({"username": "kituser", "key": KEY}))
    write_secret(
        home / ".kaggle/credentials.json",
        json.dumps({"refresh_token": "refresh", "username": "kituser"}),
    )
    search = find(home, KAGGLE_API_TOKEN=TOKEN)

    assert places(search) == [
        ("token", "KAGGLE_API_TOKEN"),
        ("token", "access_token"),
        ("key", "kaggle.json"),
        ("oauth", "credentials.json"),
    ]
    # The line end of the file does not belong to the secret.
    assert search.found[1].secret == TOKEN
    assert search.problems == ()


def test_the_token_variable_may_name_a_file(home: Path) -> None:
    path = write_secret(home / "token.txt", TOKEN)
    assert find(home, KAGGLE_API_TOKEN=str(path)).found[0].secret == TOKEN


def test_a_token_too_long_for_a_file_name_is_a_token(home: Path) -> None:
    assert find(home, KAGGLE_API_TOKEN="x" * 5000).found[0].secret == "x" * 5000


def test_environment_and_kaggle_json_may_each_hold_half_of_the_key(home: Path) -> None:
    write_secret(home / "conf/kaggle.json", json.dumps({"username": "filed", "key": KEY}))
    search = find(home, KAGGLE_CONFIG_DIR=str(home / "conf"), KAGGLE_USERNAME="named")
    assert (search.found[0].username, search.found[0].secret) == ("named", KEY)


def test_the_xdg_folder_is_searched_if_there_is_no_dot_kaggle(home: Path) -> None:
    write_secret(
        home / ".config/kaggle/kaggle.json", json.dumps({"username": "kituser", "key": KEY})
    )
    assert places(find(home)) == [("key", "kaggle.json")]


def test_without_credentials_the_error_says_how_to_get_one(home: Path) -> None:
    with pytest.raises(CredentialsError, match="no Kaggle credentials found") as caught:
        credentials.require_credentials(find(home))
    assert "https://www.kaggle.com/settings/api" in str(caught.value)
    assert "KAGGLE_API_TOKEN" in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "kaggle_json", "expected"),
    [
        ({"KAGGLE_API_TOKEN": "two words"}, None, "KAGGLE_API_TOKEN contains blanks"),
        ({"KAGGLE_KEY": KEY}, None, "the legacy key from KAGGLE_KEY has no username"),
        ({"KAGGLE_USERNAME": "kituser"}, None, "KAGGLE_USERNAME has no legacy key"),
        ({}, "{", "is not JSON"),
        ({}, "[1]", "no Kaggle credentials"),
    ],
)
def test_an_unusable_credential_is_named_in_the_error(
    home: Path, variables: dict[str, str], kaggle_json: str | None, expected: str
) -> None:
    if kaggle_json is not None:
        write_secret(home / ".kaggle/kaggle.json", kaggle_json)
    with pytest.raises(CredentialsError, match=expected):
        credentials.require_credentials(find(home, **variables))


def test_a_key_that_others_can_read_is_reported_and_used(home: Path) -> None:
    saved = json.dumps({"username": "kituser", "key": KEY})
    write_secret(home / ".kaggle/kaggle.json", saved, mode=0o644)
    search = find(home)
    assert "chmod 600" in search.problems[0]
    assert places(search) == [("key", "kaggle.json")]


def test_a_credential_never_shows_its_secret() -> None:
    credential = Credential("key", "KAGGLE_KEY", "kituser", KEY)
    assert KEY not in repr(credential) + str(credential) + f"{credential}"
    assert str(credential) == "legacy key from KAGGLE_KEY (user kituser)"


def test_a_refused_token_names_the_key_that_it_shadows(home: Path) -> None:
    search = find(home, KAGGLE_API_TOKEN="stale", KAGGLE_USERNAME="kituser", KAGGLE_KEY=KEY)
    error = credentials.credentials_refused(search.found[0], search)
    assert "takes precedence over the legacy key from KAGGLE_KEY" in str(error)
    assert "unset KAGGLE_API_TOKEN" in str(error)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("403 for url: https://x.test/a/b.csv?X-Goog-Signature=abc&y=1 end", "X-Goog"),
        ("url: /_blob/ab/archive.zip?X-Goog-Signature=signed5ecret (Caused by", "signed5ecret"),
        ("ProxyError http://me:hunter22@proxy.test:3128", "hunter22"),
        ("Invalid header value b'Bearer KGAT_abcdef'", "KGAT"),
        ("Authorization: Basic a2l0dXNlcjpwbGFudGVk", "a2l0"),
    ],
)
def test_redact_removes_secrets_that_it_does_not_know(text: str, secret: str) -> None:
    assert secret not in credentials.redact(text)


@given(st.text(), st.sampled_from(SECRETS), st.text())
def test_redact_removes_a_known_secret_anywhere(before: str, secret: str, after: str) -> None:
    assert secret not in credentials.redact(before + secret + after, [secret])
