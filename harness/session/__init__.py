"""One session of a search: decide from the rows what is due, measure it, conclude rounds; imported only by commands."""
