"""Commands that cannot work end with code 2 and one line, before training, never with a traceback."""

import pytest

from tests.run.bad_commands import broken_files, one_option
from tests.run.warm import commands

LEAST = 150


@pytest.mark.slow
def test_each_is_one_line(tmp_path):
    given = one_option() | broken_files(tmp_path)
    assert len(given) >= LEAST
    ended = commands(given, tmp_path / "commands")
    wrong = {name: reason for name, end in ended.items() if (reason := fault(end))}
    for name, reason in wrong.items():
        print(f"{name}: {reason}")
    assert len(wrong) == 0, f"{len(wrong)} of {len(given)}"


def fault(end):
    """What is wrong in how a command ended; None: nothing."""
    errors = [line for line in end.stderr.splitlines() if ": error: " in line]
    if "Traceback" in end.stderr:
        return f"a traceback: {end.stderr.splitlines()[-1][:200]}"
    if end.code != 2:
        return f"code {end.code} after {end.seconds:.0f} s: {end.stderr[-200:]}"
    if len(errors) != 1 or len(errors[0]) >= 300:
        return f"{len(errors)} lines, of {[len(line) for line in errors]} characters"
    if "secret" in end.stderr + end.stdout:
        return "it shows credentials"
    if end.seconds > 60:
        return f"{end.seconds:.0f} s"
    return None
