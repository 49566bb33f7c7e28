"""Print the page as a PDF by a Chromium or Chrome that is installed."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from datapool.core import atomic
from datapool.core.errors import DatapoolError

_BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
_SECONDS = 120


def find_browser(page: Path) -> str:
    """Return the path of a Chromium or Chrome.

    Args:
        page: What is to be printed, for the message.

    Raises:
        DatapoolError: If none is installed.
    """
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found is None:
        raise DatapoolError(
            "a PDF needs Chromium or Chrome, and none is installed here; install one (on Debian: `apt-get install "
            f"chromium`), or print {page} from any browser"
        )
    return found


def write_pdf(page: Path, pdf: Path) -> None:
    """Print a page.

    Args:
        page: An HTML file that loads nothing.
        pdf: File to write.

    Raises:
        DatapoolError: If no browser is installed, it fails, or the disk refuses.
    """
    browser = find_browser(page)
    # Processes of a browser may write into its profile for a moment after it has ended.
    with atomic.replace(pdf) as temporary, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            options.append("--no-sandbox")  # Chromium refuses its sandbox to root, as in a container
        command = [
            browser,
            *options,
            f"--user-data-dir={profile}",
            "--no-pdf-header-footer",
            f"--print-to-pdf={temporary.absolute()}",
            page.absolute().as_uri(),
        ]
        try:
            done = subprocess.run(command, check=False, capture_output=True, timeout=_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DatapoolError(
                f"{browser} did not print {page} ({_why(error)}); print it from a browser instead"
            ) from error
        if done.returncode or not temporary.exists() or not temporary.stat().st_size:
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise DatapoolError(
                f"{browser} did not print {page} (exit code {done.returncode}: {said[0]}); print it from a browser instead"
            )


def _why(error: OSError | subprocess.TimeoutExpired) -> str:
    return str(error.strerror) if isinstance(error, OSError) else f"it took more than {_SECONDS} seconds"
