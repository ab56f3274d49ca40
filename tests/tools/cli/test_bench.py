import json

from command_line import psa

from psa_triton.tools.bench.measure import CHOICE, DENSE, FLEX, FLEX_SPARSE, KERNEL, PSA, Case


def test_times_a_shape_and_gives_a_verdict(tmp_path):
    result = psa("bench", "--shape", "tiny-wan-1k", "--no-flex", "--repeats", "1", "--output_dir", tmp_path)
    assert result.exit_code == 0, result.output
    assert "1,152" in result.stdout
    assert "tokens it is" in result.stdout
    found = json.loads((tmp_path / "bench.json").read_text())
    assert [case["tokens"] for case in found["cases"]][-1] == 1152
    for case in found["cases"]:
        assert 0 < case["density"] <= 1
        assert case["speedup"] == case["seconds"]["sdpa"] / case["seconds"]["psa"]
        assert case["seconds"]["psa kernel"] > 0 and case["seconds"]["psa choice of levels"] > 0
        assert case["scratch"].keys() == {"sdpa", "psa"}
    assert found["verdict"]["measured"]
    assert found["shape"]["heads"] == 1
    assert {"versions", "hardware", "command", "date"} <= found.keys()
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bench.json", "bench.png"]


def test_the_widest_table_fits_80_columns(tmp_path, monkeypatch):
    """Every column, and numbers as long as they get."""
    seconds = {DENSE: 87654.3, FLEX: 7654.32, FLEX_SPARSE: 654.321, KERNEL: 54.3219, CHOICE: 4.32198, PSA: 5432.19}
    case = Case(75_600, 0.12345, 0.01, seconds, {DENSE: 98765 << 20, PSA: 1234 << 18})
    short = Case(1024, 0.5, 0.01, {name: 0.00012 for name in seconds}, {DENSE: 0, PSA: 3 << 18})
    monkeypatch.setattr("psa_triton.tools.bench.measure.measure_scaling", lambda *_: iter([short, case]))
    result = psa("bench", "--model", "wan21_1.3b", "--output-dir", tmp_path, columns=80)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    row = next(line for line in lines if line.strip().startswith("75,600"))
    assert len(row.rstrip()) <= 80
    assert row.split() == [
        *("75,600", "0.123", "87654", "7654", "654.32", "54.32", "4.3220", "5432", "16.14", "98765", "308.5")
    ]
    head = " ".join(lines[: lines.index(row)])
    assert all(word in head for word in ("tokens", "density", "sdpa", "flex", "sparse", "kernel", "levels", "speed-"))
    assert "…" not in result.stdout


def test_columns_that_would_be_empty_are_left_out(tmp_path, monkeypatch):
    times = dict.fromkeys((DENSE, KERNEL, CHOICE, PSA), 0.5)
    cases = [Case(1152, 0.25, 0.01, times, {DENSE: None, PSA: None})]
    monkeypatch.setattr("psa_triton.tools.bench.measure.measure_scaling", lambda *_: iter(cases))
    result = psa("bench", "--shape", "tiny-wan-1k", "--output-dir", tmp_path, columns=80)
    row = next(line for line in result.stdout.splitlines() if "1,152" in line)
    assert row.split() == ["1,152", "0.250", "0.5000", "0.5000", "0.5000", "0.5000", "1.00"]
    assert "flex" not in result.stdout and "MiB" not in result.stdout
