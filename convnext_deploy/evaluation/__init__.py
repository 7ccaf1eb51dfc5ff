"""Scores of artifacts, the gates on them, and which images changed."""
