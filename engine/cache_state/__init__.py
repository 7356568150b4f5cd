"""Cache state: what the experts' cache holds when the clock starts, given by recorded routing instead of being computed."""
