"""The one door to Kaggle: its own transport (`kagglesdk`, what the `kaggle` command is made of) behind our rules.

Importing `kaggle` itself logs in over the network without a timeout, prints help texts, creates folders and exits;
its methods hide refusals, forget the version asked for and hang when a server stalls. `kagglesdk` is the same
requests and answers without those. Here each call has a timeout, is repeated where that is safe, and fails as a
`KaggleError` without secrets in it.
"""

import json
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from kit.kaggle import credentials, wire
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

T = TypeVar("T")
TIMEOUT_S = (10.0, 90.0)  # to connect; between two pieces of an answer

_SERVICES = {
    "competitions": ("competitions", "competition_api_client"),
    "kernels": ("kernels", "kernels_api_client"),
    "datasets": ("datasets", "dataset_api_client"),
    "blobs": ("blobs", "blob_api_client"),
    "security": ("security", "oauth_client"),
}


class Client:
    """A connection to Kaggle with one credential. Use as a context manager."""

    def __init__(
        self,
        credential: Credential | None = None,
        patience: RetryPolicy | None = None,
        timeout_s: tuple[float, float] = TIMEOUT_S,
    ):
        """Connects nothing yet.

        Raises:
            CredentialsError: no credential given or found.
            KaggleError: `kagglesdk` is not installed.
        """
        self._search = credentials.find_credentials()
        self.credential = credential or credentials.require_credentials(self._search)
        self.patience = patience or RetryPolicy()
        self._timeout_s = timeout_s
        self._username = self.credential.username
        self._secrets = [*credentials.secrets_of(self._search), self.credential.secret]
        self._sdk = self._connect()
        self._plain = wire.plain_session(timeout_s)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._sdk.http_client()._session.close()
        self._plain.close()

    def owner(self) -> str:
        """The account's user name; asks Kaggle once where the credential does not say."""
        if not self._username:
            try:
                body = {"token": self.credential.secret}
                answer = self.call("security.introspect_token", body, "asking who you are")
            except (
                NotFoundError,
                RefusedError,
            ):  # how a token that is no longer known may be answered
                answer = None
            if answer is None or not answer.active or not answer.username:
                raise credentials.credentials_refused(self.credential, self._search)
            self._username = answer.username
        return self._username

    def call(self, method: str, body: Mapping[str, Any], doing: str) -> Any:
        """Makes a call that is safe to repeat.

        Args:
            method: "kernels.get_kernel": the service and the method of its `kagglesdk` client.
            body: the request as JSON; fields that this version of `kagglesdk` does not know are left out.
            doing: what this is, for the error: "reading the status of …".

        Returns:
            The answer, an object of `kagglesdk`; for downloads the open response, not yet read.

        Raises:
            KaggleError: see `faults`.
        """
        return self.explained(
            lambda: retry_call(lambda: self._send(method, body), self.patience), doing, _page(body)
        )

    def change(
        self, method: str, body: Mapping[str, Any], doing: str, happened: Callable[[], Any]
    ) -> Any:
        """The same for a call that must take effect once only; see `retry.once`.

        Raises:
            UncertainError: it may have taken effect.
        """

        def send() -> Any:
            return call_once(lambda: self._send(method, body), happened, self.patience, doing)

        return self.explained(send, doing, _page(body))

    def get(self, url: str, headers: Mapping[str, str] | None = None) -> "requests.Response":
        """Opens a signed address, once and without our credential; the body is not yet read.

        Raises:
            requests.RequestException: as it comes, for `transfer` to judge.
        """
        response = self._plain.get(url, headers=dict(headers or {}), stream=True)
        response.raise_for_status()
        return response

    def put(self, url: str, data: Any, headers: Mapping[str, str]) -> "requests.Response":
        """Sends bytes to a signed address, once and without our credential."""
        return self._plain.put(url, data=data, headers=dict(headers))

    def open_stream(self, path: str, doing: str) -> "requests.Response":
        """Opens an address of the API that has no method in the SDK, for reading as it grows."""
        http = self._sdk.http_client()
        url = http._get_request_url(*path.split("/", 1))
        headers = {"Accept": "text/event-stream, */*", "Content-Type": None}

        def open_once() -> "requests.Response":
            response = http._session.get(url, stream=True, headers=headers)
            response.raise_for_status()
            return response

        return self.explained(lambda: retry_call(open_once, self.patience), doing)

    def explained(self, call: Callable[[], T], doing: str, page: str = "") -> T:
        """Runs `call`; what it raises becomes a `KaggleError` without secrets. `page` is the competition's address."""
        import requests

        try:
            return call()
        except (requests.exceptions.RequestException, ConnectionError, TimeoutError) as error:
            text = credentials.redact(" ".join(str(error).split()), self._secrets)[:300]
            refused = credentials.credentials_refused(self.credential, self._search)
            raise explain_http_error(error, doing, text, refused, page) from None

    def _send(self, method: str, body: Mapping[str, Any]) -> Any:
        service, name = method.split(".")
        client, attribute = _SERVICES[service]
        send = getattr(getattr(getattr(self._sdk, client), attribute), name)
        request = typing.get_type_hints(send)["request"].from_dict(dict(body))
        try:
            return send(request)
        except json.JSONDecodeError:
            raise UnreachableError(
                f"{name}: the answer is not Kaggle's (a web page, not data)",
                "A proxy or a login page may stand in between; check HTTPS_PROXY and the network.",
            ) from None
        except (
            KeyError,
            TypeError,
            AttributeError,
        ) as error:  # a state or a shape that this SDK does not know
            raise UnreachableError(
                f"{name}: Kaggle's answer has something new in it ({type(error).__name__}: {error})",
                "Update its client: `pip install -U kaggle`.",
            ) from None

    def _connect(self) -> Any:
        """The SDK's client with our credential and timeouts on its session; reads the network for OAuth only."""
        try:
            import kagglesdk
        except ImportError as error:
            raise KaggleError(
                f"Kaggle's client cannot be imported: {error}",
                "Install it: `pip install 'kaggle>=2.2.4,<3'`.",
            ) from error
        try:
            sdk = kagglesdk.KaggleClient(user_agent="kit")
        except Exception as error:  # a bare Exception, for an unknown KAGGLE_API_ENVIRONMENT
            raise KaggleError(
                f"Kaggle's client does not start: {error}", "Unset KAGGLE_API_ENVIRONMENT."
            ) from error
        http = sdk.http_client()
        http._init_session()
        wire.set_timeouts(http._session, self._timeout_s)
        if (
            self.credential.kind == "key"
        ):  # set here, since the SDK would let a token found elsewhere win
            http._session.auth = (self.credential.username, self.credential.secret)
        elif self.credential.kind == "token":
            http._session.auth = http.BearerAuth(self.credential.secret)
        else:
            self._login(kagglesdk, sdk, http)
        return sdk

    def _login(self, kagglesdk: Any, sdk: Any, http: Any) -> None:
        """Has the session signed by the OAuth login, once that has given a token."""
        from kit.kaggle.oauth import Login

        try:
            saved = kagglesdk.KaggleCredentials.load(sdk, str(self.credential.path))
        except (ValueError, AttributeError):
            saved = None
        if saved is None:
            raise credentials.credentials_refused(self.credential, self._search)
        http._session.auth = login = Login(saved, self._secrets.append)
        self.explained(lambda: retry_call(login.token, self.patience), "renewing the OAuth login")


def _page(body: Mapping[str, Any]) -> str:
    name = body.get("competitionName")
    return f"https://www.kaggle.com/competitions/{name}" if name else ""
