"""A stamp of what the extension offers: one built from other sources is noticed by it.

Imports nothing of the package, so that setup.py can load this file alone.
"""

import hashlib
import re
from pathlib import Path


def schema_stamp(root: Path) -> str:
    """A hash of the schemas and direct calls in `root`/python/*.cpp; "" without those (a wheel)."""
    files = sorted((root / "python").glob("*.cpp"))
    pattern = re.compile(r"m\.def\((.*?)\);|method<\w+>\((.*?)\),", re.DOTALL)
    definitions = ("".join(found) for f in files for found in pattern.findall(f.read_text()))
    offered = ["".join(re.findall(r'"(.*?)"', definition)) for definition in definitions]
    return hashlib.sha256("\n".join(offered).encode()).hexdigest()[:16] if files else ""
