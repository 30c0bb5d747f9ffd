"""Programs that break clusters on purpose and say what became of what was promised."""
