"""Compare every model, baseline and blend on the same rows, as tables, as a page and as JSON.

Use `report.build_report`; `export.write_report` writes its page or Markdown file.
"""
