"""Check that `kit validate` and an independent reading of the rules accept the same submissions.

Where kit is stricter on purpose, the kind of problem is listed here.
"""

import random
from collections import Counter
from pathlib import Path

from grader import COLUMNS, grade

from kit.evaluation.validate import validate_submission

IDS = (136060, 211333, 1233961, 7, 4294967295)
STRICTER = {
    "ragged": "a row with too many or too few cells: pandas would shift or fill them",
    "no-header": "a first row of numbers",
}
NUMBERS = (
    *("0", "1", "0.0", "1.0", "-0.0", "0.333333", "0.3333334", "0.33333349"),
    *("1e-7", "1e-400", "1.0000001", "-1e-9"),
)
NOT_NUMBERS = (
    *("", " ", "nan", "NaN", "NA", "null", "None", "inf", "-inf", "Infinity", "1e999"),
    *("abc", "0,5", "0x1", "1_0"),
)
DOUBTFUL = (
    *(" 0.5", "0.5 ", "\t0.5", "+0.5", ".5", "5e-1", "½", "１", "0.5\n"),
    *("True", "1/3", "--", "0.5.5", "1e", "e5"),
)
CELLS = (*NUMBERS, *NOT_NUMBERS, *DOUBTFUL)
IDS_IN_OTHER_FORMS = ("136060.0", "1360.6", "1.36060e5", "99", "-7", "007", "7 ", "9" * 30, "1e3")
NAMES = (
    *("id", "ID", "Id", " id", "id ", "winner_model_a", "winner_a", "winner_model_A"),
    *("winner_tie", "note", ""),
)


CHANGES = (
    "replace a cell",
    "nudge a probability",
    "repeat a row",
    "remove a row",
    "shuffle the rows",
    "shuffle the columns",
    "add a column",
    "rename a column",
    "rewrite an id",
    "other line ends",
    "no final newline",
    "quote all cells",
    "byte order mark",
    "change the number of cells",
)


def random_submission(rng: random.Random) -> str:
    """Return a good file after up to three changes, many of them harmless."""
    header = list(COLUMNS)
    rows = []
    for number in IDS:
        a, b = sorted((rng.random(), rng.random()))
        rows.append([str(number), *(repr(p) for p in (a, b - a, 1 - b))])
    newline = "\n"
    final_newline = True
    quoted = False
    byte_order_mark = ""

    for _ in range(rng.randint(0, 3)):
        change = rng.choice(CHANGES)
        row = rng.choice(rows)
        place = rng.randrange(len(row))
        if change == "replace a cell":
            row[place] = rng.choice(CELLS)
        elif change == "nudge a probability" and place:
            try:
                row[place] = repr(
                    float(row[place]) + rng.choice((1, -1)) * 10 ** rng.uniform(-9, -4)
                )
            except ValueError:
                row[place] = "0"
        elif change == "repeat a row":
            rows.append(list(row))
        elif change == "remove a row" and len(rows) > 1:
            rows.remove(row)
        elif change == "shuffle the rows":
            rng.shuffle(rows)
        elif change == "shuffle the columns":
            order = rng.sample(range(len(header)), len(header))
            header = [header[i] for i in order]
            rows = [[cells[i] if i < len(cells) else "" for i in order] for cells in rows]
        elif change == "add a column":
            header.append(rng.choice(NAMES))
            for cells in rows:
                cells.append(rng.choice(("", "x", "0.5")))
        elif change == "rename a column":
            header[rng.randrange(len(header))] = rng.choice(NAMES)
        elif change == "rewrite an id":
            row[0] = rng.choice(IDS_IN_OTHER_FORMS)
        elif change == "other line ends":
            newline = rng.choice(("\r\n", "\n\n", "\n \n"))
        elif change == "no final newline":
            final_newline = False
        elif change == "quote all cells":
            quoted = True
        elif change == "byte order mark":
            byte_order_mark = "\ufeff"
        else:
            # "Change the number of cells", and what a change above could not do.
            row[:] = row[:-1] if rng.random() < 0.5 else [*row, "0.1"]

    lines = [
        ",".join(f'"{cell}"' if quoted else cell for cell in cells) for cells in [header, *rows]
    ]
    return byte_order_mark + newline.join(lines) + (newline if final_newline else "")


def test_kit_and_the_rules_agree(tmp_path: Path, seed: int, soaking: bool, tally: Counter[str]):
    sample = tmp_path / "sample.csv"
    sample.write_text("id\n" + "".join(f"{number}\n" for number in IDS))
    file = tmp_path / "submission.csv"
    rng = random.Random(f"{seed} grader")
    verdicts: Counter[bool] = Counter()

    for _ in range(4000 if soaking else 250):
        text = random_submission(rng)
        file.write_bytes(text.encode())

        report = validate_submission(file, sample)
        refusal = grade(text.encode(), set(IDS))
        verdicts[report.ok] += 1
        assert not (report.ok and refusal), (
            f"kit accepts what the rules refuse ({refusal}): {text!r}"
        )

        kinds = {problem.kind for problem in report.problems}
        stricter = kinds and kinds <= STRICTER.keys()
        assert report.ok or refusal or stricter, (
            f"kit refuses ({kinds}) what the rules accept: {text!r}"
        )
        tally["submissions, kit and the rules agree"] += 1

    rarer = min(verdicts[True], verdicts[False])
    assert rarer > sum(verdicts.values()) / 5, "one verdict is hardly tried"
