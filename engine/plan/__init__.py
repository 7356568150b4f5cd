"""Plan: what follows by arithmetic before a byte of an expert is read: bits, slots, sizes and a speed bound."""
