"""Check that bad submissions are refused before they count, and good ones are recorded."""

from collections.abc import Callable
from pathlib import Path

import pytest
from captured import Heard
from fake_kaggle import OWNER, FakeKaggle
from fake_services import SLUG

from kit.errors import DataError, KitError
from kit.kaggle import errors, ledger, submit
from kit.kaggle.client import Client
from kit.kaggle.kernels import KernelRef, wait_for_kernel
from kit.kaggle.notebook import build_notebook
from kit.kaggle.submissions import list_submissions, wait_for_score

GOOD = "id,winner_model_a,winner_model_b,winner_tie\n1,0.3,0.3,0.4\n2,0.5,0.25,0.25\n"
KERNEL = f"{OWNER}/kit-infer"


@pytest.fixture
def ledger_path(tmp_path: Path) -> Path:
    return tmp_path / "submissions/ledger.csv"


@pytest.fixture
def complete_kernel(client: Client, fake: FakeKaggle) -> Callable[..., None]:
    """Return a function that saves a complete inference kernel on the fake Kaggle."""

    def save_kernel(**options: object) -> None:
        job = {
            "push": "a" * 32,
            "local_score": "1.0123",
            "sources": [
                {"ref": "me/train-a", "weight": 2.0},
                {"ref": "me/train-b", "weight": 0.5},
            ],
        }
        body = {
            "slug": KERNEL,
            "text": build_notebook("infer", job),
            "kernelType": "notebook",
            "enableInternet": False,
            "competitionDataSources": [SLUG],
        }
        fake.save_kernel(body | options)
        wait_for_kernel(client, KernelRef.parse(KERNEL))

    return save_kernel


class TestSubmitKernel:
    def test_a_version_is_submitted_once_and_recorded(
        self,
        client: Client,
        fake: FakeKaggle,
        complete_kernel: Callable,
        ledger_path: Path,
        heard: Heard,
    ) -> None:
        complete_kernel()
        complete_kernel()
        entry = submit.submit_kernel(
            client, KERNEL, "two models", ledger_path=ledger_path, say=heard.lines.append
        )
        assert fake.seen("CreateCodeSubmission")[0].body == {
            "competitionName": SLUG,
            "kernelOwner": OWNER,
            "kernelSlug": "kit-infer",
            "kernelVersion": 2,
            "fileName": "submission.csv",
            "submissionDescription": "two models",
        }
        assert ledger.read_ledger(ledger_path) == [entry]
        assert entry.kernel == f"{KERNEL}/2"
        assert (entry.runs, entry.weights, entry.local_score) == (
            "me/train-a me/train-b",
            "2 0.5",
            "1.0123",
        )
        assert len(entry.sha256) == 64
        assert "5 submissions left today" in heard.text
        assert "GPU hours left" in heard.text

    def test_a_version_that_the_ledger_has_is_refused_without_force(
        self, client: Client, fake: FakeKaggle, complete_kernel: Callable, ledger_path: Path
    ) -> None:
        complete_kernel()
        first = submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)
        with pytest.raises(errors.RefusedError, match=f"submitted before: {first.ref}") as caught:
            submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)
        assert "--force" in caught.value.hint
        assert len(fake.submissions) == 1
        submit.submit_kernel(client, KERNEL, "m", force=True, ledger_path=ledger_path)
        complete_kernel()
        submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)
        assert len(fake.submissions) == 3

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"enableInternet": True}, "runs with internet"),
            ({"competitionDataSources": ["titanic"]}, f"does not have {SLUG} attached"),
        ],
    )
    def test_a_kernel_that_kaggle_would_refuse_is_refused(
        self,
        client: Client,
        fake: FakeKaggle,
        complete_kernel: Callable,
        ledger_path: Path,
        options: dict,
        expected: str,
    ) -> None:
        fake.competitions["titanic"] = {}
        complete_kernel(**options)
        with pytest.raises(errors.RefusedError, match=expected):
            submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)
        assert (fake.submissions, ledger_path.exists()) == ([], False)

    def test_an_unfinished_run_is_refused(
        self, client: Client, fake: FakeKaggle, ledger_path: Path
    ) -> None:
        fake.kernel_script = ["RUNNING"]
        fake.save_kernel({"slug": KERNEL, "text": ""})
        with pytest.raises(errors.UnreachableError, match="is RUNNING"):
            submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)

    def test_a_failed_run_is_refused(
        self, client: Client, fake: FakeKaggle, ledger_path: Path
    ) -> None:
        fake.kernel_script = ["ERROR"]
        fake.save_kernel({"slug": KERNEL, "text": ""})
        with pytest.raises(errors.RunFailedError, match="hello"):
            submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)

    @pytest.mark.parametrize(
        ("files", "error", "expected"),
        [
            ({"other.csv": b"x"}, errors.RefusedError, "left no submission.csv"),
            (
                {"submission.csv": GOOD.replace("0.4", "0.9").encode()},
                DataError,
                "would not be scored",
            ),
            ({"submission.csv": b"<html>"}, DataError, "would not be scored"),
        ],
    )
    def test_an_output_that_would_not_be_scored_is_refused(
        self,
        client: Client,
        fake: FakeKaggle,
        complete_kernel: Callable,
        ledger_path: Path,
        files: dict,
        error: type[Exception],
        expected: str,
    ) -> None:
        fake.kernel_files = files
        complete_kernel()
        with pytest.raises(error, match=expected):
            submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)
        assert fake.submissions == []

    def test_nothing_is_sent_once_the_daily_limit_is_reached(
        self, client: Client, fake: FakeKaggle, complete_kernel: Callable, ledger_path: Path
    ) -> None:
        complete_kernel()
        fake.daily_limit = 1
        submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)
        with pytest.raises(errors.RefusedError, match="no submission is left today"):
            submit.submit_kernel(client, KERNEL, "m", force=True, ledger_path=ledger_path)
        assert len(fake.seen("CreateCodeSubmission")) == 1

    def test_rules_that_are_not_accepted_are_an_error(
        self, client: Client, fake: FakeKaggle, complete_kernel: Callable, ledger_path: Path
    ) -> None:
        complete_kernel()
        fake.rules_accepted.clear()
        with pytest.raises(errors.RulesError, match=f"competitions/{SLUG}/rules"):
            submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)

    @pytest.mark.parametrize("fault", [{"drop": True}, {"status": 500}, {"stall_s": 0.8}])
    def test_a_lost_answer_makes_no_second_submission(
        self,
        client: Client,
        fake: FakeKaggle,
        complete_kernel: Callable,
        ledger_path: Path,
        fault: dict,
    ) -> None:
        complete_kernel()
        submit.submit_kernel(client, KERNEL, "same words", ledger_path=ledger_path)
        fake.fail("CreateCodeSubmission", after=True, **fault)
        entry = submit.submit_kernel(
            client, KERNEL, "same words", force=True, ledger_path=ledger_path
        )
        assert len(fake.submissions) == 2
        assert [recorded.ref for recorded in ledger.read_ledger(ledger_path)] == [
            str(submission["ref"]) for submission in reversed(fake.submissions)
        ]
        assert entry.ref == str(fake.submissions[0]["ref"])

    @pytest.mark.parametrize(
        "answer", [{"after": True, "drop": True}, {"message": "no number in it"}]
    )
    def test_an_unknown_outcome_is_an_error_that_says_so(
        self,
        client: Client,
        fake: FakeKaggle,
        complete_kernel: Callable,
        ledger_path: Path,
        answer: dict,
    ) -> None:
        create_code_submission = fake.create_code_submission

        def lose_list(body: dict) -> dict:
            fake.fail("ListSubmissions", 503, times=99)
            return answer if "message" in answer else create_code_submission(body)

        complete_kernel()
        fake.create_code_submission = lose_list
        if "drop" in answer:
            fake.fail("CreateCodeSubmission", **answer)
        with pytest.raises(
            errors.UncertainError, match="it is not known whether that took effect"
        ) as caught:
            submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)
        assert "Run it again" not in str(caught.value)
        assert len(fake.seen("CreateCodeSubmission")) == 1

    def test_a_submission_that_did_not_arrive_is_sent_again(
        self, client: Client, fake: FakeKaggle, complete_kernel: Callable, ledger_path: Path
    ) -> None:
        complete_kernel()
        fake.fail("CreateCodeSubmission", 503)
        submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)
        assert len(fake.submissions) == 1

    def test_a_file_that_is_not_a_ledger_is_found_before_the_submission_counts(
        self, client: Client, fake: FakeKaggle, complete_kernel: Callable, ledger_path: Path
    ) -> None:
        complete_kernel()
        ledger_path.parent.mkdir()
        ledger_path.write_text("a,b\n1,2\n")
        with pytest.raises(DataError, match="is not a ledger"):
            submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)
        assert fake.submissions == []

    @pytest.mark.parametrize("obstacle", ["a directory", "a file above it", "a full disk"])
    def test_an_unwritable_ledger_is_found_before_the_submission_counts(
        self,
        client: Client,
        fake: FakeKaggle,
        complete_kernel: Callable,
        ledger_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        obstacle: str,
    ) -> None:
        def full(**_: object) -> None:
            raise OSError(28, "No space left on device")

        complete_kernel()
        if obstacle == "a directory":
            ledger_path.mkdir(parents=True)
        elif obstacle == "a file above it":
            ledger_path.parent.write_text("")
        else:
            monkeypatch.setattr("tempfile.TemporaryFile", full)
        with pytest.raises(KitError, match=r"the ledger .* (is a directory|cannot be written)"):
            submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)
        assert (fake.submissions, ledger_path.is_file()) == ([], False)

    @pytest.mark.parametrize(
        "error",
        [
            OSError(28, "No space left"),
            KitError("No space left", "Free some"),
            DataError("No space left"),
        ],
    )
    def test_a_failed_ledger_write_does_not_hide_the_submission(
        self,
        client: Client,
        complete_kernel: Callable,
        ledger_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        error: Exception,
    ) -> None:
        def full(*_: object) -> None:
            raise error

        complete_kernel()
        monkeypatch.setattr(ledger.atomic, "write_text", full)
        with pytest.raises(
            KitError, match=r"(?s)was made, but .*No space left\n.*Do not submit again"
        ):
            submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)


class TestSubmitFile:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "mine.csv"
        path.write_text(GOOD)
        return path

    def test_a_notebook_only_competition_refuses_files(
        self, client: Client, fake: FakeKaggle, file: Path, ledger_path: Path
    ) -> None:
        with pytest.raises(errors.RefusedError, match="takes notebooks only") as caught:
            submit.submit_file(client, file, "m", ledger_path=ledger_path)
        assert "kit kernels push infer" in str(caught.value)
        assert fake.uploads == {}

    @pytest.mark.parametrize(
        ("message", "kept"),
        [
            ("one\rtwo", "one\\rtwo"),
            ("from a file\r\n", "from a file"),
            ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ],
    )
    def test_control_characters_in_a_message_are_escaped(
        self,
        client: Client,
        fake: FakeKaggle,
        file: Path,
        ledger_path: Path,
        message: str,
        kept: str,
    ) -> None:
        fake.notebooks_only = False
        submit.submit_file(client, file, message, competition=SLUG, ledger_path=ledger_path)
        (entry,) = ledger.read_ledger(ledger_path)
        assert entry.message == kept

    def test_another_competition_gets_the_file(
        self, client: Client, fake: FakeKaggle, file: Path, ledger_path: Path
    ) -> None:
        fake.notebooks_only = False
        entry = submit.submit_file(client, file, "m", local_score="1.01", ledger_path=ledger_path)
        (upload,) = fake.uploads.values()
        assert upload["data"].decode() == GOOD
        assert (entry.file, entry.local_score) == (str(file), "1.01")

    def test_an_invalid_file_is_not_uploaded(
        self, client: Client, fake: FakeKaggle, file: Path, ledger_path: Path
    ) -> None:
        fake.notebooks_only = False
        file.write_text(GOOD.replace("0.4", "nan"))
        with pytest.raises(DataError, match="would not be scored"):
            submit.submit_file(client, file, "m", ledger_path=ledger_path)
        assert fake.calls == []

    def test_a_failed_upload_makes_no_submission(
        self, client: Client, fake: FakeKaggle, file: Path, ledger_path: Path
    ) -> None:
        fake.notebooks_only = False
        fake.fail("_upload", 500, times=99)
        with pytest.raises(errors.UnreachableError, match=r"uploading mine\.csv"):
            submit.submit_file(client, file, "m", ledger_path=ledger_path)
        assert (fake.submissions, ledger_path.exists()) == ([], False)


class TestScores:
    @pytest.fixture
    def entry(
        self, client: Client, complete_kernel: Callable, ledger_path: Path
    ) -> ledger.LedgerEntry:
        complete_kernel()
        return submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)

    def test_a_score_is_waited_for_and_recorded(
        self, client: Client, entry: ledger.LedgerEntry, ledger_path: Path, heard: Heard
    ) -> None:
        scored = wait_for_score(client, entry, ledger_path=ledger_path, say=heard.lines.append)
        assert (scored.status, scored.public_score) == ("COMPLETE", "0.98765")
        assert ledger.read_ledger(ledger_path) == [scored]
        assert heard.pauses[-2:] == [60.0, 60.0]

    @pytest.mark.parametrize(
        ("reason", "expected"),
        [
            ("Notebook Timeout", "longer than 9 hours"),
            ("Notebook Threw Exception", "must not depend on the ids"),
            ("Notebook Exceeded Allowed Compute", "more memory"),
            ("Submission CSV Not Found", "left no submission.csv"),
            ("Submission Scoring Error", "kit validate"),
            ("Kaggle Error", "Submit the same version again"),
            ("", "gives no reason"),
            ("Something new", "submission's page"),
        ],
    )
    def test_every_reason_of_kaggles_is_explained(
        self,
        client: Client,
        fake: FakeKaggle,
        complete_kernel: Callable,
        ledger_path: Path,
        reason: str,
        expected: str,
    ) -> None:
        fake.submission_script = ["PENDING", "ERROR"]
        fake.submission_error = reason
        complete_kernel()
        entry = submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)
        with pytest.raises(errors.RefusedError, match=expected):
            wait_for_score(client, entry, ledger_path=ledger_path)
        assert [
            (recorded.status, recorded.error) for recorded in ledger.read_ledger(ledger_path)
        ] == [("ERROR", reason)]

    def test_waiting_ends_at_the_time_limit(
        self, client: Client, fake: FakeKaggle, complete_kernel: Callable, ledger_path: Path
    ) -> None:
        fake.submission_script = ["PENDING"]
        complete_kernel()
        entry = submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)
        with pytest.raises(errors.UnreachableError, match="not scored after 10 minutes"):
            wait_for_score(client, entry, timeout_s=600, ledger_path=ledger_path)
        assert ledger.read_ledger(ledger_path)[0].status == "PENDING"

    def test_the_list_updates_scores_and_shows_other_submissions(
        self, client: Client, fake: FakeKaggle, entry: ledger.LedgerEntry, ledger_path: Path
    ) -> None:
        fake._add_submission({"competitionName": SLUG, "submissionDescription": "by hand"}, "x.csv")
        for _ in range(3):
            pairs = list_submissions(client, ledger_path=ledger_path)
        assert [
            (submission.message, listed.ref if listed else None) for submission, listed in pairs
        ] == [
            ("by hand", None),
            ("m", entry.ref),
        ]
        assert ledger.read_ledger(ledger_path)[0].public_score == "0.98765"
        assert len(ledger.read_ledger(ledger_path)) == 1
