"""The remedies that messages about a pool's files end with."""

from datapool.core.lineage import LINEAGE

HINT_GIT_CHECKOUT = f"`git checkout HEAD -- {LINEAGE} dvc.lock && dvc checkout --force` goes back to what git holds"
"""For files of other versions than the lineage records."""

HINT_DVC_CHECKOUT = (
    f"`dvc checkout --force` restores what dvc.lock records (`dvc pull` first in a fresh clone); {HINT_GIT_CHECKOUT}"
)
"""For files of earlier versions than the lineage records."""

HINT_AS_HERE = "where no checkout restores them, `datapool repair --as-here` records the files that are here"
"""In addition, if the files are complete."""

HINT_AS_RECORDED = "`datapool repair --as-recorded` makes the recorded version from these files"
"""In addition, if the files are those of a later version than the lineage records: DVC may have lost the earlier files."""

HINT_RESTORE = "`dvc checkout --force` restores it (`dvc pull` first in a fresh clone)"
"""For a single file that is not the recorded one."""
