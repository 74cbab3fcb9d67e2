"""An OAuth login (`kaggle auth login`) that outlives its access tokens: they end after 12 hours, a fan-out later."""

import time
from collections.abc import Callable
from typing import Any

import requests

SPARE_S = 300.0  # a token with less left than this is renewed; the SDK waits until after its end


class Login(requests.auth.AuthBase):
    """Signs every request of a session with an access token that is good for minutes yet."""

    def __init__(self, saved: Any, tell: Callable[[str], None]):
        """Asks nobody yet.

        Args:
            saved: the login as `kagglesdk` has loaded it, on the client whose session this signs.
            tell: called with each new token, which must not be shown.
        """
        self._saved, self._tell = saved, tell
        self._told, self._renewing = "", False

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """The request, signed."""
        if (
            not self._renewing
        ):  # a renewal goes over the same session, and carries the refresh token in its body
            request.headers["Authorization"] = f"Bearer {self.token()}"
        return request

    def token(self) -> str:
        """The access token, renewed if need be.

        Raises:
            requests.RequestException: Kaggle does not renew it.
        """
        self._renewing = True
        try:
            expires = self._saved._access_token_expiration
            if expires is None or expires.timestamp() < time.time() + SPARE_S:
                self._saved.refresh_access_token()
            token = self._saved.get_access_token()
        finally:
            self._renewing = False
        if token != self._told:
            self._tell(token)
            self._told = token
        return token
