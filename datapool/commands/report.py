"""The command about the page of a run."""

from typing import Annotated

import typer

from datapool.terminal import print_json, say

app = typer.Typer()


@app.command(short_help="Name, open or print the page of the last run.")
def report(
    pdf: Annotated[
        bool, typer.Option("--pdf", help="Print the page to report.pdf beside it; needs Chromium or Chrome.")
    ] = False,
    opens: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the paths as JSON.")] = False,
) -> None:
    """Print the path of the page that the last run wrote; run it in the workspace.

    The page is one file without any link to another. report.json beside it has the same facts for programs.
    """
    from datapool.core.errors import DatapoolError
    from datapool.core.outputs import Outputs
    from datapool.core.params import load_params
    from datapool.report.pdf import write_pdf

    outputs = Outputs(load_params().output_dir)
    page = outputs.report
    if not page.exists():
        raise DatapoolError(f"{page}: is not here; `dvc repro` writes it (in a clone, `dvc pull` gets it)")
    printed = page.with_suffix(".pdf") if pdf else None
    if printed:
        write_pdf(page, printed)
    if as_json:
        facts = str(outputs.report_facts) if outputs.report_facts.exists() else None
        print_json({"page": str(page), "facts": facts, "pdf": printed and str(printed)})
    else:
        say(str(printed or page))
    if opens:
        import webbrowser

        if not webbrowser.open((printed or page).absolute().as_uri()):
            raise DatapoolError(f"no browser could be started; open {printed or page} yourself")
