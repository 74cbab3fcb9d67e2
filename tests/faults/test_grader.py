"""`kit validate` beside a second, independent reading of the rules: what one takes the other takes.

Where kit is stricter it is on purpose, and listed here.
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
CELLS = (
    *(
        "0",
        "1",
        "0.0",
        "1.0",
        "-0.0",
        "0.333333",
        "0.3333334",
        "0.33333349",
        "1e-7",
        "1e-400",
        "1.0000001",
        "-1e-9",
    ),
    *(
        "",
        " ",
        "nan",
        "NaN",
        "NA",
        "null",
        "None",
        "inf",
        "-inf",
        "Infinity",
        "1e999",
        "abc",
        "0,5",
        "0x1",
        "1_0",
    ),
    *(
        " 0.5",
        "0.5 ",
        "\t0.5",
        "+0.5",
        ".5",
        "5e-1",
        "½",
        "１",
        "0.5\n",
        "True",
        "1/3",
        "--",
        "0.5.5",
        "1e",
        "e5",
    ),
)
NAMES = (
    "id",
    "ID",
    "Id",
    " id",
    "id ",
    "winner_model_a",
    "winner_a",
    "winner_model_A",
    "winner_tie",
    "note",
    "",
)


def submission(chance: random.Random) -> str:
    """A good file, and then up to three things done to it, many of them harmless."""
    header = list(COLUMNS)
    rows = []
    for each in IDS:
        a, b = sorted((chance.random(), chance.random()))
        rows.append([str(each), *(repr(v) for v in (a, b - a, 1 - b))])
    ends, end_with, quote, mark = "\n", True, False, ""
    for _ in range(chance.randint(0, 3)):
        what = chance.randrange(14)
        row = chance.choice(rows)
        place = chance.randrange(len(row))
        if what == 0:
            row[place] = chance.choice(CELLS)
        elif what == 1 and place:
            try:
                row[place] = repr(
                    float(row[place]) + chance.choice((1, -1)) * 10 ** chance.uniform(-9, -4)
                )
            except ValueError:
                row[place] = "0"
        elif what == 2:
            rows.append(list(row))
        elif what == 3 and len(rows) > 1:
            rows.remove(row)
        elif what == 4:
            chance.shuffle(rows)
        elif what == 5:
            order = chance.sample(range(len(header)), len(header))
            header = [header[i] for i in order]
            rows = [[cells[i] if i < len(cells) else "" for i in order] for cells in rows]
        elif what == 6:
            header.append(chance.choice(NAMES))
            for cells in rows:
                cells.append(chance.choice(("", "x", "0.5")))
        elif what == 7:
            header[chance.randrange(len(header))] = chance.choice(NAMES)
        elif what == 8:
            row[0] = chance.choice(
                ("136060.0", "1360.6", "1.36060e5", "99", "-7", "007", "7 ", "9" * 30, "1e3")
            )
        elif what == 9:
            ends = chance.choice(("\r\n", "\n\n", "\n \n"))
        elif what == 10:
            end_with = False
        elif what == 11:
            quote = True
        elif what == 12:
            mark = "\ufeff"
        else:
            row[:] = row[:-1] if chance.random() < 0.5 else [*row, "0.1"]
    lines = [
        ",".join(f'"{cell}"' if quote else cell for cell in cells) for cells in [header, *rows]
    ]
    return mark + ends.join(lines) + (ends if end_with else "")


def test_kit_and_the_rules_agree(tmp_path: Path, seed: int, soaking: bool, tally: Counter[str]):
    sample, file, chance = (
        tmp_path / "sample.csv",
        tmp_path / "submission.csv",
        random.Random(f"{seed} grader"),
    )
    sample.write_text("id\n" + "".join(f"{each}\n" for each in IDS))
    verdicts: Counter[bool] = Counter()
    for _ in range(4000 if soaking else 250):
        text = submission(chance)
        file.write_bytes(text.encode())
        report, refusal = validate_submission(file, sample), grade(text.encode(), set(IDS))
        kinds = {problem.kind for problem in report.problems}
        verdicts[report.ok] += 1
        assert not (report.ok and refusal), f"kit takes what the rules refuse ({refusal}): {text!r}"
        stricter = kinds and kinds <= STRICTER.keys()
        assert report.ok or refusal or stricter, (
            f"kit refuses ({kinds}) what the rules take: {text!r}"
        )
        tally["submissions, kit and the rules agree"] += 1
    assert min(verdicts[True], verdicts[False]) > sum(verdicts.values()) / 5, (
        "one verdict is hardly tried"
    )
