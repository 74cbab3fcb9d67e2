"""Check the trials of a sweep: their runs, pruning, interruption, time, and points that fail."""

import math
from pathlib import Path

import pytest
from fake_training import EVALUATIONS, RECIPE, Fake, MakeSweep

from kit.errors import CollapseError, DataError, HeldError, KitError, RecipeError
from kit.recipe.load import load_recipe
from kit.recipe.spec import Recipe
from kit.run import Run
from kit.storage.lock import hold_lock
from kit.sweeps import run as sweeps_run
from kit.sweeps import study as sweeps_study
from kit.sweeps.ranking import RankedPoint, rank_points
from kit.sweeps.run import run_sweep
from kit.sweeps.space import parse_keys
from kit.sweeps.study import SweepStudy, SweepTrial
from kit.sweeps.sweep import Sweep
from kit.task import HOLDOUT
from kit.tracking.listing import list_runs


def distance(recipe: Recipe) -> float:
    """Return a loss that is lowest at a rate of 1e-3 and with the symmetric head, a bit by seed."""
    spec = recipe.train
    loss = 0.9 + 0.1 * abs(math.log10(spec.lr) + 3) + 0.05 * (recipe.model.head == "fusion")
    return loss + 0.001 * spec.seed


def describe(sweep: Sweep) -> list[SweepTrial]:
    return SweepStudy(sweep).trials()


def test_each_trial_is_a_run_for_each_seed_as_train_would_make_it(
    make_sweep: MakeSweep, fake: Fake, data: Path, tmp_path: Path
):
    sweep = make_sweep()
    training = fake(distance)
    run_sweep(sweep, data, tmp_path / "runs", trials=3)

    trials = describe(sweep)
    assert [trial.state for trial in trials] == ["finished"] * 3
    expected = []
    for trial in trials:
        lr, head = trial.point["train.lr"], trial.point["model.head"]
        for seed in range(2):
            options = (f"model.head={head}", f"train.lr={lr!r}", f"train.seed={seed}")
            expected.append(load_recipe("tiny-electra", (*RECIPE, *options)))
    assert training.trained == expected
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {r.run_name for r in expected}


def test_two_sweeps_of_one_definition_draw_the_same_points(
    make_sweep: MakeSweep,
    fake: Fake,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    # The first two at random, the others from what was learned.
    monkeypatch.setattr(sweeps_study, "RANDOM_POINTS", 2)
    fake(distance)
    first, second = (make_sweep(name, seeds=1, prune=False) for name in ("one", "two"))
    for sweep in (first, second):
        run_sweep(sweep, data, tmp_path / "runs", trials=4)
    assert [t.point for t in describe(first)] == [t.point for t in describe(second)]
    assert len({str(t.point) for t in describe(first)}) == 4

    other = make_sweep(seeds=1, sampler_seed=1)
    run_sweep(other, data, tmp_path / "runs", trials=1)
    assert describe(other)[0].point != describe(first)[0].point


@pytest.mark.parametrize("stop", [2, 3])
def test_an_interrupted_sweep_goes_on_as_if_it_had_not_been(
    stop: int, make_sweep: MakeSweep, fake: Fake, data: Path, tmp_path: Path
):
    whole, cut = make_sweep("whole"), make_sweep("cut")
    fake(distance)
    run_sweep(whole, data, tmp_path / "runs", trials=2)

    trained: list[Recipe] = []

    def interrupted(recipe: Recipe) -> float:
        trained.append(recipe)
        if len(trained) == stop:
            raise KeyboardInterrupt
        return distance(recipe)

    fake(interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(cut, data, tmp_path / "cut-runs", trials=2)
    states = [trial.state for trial in describe(cut)]
    assert states == ["finished"] * ((stop - 1) // 2) + ["unfinished"]

    training = fake(distance)
    run_sweep(cut, data, tmp_path / "cut-runs", trials=2)
    assert len(training.trained) == 5 - stop
    for before, after in zip(describe(whole), describe(cut), strict=True):
        assert (before.point, before.losses) == (after.point, after.losses)
        assert before.reported == after.reported

    # Once more, there is nothing left to do.
    run_sweep(cut, data, tmp_path / "cut-runs", trials=2)
    assert len(training.trained) == 5 - stop


def test_a_process_that_is_killed_between_two_keys_leaves_a_trial_that_goes_on(
    make_sweep: MakeSweep, fake: Fake, data: Path, tmp_path: Path
):
    whole, cut = make_sweep("whole"), make_sweep("cut")
    fake(distance)
    run_sweep(whole, data, tmp_path, trials=1)

    study = SweepStudy(cut)
    first = cut.definition.keys[0]
    study.study.ask()
    assert describe(cut)[0].point == {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "keys", (first,))
        study.recover()
    assert [*describe(cut)[0].point] == [first.name]
    assert rank_points(cut, tmp_path)[0].state == "unfinished"

    run_sweep(cut, data, tmp_path, trials=1)
    assert [t.point for t in describe(cut)] == [t.point for t in describe(whole)]


def test_more_trials_are_added_to_those_there_are(
    make_sweep: MakeSweep, fake: Fake, data: Path, tmp_path: Path
):
    sweep = make_sweep(seeds=1)
    training = fake(distance)
    run_sweep(sweep, data, tmp_path, trials=2)
    run_sweep(sweep, data, tmp_path, trials=3)
    assert len(training.trained) == 3


def test_a_run_that_is_there_already_is_used_and_said_so(
    make_sweep: MakeSweep, fake: Fake, data: Path, tmp_path: Path
):
    fake(distance)
    run_sweep(make_sweep("one"), data, tmp_path / "runs", trials=2)
    training = fake(distance)
    said: list[str] = []
    second = make_sweep("two")
    run_sweep(second, data, tmp_path / "runs", trials=2, say=said.append)
    assert training.trained == []
    assert sum("is already finished" in line for line in said) == 4

    # Its evaluations count for pruning all the same.
    assert [*describe(second)[0].reported][:EVALUATIONS] == [*range(1, EVALUATIONS + 1)]


class TestPruning:
    """Points that are worse than the median of those before them."""

    @pytest.fixture(autouse=True)
    def early(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sweeps_study, "FINISHED_BEFORE_PRUNING", 2)

    @staticmethod
    def worse_from_the_third(losses: dict[str, float]) -> float:
        return 0.9 if len(losses) <= 2 else 1.05

    def test_a_bad_point_ends_at_an_evaluation_and_its_run_reads_pruned(
        self, make_sweep: MakeSweep, fake: Fake, data: Path, tmp_path: Path
    ):
        points: dict[str, float] = {}

        def loss(recipe: Recipe) -> float:
            name = f"{recipe.train.lr} {recipe.model.head}"
            return points.setdefault(name, self.worse_from_the_third({**points, name: 0}))

        training = fake(loss)
        sweep = make_sweep()
        said: list[str] = []
        run_sweep(sweep, data, tmp_path, trials=3, say=said.append)

        assert [trial.state for trial in describe(sweep)] == ["finished", "finished", "pruned"]
        # At the second evaluation of its first seed, and no second seed is trained.
        assert training.evaluations == 4 * EVALUATIONS + 2
        assert any("trial 2: pruned, log loss 1.0833 at evaluation 2" in line for line in said)

        pruned = Run(tmp_path / training.trained[-1].run_name)
        states = {line.name: line.state for line in list_runs(tmp_path)}
        assert states.pop(pruned.name) == "pruned"
        assert set(states.values()) == {"finished"}
        assert not pruned.fold(HOLDOUT).path.exists()

    def test_a_point_that_is_bad_with_other_seeds_ends_before_the_last_one(
        self, make_sweep: MakeSweep, fake: Fake, data: Path, tmp_path: Path
    ):
        points: list[float] = []

        def loss(recipe: Recipe) -> float:
            points.append(recipe.train.lr)
            worse = len(set(points)) == 3
            return 0.9 + 0.2 * worse * recipe.train.seed

        fake(loss)
        sweep = make_sweep(seeds=3)
        run_sweep(sweep, data, tmp_path, trials=3)
        last = describe(sweep)[2]
        assert last.state == "pruned"
        assert last.why == (
            "mean log loss 1.0000 after 2 of 3 seeds, worse than the median of the points before it"
        )
        assert [len(p.losses) for p in rank_points(sweep, tmp_path)] == [3, 3, 0]

    def test_nothing_is_pruned_where_it_is_switched_off(
        self, make_sweep: MakeSweep, fake: Fake, data: Path, tmp_path: Path
    ):
        losses = iter([0.9, 0.9, 1.0, 1.1])
        fake(lambda _: next(losses))
        sweep = make_sweep(seeds=1, prune=False)
        run_sweep(sweep, data, tmp_path, trials=4)
        assert {trial.state for trial in describe(sweep)} == {"finished"}

    def test_a_pruned_point_that_is_drawn_again_is_not_trained_again(
        self, make_sweep: MakeSweep, fake: Fake, data: Path, tmp_path: Path
    ):
        losses = iter([0.9, 0.9, 1.1])
        training = fake(lambda _: next(losses))
        sweep = make_sweep(seeds=1)
        run_sweep(sweep, data, tmp_path, trials=3)
        study = SweepStudy(sweep)
        study.begin(describe(sweep)[2].point)
        run_sweep(sweep, data, tmp_path, trials=4)
        assert len(training.trained) == 3
        assert describe(sweep)[3].why == "the same point as trial 2"


class TestTime:
    """The option --hours."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """Return the time in seconds, which only the test moves on."""
        now = [0.0]
        monkeypatch.setattr(sweeps_run.time, "monotonic", lambda: now[0])
        return now

    def test_a_point_that_would_not_end_in_time_is_not_begun(
        self, clock: list[float], make_sweep: MakeSweep, fake: Fake, data: Path, tmp_path: Path
    ):
        def half_an_hour(recipe: Recipe) -> float:
            clock[0] += 1800
            return distance(recipe)

        sweep = make_sweep(seeds=1)
        fake(half_an_hour)
        said: list[str] = []
        run_sweep(sweep, data, tmp_path, max_hours=1.9, say=said.append)
        assert [trial.state for trial in describe(sweep)] == ["finished"] * 3
        assert said[-1].startswith("time limit reached. Run the same command again")

        # It goes on from there, with the time that points have taken so far.
        run_sweep(sweep, data, tmp_path, max_hours=0.4)
        assert len(describe(sweep)) == 3
        run_sweep(sweep, data, tmp_path, max_hours=0.6)
        assert len(describe(sweep)) == 4

        # With nothing left to do, no limit is reached.
        said.clear()
        run_sweep(sweep, data, tmp_path, trials=4, max_hours=0.1, say=said.append)
        assert said == []

    def test_a_training_ends_at_the_limit_and_is_continued(
        self, clock: list[float], make_sweep: MakeSweep, fake: Fake, data: Path, tmp_path: Path
    ):
        def two_hours(recipe: Recipe) -> float:
            clock[0] += 7200
            return distance(recipe)

        sweep = make_sweep(seeds=1)
        fake(two_hours)
        run_sweep(sweep, data, tmp_path, max_hours=1)
        (trial,) = describe(sweep)
        assert (trial.state, trial.seconds) == ("unfinished", 7200)
        (line,) = list_runs(tmp_path)
        assert line.state == "stopped in holdout"

        fake(distance)
        run_sweep(sweep, data, tmp_path, trials=1)
        assert describe(sweep)[0].state == "finished"


class TestFailures:
    """Points that cannot be trained, and sweeps that cannot go on."""

    def test_a_collapse_ends_its_point_and_frees_the_disk(
        self, make_sweep: MakeSweep, fake: Fake, data: Path, tmp_path: Path
    ):
        def loss(recipe: Recipe) -> float:
            if len(training.trained) == 1:
                raise CollapseError("the training learned nothing")
            return distance(recipe)

        training = fake(loss)
        sweep = make_sweep(seeds=1)
        run_sweep(sweep, data, tmp_path, trials=2)
        first, second = describe(sweep)
        assert (first.state, second.state) == ("collapsed", "finished")
        assert first.why == "the training learned nothing"
        states = {line.name: line.state for line in list_runs(tmp_path)}
        assert states[training.trained[0].run_name] == "collapsed"

    def test_values_that_cannot_be_combined_fail_and_the_others_go_on(
        self, make_sweep: MakeSweep, fake: Fake, data: Path, tmp_path: Path
    ):
        training = fake(distance)
        keys = parse_keys(["train.swap_augmentation=true,false", "model.head=symmetric,fusion"])
        sweep = make_sweep(seeds=1, keys=keys)
        run_sweep(sweep, data, tmp_path)

        # Of four points, those with the symmetric head are no recipe.
        assert len(training.trained) == 2
        ranked = rank_points(sweep, tmp_path)
        assert [point.state for point in ranked] == ["finished", "finished", "failed", "failed"]
        assert "no effect with the symmetric head" in ranked[-1].why

    def test_it_is_an_error_if_no_point_can_be_trained(
        self, make_sweep: MakeSweep, fake: Fake, data: Path, tmp_path: Path
    ):
        def refuse(_: Recipe) -> float:
            raise RecipeError("512 tokens are too many", "Use fewer.")

        fake(refuse)
        with pytest.raises(KitError, match="no point could be trained, of 2") as caught:
            run_sweep(make_sweep(), data, tmp_path, trials=2)
        assert "512 tokens are too many" in caught.value.problem

    def test_what_is_no_fault_of_the_point_stops_the_sweep_and_it_goes_on_later(
        self, make_sweep: MakeSweep, fake: Fake, data: Path, tmp_path: Path
    ):
        def refuse(_: Recipe) -> float:
            raise DataError("the rows are damaged", "Preprocess again.")

        sweep = make_sweep(seeds=1)
        fake(refuse)
        with pytest.raises(DataError):
            run_sweep(sweep, data, tmp_path, trials=2)
        fake(distance)
        run_sweep(sweep, data, tmp_path, trials=2)
        assert [trial.state for trial in describe(sweep)] == ["finished"] * 2

    def test_one_process_at_a_time(self, make_sweep: MakeSweep, data: Path, tmp_path: Path):
        sweep = make_sweep()
        with hold_lock(sweep.path), pytest.raises(HeldError):
            run_sweep(sweep, data, tmp_path)

    def test_torchrun_is_refused(
        self, make_sweep: MakeSweep, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(sweeps_run, "is_distributed", lambda: True)
        with pytest.raises(KitError, match="one process"):
            run_sweep(make_sweep(), data, tmp_path)

    def test_a_damaged_database_is_one_error(
        self, make_sweep: MakeSweep, data: Path, tmp_path: Path
    ):
        sweep = make_sweep()
        sweep.database.write_text("nonsense" * 1000)
        for use in (lambda: run_sweep(sweep, data, tmp_path), lambda: rank_points(sweep, tmp_path)):
            with pytest.raises(KitError, match=r"study\.db: .*not a database") as caught:
                use()
            assert "\n" not in caught.value.problem


def test_a_small_space_is_tried_as_a_whole(
    make_sweep: MakeSweep, fake: Fake, data: Path, tmp_path: Path
):
    keys = parse_keys(["train.patience=0..1", "model.head=symmetric,fusion"])
    sweep = make_sweep(seeds=1, keys=keys)
    training = fake(distance)
    run_sweep(sweep, data, tmp_path, trials=20)
    assert len(training.trained) == 4
    assert len({str(trial.point) for trial in describe(sweep)}) == 4


def test_points_are_ranked_by_their_mean_with_a_t_interval(
    make_sweep: MakeSweep, fake: Fake, data: Path, tmp_path: Path
):
    losses = iter([1.0, 1.1, 0.9, 0.8, 0.7, 1.2])
    fake(lambda _: next(losses))
    sweep = make_sweep(seeds=3, prune=False)
    run_sweep(sweep, data, tmp_path, trials=2)
    ranked: list[RankedPoint] = rank_points(sweep, tmp_path)
    assert [point.trial for point in ranked] == [1, 0]
    assert [point.mean for point in ranked] == pytest.approx([0.9, 1.0])
    assert SweepStudy(sweep).study.best_trial.number == 1

    # t(0.975) with two degrees of freedom is 4.303, and the standard deviation is 0.1.
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert (ranked[1].low, ranked[1].high) == pytest.approx((1 - half, 1 + half))

    # One seed has no interval.
    single = make_sweep(seeds=1)
    fake(distance)
    run_sweep(single, data, tmp_path, trials=1)
    assert rank_points(single, tmp_path)[0].low is None


def test_a_half_finished_point_says_how_many_seeds_it_has_and_comes_last(
    make_sweep: MakeSweep, fake: Fake, data: Path, tmp_path: Path
):
    def loss(recipe: Recipe) -> float:
        if len(training.trained) == 4:
            raise KeyboardInterrupt
        return distance(recipe)

    training = fake(loss)
    sweep = make_sweep()
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, data, tmp_path, trials=3)
    ranked = rank_points(sweep, tmp_path)
    assert [point.state for point in ranked] == ["finished", "1 of 2 seeds"]
    with hold_lock(sweep.path):
        assert rank_points(sweep, tmp_path)[1].state == "training"
