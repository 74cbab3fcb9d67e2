"""Which Kaggle credential would be used, found the way Kaggle's client finds it and named without being shown.

The client tries, in this order: an access token, a legacy key, an OAuth login; the first one found is sent, good or
stale. That is why a forgotten KAGGLE_API_TOKEN makes every call fail beside a good kaggle.json.
"""

import json
import os
import re
import sys
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kit.kaggle.errors import SETTINGS, CredentialsError

HOW_TO = (
    f"Make a token at {SETTINGS} (Generate New Token), then `export KAGGLE_API_TOKEN=…`, or save it as "
    "~/.kaggle/access_token; a legacy kaggle.json goes to ~/.kaggle/kaggle.json; `kaggle auth login` works too. "
    "`kit doctor --online` tries it."
)


@dataclass(frozen=True)
class Credential:
    """One credential: its `kind` (token, key or oauth), where it was found, and whose it is ('' if only Kaggle knows).

    `secret` and `path` (the OAuth file) are for the client alone; `repr` and `str` leave the secret out.
    """

    kind: str
    source: str
    username: str = ""
    secret: str = field(default="", repr=False)
    path: Path | None = field(default=None, repr=False)

    def __str__(self) -> str:
        what = {"token": "access token", "key": "legacy key", "oauth": "OAuth login"}[self.kind]
        return f"{what} from {self.source}" + (f" (user {self.username})" if self.username else "")


@dataclass(frozen=True)
class Search:
    """What `find` saw: credentials in the order the client prefers them, and what is wrong with the places."""

    found: tuple[Credential, ...]
    problems: tuple[str, ...] = ()


def find_credentials(environ: Mapping[str, str] | None = None) -> Search:
    """Looks everywhere Kaggle's client looks, without the network; never raises."""
    environ = os.environ if environ is None else environ
    home = Path(environ.get("HOME") or Path.home())
    problems: list[str] = []
    found = [
        *_tokens(environ, home, problems),
        *_keys(environ, home, problems),
        *_oauth(home, problems),
    ]
    return Search(tuple(found), tuple(problems))


def require_credentials(search: Search | None = None) -> Credential:
    """The credential that the client would send.

    Raises:
        CredentialsError: there is none; the message says how to get one and what was wrong with what was found.
    """
    search = search or find_credentials()
    if search.found:
        return search.found[0]
    problem = "; ".join(("no Kaggle credentials found", *search.problems))
    raise CredentialsError(problem, HOW_TO)


def username(search: Search | None = None) -> str:
    """The user name, where a credential says it without asking Kaggle; '' elsewhere."""
    return next((c.username for c in (search or find_credentials()).found if c.username), "")


def credentials_refused(credential: Credential, search: Search | None = None) -> CredentialsError:
    """The error for a credential that Kaggle answers with 401, naming what it shadows."""
    others = [c for c in (search or find_credentials()).found if c.source != credential.source]
    if others and credential.kind == "token":
        away = (
            f"unset {credential.source}"
            if "/" not in credential.source
            else f"delete {credential.source}"
        )
        return CredentialsError(
            f"Kaggle does not accept the {credential}; it is sent before the {others[0]}, which may still be good",
            f"`{away}` to use the other one, or make a new token at {SETTINGS}.",
        )
    again = "Log in again with `kaggle auth login`. " if credential.kind == "oauth" else ""
    return CredentialsError(f"Kaggle does not accept the {credential}", again + HOW_TO)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without secrets: the given ones, authorisation headers, signed queries and passwords in addresses."""
    for secret in sorted((s for s in secrets if len(s) >= 4), key=len, reverse=True):
        text = text.replace(secret, "[secret]")
    text = re.sub(r"(?i)\b(bearer|basic)\s+[\w+/=.~-]{6,}", r"\1 [secret]", text)
    text = re.sub(r"//[^/\s@'\"]+@", "//[secret]@", text)
    return re.sub(r"(/[^\s?'\"]*)\?[^\s'\")]+", r"\1?[signed]", text)


def secrets_of(search: Search) -> tuple[str, ...]:
    """Every form in which the found credentials travel."""
    pairs = (
        b64encode(f"{c.username}:{c.secret}".encode()).decode()
        for c in search.found
        if c.kind == "key"
    )
    return (*(c.secret for c in search.found), *pairs)


def _usable(secret: str, source: str, problems: list[str]) -> str:
    """The secret without blanks around it; '' if it could not travel in a header (the error would print it)."""
    secret = secret.strip()
    if secret and not re.fullmatch(r"[!-~]+", secret):
        problems.append(f"{source} holds blanks or other characters that no Kaggle credential has")
        return ""
    return secret


def _text(path: Path, problems: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8") if _is_file(path) else ""
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path} cannot be read ({type(error).__name__})")
        return ""


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a long token taken for a file name
        return False


def _json(path: Path, problems: list[str]) -> dict[str, str]:
    text = _text(path, problems)
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except ValueError:
        problems.append(f"{path} is not JSON; download it again from {SETTINGS}")
        return {}
    return {k: v for k, v in value.items() if isinstance(v, str)} if isinstance(value, dict) else {}


def _tokens(environ: Mapping[str, str], home: Path, problems: list[str]) -> Iterable[Credential]:
    places: list[tuple[str, str]] = []
    if environ.get("KAGGLE_KERNEL_RUN_TYPE") and environ.get(
        "KAGGLE_API_V1_TOKEN"
    ):  # inside a Kaggle notebook
        places.append(
            ("KAGGLE_API_V1_TOKEN", _text(Path(environ["KAGGLE_API_V1_TOKEN"]), problems))
        )
    value = environ.get("KAGGLE_API_TOKEN", "")
    if value:  # the token itself, or the name of a file that holds it
        places.append(
            ("KAGGLE_API_TOKEN", _text(Path(value), problems) if _is_file(Path(value)) else value)
        )
    for name in ("access_token", "access_token.txt"):
        path = home / ".kaggle" / name
        places.append((str(path), _text(path, problems)))
    for source, text in places:
        secret = _usable(text, source, problems)
        if secret:
            yield Credential("token", source, secret=secret)


def _keys(environ: Mapping[str, str], home: Path, problems: list[str]) -> Iterable[Credential]:
    folder = (
        Path(environ["KAGGLE_CONFIG_DIR"]) if environ.get("KAGGLE_CONFIG_DIR") else home / ".kaggle"
    )
    if (
        not environ.get("KAGGLE_CONFIG_DIR")
        and sys.platform.startswith("linux")
        and not folder.exists()
    ):
        folder = Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "kaggle"
    path = folder / "kaggle.json"
    saved = _json(path, problems)
    if saved and path.stat().st_mode & 0o044:
        problems.append(f"{path} can be read by other users of this machine; `chmod 600 {path}`")
    username = environ.get("KAGGLE_USERNAME") or saved.get("username", "")
    key = environ.get("KAGGLE_KEY") or saved.get("key", "")
    source = "KAGGLE_KEY" if environ.get("KAGGLE_KEY") else str(path)
    secret = _usable(key, source, problems)
    username = _usable(
        username, "KAGGLE_USERNAME" if environ.get("KAGGLE_USERNAME") else str(path), problems
    )
    if secret and username:
        yield Credential("key", source, username, secret)
    elif secret or username:
        missing = "username" if secret else "key"
        problems.append(f"a legacy credential without its {missing} ({source})")


def _oauth(home: Path, problems: list[str]) -> Iterable[Credential]:
    path = home / ".kaggle" / "credentials.json"
    saved = _json(path, problems)
    secret = _usable(saved.get("refresh_token", ""), str(path), problems)
    if secret:
        yield Credential("oauth", str(path), saved.get("username", ""), secret, path)
