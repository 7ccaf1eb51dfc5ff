"""The report as a record, and its views as text: terminal, Markdown, model card."""
