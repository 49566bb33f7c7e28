"""Find out whether DVC tracks a folder of images."""

from pathlib import Path

import yaml

from datapool.images.objects import Folder


def untracked_path(folder: Folder, workspace: Path) -> str | None:
    """Return the path, below the workspace, of a folder that lies in it and that DVC does not track; else None.

    DVC tracks a folder by ``dvc add``, or as an output of a stage, also together with a folder above it. A folder outside of
    the workspace, where a link in it may lead, is not DVC's to track. Neither is one in a store, or where there is no DVC.
    """
    if not isinstance(folder, Path):
        return None
    root, folder = workspace.resolve(), folder.resolve()
    if root not in folder.parents or not (root / ".dvc").is_dir():
        return None
    path = folder.relative_to(root)
    tracking = {path, *path.parents[:-1]}  # without the workspace itself
    if any((root / f"{each}.dvc").is_file() for each in tracking) or tracking & _outputs(root / "dvc.lock"):
        return None
    return path.as_posix()


def _outputs(lock: Path) -> set[Path]:
    """Return what the stages wrote that have run, as a dvc.lock records it; nothing if it is absent."""
    if not lock.is_file():
        return set()
    stages = (yaml.safe_load(lock.read_text(encoding="utf-8")) or {}).get("stages", {})
    return {Path(out["path"]) for stage in stages.values() for out in stage.get("outs", [])}
