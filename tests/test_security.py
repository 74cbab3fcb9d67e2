"""Check that kit runs no code from data, writes inside its folders, and prints no control codes."""

import ast
import pickle
import stat
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from kit.cli.main import main
from kit.errors import BackboneError
from kit.kaggle.download import unpack_download
from kit.model.backbones import local_backbone
from kit.model.encoder import build_encoder, load_encoder
from kit.model.registry import BACKBONES
from kit.storage.atomic import atomic_file, atomic_folder

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "kit").rglob("*.py"))
BANNED = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen"),
    *("yaml.load", "torch.save", "tempfile.mktemp", "shutil.unpack_archive"),
}


def dotted_name(node: ast.expr) -> str:
    """Return "a.b.c" for the function of a call."""
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls_in(module: Path) -> list[ast.Call]:
    tree = ast.parse(module.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_call_runs_code_from_data_or_through_a_shell(module: Path):
    for call in calls_in(module):
        name = dotted_name(call.func)
        where = f"{module.name}:{call.lineno}: {name}"
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        constants = {
            key: value.value for key, value in keywords.items() if isinstance(value, ast.Constant)
        }

        assert name not in BANNED, where
        # A notebook unpacks kit's own wheel, which it carries in its source.
        own_wheel = module.name == "start.py"
        assert own_wheel or not name.endswith((".extractall", ".extract")), where

        assert name != "torch.load" or constants.get("weights_only") is True, where
        if "trust_remote_code" in keywords:
            assert constants.get("trust_remote_code") is False, where
        assert not constants.get("shell"), where
        assert not constants.get("allow_pickle"), where
        assert constants.get("verify", True) is not False, where
        if name.startswith("subprocess."):
            assert not isinstance(call.args[0], ast.Constant | ast.JoinedStr), (
                f"{where}: use a list of words, not one string"
            )


class Trap:
    """Create a file when unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_a_pickle_in_a_backbone_folder_is_not_loaded(tmp_path: Path):
    folder = tmp_path / "backbone"
    created = tmp_path / "created"
    build_encoder(BACKBONES["tiny-electra"].config).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(created)))

    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_encoder(local_backbone(folder))
    assert not created.exists()


@pytest.mark.parametrize(
    "name", ["../out.csv", "/out.csv", "a/../../out.csv", "..\\out.csv", "C:out.csv"]
)
def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path, name: str):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as bundle:
        bundle.writestr(name, "x")

    with pytest.raises(zipfile.BadZipFile, match="leads out of the folder"):
        unpack_download(archive, tmp_path / "in", {name: 1})
    assert sorted(path.name for path in tmp_path.rglob("*")) in (["x.zip"], ["in", "x.zip"])


@pytest.mark.parametrize(
    "command", [["validate"], ["score", "--truth", "{}"], ["ensemble", "-o", "out.csv"]]
)
def test_control_characters_of_a_file_do_not_reach_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
):
    monkeypatch.chdir(tmp_path)
    name = "\x1b]0;owned\x07.csv"
    header = "id,winner_model_a,winner_model_b,\x1b[2Jwinner_tie\x07\u202e"
    Path(name).write_text(f"{header}\n1,\x1b[31m0.5,\x9b31m,0\n", encoding="utf-8")

    options = [name if word == "{}" else word for word in command[1:]]
    result = CliRunner().invoke(main, [command[0], name, *options])
    assert result.exit_code == 1
    assert not [c for c in result.output if not c.isprintable() and c != "\n"]


def test_temporary_files_are_readable_by_their_owner_only(tmp_path: Path):
    with atomic_file(tmp_path / "x.csv") as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
    with atomic_folder(tmp_path / "x") as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o700
