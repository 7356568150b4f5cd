"""Pictures of a comparison: what they show is computed once, then drawn by matplotlib or by plotly. It writes no file."""
