"""Check that files are accepted exactly when graders accept them, and all problems are listed."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.errors import DataError
from kit.evaluation.validate import is_gradable, validate_submission
from kit.predictions import make_predictions, write_predictions

HEADER = ["id", "winner_model_a", "winner_model_b", "winner_tie"]
GOOD = [
    ["11", "0.3", "0.2", "0.5"],
    ["12", "0.1", "0.3", "0.6"],
    ["13", "0.2", "0.2", "0.6"],
    ["14", "0.7", "0.2", "0.1"],
]
IDS = [11, 12, 13, 14]


def grader_accepts(path, ids):
    """Return whether a grader accepts the file, by the rule written without any of kit's code."""
    try:
        table = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError):
        return False
    if any(name not in table.columns for name in HEADER) or len(table) != len(ids):
        return False

    # Text among the numbers raises TypeError.
    try:
        values = table[HEADER[1:]]
        in_range = (values.ge(0) & values.le(1)).all(axis=None)
        if not in_range or not (values.sum(axis=1).round(6) == 1).all():
            return False
        return bool((table.sort_values("id")["id"].to_numpy() == np.sort(ids)).all())
    except TypeError:
        return False


def text_of(rows, header=HEADER, end="\n"):
    return end.join(",".join(cells) for cells in [header, *rows]) + end


@pytest.fixture
def check(tmp_path):
    """Return a function that writes rows, text or bytes to a file and validates it.

    The sample has the four good ids; the result is compared with the grading rule.
    """
    sample = tmp_path / "sample_submission.csv"
    sample.write_text(text_of([[str(i), "0.25", "0.25", "0.5"] for i in IDS]))

    def write_and_validate(content, sample=sample):
        text = content if isinstance(content, str | bytes) else text_of(content)
        path = tmp_path / "p.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        report = validate_submission(path, sample)
        if sample is not None:
            assert report.ok == grader_accepts(path, IDS)
        return report

    return write_and_validate


def by_kind(problems):
    return {problem.kind: problem for problem in problems}


def with_cell(row, column, cell):
    """Return the good rows with one cell replaced."""
    return [
        [cell if (r, c) == (row, column) else old for c, old in enumerate(cells)]
        for r, cells in enumerate(GOOD)
    ]


# fmt: off
CELLS = [
    "0.3", ".3", "0", "1", "-0", "-0.0", "1e-400", "5e-324", "1e400", "1e-3", "3e-1",
    "0.30000000000000004", "0.3000004", "0.3000006", "0.2999996", "0.2999994", "1.5", "-0.1",
    "nan", "NaN", "NA", "None", "null", "<NA>", "inf", "-inf", "Infinity", "0x1", "1_0", "0.3f",
    "3.", "+0.3", "--1", "0.3%", "True", "False", "abc", "$1", "1/3", "１", "'0.3'", "", " ",
    " 0.3", "0.3 ", "\t0.3", '"0.3"', '""', "0.3\x00", "\xa00.3", "0.3,", '"0,3"', "x" * 200,
]
IDENTIFIERS = [
    "11", "12", "15", "11.0", "11.5", "x11", "", "nan", "-11", "1e1", "011", " 11",
    "99999999999999999999",
]
# fmt: on


@st.composite
def mutated(draw):
    """Draw the text of a file, good but for a few mutations, and the ids it should hold."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 6))
    ids = generator.choice(10**6, count, replace=False)
    rows = [[str(i), *map(repr, generator.dirichlet([1, 1, 1]).tolist())] for i in ids]

    changes = st.sampled_from(["cell", "sum", "id", "drop", "repeat", "shuffle"])
    for change in draw(st.lists(changes, max_size=3)):
        row = rows[draw(st.integers(0, len(rows) - 1))]
        if change == "cell":
            row[draw(st.integers(1, 3))] = draw(st.sampled_from(CELLS))
        elif change == "sum":
            off = draw(st.sampled_from([0, 1e-9, 4e-7, -4e-7, 6e-7, -6e-7, 1e-2]))
            row[1:] = ["0.25", repr(0.25 + off), "0.5"]
        elif change == "id":
            row[0] = draw(st.sampled_from([*IDENTIFIERS, rows[0][0], row[0] + ".0", " " + row[0]]))
        elif change == "drop" and len(rows) > 1:
            rows.remove(row)
        elif change == "repeat":
            rows.append(list(row))
        elif change == "shuffle":
            rows = draw(st.permutations(rows))

    # Most headers are good, so that the other mutations are reached.
    tie = draw(st.sampled_from(["winner_tie"] * 6 + ["Winner_Tie", "winner_tie ", "x"]))
    names = [*HEADER[:3], tie, "note"]
    order = draw(st.one_of(st.just(range(4)), st.permutations(range(5))))
    lines = [[[*row, "hello"][i] for i in order] for row in rows]

    # Insert nothing, a blank line, a row too long or a row too short.
    position = draw(st.integers(0, len(lines)))
    lines[position:position] = draw(
        st.sampled_from([[]] * 4 + [[[]], [["  "]], [lines[0] + ["0.5"]], [lines[0][:2]]])
    )
    start = draw(st.sampled_from(["", "\ufeff", "\n"]))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    return start + text_of(lines, [names[i] for i in order], end), ids


@settings(deadline=None, max_examples=300)
@given(mutated())
def test_file_is_accepted_exactly_when_the_rule_accepts_it(tmp_path_factory, case):
    text, ids = case
    folder = tmp_path_factory.mktemp("validate")
    (folder / "p.csv").write_bytes(text.encode())
    (folder / "sample.csv").write_text("id\n" + "".join(f"{i}\n" for i in ids))
    report = validate_submission(folder / "p.csv", folder / "sample.csv")
    assert report.ok == grader_accepts(folder / "p.csv", ids), [
        str(problem) for problem in report.problems
    ]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("column", [1, 3])
def test_cells_are_judged_as_pandas_reads_them(check, cell, column):
    # The fixture compares the result with the grading rule.
    check(with_cell(1, column, cell))


@pytest.mark.parametrize("cell", IDENTIFIERS)
def test_ids_are_judged_as_pandas_reads_them(check, cell):
    # The fixture compares the result with the grading rule.
    check(with_cell(0, 0, cell))


@pytest.mark.parametrize(
    ("off", "taken"), [(4e-7, True), (-4e-7, True), (6e-7, False), (-6e-7, False)]
)
def test_sums_are_compared_to_six_places(check, off, taken):
    assert check(with_cell(0, 3, repr(0.5 + off))).ok is taken
    assert is_gradable(np.array([[0.3, 0.2, 0.5 + off]])).tolist() == [taken]


def test_good_file_has_an_empty_report_in_any_order_of_rows_and_columns(check):
    report = check(GOOD)
    assert (report.ok, report.rows, report.problems, report.warnings) == (True, 4, (), ())
    reordered = text_of([cells[::-1] for cells in GOOD[::-1]], HEADER[::-1])
    assert check(reordered).warnings == ()


def test_every_problem_is_reported_at_once_with_its_rows(check):
    rows = [
        ["11", "abc", "0.5", "0.5"],
        [],
        ["12", "0.9", "0.9", ""],
        ["12", "0.33", "0.33", "0.33"],
        ["x", "-1", "1", "1"],
        ["77", "inf", "0", "0"],
        ["14.5", "2", "0", "-1"],
    ]
    report = check(rows)
    problems = by_kind(report.problems)
    assert {kind: problem.rows for kind, problem in problems.items()} == {
        "not-a-number": (2,),
        "missing-value": (4,),
        "infinite": (7,),
        "out-of-range": (6, 8),
        "row-sum": (5,),
        "id": (6, 8),
        "repeated-id": (4, 5),
        "row-count": (),
        "missing-id": (),
        "unknown-id": (7,),
    }

    assert "'abc'" in problems["not-a-number"].message
    assert "the sum is not 1 to 6 places but 0.99" in problems["row-sum"].message
    assert "6 rows where sample_submission.csv has 4" in problems["row-count"].message
    assert "ids 13 and 14" in problems["missing-id"].message
    assert (problems["missing-id"].count, problems["unknown-id"].count) == (2, 1)
    assert str(problems["out-of-range"]).endswith("(rows 6 and 8)")
    assert json.loads(json.dumps(report.as_dict()))["ok"] is False


def test_long_list_of_rows_is_cut_and_counted(check):
    report = check([[str(i), "0.3", "0.3", "0.3"] for i in range(47)], None)
    (problem,) = report.problems
    assert (problem.rows, problem.count) == (tuple(range(2, 12)), 47)
    assert str(problem).endswith("rows 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 37 more)")


@pytest.mark.filterwarnings("error")
def test_bad_cell_at_the_end_of_a_full_sized_file_is_found(tmp_path):
    probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], 25_000)
    write_predictions(make_predictions(np.arange(25_000), probabilities), tmp_path / "p.csv")
    with (tmp_path / "p.csv").open("a") as file:
        file.write("25000,0.3,oops,0.4\n")
    report = validate_submission(tmp_path / "p.csv")
    assert {problem.kind: problem.rows for problem in report.problems} == {
        "not-a-number": (25_002,)
    }
    assert [warning.kind for warning in report.warnings] == ["no-sample"]


def test_rows_are_numbered_as_in_a_spreadsheet(check):
    text = "\n" + text_of(GOOD[:1]) + "  \n\n" + "12,x,0.3,0.6\n"
    assert by_kind(check(text).problems)["not-a-number"].rows == (6,)
    text = text_of([[*GOOD[0], '"two\nlines"'], ["12", "x", "0.3", "0.6", "y"]], [*HEADER, "note"])
    assert by_kind(check(text).problems)["not-a-number"].rows == (3,)


def test_missing_column_suggests_a_similar_name_and_checks_its_cells(check):
    problems = by_kind(check(text_of(with_cell(2, 3, "x"), [*HEADER[:3], " Winner Tie"])).problems)
    assert (
        problems["missing-column"].message
        == "no column winner_tie; ' Winner Tie' is not the same name"
    )
    assert problems["not-a-number"].rows == (4,)


def test_missing_header_is_distinguished_from_missing_columns(check):
    kinds = [problem.kind for problem in check(text_of(GOOD[1:], GOOD[0])).problems]
    assert kinds == ["no-header"] + ["missing-column"] * 4


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_delimiter_is_reported_and_the_cells_are_checked(check, separator):
    report = check(text_of(with_cell(1, 1, "x")).replace(",", separator))
    assert [problem.kind for problem in report.problems] == ["delimiter", "not-a-number"]
    assert repr(separator) in report.problems[0].message


def test_long_rows_are_listed_and_the_rest_is_checked(check):
    rows = with_cell(3, 1, "x")
    rows[1] = [*rows[1], "9"]
    rows[2] = [*rows[2], "9", "9"]
    problems = by_kind(check(rows).problems)
    assert {kind: problem.rows for kind, problem in problems.items()} == {
        "ragged": (3, 4),
        "not-a-number": (5,),
    }


def test_extra_cell_in_every_row_is_explained(check):
    trailing = check([[*cells, ""] for cells in GOOD])
    assert {"missing-value", "id"} <= set(by_kind(trailing.problems))
    assert "shifted" in by_kind(trailing.warnings)
    unnamed_row_labels = check([[str(n), *cells] for n, cells in enumerate(GOOD)])
    assert unnamed_row_labels.ok
    assert "shifted" in by_kind(unnamed_row_labels.warnings)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_line_ends_and_a_byte_order_mark_are_accepted(check, end):
    assert check("\ufeff" + text_of(GOOD, end=end)).ok


def test_text_that_is_not_utf_8_is_reported_by_row_and_the_rest_is_checked(check):
    problems = by_kind(check(text_of(GOOD).encode() + b"\xe9,0.3,0.3,0.3\n").problems)
    assert (problems["encoding"].rows, problems["row-sum"].rows) == ((6,), (6,))
    wide = check(text_of(with_cell(0, 1, "x")).encode("utf-16"))
    assert [problem.kind for problem in wide.problems] == ["encoding", "not-a-number"]
    assert "UTF-16" in wide.problems[0].message


@pytest.mark.parametrize(
    ("content", "kind"), [(b"", "empty"), (b" \n\n", "empty"), (text_of([]), "empty")]
)
def test_file_without_rows_is_reported(check, content, kind):
    report = check(content)
    assert (report.rows, [problem.kind for problem in report.problems]) == (0, [kind])


def test_unreadable_file_is_reported_with_the_reason(check, tmp_path):
    assert "No such file" in validate_submission(tmp_path / "absent.csv").problems[0].message
    assert "directory" in validate_submission(tmp_path).problems[0].message
    (problem,) = check(text_of(GOOD) + '15,"0.3,0.3,0.4\n').problems
    assert (problem.kind, "EOF inside string" in problem.message) == ("unreadable", True)
    assert not check(bytes(range(256)) * 9).ok


def test_messages_are_short_and_free_of_control_characters(check):
    odd = "\x1b[31m" + "z" * 300
    rows = with_cell(0, 1, odd)
    rows[1][0] = odd
    for report in (check(rows), check(text_of(GOOD, [*HEADER[:3], odd]))):
        for problem in report.problems + report.warnings:
            assert "\x1b" not in str(problem)
            assert len(str(problem)) < 200


def test_without_a_sample_everything_else_is_checked_with_a_warning(check):
    report = check(with_cell(0, 0, "999"), None)
    assert (report.ok, [warning.kind for warning in report.warnings]) == (True, ["no-sample"])
    assert set(by_kind(check(with_cell(0, 0, "12"), None).problems)) == {"repeated-id"}


def test_test_file_serves_as_a_sample_and_an_unusable_one_is_refused(check, tmp_path):
    test = tmp_path / "test.csv"
    test.write_text('id,prompt\n11,"[""a""]"\n12,b\n13,c\n14,d\n')
    assert check(GOOD, test).ok
    for text in ("prompt\nx\n", "id\nx\n", "id\n1\n1\n", "id\n"):
        test.write_text(text)
        with pytest.raises(DataError, match=r"test\.csv"):
            check(GOOD, test)


def test_constant_file_is_accepted_with_a_warning(check):
    report = check([[str(i), "0.349", "0.335", "0.316"] for i in IDS])
    assert (report.ok, [warning.kind for warning in report.warnings]) == (True, ["constant"])
    tie = check(
        [[str(i), repr(0.5 - n / 10), repr(0.2 + n / 10), "0.3"] for n, i in enumerate(IDS)]
    )
    assert "winner_tie" in by_kind(tie.warnings)["constant"].message


def test_three_identical_rows_are_a_warning_and_two_are_not(check):
    same = ["0.2", "0.25", "0.55"]
    three = check([["11", *same], GOOD[1], ["13", *same], ["14", *same]])
    assert {warning.kind: warning.rows for warning in three.warnings} == {"identical": (2, 4, 5)}
    two = check([["11", *same], GOOD[1], ["13", *same], GOOD[3]])
    assert two.warnings == ()


def test_probability_of_zero_is_accepted_with_its_cost_in_a_warning(check):
    report = check([*GOOD[:2], ["13", "0", "0", "1"], GOOD[3]])
    assert report.ok
    assert {warning.kind: warning.rows for warning in report.warnings} == {"certain": (4,)}
    assert "36.04" in report.warnings[0].message


def test_ignored_columns_are_named(check):
    report = check(text_of([[*cells, "x"] for cells in GOOD], [*HEADER, "note"]))
    assert report.ok
    assert "'note'" in by_kind(report.warnings)["extra-column"].message


def test_graders_accept_what_kit_writes(tmp_path):
    generator = np.random.default_rng(0)
    ids = generator.permutation(5000)
    probabilities = generator.dirichlet([0.05] * 3, 5000).astype(np.float32) + 1e-6
    write_predictions(make_predictions(ids, probabilities), tmp_path / "p.csv")

    report = validate_submission(tmp_path / "p.csv", tmp_path / "p.csv")
    assert report.problems == ()
    assert grader_accepts(tmp_path / "p.csv", ids)
