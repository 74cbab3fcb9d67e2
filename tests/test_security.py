"""Nobody gets in: no code from data, no path out of a folder, nothing for a terminal to obey, nothing left readable."""

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
from kit.model.backbones import BACKBONES, local_backbone
from kit.model.encoder import build_encoder, load_encoder
from kit.storage.atomic import atomic_file, atomic_folder

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "kit").rglob("*.py"))
BANNED = {
    *(
        "os.system",
        "os.popen",
        "yaml.load",
        "tempfile.mktemp",
        "shutil.unpack_archive",
        "torch.save",
    ),
    *("eval", "exec", "compile", "__import__"),
}


def name_of(node: ast.expr) -> str:
    """`a.b.c` of a call's function."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls(module: Path) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_call_runs_code_from_data_or_through_a_shell(module: Path):
    for call in calls(module):
        name, keywords = name_of(call.func), {each.arg: each.value for each in call.keywords}
        said = {
            key: value.value for key, value in keywords.items() if isinstance(value, ast.Constant)
        }
        where = f"{module.name}:{call.lineno}: {name}"
        assert name not in BANNED, where
        own = (
            module.name == "start.py"
        )  # a notebook unpacks kit's own wheel, which it carries in its source
        assert own or not name.endswith((".extractall", ".extract")), where
        assert name != "torch.load" or said.get("weights_only") is True, where
        assert "trust_remote_code" not in keywords or said.get("trust_remote_code") is False, where
        assert not said.get("shell"), where
        assert not said.get("allow_pickle"), where
        assert said.get("verify", True) is not False, where
        if name.startswith("subprocess."):
            assert not isinstance(call.args[0], ast.Constant | ast.JoinedStr), (
                f"{where}: a list, not a line"
            )


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, sign: Path):
        self.sign = sign

    def __reduce__(self) -> tuple:
        return Path.touch, (self.sign,)


def test_a_pickle_in_a_backbone_folder_is_refused_and_not_run(tmp_path: Path):
    folder, sign = tmp_path / "backbone", tmp_path / "sign"
    build_encoder(BACKBONES["tiny-electra"].config).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(sign)))
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_encoder(local_backbone(folder))
    assert not sign.exists()


@pytest.mark.parametrize(
    "name", ["../out.csv", "/out.csv", "a/../../out.csv", "..\\out.csv", "C:out.csv"]
)
def test_an_archive_does_not_escape_its_folder(tmp_path: Path, name: str):
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
    result = CliRunner().invoke(
        main, [command[0], name, *(name if each == "{}" else each for each in command[1:])]
    )
    assert result.exit_code == 1
    assert not [c for c in result.output if not c.isprintable() and c != "\n"]


def test_unfinished_work_is_private(tmp_path: Path):
    with atomic_file(tmp_path / "x.csv") as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
    with atomic_folder(tmp_path / "x") as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o700
