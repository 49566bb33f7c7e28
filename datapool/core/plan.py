"""Decide what `rank` does where params.yaml leaves it open: the method, where that is auto."""

from pathlib import Path
from typing import NamedTuple

from datapool.core.errors import DatapoolError
from datapool.core.json_files import read_json, write_json
from datapool.core.schema import method_in_use


class Plan(NamedTuple):
    """What `rank` has to know of the settings of `sample`; nothing else in them makes it run again."""

    method: str
    """The method in use, never "auto"."""
    n_samples: int | float | None
    """``stopping_condition.n_samples`` if it decides the order: for "typical" with as many clusters as pictures."""


def make_plan(method: str, n_samples: int | float, n_clusters: int | str) -> Plan:
    """Return the plan for values of params.yaml: ``method``, ``stopping_condition.n_samples``, ``ranking.n_clusters``.

    >>> make_plan("auto", 100, "auto"), make_plan("typical", 100, "auto")
    (Plan(method='coverage', n_samples=None), Plan(method='typical', n_samples=100))
    """
    method = method_in_use(method, n_samples)
    return Plan(method, n_samples if method == "typical" and n_clusters == "auto" else None)


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan as JSON."""
    write_json(path, plan._asdict())


def read_plan(path: Path) -> Plan:
    """Read what ``write_plan`` wrote.

    Raises:
        DatapoolError: If the file cannot be read, or is none.
    """
    try:
        return Plan(**read_json(path))
    except TypeError as error:
        raise DatapoolError(
            f"{path}: is damaged or was edited; `dvc repro --force --single-item plan` writes it again"
        ) from error
