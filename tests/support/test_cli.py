"""The command line as a user meets it: help, and flags that are wrong."""


def test_help_shows_the_preset_s_own_values(command):
    done = command("train", "--preset", "mnist", "--help")
    assert done.returncode == 0
    words = " ".join(done.stdout.replace("│", " ").split())
    assert "python -m farmer_ref.train" in words
    assert "(default: 28)" in words  # image size
    assert "(default: runs/mnist)" in words


def test_a_wrong_flag_ends_with_2_and_no_traceback(command):
    done = command("sample", "--labls", "3")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr + done.stdout
    done = command("sample", "--run", "nothing")
    assert done.returncode == 2
    assert done.stderr.startswith("error: model is 'nothing'")
    assert done.stderr.count("\n") == 1
