"""Files that are written whole or not at all."""

from ornstein.io.atomic import atomic_write, inside
from ornstein.io.json import read_json, write_json
from ornstein.io.tensors import FORMAT_VERSION, load_tensors, save_tensors

__all__ = ["FORMAT_VERSION", "atomic_write", "inside", "load_tensors", "read_json", "save_tensors", "write_json"]
