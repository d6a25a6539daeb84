"""What devices that agreed to it let the cloud keep: where their drafts were refused.

`records` is one answer's refusals, `store` writes the folder of segments and `reading` reads it, `recording` gathers
those of one session, `writer` takes them to the disk in a thread of its own. `outrider train replay` learns from them.
"""
