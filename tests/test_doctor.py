"""Check that `kit doctor` names what is broken and the next step; only --online asks Kaggle."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pyarrow import parquet as pq

from kit import doctor
from kit.cli.main import main
from kit.errors import DeviceError, KitError
from kit.model import device
from kit.storage.memory import Memory, read_memory

ROOT = Path(__file__).parent.parent
KAGGLE = "Kaggle credential"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder with an empty home and no credential."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in (
        "KAGGLE_API_TOKEN",
        "KAGGLE_USERNAME",
        "KAGGLE_KEY",
        "KAGGLE_CONFIG_DIR",
        "XDG_CONFIG_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def kit_doctor(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["doctor", *map(str, arguments)])


def finding(part: str, *arguments: object) -> dict[str, str]:
    """Return the last finding about a part."""
    findings = json.loads(kit_doctor(*arguments, "--json").stdout)
    return [finding for finding in findings if finding["part"] == part][-1]


def test_by_default_only_the_lines_that_matter_are_shown():
    result = kit_doctor()
    lines = [line for line in result.stdout.splitlines() if "Next:" not in line]
    parts = [line[8:].partition("  ")[0] for line in lines[:-1]]
    assert parts == ["Python", "device", "precision", "memory", "disk", "raw data", KAGGLE]
    assert "packages in their ranges" in lines[0]


def test_every_part_is_named_and_nothing_is_broken_here():
    result = kit_doctor("--all")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("Nothing is broken\n")
    for part in (
        "Python",
        "torch",
        "kaggle",
        "device",
        "precision",
        "memory",
        "disk",
        "raw data",
        "processed data",
    ):
        assert f"  {part} " in result.stdout
    assert "Next: Run `kit download --out data/raw`" in result.stdout
    assert "https://www.kaggle.com/settings/api" in result.stdout


def test_every_package_of_the_installed_metadata_is_compared():
    parts = {finding["part"] for finding in json.loads(kit_doctor("--json").stdout)}
    assert {"torch", "transformers", "kaggle", "six", "numpy"} <= parts
    assert "pytest" not in parts, "a package of an extra is not needed"


@pytest.mark.parametrize(
    ("needed", "message"),
    [
        ("numpy>=99", "(needs >=99)"),
        ("no-such-package>=1", "not installed (needs >=1)"),
        ("no-such-package; python_version < '3'", None),
        ("no-such-package; extra == 'test'", None),
    ],
)
def test_a_package_out_of_range_is_broken(
    needed: str, message: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: [needed])
    result = kit_doctor()
    assert result.exit_code == (message is not None)
    if message:
        assert message in result.stdout
        assert "pip install" in result.stdout
        assert f"Broken: {needed.partition('>')[0]}" in result.stdout


def test_lightgbm_without_its_library_of_the_system_is_broken(monkeypatch: pytest.MonkeyPatch):
    def fail() -> None:
        raise KitError("LightGBM cannot be loaded: libgomp.so.1", "Install OpenMP.")

    monkeypatch.setattr(importlib.metadata, "requires", lambda _: ["lightgbm"])
    monkeypatch.setattr("kit.baselines.trees.import_lightgbm", fail)
    found = finding("lightgbm")
    assert (found["state"], found["next"]) == ("broken", "Install OpenMP.")


def test_a_kit_that_is_not_installed_is_broken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "DISTRIBUTION", "no-such-distribution")
    found = finding("kit")
    assert (found["state"], found["next"]) == ("broken", "Run `make setup`.")


def test_a_torch_that_does_not_import_is_broken(monkeypatch: pytest.MonkeyPatch):
    def fail() -> None:
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(device, "inspect_gpus", fail)
    assert kit_doctor().exit_code == 1
    assert "libcudart" in finding("device")["found"]


def test_a_gpu_is_shown_with_its_capability_and_the_reason_for_the_precision(
    monkeypatch: pytest.MonkeyPatch,
):
    gpus = {
        "names": ["Tesla T4"] * 2,
        "memory_gb": [15.8] * 2,
        "capabilities": ["7.5"] * 2,
        "kernels": ["sm_75"],
    }
    monkeypatch.setattr(device, "inspect_gpus", lambda: {**gpus, "problem": ""})

    compute = device.Compute(
        device.torch.device("cuda", 0), "fp16", "Tesla T4, capability 7.5: fp16"
    )
    monkeypatch.setattr(device, "choose_device", lambda width: compute)

    found = [item.found for item in doctor.check_device() if item.part == "device"]
    assert found == ["Tesla T4, 15.8 GB, capability 7.5; torch has kernels for sm_75"] * 2
    assert "bf16 is native only from capability 8.0" in finding("precision")["found"]


def test_a_gpu_without_kernels_is_broken(monkeypatch: pytest.MonkeyPatch):
    def refuse(**_: object) -> None:
        raise DeviceError(
            "this torch build has no kernels for Tesla P100",
            "On Kaggle choose the accelerator T4 x2.",
        )

    monkeypatch.setattr(device, "choose_device", refuse)
    found = finding("precision")
    assert (found["state"], "P100" in found["found"], "T4" in found["next"]) == (
        "broken",
        True,
        True,
    )
    assert kit_doctor().exit_code == 1


@pytest.mark.parametrize(("free", "state"), [(10**9, "broken"), (10**10, "note"), (10**12, "ok")])
def test_too_little_disk_space_is_broken(free: int, state: str, monkeypatch: pytest.MonkeyPatch):
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert finding("disk")["state"] == state


class TestMemory:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        (tmp_path / "proc").mkdir()
        (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
        (tmp_path / "proc/meminfo").write_text(
            "MemTotal:  16000 kB\nMemAvailable:  8000 kB\nHugePages_Total:  0\n"
        )
        return tmp_path

    @pytest.mark.parametrize(
        ("limit", "used", "expected"),
        [
            (None, None, (16000 * 1024, 8000 * 1024)),
            ("max", "5", (16000 * 1024, 8000 * 1024)),
            ("4096", "1000", (4096, 3096)),
            (str(10**15), "0", (16000 * 1024, 8000 * 1024)),
        ],
    )
    def test_a_containers_limit_counts(
        self, root: Path, limit: str | None, used: str, expected: tuple[int, int]
    ):
        if limit:
            (root / "sys/fs/cgroup/memory.max").write_text(limit + "\n")
            (root / "sys/fs/cgroup/memory.current").write_text(used + "\n")

        memory = read_memory(root)
        assert (memory.total, memory.free) == expected

    def test_files_that_are_only_kept_in_memory_are_free(self, root: Path):
        group = root / "sys/fs/cgroup"
        for name, text in {
            "memory.max": "4096",
            "memory.current": "4000",
            "memory.stat": "anon 900\nactive_file 100\ninactive_file 3000",
        }.items():
            (group / name).write_text(text + "\n")
        assert read_memory(root).free == 3096

    @pytest.mark.parametrize(
        ("line", "top", "limit", "used"),
        [
            ("0::/batch/job7", "", "memory.max", "memory.current"),
            (
                "9:name=systemd:/\n4:cpu,memory:/batch/job7\n0::/",
                "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            ),
        ],
    )
    @pytest.mark.parametrize("limited", ["batch/job7", "batch", ""])
    def test_a_batch_systems_limit_counts(
        self, root: Path, line: str, top: str, limit: str, used: str, limited: str
    ):
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(line + "\n")
        mount = root / "sys/fs/cgroup" / top
        inside, other = mount / limited, mount / "batch/job8"
        for folder, size in ((inside, 5000), (other, 1)):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / limit).write_text(f"{size}\n")
            (folder / used).write_text("200\n")
        memory = read_memory(root)
        assert (memory.total, memory.free) == (5000, 4800)

    def test_without_proc_posix_gives_the_total(self, tmp_path: Path):
        memory = read_memory(tmp_path)
        assert memory.total > 2**28
        assert memory.free is None

    @pytest.mark.parametrize(
        ("free", "state"), [(5 * 10**8, "broken"), (2 * 10**9, "note"), (10**10, "ok")]
    )
    def test_too_little_memory_is_broken(
        self, free: int, state: str, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(doctor, "read_memory", lambda: Memory(10**10, free))
        assert finding("memory")["state"] == state

    def test_unknown_memory_is_not_a_failure(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(doctor, "read_memory", lambda: Memory(None, None))
        assert finding("memory")["state"] == "note"


class TestData:
    def test_files_and_rows_are_counted(self, raw: Path, data: Path):
        rows = {
            name: pq.read_metadata(data / f"{name}.parquet").num_rows for name in ("train", "test")
        }
        counted = f"{rows['train']} training and {rows['test']} test rows"
        assert counted in finding("processed data", "--data", data)["found"]

        found = finding("raw data", "--raw", raw)
        assert found["state"] == "ok"
        assert "kit's own sample" in found["found"]
        assert "test.csv" in found["found"]

    def test_missing_files_are_named(self, raw: Path, empty_folder: Path):
        (empty_folder / "some").mkdir()
        shutil.copy(raw / "test.csv", empty_folder / "some")
        found = finding("raw data", "--raw", "some")
        assert (found["state"], found["found"]) == (
            "note",
            "some has no train.csv, sample_submission.csv",
        )
        assert (
            finding("processed data")["next"] == "Run `kit preprocess --out data/processed` first."
        )

    def test_processed_rows_that_were_changed_are_broken(self, data: Path, empty_folder: Path):
        shutil.copytree(data, empty_folder / "copy")

        with (empty_folder / "copy/test.parquet").open("ab") as file:
            file.write(b"x")

        assert kit_doctor("--data", "copy").exit_code == 1
        assert "test.parquet" in finding("processed data", "--data", "copy")["found"]


class TestCredential:
    def test_the_credential_that_is_sent_is_named_and_so_are_the_others(
        self, monkeypatch: pytest.MonkeyPatch
    ):
        for name, value in {"API_TOKEN": "sec-token", "USERNAME": "me", "KEY": "sec-key"}.items():
            monkeypatch.setenv(f"KAGGLE_{name}", value)

        result = kit_doctor()
        assert "would use the access token from KAGGLE_API_TOKEN" in result.stdout
        assert "the legacy key from KAGGLE_KEY (user me) is not used" in result.stdout
        assert "sec-" not in result.output

    def test_an_unreadable_credential_file_is_explained(self, empty_folder: Path):
        (empty_folder / "home/.kaggle").mkdir(parents=True)
        (empty_folder / "home/.kaggle/kaggle.json").write_text("{")
        assert "is not JSON" in kit_doctor().stdout

    def test_without_a_credential_only_the_online_check_is_broken(self):
        assert finding("Kaggle credential")["state"] == "note"
        assert finding("Kaggle credential", "--online")["state"] == "broken"
        assert kit_doctor("--online").exit_code == 1


@pytest.mark.parametrize(
    ("package", "part", "message"),
    [
        ("torch", "device", "torch does not work: not\n here"),
        ("pyarrow", "processed data", "cannot be read: not"),
        ("packaging", "packages", "versions cannot be compared: not"),
    ],
)
def test_a_broken_package_is_a_finding_without_a_traceback(
    tmp_path: Path, package: str, part: str, message: str
):
    (tmp_path / f"{package}.py").write_text("raise ImportError('not\\n  here')")

    command = [sys.executable, "-c", "from kit.cli.main import main; main(['doctor'])"]
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)

    assert done.returncode == 1, done.stderr
    assert " ".join(message.split()) in done.stdout
    assert part in done.stdout.splitlines()[-1]
    assert done.stderr == ""


def run_without_home(tmp_path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run kit as a user whom the system does not know, without HOME, as containers do."""
    (tmp_path / "sitecustomize.py").write_text(
        "import pwd\n"
        "def unknown(_):\n"
        "    raise KeyError('getpwuid(): uid not found')\n"
        "pwd.getpwuid = unknown\n"
    )
    return subprocess.run(
        [sys.executable, "-m", "kit", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
    )


def test_a_user_without_a_home_is_examined(tmp_path: Path):
    done = run_without_home(tmp_path, "doctor")
    assert done.stdout.endswith("Nothing is broken\n"), done.stderr
    assert "Kaggle credential" in done.stdout


def test_a_user_without_a_home_gets_one_message_from_kaggles_commands(tmp_path: Path):
    done = run_without_home(tmp_path, "download")
    assert done.returncode == 1
    assert "no Kaggle credential" in done.stderr or "KAGGLE_API_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_certificate_bundle_hides_no_finding(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "a-token")
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, "/no/such/bundle.pem")
    result = kit_doctor("--online", "--all")
    assert result.exit_code == 1, result.output
    assert "torch" in result.stdout
    assert "/no/such/bundle.pem" in finding("Kaggle", "--online")["found"]
    assert "REQUESTS_CA_BUNDLE" in finding("Kaggle", "--online")["next"]


def test_a_check_that_fails_in_an_unknown_way_hides_no_finding(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise RuntimeError("a machine that nobody thought of")

    for name in ("check_memory", "check_disk", "check_raw_files", "check_credential"):
        monkeypatch.setattr(doctor, name, fail)
    result = kit_doctor()
    assert result.exit_code == 1
    assert "a machine that nobody thought of" in finding("disk")["found"]
    assert "Broken: memory, disk, raw data, Kaggle credential" in result.stdout
