"""Shrink the directions in which mild edits move an embedding, so that copies of an image come together.

Self-supervised learning in closed form, for a head that is linear: what differs between views of one image should not
matter, what differs between images should.
"""

import numpy as np

RIDGE = 0.03
"""A direction in which edits vary as much as this share of the mean variance of the images is shrunk by the square root
of two. Measured in benchmarks/backbones.md: 0.01 to 0.1 score alike."""


def within_view_whitening(embeddings: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Return the symmetric matrix that shrinks each direction by how much mild edits of an image vary along it.

    It is (I + W / r) to the power of -1/2, where W is the covariance between the views of one image (the image and its
    edits), averaged over the images, and r is ``RIDGE`` times the mean variance of the embeddings: within-class covariance
    normalization (Hatch, Kajarekar & Stolcke 2006) with images as classes, shrunk towards the identity. What no edit moves
    keeps its length; where edits move nothing, or all images are alike, the matrix is the identity.

    Args:
        embeddings: Shape (n, d), n >= 1: the images.
        views: Shape (m, v, d): v >= 2 views of each of m images.

    Returns:
        Shape (d, d), float64.

    >>> embeddings = np.array([[-1.0, -1.0], [1.0, 1.0]])  # variance 1
    >>> views = np.array([[[-0.3, 5.0], [0.3, 5.0]]])  # variance 0.18 along the first axis, 0 along the second
    >>> within_view_whitening(embeddings, views).round(3).tolist()  # sqrt(1 + 0.18 / 0.03) = 2.646
    [[0.378, 0.0], [0.0, 1.0]]
    """
    ridge = RIDGE * float(embeddings.astype(np.float64).var(axis=0).mean())
    width = embeddings.shape[1]
    if not len(views) or ridge <= 0:
        return np.eye(width)
    n_images, n_views, _ = views.shape
    deviations = views.astype(np.float64)
    deviations -= deviations.mean(axis=1, keepdims=True)
    flat = deviations.reshape(-1, width)
    variances, directions = np.linalg.eigh(flat.T @ flat / (n_images * (n_views - 1)))
    shrunk: np.ndarray = (directions / np.sqrt(1 + np.maximum(variances, 0) / ridge)) @ directions.T
    return shrunk
