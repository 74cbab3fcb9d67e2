"""Submissions: what would fail is refused before it counts, what counts is sent once and written down."""

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
def ready(client: Client, fake: FakeKaggle) -> Callable[..., None]:
    """Puts a finished inference kernel of ours on the fake."""

    def put(**more: object) -> None:
        job = {"push": "a" * 32, "local_score": "1.0123"}
        job["sources"] = [
            {"ref": "me/train-a", "weight": 2.0},
            {"ref": "me/train-b", "weight": 0.5},
        ]
        body = {"slug": KERNEL, "text": build_notebook("infer", job), "kernelType": "notebook"}
        fake.save_kernel(body | {"enableInternet": False, "competitionDataSources": [SLUG]} | more)
        wait_for_kernel(client, KernelRef.parse(KERNEL))

    return put


class TestKernel:
    def test_a_version_is_submitted_once_and_written_down(
        self, client: Client, fake: FakeKaggle, ready: Callable, ledger_path: Path, heard: Heard
    ) -> None:
        ready()
        ready()
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

    @pytest.mark.parametrize(
        ("more", "told"),
        [
            ({"enableInternet": True}, "runs with internet"),
            ({"competitionDataSources": ["titanic"]}, f"does not have {SLUG} attached"),
        ],
    )
    def test_a_kernel_that_kaggle_would_not_take_is_refused(
        self,
        client: Client,
        fake: FakeKaggle,
        ready: Callable,
        ledger_path: Path,
        more: dict,
        told: str,
    ) -> None:
        fake.competitions["titanic"] = {}
        ready(**more)
        with pytest.raises(errors.RefusedError, match=told):
            submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)
        assert (fake.submissions, ledger_path.exists()) == ([], False)

    def test_a_run_that_is_not_finished_is_refused(
        self, client: Client, fake: FakeKaggle, ledger_path: Path
    ) -> None:
        fake.kernel_script = ["RUNNING"]
        fake.save_kernel({"slug": KERNEL, "text": ""})
        with pytest.raises(errors.UnreachableError, match="is RUNNING"):
            submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)

    def test_a_run_that_failed_is_refused(
        self, client: Client, fake: FakeKaggle, ledger_path: Path
    ) -> None:
        fake.kernel_script = ["ERROR"]
        fake.save_kernel({"slug": KERNEL, "text": ""})
        with pytest.raises(errors.RunFailedError, match="hello"):
            submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)

    @pytest.mark.parametrize(
        ("files", "kind", "told"),
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
        ready: Callable,
        ledger_path: Path,
        files: dict,
        kind: type,
        told: str,
    ) -> None:
        fake.kernel_files = files
        ready()
        with pytest.raises(kind, match=told):
            submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)
        assert fake.submissions == []

    def test_nothing_is_sent_without_a_place_left(
        self, client: Client, fake: FakeKaggle, ready: Callable, ledger_path: Path
    ) -> None:
        ready()
        fake.daily_limit = 1
        submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)
        with pytest.raises(errors.RefusedError, match="no submission is left today"):
            submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)
        assert len(fake.seen("CreateCodeSubmission")) == 1

    def test_rules_that_are_not_accepted_are_said(
        self, client: Client, fake: FakeKaggle, ready: Callable, ledger_path: Path
    ) -> None:
        ready()
        fake.rules_accepted.clear()
        with pytest.raises(errors.RulesError, match=f"competitions/{SLUG}/rules"):
            submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)

    @pytest.mark.parametrize("fault", [{"drop": True}, {"status": 500}, {"stall_s": 0.8}])
    def test_a_lost_answer_is_no_second_submission(
        self, client: Client, fake: FakeKaggle, ready: Callable, ledger_path: Path, fault: dict
    ) -> None:
        ready()
        submit.submit_kernel(client, KERNEL, "same words", ledger_path=ledger_path)
        fake.fail("CreateCodeSubmission", after=True, **fault)
        entry = submit.submit_kernel(client, KERNEL, "same words", ledger_path=ledger_path)
        assert len(fake.submissions) == 2
        assert [e.ref for e in ledger.read_ledger(ledger_path)] == [
            str(s["ref"]) for s in reversed(fake.submissions)
        ]
        assert entry.ref == str(fake.submissions[0]["ref"])

    @pytest.mark.parametrize(
        "answer", [{"after": True, "drop": True}, {"message": "no number in it"}]
    )
    def test_where_it_cannot_be_seen_whether_it_is_in_that_is_said(
        self, client: Client, fake: FakeKaggle, ready: Callable, ledger_path: Path, answer: dict
    ) -> None:
        def lost(body: dict) -> dict:
            fake.fail("ListSubmissions", 503, times=99)
            return answer if "message" in answer else real(body)

        ready()
        real, fake.create_code_submission = fake.create_code_submission, lost
        if "drop" in answer:
            fake.fail("CreateCodeSubmission", **answer)
        with pytest.raises(
            errors.UncertainError, match="it is not known whether that took effect"
        ) as caught:
            submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)
        assert "Run it again" not in str(caught.value)
        assert len(fake.seen("CreateCodeSubmission")) == 1

    def test_a_submission_that_did_not_arrive_is_sent_again(
        self, client: Client, fake: FakeKaggle, ready: Callable, ledger_path: Path
    ) -> None:
        ready()
        fake.fail("CreateCodeSubmission", 503)
        submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)
        assert len(fake.submissions) == 1

    def test_a_ledger_that_is_none_is_found_before_the_submission_counts(
        self, client: Client, fake: FakeKaggle, ready: Callable, ledger_path: Path
    ) -> None:
        ready()
        ledger_path.parent.mkdir()
        ledger_path.write_text("a,b\n1,2\n")
        with pytest.raises(DataError, match="is not a ledger"):
            submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)
        assert fake.submissions == []

    @pytest.mark.parametrize("trouble", ["a directory", "a file above it", "no room beside it"])
    def test_a_ledger_that_could_not_be_written_is_found_before_the_submission_counts(
        self,
        client: Client,
        fake: FakeKaggle,
        ready: Callable,
        ledger_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        trouble: str,
    ) -> None:
        def full(**_: object) -> None:
            raise OSError(28, "No space left on device")

        ready()
        if trouble == "a directory":
            ledger_path.mkdir(parents=True)
        elif trouble == "a file above it":
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
    def test_a_ledger_that_cannot_be_written_does_not_hide_the_submission(
        self,
        client: Client,
        ready: Callable,
        ledger_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        error: Exception,
    ) -> None:
        def full(*_: object) -> None:
            raise error

        ready()
        monkeypatch.setattr(ledger.atomic, "write_text", full)
        with pytest.raises(
            KitError, match=r"(?s)is in, but .*No space left\n.*Do not submit again"
        ):
            submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)


class TestFile:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "mine.csv"
        path.write_text(GOOD)
        return path

    def test_this_competition_takes_no_files(
        self, client: Client, fake: FakeKaggle, file: Path, ledger_path: Path
    ) -> None:
        with pytest.raises(errors.RefusedError, match="takes notebooks only") as caught:
            submit.submit_file(client, file, "m", ledger_path=ledger_path)
        assert "kit kernels push infer" in str(caught.value)
        assert fake.uploads == {}

    def test_another_one_gets_the_file(
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

    def test_a_failed_upload_is_no_submission(
        self, client: Client, fake: FakeKaggle, file: Path, ledger_path: Path
    ) -> None:
        fake.notebooks_only = False
        fake.fail("_upload", 500, times=99)
        with pytest.raises(errors.UnreachableError, match=r"uploading mine\.csv"):
            submit.submit_file(client, file, "m", ledger_path=ledger_path)
        assert (fake.submissions, ledger_path.exists()) == ([], False)


class TestScore:
    @pytest.fixture
    def entry(self, client: Client, ready: Callable, ledger_path: Path) -> ledger.LedgerEntry:
        ready()
        return submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)

    def test_it_is_waited_for_and_written_down(
        self, client: Client, entry: ledger.LedgerEntry, ledger_path: Path, heard: Heard
    ) -> None:
        scored = wait_for_score(client, entry, ledger_path=ledger_path, say=heard.lines.append)
        assert (scored.status, scored.public_score) == ("COMPLETE", "0.98765")
        assert ledger.read_ledger(ledger_path) == [scored]
        assert heard.pauses[-2:] == [60.0, 60.0]

    @pytest.mark.parametrize(
        ("reason", "told"),
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
    def test_each_of_kaggles_reasons_is_explained(
        self,
        client: Client,
        fake: FakeKaggle,
        ready: Callable,
        ledger_path: Path,
        reason: str,
        told: str,
    ) -> None:
        fake.submission_script, fake.submission_error = ["PENDING", "ERROR"], reason
        ready()
        entry = submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)
        with pytest.raises(errors.RefusedError, match=told):
            wait_for_score(client, entry, ledger_path=ledger_path)
        assert [(e.status, e.error) for e in ledger.read_ledger(ledger_path)] == [("ERROR", reason)]

    def test_waiting_ends_when_the_time_is_over(
        self, client: Client, fake: FakeKaggle, ready: Callable, ledger_path: Path
    ) -> None:
        fake.submission_script = ["PENDING"]
        ready()
        entry = submit.submit_kernel(client, KERNEL, "m", ledger_path=ledger_path)
        with pytest.raises(errors.UnreachableError, match="not scored after 10 minutes"):
            wait_for_score(client, entry, timeout_s=600, ledger_path=ledger_path)
        assert ledger.read_ledger(ledger_path)[0].status == "PENDING"

    def test_the_list_fills_in_scores_and_shows_what_others_sent(
        self, client: Client, fake: FakeKaggle, entry: ledger.LedgerEntry, ledger_path: Path
    ) -> None:
        fake._add_submission({"competitionName": SLUG, "submissionDescription": "by hand"}, "x.csv")
        for _ in range(3):
            rows = list_submissions(client, ledger_path=ledger_path)
        assert [(s.message, e.ref if e else None) for s, e in rows] == [
            ("by hand", None),
            ("m", entry.ref),
        ]
        assert ledger.read_ledger(ledger_path)[0].public_score == "0.98765"
        assert len(ledger.read_ledger(ledger_path)) == 1
