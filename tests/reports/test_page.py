"""Texts of pages as browsers show them."""

from __future__ import annotations

from convnext_deploy.reports.html.page import _with_whole_flags


def test_options_in_sentences_are_not_broken_at_their_hyphens() -> None:
    found = _with_whole_flags("a < b: time it again with --measure-again, not a--b or 1 -- 2")
    assert found == ('a &lt; b: time it again with <span class="flag">--measure-again</span>, not a--b or 1 -- 2')
