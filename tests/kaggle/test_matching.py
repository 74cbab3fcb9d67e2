"""A saved blend finds its runs among the sources by name; what does not fit is refused before a push."""

import json
from pathlib import Path

import pytest
from captured import Heard
from fake_kaggle import OWNER, FakeKaggle
from test_fan_out import RECIPE, output

from kit.ensemble.blend import Blend, parse_blend, read_blend, write_blend
from kit.ensemble.calibration import Calibration
from kit.errors import KitError
from kit.kaggle import errors, notebook
from kit.kaggle.client import Client
from kit.kaggle.job import Source, infer_job
from kit.kaggle.matching import match_sources
from kit.kaggle.sources import identified_source, named_source
from kit.recipe.load import load_recipe

OTHER = load_recipe("tiny-roberta")
BLEND = Blend(
    ("roberta-2", "deberta-1", "electra-3"), (0.7, 0.3, 0.0), "geometric", Calibration(0.9)
)


def source(ref: str, *runs: str) -> Source:
    return Source(f"me/{ref}", runs=runs)


def test_members_find_their_sources_by_name_and_folds_share_a_weight() -> None:
    found = match_sources(
        BLEND, [source("a", "deberta-1"), source("b", "roberta-2"), source("c", "deberta-1")]
    )
    assert [(s.ref, s.weight) for s in found] == [("me/a", 0.15), ("me/b", 0.7), ("me/c", 0.15)]


def test_a_dropped_run_is_not_mounted(heard: Heard) -> None:
    named = [source("a", "deberta-1"), source("b", "roberta-2"), source("c", "electra-3")]
    assert [s.ref for s in match_sources(BLEND, named, say=heard.lines.append)] == ["me/a", "me/b"]
    assert "me/c is not mounted" in heard.text


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ([source("a", "deberta-1")], "needs roberta-2, which no source holds"),
        (
            [source("a", "deberta-1"), source("b", "roberta-2"), source("c", "xlm-4")],
            r"does not know me/c \(xlm-4\)",
        ),
    ],
)
def test_a_member_without_a_run_or_a_run_without_a_member_is_refused(
    named: list[Source], told: str
) -> None:
    with pytest.raises(KitError, match=told):
        match_sources(BLEND, named)


def test_a_baseline_in_the_blend_is_refused_with_the_reason() -> None:
    blend = Blend(("roberta-2", "baseline-tfidf"), (0.7, 0.3), "arithmetic")
    with pytest.raises(KitError, match="baseline keeps no model"):
        match_sources(blend, [source("b", "roberta-2")])


def test_what_a_source_holds_may_be_unknown_until_the_push(heard: Heard) -> None:
    named = [source("a", "deberta-1"), source("b")]
    assert [s.ref for s in match_sources(BLEND, named, say=heard.lines.append)] == ["me/a", "me/b"]
    assert "me/b: which runs it holds is compared" in heard.text


def test_the_job_carries_the_blend_as_it_was_saved(tmp_path: Path) -> None:
    write_blend(BLEND, tmp_path / "blend.json", {})
    found = match_sources(
        read_blend(tmp_path / "blend.json"), [source("a", "deberta-1"), source("b", "roberta-2")]
    )
    job = infer_job(found, blend=read_blend(tmp_path / "blend.json"))
    carried = notebook.job_of(notebook.build_notebook("infer", job.session() | {"push": "a" * 32}))
    assert carried["method"] == "blend"
    assert parse_blend("job", carried["blend"]) == BLEND
    assert carried["sources"][0] == {
        "ref": "me/a",
        "weight": 0.3,
        "kind": "kernel",
        "runs": ["deberta-1"],
    }


class TestOnKaggle:
    @pytest.fixture(autouse=True)
    def trained(self, fake: FakeKaggle) -> None:
        """Two training kernels with the run of another recipe each, and one that left nothing of use."""
        fake.kernel_script = ["COMPLETE"]
        for slug, files in (
            ("kit-train-a", output(RECIPE, "0")),
            ("kit-train-b", output(OTHER, "0")),
            ("kit-other", {"notes.txt": b"x"}),
        ):
            fake.kernel_files = files
            fake.save_kernel({"slug": f"{OWNER}/{slug}", "text": ""})

    def test_a_kernels_runs_are_those_in_its_output(self, client: Client) -> None:
        named = named_source(["kit-train-a", "kit-train-b"], OWNER)
        assert [s.runs for s in identified_source(client, named)] == [
            (RECIPE.run_name,),
            (OTHER.run_name,),
        ]

    def test_a_kernel_without_a_run_is_refused(self, client: Client) -> None:
        with pytest.raises(errors.RefusedError, match="holds no run directory"):
            identified_source(client, named_source(["kit-other"], OWNER))

    def test_an_unfinished_kernel_is_refused(self, client: Client, fake: FakeKaggle) -> None:
        fake.kernel_script = ["RUNNING"]
        fake.save_kernel({"slug": f"{OWNER}/kit-train-c", "text": ""})
        with pytest.raises(errors.RefusedError, match="is RUNNING"):
            identified_source(client, named_source(["kit-train-c"], OWNER))


def test_a_run_of_this_machine_is_named_by_its_folder(tmp_path: Path) -> None:
    run = tmp_path / "runs/tiny-0a1b2c3d"
    files = {"recipe.toml": "", "origin.json": json.dumps({"folds": 3}), "fold0/metrics.json": "{}"}
    for name, text in files.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)
    (found,) = named_source([run], "me", as_dataset=True)
    assert found.runs == ("tiny-0a1b2c3d",)
