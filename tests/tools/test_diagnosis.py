import re

import pytest
import torch

import psa_triton.tools.diagnosis as diagnosis
from psa_triton.tools.diagnosis import diagnose, find_attention, find_packages, find_presets


def by_name(findings):
    return {finding.name: finding for finding in findings}


def test_all_that_is_needed_works_where_the_tests_run():
    findings = diagnose()
    assert [finding for finding in findings if finding.state == "problem"] == []
    assert {finding.topic for finding in findings} == {"package", "device", "attention", "video", "presets"}
    assert all(finding.remedy == "" for finding in findings if finding.state == "ok")


class TestPackages:
    def test_one_that_is_missing_or_too_old_comes_with_the_command_that_adds_it(self):
        found = by_name(list(find_packages(["torch>=2.11", "rich>=999", "no-such-package>=1"])))
        assert found["torch"].state == "ok"
        assert found["rich"].state == "problem"
        assert "wanted rich>=999" in found["rich"].detail
        assert found["no-such-package"].state == "problem"
        assert found["no-such-package"].remedy == "pip install 'no-such-package>=1'"

    @pytest.mark.parametrize(("gpu", "state"), [(True, "problem"), (False, "optional")], ids=["gpu", "cpu"])
    def test_a_package_of_an_extra(self, monkeypatch, gpu, state):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        (_, found) = find_packages(['triton>=999; extra == "triton"'])
        assert (found.state, found.remedy) == (state, "pip install 'psa-triton[triton]'")

    def test_what_developers_use_and_other_systems_need_is_not_told(self):
        found = by_name(list(find_packages(['pytest; extra == "dev"', 'rich; sys_platform == "nowhere"'])))
        assert list(found) == ["python"]


@pytest.mark.parametrize(("gpu", "state"), [(True, "problem"), (False, "optional")], ids=["gpu", "cpu"])
def test_a_machine_without_a_c_compiler(monkeypatch, gpu, state):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(diagnosis.shutil, "which", lambda name: None)
    monkeypatch.setattr(diagnosis.sysconfig, "get_path", lambda name: "/nowhere")
    found = by_name(list(diagnosis.find_devices()))["C compiler"]
    assert found.state == state
    assert found.detail.startswith("no C compiler and no /nowhere/Python.h: ")


class TestAttention:
    def test_names_the_implementation_of_each_dtype_and_head_dimension(self):
        found = by_name(list(find_attention()))
        for dtype in ("float32", "bfloat16", "float16", "float64"):
            for dim in (64, 128):
                finding = found[f"cpu, {dtype}, head dimension {dim}"]
                assert finding.state == "ok"
                assert re.match(r"cpu, (fused|fused or blocks|stacks or blocks) \(error ", finding.detail)

    def test_a_wrong_result_is_a_problem(self, monkeypatch):
        def wrong(q, k, v, config, *, impl):
            out, levels = right(q, k, v, config, impl=impl)
            return out * 1.5, levels

        right = diagnosis.sparse_attention
        monkeypatch.setattr(diagnosis, "sparse_attention", wrong)
        findings = list(find_attention())
        assert {finding.state for finding in findings} == {"problem"}
        assert "against the definition" in findings[0].detail

    def test_a_failure_is_a_problem_with_its_reason(self, monkeypatch):
        def fails(*_, **__):
            raise RuntimeError("no such kernel\nand a long trace")

        monkeypatch.setattr(diagnosis, "sparse_attention", fails)
        finding = next(find_attention())
        assert finding.state == "problem"
        assert finding.detail == "fails: no such kernel"


def test_mistakes_in_the_presets_file_are_a_problem(monkeypatch):
    def broken():
        raise ValueError("block_size.m: expected 32, 64 or 128, got 7")

    monkeypatch.setattr(diagnosis, "load_presets_file", broken)
    finding = find_presets()
    assert finding.state == "problem"
    assert "block_size.m" in finding.detail
