"""Mends Triton's interpreter."""

import pytest


@pytest.fixture
def bfloat16_is_rounded(monkeypatch):
    """Triton's interpreter cuts float32 off to bfloat16, which has a bias; GPUs round to nearest."""
    np = pytest.importorskip("numpy")
    tl = pytest.importorskip("triton.language")
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    cast = interpreter.InterpreterBuilder.cast_impl

    def rounding_cast(self, source, target):
        if (source.dtype.scalar, target.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, target)
        bits = np.ascontiguousarray(source.data).view(np.uint32)
        rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        return interpreter.TensorHandle(rounded, tl.bfloat16)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "cast_impl", rounding_cast)
