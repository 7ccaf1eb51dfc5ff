"""The report of a run: `report.json` is the truth, everything else a view of it. Needs no torch."""
