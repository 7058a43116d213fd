"""`parameters`."""

from farmer_ref import parameters


def test_parameters_prints_counts_beside_the_paper_s(capsys):
    parameters.main(["--preset", "farmer-1.1b-p16"])
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("farmer-1.1b-p16"))
    assert "295" in line
    assert "828" in line
    assert "AR-1.9B does not fit" in printed
