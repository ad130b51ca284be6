"""Has pytest explain what failed in the checks of a scene, too."""

import pytest

pytest.register_assert_rewrite("tests.faults.scene", "tests.faults.table")
