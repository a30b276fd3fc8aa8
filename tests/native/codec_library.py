"""The codec headers alone, built once per instruction set and called through ctypes on torch tensors."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from automagic_cameamp.storage import Affine8, Codec, Dynamic8, ErrorCorrected, Log8, Softsign8

SOURCES = Path(__file__).resolve().parents[2] / "src" / "automagic_cameamp" / "kernels" / "cpu"
# No flag may let the compiler reassociate or fuse: codes are compared bit for bit.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
]
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
AVX512 = [*AVX2, *(f"-mavx512{x}" for x in ("f", "bw", "dq", "vl")), "-mprefer-vector-width=512"]
FLAVOURS = {"isa_base": [], "isa_avx2": AVX2, "isa_avx512": AVX512}
FLAVOURS["isa_avx512_words"] = [*AVX512, "-DAUTOMAGIC_NO_BYTE_TABLES"]  # Skylake, Cascade Lake
NEEDS = {"isa_base": "DEFAULT", "isa_avx2": "AVX2", "isa_avx512": "AVX512", "isa_avx512_words": "AVX512"}

F32, BF16, F16 = 0, 1, 2
TYPES = {torch.float32: F32, torch.bfloat16: BF16, torch.float16: F16}
NUMBERS = ["dynamic", "affine", "affine+4", "affine+8", "softsign", "softsign+4", "softsign+8", "log"]
UNIT, LOG16, FOUR = 8, 9, 10


def codec(name: str, block: int) -> Codec:
    """The reference of a code."""
    kind, _, bits = name.partition("+")
    if kind == "dynamic":
        return Dynamic8(block)
    if kind == "log":
        return Log8(block)
    code = Affine8(block) if kind == "affine" else Softsign8(block)
    return ErrorCorrected(code, int(bits)) if bits else code


def stack(x: Tensor) -> Tensor:
    """A flat tensor as [1,1,1,n]."""
    return x.reshape(1, 1, 1, -1)


def beside(values: Tensor, ulps: int = 2) -> Tensor:
    """Values and their neighbours in fp32."""
    up = down = values
    found = [values]
    for _ in range(ulps):
        up = torch.nextafter(up, torch.tensor(9e9))
        down = torch.nextafter(down, torch.tensor(-9e9))
        found += [up, down]
    return torch.cat(found)


def runnable() -> list[str]:
    """Instruction sets that this processor executes."""
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return ["isa_base"]
    have = torch.backends.cpu.get_cpu_capability().upper()
    order = ["DEFAULT", "AVX2", "AVX512"]
    level = order.index(have.split()[0]) if have.split()[0] in order else 0
    return [flavour for flavour, need in NEEDS.items() if order.index(need) <= level]


def compiler() -> str | None:
    """A C++ compiler, or None."""
    return next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


def build(folder: Path, flavour: str) -> None:
    """Compile the codecs for one instruction set."""
    target = folder / f"{flavour}.so"
    command = [compiler() or "c++", *FLAGS, *FLAVOURS[flavour], f"-DAUTOMAGIC_ISA={flavour}"]
    subprocess.run(
        [*command, f"-I{SOURCES}", str(Path(__file__).with_name("codecs.cpp")), "-o", str(target)], check=True
    )


def load(folder: Path, flavour: str) -> Codecs:
    """What ``build`` has made."""
    return Codecs(ctypes.CDLL(str(folder / f"{flavour}.so")), flavour)


def address(x: Tensor | None) -> ctypes.c_void_p:
    """Pointer to the first element."""
    assert x is None or x.is_contiguous()
    return ctypes.c_void_p(None if x is None else x.data_ptr())


class Codecs:
    """Codec functions of one instruction set."""

    def __init__(self, library: ctypes.CDLL, flavour: str) -> None:
        self.flavour = flavour
        self._decode, self._encode, self._convert, self._random, self._mask, self._whole = (
            getattr(library, f"automagic_{name}_{flavour}")
            for name in ("decode", "encode", "convert", "random", "mask", "whole")
        )
        long, uint = ctypes.c_int64, ctypes.c_uint32
        self.i64, self.u32 = long, uint

    def decode(self, number: int, planes: list[Tensor], first: int, out: Tensor, block: int) -> Tensor:
        """Elements [first, first + out.numel()) into ``out``."""
        four = [address(x) for x in [*planes, None, None, None][:4]]
        self._decode(number, *four, self.i64(first), self.i64(out.numel()), self.i64(block), address(out))
        return out

    def encode(
        self,
        number: int,
        x: Tensor,
        planes: list[Tensor],
        block: int,
        first: int = 0,
        numel: int | None = None,
        base: int | None = None,
    ) -> list[Tensor]:
        """A run of whole blocks into the planes of its tensor."""
        four = [address(p) for p in [*planes, None, None, None][:4]]
        sizes = (self.i64(first), self.i64(x.numel()), self.i64(block), self.i64(numel or x.numel()))
        self._encode(number, address(x), *sizes, base is not None, self.u32(base or 0), *four)
        return planes

    def convert(
        self, mode: int, x: Tensor, typed: Tensor, key: int = 0, step: int = 0, first: int = 0
    ) -> None:
        """Load (0), store to the nearest (1), store stochastically (2)."""
        kind = TYPES[typed.dtype]
        counts = (self.i64(first), self.i64(x.numel()))
        self._convert(mode, kind, self.u32(key & 0xFFFFFFFF), step, *counts, address(x), address(typed))

    def join(self, weight: Tensor, rest: Tensor) -> Tensor:
        """fp32 weights of two parts."""
        x = torch.empty(weight.numel())
        nothing = (0, self.u32(0), 0, self.i64(0))
        self._whole(0, TYPES[weight.dtype], *nothing, self.i64(x.numel()), *map(address, (x, weight, rest)))
        return x

    def split(
        self,
        x: Tensor,
        weight: Tensor,
        rest: Tensor,
        noise: tuple[int, int] | None = None,
        first: int = 0,
    ) -> None:
        """fp32 weights into two parts, from ``first`` on; the noise is a key and a step, or None: nearest."""
        key, step = noise or (0, 0)
        rounds = (noise is not None, self.u32(key & 0xFFFFFFFF), step, self.i64(first))
        self._whole(1, TYPES[weight.dtype], *rounds, self.i64(x.numel()), *map(address, (x, weight, rest)))

    def random(self, key: int, step: int, count: int) -> Tensor:
        """Random bits of the first elements, int32."""
        out = torch.empty(count, dtype=torch.int32)
        self._random(self.u32(key & 0xFFFFFFFF), step, self.i64(count), address(out))
        return out

    def mask(self, g: Tensor, by: int, word: Tensor, value: Tensor, negative: Tensor) -> None:
        """Words in place, their values, packed signs of g."""
        self._mask(address(g), self.i64(g.numel()), by, address(word), address(value), address(negative))
