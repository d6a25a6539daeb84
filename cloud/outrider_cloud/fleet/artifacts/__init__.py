"""Packs as signed artifacts: `repository` the TUF metadata and keys, `publish` a pack into it, `server` over HTTP."""
