"""The demo makes its images, or names the package that it needs for them."""

import re
import sys

import pytest

from datapool.core.errors import DatapoolError
from datapool.workspace.demo import write_digits


def test_without_scikit_learn_the_demo_names_the_package_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(
        DatapoolError,
        match=f"^{re.escape('the demo needs scikit-learn for its images; `pip install scikit-learn`, then run again')}$",
    ):
        write_digits(tmp_path / "data")
