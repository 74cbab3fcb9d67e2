"""Render a report as Markdown, with the tables behind its figures in their place.

Use `render_markdown`.
"""

import re

from kit.reporting.cases import RowCase
from kit.reporting.escape import fold_text, one_line
from kit.reporting.headline import list_facts, list_findings, list_origin, write_headline
from kit.reporting.report import Report
from kit.reporting.sections import case_table, describe_case, report_sections
from kit.reporting.table import TEXT_TITLES, Cell, Section, Table

# Characters that are markup anywhere in a line, and those that make a link of a closing bracket.
SPECIAL = re.compile(r"([\\`*_<>|~]|(?<=\])[(\[:])")


def render_markdown(report: Report) -> str:
    """Return the whole report; texts of rows are in fenced blocks, where nothing is markup."""
    blocks = [
        f"# {escape_markdown(write_headline(report))}",
        _format_pairs(list_findings(report)),
        _format_pairs(list_origin(report)),
        _format_pairs(list_facts(report)),
    ]
    for section in report_sections(report):
        blocks += _section_blocks(section, report.ranking)
    return "\n\n".join(block for block in blocks if block) + "\n"


def escape_markdown(text: str) -> str:
    """Put a text on one line, and escape what would be markup."""
    return SPECIAL.sub(r"\\\1", one_line(text))


def _format_pairs(pairs: list[tuple[str, str]]) -> str:
    return "\n".join(f"- {name}: {escape_markdown(value)}" for name, value in pairs)


def _section_blocks(section: Section, ranking: tuple[str, ...]) -> list[str]:
    paragraphs = section.paragraphs_without_figures or section.paragraphs
    blocks = [f"## {section.title}", *map(escape_markdown, paragraphs)]
    for table in section.tables:
        blocks += [f"### {escape_markdown(table.caption)}", _format_table(table)]
    for case in section.cases:
        blocks += _case_blocks(case, ranking)
    return blocks


def _format_table(table: Table) -> str:
    head = "| " + " | ".join(escape_markdown(title) for title in table.head) + " |"
    rule = "| --- |" + " ---: |" * (len(table.head) - 1)
    body = ["| " + " | ".join(map(_format_cell, row)) + " |" for row in (*table.body, *table.apart)]
    return "\n".join([head, rule, *body])


def _format_cell(cell: Cell) -> str:
    text = escape_markdown(cell.text)
    text = f"**{text}**" if cell.strong and text else text
    return f"{text} {escape_markdown(cell.note)}" if cell.note else text


def _case_blocks(case: RowCase, ranking: tuple[str, ...]) -> list[str]:
    blocks = [f"### {case.rows} row {case.id}", describe_case(case)]
    for title, turns in zip(TEXT_TITLES, case.texts, strict=True):
        beginning, whole, omitted = fold_text(turns)
        text = whole or beginning
        if omitted:
            text += f"\n… {omitted:,} more characters"

        # A fence longer than any run of backticks in the text cannot be closed by the text.
        longest = max(map(len, re.findall("`+", text)), default=0)
        fence = "`" * max(3, longest + 1)
        blocks += [f"{title}:", f"{fence}text\n{text}\n{fence}"]
    return [*blocks, _format_table(case_table(case, ranking))]
