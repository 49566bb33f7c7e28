"""The remedies that messages about a pool's files end with."""

from datapool.core.lineage import LINEAGE

HINT_GIT_CHECKOUT = f"`git checkout HEAD -- {LINEAGE} dvc.lock && dvc checkout --force` goes back to what git holds"
"""The pool's files are of other versions than the lineage records."""

HINT_DVC_CHECKOUT = (
    f"`dvc checkout --force` restores what dvc.lock records (`dvc pull` first in a fresh clone); {HINT_GIT_CHECKOUT}"
)
"""The lineage records later versions than the files are."""

HINT_AS_HERE = "where no checkout restores them, `datapool repair --as-here` records the files that are here"
"""Besides, where the files are whole."""

HINT_RESTORE = "`dvc checkout --force` restores it (`dvc pull` first in a fresh clone)"
"""A single file is not the recorded one."""
