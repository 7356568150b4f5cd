"""Analysis: what the rows show beyond noise, with one definition of the front. It never decides or prints."""
