"""The page of `dvc plots show` needs no network."""

import re
from pathlib import Path

import pytest
from dvc_render.vega import VegaRenderer

import datapool

PAGE = Path(datapool.__file__).parent / "workspace" / "plots_page.html"


def test_the_page_has_the_versions_of_the_scripts_that_dvc_would_load():
    wanted = re.findall(r"npm/([a-z-]+@[0-9.]+)", VegaRenderer.SCRIPTS)

    assert wanted[0].startswith("vega@")
    assert re.findall(r"<script>\n/\*! (\S+)\n", PAGE.read_text()) == wanted


def test_each_script_has_its_license_in_front():
    scripts = PAGE.read_text().split("<script>\n")[1:]

    assert len(scripts) == 3
    for script in scripts:
        assert "Redistribution and use in source and binary forms" in script[:1000]


@pytest.mark.slow
def test_dvc_plots_show_makes_a_page_with_the_plots_and_without_addresses_to_load(first_week, after):
    workspace = after(first_week)
    workspace.run("dvc", "plots", "show")
    page = (workspace.folder / "dvc_plots/index.html").read_text()
    plots = page.rpartition("<body>")[2]

    assert re.findall(r"<(?:script|link)[^>]*(?:src|href)=", page) == []
    assert "distance of each image to the pool when picked" in plots
    assert "vegaEmbed(" in plots
