"""The one door to Kaggle: authentication, timeouts, repeats, and each refusal as its own message."""

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

LIMITS = (
    "competitions.get_submission_limits",
    {"competitionName": COMPETITION},
    "asking for the limits",
)


def test_a_legacy_key_is_sent_and_no_call_is_made_before_the_first(
    client: Client, fake: FakeKaggle
) -> None:
    assert fake.calls == []
    assert client.call(*LIMITS).num_allowed_now == 5
    assert [c.auth for c in fake.calls] == [f"basic:{OWNER}"]
    assert client.owner() == OWNER


def test_a_token_is_sent_and_asked_for_its_owner(fake: FakeKaggle, home: Path) -> None:
    with fake.patched(home, fake.credentials(home, TOKEN)), Client() as client:
        assert client.owner() == client.owner() == OWNER
        client.call(*LIMITS)
    assert [c.auth for c in fake.calls] == ["bearer", "bearer"]


def test_an_oauth_login_is_renewed_and_sent(fake: FakeKaggle, home: Path) -> None:
    saved = {"refresh_token": "refresh-" + TOKEN, "username": OWNER}
    (home / ".kaggle").mkdir()
    (home / ".kaggle/credentials.json").write_text(json.dumps(saved))
    with fake.patched(home, {"HOME": str(home)}), Client() as client:
        assert client.call(*LIMITS).num_allowed_now == 5
    assert fake.calls[-1].auth == "bearer"


@pytest.mark.parametrize(("minutes", "renewals"), [(-10, 1), (2, 1), (60, 0)])
def test_an_access_token_that_is_about_to_end_is_renewed(
    fake: FakeKaggle, home: Path, minutes: int, renewals: int
) -> None:
    ends = (datetime.now(UTC) + timedelta(minutes=minutes)).isoformat()
    saved = {
        "refresh_token": "refresh-" + TOKEN,
        "access_token": TOKEN,
        "access_token_expiration": ends,
    }
    (home / ".kaggle").mkdir()
    (home / ".kaggle/credentials.json").write_text(json.dumps(saved | {"username": OWNER}))
    with fake.patched(home, {"HOME": str(home)}), Client() as client:
        client.call(*LIMITS)
    assert len(fake.seen("GenerateAccessToken")) == renewals


def test_an_oauth_login_outlives_its_tokens_and_shows_none(
    fake: FakeKaggle, home: Path, heard: Heard
) -> None:
    def renew(
        _: dict,
    ) -> (
        dict
    ):  # as if twelve hours were a minute: each token is about to end, the one before is over
        fake.token = f"KGAT_access_{len(fake.seen('GenerateAccessToken'))}"
        return {"token": fake.token, "expiresIn": 60}

    fake.generate_access_token = renew
    (home / ".kaggle").mkdir()
    (home / ".kaggle/credentials.json").write_text(
        json.dumps({"refresh_token": "r" * 20, "username": OWNER})
    )
    with fake.patched(home, {"HOME": str(home)}), Client(patience=heard.patience()) as client:
        for _ in range(3):
            fake.token = "over"
            assert client.call(*LIMITS).num_allowed_now == 5
        assert {call.auth for call in fake.seen("GetSubmissionLimits")} == {"bearer"}
        assert {call.auth for call in fake.seen("GenerateAccessToken")} == {"none"}
        fake.fail(
            "GetSubmissionLimits",
            400,
            f"echo KGAT_access_{len(fake.seen('GenerateAccessToken')) + 1}",
        )
        with pytest.raises(errors.RefusedError, match=r"echo \[secret\]"):
            client.call(*LIMITS)
        fake.fail("GenerateAccessToken", 401, "revoked")
        with pytest.raises(errors.CredentialsError, match="kaggle auth login"):
            client.call(*LIMITS)


def test_an_oauth_login_that_is_over_says_how_to_log_in(fake: FakeKaggle, home: Path) -> None:
    (home / ".kaggle").mkdir()
    (home / ".kaggle/credentials.json").write_text(
        '{"refresh_token": "old", "username": "kituser"}'
    )
    with (
        fake.patched(home, {"HOME": str(home)}),
        pytest.raises(errors.CredentialsError, match="kaggle auth login"),
    ):
        Client()


def test_a_given_credential_is_used_though_a_token_would_come_first(
    fake: FakeKaggle, home: Path
) -> None:
    key = Credential("key", "test", OWNER, KEY)
    with fake.patched(home, fake.credentials(home, "stale")), Client(key) as client:
        assert client.call(*LIMITS).num_allowed_now == 5


def test_without_credentials_nothing_is_connected(fake: FakeKaggle, home: Path) -> None:
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
def test_a_refused_token_is_an_error_however_kaggle_puts_it(
    fake: FakeKaggle, home: Path, status: int
) -> None:
    fake.introspect_status = status
    refused = pytest.raises(errors.CredentialsError, match="does not accept the access token")
    with fake.patched(home, fake.credentials(home, "KGAT_stale")), Client() as client, refused:
        client.owner()


@pytest.mark.parametrize(
    ("status", "message", "kind", "told"),
    [
        (400, "Bad thing", errors.RefusedError, "Bad thing"),
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
    client: Client, fake: FakeKaggle, heard: Heard, status: int, message: str, kind: type, told: str
) -> None:
    fake.fail("GetSubmissionLimits", status, message)
    with pytest.raises(kind, match=told):
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
def test_a_passing_fault_is_waited_out_where_repeating_is_safe(
    client: Client, fake: FakeKaggle, heard: Heard, fault: dict
) -> None:
    fake.fail("GetSubmissionLimits", **fault)
    assert client.call(*LIMITS).num_allowed_now == 5
    assert len(heard.pauses) == 1
    assert 0 < heard.pauses[0] < 2
    assert "trying again in" in heard.text


def test_retry_after_is_obeyed_within_bounds(
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
    ("fault", "kind", "told"),
    [
        ({"status": 429}, errors.BusyError, "Wait a few minutes"),
        ({"status": 502, "message": "down"}, errors.UnreachableError, "502: down"),
        ({"drop": True}, errors.UnreachableError, "cannot be reached"),
    ],
)
def test_a_lasting_fault_ends_after_bounded_repeats(
    client: Client, fake: FakeKaggle, heard: Heard, fault: dict, kind: type, told: str
) -> None:
    fake.fail("GetSubmissionLimits", times=99, **fault)
    with pytest.raises(kind, match=told):
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
        began = time.monotonic()
        with pytest.raises(errors.UnreachableError, match="no answer from Kaggle in time"):
            client.call(*LIMITS)
    assert time.monotonic() - began < 2


def test_a_web_page_in_place_of_an_answer_is_not_taken_for_one(
    client: Client, fake: FakeKaggle
) -> None:
    fake.fail("GetSubmissionLimits", 200, raw=b"<html>log in to the hotel's network</html>")
    with pytest.raises(errors.UnreachableError, match="a web page, not data"):
        client.call(*LIMITS)


def test_a_state_this_client_does_not_know_is_an_error_with_a_next_step(
    client: Client, fake: FakeKaggle
) -> None:
    fake.get_kernel_session_status = lambda _: {"status": "HIBERNATING"}
    with pytest.raises(errors.UnreachableError, match="pip install -U kaggle"):
        client.call(
            "kernels.get_kernel_session_status",
            {"userName": OWNER, "kernelSlug": "x"},
            "reading the status",
        )


def test_nothing_listening_is_an_error_with_a_next_step(home: Path, heard: Heard) -> None:
    with FakeKaggle() as fake, fake.patched(home):
        client = Client(patience=heard.patience(attempts=2))
    with pytest.raises(errors.UnreachableError, match="Check the network"):
        client.call(*LIMITS)


class TestChangesThatMustHappenOnce:
    """`Client.change`: checked before it is repeated."""

    def change(self, client: Client, fake: FakeKaggle) -> object:
        body = {
            "competitionName": COMPETITION,
            "blobFileTokens": "up1",
            "submissionDescription": "once",
        }
        fake.uploads["up1"] = {"name": "s.csv", "data": b"x"}

        def happened() -> object:
            return fake.submissions[0]["ref"] if fake.submissions else None

        return client.change("competitions.create_submission", body, "submitting", happened)

    @pytest.mark.parametrize("fault", [{"drop": True}, {"status": 500}, {"stall_s": 0.8}])
    def test_what_took_effect_is_not_repeated(
        self, client: Client, fake: FakeKaggle, fault: dict
    ) -> None:
        fake.fail("CreateSubmission", after=True, **fault)
        assert self.change(client, fake) == fake.submissions[0]["ref"]
        assert len(fake.submissions) == 1

    @pytest.mark.parametrize("fault", [{"drop": True}, {"status": 500}, {"status": 429}])
    def test_what_did_not_take_effect_is_repeated(
        self, client: Client, fake: FakeKaggle, fault: dict
    ) -> None:
        fake.fail("CreateSubmission", **fault)
        assert self.change(client, fake).ref == fake.submissions[0]["ref"]
        assert len(fake.submissions) == 1

    def test_what_took_effect_at_the_last_attempt_still_counts(
        self, fake: FakeKaggle, home: Path, heard: Heard
    ) -> None:
        fake.fail("CreateSubmission", after=True, drop=True)
        with fake.patched(home), Client(patience=heard.patience(attempts=1)) as client:
            assert self.change(client, fake) == fake.submissions[0]["ref"]

    @pytest.mark.parametrize(
        "lost", [errors.UnreachableError("list: 503", "Run it again."), requests.ConnectionError()]
    )
    def test_where_it_cannot_be_seen_whether_it_took_effect_that_is_said(
        self, client: Client, fake: FakeKaggle, lost: Exception
    ) -> None:
        def happened() -> object:
            raise lost

        fake.fail("CreateSubmission", after=True, drop=True)
        fake.uploads["up1"] = {"name": "s.csv", "data": b"x"}
        body = {"competitionName": COMPETITION, "blobFileTokens": "up1"}
        with pytest.raises(errors.UncertainError, match="submitting: it is not known") as caught:
            client.change("competitions.create_submission", body, "submitting", happened)
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
    code = "import sys, kit.kaggle.client; sys.exit('kagglesdk' in sys.modules or 'requests' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"HOME": str(tmp_path)}
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_subprocess_reaches_the_fake_through_the_clients_own_settings(
    fake: FakeKaggle, home: Path
) -> None:
    code = f"from kit.kaggle.client import Client\nwith Client() as c: print(c.call(*{LIMITS!r}).num_allowed_now)"
    env = fake.env(home) | {
        "VERBOSE": "1"
    }  # which makes the kaggle command print its Authorization header
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (done.stdout, done.stderr) == ("5\n", "")
