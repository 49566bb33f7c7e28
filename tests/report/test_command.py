"""``datapool report``: the path of the page, and the page as a PDF."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from report_runs import parameters

from datapool.commands.report import report
from datapool.core.errors import DatapoolError
from datapool.report import pdf

PAGE = Path("output/report.html")


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(parameters().model_dump()))
    PAGE.parent.mkdir()
    PAGE.write_text("<!doctype html><title>a page</title><p>words on paper")


def test_the_path_of_the_page_is_printed(capsys):
    report()
    assert capsys.readouterr().out == "output/report.html\n"

    report(as_json=True)
    assert json.loads(capsys.readouterr().out) == {"page": "output/report.html", "facts": None, "pdf": None}


def test_a_page_that_is_not_there_is_named_with_what_writes_it():
    PAGE.unlink()

    with pytest.raises(DatapoolError, match=r"^output/report.html: is not here; `dvc repro` writes it"):
        report()


def test_without_a_browser_there_is_no_pdf(monkeypatch):
    monkeypatch.setattr(pdf, "_BROWSERS", ("no-such-browser",))

    with pytest.raises(DatapoolError, match=r"needs Chromium or Chrome, and none .* or print output/report.html from"):
        report(pdf=True)
    assert not PAGE.with_suffix(".pdf").exists()


def test_a_browser_that_fails_is_named_with_what_it_said(monkeypatch):
    browser = Path("browser").absolute()
    browser.write_text("#!/bin/sh\necho cannot open display >&2\nexit 3\n")
    browser.chmod(0o755)
    monkeypatch.setattr(pdf, "_BROWSERS", (str(browser),))

    with pytest.raises(
        DatapoolError, match=r"browser did not print output/report.html \(exit code 3: cannot open display\)"
    ):
        report(pdf=True)
    assert not PAGE.with_suffix(".pdf").exists()


def test_a_browser_that_does_not_end_or_cannot_be_started_is_named(monkeypatch):
    browser = Path("browser").absolute()
    monkeypatch.setattr(pdf, "_BROWSERS", (str(browser),))
    monkeypatch.setattr(pdf, "_SECONDS", 0.2)
    for script, why in (
        ("#!/bin/sh\nexec sleep 9\n", "it took more than 0.2 seconds"),
        ("#!/no/shell\n", "No such file"),
    ):
        browser.write_text(script)
        browser.chmod(0o755)
        with pytest.raises(
            DatapoolError, match=f"did not print output/report.html [(]{why}.*; print it from a browser"
        ):
            report(pdf=True)
    assert [path.name for path in PAGE.parent.iterdir()] == ["report.html"]


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, pdf._BROWSERS)), reason="no Chromium is installed")
def test_the_page_is_printed(capsys):
    report(pdf=True)

    assert capsys.readouterr().out == "output/report.pdf\n"
    assert PAGE.with_suffix(".pdf").read_bytes().startswith(b"%PDF-")
