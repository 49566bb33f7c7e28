"""The numbers of one run.

``numbers.json`` holds all of them, and ``metrics.json`` the few that fit beside each other in ``dvc exp show``.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from datapool.core.errors import DatapoolError
from datapool.core.json_files import read_json, write_json


class Metrics(BaseModel):
    """What happened to a batch, in numbers; None where there is no number. Distances are those of the selection.

    The fields are the keys of ``numbers.json``, in its order.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    images: int
    """Images in the batch: the sum of the next fields up to ``not_considered``, without ``candidates`` and
    ``offered_again``."""
    corrupt: int
    """Files that cannot be decoded."""
    duplicates: int
    """Exact copies of another image of the batch."""
    known: int
    """Images that the pool already holds."""
    excluded: int
    """Images that exclude.txt lists."""
    seen_before: int
    """Images that an earlier batch offered and that were not taken, which are not offered again."""
    low_quality: int = 0
    """Images that ``quality.drop`` holds back."""
    near_duplicates: int = 0
    """Images that ``remove_near_duplicates`` holds back."""
    candidates: int
    """Images among which to choose: all but those seven and those of ``outside_where``."""
    offered_again: int
    """Candidates that an earlier batch offered too and that were not taken."""
    picked: int
    """Candidates that were added to the pool."""
    covered: int
    """Candidates closer than ``min_distance`` to the pool or to a pick."""
    over_balance: int
    """Candidates that ``rules.balance`` excludes."""
    in_sequence_gap: int
    """Candidates that ``rules.sequence_gap`` excludes."""
    in_time_gap: int = 0
    """Candidates that ``rules.time_gap`` excludes."""
    near_protected: int
    """Candidates that protected images exclude."""
    outside_where: int = 0
    """Images that do not fulfill ``rules.where``, which are not offered."""
    beyond_limit: int
    """Candidates left when ``n_samples`` was reached."""
    not_considered: int
    """Candidates left because the picks stand after images have left the pool."""
    kept: int | None
    """Picks that were kept from an earlier choice; None if everything was chosen anew."""
    pool_before: int
    """Images of the pool before the run."""
    pool_after: int
    """Images of the pool after it."""
    covering_radius: float | None
    """Largest distance from a candidate, except those near a protected image, to its nearest image of the new pool."""
    smallest_pick_distance: float | None
    """Smallest distance from a pick to its nearest image of the pool and the earlier picks."""
    radius_lower_bound: float | None
    """No choice of as many images has a smaller covering radius (Gonzalez 1985); ``coreset`` without rules only."""
    witness: str | None
    """Filename of the candidate that, with the picks, proves this bound."""
    radius_ratio: float | None = None
    """With ``ranking.approximate``: the covering radius is at most so many times the smallest possible. None where the
    ranking ends with the picks, or a rule limits them."""
    evaluated: int
    """Size of the evaluation sample: the candidates that the next five fields were measured on."""
    mean_distance: float | None
    """Mean distance to the nearest image of the new pool."""
    p99_distance: float | None
    """99th percentile of these distances."""
    random_covering_radius: float | None
    """The largest such distance, had as many images been picked at random."""
    random_mean_distance: float | None
    """Their mean, had as many images been picked at random."""
    random_p99_distance: float | None
    """Their 99th percentile, had as many images been picked at random."""
    share_lowered: float | None = None
    """Method coverage: the share of its sum, over the evaluation sample, that the picks take off; without a pool, of what
    the first image leaves of it."""
    random_share_lowered: float | None = None
    """The same, had as many images been picked at random."""
    share_lowered_bound: float | None = None
    """No choice of as many images takes off a larger share (Nemhauser, Wolsey & Fisher 1978). With a pool, and if neither a
    rule, a min_distance nor an earlier choice limited the picks and all candidates were evaluated."""
    allowed: int | None = None
    """Method coverage: number of candidates that the rules allow before anything is picked."""
    summed: int | None = None
    """Method coverage: how many of these its sum runs over; if not all, ``seed`` draws them."""
    share_covered_by_pool: float | None
    """Share of the candidates closer than ``min_distance`` (if not above 0: ``redundant_below``) to the old pool."""
    share_redundant: float | None
    """Share of the candidates closer than ``redundant_below`` to another candidate."""
    redundant_below: float | None
    """A fifth of the median distance between two candidates."""

    def to_compare(self) -> dict[str, int | float | None]:
        """Return the numbers by which runs are compared, as ``metrics.json`` holds them.

        The names are short, and none is a key of params.yaml: ``dvc exp show`` would put the file in front of it.
        """
        return {
            "images": self.images,
            "new": self.candidates,
            "picked": self.picked,
            "pool": self.pool_after,
            "covered": self.share_covered_by_pool,
            "radius": self.covering_radius,
            "mean": self.mean_distance,
        }


def write_metrics(numbers: Path, to_compare: Path, metrics: Metrics) -> None:
    """Write the numbers of a run as JSON, one per line: all of them, and those by which runs are compared."""
    write_json(numbers, metrics.model_dump())
    write_json(to_compare, metrics.to_compare())


def read_metrics(path: Path) -> Metrics:
    """Read all numbers of a run.

    Args:
        path: numbers.json.

    Raises:
        DatapoolError: If the file cannot be read, or is not such a file.
    """
    content = read_json(path)
    try:
        return Metrics.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DatapoolError(
            f"{path}: does not hold the numbers of a run ({key}: {first['msg']}); `dvc repro` writes it again"
        ) from error
