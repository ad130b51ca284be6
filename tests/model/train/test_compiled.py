"""Functions of tensors that are compiled to graphs."""

import pytest

from model.train.compiled import _reason

OF_PROCESS = """SubprocException: An exception occurred in a subprocess:

Name=triton_fused_0
Traceback (most recent call last):
  File "compiler.py", line 80, in make_ir
ValueError('Scalar -839952141824 is out of range for type int32')
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (OF_PROCESS, "ValueError('Scalar -839952141824 is out of range for type int32')"),
        (
            "InvalidCxxCompiler: No working C++ compiler found\nPlease set CXX",
            "InvalidCxxCompiler: No working C++ compiler found",
        ),
        ("", "ValueError"),
    ],
)
def test_the_message_of_a_failed_compilation_names_its_cause(text, line):
    assert _reason(ValueError(text)) == line
