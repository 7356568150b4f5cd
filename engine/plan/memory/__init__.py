"""Memory: parts of the predicted peak of a process, beside its weights; imports of the plan only the banks."""
