"""The HTML report: page, sections, charts, figures."""
