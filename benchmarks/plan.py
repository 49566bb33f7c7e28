"""The sizes that a quick, a standard and a full run of the benchmark measure."""

from typing import NamedTuple


class Case(NamedTuple):
    """Pick k of n embeddings of dimension d."""

    kind: str
    """A key of ``datasets.KINDS``."""
    n: int
    d: int
    k: int

    def __str__(self) -> str:
        return f"{self.n:,} × {self.d}, {self.k:,} picks, {self.kind}"


class WithPool(NamedTuple):
    """Pick k of n embeddings of dimension d, clustered, with a pool of p."""

    n: int
    p: int
    d: int
    k: int


class Plan(NamedTuple):
    """The measurements of one run."""

    cases: list[Case]
    repetitions: int
    patience: float
    """CPU seconds after which a contestant is not run again in a case."""
    textbook: float
    """Largest n·d·k for which the picks are compared with the textbook algorithm's."""
    growth: dict[str, list[Case]]
    """By the size that is doubled: "n", "d" or "k"."""
    resume: Case
    pools: list[WithPool]
    memory: list[WithPool]
    numbers_read: int
    """float32 numbers in the array that is read to measure the speed of memory."""
    side: int
    """Side of the square matrices that are multiplied to measure the speed of products."""
    cut: Case
    """The ranking that is cut in the middle and at a tenth."""


_KINDS = ("clustered", "uniform", "normalized")
_REAL = [Case("digits", 1_797, 64, 500), Case("fashion", 20_000, 64, 2_000), Case("fashion", 20_000, 64, 10_000)]

QUICK = Plan(
    cases=[*(Case(kind, 1_000, 16, 50) for kind in _KINDS), Case("digits", 120, 64, 40)],
    repetitions=2,
    patience=5,
    textbook=2e9,
    growth={
        "n": [Case("clustered", n, 16, 40) for n in (500, 1_000, 2_000)],
        "d": [Case("clustered", 1_000, d, 40) for d in (8, 32)],
        "k": [Case("clustered", 1_000, 16, k) for k in (20, 80)],
    },
    resume=Case("clustered", 1_000, 16, 60),
    pools=[WithPool(500, 200, 16, 20)],
    memory=[WithPool(50_000, 0, 64, 20), WithPool(50_000, 20, 64, 20)],
    numbers_read=2**22,
    side=256,
    cut=Case("clustered", 2_000, 16, 100),
)

STANDARD = Plan(
    cases=[
        *(Case(kind, 10_000, 128, 1_000) for kind in _KINDS),
        *(Case(kind, 50_000, 128, 5_000) for kind in _KINDS),
        Case("clustered", 200_000, 64, 2_000),
        Case("clustered", 20_000, 512, 10_000),
        *_REAL,
    ],
    repetitions=3,
    patience=12,
    textbook=3e9,
    growth={
        "n": [Case("clustered", n, 64, 2_000) for n in (25_000, 50_000, 100_000, 200_000)],
        "d": [Case("clustered", 50_000, d, 2_000) for d in (32, 64, 128, 256)],
        "k": [Case("clustered", 50_000, 64, k) for k in (1_000, 2_000, 4_000, 8_000)],
    },
    resume=Case("clustered", 50_000, 128, 5_000),
    pools=[WithPool(100_000, 100_000, 128, 1_000)],
    memory=[WithPool(200_000, 0, 64, 2_000), WithPool(20_000, 0, 512, 10_000), WithPool(100_000, 100_000, 128, 1_000)],
    numbers_read=2**27,
    side=2_048,
    cut=Case("clustered", 1_000_000, 32, 5_000),
)

FULL = STANDARD._replace(
    cases=[
        *(Case(kind, *size) for size in
          ((10_000, 128, 1_000), (50_000, 128, 5_000), (200_000, 64, 2_000), (20_000, 512, 10_000), (1_000_000, 128, 10_000))
          for kind in _KINDS),
        *_REAL,
    ],
    repetitions=5,
    patience=100,
    pools=[*STANDARD.pools, WithPool(1_000_000, 1_000_000, 128, 100)],
    memory=[*STANDARD.memory, WithPool(1_000_000, 0, 128, 10_000)],
)  # fmt: skip

PLANS = {"quick": QUICK, "standard": STANDARD, "full": FULL}
