"""`python -m tests.aot_triton`: compiles every Triton kernel's AOT entries; one JSON line each.

An entry is (kernel, signature, constants) or (.., options): "*T" in a signature stands for each
dtype; options are the compiler's (num_warps, ...) and what the kernel claims of its code:
    unaligned: True or names of arguments that are no multiples of 16 (all others are taken to be)
    products: True where tensor cores multiply, except in fp32
    dtypes: those that it is launched in, where not all
    narrow: what is not accessed 16 bytes at a time: "loads", "stores", "bf16", "fp16"

A process of its own, without TRITON_INTERPRET: under it kernels are decorated for the interpreter.
"""

import importlib
import json
import os
import pkgutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.compiled_code import disassemble, summary

ARCHITECTURES = (80, 90)
DTYPES = {"fp32": "*fp32", "bf16": "*bf16", "fp16": "*fp16"}
# Of an AOT entry's fourth element, what is for these tests and not for the compiler.
FLAGS = ("unaligned", "narrow", "products", "dtypes")


def modules():
    import lddgan_kernels.triton as package

    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name[0] != "_")


def entries():
    """(module, index, architecture, dtype) of everything to compile."""
    for name in modules():
        module = importlib.import_module(f"lddgan_kernels.triton.{name}")
        for index, (_, signature, _, *options) in enumerate(module.AOT):
            generic = any(type_ == "*T" for type_ in signature.values())
            dtypes = options[0].get("dtypes", DTYPES) if options else DTYPES
            for architecture in ARCHITECTURES:
                for dtype in dtypes if generic else ("fp32",):
                    yield name, index, architecture, dtype


def compile_entry(name, index, architecture, dtype):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    entry = importlib.import_module(f"lddgan_kernels.triton.{name}").AOT[index]
    kernel, signature, constants = entry[:3]
    options = dict(entry[3]) if len(entry) > 3 else {}
    flags = {flag: options.pop(flag, ()) for flag in FLAGS}
    types = {arg: DTYPES[dtype] if type_ == "*T" else type_ for arg, type_ in signature.items()}
    types |= dict.fromkeys(constants, "constexpr")
    unaligned = tuple(types) if flags["unaligned"] is True else flags["unaligned"]
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, arg in enumerate(kernel.arg_names)
        if arg not in unaligned and (types[arg].startswith("*") or types[arg] in ("i32", "i64"))
    }
    source = ASTSource(
        fn=kernel,
        signature={arg: types[arg] for arg in kernel.arg_names},
        constexprs={(kernel.arg_names.index(arg),): value for arg, value in constants.items()},
        attrs=attributes,
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    return {
        "name": f"{name}.{kernel.__name__}[{index}] sm_{architecture} {dtype}",
        "dtype": dtype,
        "narrow": ["loads", "stores"] if flags["unaligned"] is True else list(flags["narrow"]),
        "products": flags["products"] is True and dtype != "fp32",
        "sass": _disassemble(compiled.asm["cubin"]),
    }


def _disassemble(cubin):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        (facts,) = summary(disassemble(file.name)).values()
    return facts


def main():
    if "TRITON_INTERPRET" in os.environ:
        sys.exit("TRITON_INTERPRET is set")
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for facts in pool.map(compile_entry, *zip(*entries(), strict=True)):
            print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
