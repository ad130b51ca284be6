"""Errors that the user can fix."""

from hpo.errors import Problem


def test_a_value_of_any_length_leaves_the_key_and_the_remedy_of_a_message_in_sight():
    long = f"objective: must be val_bpb, got {'x' * 10_000}; write val_bpb"
    problem = Problem(long, "seed: must be a whole number, got 0.5", f"first\n{long}")
    assert problem.lines[1] == "seed: must be a whole number, got 0.5"
    shown = str(problem).splitlines()
    assert len(shown) == 4
    assert shown[2] == "first"
    for line in (shown[0], shown[3]):
        assert len(line) == 900
        assert line.startswith("objective: must be val_bpb, got xxx")
        assert f"... ({len(long):,} characters) ..." in line
        assert line.endswith("xxx; write val_bpb")
