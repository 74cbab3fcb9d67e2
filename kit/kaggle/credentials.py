"""Find the Kaggle credential that would be sent, and keep every secret out of messages.

Use `find_credentials`, `require_credentials`, `redact` and `OAuthLogin`. Kaggle's client tries an
access token, then a legacy key, then an OAuth login, and sends the first one that is there, valid
or not. A forgotten KAGGLE_API_TOKEN therefore makes every call fail beside a valid kaggle.json.
"""

import json
import os
import re
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.kaggle.errors import SETTINGS_URL, CredentialsError
from kit.storage.atomic import read_text_file

if TYPE_CHECKING:
    import requests

HOW_TO = (
    f"Make a token at {SETTINGS_URL} (Generate New Token), then `export KAGGLE_API_TOKEN=…`, or "
    "save it as ~/.kaggle/access_token. A legacy kaggle.json in ~/.kaggle/kaggle.json and "
    "`kaggle auth login` work too. `kit doctor --online` tries it."
)

# An OAuth access token with less time left than this is renewed. The SDK renews it only after its
# end, when a call has failed already.
_RENEW_BEFORE_S = 300.0


@dataclass(frozen=True)
class Credential:
    """One credential. `repr` and `str` leave the secret out.

    Args:
        kind: "token", "key" or "oauth".
        source: the environment variable or file it was found in.
        username: the account, "" if only Kaggle knows it.
        secret: for the client alone.
        path: the file of an OAuth login, for the client alone.
    """

    kind: str
    source: str
    username: str = ""
    secret: str = field(default="", repr=False)
    path: Path | None = field(default=None, repr=False)

    def __str__(self) -> str:
        name = {"token": "access token", "key": "legacy key", "oauth": "OAuth login"}[self.kind]
        account = f" (user {self.username})" if self.username else ""
        return f"{name} from {self.source}{account}"


@dataclass(frozen=True)
class CredentialSearch:
    """The credentials in the order of the client's preference, and what is wrong elsewhere."""

    found: tuple[Credential, ...]
    problems: tuple[str, ...] = ()


def find_credentials(environ: Mapping[str, str] | None = None) -> CredentialSearch:
    """Look wherever Kaggle's client looks, without using the network. Never raises."""
    finder = _Finder(os.environ if environ is None else environ)
    found = [*finder.tokens(), *finder.keys(), *finder.oauth()]
    return CredentialSearch(tuple(found), tuple(finder.problems))


def require_credentials(search: CredentialSearch | None = None) -> Credential:
    """Return the credential that the client would send.

    Raises:
        CredentialsError: there is none. The message says how to get one and which places were
            found but could not be used.
    """
    search = search or find_credentials()
    if search.found:
        return search.found[0]
    problem = "; ".join(("no Kaggle credentials found", *search.problems))
    raise CredentialsError(problem, HOW_TO)


def username(search: CredentialSearch | None = None) -> str:
    """Return the user name if a credential holds it, "" if only Kaggle knows it."""
    found = (search or find_credentials()).found
    return next((credential.username for credential in found if credential.username), "")


def credentials_refused(
    credential: Credential, search: CredentialSearch | None = None
) -> CredentialsError:
    """Return the error for a credential that Kaggle answers with 401, naming what it shadows."""
    found = (search or find_credentials()).found
    others = [other for other in found if other.source != credential.source]

    if others and credential.kind == "token":
        is_file = "/" in credential.source
        remedy = f"delete {credential.source}" if is_file else f"unset {credential.source}"
        return CredentialsError(
            f"Kaggle does not accept the {credential}; it takes precedence over the {others[0]}, "
            "which may still be valid",
            f"`{remedy}` to use the other one, or make a new token at {SETTINGS_URL}.",
        )

    login = "Log in again with `kaggle auth login`. " if credential.kind == "oauth" else ""
    return CredentialsError(f"Kaggle does not accept the {credential}", login + HOW_TO)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return `text` without `secrets`, authorisation headers, signed queries and URL passwords."""
    # The longest first: a secret may be part of another one.
    known = [secret for secret in secrets if len(secret) >= 4]
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, "[secret]")

    text = re.sub(r"(?i)\b(bearer|basic)\s+[\w+/=.~-]{6,}", r"\1 [secret]", text)
    text = re.sub(r"//[^/\s@'\"]+@", "//[secret]@", text)
    return re.sub(r"(/[^\s?'\"]*)\?[^\s'\")]+", r"\1?[signed]", text)


def secrets_of(search: CredentialSearch) -> tuple[str, ...]:
    """Return every form in which the found credentials travel, for `redact`."""
    # A legacy key is sent as Basic authentication, so its base64 form is a secret as well.
    basic = (
        b64encode(f"{credential.username}:{credential.secret}".encode()).decode()
        for credential in search.found
        if credential.kind == "key"
    )
    return (*(credential.secret for credential in search.found), *basic)


class OAuthLogin:
    """Sign the requests of a session with an access token, renewed shortly before it expires.

    Set as `session.auth`. An access token of `kaggle auth login` lasts 12 hours, less than a wait
    for several kernels can take.
    """

    def __init__(self, saved: Any, on_token: Callable[[str], None]):
        """Send nothing yet.

        Args:
            saved: the `kagglesdk.KaggleCredentials`, on the client whose session this signs.
            on_token: called with each new token, which must not be shown.
        """
        self._saved = saved
        self._on_token = on_token
        self._last_token = ""
        self._renewing = False

    def __call__(self, request: "requests.PreparedRequest") -> "requests.PreparedRequest":
        """Return the request, signed."""
        # A renewal goes over the same session, and carries the refresh token in its body instead.
        if not self._renewing:
            request.headers["Authorization"] = f"Bearer {self.token()}"
        return request

    def token(self) -> str:
        """Return the access token, renewed if necessary.

        Raises:
            requests.RequestException: Kaggle does not renew it.
        """
        self._renewing = True
        try:
            expires = self._saved._access_token_expiration
            if expires is None or expires.timestamp() < time.time() + _RENEW_BEFORE_S:
                self._saved.refresh_access_token()
            token = self._saved.get_access_token()
        finally:
            self._renewing = False

        if token != self._last_token:
            self._on_token(token)
            self._last_token = token
        return token


class _Finder:
    """Read the places where a credential may be, and collect what is wrong with them."""

    def __init__(self, environ: Mapping[str, str]):
        self.environ = environ
        # Unlike Path.home, this does not fail where the system has no entry for the user, as in a
        # container. Kaggle's client then looks in the same places, below a folder called "~".
        self.home = Path(environ.get("HOME") or os.path.expanduser("~"))  # noqa: PTH111
        self.problems: list[str] = []

    def tokens(self) -> Iterator[Credential]:
        """Yield the access tokens, in the client's order."""
        texts: dict[str, str] = {}

        # A Kaggle notebook gets its token in a file.
        notebook_file = self.environ.get("KAGGLE_API_V1_TOKEN")
        if self.environ.get("KAGGLE_KERNEL_RUN_TYPE") and notebook_file:
            texts["KAGGLE_API_V1_TOKEN"] = self._read_text(Path(notebook_file))

        # The variable holds the token itself or the name of a file with it.
        value = self.environ.get("KAGGLE_API_TOKEN", "")
        if value:
            path = Path(value)
            texts["KAGGLE_API_TOKEN"] = self._read_text(path) if _is_file(path) else value

        for name in ("access_token", "access_token.txt"):
            path = self.home / ".kaggle" / name
            texts[str(path)] = self._read_text(path)

        for source, text in texts.items():
            secret = self._usable(text, source)
            if secret:
                yield Credential("token", source, secret=secret)

    def keys(self) -> Iterator[Credential]:
        """Yield the legacy key. Environment and kaggle.json may each hold half of it."""
        path = self._config_folder() / "kaggle.json"
        saved = self._read_json(path)
        if saved and path.stat().st_mode & 0o044:
            self.problems.append(
                f"{path} can be read by other users of this machine; `chmod 600 {path}`"
            )

        source = "KAGGLE_KEY" if self.environ.get("KAGGLE_KEY") else str(path)
        name_source = "KAGGLE_USERNAME" if self.environ.get("KAGGLE_USERNAME") else str(path)
        secret = self._usable(self.environ.get("KAGGLE_KEY") or saved.get("key", ""), source)
        name = self._usable(
            self.environ.get("KAGGLE_USERNAME") or saved.get("username", ""), name_source
        )

        if secret and name:
            yield Credential("key", source, name, secret)
        elif secret:
            self.problems.append(f"the legacy key from {source} has no username")
        elif name:
            self.problems.append(f"the username from {name_source} has no legacy key")

    def oauth(self) -> Iterator[Credential]:
        """Yield the OAuth login."""
        path = self.home / ".kaggle" / "credentials.json"
        saved = self._read_json(path)
        secret = self._usable(saved.get("refresh_token", ""), str(path))
        if secret:
            yield Credential("oauth", str(path), saved.get("username", ""), secret, path)

    def _config_folder(self) -> Path:
        """Return the folder of kaggle.json, by the client's rules."""
        named = self.environ.get("KAGGLE_CONFIG_DIR")
        if named:
            return Path(named)

        folder = self.home / ".kaggle"
        if sys.platform.startswith("linux") and not folder.exists():
            return Path(self.environ.get("XDG_CONFIG_HOME") or self.home / ".config") / "kaggle"
        return folder

    def _read_text(self, path: Path) -> str:
        try:
            return read_text_file(path) if _is_file(path) else ""
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(f"{path} cannot be read ({type(error).__name__})")
            return ""

    def _read_json(self, path: Path) -> dict[str, str]:
        """Return the texts of a JSON object, {} if the file is missing or something else."""
        text = self._read_text(path)
        if not text.strip():
            return {}
        try:
            value = json.loads(text)
        except ValueError:
            self.problems.append(f"{path} is not JSON; download it again from {SETTINGS_URL}")
            return {}

        if not isinstance(value, dict):
            return {}
        return {key: text for key, text in value.items() if isinstance(text, str)}

    def _usable(self, secret: str, source: str) -> str:
        """Return the secret without blanks around it, "" if no header could carry it."""
        secret = secret.strip()
        # Such a secret must not reach requests, whose error message would print it.
        if secret and not re.fullmatch(r"[!-~]+", secret):
            self.problems.append(
                f"{source} contains blanks or other characters that no Kaggle credential has"
            )
            return ""
        return secret


def _is_file(path: Path) -> bool:
    # A long token is too long for a file name, and asking for it fails.
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
