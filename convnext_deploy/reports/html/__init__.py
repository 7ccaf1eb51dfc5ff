"""The report and the comparison of runs as HTML pages."""
