"""Cache state: what the experts' cache holds when the clock starts, by recorded routing; a larger one to score with."""
