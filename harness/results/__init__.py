"""Results: rows on disk, what their columns mean, and which figures are metrics. It never imports analysis or show."""
