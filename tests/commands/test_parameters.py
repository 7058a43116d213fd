"""`parameters`."""

from farmer_ref import PRESETS, parameters
from farmer_ref.parameters import count


def test_parameters_prints_counts_beside_the_paper_s(capsys):
    parameters.main(["--preset", "farmer-1.1b-p16"])
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("farmer-1.1b-p16"))
    parts = count(PRESETS["farmer-1.1b-p16"].model)
    assert line.split()[1:5] == [f"{parts['flow'] / 1e6:.2f}", "828", f"{parts['prior'] / 1e6:.2f}", "295"]
    assert "AR-1.9B does not fit" in printed
