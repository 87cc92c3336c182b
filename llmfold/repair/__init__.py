"""Repair: closed-form corrections of what merging changed."""
