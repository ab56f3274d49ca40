import json

from command_line import psa

from psa_triton.tools.diagnosis import Finding


def test_a_problem_shows_its_remedy_and_fails(monkeypatch):
    problem = Finding("package", "av", "problem", "not installed, wanted av>=14", "pip install 'av>=14'")
    monkeypatch.setattr("psa_triton.tools.cli.doctor.diagnose", lambda: [problem])
    result = psa("doctor")
    assert result.exit_code == 1
    assert "PROBLEM" in result.stdout
    assert "pip install 'av>=14'" in result.stdout
    assert "1 problem" in result.stdout
    as_json = psa("doctor", "--json")
    assert as_json.exit_code == 1 and json.loads(as_json.stdout)[0]["name"] == "av"


def test_what_is_optional_does_not_fail(monkeypatch):
    missing = Finding("package", "lpips", "optional", "not installed", "pip install 'psa-triton[lpips]'")
    monkeypatch.setattr("psa_triton.tools.cli.doctor.diagnose", lambda: [missing])
    result = psa("doctor")
    assert result.exit_code == 0 and "All that is needed works." in result.stdout


def test_at_80_columns_commands_are_whole_and_nothing_is_cut(monkeypatch):
    remedy = "pip install --force-reinstall --only-binary av --index-url https://an.index.of.packages/simple 'av>=14'"
    detail = "something that takes more words to say than there is room for in one line of eighty columns"
    findings = [Finding("package", "av", "problem", detail, remedy), Finding("device", "cpu", "ok", "a processor")]
    monkeypatch.setattr("psa_triton.tools.cli.doctor.diagnose", lambda: findings)
    lines = psa("doctor", columns=80).stdout.splitlines()
    assert [line.strip() for line in lines].count(remedy) == 1
    assert all(len(line) <= 80 for line in lines if line.strip() != remedy)
    words = " ".join(" ".join(lines).split())
    assert f"package PROBLEM av: {detail}" in words and "device ok cpu: a processor" in words
