"""Check authentication, timeouts, retries, and that every refusal has its own message."""

import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests
from captured import Heard
from fake_kaggle import KEY, OWNER, TOKEN, FakeKaggle

from kit.kaggle import errors
from kit.kaggle.client import Client
from kit.kaggle.credentials import Credential
from kit.task import COMPETITION

# The arguments of a call that is safe to repeat.
LIMITS = (
    "competitions.get_submission_limits",
    {"competitionName": COMPETITION},
    "reading the limits",
)


def save_login(home: Path, **values: str) -> None:
    """Save an OAuth login as `kaggle auth login` does."""
    path = home / ".kaggle/credentials.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"username": OWNER, **values}))


def test_a_legacy_key_is_sent_and_connecting_makes_no_call(
    client: Client, fake: FakeKaggle
) -> None:
    assert fake.calls == []
    assert client.call(*LIMITS).num_allowed_now == 5
    assert [c.auth for c in fake.calls] == [f"basic:{OWNER}"]
    assert client.owner() == OWNER


def test_a_token_is_sent_and_its_owner_is_looked_up_once(fake: FakeKaggle, home: Path) -> None:
    with fake.patched(home, fake.credentials(home, TOKEN)), Client() as client:
        assert client.owner() == client.owner() == OWNER
        client.call(*LIMITS)
    assert [c.auth for c in fake.calls] == ["bearer", "bearer"]


def test_an_oauth_login_is_renewed_and_sent(fake: FakeKaggle, home: Path) -> None:
    save_login(home, refresh_token="refresh-" + TOKEN)
    with fake.patched(home, {"HOME": str(home)}), Client() as client:
        assert client.call(*LIMITS).num_allowed_now == 5
    assert fake.calls[-1].auth == "bearer"


@pytest.mark.parametrize(("minutes_left", "renewals"), [(-10, 1), (2, 1), (60, 0)])
def test_an_access_token_is_renewed_shortly_before_it_expires(
    fake: FakeKaggle, home: Path, minutes_left: int, renewals: int
) -> None:
    expires = datetime.now(UTC) + timedelta(minutes=minutes_left)
    save_login(
        home,
        refresh_token="refresh-" + TOKEN,
        access_token=TOKEN,
        access_token_expiration=expires.isoformat(),
    )
    with fake.patched(home, {"HOME": str(home)}), Client() as client:
        client.call(*LIMITS)
    assert len(fake.seen("GenerateAccessToken")) == renewals


def test_an_oauth_login_outlives_its_tokens_and_shows_none(
    fake: FakeKaggle, home: Path, heard: Heard
) -> None:
    # As if twelve hours were a minute: every token is about to expire when it is made.
    def renew(_: dict) -> dict:
        fake.token = f"KGAT_access_{len(fake.seen('GenerateAccessToken'))}"
        return {"token": fake.token, "expiresIn": 60}

    fake.generate_access_token = renew
    save_login(home, refresh_token="r" * 20)
    with fake.patched(home, {"HOME": str(home)}), Client(patience=heard.patience()) as client:
        for _ in range(3):
            fake.token = "expired"
            assert client.call(*LIMITS).num_allowed_now == 5
        assert {call.auth for call in fake.seen("GetSubmissionLimits")} == {"bearer"}
        assert {call.auth for call in fake.seen("GenerateAccessToken")} == {"none"}

        # The next call is signed with a new token, which the answer then repeats.
        next_token = f"KGAT_access_{len(fake.seen('GenerateAccessToken')) + 1}"
        fake.fail("GetSubmissionLimits", 400, f"echo {next_token}")
        with pytest.raises(errors.RefusedError, match=r"echo \[secret\]"):
            client.call(*LIMITS)

        fake.fail("GenerateAccessToken", 401, "revoked")
        with pytest.raises(errors.CredentialsError, match="kaggle auth login"):
            client.call(*LIMITS)


def test_an_expired_oauth_login_says_how_to_log_in(fake: FakeKaggle, home: Path) -> None:
    save_login(home, refresh_token="old")
    with (
        fake.patched(home, {"HOME": str(home)}),
        pytest.raises(errors.CredentialsError, match="kaggle auth login"),
    ):
        Client()


def test_a_given_credential_is_used_before_a_token_that_is_found(
    fake: FakeKaggle, home: Path
) -> None:
    key = Credential("key", "test", OWNER, KEY)
    with fake.patched(home, fake.credentials(home, "stale")), Client(key) as client:
        assert client.call(*LIMITS).num_allowed_now == 5


def test_without_credentials_there_is_no_client(fake: FakeKaggle, home: Path) -> None:
    with (
        fake.patched(home, {"HOME": str(home)}),
        pytest.raises(errors.CredentialsError, match="no Kaggle credentials"),
    ):
        Client()


def test_a_stale_token_that_shadows_a_good_key_is_explained(fake: FakeKaggle, home: Path) -> None:
    variables = fake.credentials(home) | {"KAGGLE_API_TOKEN": "KGAT_stale"}
    with fake.patched(home, variables), Client() as client:
        with pytest.raises(errors.CredentialsError, match="unset KAGGLE_API_TOKEN") as caught:
            client.call(*LIMITS)
        assert "KGAT_stale" not in str(caught.value)


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404])
def test_a_refused_token_is_an_error_whichever_way_kaggle_says_it(
    fake: FakeKaggle, home: Path, status: int
) -> None:
    fake.introspect_status = status
    refused = pytest.raises(errors.CredentialsError, match="does not accept the access token")
    with fake.patched(home, fake.credentials(home, "KGAT_stale")), Client() as client, refused:
        client.owner()


@pytest.mark.parametrize(
    ("status", "message", "error", "expected"),
    [
        (400, "Bad thing", errors.RefusedError, r"refused the request \(400\): Bad thing"),
        (401, "Unauthenticated", errors.CredentialsError, "does not accept the legacy key"),
        (
            403,
            "You must accept this competition's rules",
            errors.RulesError,
            f"competitions/{COMPETITION}/rules",
        ),
        (403, "Permission denied", errors.NotFoundError, "Permission denied"),
        (
            404,
            "NotFound",
            errors.NotFoundError,
            f"does https://www.kaggle.com/competitions/{COMPETITION} exist",
        ),
    ],
)
def test_a_refusal_is_not_repeated_and_has_its_own_message(
    client: Client,
    fake: FakeKaggle,
    heard: Heard,
    status: int,
    message: str,
    error: type[Exception],
    expected: str,
) -> None:
    fake.fail("GetSubmissionLimits", status, message)
    with pytest.raises(error, match=expected):
        client.call(*LIMITS)
    assert heard.pauses == []
    assert len(fake.calls) == 1


def test_a_refusal_sent_as_success_is_still_a_refusal(client: Client, fake: FakeKaggle) -> None:
    fake.get_submission_limits = lambda _: {"code": 403, "message": "You must accept the rules"}
    with pytest.raises(errors.RulesError):
        client.call(*LIMITS)


@pytest.mark.parametrize(
    "fault", [{"status": 429}, {"status": 500}, {"status": 503}, {"drop": True}, {"stall_s": 0.8}]
)
def test_a_passing_fault_is_retried_if_repeating_is_safe(
    client: Client, fake: FakeKaggle, heard: Heard, fault: dict
) -> None:
    fake.fail("GetSubmissionLimits", **fault)
    assert client.call(*LIMITS).num_allowed_now == 5
    assert len(heard.pauses) == 1
    assert 0 < heard.pauses[0] < 2
    assert "trying again in" in heard.text


def test_retry_after_is_honoured_up_to_a_limit(
    client: Client, fake: FakeKaggle, heard: Heard
) -> None:
    fake.fail("GetSubmissionLimits", 429, headers={"Retry-After": "42"})
    client.call(*LIMITS)
    assert heard.pauses == [42.0]
    fake.fail("GetSubmissionLimits", 429, headers={"Retry-After": "86400"})
    with pytest.raises(errors.BusyError, match="429"):
        client.call(*LIMITS)
    assert heard.pauses == [42.0]


@pytest.mark.parametrize(
    ("fault", "error", "expected"),
    [
        ({"status": 429}, errors.BusyError, "Wait a few minutes"),
        ({"status": 502, "message": "down"}, errors.UnreachableError, "502: down"),
        ({"drop": True}, errors.UnreachableError, "cannot be reached"),
    ],
)
def test_a_lasting_fault_is_an_error_after_six_attempts(
    client: Client,
    fake: FakeKaggle,
    heard: Heard,
    fault: dict,
    error: type[Exception],
    expected: str,
) -> None:
    fake.fail("GetSubmissionLimits", times=99, **fault)
    with pytest.raises(error, match=expected):
        client.call(*LIMITS)
    assert len(fake.calls) == 6
    assert heard.pauses == sorted(heard.pauses)


def test_a_stalled_server_does_not_hang_the_client(
    fake: FakeKaggle, home: Path, heard: Heard
) -> None:
    fake.fail("GetSubmissionLimits", stall_s=5)
    with (
        fake.patched(home),
        Client(patience=heard.patience(attempts=1), timeout_s=(1, 0.2)) as client,
    ):
        started = time.monotonic()
        with pytest.raises(errors.UnreachableError, match="no answer from Kaggle in time"):
            client.call(*LIMITS)
    assert time.monotonic() - started < 2


def test_a_web_page_instead_of_an_answer_is_an_error(client: Client, fake: FakeKaggle) -> None:
    fake.fail("GetSubmissionLimits", 200, raw=b"<html>log in to the hotel's network</html>")
    with pytest.raises(errors.UnreachableError, match="a web page, not data"):
        client.call(*LIMITS)


def test_an_unknown_state_says_how_to_update_the_client(client: Client, fake: FakeKaggle) -> None:
    fake.get_kernel_session_status = lambda _: {"status": "HIBERNATING"}
    with pytest.raises(errors.UnreachableError, match="pip install -U kaggle"):
        client.call(
            "kernels.get_kernel_session_status",
            {"userName": OWNER, "kernelSlug": "x"},
            "reading the status",
        )


def test_an_unreachable_server_says_to_check_the_network(home: Path, heard: Heard) -> None:
    with FakeKaggle() as fake, fake.patched(home):
        client = Client(patience=heard.patience(attempts=2))
    with pytest.raises(errors.UnreachableError, match="Check the network"):
        client.call(*LIMITS)


class TestChangesThatMustHappenOnce:
    """`Client.change` looks for the effect of a failed call before it repeats it."""

    def change(self, client: Client, fake: FakeKaggle) -> object:
        body = {
            "competitionName": COMPETITION,
            "blobFileTokens": "up1",
            "submissionDescription": "once",
        }
        fake.uploads["up1"] = {"name": "s.csv", "data": b"x"}

        def find_effect() -> object:
            return fake.submissions[0]["ref"] if fake.submissions else None

        return client.change("competitions.create_submission", body, "submitting", find_effect)

    @pytest.mark.parametrize("fault", [{"drop": True}, {"status": 500}, {"stall_s": 0.8}])
    def test_a_call_that_took_effect_is_not_repeated(
        self, client: Client, fake: FakeKaggle, fault: dict
    ) -> None:
        fake.fail("CreateSubmission", after=True, **fault)
        assert self.change(client, fake) == fake.submissions[0]["ref"]
        assert len(fake.submissions) == 1

    @pytest.mark.parametrize("fault", [{"drop": True}, {"status": 500}, {"status": 429}])
    def test_a_call_without_effect_is_repeated(
        self, client: Client, fake: FakeKaggle, fault: dict
    ) -> None:
        fake.fail("CreateSubmission", **fault)
        assert self.change(client, fake).ref == fake.submissions[0]["ref"]
        assert len(fake.submissions) == 1

    def test_an_effect_of_the_last_attempt_is_found(
        self, fake: FakeKaggle, home: Path, heard: Heard
    ) -> None:
        fake.fail("CreateSubmission", after=True, drop=True)
        with fake.patched(home), Client(patience=heard.patience(attempts=1)) as client:
            assert self.change(client, fake) == fake.submissions[0]["ref"]

    @pytest.mark.parametrize(
        "lost", [errors.UnreachableError("list: 503", "Run it again."), requests.ConnectionError()]
    )
    def test_an_effect_that_cannot_be_checked_is_an_uncertain_error(
        self, client: Client, fake: FakeKaggle, lost: Exception
    ) -> None:
        def find_effect() -> object:
            raise lost

        fake.fail("CreateSubmission", after=True, drop=True)
        fake.uploads["up1"] = {"name": "s.csv", "data": b"x"}
        body = {"competitionName": COMPETITION, "blobFileTokens": "up1"}
        with pytest.raises(errors.UncertainError, match="submitting: it is not known") as caught:
            client.change("competitions.create_submission", body, "submitting", find_effect)
        assert "`kit submissions`" in caught.value.hint
        assert "Run it again" not in str(caught.value)
        assert len(fake.submissions) == 1

    def test_a_refusal_is_not_repeated(
        self, client: Client, fake: FakeKaggle, heard: Heard
    ) -> None:
        fake.fail("CreateSubmission", 400, "no")
        with pytest.raises(errors.RefusedError):
            self.change(client, fake)
        assert heard.pauses == []


def test_importing_the_package_is_quiet_offline_and_without_kaggle(tmp_path: Path) -> None:
    code = (
        "import sys, kit.kaggle.client; "
        "sys.exit('kagglesdk' in sys.modules or 'requests' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"HOME": str(tmp_path)}
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_subprocess_reaches_the_fake_through_the_clients_own_settings(
    fake: FakeKaggle, home: Path
) -> None:
    code = (
        "from kit.kaggle.client import Client\n"
        f"with Client() as client: print(client.call(*{LIMITS!r}).num_allowed_now)"
    )
    # VERBOSE makes the kaggle command print its Authorization header.
    env = fake.env(home) | {"VERBOSE": "1"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (result.stdout, result.stderr) == ("5\n", "")
