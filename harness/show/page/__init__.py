"""Page: a study as one HTML file without network access, and as a block of Markdown. It computes no statistics."""
