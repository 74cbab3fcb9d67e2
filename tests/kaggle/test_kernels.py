"""Check that a wait follows the named version, never an older one, and that logs are plain text."""

import json
from collections.abc import Callable, Iterator

import pytest
import requests
from captured import Heard
from fake_kaggle import OWNER, FakeKaggle

from kit.kaggle import errors, logs
from kit.kaggle.client import Client
from kit.kaggle.kernel_ref import KernelRef
from kit.kaggle.kernels import find_kernel, kernel_status, wait_for_kernel

REF = KernelRef(OWNER, "kit-train", 1)


@pytest.fixture
def save(fake: FakeKaggle) -> Callable[..., KernelRef]:
    """Save a version on the fake, as a push would."""

    def saved(text: str = "print()") -> KernelRef:
        answer = fake.save_kernel({"slug": f"{OWNER}/kit-train", "text": text})
        return KernelRef(OWNER, "kit-train", answer["versionNumber"])

    return saved


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("kituser/kit-train", KernelRef("kituser", "kit-train")),
        ("kituser/kit-train/3", KernelRef("kituser", "kit-train", 3)),
        ("https://www.kaggle.com/code/kituser/kit-train", KernelRef("kituser", "kit-train")),
        (
            "https://www.kaggle.com/code/kituser/kit-train?utm=mail",
            KernelRef("kituser", "kit-train"),
        ),
        (
            "https://www.kaggle.com/code/kituser/kit-train/3?scriptVersionId=9",
            KernelRef("kituser", "kit-train", 3),
        ),
        ("kit-train", KernelRef("me", "kit-train")),
    ],
)
def test_a_kernel_is_named_by_slug_or_address(text: str, read: KernelRef) -> None:
    assert KernelRef.parse(text, owner="me") == read
    assert KernelRef.parse(str(read)) == read


@pytest.mark.parametrize("text", ["a/b/c/d", "kituser/kit train", "me/kit-train/0", "../kit-train"])
def test_invalid_kernel_names_are_refused(text: str) -> None:
    with pytest.raises(errors.KaggleError, match="is not the name of a kernel"):
        KernelRef.parse(text)


def test_a_name_that_is_too_short_says_the_rule() -> None:
    with pytest.raises(errors.KaggleError, match="'bar' is shorter than 5 characters"):
        KernelRef.parse("foo/bar")


def test_an_empty_kernel_name_is_refused() -> None:
    with pytest.raises(errors.KaggleError, match="name of the kernel is empty"):
        KernelRef.parse(" ", "me")


@pytest.mark.parametrize(
    "text",
    ["https://www.kaggle.com/code/me/kit-train?scriptVersionId=9", "kit-train?scriptVersionId=9"],
)
def test_an_address_with_a_script_version_id_is_refused(
    text: str,
) -> None:
    with pytest.raises(errors.KaggleError, match="scriptVersionId") as caught:
        KernelRef.parse(text, "me")
    assert "Write me/kit-train/VERSION" in caught.value.hint


def test_wait_follows_the_version_to_its_end(client: Client, save: Callable, heard: Heard) -> None:
    state = wait_for_kernel(client, save(), say=heard.lines.append)
    assert state.status == "COMPLETE"
    assert [line.rsplit(" ", 1)[1] for line in heard.lines] == ["QUEUED", "RUNNING", "COMPLETE"]


def test_wait_without_a_version_follows_the_latest(client: Client, save: Callable) -> None:
    save()
    save()
    assert wait_for_kernel(client, KernelRef(OWNER, "kit-train")).ref.version == 2


@pytest.mark.parametrize(
    ("status", "message"),
    [("ERROR", "failed: Your notebook failed"), ("CANCEL_ACKNOWLEDGED", "was cancelled")],
)
def test_a_failed_run_raises_with_the_end_of_its_log(
    client: Client, fake: FakeKaggle, save: Callable, status: str, message: str
) -> None:
    fake.kernel_script = ["QUEUED", "RUNNING", status]
    fake.kernel_failure = "Your notebook failed"
    fake.kernel_log = [
        {"stream_name": "stderr", "time": n, "data": f"line {n}\n"} for n in range(40)
    ]
    with pytest.raises(errors.RunFailedError, match=message) as caught:
        wait_for_kernel(client, save())
    assert caught.value.log_tail.splitlines()[-1] == "line 39"
    assert "line 0\n" not in str(caught.value)


def test_temporary_failures_do_not_end_a_wait(
    client: Client, fake: FakeKaggle, save: Callable
) -> None:
    fake.fail("GetKernelSessionStatus", 429, headers={"Retry-After": "7"})
    fake.fail("GetKernelSessionStatus", drop=True)
    fake.fail("GetKernelSessionStatus", 503)
    assert wait_for_kernel(client, save()).status == "COMPLETE"


def test_wait_gives_up_after_the_timeout(
    client: Client, fake: FakeKaggle, save: Callable, heard: Heard
) -> None:
    fake.kernel_script = ["RUNNING"]
    with pytest.raises(errors.UnreachableError, match="is RUNNING after 2 minutes"):
        wait_for_kernel(client, save(), poll_s=30, timeout_s=120)
    assert sum(heard.pauses) == 120


def test_a_finished_version_needs_no_second_request(
    client: Client, fake: FakeKaggle, save: Callable, heard: Heard
) -> None:
    save()
    fake.kernel_script = ["COMPLETE"]
    assert wait_for_kernel(client, save()).status == "COMPLETE"
    assert heard.pauses == []


class TestWhereKaggleIgnoresVersionLabels:
    """It then reports the state of the latest version, as it does to older clients."""

    @pytest.fixture(autouse=True)
    def labels(self, fake: FakeKaggle) -> None:
        fake.ignore_version_label = True

    def test_the_end_of_an_older_version_is_ignored(
        self, client: Client, fake: FakeKaggle, save: Callable
    ) -> None:
        save()

        # The first two are those of the older version.
        fake.kernel_script = ["COMPLETE", "COMPLETE", "QUEUED", "RUNNING", "ERROR"]
        with pytest.raises(errors.RunFailedError):
            wait_for_kernel(client, save("kit-push:" + "a" * 32))

    def test_an_unproven_end_is_not_a_success(
        self, client: Client, fake: FakeKaggle, save: Callable
    ) -> None:
        save()
        fake.kernel_script = ["COMPLETE"]
        with pytest.raises(errors.UnreachableError, match="may belong to an earlier version"):
            wait_for_kernel(client, save("kit-push:" + "a" * 32))

    def test_the_token_in_the_log_proves_the_end(
        self, client: Client, fake: FakeKaggle, save: Callable, heard: Heard
    ) -> None:
        save()
        fake.kernel_script = ["COMPLETE"]
        fake.kernel_log = [{"data": "kit | kit-push:" + "a" * 32}]
        assert wait_for_kernel(client, save("kit-push:" + "a" * 32)).status == "COMPLETE"
        assert heard.pauses == []

    def test_an_older_version_cannot_be_waited_for(
        self, client: Client, fake: FakeKaggle, save: Callable
    ) -> None:
        save()
        fake.kernel_script = ["COMPLETE"]
        save()
        save()
        with pytest.raises(
            errors.KaggleError, match="reports only the latest version of this kernel, 3"
        ):
            wait_for_kernel(client, KernelRef(OWNER, "kit-train", 2))


def test_an_unknown_kernel_suggests_checking_the_spelling(client: Client) -> None:
    with pytest.raises(errors.NotFoundError, match="check the spelling"):
        kernel_status(client, KernelRef(OWNER, "no-such-kernel"))
    assert find_kernel(client, KernelRef(OWNER, "no-such-kernel")) is None


class TestLogs:
    def test_a_finished_log_is_plain_text(
        self, client: Client, fake: FakeKaggle, save: Callable
    ) -> None:
        fake.kernel_log = [{"data": "a\n"}, {"data": "\x1b[31mred\x1b[0m\x07\rb\n"}]
        ref = save()
        wait_for_kernel(client, ref)
        assert logs.read_log(client, ref) == "a\nredb\n"

    def test_the_log_of_a_running_kernel_is_followed(
        self, client: Client, fake: FakeKaggle, save: Callable
    ) -> None:
        fake.kernel_log = [{"data": "so far\n"}]
        assert logs.read_log(client, save()) == "so far\n"

    def test_the_newest_line_is_taken_once(
        self, client: Client, fake: FakeKaggle, save: Callable
    ) -> None:
        fake.kernel_log = [{"data": "first\nstep 1/9\n"}, {"data": "step 2/9\n\n"}]
        ref = save()
        watcher = logs.LogWatcher(client, ref)
        watcher._thread.join(timeout=10)
        assert watcher.take() == "step 2/9"
        assert watcher.take() == ""

    def test_following_reconnects_without_repeating_lines(
        self, client: Client, fake: FakeKaggle, save: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ref = save()
        fake.kernel_log = [{"data": f"{n}\n"} for n in range(5)]
        opened = []
        all_events = logs._events

        def break_once(response: requests.Response) -> Iterator[object]:
            opened.append(response)
            for number, event in enumerate(all_events(response)):
                if len(opened) == 1 and number == 3:
                    raise requests.exceptions.ChunkedEncodingError
                yield event

        monkeypatch.setattr(logs, "_events", break_once)
        fake.kernels[f"{OWNER}/kit-train"]["versions"][1]["log"] = fake.kernel_log

        assert list(logs.follow_log(client, ref)) == ["0\n", "1\n", "2\n", "3\n", "4\n"]
        assert len(opened) == 2

    def test_following_gives_up_when_the_connection_keeps_breaking(
        self, client: Client, save: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(_: object) -> object:
            raise requests.exceptions.ConnectionError

        monkeypatch.setattr(logs, "_events", broken)
        with pytest.raises(errors.UnreachableError, match="keeps breaking"):
            list(logs.follow_log(client, save()))

    @pytest.mark.parametrize("text", ["not json", json.dumps({"a": 1})])
    def test_a_log_in_another_format_is_shown_unchanged(self, text: str) -> None:
        assert logs.plain_log(text) == text
