"""What identifies a tokenizer: the same text must give the same ids on both sides, whoever saved the file.

Two `tokenizer.json` of one tokenizer differ in ways that change no id, and the fingerprint looks past these only:

- padding and truncation, which are settings of the last caller;
- order of keys and white space;
- options of the model section that are absent in one file and null, false or empty in the other (newer libraries write
  more of them);
- merges written as "a b" (older libraries) or as ["a", "b"].

Everything else counts: vocabulary, merges and their order, added tokens, normalizer, pre- and post-processor, decoder.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from outrider_shared.errors import PackError

_VOLATILE = ("padding", "truncation", "version")


def tokenizer_fingerprint(tokenizer_json: bytes) -> str:
    """The sha256 (64 hex digits) of the canonical form of a `tokenizer.json`.

    Raises:
        PackError: The bytes are no tokenizer.json.
    """
    content = _parse(tokenizer_json)
    canonical = {key: value for key, value in content.items() if key not in _VOLATILE}
    canonical["model"] = _canonical_model(content["model"])
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def tokenizer_size(tokenizer_json: bytes) -> int:
    """One more than the highest token id that the tokenizer can give; the model's logits may be wider (padding).

    Raises:
        PackError: The bytes are no tokenizer.json, or its vocabulary is empty or malformed.
    """
    content = _parse(tokenizer_json)
    vocabulary = content["model"].get("vocab")
    try:
        # Unigram tokenizers list [piece, score] pairs, where the place is the id; all others map piece -> id.
        ids = list(range(len(vocabulary))) if isinstance(vocabulary, list) else list(vocabulary.values())
        ids += [token["id"] for token in content.get("added_tokens") or []]
        return max(ids) + 1
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PackError(
            f"tokenizer.json has no readable vocabulary: {error!r}", hint="save the tokenizer anew"
        ) from error


def _parse(tokenizer_json: bytes) -> dict[str, Any]:
    try:
        content = json.loads(tokenizer_json)
    except (ValueError, RecursionError) as error:
        raise PackError(f"tokenizer.json is not JSON: {error}", hint="save the tokenizer anew") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise PackError("tokenizer.json has no 'model' section", hint="it must be a Hugging Face fast tokenizer")
    return content


def _canonical_model(model: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in model.items() if value is not None and value is not False and value != ""}
    merges = kept.get("merges")
    if isinstance(merges, list):
        kept["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    return kept
