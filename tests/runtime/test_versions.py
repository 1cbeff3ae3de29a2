"""Versions by package, by module where the package has another name, and of what is not there."""

from __future__ import annotations

import platform

import cv2
import numpy as np

from rdedge.versions import library_versions


def test_versions_by_package_and_by_module_and_of_what_is_not_there() -> None:
    found = library_versions("cv2", "no_such_package")
    assert list(found) == ["python", "rdedge", "numpy", "cv2", "no_such_package"]
    assert found["python"] == platform.python_version() and found["numpy"] == np.__version__
    assert found["cv2"] == cv2.__version__, "of the package opencv-python-headless"
    assert found["no_such_package"] == "not installed"
