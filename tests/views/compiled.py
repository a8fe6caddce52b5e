"""Run by itself: compiles every form of Triton's kernels for a GPU (its compute capability the
argument) that need not be there, down to machine code.
"""

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lookalike.views import kernels

TILE = {"BY": 16, "BX": 64}
POINTERS = {"ints": "*i32", "floats": "*fp32", "sums": "*fp32", "words": "*i64", "form": "*fp32"}
CUT = {"CUT": True, "CUBIC": True, "BYTES": True, "MOVED": False, "REFLECT": False}
READY = dict.fromkeys(CUT, False)


def compiled(kernel, images, out, **constants):
    """One form of a kernel; what is no pointer is a whole number."""
    names, given = kernel.arg_names, constants | TILE
    pointers = POINTERS | {"images": images, "out": out}
    types = {n: "constexpr" if n in given else pointers.get(n, "i32") for n in names}
    known = {(names.index(name),): value for name, value in given.items()}
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    return triton.compile(ASTSource(kernel, types, known), target=target)


if __name__ == "__main__":
    for channels in (1, 3, 4):
        for how in (CUT, CUT | {"MOVED": True, "CUBIC": False}, READY | {"BYTES": True}):
            compiled(kernels.cut, "*u8", "*fp32", C=channels, AGAIN=False, JITTER=True, **how)
        compiled(kernels.cut, "*fp32", "*fp32", C=channels, AGAIN=True, JITTER=True, **READY)
        compiled(kernels.tint, "*fp32", "*fp32", C=channels, TILES=64)
        for out, noise in (("*fp32", True), ("*bf16", False), ("*fp16", True)):
            how = {"DROPS": True, "ERASES": True, "NOISE": noise}
            compiled(kernels.finish, "*fp32", out, C=channels, **how)
