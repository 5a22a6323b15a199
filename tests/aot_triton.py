"""`python -m tests.aot_triton`: compiles every Triton kernel's AOT entries; one JSON line each.

An entry is (kernel, signature, constants) or (.., options): "*T" in a signature stands for each
dtype; options are the compiler's (num_warps, ...) and what the kernel claims of its code:
    unaligned: True or names of arguments that are no multiples of 16 (all others are taken to be)
    products: True where tensor cores multiply, except in fp32
    dtypes: those that it is launched in, where not all
    narrow: what is not accessed 16 bytes at a time: "loads", "stores", "bf16", "fp16"

`python -m tests.aot_triton specialise` stops at Triton's own code, and prints what fails of the
forms that a launch makes of its arguments: each integer as 1 (a constant then), as a 64-bit one,
each pointer that may be None as None, nothing a multiple of 16.

A process of its own, without TRITON_INTERPRET: under it kernels are decorated for the interpreter.
"""

import importlib
import inspect
import json
import os
import pkgutil
import re
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.compiled_code import disassemble, summary

ARCHITECTURES = (80, 90)
# Compiled in one form a kernel: that the code exists there.
MORE_ARCHITECTURES = (86, 89, 100, 120)
DTYPES = {"fp32": "*fp32", "bf16": "*bf16", "fp16": "*fp16"}
# Of an AOT entry's fourth element, what is for these tests and not for the compiler.
FLAGS = ("unaligned", "narrow", "products", "dtypes")
INTEGERS = ("i32", "i64")
OF_A_SAMPLE = ("c1", "c2", "hw")  # which stays below 2^31 elements


def modules():
    import lddgan_kernels.triton as package

    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name[0] != "_")


def entry_of(name, index):
    """(kernel, signature, constants, the compiler's options, flags) of an AOT entry."""
    kernel, signature, constants, *rest = importlib.import_module(
        f"lddgan_kernels.triton.{name}"
    ).AOT[index]
    options = dict(rest[0]) if rest else {}
    flags = {flag: options.pop(flag, ()) for flag in FLAGS}
    return kernel, dict(signature), dict(constants), options, flags


def entries():
    """(module, index, architecture, dtype) of everything to compile."""
    for name in modules():
        seen = set()
        for index in range(len(importlib.import_module(f"lddgan_kernels.triton.{name}").AOT)):
            kernel, signature, _, _, flags = entry_of(name, index)
            generic = "*T" in signature.values()
            dtypes = list(flags["dtypes"] or DTYPES) if generic else ["fp32"]
            for architecture in ARCHITECTURES:
                for dtype in dtypes:
                    yield name, index, architecture, dtype
            if kernel not in seen:
                seen.add(kernel)
                for architecture in MORE_ARCHITECTURES:
                    yield name, index, architecture, dtypes[-1]


def source_of(kernel, signature, constants, dtype, unaligned):
    """What Triton compiles: `unaligned` are the arguments that are no multiples of 16."""
    from triton.compiler import ASTSource

    types = {arg: DTYPES[dtype] if type_ == "*T" else type_ for arg, type_ in signature.items()}
    types |= dict.fromkeys(constants, "constexpr")
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, arg in enumerate(kernel.arg_names)
        if arg not in unaligned and (types[arg].startswith("*") or types[arg] in INTEGERS)
    }
    return ASTSource(
        fn=kernel,
        signature={arg: types[arg] for arg in kernel.arg_names},
        constexprs={(kernel.arg_names.index(arg),): value for arg, value in constants.items()},
        attrs=attributes,
    )


def compile_entry(name, index, architecture, dtype):
    import triton
    from triton.backends.compiler import GPUTarget

    kernel, signature, constants, options, flags = entry_of(name, index)
    unaligned = tuple(signature) if flags["unaligned"] is True else flags["unaligned"]
    source = source_of(kernel, signature, constants, dtype, unaligned)
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


def launches(kernel, signature, constants):
    """(what, signature, constants, unaligned arguments) of the forms that a launch can make."""
    fixed = {p.name for p in kernel.params if p.do_not_specialize}
    text = inspect.getsource(kernel.fn)
    yield "unaligned", signature, constants, tuple(signature)
    for name, type_ in signature.items():
        rest = {other: t for other, t in signature.items() if other != name}
        if type_ in INTEGERS:
            if name not in OF_A_SAMPLE:
                yield f"{name} of 64 bits", signature | {name: "i64"}, constants, ()
            if name not in fixed:
                yield f"{name} = 1", rest, constants | {name: 1}, ()
        elif re.search(rf"\b{name} is not None", text):
            yield f"{name} = None", rest, constants | {name: None}, ()
    ones = [name for name, type_ in signature.items() if type_ in INTEGERS and name not in fixed]
    rest = {name: type_ for name, type_ in signature.items() if name not in ones}
    yield "all integers = 1", rest, constants | dict.fromkeys(ones, 1), ()


def specialise(name, index):
    """Complaints of one AOT entry, and how many forms of it were compiled."""
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend

    target = GPUTarget("cuda", 90, 32)
    backend = make_backend(target)
    kernel, signature, constants, options, flags = entry_of(name, index)
    dtype = flags["dtypes"][0] if flags["dtypes"] else "bf16"
    complaints, count = [], 0
    for what, types, values, unaligned in launches(kernel, signature, constants):
        source = source_of(kernel, types, values, dtype, unaligned)
        parsed = backend.parse_options(options)
        context = ir.context()
        ir.load_dialects(context)
        backend.load_dialects(context)
        try:
            source.make_ir(
                target, parsed, backend.get_codegen_implementation(parsed),
                backend.get_module_map(), context,
            )  # fmt: skip
        except Exception as error:
            while error.__cause__ is not None:
                error = error.__cause__
            complaints.append(f"{name}.{kernel.__name__}[{index}] with {what}: {error}")
        count += 1
    return complaints, count


def main():
    if "TRITON_INTERPRET" in os.environ:
        sys.exit("TRITON_INTERPRET is set")
    if sys.argv[1:] == ["specialise"]:
        once = {(name, index): None for name, index, _, _ in entries()}
        work, arguments = specialise, once
    else:
        work, arguments = compile_entry, entries()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for facts in pool.map(work, *zip(*arguments, strict=True), chunksize=4):
            print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
