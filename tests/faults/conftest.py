"""Rewrite the assertions of the scene's checks, so that pytest explains failures in them."""

import pytest

pytest.register_assert_rewrite("tests.faults.scene", "tests.faults.table")
