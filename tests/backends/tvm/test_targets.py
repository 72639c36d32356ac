import subprocess
import sys

import pytest

from mattecompress.backends.tvm.targets import TARGETS, TargetError, features_to_avoid, find_target


def test_names_are_keys():
    assert [target.name for target in TARGETS.values()] == list(TARGETS)
    assert set(TARGETS) == {
        "host",
        "cortex-a53",
        "cortex-a55",
        "cortex-a72",
        "cortex-a76",
        "neoverse-n1",
        "apple-m1",
        "armv7-a",
    }


def test_unknown_target_names_the_nearest():
    with pytest.raises(TargetError, match=r"unknown target 'cortex-a75'; did you mean cortex-a7"):
        find_target("cortex-a75")


def test_listing_targets_imports_neither_tvm_nor_torch():
    code = "import sys, mattecompress.backends.tvm.targets, mattecompress.backends.tvm.freestanding.link\n"
    code += "sys.exit('tvm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_lanes_follow_the_register_width():
    assert find_target("cortex-a76").lanes() == 4
    assert find_target("cortex-a76").lanes(8) == 16
    assert find_target("host").lanes() * 32 == find_target("host").vector_bits


@pytest.mark.parametrize("name", TARGETS)
def test_code_generation_has_what_the_table_says(name):
    pytest.importorskip("tvm")
    from tvm.target import codegen

    target = find_target(name)
    if target.is_host:
        assert codegen.llvm_is_valid_cpu(str(target.tvm().attrs["mcpu"]), target.triple)
        return
    has = codegen.llvm_get_cpu_features(target.tvm())
    assert ("dotprod" in has) == target.dot_product
    assert ("fullfp16" in has) == target.half
    assert "neon" in has


def test_features_that_the_system_withholds_are_switched_off():
    known = {"avx2", "avx512f", "avx512vnni", "fma", "sse2", "fast-imm16"}
    assert features_to_avoid(known, frozenset({"avx2", "avx512_vnni", "sse2"})) == ["-avx512f", "-fma"]


def test_sse4a_is_not_mixed_with_avx():
    assert features_to_avoid({"avx2", "sse4a"}, frozenset({"avx2", "sse4a"})) == ["-sse4a"]
