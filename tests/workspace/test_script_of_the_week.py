"""The week of a person with five minutes, on real images: add, decide on the page, keep, export, push, ask why.

The images are those beside the repository; the page is opened in Chromium. Skipped where one of them is missing.
"""

import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from conftest import MODEL, Workspace, preloaded_environment

from datapool.workspace.create import Scm, make_workspace

IMAGES = Path(__file__).parents[3] / "shared" / "images"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not (IMAGES / "planted.json").exists(), reason=f"{IMAGES} is not here"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium"),
]


class Person:
    """A shell in a workspace, and a browser that puts its downloads into the home folder."""

    def __init__(self, workspace: Workspace, home: Path):
        self.workspace, self.home = workspace, home

    def types(self, line: str, *, code: int = 0) -> list[str]:
        """Run a line in a shell; return the lines of its output."""
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.workspace.folder,
            env={**preloaded_environment(), "HOME": str(self.home)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, f"{line} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout.splitlines()


@pytest.fixture
def person(tmp_path: Path) -> Person:
    make_workspace(tmp_path / "workspace", scm=Scm.OWN, remote=str(tmp_path / "store"))
    workspace = Workspace(tmp_path / "workspace")
    workspace.set({**MODEL, "stopping_condition.min_distance": 0.1})
    workspace.commit("settings")
    workspace.run("git", "init", "--quiet", "--bare", str(tmp_path / "origin"))
    workspace.run("git", "remote", "add", "origin", str(tmp_path / "origin"))
    workspace.run("git", "push", "--quiet", "--set-upstream", "origin", "HEAD")
    (tmp_path / "home/Downloads").mkdir(parents=True)
    return Person(workspace, tmp_path / "home")


def decide(person: Person, week: str, n: int) -> tuple[list[str], str]:
    """Open the page, move the cut to n, refuse the second pick, and download the list of it.

    Returns:
        The names of the picks on the sheet without the refused one, and the command that the page offers.
    """
    messages: list[str] = []
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1200, "height": 1000})
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: messages.append(request.url) if request.url.startswith("http") else None)
        page.goto((person.workspace.folder / "output/report.html").as_uri())
        assert page.inner_text("h1") == week
        page.fill("#number", str(n))
        page.keyboard.press("Enter")
        sync_api.expect(page.locator("#n")).to_have_text(str(n))
        picks = page.evaluate(f"D.names.slice(0, {n})")
        page.focus("#sheet")
        page.keyboard.press("ArrowRight")  # to the second
        page.keyboard.press("x")
        with page.expect_download() as download:
            page.click("#download")
        download.value.save_as(person.home / "Downloads" / download.value.suggested_filename)
        command = page.inner_text("#command")
        chromium.close()
    assert messages == []
    return [name for i, name in enumerate(picks) if i != 1], command


def test_the_script_of_the_week(person):
    workspace = person.workspace
    first = person.types(f"datapool add {IMAGES}/batch_1 --no-open")
    assert first[-3].startswith("batch_1: 312 images: 2 damaged, 11 copies, 299 new")
    person.types("datapool keep -m W47")
    before = len(workspace.names())

    lines = person.types(f"datapool add {IMAGES}/batch_2 --no-open")
    told = re.fullmatch(
        r"batch_2: 288 images: 3 damaged, 3 copies, \d+ known, \d+ offered before, 2 of no use, 271 new; "
        r"the pool covered \d+% of the new ones already",
        lines[-3],
    )
    assert told
    assert re.fullmatch(
        r"\d+ proposed; \d+ would be min_distance [\d.]+\. Look: .*1 image with two labels.*", lines[-2]
    )

    wanted, command = decide(person, "batch_2", 20)
    choice = r"datapool keep --min-distance [\d.]+ --exclude ~/Downloads/refused-batch_2-[0-9a-f]{8}\.txt -m batch_2"
    assert re.fullmatch(choice, command)
    kept = person.types(command)
    assert kept[-1].startswith("kept version 2 of pool 'my_datapool': 19 images more, ")
    assert workspace.names()[before:] == wanted
    assert workspace.run("git", "log", "-1", "--format=%s") == "batch_2\n"
    assert workspace.run("git", "status", "--porcelain") == ""

    person.types("datapool export --new --to cvat --output ../cvat")
    with zipfile.ZipFile(workspace.folder / "../cvat/images.zip") as archive:
        assert [name for name in archive.namelist() if "related_images" not in name] == wanted
    person.types("git push && dvc push")
    assert workspace.run("git", "rev-parse", "@{upstream}") == workspace.run("git", "rev-parse", "HEAD")

    why = "\n".join(person.types(f"datapool why '{wanted[0]}'"))
    place = r"\n  batch_2, version 2 of pool 'my_datapool' \(method coreset, min_distance [\d.]+; commit [0-9a-f]{10} of .*\)"
    assert re.search(rf"{place}\n    was picked as 1st of \d+, at distance [\d.]+ from .*, its nearest then", why), why

    covered = workspace.metrics()["share_covered_by_pool"]  # by the threshold that was kept
    added = json.loads("\n".join(person.types(f"datapool add {IMAGES}/batch_3 --no-open --json 2> ../log")))
    assert (added["week"], added["week_before"], added["version"], added["is_new"]) == ("batch_3", "batch_2", 3, True)
    assert added["share_covered_before"] == pytest.approx(covered)
    kept = json.loads("\n".join(person.types("datapool keep --json --push 2>> ../log")))
    assert (kept["images_added"], kept["is_pushed"]) == (added["proposed"], True)

    # Another night, the same line: nothing is new, so nothing is kept.
    head = workspace.run("git", "rev-parse", "HEAD")
    person.types(f"datapool add {IMAGES}/batch_3 --no-open && datapool keep --push", code=3)
    assert workspace.run("git", "rev-parse", "HEAD") == head
    assert workspace.run("git", "status", "--porcelain") == ""
