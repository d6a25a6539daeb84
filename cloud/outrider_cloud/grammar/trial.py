"""A process of its own that compiles grammars to see whether that ends: `python -m outrider_cloud.grammar.trial`.

A few schemas take for ever or all of the memory to compile, and a thread cannot be ended; a process can. Requests and
answers are lines of JSON; the first line is the tokenizer.
"""

from __future__ import annotations

import json
import resource
import sys

from outrider_cloud.grammar.language import new_matcher, new_tokenizer
from outrider_shared.errors import GrammarError
from outrider_shared.grammar import Grammar, GrammarKind

_MEMORY_BYTES = 4 << 30


def main() -> None:
    """Answer until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    head = json.loads(sys.stdin.readline())
    try:
        tokenizer, failure = new_tokenizer(head["tokenizer"], head["vocabulary"], head["eos"]), ""
    except GrammarError as error:
        tokenizer, failure = None, error.message
    for line in sys.stdin:
        asked = json.loads(line)
        sys.stdout.write(json.dumps(failure or _try(tokenizer, asked)) + "\n")
        sys.stdout.flush()


def _try(tokenizer: object, asked: dict[str, str]) -> str:
    try:
        matcher = new_matcher(tokenizer, Grammar(GrammarKind(asked["kind"]), asked["text"]))
        matcher.compute_bitmask()
    except GrammarError as error:
        return error.message
    return f"the {asked['kind']} cannot be followed: {matcher.get_error()}" if matcher.is_error() else ""


if __name__ == "__main__":
    main()
