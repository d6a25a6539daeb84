"""Packs: a directory with one draft model to ship, and the manifest that says what must be in it."""

from outrider_shared.packs.fingerprint import tokenizer_fingerprint, tokenizer_size
from outrider_shared.packs.manifest import FORMAT, Architecture, FileEntry, Manifest, Precision
from outrider_shared.packs.reader import (
    CHAT_TEMPLATE,
    MANIFEST,
    MODEL,
    MODEL_DATA,
    TOKENIZER,
    Pack,
    bundled_pack,
    read_pack,
)
from outrider_shared.packs.writer import describe_files, write_manifest

__all__ = [
    "CHAT_TEMPLATE",
    "FORMAT",
    "MANIFEST",
    "MODEL",
    "MODEL_DATA",
    "TOKENIZER",
    "Architecture",
    "FileEntry",
    "Manifest",
    "Pack",
    "Precision",
    "bundled_pack",
    "describe_files",
    "read_pack",
    "tokenizer_fingerprint",
    "tokenizer_size",
    "write_manifest",
]
