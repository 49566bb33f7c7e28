"""Names that are markup or formulas stay text: no script in a name runs in the report, and no cell of a table is a formula.

The whole pipeline runs on images, folders and a prefix whose names contain markup, scripts and commas. A browser then opens the
report: once without its content security policy, to test escaping alone, and once with the policy but without escaping.
"""

import base64
import csv
import hashlib
import importlib
import json
import math
import re
import shutil
import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from conftest import write_picture
from tally import count

from datapool.core import embeddings_csv
from datapool.core.errors import escape_unprintable
from datapool.core.json_files import read_json
from datapool.core.tables import read_csv, read_names, read_table
from datapool.images.batch import safe_name
from datapool.workspace.params_file import set_params

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")

HARM = "window.harm=document.title='harm'"
PREFIX = f"<script>{HARM}</script><i>week</i>/"
LABEL = f"<i onclick={HARM}>"
NAMES = (
    f"</script><script>{HARM}</script>.png",
    f"<img src=x onerror={HARM}>/a.png",
    f"\"'><svg onload={HARM}>.png",
    f"' onmouseover='{HARM}' x='.png",
    f"javascript:{HARM}.png",
    f'<a href="javascript:{HARM}">click</a>.png',
    f"data:text/html,<script>{HARM}</script>.png",
    "&lt;b&gt;&amp;amp;&#x3c;i&#x3e;.png",
    "<!--.png",
    "]]>--><style>*{display:none}<.png",
    "%{x}%{customdata}<extra>b</extra>.png",
    "${title}$sections\\u003cb\\u003e$x^2$.png",
    "comma, semicolon; tab\there \"quotes\" and 'more'.png",
    "two  blanks\nand a line\r\n.png",
    "gnp.\u202eexe \u200bnothing.png",
    "NA.png",
    "été 猫 😀.png",
)  # fmt: skip


# --- a run of the pipeline --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Path:
    """A folder in which the pipeline ran on two batches of images with these names; half of the second batch is not picked."""
    folder = tmp_path_factory.mktemp("names")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _run_pipeline(folder)
    return folder


def _run_pipeline(folder: Path) -> None:
    for number, name in enumerate(NAMES):
        write_picture(folder / "week_1" / name, number, side=8)
        write_picture(folder / "week_2/later" / name, 100 + number, side=8)
        (folder / "week_2/damaged" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "week_2/damaged" / name).write_bytes(b"")
        copy = folder / "week_2/zcopy" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "week_2/later" / name, copy)
    (folder / "week_2/later/known.png").write_bytes((folder / "week_1" / NAMES[0]).read_bytes())
    write_picture(folder / "week_2" / LABEL / "limited.png", 300, side=8)
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "datapools.json").write_text("{}\n")
    (folder / "exclude.txt").touch()
    angles = {f"{PREFIX}{name}": 0.1 * number for number, name in enumerate(NAMES)}
    angles |= {f"{PREFIX}later/{name}": 3 + 0.1 * number for number, name in enumerate(NAMES)}
    _write_circle(folder / "<circle>.csv", {**angles, f"{PREFIX}{LABEL}/limited.png": 5.5})
    settings = {"filename_prefix": PREFIX, "embeddings": "<circle>.csv", "n_example_images": 100, "dump_dataset": True}
    settings |= {"stopping_condition.min_distance": 0.15, "rules.balance": {LABEL: 0}}
    for week in ("week_1", "week_2"):
        set_params(folder, {**settings, "input_dir": week})
        _run_stages()


def _write_circle(path: Path, angles: dict[str, float]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        file.write("filenames,embedding_0,embedding_1,labels\n")
        rows.writerows([name, math.cos(angle), math.sin(angle), 0] for name, angle in angles.items())


def _run_stages() -> None:
    """Run the stages of ``dvc repro`` in this process."""
    for name in STAGES:
        getattr(importlib.import_module(f"stages.{name}"), name)()


# --- a browser --------------------------------------------------------------------------------------------------------

TITLE = "week_2: pool my_datapool, version 2"

# Calls what the page calls when the pointer is over an image, for every image, and records what is visible.
PROBE = """
(() => {
  const texts = (selector) => [...document.querySelectorAll(selector)].map((element) => element.textContent);
  const hovers = D.names.map((_, i) => {
    tip(i, { clientX: 0, clientY: 0 });
    return texts('#tip > div:not(.pair)').join(' ');
  });
  const pixels = document.getElementById('map').getContext('2d').getImageData(0, 0, 300, 300).data;
  for (const element of document.querySelectorAll('[onmouseover], [onclick], a')) element.click();
  const seen = {
    title: document.title, harm: String(window.harm), hovers,
    drawn: [texts('#curve *').length, pixels.filter((value) => value).length],
    codes: texts('code'), cells: texts('td'), captions: texts('figcaption'), pre: texts('pre').join(''), alts: [...document.images].map((i) => i.alt),
    sources: [...document.images].map((i) => i.src.slice(0, 23)),
    tags: [...new Set([...document.querySelectorAll('*')].map((element) => element.localName))],
    handlers: [...document.querySelectorAll('*')].flatMap((e) => e.getAttributeNames()).filter((n) => n.startsWith('on')),
    links: [...document.querySelectorAll('a, area, form, base, iframe')].length,
  };
  document.documentElement.setAttribute('data-seen', encodeURIComponent(JSON.stringify(seen)));
})();
"""


def with_probe(page: str) -> str:
    """Return the page with the script above. Its policy allows the script by its hash, like the scripts of the page itself."""
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    page = page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    before, end = page.rsplit("</body>", 1)
    return f"{before}<script>{PROBE}</script></body>{end}"


def without_policy(page: str) -> str:
    """Return the page without its content security policy."""
    assert page.count('<meta http-equiv="Content-Security-Policy"') == 1
    return re.sub(r"<meta http-equiv[^>]*>", "", page, count=1)


def browse(page: str, folder: Path) -> tuple[dict[str, Any], str]:
    """Open a page in the browser. Return what the probe recorded, and the log of the browser."""
    file = folder / "page.html"
    file.write_text(with_probe(page), encoding="utf-8")
    options = "--headless --no-sandbox --disable-gpu --virtual-time-budget=30000 --enable-logging=stderr --dump-dom"
    command = [BROWSER, *options.split(), f"--user-data-dir={folder / 'profile'}", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    seen = re.search(r'<html[^>]* data-seen="([^"]*)"', done.stdout)
    assert seen, f"the probe did not end: {done.stderr[-2000:]}"
    return json.loads(unquote(seen[1])), done.stderr


@pytest.fixture
def server():
    """A web server on this machine: its address and the paths that were requested from it."""
    requested: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requested.append(self.path)
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}", requested
    http.shutdown()
    http.server_close()


@needs_browser
def test_no_script_in_a_name_runs_and_every_name_is_shown_literally(ran, tmp_path):
    page = (ran / "output/report.html").read_text(encoding="utf-8")
    images = read_table(ran / "output/images.parquet")
    removed = read_csv(ran / "output/removed_samples.csv")
    assert set(removed.kind) == {"corrupt", "label conflict", "covered", "balance"}

    seen, _ = browse(without_policy(page), tmp_path)

    assert (seen["title"], seen["harm"]) == (TITLE, "undefined")
    assert (seen["handlers"], seen["links"]) == ([], 0)
    assert {"i", "a", "iframe", "object", "form", "base", "extra"}.isdisjoint(seen["tags"])
    assert set(seen["sources"]) == {"data:image/webp;base64,"}
    # The lists show damaged images and copies with another label; the map shows the images with an embedding.
    is_listed = removed.kind.isin(["corrupt", "label conflict"])
    assert set(map(escape_unprintable, removed.filename[is_listed])) <= set(seen["codes"])
    reasons = set(seen["cells"]) | {caption.split("png ", 1)[-1] for caption in seen["captions"]}
    assert set(map(escape_unprintable, removed.reason[is_listed])) <= reasons
    # The map names an image where the pointer is: those of the pool, the picks and what was left out.
    not_offered = {*removed.filename[is_listed], *removed.filename[removed.kind == "known"]}
    offered = set(images.filename[images.status == "ok"]) - not_offered
    picked, left_out = offered - set(removed.filename), offered & set(removed.filename)
    earlier = [f"{PREFIX}{name}" for name in NAMES]
    pool_before = read_json(ran / "output/numbers.json")["pool_before"]
    for fate, names, expected in (
        (" in the pool since week_1", earlier, pool_before),
        (" number ", picked, len(picked)),
        (" left out: ", left_out, len(left_out)),
    ):
        shown = {
            name for name in map(escape_unprintable, names) for hover in seen["hovers"] if hover.startswith(name + fate)
        }
        assert len(shown) == expected > 0
    names = set(map(escape_unprintable, [*images.filename, *earlier]))
    assert set(map(escape_unprintable, picked)) <= set(seen["alts"]) <= names | {""}
    assert f"filename_prefix: {PREFIX}" in seen["pre"]
    count("names that are markup or scripts, in a browser", len(NAMES))


@needs_browser
def test_the_report_works_with_its_content_security_policy(ran, tmp_path):
    seen, log = browse((ran / "output/report.html").read_text(encoding="utf-8"), tmp_path)

    assert all(seen["drawn"])
    assert len(seen["hovers"]) > len(NAMES)
    assert "Content Security Policy" not in log


@needs_browser
@pytest.mark.parametrize("has_policy", [True, False])
def test_the_policy_alone_stops_every_script_and_every_request(ran, tmp_path, server, has_policy):
    # The markup stands for a name that is not escaped. Without the policy the attacks succeed, so the test can detect them.
    address, requested = server
    attack = (
        f"<script>{HARM}</script><img src=x onerror={HARM}><img src={address}/image><script src={address}/script></script>"
        f"<link rel=stylesheet href={address}/style><iframe src={address}/frame></iframe><object data={address}/object></object>"
        f"<style>body {{ background: url({address}/background) }} @import url({address}/import)</style>"
    )
    page = (ran / "output/report.html").read_text(encoding="utf-8").replace("<main>", f"<main>{attack}", 1)

    seen, _ = browse(page if has_policy else without_policy(page), tmp_path)

    if has_policy:
        assert (seen["title"], seen["harm"], requested) == (TITLE, "undefined", [])
    else:
        assert (seen["title"], seen["harm"]) == ("harm", "harm")
        assert {"/image", "/script", "/style", "/frame", "/object", "/background"} <= set(requested)


# --- csv and text files -----------------------------------------------------------------------------------------------


def tables(folder: Path) -> list[Path]:
    """Return the csv files that a run wrote."""
    return sorted(path for name in ("output", "pools") for path in (folder / name).rglob("*.csv"))


def test_every_row_of_every_csv_has_as_many_fields_as_its_header(ran):
    written = tables(ran)

    assert {path.name for path in written} >= {
        "removed_samples.csv",
        "samples.csv",
        "datapool_latest.csv",
        "coverage.csv",
    }
    for path in written:
        with path.open(newline="", encoding="utf-8") as file:
            head, *rows = csv.reader(file, strict=True)
        assert {len(row) for row in rows} <= {len(head)}, path


def test_csv_and_text_files_contain_the_names_unchanged(ran):
    images = read_table(ran / "output/images.parquet")
    removed = read_csv(ran / "output/removed_samples.csv")
    picked = read_names(ran / "output/filenames/sampled_filenames_excluding_datapool.txt")
    pooled = read_names(ran / "output/filenames/sampled_filenames.txt")

    assert set(removed.filename) | set(picked) == set(images.filename)
    assert read_csv(ran / "pools/my_datapool/samples.csv").filename.tolist() == pooled
    assert embeddings_csv.read_csv(ran / "pools/my_datapool/datapool_latest.csv").filenames == pooled
    assert any("\r\n" in name for name in [*pooled, *removed.filename])
    assert all((ran / "output/data/sampled" / name).is_file() for name in picked)


FORMULAS = (
    "=cmd|' C calc'!A0.png",
    "+1.png",
    "-rf.png",
    "@SUM(1).png",
    " =1.png",
    "\t=1.png",
    "\n=1.png",
    "＝1.png",
    "a\n=1.png",
)


@pytest.mark.parametrize("prefix", ["", "=1+"])
def test_no_cell_or_line_that_a_run_writes_is_a_formula(prefix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [*FORMULAS, *(f"=HYPERLINK({number})/{name}" for number, name in enumerate(FORMULAS))]
    for number, name in enumerate(names):
        write_picture(Path("week") / name, number, side=8)
    Path("week/-broken.png").write_bytes(b"")
    shutil.copy(Path("week") / names[0], "week/=copy.png")
    shutil.copy(ROOT / "params.yaml", ".")
    Path("datapools.json").write_text("{}\n")
    Path("exclude.txt").touch()
    everything = [*names, "=copy.png"]
    _write_circle(Path("circle.csv"), {safe_name(prefix + name): 0.1 * n for n, name in enumerate(everything)})
    settings = {"input_dir": "week", "embeddings": "circle.csv", "stopping_condition.min_distance": 0.15}
    set_params(Path(), {**settings, "filename_prefix": prefix})

    _run_stages()

    cells = []
    for path in tables(tmp_path):
        with path.open(newline="", encoding="utf-8") as file:
            cells += [cell for row in csv.reader(file, strict=True) for cell in row]
    lines = [line for path in Path("output/filenames").iterdir() for line in path.read_text("utf-8").split("\n")]
    assert len(cells) > 100
    assert len(lines) > len(names)
    assert [text for text in cells + lines if re.match(r"\s*[=+\-@＝＋－＠]", text) and not is_number(text)] == []
    count("names that would be formulas", len(names))


def is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", text) is not None
