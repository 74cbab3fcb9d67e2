"""Call Kaggle's API with timeouts, bounded retries and errors without secrets. Use `Client`.

The transport is `kagglesdk`, on which the `kaggle` command is built. Importing `kaggle` itself logs
in over the network without a timeout, prints help texts, creates folders and may exit; its methods
hide refusals, ignore the version asked for and hang when a server stalls.
"""

import contextlib
import json
import logging
import typing
from collections.abc import Callable, Generator, Mapping
from typing import IO, TYPE_CHECKING, Any

from kit.kaggle import credentials
from kit.kaggle.credentials import Credential
from kit.kaggle.errors import (
    KaggleError,
    NotFoundError,
    RefusedError,
    UnreachableError,
    explain_http_error,
)
from kit.kaggle.retry import RetryPolicy, call_once, retry_call

if TYPE_CHECKING:
    import requests

# Seconds to connect, and between two pieces of an answer.
TIMEOUT_S = (10.0, 90.0)

# The attribute of each `kagglesdk` service that holds its methods.
_API_CLIENTS = {
    "competitions": "competition_api_client",
    "kernels": "kernels_api_client",
    "datasets": "dataset_api_client",
    "blobs": "blob_api_client",
    "security": "oauth_client",
}


class Client:
    """A connection to Kaggle with one credential. Use it as a context manager."""

    def __init__(
        self,
        credential: Credential | None = None,
        patience: RetryPolicy | None = None,
        timeout_s: tuple[float, float] = TIMEOUT_S,
    ):
        """Prepare the sessions. Only an OAuth login uses the network here.

        Args:
            credential: the one to send instead of the one that is found.
            patience: how failed calls are repeated; also the clock of everything that polls.
            timeout_s: seconds to connect, and between two pieces of an answer.

        Raises:
            CredentialsError: no credential was given or found, or the OAuth login has ended.
            KaggleError: `kagglesdk` is not installed or does not start.
        """
        self._search = credentials.find_credentials()
        self.credential = credential or credentials.require_credentials(self._search)
        self.patience = patience or RetryPolicy()
        self._timeout_s = timeout_s
        self._username = self.credential.username
        self._secrets = [*credentials.secrets_of(self._search), self.credential.secret]
        self._sdk = self._connect()
        self._storage = _storage_session(timeout_s)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._sdk.http_client()._session.close()
        self._storage.close()

    def owner(self) -> str:
        """Return the account's user name. Kaggle is asked once if the credential does not say."""
        if self._username:
            return self._username

        # Kaggle has several answers for an unknown token: 400, 401, 403, 404, `active: false`.
        try:
            body = {"token": self.credential.secret}
            answer = self.call("security.introspect_token", body, "looking up the account")
        except (NotFoundError, RefusedError):
            answer = None
        if answer is None or not answer.active or not answer.username:
            raise credentials.credentials_refused(self.credential, self._search)

        self._username = answer.username
        return self._username

    def call(self, method: str, body: Mapping[str, Any], action: str) -> Any:
        """Make a call that is safe to repeat.

        Args:
            method: service and method of `kagglesdk`, as in "kernels.get_kernel".
            body: the request as JSON. Fields that this `kagglesdk` does not know are left out.
            action: what this does, for errors: "reading the status of …".

        Returns:
            The answer, an object of `kagglesdk`; for downloads the open response, not yet read.

        Raises:
            KaggleError: see `kit.kaggle.errors`.
        """
        with self.explain_errors(action, _competition_page(body)):
            return retry_call(lambda: self._send(method, body), self.patience)

    def change(
        self,
        method: str,
        body: Mapping[str, Any],
        action: str,
        find_effect: Callable[[], Any],
    ) -> Any:
        """Make a call that must take effect only once; see `kit.kaggle.retry.call_once`.

        Raises:
            UncertainError: it may have taken effect.
            KaggleError: see `kit.kaggle.errors`.
        """
        with self.explain_errors(action, _competition_page(body)):
            return call_once(lambda: self._send(method, body), find_effect, self.patience, action)

    def get(self, url: str, headers: Mapping[str, str] | None = None) -> "requests.Response":
        """Open a signed address, once and without our credential. The body is not read yet.

        Raises:
            requests.RequestException: for `transfer` to judge.
        """
        response = self._storage.get(url, headers=dict(headers or {}), stream=True)
        response.raise_for_status()
        return response

    def put(
        self, url: str, data: bytes | IO[bytes], headers: Mapping[str, str]
    ) -> "requests.Response":
        """Send bytes to a signed address, once and without our credential."""
        return self._storage.put(url, data=data, headers=dict(headers))

    def open_stream(self, path: str, action: str) -> "requests.Response":
        """Open an address of the API that the SDK has no method for, to read it as it grows."""
        http = self._sdk.http_client()
        url = http._get_request_url(*path.split("/", 1))
        headers = {"Accept": "text/event-stream, */*", "Content-Type": None}

        def open_once() -> "requests.Response":
            response = http._session.get(url, stream=True, headers=headers)
            response.raise_for_status()
            return response

        with self.explain_errors(action):
            return retry_call(open_once, self.patience)

    @contextlib.contextmanager
    def explain_errors(self, action: str, page: str = "") -> Generator[None]:
        """Turn what the block raises into a `KaggleError` without secrets.

        Args:
            action: what the block does, for errors.
            page: the competition's address, if the block is about one.
        """
        import requests

        try:
            yield
        except (requests.exceptions.RequestException, ConnectionError, TimeoutError) as error:
            text = credentials.redact(" ".join(str(error).split()), self._secrets)[:300]
            not_accepted = credentials.credentials_refused(self.credential, self._search)
            # Without the cause, whose text may hold a secret and would be in a traceback.
            raise explain_http_error(error, action, text, not_accepted, page) from None
        except OSError as error:
            # requests checks the paths of certificates itself, and raises no error of its own.
            if error.errno is not None or "TLS" not in str(error):
                raise
            raise UnreachableError(
                f"{action}: {' '.join(str(error).split())}",
                "Correct or unset REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE.",
            ) from None

    def _send(self, method: str, body: Mapping[str, Any]) -> Any:
        service, name = method.split(".")
        send = getattr(getattr(getattr(self._sdk, service), _API_CLIENTS[service]), name)
        request = typing.get_type_hints(send)["request"].from_dict(dict(body))

        try:
            return send(request)
        except json.JSONDecodeError:
            raise UnreachableError(
                f"{name}: the answer is a web page, not data from Kaggle",
                "Check HTTPS_PROXY and the network: a proxy or a login page may be in between.",
            ) from None
        # The SDK raises these for a state or a shape that it does not know.
        except (KeyError, TypeError, AttributeError) as error:
            raise UnreachableError(
                f"{name}: this version of Kaggle's client cannot read the answer "
                f"({type(error).__name__}: {error})",
                "Update it: `pip install -U kaggle`.",
            ) from None

    def _connect(self) -> Any:
        """Return the SDK's client with our credential and timeouts on its session."""
        try:
            import kagglesdk
        except ImportError as error:
            raise KaggleError(
                f"Kaggle's client cannot be imported: {error}",
                "Install it: `pip install 'kaggle>=2.2.4,<3'`.",
            ) from error

        # The SDK raises a bare Exception for an unknown KAGGLE_API_ENVIRONMENT.
        try:
            sdk: Any = kagglesdk.KaggleClient(user_agent="kit")
        except Exception as error:
            raise KaggleError(
                f"Kaggle's client does not start: {error}", "Unset KAGGLE_API_ENVIRONMENT."
            ) from error

        http = sdk.http_client()
        http._init_session()
        _set_timeouts(http._session, self._timeout_s)

        # Set here because the SDK by itself would send any token that it finds before our key.
        if self.credential.kind == "key":
            http._session.auth = (self.credential.username, self.credential.secret)
        elif self.credential.kind == "token":
            http._session.auth = http.BearerAuth(self.credential.secret)
        else:
            saved = self._load_oauth(kagglesdk, sdk)
            login = credentials.OAuthLogin(saved, self._secrets.append)
            http._session.auth = login
            with self.explain_errors("renewing the OAuth login"):
                retry_call(login.token, self.patience)
        return sdk

    def _load_oauth(self, kagglesdk: Any, sdk: Any) -> Any:
        try:
            saved = kagglesdk.KaggleCredentials.load(sdk, str(self.credential.path))
        except (ValueError, AttributeError):
            saved = None
        if saved is None:
            raise credentials.credentials_refused(self.credential, self._search)
        return saved


def _competition_page(body: Mapping[str, Any]) -> str:
    name = body.get("competitionName")
    return f"https://www.kaggle.com/competitions/{name}" if name else ""


def _set_timeouts(session: "requests.Session", timeout_s: tuple[float, float]) -> None:
    """Give every request of a session the timeout that Kaggle's client never sets."""
    from requests.adapters import HTTPAdapter

    class TimeoutAdapter(HTTPAdapter):
        def send(self, request: Any, *args: Any, **kwargs: Any) -> "requests.Response":
            kwargs["timeout"] = kwargs.get("timeout") or timeout_s
            return super().send(request, *args, **kwargs)

    for scheme in ("https://", "http://"):
        session.mount(scheme, TimeoutAdapter())


class _RedactingFilter(logging.Filter):
    """Remove signed queries from the lines that urllib3 logs at DEBUG level."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = credentials.redact(record.getMessage())
        record.args = ()
        return True


_REDACTING_FILTER = _RedactingFilter()


def _storage_session(timeout_s: tuple[float, float]) -> "requests.Session":
    """Return a session for signed addresses, without a credential."""
    import requests

    # Adding the same filter a second time changes nothing.
    logging.getLogger("urllib3.connectionpool").addFilter(_REDACTING_FILTER)

    session = requests.Session()
    # Without compression the announced length is the length on disk.
    session.headers["Accept-Encoding"] = "identity"
    _set_timeouts(session, timeout_s)
    return session
