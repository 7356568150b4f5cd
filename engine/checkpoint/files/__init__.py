"""Files of a checkpoint: their headers, their index, and the reasons why one cannot be read.

Imports no other engine room but errors.
"""
