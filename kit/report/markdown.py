"""The report as Markdown: the page's words and tables; its figures are there as the tables they are drawn from."""

import re

from kit.report.disagreement import DisagreementCase
from kit.report.escape import one_line, visible_pieces
from kit.report.report import Report
from kit.report.sections import list_facts, probability_sections, report_sections
from kit.report.table import NAMES, TITLES, Cell, Section, Table

SPECIAL = re.compile(r"([\\`*_<>|~]|(?<=\])[(\[:])")


def render_markdown(report: Report) -> str:
    """The whole report; texts of rows are in fenced blocks, where nothing in them is markup."""
    facts = [f"- {name}: {escape_markdown(value)}" for name, value in list_facts(report)]
    blocks = [
        "# Which answer do people prefer?",
        "Models compared on the same rows.",
        "\n".join(facts),
    ]
    for section in report_sections(report):
        blocks += _section(section)
    return "\n\n".join(blocks) + "\n"


def escape_markdown(text: str) -> str:
    """One line of text in which nothing is markup."""
    return SPECIAL.sub(r"\\\1", one_line(text))


def _section(section: Section) -> list[str]:
    blocks = [
        f"## {section.title}",
        *map(escape_markdown, section.unpictured or section.paragraphs),
    ]
    for table in section.tables:
        blocks += [f"### {escape_markdown(table.caption)}", _table(table)]
    for case in section.cases:
        blocks += _case(case)
    return blocks


def _table(table: Table) -> str:
    head = "| " + " | ".join(escape_markdown(title) for title in table.head) + " |"
    rule = "| --- |" + " ---: |" * (len(table.head) - 1)
    body = ["| " + " | ".join(map(_cell, row)) + " |" for row in table.body]
    return "\n".join([head, rule, *body])


def _cell(cell: Cell) -> str:
    text = escape_markdown(cell.text)
    return f"**{text}**" if cell.strong and text else text


def _case(case: DisagreementCase) -> list[str]:
    true = "" if case.label is None else f"True class: {NAMES[case.label]}. "
    blocks = [f"### {case.rows} row {case.id}", f"{true}Divergence {case.divergence:.3f}."]
    for title, turns in zip(TITLES, case.texts, strict=True):
        beginning, whole, more = visible_pieces(turns)
        text = (whole or beginning) + (f"\n… {more:,} more characters" if more else "")
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        blocks += [f"{title}:", f"{fence}text\n{text}\n{fence}"]
    return [*blocks, _table(probability_sections(case))]
