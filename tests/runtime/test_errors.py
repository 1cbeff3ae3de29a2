"""One tree of errors, each one line long, and the drawing of it is true."""

from __future__ import annotations

import re

import rdedge.errors
from rdedge.errors import RdedgeError


def test_the_drawing_shows_every_error_and_its_base() -> None:
    drawn = dict[str, str]()
    parents = ["RdedgeError"]
    for indent, name in re.findall(r"^([│ ]*)[├└]── (\w+)", rdedge.errors.__doc__ or "", re.MULTILINE):
        depth = len(indent) // 4
        parents[depth + 1 :] = [name]
        drawn[name] = parents[depth]
    real = {
        name: value.__base__.__name__
        for name, value in vars(rdedge.errors).items()
        if isinstance(value, type) and issubclass(value, RdedgeError) and value is not RdedgeError
    }
    assert drawn == real


def test_an_error_says_what_is_wrong_and_what_to_do_in_one_line() -> None:
    error = RdedgeError("two\nlines", remedy="join them")
    assert str(error) == "two lines; join them"
    assert (error.problem, error.remedy) == ("two\nlines", "join them")
