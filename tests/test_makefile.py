"""Check that `make help` lists every target, and that targets run the right kit commands."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from kit.cli.main import main

ROOT = Path(__file__).parent.parent
TARGETS = (
    *("setup", "demo", "test", "test-kaggle", "soak", "check", "download", "preprocess", "train"),
    *("predict", "ensemble", "validate", "score", "report", "kernel", "kernel-status", "submit"),
    *("bench", "bench-gpu", "lock", "clean"),
)


def make(*arguments: str) -> subprocess.CompletedProcess:
    # Without the variables of the make that may be running these tests.
    env = {"PATH": os.environ["PATH"]}
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, env=env)


def planned_command(*arguments: str) -> list[str]:
    """Return the words of the kit command that a target would run."""
    done = make("-n", "--assume-old=.venv/installed", *arguments)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout.splitlines()[-1].removeprefix(".venv/bin/"))


def test_help_lists_every_target_in_order():
    listed = [line.split()[1] for line in make("help").stdout.splitlines()]
    assert [name for name in listed if name in TARGETS] == list(TARGETS)


def test_the_gpu_benchmarks_all_run_on_one_gpu_although_a_target_is_missed(tmp_path: Path):
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    log = tmp_path / "log"
    python.write_text(f'#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES $1" >> {log}\nexit 1\n')
    python.chmod(0o755)
    installed = f"--assume-old={tmp_path}/installed"
    (tmp_path / "installed").touch()
    for visible in ("", "CUDA_VISIBLE_DEVICES=3,1"):
        done = make("bench-gpu", f"VENV={tmp_path}", installed, *filter(None, [visible]))
        assert done.returncode != 0
        assert "a target is missed" in done.stdout
    scripts = ["benchmarks/attention.py", "benchmarks/peers.py"]
    expected = [f"{gpu} {script}" for gpu in (0, 3) for script in scripts]
    assert log.read_text().splitlines() == expected


def test_images_of_kaggle_whose_python_is_missing_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    python = tmp_path / "python3.12"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    # In a copy, since the environments may exist in this folder.
    for name in ("Makefile", "pyproject.toml", "constraints-kaggle-3.12.txt"):
        shutil.copy(ROOT / name, tmp_path)
    done = make("-C", str(tmp_path), "-n", "test-kaggle", "IMAGES=2.9 3.12", "WORKERS=1")
    assert done.returncode == 0, done.stderr
    assert "skipped: there is no python2.9 here" in done.stdout
    environment = ".venv-kaggle-3.12/bin/python -m"
    assert f"{environment} pip install --quiet -c constraints-kaggle-3.12.txt" in done.stdout
    assert f"{environment} pytest -n 1" in done.stdout

    done = make("-C", str(tmp_path), "test-kaggle", "IMAGES=2.9")
    assert done.returncode != 0
    assert "nothing was tested" in done.stdout


def test_the_makefile_has_the_constraints_of_each_image():
    listed = re.search(r"^IMAGES +\?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert listed is not None
    found = {path.stem for path in ROOT.glob("constraints-kaggle-*.txt")}
    assert found == {f"constraints-kaggle-{image}" for image in listed[1].split()}


@pytest.mark.parametrize(("capability", "name"), [((7, 5), "fp16"), ((8, 0), "bf16")])
def test_a_gpu_that_emulates_bf16_is_measured_in_fp16(
    capability: tuple[int, int], name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    attention, peers = (importlib.import_module(each) for each in ("attention", "peers"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}[name]
    assert attention.precisions("cuda") == (torch.float32, half)
    assert peers.choose_half("cuda") == name
    assert attention.precisions("cpu") == (torch.float32, torch.bfloat16)
    assert peers.choose_half("cpu") == "bf16"


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["download"], "kit download --out data/raw"),
        (["download", "RAW=other"], "kit download --out other"),
        (["train", "FOLD=all"], "kit train --backbone deberta --fold all --data data/processed"),
        (
            ["kernel", "BACKBONE=roberta", "GPU=t4"],
            "kit kernels push train --backbone roberta --gpu t4",
        ),
        (
            ["kernel", "FOLD=0", "ARGS=--dry-run"],
            "kit kernels push train --backbone deberta --gpu t4 --fold 0 --dry-run",
        ),
        (["kernel-status"], "kit kernels status"),
        (["kernel-status", "KERNEL=me/kit-infer"], "kit kernels status me/kit-infer"),
    ],
)
def test_a_target_runs_a_kit_command_with_the_variables(arguments: list[str], command: str):
    assert planned_command(*arguments) == command.split()


def test_a_message_with_spaces_and_quotes_stays_one_argument():
    message = 'it\'s "two" encoders; mean'
    expected = ["kit", "submit", "--kernel", "kit-infer", "-m", message, "--wait"]
    assert planned_command("submit", f"MSG={message}") == expected


def test_a_submission_without_a_message_is_refused():
    done = make("-n", "submit")
    assert done.returncode == 2
    assert 'make submit MSG="' in done.stderr


def test_every_kit_command_in_the_makefile_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"^\t\$\(KIT\) ([a-z-]+)", makefile, re.MULTILINE)

    assert len(commands) > 8
    assert set(commands) <= set(main.commands)
