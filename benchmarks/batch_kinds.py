"""Find which method suits which batch: k-center, typical and random picks of digits, scored by 1-NN accuracy.

    python -m benchmarks.batch_kinds

Each batch has some 1,000 of scikit-learn's handwritten digits (vectors of length one), with more or fewer that are nearly
alike. As many as "picks" shows are picked and labeled. The score is the percentage of the 797 digits outside the batch
whose nearest pick has the same label: mean and standard deviation over five batches. "covered" is the share of the batch
that the pool covers and "redundant" the share that is redundant; the hint of a run depends on these two.

Writes the table to benchmarks/batch_kinds.md.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

from datapool.selection.evaluation import REDUNDANT
from datapool.selection.evaluation_sample import measure_sample
from datapool.selection.k_center import k_center, nearest, random_order, unit_rows
from datapool.selection.typiclust import typical_order

SEEDS = range(5)
N = 1000  # images in a batch; the rest of the digits are the test
PICKS = (25, 50, 100)


class Batch(NamedTuple):
    """Images with their labels, and a pool before them."""

    images: np.ndarray
    labels: np.ndarray
    pool: np.ndarray
    pool_labels: np.ndarray


def all_different(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Batch:
    """Every digit once."""
    return Batch(images, labels, images[:0], labels[:0])


def copies(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Batch:
    """A fifth of the digits, each five times with a little noise."""
    some = np.repeat(np.arange(N // 5), 5)
    return Batch(noisy(images[some], 0.5, rng), labels[some], images[:0], labels[:0])


def few_things(share: float, images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Batch:
    """A share of the batch are frames of ten digits, unequally many of each: shifted by a pixel, with noise."""
    n_frames = int(share * N)
    which = rng.choice(10, n_frames, p=rng.dirichlet(np.ones(10)))
    frames = [np.roll(images[i].reshape(8, 8), rng.integers(-1, 2, 2), (0, 1)).ravel() for i in which]
    rest = slice(10, 10 + N - n_frames)
    return Batch(
        np.concatenate([images[rest], noisy(np.array(frames), 1.0, rng)]),
        np.concatenate([labels[rest], labels[which]]),
        images[:0],
        labels[:0],
    )


def unequal_labels(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Batch:
    """Every digit once, but only five of each of seven labels."""
    rank = np.array([(labels[:i] == label).sum() for i, label in enumerate(labels)])
    rows = (labels < 3) | (rank < 5)
    return Batch(images[rows], labels[rows], images[:0], labels[:0])


def covered(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Batch:
    """A pool of 300 digits below 7, and a batch that is mostly noisy copies of it; one in ten images is another digit."""
    below = labels < 7
    old = np.flatnonzero(below)[:300]
    new = np.setdiff1d(np.arange(len(images)), old)[: N // 10]
    again = rng.choice(old, N - len(new))
    batch = np.concatenate([noisy(images[again], 0.5, rng), images[new]])
    return Batch(batch, labels[[*again, *new]], images[old], labels[old])


def noisy(images: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Return images with noise added; pixels stay between 0 and 16."""
    return np.clip(images + rng.normal(0, noise, images.shape), 0, 16)


BATCHES = {
    "all different": all_different,
    "each five times": copies,
    "half are frames of ten things": lambda *args: few_things(0.5, *args),
    "80 % are frames of ten things": lambda *args: few_things(0.8, *args),
    "95 % are frames of ten things": lambda *args: few_things(0.95, *args),
    "seven labels are rare": unequal_labels,
    "90 % is in the pool already": covered,
}


def order(method: str, images: np.ndarray, pool: np.ndarray, n_picks: int, seed: int) -> np.ndarray:
    """Return the first picks of a method."""
    if method == "coreset":
        return k_center(images, pool, n_samples=n_picks, min_distance=-1.0).indices
    if method == "typical":
        n_clusters = n_picks + len(pool)
        return typical_order(images, pool, n_clusters=n_clusters, seed=seed, progress=lambda *_: None)[:n_picks]
    return random_order(len(images), seed=seed)[:n_picks]


def main() -> None:
    """Measure and write the table."""
    digits = load_digits()
    lines = ["| batch | covered | redundant | picks | coreset | typical | random |", "| --- " * 7 + "|"]
    for name, make in BATCHES.items():
        shares, scores = [], {(method, k): [] for k in PICKS for method in ("coreset", "typical", "random")}
        for seed in SEEDS:
            rng = np.random.default_rng(seed)
            shuffled = rng.permutation(len(digits.data))
            inside, outside = shuffled[:N], shuffled[N:]
            batch = make(digits.data[inside], digits.target[inside], rng)
            images, pool = (unit_rows(rows.astype(np.float32)) for rows in (batch.images, batch.pool))
            sampled = measure_sample(images, pool, seed=seed)
            points = images[sampled.candidates].astype(np.float64)
            close = REDUNDANT * np.median(np.linalg.norm(points[1:] - points[:-1], axis=1))
            shares.append([(sampled.to_pool < close).mean(), (sampled.to_others < close).mean()])
            for (method, k), found_right in scores.items():
                picks = order(method, images, pool, k, seed)
                known = np.concatenate([batch.pool_labels, batch.labels[picks]])
                found = nearest(
                    unit_rows(digits.data[outside].astype(np.float32)), np.concatenate([pool, images[picks]])
                )
                found_right.append(100 * (known[found.indices] == digits.target[outside]).mean())
        for k in PICKS:
            cells = [
                f"{np.mean(scores[m, k]):.0f} ± {np.std(scores[m, k]):.0f}" for m in ("coreset", "typical", "random")
            ]
            facts = [f"{share:.0%}" for share in np.mean(shares, axis=0)]
            lines.append(f"| {' | '.join([name, *facts, str(k), *cells])} |")
            print(lines[-1], flush=True)
    about = __doc__.split("\n\n")[2]
    head = f"# Which method suits which batch\n\nRun: `python -m benchmarks.batch_kinds`.\n{about}\n\n"
    Path(__file__).with_suffix(".md").write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
