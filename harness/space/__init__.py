"""Space: which knobs vary, how far and when, and every change of that. It never imports rows or their analysis."""
