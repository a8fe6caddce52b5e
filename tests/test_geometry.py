"""Boxes and sides of images."""

from fractions import Fraction

import pytest

from lookalike.geometry import central, sides


@pytest.mark.parametrize(("size", "wanted"), [(7, (7, 7)), ((3, 5), (3, 5)), ([3, 5], (3, 5))])
def test_a_size_is_a_side_or_height_and_width(size, wanted):
    assert sides(size) == wanted


@pytest.mark.parametrize("like", [8, (8, 4), (3, 7)])
def test_the_central_box_is_the_largest_of_its_shape_that_fits_and_lies_in_the_middle(like):
    rows, columns = sides(like)
    for height in range(1, 40):
        for width in range(1, 40):
            top, left, h, w = central(height, width, like)
            scale = min(Fraction(height, rows), Fraction(width, columns))
            assert abs(h - max(1, scale * rows)) <= Fraction(1, 2)
            assert abs(w - max(1, scale * columns)) <= Fraction(1, 2)
            assert 0 <= height - h - 2 * top <= 1
            assert 0 <= width - w - 2 * left <= 1


def test_a_share_of_the_box_shrinks_both_sides_and_keeps_a_pixel():
    assert central(100, 200, 10, 0.875) == (6, 56, 88, 88)
    assert central(4, 4, 1, 0.01) == (1, 1, 1, 1)
