"""Generated from proto/outrider_wire; do not edit."""
